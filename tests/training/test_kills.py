"""A training that is killed between any two of its writes ends in the same files as one that was left alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import sha256_file
from ccdiff_cli.recipes import Recipe
from ccdiff_cli.training import train


class Killed(BaseException):
    """As sudden as a signal for all that catches ``Exception``."""


def files_of(out: Path) -> dict[str, str]:
    """Every file but the logs of TensorBoard, which hold the time of day, and the trained state, whose zip archives do."""
    found = {p.relative_to(out).as_posix(): p for p in sorted(out.rglob("*")) if p.is_file() and "logs" not in p.parts}
    return {name: "" if name.endswith(".pt") else sha256_file(path) for name, path in found.items()}


def kill_after_every_write(monkeypatch: pytest.MonkeyPatch, work: object) -> int:
    """Call ``work`` until it ends; each time it is killed as soon as it has written something that was not there. Returns how often."""
    real, known, kills = os.replace, dict[str, str](), 0

    def replace(source: object, target: object, **options: object) -> None:
        real(source, target, **options)  # type: ignore[arg-type]
        name = str(target)
        held = "folder" if Path(name).is_dir() or name.endswith(".pt") else sha256_file(name)
        if known.get(name) != held:
            known[name] = held
            raise Killed

    monkeypatch.setattr(os, "replace", replace)
    while True:
        try:
            work()  # type: ignore[operator]
            break
        except Killed:
            kills += 1
            assert kills < 200
    monkeypatch.setattr(os, "replace", real)
    return kills


@pytest.mark.slow
def test_killed_between_any_two_writes(recipe: Recipe, prepared: Path, generator: Path, tmp_path: Path, monkeypatch) -> None:
    kills = kill_after_every_write(monkeypatch, lambda: train(recipe, prepared, tmp_path / "g", cpu=True))
    assert kills >= 20, "parts of the generator, checkpoints, losses, features, validation pictures, ccdiff.json"
    assert files_of(tmp_path / "g") == files_of(generator)


def test_pictures_that_a_kill_took_are_made_up_for(recipe: Recipe, prepared: Path, generator: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copytree(generator, tmp_path / "g"))
    (cut / "ccdiff.json").unlink()
    for path in (cut / "train" / "samples").iterdir():
        path.unlink()
    (cut / "train" / "denoiser" / "losses.json").unlink()
    (cut / "train" / "denoiser" / ".partial-checkpoint").write_text("half of it")
    (cut / "train" / "cache" / ".partial-folder").mkdir()
    train(recipe, prepared, cut, cpu=True)
    whole = files_of(generator)
    assert files_of(cut) == {k: v for k, v in whole.items() if k != "train/samples/step-00000003.png"}, "of the step it had come to"


@pytest.mark.parametrize("damage", ["torn", "a list", "a tensor missing", "not a number", "losses of other steps"])
def test_a_damaged_checkpoint_falls_back(recipe: Recipe, prepared: Path, generator: Path, tmp_path: Path, damage: str) -> None:
    import torch

    cut = Path(shutil.copytree(generator, tmp_path / "g"))
    (cut / "ccdiff.json").unlink()
    newest = sorted((cut / "train" / "denoiser").glob("*.pt"))[-1]
    state = torch.load(newest, weights_only=True)
    name = next(iter(state["weights"]))
    if damage == "torn":
        newest.write_bytes(newest.read_bytes()[:-100])
    elif damage == "a list":
        torch.save([1], newest)
    else:
        if damage == "a tensor missing":
            del state["weights"][name]
        elif damage == "not a number":
            state["weights"][name].view(-1)[0] = float("nan")
        else:
            state["losses"] = state["losses"][1:]
        torch.save(state, newest)
    train(recipe, prepared, cut, cpu=True)
    assert files_of(cut) == files_of(generator)


def test_a_damaged_shard_of_features_is_made_again(recipe: Recipe, prepared: Path, generator: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copytree(generator, tmp_path / "g"))
    (cut / "ccdiff.json").unlink()
    shutil.rmtree(cut / "train" / "denoiser")
    for path in sorted((cut / "train" / "cache").rglob("*.npy")):
        path.write_bytes(path.read_bytes()[:90])
    train(recipe, prepared, cut, cpu=True)
    assert files_of(cut) == files_of(generator)


@pytest.mark.parametrize("damage", ["missing", "changed", "no description"])
def test_a_finished_generator_that_lost_a_file_is_made_whole(
    recipe: Recipe, prepared: Path, generator: Path, tmp_path: Path, damage: str
) -> None:
    cut = Path(shutil.copytree(generator, tmp_path / "g"))
    path = cut / "unet" / "diffusion_pytorch_model.safetensors" if damage != "no description" else cut / "ccdiff.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    train(recipe, prepared, cut, cpu=True)
    assert files_of(cut) == files_of(generator)


def test_another_set_in_the_same_unfinished_folder_is_refused(recipe: Recipe, prepared: Path, generator: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copytree(generator, tmp_path / "g"))
    (cut / "ccdiff.json").unlink()
    other = Path(shutil.copytree(prepared, tmp_path / "set"))
    text = (other / "annotations.json").read_text()
    (other / "annotations.json").write_text(text.replace('"difficult": 0', '"difficult": 1', 1))
    with pytest.raises(CCDiffError, match="another recipe or data set"):
        train(recipe, other, cut, cpu=True)
