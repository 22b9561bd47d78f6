"""Kills a verb at random moments, and says whether it came to the same files as one that was left alone.

``python -m tests.end_to_end.killing JSON``: run by ``test_kills``, in a process of its own, which imports everything once and forks for
every run, so that a kill costs the work since the last checkpoint and not the seconds of importing PyTorch.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

MEASURED = re.compile(
    rb'"(?:seconds|pictures_per_second|seconds_per_picture|memory_mib|estimated_seconds|minutes)": (?:[\d.e-]+|null|\{[^{}]*\})|'  # JSON
    rb"\d+(?:\.\d+)? (?:s|min|minutes|seconds|pictures/s|pictures a second)\b|<td[^>]*>[\d.,]+</td>(?=<!-- measured -->)"
)
"""What the clock says, which no two runs share."""
UNLIKE = (".pt", ".lock")
"""Checkpoints are archives that hold the time of day."""


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, without what the clock says and its own name."""
    found, own = {}, str(folder).encode()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.endswith(UNLIKE) and "logs" not in path.parts:
            data = path.read_bytes()
            found[name] = MEASURED.sub(b"*", data.replace(own, b"OUT")) if path.suffix in (".json", ".html", ".md", ".jsonl") else data
    return found


def differences(ours: dict[str, bytes], theirs: dict[str, bytes]) -> list[str]:
    said = [f"missing: {name}" for name in theirs.keys() - ours.keys()] + [f"left over: {name}" for name in ours.keys() - theirs.keys()]
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            said.append(f"differs: {name}: {a[max(0, at - 60) : at + 60]!r} and {b[max(0, at - 60) : at + 60]!r}")
    return sorted(said)


def carry_out(task: dict[str, Any], out: Path) -> int:
    """The verb in this process; its exit code."""
    if "demo" in task:
        from ccdiff_cli.demo import run_demo

        run_demo(out, **task["demo"])
        return 0
    from ccdiff_cli.cli import main

    try:
        main([*task["arguments"], "--out", str(out)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def begin(task: dict[str, Any], out: Path, cache: Path) -> psutil.Process:
    """Fork a process that carries it out."""
    child = os.fork()
    if child:
        return psutil.Process(child)
    code = 99
    try:
        os.setsid()
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["CCDIFF_CACHE"] = str(cache)
        code = carry_out(task, out)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def called(process: psutil.Process, title: str) -> bool:
    """Whether its command line begins so; Ray's actors show what they are there."""
    try:
        return " ".join(process.cmdline()).startswith(title)
    except psutil.Error:
        return False


AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Of Ray itself; they notice that it is gone, and take a minute or two to tell it so before they end."""


def ended(process: psutil.Process, seconds: float) -> int | None:
    """The exit code, or None where it still runs then."""
    until = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.01)


def kill_at_random(task: dict[str, Any]) -> dict[str, Any]:
    """Kill as often as ``task["kills"]`` says, the verb's own process or one that it started (``workers``: True, or how the command lines
    of those begin that are killed); what came of it."""
    root, rng = Path(task["root"]), random.Random(task.get("seed", 0))
    start = time.monotonic()
    code = ended(begin(task, root / "alone", root / "cache-alone"), 600)
    assert code == 0, (root / "alone.log").read_text()
    duration, whole = time.monotonic() - start, content(root / "alone")
    out, cache = root / "killed", root / "cache-killed"
    told: dict[str, Any] = {"kills": 0, "of workers": 0, "runs": 0, "completed": 0, "codes": [], "orphans": 0, "differences": []}
    slow: list[psutil.Process] = []

    def compare() -> None:
        told["completed"] += 1
        told["differences"] += differences(content(out), whole)
        shutil.rmtree(out)
        shutil.rmtree(cache, ignore_errors=True)

    while told["kills"] < task["kills"] or told["completed"] == 0:
        process, hurt = begin(task, out, cache), False
        told["runs"] += 1
        while True:
            enough = told["kills"] >= task["kills"]
            code = ended(process, 600 if enough else rng.uniform(0, duration))
            if code is not None:
                told["codes"].append(code)
                assert code == 0 or (hurt and code == 2), out.with_suffix(".log").read_text()[-3000:]
                if code == 0:
                    compare()
                break
            assert not enough, "it does not end"
            started = below(process)
            workers = task.get("workers") or ""
            mortal = started if workers is True else [p for p in started if workers and called(p, workers)]
            whom = rng.choice(mortal) if mortal and rng.random() < 0.6 else process
            try:
                whom.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
            told["kills"] += 1
            if whom is not process:
                told["of workers"] += 1
                hurt = True
                continue
            slow += [p for p in started if any(called(p, title) for title in AGENTS)]
            ended(process, 60)
            _, left = psutil.wait_procs([p for p in started if p not in slow], timeout=60)
            told["orphans"] += len(left)
            break
    told["orphans"] += len(psutil.wait_procs(slow, timeout=300)[1])
    return {**told, "alone": round(duration, 1)}


def warm_up() -> None:
    """What the verbs import, rooms that do so when they are asked included."""
    import diffusers  # noqa: F401
    import torch

    from ccdiff_cli.cli.app import VERBS
    from ccdiff_cli.demo import run_demo  # noqa: F401
    from ccdiff_cli.evaluation import evaluate  # noqa: F401
    from ccdiff_cli.export import export_set  # noqa: F401
    from ccdiff_cli.models import pipeline  # noqa: F401
    from ccdiff_cli.prepare import prepare_dataset  # noqa: F401
    from ccdiff_cli.synthesis import synthesize  # noqa: F401
    from ccdiff_cli.trainability import eval_trainability  # noqa: F401
    from ccdiff_cli.training import train  # noqa: F401

    for module in VERBS.values():
        importlib.import_module(f"ccdiff_cli.cli.{module}")
    torch.set_num_threads(1)


if __name__ == "__main__":
    main_module = sys.modules["__main__"]  # processes that are started afresh would import it again, by a name that they may not know
    main_module.__spec__ = None
    del main_module.__file__
    warm_up()
    print(json.dumps(kill_at_random(json.loads(sys.argv[1]))))
