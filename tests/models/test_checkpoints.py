"""Released checkpoints in, generator out, and back."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from ccdiff_cli.cli import main
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods.ccdiff.checkpoints import RESAMPLER_FILE, UNET_FILE, export_checkpoint, import_checkpoint
from ccdiff_cli.methods.ccdiff.pipeline import CCDiffPipeline
from ccdiff_cli.models.pipeline import PUBLISHED_NEGATIVE_PROMPT

from .small import UNET, make_image_encoder, make_resampler, make_scenes, make_text_encoder, make_tokenizer, make_unet, make_vae

HEAD = 8


@pytest.fixture
def folders(tmp_path):
    """A Stable Diffusion folder, a DINOv2 folder and released checkpoints of both models, of the released shape and small sizes."""
    torch.manual_seed(0)
    sd, dino = tmp_path / "sd", tmp_path / "dino"
    UNet2DConditionModel(**UNET).save_pretrained(sd / "unet")
    make_vae().save_pretrained(sd / "vae")
    make_text_encoder().save_pretrained(sd / "text_encoder")
    make_tokenizer().save_pretrained(sd / "tokenizer")
    PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(sd / "scheduler")
    encoder, extractor = make_image_encoder()
    encoder.save_pretrained(dino)
    extractor.save_pretrained(dino)
    for variant, name in (("ccdiff++", "pp"), ("ccdiff", "dual")):
        released = tmp_path / name
        (released / "unet").mkdir(parents=True)
        save_file({k: v.half().contiguous() for k, v in make_unet(variant).state_dict().items()}, released / UNET_FILE)
        weights = {k: v.half() for k, v in make_resampler(variant).state_dict().items()}
        if variant == "ccdiff++":
            weights["to_latents_from_mean_pooled_seq.1.weight"] = torch.zeros(3)
        torch.save(weights, released / RESAMPLER_FILE)
    return tmp_path


@pytest.mark.parametrize("name", ["pp", "dual"])
def test_import_and_back(folders, name):
    made = import_checkpoint(folders / name, folders / "sd", folders / "g", image_encoder=folders / "dino", head_width=HEAD)
    assert made["imported"]["model"] == {"pp": "ccdiff++", "dual": "ccdiff"}[name]
    assert made["unused_keys"] == (["to_latents_from_mean_pooled_seq.1.weight"] if name == "pp" else [])
    assert json.loads((folders / "g" / "ccdiff.json").read_text())["picture_size"] == 128

    pipe = CCDiffPipeline.from_pretrained(folders / "g")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.negative_prompt == PUBLISHED_NEGATIVE_PROMPT and pipe.config.num_inference_steps == 50
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler" and pipe.config.renormalise_references
    scenes, references = make_scenes([2])
    assert len(pipe(scenes, references, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images) == 1

    export_checkpoint(folders / "g", folders / "back")
    unet, again = load_file(folders / name / UNET_FILE), load_file(folders / "back" / UNET_FILE)
    assert set(unet) == set(again) and all(torch.equal(unet[k], again[k]) and unet[k].dtype == again[k].dtype for k in unet)
    resampler = torch.load(folders / name / RESAMPLER_FILE, weights_only=True)
    returned = torch.load(folders / "back" / RESAMPLER_FILE, weights_only=True)
    used = {k for k in resampler if "to_latents" not in k}
    assert used == set(returned) and all(torch.equal(resampler[k], returned[k]) for k in used)


def test_export_from_the_command_line(folders, capsys):
    import_checkpoint(folders / "pp", folders / "sd", folders / "g", head_width=HEAD)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["export-checkpoint", str(folders / "g"), "--out", str(folders / "back"), "--json"])
    assert not left.value.code
    assert json.loads(capsys.readouterr().out)["files"] == [str(folders / "back" / name) for name in (UNET_FILE, RESAMPLER_FILE)]
    with pytest.raises(SystemExit) as left:
        main(["export-checkpoint", str(folders / "sd"), "--out", str(folders / "other")])
    assert left.value.code == 2 and not (folders / "other").exists()
    assert "not a generator folder" in capsys.readouterr().err


def test_keys_of_a_parallel_wrapper_are_understood(folders):
    path = folders / "pp" / RESAMPLER_FILE
    torch.save({f"module.{k}": v for k, v in torch.load(path, weights_only=True).items()}, path)
    import_checkpoint(folders / "pp", folders / "sd", folders / "g", head_width=HEAD)
    assert CCDiffPipeline.from_pretrained(folders / "g").image_encoder is None


def edit_unet(folders, change):
    weights = load_file(folders / "pp" / UNET_FILE)
    change(weights)
    save_file(weights, folders / "pp" / UNET_FILE)


KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.fusion.la.to_q.weight"


def test_missing_surplus_and_odd_keys_are_listed(folders):
    def change(weights):
        del weights[KEY]
        weights["mid_block.extra.weight"] = torch.zeros(1)
        weights["conv_in.bias"] = torch.zeros(3)

    edit_unet(folders, change)
    with pytest.raises(CCDiffError) as error:
        import_checkpoint(folders / "pp", folders / "sd", folders / "g", head_width=HEAD)
    text = str(error.value)
    assert f"missing keys (1): {KEY}" in text and "surplus keys (1): mid_block.extra.weight" in text and "conv_in.bias (3,)" in text
    assert not (folders / "g").exists()


class Program:
    def __reduce__(self):
        return (print, ("the pickle ran",))


def test_refusals_leave_nothing_behind(folders, capsys):
    def refused(message, released="pp", sd="sd", **options):
        before = sorted(folders.iterdir())
        with pytest.raises(CCDiffError, match=message):
            import_checkpoint(folders / released, folders / sd, folders / "g", **({"head_width": HEAD} | options))
        assert sorted(folders.iterdir()) == before

    refused("does not exist", released="nothing")
    refused("does not exist", sd="nothing")
    refused("heads of width 7", head_width=7)
    refused("no config.json there; the folder holds", image_encoder=folders / "sd")
    (folders / "full").mkdir()
    (folders / "full" / "file").touch()
    with pytest.raises(CCDiffError, match="not empty"):
        import_checkpoint(folders / "pp", folders / "sd", folders / "full", head_width=HEAD)

    path = folders / "pp" / RESAMPLER_FILE
    good = path.read_bytes()
    path.write_bytes((folders / "dual" / RESAMPLER_FILE).read_bytes())
    refused("the other model")
    path.write_bytes(good[:500])
    refused("not a file of tensors")
    torch.save({"latents": Program()}, path)
    refused("not a file of tensors")
    assert "the pickle ran" not in capsys.readouterr().out
    torch.save([torch.zeros(1)], path)
    refused("a dictionary")
    torch.save({"weight": torch.zeros(1)}, path)
    refused("not a resampler")

    save_file(UNet2DConditionModel(**UNET).state_dict(), folders / "pp" / UNET_FILE)
    path.write_bytes(good)
    refused("a plain UNet")
    (folders / "pp" / UNET_FILE).write_bytes(b"cut")
    refused("not a safetensors file")


@pytest.mark.parametrize("part", ["sd/text_encoder", "sd/vae", "dino"])
def test_weights_that_the_libraries_would_fill_with_noise_are_refused(folders, part):
    (path,) = (folders / part).glob("*.safetensors")
    weights = load_file(path)
    gone = next(key for key in sorted(weights) if (key.endswith("weight") and weights[key].dim() == 2) or key == "decoder.conv_in.weight")
    save_file({key: value for key, value in weights.items() if key != gone}, path, metadata={"format": "pt"})
    with pytest.raises(CCDiffError, match="1 missing, first ") as told:
        import_checkpoint(folders / "pp", folders / "sd", folders / "g", image_encoder=folders / "dino", head_width=HEAD)
    assert part in str(told.value) and not (folders / "g").exists()


@pytest.mark.parametrize(
    ("change", "message"), [(lambda v: v * torch.nan, "holds what is no number"), (torch.Tensor.int, "torch.int32 instead")]
)
def test_weights_that_are_no_numbers_or_whole_ones_are_refused(folders, change, message):
    edit_unet(folders, lambda weights: weights.update({KEY: change(weights[KEY])}))
    with pytest.raises(CCDiffError, match=message):
        import_checkpoint(folders / "pp", folders / "sd", folders / "g", head_width=HEAD)
    assert not (folders / "g").exists()


def test_a_tokenizer_that_its_library_cannot_read_is_refused(folders):
    path = folders / "sd" / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": [1]}))
    with pytest.raises(CCDiffError, match="tokenizer: cannot load a AutoTokenizer"):
        import_checkpoint(folders / "pp", folders / "sd", folders / "g", head_width=HEAD)


def test_an_export_whose_second_file_cannot_be_read_writes_none(folders):
    import_checkpoint(folders / "pp", folders / "sd", folders / "g", head_width=HEAD)
    (folders / "g" / "resampler" / UNET_FILE.name).write_bytes(b"")
    with pytest.raises(CCDiffError, match="not a safetensors file"):
        export_checkpoint(folders / "g", folders / "back")
    assert not [p for p in (folders / "back").rglob("*") if p.is_file() and p.name != ".lock"]
