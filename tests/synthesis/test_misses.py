"""A synthetic set aimed at what a detector misses: the file is part of the plan, and must be the set's own."""

from collections import Counter

import pytest

from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.synthesis.plan import read_plan
from tests.layouts.test_misses import written
from tests.synthesis.grouped import make_set

FAKE = "tests.synthesis.fake:load"


def test_the_plan_follows_from_the_file(generator, layouts, tmp_path):
    pictures = read_set(layouts)
    file = written(tmp_path / "misses.json", pictures, {"p2.png": ([0, 1], 3), "p6.png": ([], 9)})
    given = {"layout_source": "set", "balance": "misses", "pipeline": FAKE, "num_processes": 1}
    made = make_set(generator, layouts, tmp_path / "s", 12, misses=file, **given)
    used = Counter(job.scene.provenance["layout"]["picture"] for job in read_plan(tmp_path / "s").jobs)
    assert used["p2.png"] == 7 and len(used) == 6, "five errors of five are in it; the picture without objects is no layout"
    assert made["layouts"]["balance"] == "misses" and len(made["layouts"]["misses"]) == 64
    again = make_set(generator, layouts, tmp_path / "s", 12, misses=file, **given)
    assert again["made"] == 0 and again["content"] == made["content"]
    other = written(tmp_path / "other.json", pictures, {"p1.png": ([0], 0)})
    with pytest.raises(CCDiffError, match=r"another run; changed: layouts\.misses was"):
        make_set(generator, layouts, tmp_path / "s", 12, misses=other, **given)
    foreign = written(tmp_path / "foreign.json", pictures, set="0123456789abcdef")
    with pytest.raises(CCDiffError, match="another set"):
        make_set(generator, layouts, tmp_path / "t", 12, misses=foreign, **given)
    assert not (tmp_path / "t").exists()
