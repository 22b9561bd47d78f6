"""``ccdiff init``: a commented project file for a data set, from what :mod:`.propose` found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..doctor import examine
from ..errors import CCDiffError, visible
from ..files import write_json, write_text
from ..recipes import load_recipe
from .file import flow, read_project, schema
from .place import PROJECT_FILE
from .propose import (
    CPU,
    GPU,
    Choice,
    Cut,
    Machine,
    Sight,
    choose_cut,
    detector_of,
    look,
    made_pictures,
    splits_of,
    training_pictures,
    training_steps,
)

SCHEMA, SPLITS = "ccdiff.schema.json", "splits"
RECIPE = "tiny"
WIDTH = 120


def init_project(
    data: str | Path,
    out: str | Path = PROJECT_FILE,
    *,
    format: str | None = None,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Look at a raw data set and write a project file for it, with reasons in its comments.

    Args:
        data: the raw set; named in the file relative to it where it lies in or below its folder.
        out: the project file; its schema (for editors) and, where the set's own splits do not do, split lists are written beside it.
        force: replace a project file that is there.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        ``project``, ``format``, ``pictures``, ``objects``, ``classes``, ``skipped``, ``splits``, ``proposed`` (key -> value) and ``why``
        (key -> reason).

    Raises:
        CCDiffError: the set cannot be read; there is a project file already.
    """
    data, out = Path(data), Path(out)
    if out.is_dir():
        out = out / PROJECT_FILE
    if out.exists() and not force:
        raise CCDiffError("there is a project file already", where=out, fix="edit it, name another (--out), or replace it (--force)")
    sight, state = look(data, format, progress), examine()
    cut = choose_cut(sight)
    splits = splits_of(sight)
    lists = _split_lists(sight, splits)
    choices = _choices(sight, cut, splits, GPU if _gpus(state) else CPU, named=format is not None)
    text = "".join(f"{line}\n" for line in _lines(_beside(data, out), sight, choices, state))
    for name, names in lists.items():
        write_text(out.parent / SPLITS / f"{name}.txt", "".join(f"{n}\n" for n in names))
    write_json(out.parent / SCHEMA, schema())
    write_text(out, text)
    read_project(out)  # what was written is what the other verbs read
    flat = {f"{section}.{key}": choice for section, group in choices.items() for key, choice in group.items()}
    return {
        "project": str(out),
        "format": sight.format,
        "pictures": sight.count,
        "objects": len(sight.sides),
        "classes": sight.classes,
        "skipped": sight.skipped,
        "splits": splits.why,
        "proposed": {key: choice.value for key, choice in flat.items()},
        "why": {key: choice.why for key, choice in flat.items()},
    }


def _beside(data: Path, out: Path) -> str:
    """How the project file names the set: relative where it lies below the file's folder."""
    full, root = Path(os.path.abspath(data)), Path(os.path.abspath(out)).parent
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else str(full)


def _split_lists(sight: Sight, splits: Choice) -> dict[str, tuple[str, ...]]:
    return {ours: sight.splits[theirs] for ours, theirs in (splits.value or {}).items()}


