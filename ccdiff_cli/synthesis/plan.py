"""The plan of a synthetic set: for every picture its layout, caption, references and seed, written before any picture is made.

::

    S/plan.jsonl   one line per picture: k, seed, drawn_from, references, layout (a ``dataset.scene_record``)
    S/plan.json    what the plan was made from (generator, layouts, options), where it is carried out, the hash of plan.jsonl

Notable here:

* Pictures are made in blocks of ``batch_size``: block b holds pictures b * batch_size and up, whoever makes it.  The composition of a
  batch, which floating point rounding may show, is therefore a matter of the plan, not of the number of processes.
* A folder belongs to one plan.  The same command again goes on with it; another one is refused, and told what differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from ..bounds import amount, check_crowded, check_disk, check_memory, free_memory
from ..dataset import MANIFEST, PictureSet, SceneRecord, count_scenes, read_set, scene_from_record, scene_record, versions
from ..errors import CCDiffError
from ..files import content_key, inside, read_json, sha256_file, write_json, write_text
from ..layouts import LayoutOptions, layouts_of_set, plan_layouts
from ..layouts.llm import Writer
from ..methods import Places
from ..references import WORDS, Reference, ReferenceBank
from ..scene import ClassList, Scene
from ..stored import ClassName, Count, Digest, Flag, Free, Number, Seed, Stored, Text, checked, read_lines

PLAN = "plan.json"
PLAN_LINES = "plan.jsonl"
FORMAT = "ccdiff plan 2"

BYTES_OF_JOB, BYTES_OF_OBJECT = 14_000, 1_000
"""Memory of a planned picture and of each of its objects, in every process (measured: 20 kB a picture of 1.8 objects)."""
BYTES_OF_PIXEL = {"png": 1.9, "jpeg": 0.8, "webp": 1.4}
"""Of generated pictures on disk."""
NOISE, CHOICE = 3, 4
"""What a random stream is for; see ``layouts.ORDER``."""


class _Options(Stored):
    n: Annotated[int, Field(strict=True, ge=1)]
    seed: Count
    batch_size: Annotated[int, Field(strict=True, ge=1, le=10**6)]
    steps: Annotated[int, Field(strict=True, ge=1, le=10**6)]
    guidance_scale: Number
    negative_prompt: Text
    scheduler: Text | None = None
    precision: Literal["float32", "bfloat16", "float16"]
    channels_last: Flag = False
    compile: Flag = False
    threads: Annotated[int, Field(strict=True, ge=1, le=10_000)]
    format: Literal["png", "jpeg", "webp"]
    shuffle_layouts: Flag = False
    filter: Filter | None = None


class Filter(Stored):
    """The rules of a filter."""

    mode: Literal["objects", "pictures"]
    recall: Number
    retries: Count


class _Identity(Stored):
    options: _Options
    generator: Free
    layouts: Free


class Header(Stored):
    """``plan.json``."""

    format: Literal["ccdiff plan 2"]
    key: Text
    identity: _Identity
    lines: Digest
    classes: list[ClassName]
    counts: Free
    layouts: Free
    filter: Free | None = None
    environment: Free


class _References(TypedDict):
    instances: list[Text | None]
    background: Text | None


class _Line(TypedDict):
    k: Count
    seed: Seed
    drawn_from: Count
    references: _References | None
    layout: SceneRecord


@dataclass(frozen=True)
class Job:
    """One picture to make.

    Attributes:
        k: its number.
        scene: its layout and caption, which are also its labels.
        references: keys of the references, ``{"instances": [key or None, ...], "background": key or None}``; None: no bank.
        seed: of its initial noise.
        drawn_from: the number of the picture whose layout, caption and references the pipeline is given: ``k``, but in a floor set.
    """

    k: int
    scene: Scene
    references: Mapping[str, Any] | None
    seed: int
    drawn_from: int


@dataclass(frozen=True)
class Plan:
    """A plan as :func:`make_plan` makes it and :func:`read_plan` reads it.

    Attributes:
        header: what stands in ``plan.json``.
        jobs: one per picture, in order.
    """

    header: dict[str, Any]
    jobs: tuple[Job, ...]

    @property
    def key(self) -> str:
        """The key of everything the pictures depend on but the machine."""
        return str(self.header["key"])

    @property
    def options(self) -> dict[str, Any]:
        return self.header["identity"]["options"]

    @property
    def classes(self) -> ClassList:
        return ClassList(tuple(self.header["classes"]))

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-len(self.jobs) // self.options["batch_size"])

    def block(self, b: int) -> tuple[Job, ...]:
        """The pictures of one block."""
        size = self.options["batch_size"]
        return self.jobs[b * size : (b + 1) * size]


def identity_of(
    generator: Mapping[str, Any],
    layouts: PictureSet,
    bank: ReferenceBank | None,
    n: int,
    *,
    seed: int,
    split: str,
    layout_source: str | None,
    balance: str = "none",
    writer: Writer | None = None,
    options: Mapping[str, Any],
    retrieval: str = WORDS,
    top_k: int | None = None,
) -> dict[str, Any]:
    """What a plan follows from, and what tells two runs apart.

    Args:
        generator: of ``generator.read_generator``, with its ``key``.
        layouts: the set that layouts come from; ``bank``: the references, None where there are none.
        layout_source: a key of ``layouts.SOURCES``; None: "augmented", or "set" where the generator needs stored captions.
        balance: one of ``layouts.BALANCES``.
        writer: the language model of source "llm".
        options: batch size, steps, guidance, ...: what else decides the pictures' bytes; JSON-able.
        retrieval: how ``bank.similarity`` finds backgrounds: by words, or by an index of embeddings, which has a key.
        top_k: references are drawn from so many best; by default the recipe's.

    Raises:
        CCDiffError: a class that the generator does not know, a wrong picture size.
    """
    recipe = generator.get("recipe") or {}
    style = recipe.get("caption_style", "plain")
    _check_fit(generator, layouts, split)
    source = layout_source or ("set" if style == "stored" else "augmented")
    written = {"llm": writer.identity()} if source == "llm" and writer is not None else {}
    return {
        "generator": {"key": generator["key"], "recipe": recipe.get("name", "")},
        "layouts": {"key": layouts.key(), "split": split, "source": source, "balance": balance, **written},
        "captions": style,
        "references": None
        if bank is None
        else {
            "key": content_key(sorted(references_of(bank))),
            "top_k": top_k if top_k is not None else recipe.get("denoiser", {}).get("top_k", 8),
            **({} if retrieval == WORDS else {"retrieval": retrieval, "index": getattr(bank.similarity, "key", None)}),
        },
        "options": {"n": n, "seed": seed, **options},
    }


def needs(layouts: PictureSet, split: str, n: int, picture_size: int, format: str) -> dict[str, float]:
    """About how many bytes a plan of n pictures takes: ``memory`` (in every process) and ``disk``."""
    scenes = layouts.split(split)
    objects = sum(len(scene.instances) for scene in scenes) / len(scenes)
    return {"memory": n * (BYTES_OF_JOB + BYTES_OF_OBJECT * objects), "disk": n * picture_size**2 * BYTES_OF_PIXEL[format]}


def check_needs(out: str | Path, layouts: PictureSet, split: str, n: int, picture_size: int, format: str) -> dict[str, str]:
    """What :func:`needs` says, for people.

    Raises:
        CCDiffError: more than this machine has, before the first layout is drawn; or a picture too crowded to be drawn.
    """
    check_crowded(layouts.split(split), where=layouts.root)
    found = needs(layouts, split, n, picture_size, format)
    fits = int(n * min((free_memory() or found["memory"]) / found["memory"], 1.0)) or 1
    fix = f"ask for fewer: about {fits:,} fit here (--n {fits}); more sets with other seeds (--seed) add up"
    check_memory(found["memory"], f"a plan of {n:,} pictures", where="--n", fix=fix)
    check_disk(out, found["disk"], f"a set of {n:,} pictures", fix="ask for fewer pictures (--n), or choose a larger disk (--out)")
    return {"memory_of_the_plan": amount(found["memory"]), "disk": amount(found["disk"])}


def make_plan(
    identity: Mapping[str, Any],
    layouts: PictureSet,
    bank: ReferenceBank | None,
    *,
    writer: Writer | None = None,
    thresholds: Mapping[str, Any] | None = None,
    extension: str = ".png",
    progress: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Decide everything about every picture.

    Args:
        identity: of :func:`identity_of`, for these layouts and this bank.
        writer: the language model of source "llm".
        thresholds: of ``filtering.calibrate``, where the set is filtered.
        extension: of the pictures' file names.

    Raises:
        CCDiffError: no layouts in the split, or none of this source.
    """
    options, split = identity["options"], identity["layouts"]["split"]
    n, seed = options["n"], options["seed"]
    wanted = {name: identity["layouts"][name] for name in ("source", "split", "balance")}
    planned = plan_layouts(
        layouts, n, seed, LayoutOptions.model_validate(wanted), caption_style=identity["captions"], writer=writer, progress=progress
    )
    planned = [
        scene.replace(split=split_of(scene.source, options["val_share"], seed), file_name=f"{k:08d}{extension}")
        for k, scene in enumerate(planned)
    ]
    jobs = []
    for k, scene in enumerate(planned):
        chosen = None
        if bank is not None:
            found = bank.choose(scene, seed=_number(seed, CHOICE, k, 31), top_k=identity["references"]["top_k"])
            keys = [reference.key if reference else None for reference in found.instances]
            chosen = {"instances": keys, "background": found.background.key if found.background else None}
        drawn_from = (k + 1) % n if options["shuffle_layouts"] else k  # the order of layouts is random already
        jobs.append(Job(k, scene, chosen, _number(seed, NOISE, k, 63), drawn_from))
    used, changes = layouts_of_set(layouts, split), [job.scene.provenance["layout"] for job in jobs]
    header = {
        "format": FORMAT,
        "key": content_key(identity),
        "identity": dict(identity),
        "lines": hashlib.sha256(_lines(jobs).encode("utf-8")).hexdigest(),
        "classes": list(layouts.classes),
        "counts": count_scenes([job.scene for job in jobs]),
        "layouts": {
            "pictures": len(layouts.split(split)),
            "used": len(used),
            "without_objects": len(layouts.split(split)) - len(used),
            "objects_outside_picture": sum(len(s.instances) for s in layouts.split(split)) - sum(len(s.instances) for s in used),
            "not_by_the_language_model": sum(change.get("instead_of") == "llm" for change in changes),
            **(_drawn_by_diffusion(changes) if identity["layouts"]["source"] == "diffusion" else {}),
        },
        "filter": dict(thresholds) if thresholds is not None else None,
    }
    return Plan(header, tuple(jobs))


