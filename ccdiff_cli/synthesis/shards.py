"""Sets of very many pictures: one shard after the other, each a whole set of its own; the manifest that names them comes last.

Notable: what a shard holds follows from the plan of the whole and its number alone.  So whoever finds a shard not whole makes it, parts and
processes of a launcher take every n-th one, and nobody holds more than one in memory.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..dataset import MANIFEST, SHARDS, key_of_shards, read_manifest, sum_counts, write_manifest
from ..errors import CCDiffError, Stopped
from ..files import content_key, write_json
from .finish import is_whole
from .options import SynthesisOptions
from .plan import FORMAT, PLAN, PLAN_LINES, holds_plan
from .workers import Progress

MakeShard = Callable[[Path, Mapping[str, Any], "Progress | None"], dict[str, Any]]
"""Makes, or finishes, the set of an identity in a folder; what it returns is that of ``run.synthesize``."""
OWN_KEYS = (
    "counts",
    "content",
    "plan",
    "shard",
    "pictures",
    "labels",
    "edits",
    "filter",
    "made_in_smaller_batches",
    "colours",
    "skipped_layouts",
)
"""Of a shard's manifest: what does not hold for all."""


def is_sharded_run(out: Path, options: SynthesisOptions) -> bool:
    """Whether a set is made in shards; one that was begun in one folder, by an earlier version, is finished there."""
    return options.n > options.shard_size and not (out / PLAN_LINES).is_file()


def identity_of_all(identity: Mapping[str, Any], options: SynthesisOptions) -> dict[str, Any]:
    """What a set of shards follows from: also of how many pictures these are."""
    return {**identity, "options": {**identity["options"], "shard_size": options.at_once()}}


def identity_of_shard(identity: Mapping[str, Any], first: int, count: int) -> dict[str, Any]:
    """What the shard from picture ``first`` on follows from."""
    return {**identity, "options": {**identity["options"], "n": count}, "shard": {"first": first, "of": identity["options"]["n"]}}


def begin(out: Path, identity: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Say whose the folder is.

    Raises:
        CCDiffError: it is another's.
    """
    holds_plan(out, identity, machine)
    write_json(out / PLAN, {"format": FORMAT, "key": content_key(identity), "identity": dict(identity), "environment": dict(machine)})


def make_shards(
    out: Path,
    identity: Mapping[str, Any],
    machine: Mapping[str, Any],
    options: SynthesisOptions,
    share: tuple[int, int],
    make: MakeShard,
    *,
    stop: Callable[[], bool],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make every shard of a share (i, n) that is not whole: all of (0, 1).

    Returns:
        ``made``, ``kept`` (pictures), ``seconds``, ``pictures_per_second``.

    Raises:
        CCDiffError: see ``run.synthesize``.
        Stopped: SIGTERM came.
    """
    made, kept, seconds = 0, 0, 0.0
    for s, (first, count) in enumerate(options.shards()):
        if s % share[1] != share[0]:
            continue
        if stop():
            raise Stopped(f"stopped by a signal after {made + kept} of {options.n} pictures: run the same command again to go on")
        wanted = identity_of_shard(identity, first, count)
        if _is_done(folder_of(out, s), wanted, machine):
            kept += count
            continue
        done = make(folder_of(out, s), wanted, _counted_on(progress, first, options.n))
        made, kept, seconds = made + done["made"], kept + done["kept"], seconds + done["seconds"]
    speed = round(made / seconds, 3) if made and seconds > 0 else None
    return {"made": made, "kept": kept, "seconds": round(seconds, 3), "pictures_per_second": speed}


def folder_of(out: Path, s: int) -> Path:
    """Where shard ``s`` lies."""
    return out / SHARDS / f"{s:05d}"


def _is_done(folder: Path, identity: Mapping[str, Any], machine: Mapping[str, Any]) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    try:
        manifest = read_manifest(folder)
    except CCDiffError:
        return False
    return manifest.get("plan") == content_key(identity) and manifest.get("environment") == machine and is_whole(folder)


def _counted_on(progress: Progress | None, first: int, n: int) -> Progress | None:
    """Progress of a shard as that of the whole set."""
    if progress is None:
        return None

    def report(stage: str, done: int, total: int) -> None:
        if stage == "synthesize":
            progress(stage, first + done, n)
        elif total > n // 100:  # not every shard's labels
            progress(stage, done, total)

    return report


def left_of(out: Path, identity: Mapping[str, Any], options: SynthesisOptions) -> Iterator[int]:
    """Numbers of pictures of the shards that are not finished."""
    for s, (first, count) in enumerate(options.shards()):
        try:
            done = read_manifest(folder_of(out, s)).get("plan") == content_key(identity_of_shard(identity, first, count))
        except CCDiffError:
            done = False
        if not done:
            yield count


def wait_for_shards(out: Path, identity: Mapping[str, Any], options: SynthesisOptions, stop: Callable[[], bool]) -> None:
    """Until the other processes of a launcher have made theirs."""
    while any(left_of(out, identity, options)):
        if stop():
            raise Stopped("stopped by a signal: run the same command again to go on")
        time.sleep(1.0)


def finish_shards(out: Path, identity: Mapping[str, Any], options: SynthesisOptions) -> dict[str, Any]:
    """Write the manifest of a set whose shards are all made; returns it."""
    shards, counts, details = [], [], {}
    colours: Counter[str] = Counter()
    for s, _ in enumerate(options.shards()):
        manifest = read_manifest(folder_of(out, s))
        shards.append({"name": f"{s:05d}", "content": manifest["content"]})
        counts.append(manifest["counts"])
        colours.update({key: count for key, count in (manifest.get("colours") or {}).items() if key != "pictures"})
        if s == 0:
            details = {key: value for key, value in manifest.items() if key not in OWN_KEYS}
    made = {
        **details,
        "counts": sum_counts(counts),
        "content": key_of_shards(shards),
        "plan": content_key(identity),
        "options": identity["options"],
        "shards": shards,
        "pictures": {},
        **({"colours": dict(colours)} if colours else {}),
    }
    if hasattr(os, "sync"):
        os.sync()
    write_manifest(out, made)
    return made
