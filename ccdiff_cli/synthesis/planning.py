"""Making a plan: what it follows from, what it will take, and every picture decided."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bounds import amount, check_crowded, check_disk, check_memory, free_memory
from ..dataset import PictureSet, count_scenes, in_memory, read_set
from ..errors import CCDiffError
from ..files import content_key
from ..layouts import LayoutOptions, Writer, layouts_of_set, plan_layouts
from ..layouts.misses import misses_key
from ..methods import Places
from ..options import checked_options
from ..prepare.spectra import COLOUR_INFRARED
from ..references import WORDS, ReferenceBank
from .options import SynthesisOptions
from .plan import FORMAT, Job, Plan, first_of, lines_of, references_of

SAMPLING: dict[str, Any] = {
    "steps": 20, "guidance_scale": 7.5, "negative_prompt": "", "precision": "float32", "channels_last": False, "compile": False,
}  # fmt: skip
"""How generators sample whose recipe does not say."""
BYTES_OF_JOB, BYTES_OF_OBJECT = 14_000, 1_000
"""Memory of a planned picture and of each of its objects, in every process (measured: 20 kB a picture of 1.8 objects)."""
BYTES_OF_PIXEL = {"png": 1.9, "jpeg": 0.8, "webp": 1.4}
"""Of generated pictures on disk."""
EXTENSIONS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
REDRAWS = 4
"""How often a picture is drawn again that comes out colour-infrared and should not."""
NOISE, CHOICE = 3, 4
"""What a random stream is for; see ``layouts.ORDER``."""


def resolved(options: SynthesisOptions, generator: Mapping[str, Any], published: Mapping[str, Any]) -> SynthesisOptions:
    """Options without what they leave to the generator: its recipe's sampling, captions and references.

    Args:
        published: of its method, the sampling that ``published`` asks for.
    """
    recipe = generator.get("recipe") or {}
    usual = {**SAMPLING, **{name: value for name, value in recipe.get("sampling", {}).items() if name in SAMPLING}}
    if options.sampling.published:
        usual |= published
    given = {name: value for name, value in options.sampling.model_dump().items() if value is not None}
    stored = recipe.get("caption_style", "plain") == "stored"
    values = options.model_dump()
    values["sampling"] = usual | given | {"published": False}
    values["layouts"]["source"] = options.layouts.source or ("set" if stored else "augmented")
    values["retrieval"] = options.retrieval or recipe.get("retrieval", WORDS)
    values["top_k"] = options.top_k if options.top_k is not None else recipe.get("denoiser", {}).get("top_k", 8)
    return checked_options(SynthesisOptions, values, where="the generator's recipe")


def identity_of(
    generator: Mapping[str, Any],
    layouts: PictureSet,
    bank: ReferenceBank | None,
    options: SynthesisOptions,
    *,
    rules: Mapping[str, Any] | None = None,
    writer: Writer | None = None,
) -> dict[str, Any]:
    """What a plan follows from, and what tells two runs apart: the form in which options are stored.

    Args:
        generator: of ``generator.read_generator``, with its ``key``.
        layouts: the set that layouts come from; ``bank``: the references, None where there are none; where backgrounds are not found by
            words, its ``similarity`` is the index that finds them, and has a key.
        options: of :func:`resolved`.
        rules: of ``filtering.filter_identity``.
        writer: the language model of source "llm".

    Raises:
        CCDiffError: a class that the generator does not know, a wrong picture size, misses of another set.
    """
    recipe = generator.get("recipe") or {}
    chosen, sampling = options.layouts, options.sampling
    _check_fit(generator, layouts, chosen.split)
    drawn_by: dict[str, Any] = {"llm": writer.identity()} if chosen.source == "llm" and writer is not None else {}
    if chosen.misses is not None:
        drawn_by["misses"] = misses_key(chosen.misses, layouts, chosen.split)
    mixed = any(scene.provenance.get("spectrum") == COLOUR_INFRARED for scene in layouts.split(chosen.split))
    index = getattr(bank.similarity, "key", None) if bank is not None else None
    found_by = {} if options.retrieval == WORDS else {"retrieval": options.retrieval, "index": index}
    return {
        "generator": {"key": generator["key"], "recipe": recipe.get("name", "")},
        "layouts": {"key": layouts.key(), "split": chosen.split, "source": chosen.source, "balance": chosen.balance, **drawn_by},
        "captions": recipe.get("caption_style", "plain"),
        "references": None if bank is None else {"key": content_key(sorted(references_of(bank))), "top_k": options.top_k, **found_by},
        "options": {
            "n": options.n,
            "seed": options.seed,
            "batch_size": options.batch_size,
            "steps": sampling.steps,
            "guidance_scale": sampling.guidance_scale,
            "negative_prompt": sampling.negative_prompt,
            "scheduler": sampling.scheduler,
            "precision": sampling.precision,
            "channels_last": sampling.channels_last,
            "compile": sampling.compile,
            "threads": options.threads,
            "format": options.format,
            "val_share": options.val_share,
            "shuffle_layouts": options.shuffle_layouts,
            "filter": dict(rules) if rules is not None else None,
            **({"redraws": REDRAWS} if mixed else {}),  # of other sets nobody learns to draw infrared
        },
    }


def needs(layouts: PictureSet, split: str, n: int, picture_size: int, format: str, at_once: int) -> dict[str, float]:
    """About how many bytes a plan of n pictures takes: ``memory`` (in every process, of ``at_once`` pictures) and ``disk``."""
    scenes = layouts.split(split)
    objects = sum(len(scene.instances) for scene in scenes) / len(scenes)
    return {"memory": at_once * (BYTES_OF_JOB + BYTES_OF_OBJECT * objects), "disk": n * picture_size**2 * BYTES_OF_PIXEL[format]}


def check_needs(out: str | Path, layouts: PictureSet, options: SynthesisOptions, picture_size: int) -> dict[str, str]:
    """What :func:`needs` says, for people.

    Raises:
        CCDiffError: more than this machine has, before the first layout is drawn; or a picture too crowded to be drawn.
    """
    n, split = options.n, options.layouts.split
    check_crowded(layouts.split(split), where=layouts.root)
    at_once = options.at_once()
    found = needs(layouts, split, n, picture_size, options.format, at_once)
    fits = int(at_once * min((free_memory() or found["memory"]) / found["memory"], 1.0)) or 1
    fix = f"write smaller shards: about {fits:,} pictures fit here at once (--shard-size {fits})"
    check_memory(found["memory"], f"a plan of {at_once:,} pictures", where="--n", fix=fix)
    check_disk(out, found["disk"], f"a set of {n:,} pictures", fix="ask for fewer pictures (--n N), or choose a larger disk (--out)")
    return {"memory_of_the_plan": amount(found["memory"]), "disk": amount(found["disk"])}


def make_plan(
    identity: Mapping[str, Any],
    layouts: PictureSet,
    bank: ReferenceBank | None,
    *,
    writer: Writer | None = None,
    misses: Path | None = None,
    thresholds: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Decide everything about every picture.

    Args:
        identity: of :func:`identity_of`, for these layouts and this bank.
        writer: the language model of source "llm".
        misses: the file of balance "misses".
        thresholds: of ``filtering.calibrate``, where the set is filtered.

    Raises:
        CCDiffError: no layouts in the split, or none of this source.
    """
    options, split = identity["options"], identity["layouts"]["split"]
    n, seed, first = options["n"], options["seed"], first_of(identity)
    wanted = {"misses": misses, **{name: identity["layouts"][name] for name in ("source", "split", "balance")}}
    planned = plan_layouts(
        layouts,
        n,
        seed,
        LayoutOptions.model_validate(wanted),
        caption_style=identity["captions"],
        writer=writer,
        start=first,
        progress=progress,
    )
    planned = [
        scene.replace(split=split_of(scene.source, options["val_share"], seed), file_name=f"{k:08d}{EXTENSIONS[options['format']]}")
        for k, scene in enumerate(planned, start=first)
    ]
    jobs = []
    for k, scene in enumerate(planned, start=first):
        chosen = None
        if bank is not None:
            found = bank.choose(scene, seed=_number(seed, CHOICE, k, 31), top_k=identity["references"]["top_k"])
            keys = [reference.key if reference else None for reference in found.instances]
            chosen = {"instances": keys, "background": found.background.key if found.background else None}
        drawn_from = first + (k + 1 - first) % n if options["shuffle_layouts"] else k  # the order of layouts is random already
        jobs.append(Job(k, scene, chosen, _number(seed, NOISE, k, 63), drawn_from))
    used, changes = layouts_of_set(layouts, split), [job.scene.provenance["layout"] for job in jobs]
    header = {
        "format": FORMAT,
        "key": content_key(identity),
        "identity": dict(identity),
        "lines": hashlib.sha256(lines_of(jobs).encode("utf-8")).hexdigest(),
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
        "boxes_without_a_place": sum(change.get("left_out", 0) for change in changes),
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


def open_layouts(folder: str | Path, split: str) -> PictureSet:
    """The set that layouts come from.

    Raises:
        CCDiffError: no set, or a split without pictures.
    """
    layouts = in_memory(read_set(folder))
    if not layouts.split(split):
        found = sorted({scene.split for scene in layouts.scenes})
        raise CCDiffError(f"the set has no pictures in its {split} split", where=folder, fix=f"its splits: {', '.join(found)}")
    return layouts
