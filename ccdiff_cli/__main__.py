"""The program: ``ccdiff``, or ``python -P -m ccdiff_cli``.  Nothing is imported before the current folder is off the path."""

import os
import signal
import sys

from .startup import INTERRUPTED, TERMINATED, hear_signals, leave_current_folder, open_streams


def main() -> None:
    """The console script: :func:`.cli.main` in a process of its own."""
    leave_current_folder()
    open_streams()
    hear_signals()
    from .cli import main as run

    try:
        run()
    except SystemExit as end:
        if end.code in (INTERRUPTED, TERMINATED):
            os._exit(int(end.code))  # clearing up is done; what a library does at exit would be a second message at best
        raise
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # all is done; while the interpreter ends, it would be killed by it without a word
    sys.exit(0)


if __name__ == "__main__":
    main()
