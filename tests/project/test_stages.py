"""Keys, receipts and states of stages: what a change makes stale, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import content_key
from ccdiff_cli.project import STAGES, Project, read_project, recorded, stages, states_of
from ccdiff_cli.project.stages import TYPED, typed_state
from ccdiff_cli.project.status import next_step, status_of, status_rows

FILE: dict[str, Any] = {
    "data": "raw",
    "prepare": {"tile": 256, "size": 128},
    "train": {"from": "tiny", "set": {"denoiser.train.steps": 20}},
    "layouts": {"source": "augmented"},
    "synthesize": {"n": 8},
    "filter": {},
    "export": {"format": "coco"},
    "evaluate": {},
    "trainability": {"seeds": [0, 1]},
}
AFTER = {
    "prepare": set(STAGES),
    "train": set(STAGES) - {"prepare"},
    "synthesize": {"synthesize", "export", "evaluate", "trainability"},
    "export": {"export"},
    "evaluate": {"evaluate"},
    "trainability": {"trainability"},
}
CHANGES: dict[str, tuple[str, Any, str]] = {
    "prepare.tile": ("prepare", {"tile": 128}, "prepare"),
    "prepare.seed": ("prepare", {"seed": 3}, "prepare"),
    "prepare.keep_share": ("prepare", {"keep_share": 0.5}, "prepare"),
    "train.recipe": ("train", {"recipe": "ccdiff-tiny"}, "train"),
    "train.set": ("train", {"set": {"denoiser.train.steps": 30}}, "train"),
    "layouts.source": ("layouts", {"source": "mixed"}, "synthesize"),
    "layouts.balance": ("layouts", {"balance": "classes"}, "synthesize"),
    "synthesize.n": ("synthesize", {"n": 9}, "synthesize"),
    "synthesize.sampling": ("synthesize", {"sampling": {"steps": 3}}, "synthesize"),
    "filter.mode": ("filter", {"mode": "objects"}, "synthesize"),
    "export.format": ("export", {"format": "yolo"}, "export"),
    "evaluate.reference": ("evaluate", {"reference": "val"}, "evaluate"),
    "trainability.seeds": ("trainability", {"seeds": [0, 1, 2]}, "trainability"),
    "trainability.detector": ("trainability", {"detector": {"steps": 70}}, "trainability"),
}
"""A key -> section, what is changed in it, the first stage that depends on it."""
IDLE = {"evaluate.batch_size": ("evaluate", {"batch_size": 4}), "train.cpu": ("train", {"cpu": True})}
"""Options that decide nothing of what comes out."""


@pytest.fixture(autouse=True)
def _nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_holds", lambda stage, folder: None)


def write(folder: Path, values: dict[str, Any]) -> Project:
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    if not (folder / "raw/a.txt").exists():
        (folder / "raw/a.txt").write_text("a picture")
    (folder / "ccdiff.yaml").write_text(yaml.safe_dump(values))
    return read_project(folder / "ccdiff.yaml")


def finish_all(project: Project) -> None:
    for name in STAGES:
        finish(project, name)


def finish(project: Project, name: str, typed: dict[str, Any] | None = None) -> Path:
    state = typed_state(project, states_of(project)[name], typed or {})
    with recorded(project, state):
        state.folder.mkdir(parents=True, exist_ok=True)
        if state.stage.last:
            (state.folder / state.stage.last).write_text("{}")
    return state.folder


def of(project: Project, state: str) -> set[str]:
    return {name for name, found in states_of(project).items() if found.state == state}


def test_nothing_is_there_then_everything_is_done(tmp_path: Path) -> None:
    project = write(tmp_path, FILE)
    assert of(project, "missing") == set(STAGES)
    finish_all(project)
    assert of(project, "done") == set(STAGES)
    assert next_step(status_of(project)) == "all stages are done"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.sets(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=4))
def test_a_change_makes_stale_what_depends_on_it_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, keys: set[str]) -> None:
    folder = tmp_path_factory.mktemp("project")
    finish_all(write(folder, FILE))
    values = {section: dict(group) if isinstance(group, dict) else group for section, group in FILE.items()}
    for key in keys:
        section, change, _ = CHANGES[key]
        values[section] |= change
    project = write(folder, values)
    stale = set().union(*(AFTER[CHANGES[key][2]] for key in keys))
    assert of(project, "stale") == stale
    assert of(project, "done") == set(STAGES) - stale
    told = {name: " ".join(state.why) for name, state in states_of(project).items()}
    for key in keys:
        section, _, first = CHANGES[key]
        assert section in told[first], "the change is named where it is"


@pytest.mark.parametrize("key", sorted(IDLE))
def test_how_the_work_is_done_makes_nothing_stale(tmp_path: Path, key: str) -> None:
    finish_all(write(tmp_path, FILE))
    section, change = IDLE[key]
    assert of(write(tmp_path, FILE | {section: FILE[section] | change}), "stale") == set()


def test_the_reason_says_what_was_and_what_is(tmp_path: Path) -> None:
    finish_all(write(tmp_path, FILE))
    project = write(tmp_path, FILE | {"prepare": {"tile": 128, "size": 128}})
    rows = {row[0]: row[1] for row in status_rows(status_of(project))}
    assert rows["prepare"] == "stale: prepare.tile was 256, now 128"
    assert rows["train"] == "stale: prepare changed"


def test_going_back_finds_what_was_made_before(tmp_path: Path) -> None:
    finish_all(write(tmp_path, FILE))
    write(tmp_path, FILE | {"synthesize": {"n": 9}})
    assert of(write(tmp_path, FILE), "done") == set(STAGES)


def test_other_files_in_the_data_set_make_all_stale_and_a_touched_one_nothing(tmp_path: Path) -> None:
    project = write(tmp_path, FILE)
    finish_all(project)
    text = (tmp_path / "raw/a.txt").read_text()
    (tmp_path / "raw/a.txt").unlink()
    (tmp_path / "raw/a.txt").write_text(text)  # the same bytes at another time
    assert of(project, "done") == set(STAGES)
    (tmp_path / "raw/b.txt").write_text("another picture")
    assert of(project, "stale") == set(STAGES)
    assert states_of(project)["prepare"].why == ("the files of the data set changed",)


def test_a_data_set_may_hold_names_that_are_not_utf8(tmp_path: Path) -> None:
    project = write(tmp_path, FILE)
    before = states_of(project)["prepare"].key
    (tmp_path / "raw" / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    assert states_of(project)["prepare"].key != before


def test_a_file_that_an_option_names_is_part_of_the_key(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("a\n")
    values = FILE | {"prepare": {"splits": "./lists"}}
    project = write(tmp_path, values)
    assert project.values("prepare")["splits"] == tmp_path / "lists", "seen from the file's folder"
    finish_all(project)
    (tmp_path / "lists/train.txt").write_text("b\n")
    assert "prepare" in of(project, "stale")


def test_what_the_command_line_said_is_a_variant_that_the_next_stages_take(tmp_path: Path) -> None:
    project = write(tmp_path, FILE)
    finish(project, "prepare")
    finish(project, "train")
    own = states_of(project)["synthesize"].folder
    folder = finish(project, "synthesize", {"options.n": 20_000})
    state = states_of(project)["synthesize"]
    assert (state.state, state.folder, state.typed) == ("done", folder, ("n 20000",)) and folder != own
    finish(project, "trainability")
    assert states_of(project)["trainability"].state == "done"
    finish(project, "synthesize")  # the file's own, later
    assert states_of(project)["synthesize"].folder == own
    assert states_of(project)["trainability"].why == ("synthesize changed",)


def test_a_folder_without_its_receipt_is_begun_and_one_that_lost_its_last_file_is_too(tmp_path: Path) -> None:
    project = write(tmp_path, FILE)
    states_of(project)["prepare"].folder.mkdir(parents=True)
    assert states_of(project)["prepare"].state == "begun"
    folder = finish(project, "prepare")
    assert states_of(project)["prepare"].state == "done"
    (folder / STAGES["prepare"].last).unlink()
    assert states_of(project)["prepare"].state == "begun"


def test_labels_edited_by_hand_make_stale_what_was_made_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"prepare": "one"}
    monkeypatch.setattr(stages, "_holds", lambda stage, folder: held.get(stage.name))
    project = write(tmp_path, FILE)
    finish_all(project)
    held["prepare"] = "two"
    assert of(project, "done") == {"prepare"}
    assert states_of(project)["train"].why == ("prepare: its labels were edited",)


@pytest.mark.parametrize(
    "damage",
    [
        {"stage": 3},
        {"stage": "export"},
        {"key": "../../../etc/passwd"},
        {"identity": {}},
        {"identity": {TYPED: ["a"]}},
        {"identity": {TYPED: ["a"]}, "key": content_key({TYPED: ["a"]})},
        {"seconds": "1"},
    ],
    ids=str,
)
def test_damaged_receipts_count_as_none(tmp_path: Path, damage: dict[str, Any]) -> None:
    project = write(tmp_path, FILE)
    finish(project, "prepare")
    receipt = next(project.runs.glob("prepare-*.json"))
    values = json.loads(receipt.read_text()) | damage
    receipt.write_text(json.dumps(values))
    if "key" in damage and "/" not in damage["key"]:
        receipt = receipt.rename(receipt.with_name(f"prepare-{damage['key'][:8]}.json"))
    assert states_of(project)["prepare"].state == "begun"


def test_folders_of_earlier_settings_are_told_and_kept(tmp_path: Path) -> None:
    finish_all(write(tmp_path, FILE))
    project = write(tmp_path, FILE | {"export": {"format": "yolo"}})
    (folder,) = (Path(p) for p in status_of(project)["earlier"])
    assert folder.name.startswith("export-") and folder.is_dir()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prepare": {"tile": "many"}}, "prepare.tile"),
        ({"prepare": {"tiles": 3}}, "unknown key"),
        ({"prapare": {}}, "unknown key"),
        ({"synthesize": {"layouts": {}}}, "section of its own"),
        ({"train": {"from": "tiny", "start": "tiny"}}, "the same option"),
        ({"trainability": {"seeds": ["x"]}}, "seeds"),
        ({"trainability": {"detector": {"stepz": 3}}}, "stepz"),
        ({"data": 3}, "data"),
        ({"train": {"set": [1]}}, "train.set|train.overrides"),
    ],
)
def test_what_does_not_fit_is_said_with_its_key(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CCDiffError, match=said):
        write(tmp_path, FILE | change)


def test_a_data_set_that_is_gone_is_said(tmp_path: Path) -> None:
    project = write(tmp_path, FILE | {"data": "gone"})
    with pytest.raises(CCDiffError, match="not there"):
        states_of(project)
