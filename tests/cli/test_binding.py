"""Verbs made of functions: flags of models, what was given, and help that fits on a screen."""

import json
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import Field, model_validator
from typer.testing import CliRunner

from ccdiff_cli.cli.binding import SCREEN, verb
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.options import Option, Options, Unfit


class Kiln(Options):
    heat: int = Field(900, ge=1, le=1300, description="Degrees.")
    fuel: Annotated[str, Option(names=("--fuel", "-f"))] = Field("wood", description="What burns.")
    dry: Annotated[bool, Option(names=("--dry/--wet",))] = Field(True, description="The clay.")


class Potter(Options):
    pots: Annotated[int, Option(names=("--pots", "-p"), first=True)] = Field(ge=1, description="How many pots.")
    glaze: Annotated[Literal["salt", "ash"] | None, Option(panel="Looks")] = Field(None, description="On the pots.")
    marks: tuple[str, ...] = Field((), description="Of the potter.")
    share: float = Field(0.5, ge=0, le=1)
    kiln: Annotated[Kiln, Option(panel="Kiln", renamed=(("fuel", ("--kiln-fuel",)),))] = Kiln()

    @model_validator(mode="after")
    def _fits(self) -> "Potter":
        if self.glaze == "salt" and self.kiln.heat < 1000:
            raise Unfit("salt needs heat", key="kiln.heat", fix="1000 degrees or more")
        return self


class Many(Options):
    first: Annotated[int, Option(first=True)] = Field(1, description="The one that matters.")


FIELDS = {f"option_{k}": Field(k, description=f"Number {k}.") for k in range(80)} | {"last": Field(7, description="The other one.")}
KINDS = {name: Annotated[int, Option(panel="More", first=name == "last")] for name in FIELDS}
Long: Any = type("Long", (Many,), {"__annotations__": KINDS, **FIELDS, "__module__": __name__})


def program() -> typer.Typer:
    app = typer.Typer(rich_markup_mode="markdown")

    @verb(app, epilog="Example: ccdiff burn --pots 3")
    def burn(place: Annotated[str, typer.Argument()], potter: Potter, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        """Burn pots."""
        print(json.dumps([place, potter.model_dump(), sorted(potter.model_fields_set), sorted(potter.kiln.model_fields_set), as_json]))

    @verb(app, "much", epilog="Example: ccdiff much")
    def much(long: Long) -> None:
        """Do much."""
        print(long.option_3, long.last)

    return app


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(program(), ["burn", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_flags_become_a_model_of_what_was_given() -> None:
    place, potter, said, of_kiln, as_json = run("yard", "-p", "3")
    assert (place, as_json, said, of_kiln) == ("yard", False, ["pots"], [])
    assert potter == Potter(pots=3).model_dump(mode="json")
    given = "yard --pots 4 --glaze ash --marks a --marks b --share 0.25 --heat 1200 --kiln-fuel gas --wet --json"
    place, potter, said, of_kiln, as_json = run(*given.split())
    assert potter == {
        "pots": 4, "glaze": "ash", "marks": ["a", "b"], "share": 0.25, "kiln": {"heat": 1200, "fuel": "gas", "dry": False}
    }  # fmt: skip
    assert said == ["glaze", "kiln", "marks", "pots", "share"] and of_kiln == ["dry", "fuel", "heat"] and as_json


def test_what_the_model_refuses_names_the_flag() -> None:
    with pytest.raises(CCDiffError, match=r"^--heat: salt needs heat\n  fix: 1000"):
        run("yard", "--pots", "1", "--glaze", "salt")


@pytest.mark.parametrize(
    "wrong", ["--pots 0", "--pots 1 --heat 1301", "--pots 1 --glaze tin", "--pots 1 --fuel gas", "--share nan --pots 1", ""]
)
def test_what_is_refused(wrong: str) -> None:
    done = CliRunner().invoke(program(), ["burn", "yard", *wrong.split()])
    assert done.exit_code == 2 or isinstance(done.exception, CCDiffError), done.output


def test_a_help_fits_on_a_screen_and_help_all_shows_all() -> None:
    shown = {}
    for verb_, flag in (("burn", "--help"), ("much", "--help"), ("much", "--help-all")):
        done = CliRunner().invoke(program(), [verb_, flag], env={"COLUMNS": "100"})
        assert done.exit_code == 0, done.output
        shown[verb_, flag] = done.output
    short, long = shown["much", "--help"], shown["much", "--help-all"]
    assert all(f"--option-{k} " in long for k in range(80)) and "--last" in long and "more option" not in long
    assert short.count("\n") <= SCREEN + 1 and "--first" in short and "--last" in short
    left_out = sum(f"--option-{k} " not in short for k in range(80))
    assert left_out and f"{left_out} more options: " in short and "much --help-all" in short
    burn = shown["burn", "--help"]
    assert "more option" not in burn and "Kiln" in burn and "Looks" in burn and burn.index("--pots") < burn.index("--glaze")
    assert "Degrees." in burn and "900" in burn and "--dry" in burn and "--wet" in burn and "--fuel " not in burn
