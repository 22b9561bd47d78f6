"""Starting worker processes: on Linux and the CPU they are forked from one process that has imported what they need.

Notable here:

* PyTorch, diffusers and transformers take a processor longer to import than a small generator takes to load.  One process imports them
  once for all workers and all shards of a run, does nothing else, and forks whenever it is asked.
* NOTE: it computes nothing, for a process whose OpenMP has run must not fork; nor must one that has spoken to a GPU, so on GPUs, as on
  other systems, every worker is a fresh process.
* Nobody is left over: Linux ends the workers with the process that forked them, and that one with the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any, TextIO

import torch

from ..startup import end_with, limited, python_command, python_environment

FRESH = (
    "from ccdiff_cli.startup import end_with, quiet_aborts; quiet_aborts(); end_with({}); "
    "from ccdiff_cli.synthesis.worker import run; run()"
)
FORKING = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "from ccdiff_cli.startup import end_with, quiet_aborts; quiet_aborts(); end_with({}); "
    "from ccdiff_cli.synthesis.starting import fork_on_demand; fork_on_demand()"
)
MESSAGE = 1 << 16
"""Bytes of a request at most: folder names."""
PATIENCE = 180.0
"""Seconds that a worker may take to be forked where the address space has a limit: OpenBLAS, where it gets no memory, tries for ever."""
GONE = -int(getattr(signal, "SIGKILL", 9))
"""The exit code of a worker of which nobody is left to ask."""


class Forked:
    """A worker that was forked: as much of ``subprocess.Popen`` as is used of one."""

    def __init__(self, pid: int | None, stdin: TextIO, stdout: TextIO, starter: Starter) -> None:
        self.pid, self.stdin, self.stdout, self._starter = pid, stdin, stdout, starter
        self._code = GONE if pid is None else None

    def kill(self) -> None:
        if self._code is None:
            self._starter.ask(kill=self.pid)

    def wait(self) -> int:
        """Its exit code; that of a kill where the process that forked it is gone, which took it along."""
        if self._code is None:
            self._code = self._starter.ask(wait=self.pid).get("code", GONE)
        return self._code


Worker = Forked | subprocess.Popen[str]


class Starter:
    """Starts the workers of one ``synthesize``; :meth:`close` when there will be no more.

    Args:
        threads: that every worker computes with.
    """

    def __init__(self, threads: int) -> None:
        self.variables = {**python_environment(), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.forks = sys.platform == "linux" and not torch.cuda.is_available()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._stuck = False

    def start(self, arguments: list[str]) -> Worker:
        """A worker with the arguments of ``worker.main``."""
        if not self.forks:
            command = [*python_command(FRESH.format(os.getpid())), *arguments]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.variables, bufsize=1)
        if not self._stuck and (self._process is None or self._process.poll() is not None):
            self._begin()
        (their_in, our_in), (our_out, their_out) = os.pipe(), os.pipe()
        stdin, stdout = open(our_in, "w", buffering=1), open(our_out)  # noqa: SIM115 - closed by who asked
        try:
            pid = self.ask((their_in, their_out), start=arguments).get("pid")
        finally:
            os.close(their_in)
            os.close(their_out)
        return Forked(pid, stdin, stdout, self)  # one that could not be forked: its output is at its end

    def ask(self, files: tuple[int, ...] = (), **request: Any) -> dict[str, Any]:
        """The answer of the process that forks; nothing where it is gone."""
        with self._lock:
            if self._socket is None or self._stuck:
                return {}
            try:
                self._socket.settimeout(PATIENCE if "start" in request and limited() else None)
                socket.send_fds(self._socket, [json.dumps(request).encode()], files)
                return dict(json.loads(self._socket.recv(MESSAGE) or b"{}"))
            except TimeoutError:
                self._stuck = True
                if self._process is not None:
                    self._process.kill()
                return {}
            except OSError:
                return {}

    def close(self) -> None:
        """End the process that forks, and with it what it forked."""
        if self._process is not None and self._socket is not None:
            self._socket.close()
            self._process.kill()  # it may still be importing
            self._process.wait()

    def _begin(self) -> None:
        self.close()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [*python_command(FORKING.format(os.getpid())), str(theirs.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=self.variables, pass_fds=[theirs.fileno()])


# ---- the process that forks ----


def fork_on_demand() -> None:
    """Import what the first worker needs, then fork a worker, kill one, or wait for one whenever the socket says so; ends with it."""
    try:
        _serve()
    except MemoryError:  # who asks finds nobody, and says what is lacking
        os._exit(1)


def _serve() -> None:
    from . import worker

    asked = socket.socket(fileno=int(sys.argv[1]))
    imported = False
    while True:
        message, files, _, _ = socket.recv_fds(asked, MESSAGE, 2)
        if not message:
            os._exit(0)
        request: Mapping[str, Any] = json.loads(message)
        answer: dict[str, Any] = {}
        if "start" in request:
            if not imported:
                with contextlib.suppress(Exception):  # the worker will meet it, too, and say it
                    worker.import_parts(request["start"][2])
                imported = True
            with contextlib.suppress(OSError):  # no memory, too many processes
                answer["pid"] = _fork(request["start"], files, asked)
            for number in files:
                os.close(number)
        elif "kill" in request:
            with contextlib.suppress(OSError):
                os.kill(request["kill"], signal.SIGKILL)
        else:
            with contextlib.suppress(OSError):
                answer["code"] = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        asked.send(json.dumps(answer).encode())


def _fork(arguments: list[str], files: list[int], asked: socket.socket) -> int:
    """Fork a worker whose standard streams are these files; returns its process number."""
    from . import worker

    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: those of OpenBLAS, which expects to be forked
        pid = os.fork()
    if pid == 0:
        try:
            asked.close()
            end_with(parent)
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 - pipes, whatever these were before
            sys.argv[1:] = arguments
            worker.run()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    return pid
