"""Options as types: what is wrong with a value, where it was given, and what to do about it."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.options import Option, Options, Unfit, checked_options, nested


class Kiln(Options):
    heat: int = Field(900, ge=1, le=1300, description="Degrees.")
    share: float = Field(0.5, ge=0, le=1)


class Potter(Options):
    pots: Annotated[int, Option(names=("--pots", "-p"), first=True)] = Field(ge=1, description="How many pots.")
    glaze: Literal["salt", "ash"] | None = None
    kiln: Kiln = Kiln()

    @model_validator(mode="after")
    def _fits(self) -> "Potter":
        if self.glaze == "salt" and self.kiln.heat < 1000:
            raise Unfit("salt needs heat", key="kiln.heat", fix="1000 degrees or more")
        return self


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "file: pots: the key is missing\n  fix: pots: How many pots."),
        ({"pots": 0}, "file: pots: expected greater than or equal to 1, found 0\n  fix: pots: How many pots."),
        (
            {"pots": 1, "kiln": {"heat": 2000}},
            "file: kiln.heat: expected less than or equal to 1300, found 2000\n  fix: kiln.heat: Degrees.",
        ),
        ({"pots": 1, "kiln": {"share": float("nan")}}, "file: kiln.share: expected a finite number, found nan"),
        ({"pots": 1, "kiln": {"head": 1}}, "file: kiln.head: unknown key\n  fix: did you mean heat\\? known keys: heat, share"),
        ({"pots": 1, "glase": 1}, "file: glase: unknown key\n  fix: did you mean glaze\\? known keys: pots, glaze, kiln"),
        ({"pots": 1, "wheels": 1}, "file: wheels: unknown key\n  fix: known keys: pots, glaze, kiln"),
        ({"pots": 1, "glaze": "tin"}, "file: glaze: expected 'salt' or 'ash', found 'tin'"),
        ({"pots": "x", "glaze": "tin"}, r"file: pots: expected a whole number, unable .* found 'x' \(and 1 more\)"),
        ({"pots": 1, "glaze": "salt"}, "file: kiln.heat: salt needs heat\n  fix: 1000 degrees or more"),
        ([1], "file: expected an object.*found a list of 1"),
    ],
)
def test_a_value_that_does_not_fit_is_named(values: object, message: str) -> None:
    with pytest.raises(CCDiffError, match=f"^{message}"):
        checked_options(Potter, values, where="file")


def test_where_a_value_was_given_stands_in_place_of_its_key() -> None:
    flags = {("kiln", "heat"): "--heat"}
    with pytest.raises(CCDiffError, match=r"^--heat: expected less .*\n  fix: kiln.heat: Degrees"):
        checked_options(Potter, nested({("pots",): 1, ("kiln", "heat"): 2000}), where=None, place=flags.get)
    with pytest.raises(CCDiffError, match=r"^--heat: salt needs heat"):
        checked_options(Potter, {"pots": 1, "glaze": "salt"}, where=None, place=flags.get)


def test_what_fits_is_a_model_that_tells_what_was_given() -> None:
    made = checked_options(Potter, nested({("pots",): 3, ("kiln", "heat"): 1000}), where="file")
    assert made == Potter(pots=3, kiln=Kiln(heat=1000)) and made.model_fields_set == {"pots", "kiln"}
    assert made.kiln.model_fields_set == {"heat"}
