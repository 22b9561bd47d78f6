"""Blocks made by Ray Data: a pool of actors on one machine or on a Ray cluster (``RAY_ADDRESS``), one a GPU, that share a folder.

An actor that dies is started again by Ray and its block made again, which gives the same bytes; machines may come and go.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CCDiffError, said_by
from ..startup import python_environment
from .plan import Plan, read_plan
from .worker import Parts, device_of, fixed_arithmetic, maker_of, save_block


class BlockMaker:
    """An actor: loads the generator once, then makes blocks; a block that cannot be made is told in the row, not raised."""

    def __init__(self, out: str, parts: Mapping[str, str]) -> None:
        self.out, self.plan = Path(out), read_plan(out)
        self._arithmetic = contextlib.ExitStack()
        self._arithmetic.enter_context(fixed_arithmetic(self.plan.options["threads"]))  # for the actor's whole life
        self.maker = maker_of(self.plan, Parts(**parts), device_of(0))  # Ray shows an actor its own GPU alone

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        refused = []
        for b in rows["block"]:
            try:
                save_block(self.out, int(b), self.plan, self.maker.block(int(b)), self.maker.most)
                refused.append("")
            except CCDiffError as error:
                refused.append(json.dumps([error.what, error.where, error.fix]))
        return {"block": rows["block"], "refused": np.array(refused, object)}


def make_with_ray(
    out: Path, blocks: Sequence[int], plan: Plan, parts: Parts, actors: int, done: Callable[[int], None], stop: Callable[[], bool]
) -> None:
    """Make blocks by so many actors; ``done(b)`` is called for each that is on the disk.

    Raises:
        CCDiffError: Ray is not installed, or failed; a block cannot be made.
    """
    import torch

    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        import ray
        from ray.data import ActorPoolStrategy, DataContext
    except ImportError as error:
        raise CCDiffError("Ray is not installed", where="--ray", fix="pip install 'ccdiff[ray]'") from error
    threads = str(plan.options["threads"])
    kept = {name: python_environment()[name] for name in ("PYTHONPATH", "PYTHONSAFEPATH")}  # actors import what this process imports
    variables = {**kept, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    started = not ray.is_initialized()
    if started:
        with tempfile.TemporaryDirectory() as nothing:  # without a working folder of its own, an actor imports from the current one
            ray.init(include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables, "working_dir": nothing})
    DataContext.get_current().enable_progress_bars = False
    try:
        rows = ray.data.from_items([{"block": b} for b in blocks], override_num_blocks=len(blocks)).map_batches(
            BlockMaker,  # type: ignore[arg-type]
            fn_constructor_args=(str(out.resolve()), {k: _absolute(v) for k, v in asdict(parts).items()}),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(actors, len(blocks))),
            num_gpus=1 if torch.cuda.is_available() else 0,
        )
        for row in rows.iter_rows():
            if row["refused"]:
                what, where, fix = json.loads(row["refused"])
                raise CCDiffError(what, where=where, fix=fix)
            done(int(row["block"]))
            if stop():
                return
    except ray.exceptions.RayError as error:  # of Ray's own: a machine or one of its services is gone
        fix = "run the same command again: what is made stays; without --ray, processes of this machine make the rest"
        raise CCDiffError(f"Ray cannot go on: {said_by(error)}", where="--ray", fix=fix) from error
    finally:
        if started:
            ray.shutdown()


def _absolute(part: str) -> str:
    """Folders as seen from another working directory; what is no folder stays as it is."""
    return str(Path(part).resolve()) if part and Path(part).exists() else part
