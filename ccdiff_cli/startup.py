"""What must hold before anything else is imported: no file of the current folder is code, and a signal ends the program with one line.

Notable here:

* The folder one works in may be somebody else's data, and may hold a ``struct.py`` or a ``torch.py``.  :func:`leave_current_folder`
  takes it off the path of this process and off what every process started from here inherits; :func:`fresh_processes` starts Python
  processes that do not look there either, not even for the first modules of the standard library.
* NOTE: only ``os`` and ``sys`` are imported at the top, for Python has loaded both before it looks for any file; not even ``typing`` or
  ``__future__``, which it would look for.
* NOTE: ``python -m ccdiff_cli`` puts the current folder first before a line of ours runs; the command ``ccdiff`` does not, nor does
  ``python -P -m ccdiff_cli`` (from Python 3.11 on).
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext
    from types import FrameType
    from typing import Any

INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141
"""Exit codes, as shells count them: 128 + the signal's number."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what clears up after Ctrl-C clears up after this, too."""

    came = False
    """Whether it ever did: Typer turns this exception, as it does Ctrl-C's, into the exit code of the latter."""


def trusted_paths(entries: list[str]) -> list[str]:
    """Those places of Python code that are neither relative nor the current folder.

    Where the current folder is the very place that this package, the standard library or installed packages lie in, it stays, but last.
    """
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # it was removed
        here = ""
    site: Any = sys.modules.get("site")
    own = [os.path.dirname(os.path.dirname(__file__)), os.path.dirname(os.__file__)]
    own += site.getsitepackages() if hasattr(site, "getsitepackages") else []
    last = [here] if here in {os.path.realpath(p) for p in own} else []
    kept = [p for p in entries if os.path.isabs(p) and os.path.realpath(p) != here]
    return list(dict.fromkeys([*kept, *(p for p in last if any(os.path.realpath(e) == here for e in entries))]))


def leave_current_folder() -> None:
    """No file of the current folder is imported from here on, by this process or by those that it starts."""
    sys.path[:] = trusted_paths(sys.path)
    if "PYTHONPATH" in os.environ:
        handed_on = trusted_paths(os.environ.pop("PYTHONPATH").split(os.pathsep))
        if handed_on:
            os.environ["PYTHONPATH"] = os.pathsep.join(handed_on)
    os.environ["PYTHONSAFEPATH"] = "1"  # Python 3.10 does not know it: see fresh_processes
    os.environ["MPLBACKEND"] = "agg"  # figures go to files; what stands there may be no backend that matplotlib knows
    if not os.environ.get("COLUMNS", "80").strip("0 "):
        del os.environ["COLUMNS"]  # a terminal without width shows nothing
    shield_matplotlib()
    hush_libraries()


def hush_libraries() -> None:
    """bitsandbytes (extra ``8bit``), which diffusers imports where it is there, warns of a kernel that nobody asked for."""
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


class _FromElsewhere:
    """Finds matplotlib, once, and has it loaded in the folder of this package."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name != "matplotlib":
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec: Any = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_elsewhere(module: "Any") -> None:
            before = os.getcwd()
            os.chdir(os.path.dirname(os.path.abspath(__file__)))
            try:
                load(module)
            finally:
                os.chdir(before)

        spec.loader.exec_module = load_elsewhere
        return spec


def shield_matplotlib() -> None:
    """matplotlib takes its settings from a file ``matplotlibrc`` of the current folder first, modules to import among them: not here."""
    if "matplotlib" not in sys.modules and not any(isinstance(f, _FromElsewhere) for f in sys.meta_path):
        sys.meta_path.insert(0, _FromElsewhere())


def fresh_processes() -> "SpawnContext":
    """The context of ``multiprocessing`` that starts Python afresh, without the current folder on its path."""
    import multiprocessing
    import multiprocessing.util

    os.environ["PYTHONSAFEPATH"] = "1"
    if sys.version_info < (3, 11):  # isolated: the path is the one that the parent sends, so nothing is missed
        util = vars(multiprocessing.util)
        util["_args_from_interpreter_flags"] = lambda: ["-I"]
    return multiprocessing.get_context("spawn")


def end_with_parent() -> None:
    """A process of :func:`fresh_processes` ends as soon as the one that started it is gone, however that one ended."""
    import multiprocessing
    import threading
    from multiprocessing.connection import wait

    parent: Any = multiprocessing.parent_process()

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def python_environment() -> dict[str, str]:
    """The environment of a Python process that imports from where this process imports, which ``ccdiff`` has cleared; nothing relative."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if os.path.isabs(p)), "PYTHONSAFEPATH": "1"}


def python_command(code: str) -> list[str]:
    """A command that runs ``code``; the path is cleared first, for ``python -c`` begins it with the current folder (before 3.11 always)."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = [p for p in sys.path if p]; {code}"]


def open_streams() -> None:
    """Standard streams that were closed lead nowhere, lest the next file that is opened takes their place and what they should print."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


# ---- limited memory ----


def limited() -> bool:
    """Whether the address space has a limit (``ulimit -v``)."""
    try:
        import resource
    except ImportError:
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def watched() -> int | None:
    """Where the address space has a limit, go on in a child process, and return None there; else and on systems without signals, too.

    A C++ library that gets no memory aborts, whatever Python would do about it: the child then ends by a signal.  The process that
    watches it hands on the signals that it alone heard, waits, and returns the exit code; -6 is an abort.
    """
    import signal

    if not limited() or not hasattr(signal, "sigwaitinfo"):
        return None
    heard = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before, watcher = signal.pthread_sigmask(signal.SIG_BLOCK, heard), os.getpid()
    child = os.fork()
    if child == 0:
        quiet_aborts()
        end_with(watcher)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    while True:
        came = signal.sigwaitinfo(heard)
        if came.si_signo != signal.SIGCHLD:
            if came.si_code <= 0:  # of another process; what a terminal sends, the child has got, too
                os.kill(child, came.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)


def quiet_aborts() -> None:
    """C++ that gives up in this process says nothing of it (Linux): whoever waits for the process does."""
    import ctypes

    try:
        set_terminate = ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE
        set_terminate.argtypes, set_terminate.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_terminate(ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p))
    except (OSError, AttributeError):
        pass


def end_with(parent: int) -> None:
    """Linux ends this process when its parent is gone."""
    import ctypes
    import signal

    try:  # noqa: SIM105 (contextlib is one more file to look for)
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    except (OSError, AttributeError):
        pass
    if os.getppid() != parent:
        os._exit(1)


# ---- signals ----


def hear_signals() -> None:
    """Ctrl-C and SIGTERM become an exception that ``cli.main`` ends with one line; while a module is being imported they end the program at
    once, for a library in the middle of its import turns an exception into whatever it likes, and nothing is being written then."""
    import signal

    def interrupt(number: int, frame: "FrameType | None") -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                leave(INTERRUPTED if number == signal.SIGINT else TERMINATED)
            frame = frame.f_back
        Terminated.came = number == signal.SIGTERM
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup and shells say so: it stays ignored
            signal.signal(number, interrupt)


def say_stopped(code: int) -> None:
    """The line that tells why the program ended early."""
    text = "interrupted" if code == INTERRUPTED else "stopped by a signal"
    shown_again = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides the cursor
    try:  # noqa: SIM105 (contextlib is one more file to look for)
        os.write(2, shown_again + f"{text}: run the same command again to go on\n".encode("ascii"))
    except OSError:
        pass


def leave(code: int) -> None:
    """End now: no clearing up, which a second signal would only break off."""
    say_stopped(code)
    os._exit(code)
