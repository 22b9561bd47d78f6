"""What a recipe takes from elsewhere is whole and fits together, or is refused before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPVisionModel

from ccdiff_cli import sources
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.training import plan, run, train
from ccdiff_cli.training.denoiser import train_stage
from ccdiff_cli.training.sources import check_sources
from tests.bases import base, dinov2
from tests.foreign import tiny_clip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of every kind; tests change copies."""
    root = tmp_path_factory.mktemp("models")
    for version, name in (("1", "sd14"), ("2", "sd21"), ("inpainting", "inpainting"), ("xl", "sdxl")):
        base(root / name, version)
    dinov2(root / "dino")
    tiny_clip(root / "clip")
    return root


def values(models: Path, **changes: Any) -> dict[str, Any]:
    """Overrides of the published recipe; ``changes``: keys with ``__`` for the dot."""
    sd = str(models / "sd14")
    chosen = {
        "autoencoder.source": sd, "encoders.text_source": sd, "unet.source": sd, "encoders.image_source": str(models / "dino"),
        "retrieval": "words",
    }  # fmt: skip
    return chosen | {key.replace("__", "."): str(value) if isinstance(value, Path) else value for key, value in changes.items()}


def refused(models: Path, **changes: Any) -> str:
    with pytest.raises(CCDiffError) as caught:
        check_sources(load_recipe("ccdiffpp-sd14-dior", values(models, **changes)))
    return " ".join(str(caught.value).split())


@pytest.fixture
def sd(models: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(models / "sd14", tmp_path / "sd"))


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(weights_of(folder))
    edit(weights)
    save_file(weights, weights_of(folder), {"format": "pt"})


def test_what_fits_is_told_by_a_dry_run(models: Path, prepared: Path) -> None:
    changes = values(models, picture_size=32, caption_style="stored", retrieval=models / "clip")
    told = plan(load_recipe("ccdiffpp-sd14-dior", changes), prepared)
    assert told["vae"].startswith(f"AutoencoderKL of {models}/sd14/vae, ") and told["image_encoder"].startswith("Dinov2Model of")
    assert told["tokenizer"].endswith("sd14/tokenizer") and told["retrieval"].startswith("CLIPModel of")
    count = sum(p.numel() for p in UNet2DConditionModel.from_pretrained(models / "sd14" / "unet").parameters())
    assert told["unet"].endswith(f"{count / 1e6:,.1f} M numbers")


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"unet__source": "sdxl"}, ["recipe key unet.source: ", "sdxl/unet: the UNet of Stable Diffusion XL", "1.4, 1.5, 2.1"]),
        ({"unet__source": "inpainting"}, ["an inpainting UNet: it takes 9 channels, the autoencoder gives 4"]),
        ({"unet__source": "sd21"}, ["takes texts of width 48, the text encoder gives 32", "--base FOLDER"]),
        ({"encoders__text_source": "sd21"}, ["takes texts of width 32, the text encoder gives 48"]),
        ({"autoencoder__source": "sdxl"}, ["recipe key autoencoder.source", "the autoencoder of Stable Diffusion XL"]),
        ({"encoders__image_source": "clip"}, ["key encoders.image_source: ", "/clip: found clip, expected Dinov2Model", "facebook/dino"]),
        ({"encoders__image_source": "sd14"}, ["no config.json there; the folder holds model_index.json, scheduler/, text_encoder/"]),
        ({"encoders__text_source": "dino", "encoders__text_subfolder": None}, ["dino: found dinov2, expected CLIPTextModel"]),
        ({"unet__source": "sd14", "unet__subfolder": "vae"}, ["sd14/vae: found AutoencoderKL, expected UNet2DConditionModel"]),
        ({"unet__subfolder": "unett"}, ["sd14/unett: no config.json there; the folder holds"]),
        ({"retrieval": "dino"}, ["recipe key retrieval: ", "found dinov2, expected CLIPModel"]),
    ],
)  # fmt: skip
def test_what_does_not_fit(models: Path, changes: dict[str, Any], messages: list[str]) -> None:
    folders = {key: models / value if (models / str(value)).is_dir() else value for key, value in changes.items()}
    told = refused(models, **folders)
    assert all(message in told for message in messages), told


