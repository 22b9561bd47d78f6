"""Pictures that come out colour-infrared though nobody asked for it are drawn again, counted, and said."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ccdiff_cli.cli.synthesize import _synthesis_lines
from ccdiff_cli.dataset import IMAGES, read_set, write_set
from ccdiff_cli.prepare.spectra import colour_counts, spectrum_of
from ccdiff_cli.synthesis import verify_set
from ccdiff_cli.synthesis.worker import COLOURS, next_seed

from .grouped import make_set

RED, ROAD, GRASS = (190, 60, 80), (90, 130, 140), (90, 120, 70)
SHARE = 3
"""One seed in so many gives an infrared picture."""


class Coloured:
    """Draws an infrared picture for some seeds."""

    def __init__(self, share: int) -> None:
        self.share = share

    def __call__(self, scenes, generator, **_):
        images = []
        for scene, noise in zip(scenes, generator, strict=True):
            image = np.full((scene.height, scene.width, 3), GRASS, float)
            if noise.initial_seed() % self.share == 0:
                image[:, : scene.width // 2], image[:, scene.width // 2 :] = RED, ROAD
            image[0, 0] = noise.initial_seed() % 251
            images.append(image / 255)
        return SimpleNamespace(images=images)


def load(checkpoint, device, precision):
    return Coloured(SHARE)


def load_infrared(checkpoint, device, precision):
    return Coloured(1)


@pytest.fixture
def mixed(layouts: Path, tmp_path: Path) -> Path:
    """The layouts, of which one picture is infrared."""
    known = read_set(layouts)
    scenes = [s.replace(provenance={"spectrum": "colour-infrared"}) if s.source == "s1" else s for s in known.scenes]
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / IMAGES).symlink_to(layouts / IMAGES)
    write_set(tmp_path / "mixed", scenes, known.classes, kind="prepared", details={}, picture_hashes=known.manifest["pictures"])
    return tmp_path / "mixed"


def kinds(folder: Path) -> list[str]:
    from PIL import Image

    return [spectrum_of(colour_counts(Image.open(folder / IMAGES / scene.file_name))) for scene in read_set(folder).scenes]


def test_they_are_drawn_again_until_they_are_natural(mixed: Path, generator: Path, tmp_path: Path) -> None:
    made = make_set(generator, mixed, tmp_path / "s", 24, pipeline=f"{__name__}:load", num_processes=1, batch_size=4)
    plan = [json.loads(line) for line in (tmp_path / "s" / "plan.jsonl").read_text().splitlines()]
    first = [job["seed"] for job in plan]
    struck = [k for k, seed in enumerate(first) if seed % SHARE == 0]
    assert 2 < len(struck) < 24
    final, again = list(first), {}
    for k in struck:
        for attempt in range(1, 5):
            again[k], final[k] = attempt, next_seed(first[k], COLOURS + attempt)
            if final[k] % SHARE:
                break
    still = [k for k in struck if final[k] % SHARE == 0]
    found = read_set(tmp_path / "s")
    assert [scene.provenance["seed"] for scene in found.scenes] == final
    assert kinds(tmp_path / "s") == ["colour-infrared" if k in still else "" for k in range(24)]
    assert made["colours"] == {"redrawn": len(struck), "infrared": len(still)}
    told = found.manifest["colours"]["pictures"]
    assert {name: said["redrawn"] for name, said in told.items()} == {f"{k:08d}.png": again[k] for k in struck}
    assert f"colours: {len(struck)} pictures came out colour-infrared" in "\n".join(_synthesis_lines(made, mixed, tmp_path / "s", False))
    assert f"{len(struck)} pictures came out colour-infrared" in (tmp_path / "s" / "README.md").read_text()


def test_a_finished_set_that_lost_pictures_comes_back_with_their_seeds(mixed: Path, generator: Path, tmp_path: Path) -> None:
    arguments = {"pipeline": f"{__name__}:load", "num_processes": 1, "batch_size": 4}
    whole = make_set(generator, mixed, tmp_path / "s", 24, **arguments)["content"]
    told = list(read_set(tmp_path / "s").manifest["colours"]["pictures"])
    for name in ("00000000.png", told[-1]):
        (tmp_path / "s" / IMAGES / name).unlink()
    assert make_set(generator, mixed, tmp_path / "s", 24, **arguments)["content"] == whole
    assert list(read_set(tmp_path / "s").manifest["colours"]["pictures"]) == told
    assert verify_set(tmp_path / "s")["ok"]
    shards = make_set(generator, mixed, tmp_path / "shards", 24, shard_size=8, **arguments)
    assert shards["colours"]["redrawn"] == len(told)


def test_what_never_comes_out_natural_is_kept_and_said(mixed: Path, generator: Path, tmp_path: Path) -> None:
    made = make_set(generator, mixed, tmp_path / "s", 4, pipeline=f"{__name__}:load_infrared", num_processes=1)
    assert made["colours"] == {"redrawn": 4, "infrared": 4} and set(kinds(tmp_path / "s")) == {"colour-infrared"}


def test_who_asks_gets_infrared_and_sets_without_any_are_not_looked_at(layouts: Path, mixed: Path, generator: Path, tmp_path: Path) -> None:
    infrared = {"pipeline": f"{__name__}:load_infrared", "num_processes": 1}
    assert "colours" not in make_set(generator, layouts, tmp_path / "a", 4, **infrared)
    known = read_set(mixed)
    scenes = [s.replace(provenance={"spectrum": "colour-infrared"}) for s in known.scenes]
    write_set(mixed, scenes, known.classes, kind="prepared", details={}, picture_hashes=known.manifest["pictures"])
    assert make_set(generator, mixed, tmp_path / "b", 4, **infrared)["colours"] == {"redrawn": 0, "infrared": 0}
