"""What a project file says for a verb: its options, and the folders it reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dataset import read_set
from ..errors import CCDiffError
from ..settings import overrides
from ..trainability.options import TrainabilityOptions
from .file import Project, flow
from .place import DATA, INPUTS, flag_of
from .stages import STAGES, State, states_of, typed_state

OWN = ""
"""Among the parameters of a verb: those that belong to no model of options."""


@dataclass(frozen=True)
class Filled:
    """What a verb is to run with.

    Attributes:
        paths: parameter -> folder, of those that were not typed.
        options: parameter -> its values, what was typed on top.
        own: parameter that belongs to no model -> texts that stand before what was typed.
        state: the stage whose receipt is to be written; None where the work is not the project's (``--out`` was typed).
    """

    paths: dict[str, Path]
    options: dict[str, dict[str, Any]]
    own: dict[str, list[str]]
    state: State | None


def fill(
    project: Project, stage: str, typed: Mapping[str, Mapping[tuple[str, ...], Any]], given: Mapping[str, Any], *, aside: str | None = None
) -> Filled:
    """Put what a project file says below what was typed.

    Args:
        stage: a key of ``stages.STAGES``.
        typed: parameter of the verb -> path of an option in it -> value, of what was typed.
        given: path parameters that were typed ("out" among them).
        aside: the name of an option that makes this no run of the stage ("calibrate"): it gets a folder of its own.

    Raises:
        CCDiffError: a stage it needs is not done; a folder to read was typed and none to write.
    """
    merged = options_of(project, stage)
    own = merged.pop(OWN, {})
    new: dict[str, Any] = {}
    for parameter, values in typed.items():
        for path, value in values.items():
            if put(merged.setdefault(parameter, {}), path, value):
                new[".".join((parameter, *path))] = _plain(value)
    inputs = [name for name in INPUTS[stage] if name in given]
    if "out" in given:
        states = states_of(project, stage) if len(inputs) < len(INPUTS[stage]) else {}
        return Filled(_inputs(project, stage, states, given), merged, own, None)
    if inputs:
        fix = "give --out too, or leave it to the project file what is read"
        raise CCDiffError(
            f"{inputs[0]} is not what {project.path.name} says, so its folder is not the one to write", where=f"--{inputs[0]}", fix=fix
        )
    states = states_of(project, stage)
    paths = _inputs(project, stage, states, given)
    if stage == "synthesize" and merged["options"].get("n") is None:
        merged["options"]["n"] = len(read_set(paths["layouts"]).split("train"))  # as published: one for each real one
    state = typed_state(project, states[stage], new)
    if aside is not None:
        return Filled({**paths, "out": state.folder.with_name(f"{state.folder.name}-{aside}")}, merged, own, None)
    return Filled({**paths, "out": state.folder}, merged, own, state)


def _inputs(project: Project, stage: str, states: Mapping[str, State], given: Mapping[str, Any]) -> dict[str, Path]:
    found = {}
    for parameter, needed in INPUTS[stage].items():
        if parameter in given:
            continue
        if needed == DATA:
            found[parameter] = project.data_path
        elif states[needed].state == "done":
            found[parameter] = states[needed].folder
        else:
            how = {"stale": "stale", "begun": "not finished"}.get(states[needed].state, "not done")
            why = f" ({'; '.join(states[needed].why)})" if states[needed].why else ""
            raise CCDiffError(
                f"the stage {needed} is {how}{why}",
                where=project.path,
                fix=f"ccdiff {STAGES[needed].verb}{flag_of(project.path)}, or ccdiff run{flag_of(project.path)} for all that is left",
            )
    return found


def put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> bool:
    """Set a value by its path; whether it is another than before.  ``--set`` adds to what is there."""
    *parents, last = path
    for name in parents:
        values[name] = dict(values.get(name) or {})
        values = values[name]
    if values.get(last) and last in ("settings", "overrides"):
        value = (*values[last], *value) if last == "settings" else {**values[last], **overrides(value)}
    changed = bool(last not in values or _plain(values[last]) != _plain(value))
    values[last] = value
    return changed


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def options_of(project: Project, stage: str) -> dict[str, dict[str, Any]]:
    """Parameter of the stage's verb -> the values that the file says for it."""
    if stage == "synthesize":
        groups = {name: values for name in ("layouts", "filter") if (values := project.values(name))}
        return {"options": {**project.values(stage), **groups}}
    if stage == "evaluate":
        values = project.values(stage)
        detector = values.pop("detector", None)
        if detector is None:
            detector = project.values("trainability").get("detector", {})
        return {"options": values, OWN: {"override": [f"{key}={flow(value)}" for key, value in detector.items()]}}
    if stage == "trainability":
        if project.said.trainability is None:
            return {}
        experiment, values = project.said.trainability.experiment(), project.values(stage)
        settings = tuple(f"{key}={flow(value)}" for key, value in experiment.items())
        recipe = {"recipe": values["recipe"]} if "recipe" in values else {}
        options = {key: value for key, value in values.items() if key in TrainabilityOptions.model_fields}
        return {"experiment": {**recipe, "settings": settings}, "options": options}
    return {"options": project.values(stage)}
