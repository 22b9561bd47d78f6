"""What goes wrong at a user's place, through the command line: one clear message, exit code 2, nothing half written."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import ENVIRONMENT, RECIPE, SIZE, Run, assert_one_clear_message, files_under


@pytest.fixture
def raw(tmp_path: Path, drawn: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "raw"))


def prepare(inline: Run, raw: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return inline("prepare", raw, "--size", SIZE, "--classes", raw / "classes.txt", "--out", out, *more)


# ---- recipes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [unclosed", ("not valid YAML", ":1:")),
        ("just words", ("a recipe is a mapping",)),
        (
            "name: x\npicture_size: 64\nautoencoder: {train: {steps: 0, batch_size: 1}}\n",
            ("autoencoder.train", "give either `steps` or `epochs`, above 0"),
        ),
        (yaml.safe_dump({**RECIPE, "learning_rte": 1}), ("learning_rte", "unknown key", "known keys")),
    ],
    ids=["not YAML", "not a mapping", "value out of range", "unknown key"],
)
def test_a_malformed_recipe(inline: Run, prepared: Path, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(text, encoding="utf-8")
    done = inline("train", "--recipe", recipe, "--data", prepared, "--out", tmp_path / "generator")
    assert_one_clear_message(done, str(recipe), *words)
    assert not (tmp_path / "generator").exists()


def test_an_unknown_recipe_and_a_wrong_override(inline: Run, prepared: Path, recipe: Path, tmp_path: Path) -> None:
    done = inline("train", "--recipe", "enormous", "--data", prepared, "--out", tmp_path / "generator")
    assert_one_clear_message(done, "enormous", "known recipes")
    done = inline("train", "--recipe", recipe, "--data", prepared, "--out", tmp_path / "generator", "--set", "denoiser.train.steps=many")
    assert_one_clear_message(done, "denoiser.train.steps", "many")
    assert not (tmp_path / "generator").exists()


# ---- raw data


def test_a_missing_picture(inline: Run, raw: Path, tmp_path: Path) -> None:
    (raw / "JPEGImages-trainval/00002.jpg").unlink()
    assert_one_clear_message(prepare(inline, raw, tmp_path / "strict", "--strict"), "00002", "missing")
    assert not (tmp_path / "strict").exists()
    done = prepare(inline, raw, tmp_path / "out")
    assert done.returncode == 0 and "left out: pictures that are missing: 1" in done.stdout and "00002.xml" in done.stdout, done.stdout


@pytest.mark.parametrize("folder", ["Horizontal Bounding Boxes", "Oriented Bounding Boxes"])
def test_a_truncated_xml(inline: Run, raw: Path, tmp_path: Path, folder: str) -> None:
    path = raw / "Annotations" / folder / "00003.xml"
    path.write_bytes(path.read_bytes()[:-40])
    assert_one_clear_message(prepare(inline, raw, tmp_path / "strict", "--strict"), str(path), "not valid XML")
    assert not (tmp_path / "strict").exists()
    done = prepare(inline, raw, tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    (reason,) = [what for what in said["skipped"] if "not valid XML" in what]
    assert said["pictures"] == 23 and str(path) in said["places"][reason][0]["where"]


def test_an_xml_that_declares_entities(inline: Run, raw: Path, tmp_path: Path) -> None:
    path = raw / "Annotations/Horizontal Bounding Boxes/00003.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>', encoding="utf-8")
    assert_one_clear_message(prepare(inline, raw, tmp_path / "out"), str(path))


def test_an_unknown_class(inline: Run, raw: Path, tmp_path: Path) -> None:
    for path in sorted((raw / "Annotations").rglob("00001.xml")):
        path.write_text(path.read_text(encoding="utf-8").replace("airplane", "flying saucer"), encoding="utf-8")
    assert_one_clear_message(prepare(inline, raw, tmp_path / "out"), "flying saucer", "unknown class", "airplane")
    assert not (tmp_path / "out").exists()


def test_an_empty_set(inline: Run, raw: Path, tmp_path: Path) -> None:
    for path in sorted((raw / "Annotations").rglob("*.xml")):
        path.unlink()
    assert_one_clear_message(prepare(inline, raw, tmp_path / "out"), str(raw))
    assert not (tmp_path / "out").exists()
    (tmp_path / "nothing").mkdir()
    assert_one_clear_message(inline("prepare", tmp_path / "nothing", "--out", tmp_path / "out"), "nothing")


def test_a_picture_that_does_not_decode_is_counted_or_with_strict_refused(inline: Run, raw: Path, tmp_path: Path) -> None:
    path = raw / "JPEGImages-trainval/00002.jpg"
    path.write_bytes(path.read_bytes()[:200])
    assert_one_clear_message(prepare(inline, raw, tmp_path / "strict", "--strict"), "00002")
    assert not (tmp_path / "strict" / "manifest.json").exists()
    done = prepare(inline, raw, tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert "00002" in (tmp_path / "out/manifest.json").read_text(encoding="utf-8")
    assert json.loads(done.stdout)["pictures"] == 23


def test_a_name_that_leaves_its_folder(inline: Run, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes((raw / "JPEGImages-trainval/00001.jpg").read_bytes())
    coco = {
        "images": [{"id": 1, "file_name": "../secret.jpg", "width": SIZE, "height": SIZE}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "ship"}],
    }
    folder = tmp_path / "coco"
    folder.mkdir()
    (folder / "instances.json").write_text(json.dumps(coco), encoding="utf-8")
    assert_one_clear_message(inline("prepare", folder, "--format", "coco", "--out", tmp_path / "out"), "../secret.jpg")
    assert not (tmp_path / "out").exists()


# ---- what later verbs are given


def test_folders_that_are_not_what_is_asked_for(inline: Run, prepared: Path, recipe: Path, tmp_path: Path) -> None:
    nowhere, out = tmp_path / "nowhere", tmp_path / "out"
    for arguments in (
        ("train", "--recipe", recipe, "--data", nowhere, "--out", out),
        ("synthesize", "--n", 2, "--checkpoint", nowhere, "--layouts", prepared, "--out", out),
        ("synthesize", "--n", 2, "--checkpoint", prepared, "--layouts", prepared, "--out", out),
        ("export", nowhere, "--format", "coco", "--out", out),
        ("export", prepared, "--format", "cocoa", "--out", out),
        ("eval-trainability", "--real", prepared, "--synthetic", nowhere, "--out", out),
        ("verify", nowhere),
    ):
        assert_one_clear_message(
            inline(*arguments), *([] if "cocoa" in arguments else ["nowhere" if nowhere in arguments else prepared.name])
        )
        assert not out.exists(), arguments


def test_a_set_with_a_picture_missing(inline: Run, prepared: Path, recipe: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(prepared, tmp_path / "broken"))
    gone = sorted((broken / "images").iterdir())[0]
    gone.unlink()
    done = inline("train", "--recipe", recipe, "--data", broken, "--out", tmp_path / "generator")
    assert_one_clear_message(done, gone.name, "missing")
    assert not (tmp_path / "generator").exists()


def test_the_error_as_json(inline: Run, tmp_path: Path) -> None:
    done = inline("verify", tmp_path / "nowhere", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["where"].endswith("nowhere")


# ---- a full disk

SCRIPT = """
mount -t tmpfs -o size={small} tmpfs {disk} || exit 77
{command}
echo "first: $?" >&2
find {disk} -name '.partial-*' >&2
mount -o remount,size=200m {disk} || exit 77
{command}
echo "second: $?" >&2
cp -r {disk}/out {copy}
"""


def on_a_small_disk(tmp_path: Path, small: str, *arguments: object) -> tuple[str, Path]:
    """Run a command with ``--out`` on a disk that is too small, enlarge it, run the same command again.

    Returns what both said, and a copy of the folder.  The disk is a tmpfs in a mount namespace of its own: it needs no rights.
    """
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    command = shlex.join([sys.executable, "-m", "ccdiff_cli", *map(str, arguments), "--out", str(disk / "out")])
    script = SCRIPT.format(small=small, disk=shlex.quote(str(disk)), copy=shlex.quote(str(copy)), command=command)
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr.split("error:")[0]:
        pytest.skip(f"this machine gives no small disk: {done.stderr[-200:]}")
    return done.stderr, copy


def assert_refused_then_finished(said: str) -> None:
    first, second = said.split("first: ")
    assert "No space left on device" in first and first.count("error: ") == 1 and "Traceback" not in said, said
    assert second.startswith("2\n") and ".partial-" not in second, said
    assert said.rstrip().endswith("second: 0"), said


needs_small_disk = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("unshare") is None, reason="needs Linux with unshare"
)


@needs_small_disk
def test_a_full_disk_while_preparing(drawn: Path, prepared: Path, tmp_path: Path) -> None:
    said, copy = on_a_small_disk(tmp_path, "160k", "prepare", drawn, "--size", SIZE, "--classes", drawn / "classes.txt")
    assert_refused_then_finished(said)
    assert files_under(copy) == files_under(prepared)  # as if nothing had happened


@needs_small_disk
@pytest.mark.slow
def test_a_full_disk_while_training(prepared: Path, recipe: Path, generator: Path, tmp_path: Path) -> None:
    said, copy = on_a_small_disk(tmp_path, "900k", "train", "--recipe", recipe, "--data", prepared, "--cpu")
    assert_refused_then_finished(said)
    for part in ("unet", "vae", "text_encoder", "image_encoder", "resampler"):
        assert files_under(copy / part) == files_under(generator / part)


@needs_small_disk
@pytest.mark.slow
def test_a_full_disk_while_synthesizing(ccdiff: Run, prepared: Path, generator: Path, tmp_path: Path) -> None:
    order = ("synthesize", "--n", 8, "--checkpoint", generator, "--layouts", prepared, "--batch-size", 2)
    said, copy = on_a_small_disk(tmp_path, "56k", *order)
    assert_refused_then_finished(said)
    done = ccdiff(*order, "--out", tmp_path / "straight")
    assert done.returncode == 0, done.stderr
    assert files_under(copy) == files_under(tmp_path / "straight")


@needs_small_disk
def test_a_full_disk_while_exporting_and_evaluating(prepared: Path, synthetic: Path, detector: Path, tmp_path: Path) -> None:
    for number, order in enumerate(
        (
            ("export", prepared, "--format", "yolo-obb"),
            ("eval-trainability", "--real", prepared, "--synthetic", synthetic, "--seeds", "0", "--detector", detector),
        )
    ):
        (tmp_path / str(number)).mkdir()
        said, _ = on_a_small_disk(tmp_path / str(number), "60k", *order)
        assert_refused_then_finished(said)


def test_the_recipe_of_these_tests_is_a_good_one(inline: Run, prepared: Path, recipe: Path, tmp_path: Path) -> None:
    """Else the tests above would see errors for another reason than the one they name."""
    done = inline("train", "--recipe", recipe, "--data", prepared, "--out", tmp_path / "out", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recipe"] == RECIPE["name"]
    assert not (tmp_path / "out").exists()
