"""The file of a comparison: sets, rows, and the budget that all rows share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from ..errors import CCDiffError
from ..evaluation.options import EvaluateSection
from ..options import Options, Unfit, by_field, checked_options, group_of, shown
from ..settings import read_yaml, seen_from
from ..synthesis.options import SynthesisOptions
from ..trainability.config import KINDS, TrainabilitySection, load_experiment
from ..training.options import TrainOptions

TAKEN = {"real", "floor", "real pictures", *KINDS}


def _row_name(value: str) -> str:
    """A name that may be a folder's."""
    if value in TAKEN or value.startswith(".") or value != value.strip() or not all(c.isalnum() or c in " .+-_()" for c in value):
        raise ValueError("expected letters, digits, spaces and . + - _ ( ), and no name that means something else")
    return value


def _row(name: Any, row: Any) -> Mapping[str, Any]:
    """What stands below a row's name; nothing: the defaults of ``ccdiff train``."""
    if row is None or isinstance(row, Mapping):
        return row or {}
    recipe = row if isinstance(row, str) and row else "tiny"
    what = f"expected options of ccdiff train, found {shown(row)}"
    raise Unfit(what, key=f"methods.{name}", fix=f"name its options, for example methods: {{{name}: {{recipe: {recipe}}}}}")


Name = Annotated[str, Field(min_length=1, max_length=60), AfterValidator(_row_name)]


class MadeSection(SynthesisOptions):
    """Options of ``synthesize``, the same for all rows."""

    n: int | None = Field(  # type: ignore[assignment]
        None, ge=2, le=10**15, description="Pictures of each row to train detectors with; as many as ``added`` asks for unless given."
    )

    @model_validator(mode="after")
    def _fits(self) -> MadeSection:
        if self.shuffle_layouts:
            raise Unfit("a floor is made beside the rows", key="shuffle_layouts", fix="floor: true")
        return self


class Comparison(Options):
    """What a comparison file holds."""

    sets: dict[Name, Path] = Field(min_length=1, max_length=100, description="Name -> a prepared set with a train and a test split.")
    methods: dict[Name, TrainOptions] = Field(
        min_length=1, max_length=100, description="Row -> options of `ccdiff train`: recipe, from, set, ..."
    )
    pictures: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="Training pictures that the last of every method's stages sees; the recipes' own steps unless given.",
    )
    added: float = Field(1.0, gt=0, le=1000, description="Synthetic pictures added for each real one (published: 1).")
    synthesize: MadeSection = Field(MadeSection(), description="Options of `ccdiff synthesize`, for all rows.")
    evaluate: EvaluateSection = Field(EvaluateSection(), description="Options of `ccdiff evaluate`.")
    trainability: TrainabilitySection = Field(
        TrainabilitySection(), description="Options of `ccdiff eval-trainability`, but its arms: they are the rows."
    )
    copy_paste: bool = Field(True, description="A row of real pictures with real objects pasted in.")
    floor: bool = Field(True, description="A row of pictures that were drawn from each other's layouts.")

    @model_validator(mode="before")
    @classmethod
    def _written(cls, values: Any) -> Any:
        """Options may be called as their flags are; a row or section with nothing below it has its defaults."""
        if not isinstance(values, Mapping):
            return values
        found = dict(values)
        for key, value in found.items():
            model = group_of(cls.model_fields[key].annotation) if key in cls.model_fields else None
            if model is not None and key != "methods":
                found[key] = by_field(model, {} if value is None else value)
        if isinstance(found.get("methods"), Mapping):
            found["methods"] = {name: by_field(TrainOptions, _row(name, row)) for name, row in found["methods"].items()}
        return found

    @model_validator(mode="after")
    def _consistent(self) -> Comparison:
        if self.trainability.arms is not None:
            raise Unfit("the arms of a comparison are its rows", key="trainability.arms", fix="leave arms out; see added, copy_paste")
        if self.trainability.others:
            raise Unfit("other sets are no rows of a comparison", key="trainability.others", fix="use ccdiff eval-trainability --other")
        if self.evaluate.floor is not None or self.evaluate.share is not None:
            key = "floor" if self.evaluate.floor is not None else "share"
            raise Unfit("a comparison sees to that itself", key=f"evaluate.{key}", fix="leave it out")
        clash = {name.casefold(): name for name in (*self.sets, *self.methods)}
        if len(clash) < len(self.sets) + len(self.methods):
            raise Unfit("two names are the same but for their case", key="methods", fix="sets and rows become folders: name them apart")
        return self

    def arms(self) -> dict[str, tuple[float, ...]]:
        """The arms of the trainability experiment; the rows first."""
        pasted = {"copy-paste": (self.added,)} if self.copy_paste else {}
        return {**{name: (self.added,) for name in self.methods}, **pasted}


def read_comparison(path: str | Path) -> Comparison:
    """Read a comparison file; paths in it are seen from its own folder.

    Raises:
        CCDiffError: with the file and the key (or line) that does not fit.
    """
    path = Path(path)
    values = read_yaml(path, "the comparison")
    if not isinstance(values, dict):
        raise CCDiffError("a comparison is a mapping of keys", where=path, fix="sets: {NAME: FOLDER}, methods: {NAME: {recipe: tiny}}")
    said = checked_options(Comparison, values, where=path)
    load_experiment(None, said.trainability.experiment())
    return checked_options(Comparison, seen_from(path.resolve().parent, said.model_dump(exclude_defaults=True)), where=path)
