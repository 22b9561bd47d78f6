"""Leak guards: has anything that the detectors are trained on, or that made it, seen the test pictures?

Looked through, for the test pictures, other tiles of their sources, and pictures that show the same (also flipped or turned, by
``duplicates``): the real training pictures; the reference bank, whose crops and backgrounds a generator draws from, and a retrieval
index beside it; every synthetic or other picture, its provenance, and what its generator was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from ..dataset import PictureSet
from ..detectors import Progress
from ..duplicates import Look, alike_across, look_at_all
from ..errors import CCDiffError
from ..files import read_json
from ..references import BANK, REFERENCES
from ..scene import Scene

AT_ONCE = 8192
"""Pictures whose looks are in memory together."""
SHOWN = 20
"""Leaked pictures of one kind that the report names."""


def check_leaks(
    real: PictureSet,
    others: Mapping[str, PictureSet],
    *,
    generator_data: PictureSet | None = None,
    allow: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Look for the test split of ``real`` where it must not be.

    Args:
        others: name -> a set whose training pictures are added ("synthetic", ...).
        generator_data: the set that the generator was trained on, where it is not ``real``.
        allow: leaks are reported, not refused.

    Returns:
        ``{"checks": [what was found clean, ...], "unknown": [what could not be checked, ...], "leaks": [{"what", "count",
        "pictures"}, ...]}``.

    Raises:
        CCDiffError: a test picture, another tile of its source or a near duplicate was used, unless allowed.
    """
    test = real.split("test")
    names = {s.source for s in test if s.source} | {s.file_name for s in test} | {PurePath(s.file_name).stem for s in test}
    report = _Report()
    train = real.split("train")
    shared = sorted({s.source for s in train if s.source} & {s.source for s in test})
    report.add(
        shared,
        f"{len(shared)} source pictures have tiles in both the train and the test split",
        "no source picture has tiles in both the train and the test split",
        real.root,
        "prepare the set again: `ccdiff prepare` never splits a source picture",
    )
    _check_bank(real, names, report)
    for name, other in others.items():
        _check_provenance(name, other, names, report)
        _check_generator(name, other, real, names, generator_data, report)
    looked = {"real training": train, **{name: other.split("train") for name, other in others.items()}}
    if generator_data is not None:
        looked["generator's training"] = generator_data.split("train")
    _check_looks(test, looked, real.root, report, progress)
    if report.leaks and not allow:
        first, (where, fix) = report.leaks[0], report.cures[0]
        more = f"; and {len(report.leaks) - 1} more kinds of leak" if len(report.leaks) > 1 else ""
        raise CCDiffError(
            f"the test split leaked: {first['what']} (first: {first['pictures'][0]}){more}",
            where=where,
            fix=f"{fix}; or go on regardless, and have it in the report: --allow-leaks",
        )
    return {"checks": report.checks, "unknown": report.unknown, "leaks": report.leaks}


class _Report:
    """What was found, in the order it was looked for."""

    def __init__(self) -> None:
        self.checks: list[str] = []
        self.unknown: list[str] = []
        self.leaks: list[dict[str, Any]] = []
        self.cures: list[tuple[str | Path, str]] = []

    def add(self, leaked: Sequence[str], bad: str, good: str, where: str | Path, fix: str) -> None:
        if not leaked:
            self.checks.append(good)
            return
        self.leaks.append({"what": bad, "count": len(leaked), "pictures": list(leaked[:SHOWN])})
        self.cures.append((where, fix))


def _check_bank(real: PictureSet, names: set[str], report: _Report) -> None:
    """The reference bank beside the real set, and a retrieval index, which holds the bank's backgrounds."""
    path = real.root / REFERENCES / BANK
    if not path.is_file():
        report.checks.append("the real set has no reference bank that could hold test pictures")
        return
    bank = read_json(path)
    entries = bank if isinstance(bank, dict) else {}
    used = [(str(e.get("file")), str(e.get("source"))) for e in entries.get("instances", []) if isinstance(e, dict)]
    leaked = [file for file, source in used if source in names]
    leaked += [str(b) for b in entries.get("backgrounds", []) if PurePath(str(b)).name in names]
    indexed = any(real.root.glob(f"{REFERENCES}/index-*"))
    what = "the reference bank and its retrieval index" if indexed else "the reference bank"
    report.add(
        leaked,
        f"{len(leaked)} crops or backgrounds of {what} come from the real set's test split",
        f"{what}: no crop and no background comes from a test picture or its source",
        path,
        "prepare the set again: the bank is made of the train split alone",
    )


def _check_provenance(name: str, other: PictureSet, names: set[str], report: _Report) -> None:
    leaked = []
    for scene in other.scenes:
        texts = [scene.source, *_texts(scene.provenance)]
        if any(text in names or PurePath(text).name in names for text in texts if text):
            leaked.append(scene.file_name)
    report.add(
        leaked,
        f"{len(leaked)} pictures of the {name} set were made from what belongs to the real set's test split",
        f"{name} set: no picture names a layout or a reference from a test picture or its source",
        other.root,
        "synthesize from the layouts and references of the train split",
    )


def _check_generator(
    name: str, other: PictureSet, real: PictureSet, names: set[str], generator_data: PictureSet | None, report: _Report
) -> None:
    generator = other.manifest.get("generator")
    generator = generator if isinstance(generator, dict) else {}
    sources, trained_on = generator.get("sources"), generator.get("trained_on")
    if isinstance(sources, list):
        leaked = sorted(str(s) for s in sources if s in names)
        report.add(
            leaked,
            f"the generator of the {name} set was trained on {len(leaked)} source pictures of the real set's test split",
            f"{name} set: none of its generator's {len(sources)} training sources is a source of the test split",
            other.root,
            "train the generator on the train split alone, and synthesize again",
        )
        known = {s.source for s in real.split("train")}
        unseen = sum(s not in known for s in sources)
        if unseen and generator_data is None:
            report.unknown.append(
                f"{name} set: {unseen} of its generator's training sources are not in the real training split, so their pictures could "
                "not be compared (--generator-data SET)"
            )
    elif trained_on is not None and trained_on == real.key():
        report.checks.append(f"{name} set: its generator was trained on the train split of this very set")
    elif generator_data is None:
        report.unknown.append(f"the {name} set does not say which pictures its generator was trained on (--generator-data SET)")


def _check_looks(
    test: Sequence[Scene], looked: Mapping[str, Sequence[Scene]], root: Path, report: _Report, progress: Progress | None
) -> None:
    def look(scenes: Sequence[Scene], what: str) -> Iterator[list[Look]]:
        """Of so many pictures at a time."""
        for start in range(0, len(scenes), AT_ONCE):
            said = partial(_say, progress, f"looking for leaks: {what} pictures", start, len(scenes)) if progress else None
            yield look_at_all([str(s.path) for s in scenes[start : start + AT_ONCE]], said)

    seen = [one for some in look(test, "test") for one in some]
    for name, scenes in looked.items():
        found = (alike_across(seen, some) for some in look(scenes, name))
        pairs = [(i, j + k * AT_ONCE) for k, alike in enumerate(found) for i, j, _ in alike]
        report.add(
            [f"{scenes[j].file_name} shows {test[i].file_name}" for i, j in pairs],
            f"{len(pairs)} {name} pictures nearly equal a test picture",
            f"none of the {len(scenes)} {name} pictures nearly equals one of the {len(test)} test pictures, as it is, flipped or turned",
            root,
            "leave these pictures out of one of the two",
        )


def _say(progress: Progress, stage: str, before: int, total: int, _: str, done: int, __: int) -> None:
    progress(stage, before + done, total)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