def _drawn_by_diffusion(changes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {
        "layouts_drawn_again": sum(change["rejected"] for change in changes),
        "boxes_unlike_the_real_ones": sum(change["outliers"] for change in changes),
        "not_by_diffusion": sum(change.get("instead_of") == "diffusion" for change in changes),
    }


def check_objects(plan: Plan, places: Places, title: str, *, where: str | Path) -> None:
    """Whether the generator has places for the objects of every planned picture, said before the first one is drawn.

    Pictures with more objects than the generator's form was published with, which are drawn, are counted in the plan's account of its
    layouts.

    Raises:
        CCDiffError: a picture has more than can be drawn.
    """
    limit = places.most or places.usual
    crowded = [(len(job.scene.instances), job.scene) for job in plan.jobs if limit is not None and len(job.scene.instances) > limit]
    if limit is None or not crowded:
        return
    most, fullest = max(crowded, key=lambda pair: pair[0])
    if places.most is None:
        plan.header["layouts"]["more_objects_than_usual"] = {"usual": limit, "pictures": len(crowded), "most": most}
        return
    raise CCDiffError(
        f"{len(crowded):,} of {len(plan.jobs):,} planned pictures have more objects than the {limit} that this {title} generator takes: "
        f"up to {most} ({fullest.file_name}, of the layout {fullest.provenance.get('layout', {}).get('picture', '')})",
        where=where,
        fix=f"train a generator with {places.key} at least {most - limit} higher, or prepare the layouts with smaller tiles (--tile)",
    )


def references_of(bank: ReferenceBank) -> dict[str, Reference]:
    """Every reference of a bank by its key; equal keys mean equal pictures."""
    crops = [reference for name in bank.classes for reference in bank.instances[name]]
    return {reference.key: reference for reference in (*crops, *bank.backgrounds)}


def split_of(source: str, val_share: float, seed: int) -> str:
    """ "train" or "val": pictures whose layouts come from one real picture stand in one split."""
    digest = hashlib.sha256(f"{seed} {source}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") / 2**64 < val_share else "train"


def _number(seed: int, purpose: int, k: int, bits: int) -> int:
    word = np.random.SeedSequence((seed, purpose, k)).generate_state(1, np.uint64)[0]
    return int(word) >> (64 - bits)


def _check_fit(generator: Mapping[str, Any], layouts: PictureSet, split: str) -> None:
    size, known = generator["picture_size"], generator["classes"]
    for scene in layouts.split(split):
        if (scene.width, scene.height) != (size, size):
            raise CCDiffError(
                f"the layout of {scene.file_name} is {scene.width}x{scene.height} px, the generator makes {size}x{size}",
                where=layouts.root,
                fix=f"prepare the set with --size {size} (and --tile for large pictures)",
            )
        for name in scene.categories():
            if known and name not in known:  # an imported generator lists none: its text encoder knows any word
                raise CCDiffError(
                    f"the generator was not trained on the class {name!r} (in {scene.file_name})",
                    where=layouts.root,
                    fix=f"give layouts of its classes: {', '.join(known)}; or train a generator on this set",
                )


def environment(device: str) -> dict[str, Any]:
    """What else the bytes of a picture depend on: the kind of device and the versions of the libraries."""
    return {"device": device, **versions()}


def _lines(jobs: Sequence[Job]) -> str:
    rows = (
        {"k": j.k, "seed": j.seed, "drawn_from": j.drawn_from, "references": j.references, "layout": scene_record(j.scene)} for j in jobs
    )
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write_plan(out: str | Path, plan: Plan, machine: Mapping[str, Any]) -> None:
    """Write the plan; ``plan.json`` last."""
    out = Path(out)
    write_text(out / PLAN_LINES, _lines(plan.jobs))
    write_json(out / PLAN, {**plan.header, "environment": dict(machine)})


def read_plan(out: str | Path) -> Plan:
    """Read the plan of a folder.

    Raises:
        CCDiffError: it is missing, or ``plan.jsonl`` is not the one that belongs to it.
    """
    out = Path(out)
    path, fix = out / PLAN_LINES, "run the same `ccdiff synthesize` again: it makes the plan again"
    header: dict[str, Any] = read_json(out / PLAN)
    checked(Header, header, where=out / PLAN, fix=fix)
    if header["key"] != content_key(header["identity"]):
        raise CCDiffError("key: it is not that of the identity", where=out / PLAN, fix=fix)
    if sha256_file(path) != header["lines"]:
        raise CCDiffError("the plan was changed after it was made", where=path, fix=fix)
    rows = list(read_lines(_Line, path, fix=fix))
    jobs = tuple(Job(row["k"], scene_from_record(row["layout"]), row["references"], row["seed"], row["drawn_from"]) for row in rows)
    if not jobs or len({job.scene.file_name for job in jobs}) != len(jobs):
        raise CCDiffError("expected a picture a line, each with a name of its own", where=path, fix=fix)
    for number, job in enumerate(jobs, start=1):
        where = f"{path}:{number}"
        inside(out, job.scene.file_name, where=where)
        if job.drawn_from >= len(jobs):
            raise CCDiffError(f"drawn_from: there is no picture {job.drawn_from}", where=where, fix=fix)
        if job.references is not None and len(job.references["instances"]) != len(job.scene.instances):
            raise CCDiffError("references: expected one an object", where=where, fix=fix)
    ClassList(tuple(header["classes"])).check(job.scene for job in jobs)
    return Plan(header, jobs)


def holds_plan(out: str | Path, identity: Mapping[str, Any], machine: Mapping[str, Any]) -> bool:
    """Whether a folder already holds the plan of this run; False where it holds none yet.

    Raises:
        CCDiffError: it holds another plan (listing what differs), or something else altogether.
    """
    out = Path(out)
    if (out / PLAN).is_file():
        try:
            found = read_json(out / PLAN)
        except CCDiffError:
            if not _is_ours(out, content_key(identity)):
                raise
            return False
    elif _is_ours(out, content_key(identity)):
        return False  # it was lost, and is made again
    else:
        foreign = sorted(p.name for p in out.iterdir() if not p.name.startswith(".") and p.name != PLAN_LINES) if out.is_dir() else []
        if foreign:
            shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise CCDiffError(f"the folder is not empty ({shown}) and holds no plan", where=out, fix="choose another --out folder")
        return False
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CCDiffError(f"not a plan of this version (expected {FORMAT!r})", where=out / PLAN, fix="delete the folder and start again")
    changes = _differences(found.get("identity", {}), dict(identity)) + _differences(found.get("environment", {}), dict(machine))
    if changes:
        raise CCDiffError(
            f"the folder belongs to another run; changed: {'; '.join(changes)}",
            where=out,
            fix="choose another --out folder, delete this one, or go back to what it was started with",
        )
    try:
        read_plan(out)
    except CCDiffError:  # a line was lost or changed: the plan is made again
        return False
    return True


def _is_ours(out: Path, key: str) -> bool:
    """Whether the set in a folder, finished or not, was made by the plan of this key."""
    for path in (out / MANIFEST, *sorted((out / "records").glob("*.json"))[:1]):
        try:
            found = read_json(path)
        except CCDiffError:
            continue
        if isinstance(found, dict) and found.get("plan") == key:
            return True
    return False


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        parts: list[str] = []
        for key in sorted({*before, *now}):
            parts += _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        return parts
    return [] if before == now else [f"{name.removeprefix('options.')} was {before}, now {now}"]


def open_layouts(folder: str | Path, split: str) -> PictureSet:
    """The set that layouts come from.

    Raises:
        CCDiffError: no set, or a split without pictures.
    """
    layouts = read_set(folder)
    if not layouts.split(split):
        found = sorted({scene.split for scene in layouts.scenes})
        raise CCDiffError(f"the set has no pictures in its {split} split", where=folder, fix=f"its splits: {', '.join(found)}")
    return layouts
