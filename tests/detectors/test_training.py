"""Training, resuming, caching, saving and predicting: what is the same for every family, shown with Faster R-CNN."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ccdiff_cli import threads
from ccdiff_cli.detectors import fit, load_detector, training_key
from ccdiff_cli.detectors import training as room
from ccdiff_cli.detectors.store import read_detections, write_detections
from ccdiff_cli.errors import CCDiffError

from .small import CLASSES, TINY, make_set

RESUMED = TINY.model_copy(update={"steps": 24})  # checkpoints at 10 and 20


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"), {"train": 6, "test": 3})


class Killed(BaseException):
    """What a kill looks like to the code: nothing catches it."""


@pytest.fixture(scope="module")
def uninterrupted(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("trainings")
    detector = fit(pictures.split("train"), CLASSES, RESUMED, out, 3)
    return out / detector.info["key"], detector


@pytest.mark.parametrize("stop", [5, 17])  # before the first checkpoint, and between two
def test_a_killed_training_resumes_to_the_same_result(pictures, uninterrupted, tmp_path, stop):
    def kill(stage: str, done: int, total: int) -> None:
        if done == stop:
            raise Killed

    with pytest.raises(Killed):
        fit(pictures.split("train"), CLASSES, RESUMED, tmp_path, 3, kill)
    steps = []
    detector = fit(pictures.split("train"), CLASSES, RESUMED, tmp_path, 3, lambda stage, done, total: steps.append(done))
    assert steps[0] == (stop // 10) * 10 + 1  # it went on rather than began anew
    folder, whole = uninterrupted
    assert (tmp_path / folder.name / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert detector.info["losses"] == whole.info["losses"]
    assert sorted(p.name for p in (tmp_path / folder.name).iterdir()) == ["detector.json", "model.safetensors"]


def test_a_finished_training_is_not_trained_again(pictures, uninterrupted):
    folder, whole = uninterrupted
    steps = []
    again = fit(pictures.split("train"), CLASSES, RESUMED, folder.parent, 3, lambda *a: steps.append(a))
    assert steps == [] and again.info == whole.info


@pytest.fixture
def untold(monkeypatch):
    """A process of two threads that was told no number, where a pass is timed once and one thread is said to be the fastest."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "ROUNDS", 1)
    monkeypatch.setattr(threads, "best", lambda taken: min(taken))
    with threads.restored():
        torch.set_num_threads(2)
        yield


def test_threads_are_chosen_by_passes_of_which_nothing_stays(pictures, tmp_path, untold, monkeypatch):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    detector = fit(pictures.split("train"), CLASSES, RESUMED, tmp_path, 3)
    assert detector.info["threads"] == 1 and torch.get_num_threads() == 2 and torch.equal(torch.rand(3), expected)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    fit(pictures.split("train"), CLASSES, RESUMED, tmp_path / "told", 3)  # nothing was timed
    key = detector.info["key"]
    assert (tmp_path / key / "model.safetensors").read_bytes() == (tmp_path / "told" / key / "model.safetensors").read_bytes()


def test_a_killed_training_takes_its_threads_again(pictures, tmp_path, untold, monkeypatch):
    def kill(stage: str, done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        fit(pictures.split("train"), CLASSES, RESUMED, tmp_path, 3, kill)
    kept = next(tmp_path.glob("*/threads.json"))
    assert json.loads(kept.read_text()) == {"detector": 1}
    monkeypatch.setattr(threads, "seconds_by_threads", lambda *a: pytest.fail("timed again"))
    detector = fit(pictures.split("train"), CLASSES, RESUMED, tmp_path, 3)
    assert detector.info["threads"] == 1 and not kept.exists()
    with threads.as_trained(detector.info):
        assert torch.get_num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threads.as_trained(detector.info):
        assert torch.get_num_threads() == 2


def test_number_of_loading_processes_and_checkpoints_do_not_matter(pictures, uninterrupted, tmp_path):
    folder, _ = uninterrupted
    other = RESUMED.model_copy(update={"workers": 2, "checkpoint_every": 20})
    detector = fit(pictures.split("train"), CLASSES, other, tmp_path, 3)
    assert detector.info["key"] == folder.name
    a, b = load_file(folder / "model.safetensors"), load_file(tmp_path / folder.name / "model.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_callers_random_state_is_left_alone(pictures, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(pictures.split("train"), CLASSES, TINY, tmp_path, 0)
    assert torch.equal(torch.rand(3), expected)


def test_key_changes_with_labels_pictures_settings_and_seed(pictures, tmp_path):
    scenes = pictures.split("train")
    keys = [
        training_key(scenes, CLASSES, TINY, 0),
        training_key(scenes, CLASSES, TINY, 1),
        training_key(scenes[:-1], CLASSES, TINY, 0),
        training_key(scenes, CLASSES, TINY.model_copy(update={"lr": 0.002}), 0),
        training_key((scenes[0].replace(instances=()), *scenes[1:]), CLASSES, TINY, 0),
        training_key((scenes[0].replace(path=scenes[1].path), *scenes[1:]), CLASSES, TINY, 0),
    ]
    assert len(set(keys)) == len(keys)
    assert training_key(scenes, CLASSES, TINY.model_copy(update={"workers": 7}), 0) == keys[0]


def test_saved_and_loaded_predicts_the_same(pictures, uninterrupted, tmp_path):
    folder, detector = uninterrupted
    test = pictures.split("test")
    before, after = detector.predict(test), load_detector(folder, "cpu").predict(test)
    for a, b in zip(before, after, strict=True):
        assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores) and np.array_equal(a.labels, b.labels)
    write_detections(tmp_path / "d.safetensors", before)
    for a, b in zip(before, read_detections(tmp_path / "d.safetensors", len(test)) or [], strict=True):
        assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.labels, b.labels)
    (tmp_path / "torn").write_bytes((tmp_path / "d.safetensors").read_bytes()[:-9])
    assert read_detections(tmp_path / "torn", len(test)) is None
    assert read_detections(tmp_path / "d.safetensors", 99) is None