def test_velocities_are_not_trained_as_noise(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    two = {key: models / "sd21" for key in ("autoencoder__source", "encoders__text_source", "unet__source")}
    told = refused(models, **two)
    assert "the UNet predicts 'v_prediction'" in told and "set denoiser.prediction to v_prediction" in told
    assert check_sources(load_recipe("ccdiffpp-sd14-dior", values(models, **two, denoiser__prediction="v_prediction")))
    check_sources(load_recipe("ccdiffpp-sd14-dior", values(models, **two, unet__train_all=True)))
    assert "it has that to learn first" in caplog.text


@pytest.mark.parametrize("key", ["autoencoder.source", "encoders.text_source", "unet.source"])
def test_tensors_that_are_missing_surplus_or_of_another_shape(models: Path, sd: Path, key: str) -> None:
    part = {"autoencoder": "vae", "encoders": "text_encoder", "unet": "unet"}[key.split(".")[0]]
    names = sorted(name for name, value in load_file(weights_of(sd / part)).items() if value.dim() == 2)

    def edit(weights: dict[str, torch.Tensor]) -> None:
        for name in names[:3]:
            del weights[name]
        weights[names[4]] = torch.zeros(3)
        weights["another.weight"] = torch.zeros(3)

    change(sd / part, edit)
    told = refused(models, **{key.replace(".", "__"): sd})
    assert f"recipe key {key}: {sd}/{part}: the " in told
    assert f"3 missing, first {names[0]}; 1 surplus, first another.weight; 1 of another shape, first {names[4]} (3,) instead of (" in told


def test_an_image_encoder_that_lacks_tensors(models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "dino", tmp_path / "dino"))
    change(folder, lambda weights: weights.pop("layernorm.weight"))
    assert "1 missing, first layernorm.weight" in refused(models, encoders__image_source=folder)
    (folder / "preprocessor_config.json").unlink()
    change(folder, lambda weights: weights.update({"layernorm.weight": torch.ones(24)}))
    assert "no preprocessor_config.json or processor_config.json there; the folder holds" in refused(models, encoders__image_source=folder)


def test_whole_numbers_and_damaged_files(models: Path, sd: Path) -> None:
    change(sd / "vae", lambda weights: weights.update({"decoder.conv_in.weight": weights["decoder.conv_in.weight"].int()}))
    assert "1 no floats, first decoder.conv_in.weight" in refused(models, autoencoder__source=sd)
    path = weights_of(sd / "unet")
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{sd}/unet: not a whole safetensors file" in refused(models, unet__source=sd)
    (sd / "unet" / "config.json").write_text("{")
    assert f"recipe key unet.source: {sd}/unet: " in refused(models, unet__source=sd)


def test_a_missing_tokenizer_and_one_of_another_model(models: Path, sd: Path) -> None:
    config = json.loads((sd / "text_encoder" / "config.json").read_text())
    for name in ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id"):
        config[name] -= 5
    (sd / "text_encoder" / "config.json").write_text(json.dumps(config))
    change(sd / "text_encoder", lambda weights: weights.update({k: v[:-5].clone() for k, v in weights.items() if "token_embedding" in k}))
    assert "the tokenizer knows 514 pieces of words, the text encoder 509" in refused(models, encoders__text_source=sd)
    shutil.rmtree(sd / "tokenizer")
    told = refused(models, encoders__text_source=sd)
    assert (
        f"recipe key encoders.text_source: {sd}/tokenizer: no tokenizer.json or vocab.json and merges.txt there; the folder holds" in told
    )


