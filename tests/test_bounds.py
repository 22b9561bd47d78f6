"""What a run may take: estimates, and refusals that name the number to change before anything is made."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ccdiff_cli import bounds
from ccdiff_cli.bounds import amount, check_crowded, check_disk, check_memory, free_memory
from ccdiff_cli.cli import app, main
from ccdiff_cli.drawn import CLASSES, draw_dataset
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.scene import Instance, Scene
from ccdiff_cli.training.costs import memory_of_training

TINY = Path(__file__).parents[1] / "ccdiff_cli" / "weights" / "tiny"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (123e6, "123 MB"), (3.14e9, "3.1 GB"), (2.5e12, "2.5 TB")]
)
def test_amounts(count: float, text: str) -> None:
    assert amount(count) == text
    assert amount(1e30).endswith("PB")


def test_memory_and_disk_are_held_against_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_memory()
    assert free is None or 0 < free < 1 << 50
    monkeypatch.setattr(bounds, "free_memory", lambda: 10e9)
    check_memory(12e9, "a step", fix="-")  # estimates may be wrong by a third
    with pytest.raises(CCDiffError, match=r"a step takes about 20\.0 GB of memory; 10\.0 GB are free"):
        check_memory(20e9, "a step", fix="-")
    check_disk(tmp_path / "not" / "there", 1000, "a set", fix="-")
    with pytest.raises(CCDiffError, match="of disk"):
        check_disk(tmp_path / "not" / "there", 1e20, "a set", fix="-")


def test_a_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 20, 1 << 20))
    assert free_memory() == 0


def scene_of(count: int) -> Scene:
    return Scene("p.png", 64, 64, (Instance.from_hbb("ship", (1, 1, 9, 9)),) * count)


def test_crowded_pictures_are_refused_with_the_cure() -> None:
    check_crowded([scene_of(2_500)], where="set")
    with pytest.raises(CCDiffError, match=r"p\.png has 20,001 objects.*\n  fix: .*--tile"):
        check_crowded([scene_of(20_001)], where="set")


def test_memory_of_a_training_follows_batch_objects_and_precision() -> None:
    def need(objects: int, **changes: Any) -> dict[str, Any]:
        return memory_of_training(load_recipe("tiny", {k.replace("__", "."): v for k, v in changes.items()}), [scene_of(objects)] * 64)

    small, crowded = need(2), need(2_500)
    # measured: 3.0 GB with 2,500 objects a picture (docs/results.md)
    assert 2.2e9 < crowded["all"] < 4.5e9 and crowded["crowd"] == 4_000
    assert small["crowd"] == 32 and small["all"] < 2e9
    assert need(2_500, denoiser__objects_at_once=40_000)["all"] > 12e9  # what the pieces save
    assert need(2, denoiser__train__batch_size=32)["pictures"] == pytest.approx(2 * small["pictures"])
    assert need(2, denoiser__train__precision="bfloat16")["pictures"] == pytest.approx(small["pictures"] / 2)
    assert memory_of_training(load_recipe("ccdiffpp-sd14-dior"), [scene_of(2)]) == {}  # its parts are on a hub


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bounds")
    drawn = draw_dataset(root / "drawn", pictures=12, size=128)
    prepare_dataset(drawn, root / "set", PrepareOptions(size=128, classes=drawn / CLASSES))
    return root / "set"


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--part", "0/4"], ["--format", "jpeg"]])
def test_more_pictures_than_memory_holds_are_refused_before_the_first_is_planned(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    out = tmp_path / "out"
    said = refusal(
        ["synthesize", "--n", "10000000000000", "--checkpoint", str(TINY), "--layouts", str(prepared), "--out", str(out), *more], capsys
    )
    assert "--n" in said and " of disk; " in said and not out.exists()
    many = ["--n", "10000000000000", "--shard-size", "1000000"]
    said = refusal(["synthesize", *many, "-c", str(TINY), "-l", str(prepared), "-o", str(out), *more], capsys)
    assert "--n" in said and not out.exists()


def test_other_numbers_without_bound(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ask for fewer layouts" in refusal(["layout", str(prepared), "--n", "10000000000000", "--out", str(tmp_path / "l")], capsys)
    said = refusal(
        ["train", "--data", str(prepared), "--out", str(tmp_path / "g"), "--dry-run", "--set", "denoiser.train.batch_size=60000"], capsys
    )
    assert "lower denoiser.train.batch_size" in said and "fit" in said
    assert not (tmp_path / "g").exists()


def test_the_plan_of_a_training_names_its_memory(prepared: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", "--data", str(prepared), "--out", str(tmp_path / "g"), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    assert "a process" in json.loads(done.output)["memory"]


# ------------------------------------------------------------------------------------------------------------- options and keys

ODD = ("-1", "1" + "0" * 20, "9" * 5000, "nan", "inf", "-inf", "1e400", "x" * 100_000, "")
SETS = ["--real", "no", "--synthetic", "no", "--out", "o"]
NUMBERS = {
    "prepare": (["no", "--out", "o"], ("--tile", "--overlap", "--size", "--keep-share", "--difficult-share", "--processes")),
    "misses": (["--real", "no", "--out", "o"], ("--folds", "--seed", "--processes")),
    "layout": (["no"], ("--n", "--seed")),
    "synthesize": (
        ["--n", "2", "-c", "tiny", "-l", "no", "--out", "o"],
        (
            "--n", "--filter-recall", "--filter-retries", "--steps", "--guidance-scale", "--top-k", "--val-share", "--batch-size",
            "--num-processes", "--ray", "--seed", "--part", "--shard-size",
        ),
    ),
    "evaluate": (SETS, ("--bootstrap", "--batch-size")),
    "eval-trainability": (SETS, ("--processes", "--fractions", "--seeds", "--arm=synthetic")),
    "inspect": (["no"], ("--samples",)),
    "merge-tiles": (["no", "--data", "no", "--out", "o"], ("--iou",)),
    "repair": (["no", "--real", "no", "--out", "o"], ("--precision", "--recall")),
    "export": (["no", "--format", "coco", "--out", "o"], ("--quality",)),
}  # fmt: skip


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb, (_, options) in NUMBERS.items() for option in options])
def test_numbers_that_are_none_name_their_option(verb: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ODD:
        said = refusal([verb, *NUMBERS[verb][0], f"{option}={value}"], capsys)
        named = option.partition("=")[0]
        assert said.startswith("error: ") and len(said) < 8000, said[:300]
        assert named in said or f"{named.lstrip('-')}" in said, (value[:20], said[:300])


@pytest.mark.parametrize("value", [-1, 10**16, 10**5000 // 10**4800, float("nan"), float("inf"), "x" * 100_000, [], {}])
def test_keys_that_are_none_name_themselves(value: Any) -> None:
    from ccdiff_cli.detectors import DetectorConfig
    from ccdiff_cli.trainability.config import load_experiment

    for key in ("steps", "batch_size", "learning_rate", "checkpoint_every", "weight_decay", "accumulation"):
        with pytest.raises(CCDiffError, match=f"denoiser.train.{key}: "):
            load_recipe("tiny", {f"denoiser.train.{key}": value})
    for key in ("picture_size", "seed", "resampler.width", "unet.heads", "sampling.steps", "sampling.guidance_scale", "encoders.max_words"):
        with pytest.raises(CCDiffError, match=f"{key}: "):
            load_recipe("tiny", {key: value})
    for key in ("steps", "batch", "lr", "workers", "input_size", "anchor_ratios", "anchor_sizes", "proposals"):
        if value == [] and key.startswith("anchor"):
            continue
        with pytest.raises(CCDiffError, match=f"{key}"):
            load_experiment(None, {f"detector.{key}": [value] * 4 if key.startswith("anchor") else value})
    for key in ("fractions", "seeds", "samples", "draw", "epochs"):
        with pytest.raises(CCDiffError, match=f"{key}"):
            load_experiment(None, {key: value})
    assert DetectorConfig().steps == 500


def test_every_number_of_a_recipe_has_bounds() -> None:
    """Both sides: what has none goes on until memory, or the reader's patience, ends."""
    from annotated_types import Ge, Gt, Le, Lt
    from pydantic import BaseModel

    from ccdiff_cli.detectors import DetectorConfig
    from ccdiff_cli.methods import METHODS

    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(field.annotation)
            elif field.annotation in (int, float):
                kinds = {type(m) for m in field.metadata}
                assert kinds & {Ge, Gt} and kinds & {Le, Lt}, f"{model.__name__}.{name}"

    for method in METHODS.values():
        check(method.recipe)
    check(DetectorConfig)


@pytest.mark.parametrize("device", ["/dev/zero", "pipe"])
def test_captions_that_are_no_file_are_refused_at_once(tmp_path, device):
    from ccdiff_cli.layouts.llm import writer_of

    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(CCDiffError, match="not a plain file"):
        writer_of(None, "model", device if device.startswith("/") else path)


def test_a_batch_that_cannot_be_normalised_is_refused():
    from ccdiff_cli.detectors import DetectorConfig

    with pytest.raises(ValueError, match="input_size"):
        DetectorConfig(input_size=32, batch=1)
    assert DetectorConfig(input_size=32, batch=2).batch == 2
