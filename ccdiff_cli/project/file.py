"""The project file ``ccdiff.yaml``: what a person decided once for a data set, section by section.

Notable:

* A section holds the very options of its verb, so what the command line, Python and the file may say is one thing; ``layouts`` and
  ``filter`` are groups of ``synthesize``'s and stand beside it, as a person thinks of them.
* Paths are seen from the file's own folder, wherever a command is typed.  A name without a separator (``recipe: tiny``) is never a path
  where it may be a name, as on the command line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from ..errors import CCDiffError
from ..evaluation.options import EvaluateSection
from ..export.options import ExportOptions
from ..layouts.options import LayoutOptions
from ..options import Options, Unfit, by_field, checked_options, flag_names, group_of
from ..prepare.options import PrepareOptions
from ..settings import read_yaml, seen_from
from ..synthesis.options import FilterOptions, SynthesisOptions
from ..trainability.config import TrainabilitySection, load_experiment
from ..training.options import TrainOptions

UNDECIDING = {"train": {"cpu", "threads"}, "evaluate": {"batch_size", "device"}, "trainability": {"allow_leaks"}}
"""Section -> options that say how the work is done, and nothing of what comes out."""


class SynthesizeSection(SynthesisOptions):
    """Options of ``synthesize`` but those of layouts and filter."""

    n: int | None = Field(None, ge=1, le=10**15, description="How many pictures; as many as the real ones to train on unless given.")  # type: ignore[assignment]

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, values: Any) -> Any:
        for group in ("layouts", "filter") if isinstance(values, Mapping) else ():
            if group in values:
                raise Unfit(f"{group} is a section of its own", key=group, fix=f"write it beside synthesize: {group}:")
        return values

    @model_validator(mode="after")
    def _fits(self) -> SynthesizeSection:
        return self  # whether options fit together shows when all are known


class ProjectFile(Options):
    """What ``ccdiff.yaml`` holds."""

    data: str = Field(min_length=1, description="The raw data set: its folder (or file).")
    runs: str = Field("runs", min_length=1, description="Folder of the results.")
    prepare: PrepareOptions = Field(PrepareOptions(), description="Options of `ccdiff prepare`.")
    train: TrainOptions = Field(TrainOptions(), description="Options of `ccdiff train`.")
    layouts: LayoutOptions = Field(LayoutOptions(), description="Where the layouts of `ccdiff synthesize` come from.")
    synthesize: SynthesizeSection = Field(SynthesizeSection(), description="Options of `ccdiff synthesize`.")
    filter: FilterOptions = Field(FilterOptions(), description="Which pictures `ccdiff synthesize` makes again, or leaves out.")
    export: ExportOptions | None = Field(None, description="Options of `ccdiff export`; without the section nothing is exported.")
    evaluate: EvaluateSection | None = Field(
        None, description="Options of `ccdiff evaluate`; `ccdiff run` passes over it without the section."
    )
    trainability: TrainabilitySection | None = Field(
        None, description="Options of `ccdiff eval-trainability`; `ccdiff run` passes over it without the section."
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, values: Any) -> Any:
        """``evaluate:`` with nothing below it asks for the stage with its defaults; options may be called as their flags are."""
        if not isinstance(values, Mapping):
            return values
        found = {key: {} if value is None and key in cls.model_fields else value for key, value in values.items()}
        return {
            key: by_field(group_of(cls.model_fields[key].annotation), value) if key in cls.model_fields else value
            for key, value in found.items()
        }


@dataclass(frozen=True)
class Project:
    """A project file and where it lies.

    Attributes:
        path: the file, absolute; ``root``: its folder.
        said: what it says.
    """

    path: Path
    said: ProjectFile

    @property
    def root(self) -> Path:
        return self.path.parent

    @property
    def data_path(self) -> Path:
        return self.root / self.said.data

    @property
    def runs(self) -> Path:
        return self.root / self.said.runs

    def asks_for(self, stage: str) -> bool:
        """Whether ``ccdiff run`` carries out a stage: all but those whose section the file lacks."""
        return getattr(self.said, stage, True) is not None

    def deciding(self, section: str) -> dict[str, Any]:
        """What a section says beyond the defaults, as the file writes it, without what decides nothing."""
        found = getattr(self.said, section)
        return {} if found is None else found.model_dump(mode="json", exclude_defaults=True, exclude=UNDECIDING.get(section))  # type: ignore[no-any-return]

    def values(self, section: str) -> dict[str, Any]:
        """What a section says beyond the defaults, paths seen from here made whole."""
        found = getattr(self.said, section)
        return {} if found is None else seen_from(self.root, found.model_dump(exclude_defaults=True))  # type: ignore[no-any-return]

    def files_named(self, sections: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
        """(dotted key, path) of every file or folder that options of these sections name, and that is there."""
        for section in sections:
            for key, value in _flat(self.values(section)):
                if isinstance(value, (str, Path)) and str(value) and len(Path(value).parts) > 1 and os.path.exists(value):
                    yield f"{section}.{key}", Path(value)


def schema() -> dict[str, Any]:
    """The JSON schema of a project file, for editors."""
    made = ProjectFile.model_json_schema()
    for group in ("layouts", "filter"):  # sections of their own
        made["$defs"]["SynthesizeSection"]["properties"].pop(group)
    for field in ProjectFile.model_fields.values():
        model = group_of(field.annotation)
        if model is None:
            continue
        properties = made["$defs"][model.__name__]["properties"]
        for flag, name in flag_names(model).items():
            properties[flag] = properties[name]
    return made


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _flat(inner, name)
    else:
        yield name, value


def flow(value: Any) -> str:
    """A value as YAML on one line: what ``--set KEY=VALUE`` reads back."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1_000_000).removesuffix("...\n").strip()


def read_project(path: str | Path) -> Project:
    """Read a project file; nothing that it names is looked at yet, but the keys of its experiment.

    Raises:
        CCDiffError: with the file and the key (or line) that does not fit.
    """
    path = Path(os.path.abspath(path))
    values = read_yaml(path, "the project file")
    if not isinstance(values, dict):
        raise CCDiffError("a project file is a mapping of sections", where=path, fix="`ccdiff init DATA` writes one")
    said = checked_options(ProjectFile, values, where=path)
    if said.trainability is not None and said.trainability.recipe is None:
        load_experiment(None, said.trainability.experiment())
    return Project(path, said)