def test_pickles_alone_are_not_opened(models: Path, sd: Path) -> None:
    for part in ("unet", "text_encoder"):
        path = weights_of(sd / part)
        path.rename(path.with_suffix(".bin"))
    assert "diffusion_pytorch_model.bin only, which could run programs" in refused(models, unet__source=sd)
    assert "model.bin only" in refused(models, encoders__text_source=sd)
    (sd / "unet" / "diffusion_pytorch_model.bin").unlink()
    assert "no diffusion_pytorch_model.safetensors there; unet/ holds config.json" in refused(models, unet__source=sd)


def test_variants(models: Path, sd: Path) -> None:
    def found(**changes: Any) -> str:
        return check_sources(load_recipe("ccdiffpp-sd14-dior", values(models, unet__source=sd, **changes)))["unet"].line()

    path = weights_of(sd / "unet")
    half = path.with_name("diffusion_pytorch_model.fp16.safetensors")
    save_file({key: value.half() for key, value in load_file(path).items()}, half, {"format": "pt"})
    assert ", variant" not in found() and found(unet__variant="fp16").endswith("variant fp16")
    path.unlink()
    assert found().endswith("variant fp16")  # the only ones there, and said
    shutil.copy(half, path.with_name("diffusion_pytorch_model.ema.safetensors"))
    assert "no weights without a variant there, but ema, fp16" in (told := refused(models, unet__source=sd))
    assert "set unet.variant to one of them" in told and found(unet__variant="ema").endswith("variant ema")
    assert "no weights of the variant 'bf16' there" in refused(models, unet__source=sd, unet__variant="bf16")


def test_weights_in_parts(models: Path, sd: Path) -> None:
    made = UNet2DConditionModel.from_pretrained(sd / "unet")
    shutil.rmtree(sd / "unet")
    made.save_pretrained(sd / "unet", max_shard_size="100KB")
    assert check_sources(load_recipe("ccdiffpp-sd14-dior", values(models, unet__source=sd)))["unet"].parameters == made.num_parameters()
    parts = sorted((sd / "unet").glob("*.safetensors"))
    assert len(parts) > 2
    parts[1].unlink()
    assert f"1 of {len(parts)} parts of its weights are missing, first {parts[1].name}" in refused(models, unet__source=sd)


