"""Blocks made by Ray actors: the same set, also when one of them is killed."""

import sys

import pytest

from ccdiff_cli.errors import CCDiffError
from tests.synthesis.grouped import make_set
from tests.synthesis.test_synthesis import FAKE, ROOT, files_of, make, reference  # noqa: F401


def test_without_ray_the_fix_is_said(generator, layouts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CCDiffError, match=r"Ray is not installed[\s\S]*ccdiff\[ray\]"):
        make(generator, layouts, tmp_path / "s", ray=2)
    with pytest.raises(CCDiffError, match="ray: expected greater than or equal to 1"):
        make(generator, layouts, tmp_path / "t", ray=0)


@pytest.mark.slow
def test_two_actors_one_of_which_is_killed_make_the_same_set(generator, layouts, tmp_path, reference, monkeypatch):  # noqa: F811
    ray = pytest.importorskip("ray", reason="the extra ccdiff[ray] is not installed")
    variables = {"PYTHONPATH": str(ROOT), "FAKE_DEATH": "00000004.png", "FAKE_MARK": str(tmp_path / "mark"), "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    try:
        made = make_set(generator, layouts, tmp_path / "s", 10, batch_size=4, pipeline=FAKE, ray=2)
    finally:
        ray.shutdown()
    assert (tmp_path / "mark").exists(), "an actor died"
    assert made["made"] == 10 and files_of(tmp_path / "s") == reference