def test_predictions_are_in_pixels_of_the_labels(pictures, uninterrupted):
    """The same picture, labelled at twice its size, gives the same boxes twice as large."""
    _, detector = uninterrupted
    scene = pictures.split("test")[0]
    plain, double = detector.predict([scene, scene.replace(width=128, height=128)])
    assert len(plain) and np.allclose(plain.boxes * 2, double.boxes, atol=1e-3)
    assert plain.boxes.min() >= 0 and plain.boxes.max() <= 64 and set(plain.labels) <= {0, 1}


def test_a_short_training_learns(pictures, tmp_path):
    config = TINY.model_copy(update={"steps": 50, "batch": 4, "lr": 0.004})
    rows = fit(pictures.split("train"), CLASSES, config, tmp_path, 0).info["losses"]["rows"]
    assert rows[-1][1] < 0.75 * rows[0][1]


def test_a_diverging_loss_is_one_clear_error(pictures, tmp_path):
    config = TINY.model_copy(update={"optimizer": "sgd", "lr": 1e12, "steps": 20, "clip_gradient": 1e12})
    with pytest.raises(CCDiffError, match=r"loss became nan at step \d+ of 20") as caught:
        fit(pictures.split("train"), CLASSES, config, tmp_path, 0)
    assert "fix: lower detector.lr" in str(caught.value)
    assert not list(tmp_path.rglob("detector.json"))


def test_nothing_to_train_on(pictures, tmp_path):
    with pytest.raises(CCDiffError, match="no pictures"):
        fit([], CLASSES, TINY, tmp_path, 0)
    with pytest.raises(CCDiffError, match="holds an object"):
        fit([s.replace(instances=()) for s in pictures.split("train")], CLASSES, TINY, tmp_path, 0)


def test_pictures_without_objects_and_boxes_outside_are_trained_on(pictures, tmp_path):
    scenes = list(pictures.split("train"))
    scenes[0] = scenes[0].replace(instances=())
    outside = dataclasses.replace(scenes[1].instances[0], hbb=(70.0, 70.0, 90.0, 90.0))
    scenes[1] = scenes[1].replace(instances=(*scenes[1].instances, outside))
    assert fit(scenes, CLASSES, TINY, tmp_path, 0).info["objects_unusable"] == 1


def test_torn_files_and_unknown_devices_say_so(pictures, uninterrupted, tmp_path):
    folder, _ = uninterrupted
    (tmp_path / "detector.json").write_bytes((folder / "detector.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CCDiffError, match="cannot load the detector"):
        load_detector(tmp_path)
    (tmp_path / "detector.json").write_text('{"config": {"kind": "cascade"}}')
    with pytest.raises(CCDiffError, match="unknown detector family 'cascade'"):
        load_detector(tmp_path)
    key = training_key(pictures.split("train"), CLASSES, TINY, 0)
    (tmp_path / key).mkdir()
    (tmp_path / key / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(CCDiffError, match="cannot resume from the checkpoint"):
        fit(pictures.split("train"), CLASSES, TINY, tmp_path, 0)
    with pytest.raises(CCDiffError, match="device 'tpu:9'"):
        fit(pictures.split("train"), CLASSES, TINY.model_copy(update={"device": "tpu:9"}), tmp_path, 0)


def test_learning_rate_schedules():
    cosine = TINY.model_copy(update={"steps": 100, "warmup_steps": 10})
    factors = [room.learning_rate_factor(s, cosine) for s in range(100)]
    assert factors[0] == pytest.approx(1 / 11) and factors[10] == 1 and factors[-1] < 0.001 and max(factors) == 1
    flat = cosine.model_copy(update={"schedule": "flat-cosine"})
    assert [round(room.learning_rate_factor(s, flat), 3) for s in (10, 50, 75, 99)] == [1, 1, 0.525, 0.051]
    step = cosine.model_copy(update={"schedule": "step", "steps": 120})
    assert [round(room.learning_rate_factor(s, step), 4) for s in (10, 79, 80, 109, 110)] == [1, 1, 0.1, 0.1, 0.01]