def test_forms_that_files_had_before(models: Path, sd: Path) -> None:
    """Stable Diffusion 1.4 as it was published: attention of the autoencoder, and positions among the weights of the text encoder."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".attentions.0." in name]:
            for new, earlier in old.items():
                if f".{new}." in name:
                    weights[name.replace(f".{new}.", f".{earlier}.")] = weights.pop(name)

    before = check_sources(load_recipe("ccdiffpp-sd14-dior", values(models, autoencoder__source=sd)))["vae"].load().state_dict()
    change(sd / "vae", rename)
    assert any(".query." in name for name in load_file(weights_of(sd / "vae")))
    change(sd / "text_encoder", lambda weights: weights.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))
    found = check_sources(load_recipe("ccdiffpp-sd14-dior", values(models, autoencoder__source=sd, encoders__text_source=sd)))
    after = found["vae"].load().state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_whole_clip_gives_its_text_encoder_and_its_eyes_give_none(models: Path, tmp_path: Path) -> None:
    clip = {"encoders__text_source": models / "clip", "encoders__text_subfolder": None}
    found = check_sources(load_recipe("ccdiffpp-sd14-dior", values(models, **clip)))["text_encoder"]
    loaded, whole = found.load().state_dict(), CLIPModel.from_pretrained(models / "clip").text_model.state_dict()
    assert all(torch.equal(value, loaded[name.removeprefix("text_model.")]) for name, value in whole.items())
    CLIPVisionModel.from_pretrained(models / "clip").save_pretrained(tmp_path / "eyes")
    assert "found clip_vision_model, expected Dinov2Model" in refused(models, encoders__image_source=tmp_path / "eyes")


def test_other_methods_name_a_clip_of_their_own(models: Path) -> None:
    sd = str(models / "sd14")
    chosen = {"autoencoder.source": sd, "encoders.text_source": sd, "unet.source": sd, "aerogen.class_source": str(models / "clip")}
    assert "aerogen.class_source" in check_sources(load_recipe("aerogen-sd15-dior", chosen))
    with pytest.raises(CCDiffError, match=r"recipe key aerogen\.class_source: .*dino: found dinov2, expected CLIPTextModelWithProjection"):
        check_sources(load_recipe("aerogen-sd15-dior", chosen | {"aerogen.class_source": str(models / "dino")}))


def test_names_that_are_neither_folders_nor_of_the_hub(models: Path) -> None:
    for name in ("sd21", "/nowhere/sd14", f"{models}/none", "a/b/c", "../x", "owner/na me"):
        told = refused(models, unet__source=name)
        assert "recipe key unet.source: no such folder, and not a hub name (OWNER/NAME)" in told and name in told


SMALL = {
    "resampler.width": 16, "resampler.depth": 1, "resampler.head_width": 8, "resampler.heads": 2, "resampler.queries": 2,
    "resampler.ff_mult": 2, "conditioning.point_width": 16, "denoiser.train.steps": 1, "denoiser.train.batch_size": 2,
    "denoiser.train.accumulation": 1, "sampling.steps": 1, "sampling.precision": "float32", "picture_size": 32, "retrieval": "words",
}  # fmt: skip


@pytest.mark.parametrize(("name", "half", "rank"), [("sd14", False, 0), ("sd21", True, 0), ("sd14", False, 2)])
def test_generators_of_both_versions_train(
    models: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, half: bool, rank: int
) -> None:
    """Stable Diffusion 1 and 2 in one key; 2 in the half precision of an fp16 folder, predicting velocities; 1 with adapters."""
    if rank:
        pytest.importorskip("peft")
    folder = Path(shutil.copytree(models / name, tmp_path / "sd"))
    if half:
        for part in ("unet", "vae", "text_encoder"):
            path = weights_of(folder / part)
            save_file({k: v.half() for k, v in load_file(path).items()}, path.with_suffix(".fp16.safetensors"), {"format": "pt"})
            path.unlink()
    changes = {**SMALL, "encoders.image_source": str(models / "dino")} | ({"denoiser.prediction": "v_prediction"} if half else {})
    changes |= {"unet.lora": rank, "denoiser.train.learning_rate": 0.1}
    recipe = load_recipe("ccdiffpp-sd14-dior", changes, base=str(folder))
    lines, resting = list[str](), list[bool]()

    def spied(work: Any, pipe: Any, *given: Any, **more: Any) -> Any:
        resting.append(pipe.text_encoder is None and pipe.image_encoder is None)
        return train_stage(work, pipe, *given, **more)

    monkeypatch.setattr(run, "train_stage", spied)
    made = train(recipe, prepared, tmp_path / "g", say=lines.append, cpu=True)
    assert lines[0].startswith("1 process on cpu; denoiser: 1 steps of 2 pictures, 2 in all") and made["steps"] == 1
    assert "a checkpoint on disk takes" in lines[1]
    assert resting == [True] and list((tmp_path / "g" / "train" / "samples").iterdir())  # the encoders came back to draw, and to be saved
    own = load_file(tmp_path / "g" / "unet" / "diffusion_pytorch_model.safetensors")
    given = load_file(weights_of(folder / "unet"))
    changed = {key for key, value in given.items() if not torch.equal(own[key], value.half())}  # the others are frozen
    laid = {key for key in given if key.split(".")[-2] in ("to_q", "to_k", "to_v")} if rank else set()
    assert changed <= laid and len(changed) >= len(laid) / 2  # of a map of one cell queries and keys have no gradient


HUB = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

root, asked = Path(sys.argv[1]), []


class Hub(BaseHTTPRequestHandler):
    def log_message(self, *told):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        parts = self.path.strip("/").split("/")
        asked.append((self.command, self.path, self.headers.get("range")))
        gated = "gated" in self.path and self.headers.get("authorization") != "Bearer hf_secret"
        if self.path == "/":
            return self.send(200, b"")
        if gated:
            return self.send(403, b"", {"X-Error-Code": "GatedRepo"})
        if parts[:2] == ["api", "models"]:
            repo, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
            if not (root / repo).is_dir():
                return self.send(401, b"", {"X-Error-Code": "RepoNotFound"})
            if revision not in ("main", "v1", "c0ffee"):
                return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            files = [{"rfilename": p.relative_to(root / repo).as_posix()} for p in sorted((root / repo).rglob("*")) if p.is_file()]
            return self.send(200, json.dumps({"id": repo, "sha": "c0ffee", "siblings": files}).encode() if body else b"")
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])
        path = root / repo / name
        if len(parts) < 4 or parts[2] != "resolve" or not path.is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = path.read_bytes()
        more = {"ETag": f'"{len(data)}-{name}"', "X-Repo-Commit": "c0ffee"}
        if self.headers.get("range"):
            first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
            return self.send(206, data[int(first) : int(last or len(data)) + 1], more)
        self.send(200, data, more, body)

    def send(self, code, data, more=None, body=True):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(data)


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
import os
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": sys.argv[2], "HF_HUB_DISABLE_XET": "1"}

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.sources import _unreachable
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.training.sources import check_sources


def told(base, **more):
    names = {key: base for key in ("autoencoder.source", "encoders.text_source", "unet.source")}
    asked.clear()
    try:
        return check_sources(load_recipe("ccdiffpp-sd14-dior", names | {"encoders.image_source": "meta/dino", "retrieval": "words"} | more))
    except CCDiffError as error:
        return " ".join(str(error).split())


found = told("owner/sd14@v1")
weights = [path for command, path, part in asked if path.endswith(".safetensors")]
assert weights and all(part for command, path, part in asked if path.endswith(".safetensors")), asked  # headers alone
assert all("/v1/" in path or "meta/" in path for path in weights), weights
before = {name: part.load() for name, part in found.items()}
assert any(path.endswith("unet/diffusion_pytorch_model.safetensors") and not part for command, path, part in asked), asked
print(told("owner/none"))
print(told("owner/sd14@v7"))
print(told("owner/gated"))
os.environ["HF_TOKEN"] = "hf_secret"
assert not isinstance(told("owner/gated"), str)
server.shutdown()
server.server_close()
_unreachable.cache_clear()
again = told("owner/sd14@v1")
assert not isinstance(again, str), again
after = again["unet"].load().state_dict()
assert all((after[name] == value).all() for name, value in before["unet"].state_dict().items())
print(told("owner/sdxl"))
"""


