"""DiffusionSat as a method: quantities enter and are dropped, what is trained, released folders there and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import write_json
from ccdiff_cli.generator import read_generator
from ccdiff_cli.methods import METHODS, Base, export_checkpoint, import_checkpoint, load_pipeline, method_of
from ccdiff_cli.methods.diffusionsat.network import scale_metadata
from ccdiff_cli.methods.diffusionsat.pipeline import DiffusionSatPipeline
from ccdiff_cli.methods.loss import DenoiserLoss
from ccdiff_cli.prepare.captions import caption_of
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.scene import Instance, Scene
from tests.models.small import TEXT, make_text_encoder, make_tokenizer, make_vae

METHOD, SIDE = METHODS["diffusionsat"], 64
KNOWN = {"gsd": 0.5, "metadata": {"longitude": 11.5, "latitude": 48.0, "year": 2014, "month": 5}}


@pytest.fixture
def pipe() -> DiffusionSatPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, cross_attention_dim=TEXT, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    parts = METHOD.build(Base(load_recipe("diffusionsat-tiny"), ("ship",), (), 8, 4, TEXT, 0, {"unet": unet}))
    made = DiffusionSatPipeline(
        vae=make_vae().eval(), text_encoder=make_text_encoder().eval(), tokenizer=make_tokenizer(),
        scheduler=DDIMScheduler(prediction_type="v_prediction"), num_inference_steps=3, guidance_scale=2.0, **parts,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    made.unet.eval()
    return made


def scene(provenance: dict) -> Scene:
    return Scene("a.png", SIDE, SIDE, caption="two ship", provenance=provenance)


def drawn(pipe: DiffusionSatPipeline, *provenances: dict, **options) -> np.ndarray:
    generators = [torch.Generator().manual_seed(5) for _ in provenances]
    return pipe([scene(p) for p in provenances], generator=generators, output_type="np", **options).images


def test_what_is_known_of_a_picture_changes_it_and_unknown_is_zero(pipe: DiffusionSatPipeline) -> None:
    row = pipe.metadata_of([scene(KNOWN), scene({})])
    assert row.shape == (2, 7) and row.dtype == torch.float64 and row[0, 2] == 0.5 and row[1].isnan().all()
    assert scale_metadata(row)[1].tolist() == [0] * 7 and scale_metadata(row)[0, 2] == 500
    known, unknown = drawn(pipe, KNOWN)[0], drawn(pipe, {})[0]
    assert not np.allclose(known, unknown, atol=1e-4)
    together = drawn(pipe, KNOWN, {})
    assert np.allclose(together[0], known, atol=1e-4) and np.allclose(together[1], unknown, atol=1e-4)


def test_the_unconditional_branch_knows_neither_caption_nor_quantities(pipe: DiffusionSatPipeline) -> None:
    layout = pipe.layout_batch([scene(KNOWN), scene(KNOWN)])
    empty = pipe.encode_text([""])[0]
    text, labels = pipe.condition(layout, empty, guided=True)
    _, nothing = pipe.condition(pipe.layout_batch([scene({})]), empty)
    assert torch.equal(text[:2], empty.expand(2, -1, -1)) and torch.equal(text[2:], layout.caption_tokens)
    assert torch.allclose(labels[:2], nothing.expand(2, -1), atol=1e-5) and not torch.allclose(labels[2:], nothing.expand(2, -1))
    text, labels = pipe.condition(layout, empty, dropped=torch.tensor([True, False]))
    assert torch.equal(text[0], empty[0]) and torch.allclose(labels[0], nothing[0], atol=1e-5) and not torch.allclose(labels[1], nothing[0])


def test_quantities_are_dropped_one_by_one_and_alike_in_any_pieces(pipe: DiffusionSatPipeline) -> None:
    recipe = load_recipe("diffusionsat-tiny", {"denoiser.object_weight": 1.0})
    boxed = scene(KNOWN).replace(instances=(Instance.from_hbb("ship", (4, 4, 20, 20)),))
    layout, count = pipe.layout_batch([boxed] * 40), 40
    batch = {
        "latents": torch.randn(count, 4, 8, 8), "layout": layout, "dropped": torch.zeros(count, dtype=torch.bool),
        "empty_tokens": pipe.encode_text([""])[0],
    }  # fmt: skip

    def metadata(share: float, most: int) -> torch.Tensor:
        pipe.register_to_config(metadata_dropout=share)
        loss = METHOD.stages[0].loss(pipe, recipe)
        loss.objects_at_once = most
        torch.manual_seed(2)
        return torch.cat([piece["layout"].metadata for _, piece in loss.parts(batch)])

    known = ~layout.metadata[0].isnan()
    assert known.sum() == 5 and torch.equal(metadata(0.0, 4000)[:, known], layout.metadata[:, known])
    assert metadata(1.0, 4000).isnan().all()
    whole, pieces = metadata(0.3, 4000), metadata(0.3, 3)
    assert torch.equal(whole.nan_to_num(-1), pieces.nan_to_num(-1))
    gone = whole[:, known].isnan()
    assert gone.float().mean(0).tolist() == pytest.approx([0.3] * 5, abs=0.25), "each by itself"
    assert len({tuple(row) for row in gone.tolist()}) > 10


@pytest.mark.parametrize(("published", "expected"), [(True, [0.5, 1.0]), (False, [5 / 11, 0.5])])
def test_the_weight_of_a_step_as_published_or_as_is_right_for_velocities(
    pipe: DiffusionSatPipeline, published: bool, expected: list[float]
) -> None:
    loss = METHOD.stages[0].loss(pipe, load_recipe("diffusionsat-tiny", {"diffusionsat.published_weight": published}))
    assert loss.snr_weight(torch.tensor([10.0, 1.0])).tolist() == pytest.approx(expected)


def test_a_released_generator_is_given_captions_that_it_knows() -> None:
    boxes = [("ship", (2, 2, 8, 8)), ("ship", (9, 9, 20, 20)), ("harbor", (4, 4, 9, 9)), ("plane", (40, 40, 50, 50))]
    found = Scene("a.png", SIDE, SIDE, tuple(Instance.from_hbb(name, box) for name, box in boxes))
    assert caption_of(found, style="quadrants") == "a satellite image of 1 harbor, 2 ships in the top left, 1 plane in the bottom right"


@pytest.mark.parametrize("whole", [True, False])
def test_gradients_reach_what_is_trained_and_nothing_else(pipe: DiffusionSatPipeline, whole: bool) -> None:
    recipe = load_recipe("diffusionsat-tiny", {"unet.train_all": whole, "denoiser.object_weight": 1.0})
    for part in pipe.modules_of().values():
        part.requires_grad_(False)
    parameters = list(METHOD.stages[0].trains(pipe, recipe))
    for parameter in parameters:
        parameter.requires_grad_(True)
    loss = DenoiserLoss(pipe, recipe)
    layout = pipe.layout_batch([scene(KNOWN), scene({})])
    batch = {
        "latents": torch.randn(2, 4, 8, 8),
        "layout": layout,
        "dropped": torch.tensor([False, True]),
        "empty_tokens": pipe.encode_text([""])[0],
    }
    optimizer, losses = torch.optim.Adam(parameters, 0.005), []
    for _ in range(8):
        torch.manual_seed(3)
        ((_, piece),) = loss.parts(batch)
        value = loss(**piece)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0]
    trained = {id(p) for p in parameters}
    assert all((p.grad is not None) == (id(p) in trained) for part in pipe.modules_of().values() for p in part.parameters())


def test_released_folders_there_and_back(pipe: DiffusionSatPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "g")
    write_json(tmp_path / "g" / "ccdiff.json", {"method": "diffusionsat", "picture_size": SIDE, "classes": []})
    export_checkpoint(tmp_path / "g", tmp_path / "archive" / "checkpoint-20")
    archive = tmp_path / "archive"
    config = json.loads((archive / "checkpoint-20" / "unet" / "config.json").read_text())
    assert config["_class_name"] == "SatUNet" and config["num_metadata"] == 7 and config["use_metadata"]
    with pytest.raises(CCDiffError, match="a Stable Diffusion folder is needed"):
        import_checkpoint(archive, tmp_path / "no", method="diffusionsat")
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(tmp_path / "g" / name, archive / name)
    shutil.copytree(archive / "checkpoint-20", archive / "checkpoint-3")  # an older one is not taken
    (archive / "checkpoint-3" / "unet" / "config.json").write_text("{")
    import_checkpoint(archive, tmp_path / "again", method="diffusionsat")
    description = read_generator(tmp_path / "again")
    assert method_of(description) is METHOD and description["recipe"]["sampling"]["steps"] == 50
    assert description["recipe"]["caption_style"] == "quadrants"
    again = load_pipeline(tmp_path / "again")
    for name in ("unet", "metadata_embedding"):
        ours, theirs = getattr(pipe, name).state_dict(), getattr(again, name).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    again.scheduler = pipe.scheduler
    again.set_progress_bar_config(disable=True)
    assert np.allclose(drawn(again, KNOWN, num_inference_steps=2, guidance_scale=2.0), drawn(pipe, KNOWN, num_inference_steps=2), atol=1e-5)


def test_a_plain_unet_is_no_released_one(pipe: DiffusionSatPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "g")
    with pytest.raises(CCDiffError, match="a plain UNet"):
        import_checkpoint(tmp_path / "g" / "unet", tmp_path / "out", method="diffusionsat", stable_diffusion=tmp_path / "g")
    with pytest.raises(CCDiffError, match="no UNet there"):
        import_checkpoint(tmp_path, tmp_path / "out", method="diffusionsat", stable_diffusion=tmp_path / "g")
    assert not (tmp_path / "out").exists()
