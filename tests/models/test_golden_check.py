"""The golden check on files of the golden format that the plain form writes, here and now."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ccdiff_cli.models.conditioning import prepare_context  # noqa: F401 - a change of its name must fail here, not in a subprocess
from tests import golden_check

from .plain import plain_co_resampler, plain_denoise, plain_dual_resampler
from .small import RESAMPLER, UNET, make_batch, make_resampler, make_unet


@torch.no_grad()
def write_golden(path: Path, variant: str, count: int, padding: int = 0, image_size: int = 128) -> None:
    torch.manual_seed(count)
    unet, resampler = make_unet(variant, heads=8).eval(), make_resampler(variant).eval()
    for module in (unet, resampler):  # stored in half precision, so the values must be exact there
        module.half().float()
    batch = make_batch([count], (image_size, image_size))
    total = count + padding
    features, background = torch.randn(total, 5, 20), torch.randn(5, 20)
    tokens_of_classes, pooled = torch.randn(total, 8, 24), torch.randn(total, 24)
    obb = torch.cat([batch.obb[0], torch.zeros(padding, 8)])
    hbb = torch.cat([batch.hbb[0], torch.zeros(padding, 4)])
    batch.hbb, batch.obb, batch.valid = hbb[None], obb[None], torch.ones(1, total, dtype=torch.bool)
    batch.class_index, batch.class_tokens, batch.class_pooled = torch.arange(total)[None], tokens_of_classes, pooled
    if variant == "ccdiff++":
        foreground, behind, relation = plain_co_resampler(resampler, features, background, obb)
    else:
        (foreground, behind), relation = plain_dual_resampler(resampler, features, background, obb), None

    class Tokens:
        pass

    tokens = Tokens()
    tokens.foreground, tokens.background, tokens.relation = foreground, behind[None], None if relation is None else relation[None]
    latents, timestep, negative = torch.randn(1, 4, image_size // 8, image_size // 8), torch.tensor([481]), torch.randn(1, 8, 24)
    conditional = plain_denoise(unet, latents, timestep, batch, tokens, 0, variant)[None]
    out = {
        "foreground_tokens": foreground,
        "background_tokens": behind[None],
        "noise_conditional": conditional,
        "noise_guided_pair": torch.cat([unet(latents, timestep, negative).sample, conditional]),
    }
    if relation is not None:
        out["relation_tokens"] = relation[None]
    given = {
        "hbb": hbb, "obb": obb.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8),
        "instance_features": features, "background_features": background[None],
        "latents": latents, "timestep": timestep, "negative_text_tokens": negative,
        "text_tokens": torch.cat([batch.caption_tokens, tokens_of_classes]),
        "text_pooled": torch.cat([batch.caption_pooled, pooled])[:, None],
    }  # fmt: skip
    queries = {"num_queries": 3, "heads": 4} if variant == "ccdiff++" else {"num_queries": [4, 3, 2]}
    metadata = {
        "model": variant, "unet_config": json.dumps(UNET), "resampler_config": json.dumps(RESAMPLER | queries),
        "image_size": str(image_size), "instances": str(count), "padding": str(padding),
    }  # fmt: skip
    tensors = {f"unet.{k}": v.half() for k, v in unet.state_dict().items()}
    tensors |= {f"resampler.{k}": v.half() for k, v in resampler.state_dict().items()}
    tensors |= {f"in.{k}": v for k, v in given.items()} | {f"out.{k}": v for k, v in out.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=metadata)


@pytest.mark.parametrize(
    ("variant", "count", "padding", "size"),
    [
        ("ccdiff++", 3, 0, 128),
        ("ccdiff++", 2, 4, 128),
        ("ccdiff++", 12, 0, 192),
        ("ccdiff++", 0, 0, 128),
        ("ccdiff", 3, 0, 128),
        ("ccdiff", 1, 0, 64),
    ],
)
def test_passes_on_the_plain_form(tmp_path, capsys, variant, count, padding, size):
    write_golden(tmp_path / "golden.safetensors", variant, count, padding, size)
    assert golden_check.main([str(tmp_path / "golden.safetensors")]) == 0
    out = capsys.readouterr().out
    assert out.count(" ok\n") == (5 if variant == "ccdiff++" else 4)


def test_fails_on_a_wrong_output(tmp_path, capsys):
    path = tmp_path / "golden.safetensors"
    write_golden(path, "ccdiff++", 2)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["out.noise_conditional"] = tensors["out.noise_conditional"] * 1.0001
    save_file(tensors, path, metadata=metadata)
    assert golden_check.main([str(path)]) == 1
    assert "above" in capsys.readouterr().out


def test_refuses_another_file(tmp_path, capsys):
    (tmp_path / "text").write_text("no tensors")
    assert golden_check.main([str(tmp_path / "text")]) == 2
    assert golden_check.main([str(tmp_path / "nothing")]) == 2
    assert golden_check.main([]) == 2


@pytest.mark.skipif("CCDIFF_SHARED" not in os.environ, reason="CCDIFF_SHARED does not name the folder with reference/golden")
def test_passes_on_the_given_files(capsys):
    files = sorted(map(str, (Path(os.environ["CCDIFF_SHARED"]) / "reference" / "golden").glob("*.safetensors")))
    assert files and golden_check.main(files) == 0