@pytest.mark.slow
def test_names_of_the_hub(models: Path, tmp_path: Path) -> None:
    """A hub of our own: headers before weights, a revision, a gated name with and without a token, and no hub at all."""
    for source, name in (("sd14", "owner/sd14"), ("sd14", "owner/gated"), ("dino", "meta/dino"), ("sdxl", "owner/sdxl")):
        shutil.copytree(models / source, tmp_path / "hub" / name)
    (tmp_path / "hub.py").write_text(HUB)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = [sys.executable, str(tmp_path / "hub.py"), str(tmp_path / "hub"), str(tmp_path / "home")]
    done = subprocess.run(
        run, env=environment | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    none, revision, gated, away = done.stdout.splitlines()
    assert none.startswith("recipe key autoencoder.source: 'owner/none' is not on the hub, or private") and "HF_TOKEN" in none
    assert "'owner/sd14' has no revision 'v7'" in revision
    assert "'owner/gated' wants its terms accepted first" in gated
    assert "'owner/sdxl' is no folder here, and the hub cannot be reached" in away


def test_without_a_hub_the_message_comes_at_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_unreachable", lambda endpoint: "no route")
    start = time.monotonic()
    told = refused(models, unet__source="owner/sd14", autoencoder__source="owner/sd14")
    assert "recipe key autoencoder.source: 'owner/sd14' is no folder here, and the hub cannot be reached (no route)" in told
    assert time.monotonic() - start < 60  # a hub that is asked is waited for for minutes
