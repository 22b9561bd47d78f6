"""`ccdiff doctor`: tells versions and missing extras, never breaks, and exits by the state of the core."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ccdiff_cli import doctor
from ccdiff_cli.cli import app
from ccdiff_cli.detectors import backbones, mm_models
from ccdiff_cli.errors import CCDiffError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def no_backend(monkeypatch):
    """Importing mmrotate takes seconds, and is tested elsewhere."""
    monkeypatch.setattr(mm_models, "backend", lambda: None)


def names(text: str, key: str) -> set[str]:
    block = re.search(rf"^{re.escape(key)} = \[(.*?)\]$", text, re.S | re.M)
    assert block
    return {re.split(r"[\[<>=]", quoted)[0] for quoted in re.findall(r'"([^"]+)"', block[1])}


def test_it_knows_what_the_package_asks_for():
    text = (ROOT / "pyproject.toml").read_text()
    assert {*doctor.CORE, "httpx", "httpx2"} == names(text, "dependencies")  # httpx2 is httpx from Python 3.11 on
    listed = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    assert set(doctor.EXTRAS) == set(re.findall(r"^([\w-]+) = \[", listed, re.M))
    for extra, (parts, cost) in doctor.EXTRAS.items():
        assert set(parts) == names(text, extra) and "without it" in cost


def test_it_tells_the_state_of_this_machine(tmp_path, no_backend):
    state = doctor.examine(tmp_path / "not" / "there")
    assert state["ok"] and state["core"]["torch"] == torch.__version__.split("+")[0] and state["system"]["folder"] == str(tmp_path)
    assert state["system"]["cores"] >= 1 and state["system"]["free_disk"] > 0 and state["devices"][0]["name"] == "cpu"
    told = doctor.lines(state)
    assert told[-1].startswith("the core is fine") and any("efficientnet-lite0, backbone weights:" in line for line in told)


def test_a_missing_extra_is_told_with_its_cost_and_cure(monkeypatch, no_backend):
    real = doctor._own_version
    monkeypatch.setattr(doctor, "_own_version", lambda name: None if name.startswith(("mm", "efficientnet")) else real(name))
    monkeypatch.setattr(backbones, "LITE0_PACKAGE", "a_package_that_is_not_there")
    state = doctor.examine()
    assert state["ok"] and state["mmcv_ops"] == "none" and not state["extras"]["mmrotate"]["installed"]
    told = "\n".join(doctor.lines(state))
    assert "no Oriented R-CNN" in told and "pip install 'ccdiff[mmrotate]'" in told and "from scratch" in told


def test_a_broken_extra_and_packages_that_overwrite_one_another_are_told(monkeypatch):
    versions = {name: "1" for extra in doctor.EXTRAS.values() for name in extra[0]} | {name: "1" for name in doctor.CORE}
    monkeypatch.setattr(doctor, "_own_version", (versions | {"mmcv": "2"}).get)

    def broken():
        raise CCDiffError("do not work together", fix="reinstall")

    monkeypatch.setattr(mm_models, "backend", broken)
    state = doctor.examine()
    assert state["ok"] and any("does not work: do not work together. Cure: reinstall" in text for text in state["advice"])
    assert any("mmcv-lite and mmcv hold the same modules" in text for text in state["advice"])


def test_the_exit_code_is_that_of_the_core(monkeypatch, no_backend):
    made = CliRunner().invoke(app, ["doctor", "--json"])
    assert made.exit_code == 0 and json.loads(made.stdout)["ok"] is True
    real = doctor._own_version
    monkeypatch.setattr(doctor, "_own_version", lambda name: None if name == "shapely" else real(name))
    made = CliRunner().invoke(app, ["doctor"])
    assert made.exit_code == 2 and "shapely is not installed" in made.output
