"""Layouts by balance "misses": as often as a detector is wrong, none forgotten, and only by the file of the very set."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ccdiff_cli.dataset import PictureSet
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import write_json
from ccdiff_cli.layouts import LayoutOptions, plan_layouts
from ccdiff_cli.layouts.misses import VERSION, misses_key, misses_of, times_of
from ccdiff_cli.options import checked_options

from .test_sampler import harbours

WRONG = {"p0.png": ([0, 1, 2], 3), "p5.png": ([1], 0), "p7.png": ([], 1)}


def written(path: Path, pictures: PictureSet, wrong=WRONG, **changes) -> Path:
    rows = []
    for scene in pictures.scenes:
        missed, alarms = wrong.get(scene.file_name, ([], 0))
        rows.append({"file_name": scene.file_name, "missed": missed, "false_alarms": alarms})
    said = {"version": VERSION, "set": pictures.key(), "detector": {}, "boxes": "hbb", "folds": 3, "seed": 0, "threshold": 0.5}
    write_json(path, {**said, "classes": {}, "sizes": {}, "crowding": {}, "pictures": rows, **changes})
    return path


def test_a_round_holds_every_picture_once_and_as_many_in_proportion_to_errors(tmp_path):
    pictures = harbours(8)
    options = LayoutOptions(source="set", balance="misses", misses=written(tmp_path / "m.json", pictures))
    times = times_of(pictures.scenes, misses_of(options.misses, pictures))
    assert times.tolist() == [1 + e for e in (6, 0, 0, 0, 0, 1, 0, 1)], "eight pictures, eight errors"
    used = Counter(s.provenance["layout"]["picture"] for s in plan_layouts(pictures, 16, 0, options))
    assert used == {f"p{k}.png": n for k, n in enumerate(times)}
    one = written(tmp_path / "one.json", pictures, {"p3.png": ([0], 0), "p1.png": ([0, 1], 0)})
    used = Counter(s.provenance["layout"]["picture"] for s in plan_layouts(pictures, 1600, 0, options.model_copy(update={"misses": one})))
    assert used["p0.png"] == pytest.approx(100, abs=3) and used["p1.png"] == pytest.approx(100 + 800 * 2 / 3, abs=20)


@pytest.mark.parametrize("source", ["mixed", "sampled", "augmented"])
def test_it_combines_with_every_source_and_layout_k_depends_on_k_alone(tmp_path, source):
    pictures = harbours(8)
    options = LayoutOptions(source=source, balance="misses", misses=written(tmp_path / "m.json", pictures))
    many = plan_layouts(pictures, 20, 3, options)
    assert plan_layouts(pictures, 4, 3, options) == many[:4] and plan_layouts(pictures, 3, 3, options, start=15) == many[15:18]
    assert Counter(s.provenance["layout"]["picture"] for s in many[:16])["p0.png"] == 7


def test_without_errors_every_picture_comes_once(tmp_path):
    pictures = harbours(8)
    options = LayoutOptions(source="set", balance="misses", misses=written(tmp_path / "m.json", pictures, {}))
    assert len({s.provenance["layout"]["picture"] for s in plan_layouts(pictures, 8, 0, options)}) == 8


def test_no_number_of_a_file_makes_a_round_long(tmp_path):
    pictures = harbours(8)
    file = written(tmp_path / "m.json", pictures, {s.file_name: ([], 2**53) for s in pictures.scenes[:7]})
    times = times_of(pictures.scenes, misses_of(file, pictures))
    assert times.sum() == pytest.approx(16) and times.min() == 1 and np.isfinite(times).all()


def test_misses_of_another_set_are_refused(tmp_path):
    pictures = harbours(8)
    file = written(tmp_path / "m.json", pictures)
    assert misses_key(file, pictures) != misses_key(written(tmp_path / "n.json", pictures, {}), pictures)
    with pytest.raises(CCDiffError, match=r"misses are of another set(.|\n)*run `ccdiff misses`"):
        plan_layouts(harbours(9), 1, 0, LayoutOptions(balance="misses", misses=file))
    with pytest.raises(CCDiffError, match="another set"):  # the right key, other pictures
        misses_of(written(tmp_path / "o.json", harbours(9), set=pictures.key()), pictures)
    for changes, complaint in (({"version": "ccdiff misses 2"}, "version"), ({"threshold": "high"}, "threshold"), ({"set": 3}, "set")):
        with pytest.raises(CCDiffError, match=rf"m\.json: {complaint}: |{complaint}"):
            misses_of(written(tmp_path / "m.json", pictures, **changes), pictures)
    with pytest.raises(CCDiffError, match="does not exist"):
        misses_of(tmp_path / "nowhere.json", pictures)


@pytest.mark.parametrize(
    ("values", "said"),
    [({"balance": "misses"}, "balance: balance misses needs"), ({"misses": "m.json"}, "misses: misses are used by balance misses alone"),
     ({"misses": "m.json", "balance": "rare"}, "misses alone")],
)  # fmt: skip
def test_one_option_does_not_stand_without_the_other(values, said):
    with pytest.raises(CCDiffError, match=said):
        checked_options(LayoutOptions, values, where="options")
