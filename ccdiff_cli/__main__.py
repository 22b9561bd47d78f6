"""The program: ``ccdiff``, or ``python -P -m ccdiff_cli``.  Nothing is imported before the current folder is off the path."""

import os
import sys

from .startup import INTERRUPTED, TERMINATED, Terminated, hear_signals, leave, leave_current_folder, open_streams, watched


def main() -> None:
    """The console script: :func:`.cli.main` in a process of its own."""
    leave_current_folder()
    open_streams()
    if (ended := watched()) is not None:
        _leave_after(ended)
    hear_signals()
    from .cli import main as run

    try:
        run()
        code: int | str | None = 0
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt as stop:  # it came when the command had ended
        leave(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED)
    if code in (INTERRUPTED, TERMINATED):
        os._exit(int(code))  # clearing up is done; what a library does at exit would be a second message at best
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # all is done; while the interpreter ends, it would be killed by it without a word
    sys.exit(code)


def _leave_after(ended: int) -> None:
    """End as the process ended that was watched: with its exit code, or with a message where a library gave up for lack of memory."""
    import signal

    if ended in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):
        from .failures import tell

        ended = tell(MemoryError(f"a library ended the program: {signal.Signals(-ended).name}"), as_json="--json" in sys.argv)
    sys.stdout.flush()
    os._exit(ended if ended >= 0 else 128 - ended)


if __name__ == "__main__":
    main()
