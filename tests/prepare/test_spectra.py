"""Natural colour, colour-infrared and panchromatic, told apart by their colours."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.prepare.captions import caption_of
from ccdiff_cli.prepare.spectra import colour_counts, spectrum_of
from ccdiff_cli.scene import Instance, Scene
from tests.rawsets import vhr10

GRASS, ROAD, ROOF, WATER = (70, 95, 60), (128, 126, 120), (150, 95, 80), (40, 75, 85)
INFRARED_IN_RED, CYAN_ROAD = (210, 60, 70), (90, 150, 160)
INFRARED_IN_GREEN = (60, 200, 50)


def picture(*parts: tuple[tuple[int, int, int], float], side: int = 400) -> Image.Image:
    """Stripes of colours with the shares given, a little noise on top."""
    rows: list[np.ndarray] = []
    for colour, share in parts:
        rows.append(np.full((round(share * side), side, 3), colour, np.int16))
    pixels = np.concatenate(rows) + np.random.default_rng(0).integers(-4, 5, (sum(map(len, rows)), side, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(GRASS, 0.6), (ROAD, 0.4)], ""),
        ([(ROOF, 0.5), (ROAD, 0.5)], ""),
        ([(WATER, 0.97), (INFRARED_IN_RED, 0.005), (ROAD, 0.025)], ""),  # a red ship on blue water
        ([(INFRARED_IN_RED, 0.03), (CYAN_ROAD, 0.97)], "colour-infrared"),
        ([(INFRARED_IN_RED, 0.6), (ROAD, 0.4)], "colour-infrared"),
        ([(INFRARED_IN_GREEN, 0.05), (ROAD, 0.95)], "colour-infrared"),
        ([((90, 90, 90), 0.5), ((160, 160, 160), 0.5)], "panchromatic"),
    ],
)
def test_kinds(parts: list, expected: str) -> None:
    assert spectrum_of(colour_counts(picture(*parts))) == expected
    halves = sum(colour_counts(part) for part in (picture(*parts).crop((0, 0, 200, 400)), picture(*parts).crop((200, 0, 400, 400))))
    assert spectrum_of(halves) == expected, "tiles of a picture are judged together"
    assert spectrum_of(colour_counts(picture(*parts, side=1200))) == expected


def test_no_pixels_are_of_no_kind() -> None:
    assert spectrum_of(np.zeros(5, np.int64)) == ""


def test_red_roofs_by_a_cyan_sea_are_no_plants_beside_roads() -> None:
    assert spectrum_of([1000, 18, 350, 0, 100]) == "" == spectrum_of([1000, 31, 100, 0, 80])
    assert spectrum_of([1000, 25, 200, 0, 10]) == "colour-infrared"


def test_the_caption_names_it() -> None:
    scene = Scene("a.png", 100, 100, (Instance.from_hbb("ship", (10, 10, 30, 30)),), provenance={"spectrum": "colour-infrared"})
    assert caption_of(scene, "short") == "This is a colour-infrared aerial image of ships. 1 ship."
    assert caption_of(scene, "short", sentence="A quay.") == "Colour-infrared. A quay. 1 ship."
    assert caption_of(scene, "short", place="a harbor").startswith("This is a colour-infrared aerial image of a harbor.")


@pytest.mark.parametrize("infrared", [1, 4])
def test_prepare_notes_it_and_layouts_are_of_what_most_pictures_are(tmp_path: Path, infrared: int) -> None:
    from ccdiff_cli.layouts import plan_layouts

    boxes = {f"{k:03d}": [("ship", (8, 8, 40, 30))] for k in range(1, 5)}
    raw = vhr10(tmp_path / "raw", boxes, splits={"train": ["001", "002"], "val": ["003"], "test": ["004"]})
    for path in sorted(raw.rglob("*.jpg"))[:infrared]:
        with Image.open(path) as image:
            size = image.size
        picture((INFRARED_IN_GREEN, 0.4), (ROAD, 0.6), side=max(size)).resize(size, Image.Resampling.NEAREST).save(path, quality=95)
    made = prepare_dataset(raw, tmp_path / "set", PrepareOptions(size=64))
    known = [s.provenance.get("spectrum") == "colour-infrared" for s in made.scenes]
    assert known == ["colour-infrared" in s.caption for s in made.scenes]
    assert len({s.source for s, true in zip(made.scenes, known, strict=True) if true}) == infrared
    assert made.manifest["notes"]["pictures that are colour-infrared"] == infrared
    for style in ("plain", "short"):
        planned = plan_layouts(made, 4, seed=0, caption_style=style)
        asked = [("infrared" in layout.caption, layout.provenance.get("spectrum") == "colour-infrared") for layout in planned]
        assert asked == [(infrared == 4, infrared == 4)] * 4