def _choices(sight: Sight, cut: Cut, splits: Choice, machine: Machine, *, named: bool) -> dict[str, dict[str, Choice]]:
    """Section -> key -> what is proposed."""
    recipe = load_recipe(RECIPE)
    pictures = training_pictures(sight, cut)
    size_why = (
        "pixels, side of a prepared picture; the small recipe's own"
        if cut.size == recipe.picture_size
        else "pixels, side of a prepared picture; four times the work of 128"
    )
    prepare = {"format": Choice(sight.format, "as named")} if named else {}
    if cut.tile is not None:
        prepare |= {
            "tile": Choice(cut.tile, f"source pixels; {cut.why}"),
            "overlap": Choice(cut.overlap, "source pixels; an object that one tile cuts lies whole in the next where it can"),
            "size": Choice(cut.size, size_why),
        }
    else:
        prepare |= {"size": Choice(cut.size, f"pixels; {cut.why}")}
    if splits.value is not None:
        prepare |= {"splits": Choice(f"./{SPLITS}", splits.why)}
    steps = training_steps(pictures, recipe.denoiser.train.batch_size, machine)
    changes: dict[str, Any] = {"denoiser.train.steps": steps.value}
    if cut.size != recipe.picture_size:
        changes["picture_size"] = cut.size
    train = {
        "recipe": Choice(
            RECIPE, "small: for a CPU or one GPU; at full size ccdiffpp-sd14-dior, with Stable Diffusion 1.4 and DINOv2 at hand"
        ),
        "from": Choice(
            "tiny", "starts from the model that ships with ccdiff, which knows aerial pictures; without it: from nothing, hours"
        ),
        "set": Choice(changes, steps.why),
    }
    detector, made = detector_of(sight, cut, pictures, machine), made_pictures(pictures, machine)
    return {
        "prepare": prepare,
        "train": train,
        "layouts": {"source": Choice("augmented", "the set's own layouts, flipped, turned, shifted; others: ccdiff layout --compare")},
        "synthesize": {
            **({"n": made} if made.value is not None else {}),
            "sampling": Choice({"steps": 15}, "denoising steps" if made.value is not None else f"denoising steps; {made.why}"),
        },
        "export": {
            "format": Choice(
                "yolo-obb" if sight.oriented > 0.5 else "yolo", "what other tools read; another one: ccdiff export --format coco"
            )
        },
        "trainability": {
            "seeds": Choice([0, 1, 2], "trainings of each arm; a single one cannot tell a gain from chance"),
            "match": Choice("steps", "arms are trained for equal steps (fair); both: for equal epochs, too, as published, twice the time"),
            "detector": Choice(
                {key: choice.value for key, choice in detector.items()}, "; ".join(f"{k}: {c.why}" for k, c in detector.items())
            ),
        },
    }


def absent(classes: dict[str, int]) -> str:
    """A sentence on the classes of the list that no object has; "" where all have some."""
    empty = [name for name, count in classes.items() if not count]
    return f"no object of {len(empty)} of the {len(classes)} classes of the format's list: {', '.join(empty)}" if empty else ""


def _lines(data: str, sight: Sight, choices: dict[str, dict[str, Choice]], state: dict[str, Any]) -> Iterator[str]:
    count = sum(map(bool, sight.classes.values()))
    holds = f"{sight.count:,} pictures, {len(sight.sides):,} objects of {count} {'class' if count == 1 else 'classes'}"
    yield f"# yaml-language-server: $schema={SCHEMA}"
    yield "# A project of ccdiff. In this folder and below these work as they stand; options of the command line win:"
    yield "#   ccdiff prepare, train, synthesize, export, evaluate, eval-trainability; all of them: ccdiff run"
    yield "# ccdiff status shows what is done, and what a change here made stale. Results lie in runs/. Every option of a verb may"
    yield "# stand in its section (ccdiff VERB --help-all)."
    yield from _comment(_machine(state), "")
    yield ""
    yield f"data: {flow(data)}  # {sight.format}: {holds}"
    if told := absent(sight.classes):
        yield from _comment(
            f"{told}. The list is kept, so that numbers of classes stay those of the format; prepare.classes names another", ""
        )
    for reason, left in sight.skipped.items():
        yield from _comment(f"left out: {left:,} {reason}", "")
    if "splits" not in choices["prepare"]:
        yield from _comment(f"splits: {splits_of(sight).why}", "")
    for section, group in choices.items():
        yield ""
        yield f"{section}:"
        for key, choice in group.items():
            yield from _comment(choice.why, "  ")
            yield from _entry(key, choice.value, "  ")


def _gpus(state: dict[str, Any]) -> list[str]:
    return [f"{d['what']}, {d['memory'] / 1e9:.0f} GB" for d in state["devices"] if d["name"] != "cpu" and d["memory"]]


def _machine(state: dict[str, Any]) -> str:
    """What the choices were made for."""
    gpus = _gpus(state)
    lacking = [name for name in ("cpu-detector",) if not state["extras"][name]["installed"]]
    told = f"Made for {', '.join(gpus) if gpus else 'a machine without a GPU'}, {state['system']['cores']} cores."
    return told + "".join(
        f" Not installed: {name}, {state['extras'][name]['cost']} ({state['extras'][name]['install']})." for name in lacking
    )


def _entry(key: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, dict):
        yield f"{indent}{key}:"
        for name, inner in value.items():
            yield from _entry(name, inner, f"{indent}  ")
    else:
        yield f"{indent}{key}: {flow(value)}"


def _comment(text: str, indent: str) -> Iterator[str]:
    line = f"{indent}#"
    for word in visible(" ".join(text.split()), lines=False).split(" "):
        if len(line) + len(word) > WIDTH:
            yield line
            line = f"{indent}#"
        line += f" {word}"
    yield line
