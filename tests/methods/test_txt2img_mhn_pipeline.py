"""Txt2Img-MHN as a method: stages and what they train, pictures by their own numbers, released folders there and back, what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.generator import read_generator
from ccdiff_cli.methods import METHODS, Base, export_checkpoint, import_checkpoint, load_pipeline, method_of
from ccdiff_cli.methods.txt2img_mhn.loss import CodeLoss, temperature_at
from ccdiff_cli.methods.txt2img_mhn.pipeline import MHNPipeline
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.scene import Scene

METHOD = METHODS["txt2img_mhn"]
SIDE = 32
CAPTIONS = ("three ships in a harbor", "two planes", "one tennis court and two ships")
SMALL = {"pieces": 60, "codes": 16, "code_width": 8, "hidden": 8, "width": 16, "blocks": 2, "heads": 2, "head_width": 8, "prototypes": 8}


@pytest.fixture
def recipe():
    return load_recipe("txt2img_mhn-tiny", {"picture_size": SIDE, **{f"txt2img_mhn.{k}": v for k, v in SMALL.items()}})


@pytest.fixture
def pipe(recipe) -> MHNPipeline:
    torch.manual_seed(0)
    parts = METHOD.build(Base(recipe, ("ship",), CAPTIONS, SIDE, 3, 0, 0, {}))
    made = MHNPipeline(**parts, **METHOD.options(recipe))
    made.transformer.eval()
    return made


def scenes(*captions: str) -> list[Scene]:
    return [Scene(f"{k}.png", SIDE, SIDE, caption=caption) for k, caption in enumerate(captions)]


def drawn(pipe: MHNPipeline, captions: list[str], seeds: list[int], **options) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(scenes(*captions), generator=generators, output_type="np", **options).images


def test_pictures_have_their_own_numbers_whatever_else_is_in_the_batch(pipe: MHNPipeline) -> None:
    together = drawn(pipe, list(CAPTIONS), [5, 6, 7])
    assert together.shape == (3, SIDE, SIDE, 3) and together.min() >= 0 and together.max() <= 1
    for k, caption in enumerate(CAPTIONS):
        assert np.allclose(drawn(pipe, [caption], [5 + k])[0], together[k], atol=1e-6)
    assert not np.allclose(drawn(pipe, [CAPTIONS[0]], [8])[0], together[0])
    assert drawn(pipe, [CAPTIONS[0]], [5], guidance_scale=3.0).shape == (1, SIDE, SIDE, 3)


def test_codes_of_pictures_are_whole_numbers_that_half_precision_keeps(pipe: MHNPipeline) -> None:
    codes = pipe.encode_latents(torch.rand(2, 3, SIDE, SIDE) * 2 - 1)
    assert codes.shape == (2, SIDE // 8, SIDE // 8) and torch.equal(codes, codes.half().float().round())
    assert torch.equal(torch.arange(2048).half().float(), torch.arange(2048).float()), "the cache holds half precision"
    with pytest.raises(CCDiffError, match="codes"):
        load_recipe("txt2img_mhn-tiny", {"txt2img_mhn.codes": 4096})


@pytest.mark.parametrize(("stage", "trained", "left"), [(0, "pictures", "transformer"), (1, "transformer", "pictures")])
def test_a_stage_trains_its_part_and_nothing_else(pipe: MHNPipeline, recipe, stage: int, trained: str, left: str) -> None:
    for part in (pipe.pictures, pipe.transformer):
        part.requires_grad_(False)
    parameters = list(METHOD.stages[stage].trains(pipe, recipe))
    for parameter in parameters:
        parameter.requires_grad_(True)
    module = METHOD.stages[stage].loss(pipe, recipe).train()
    optimizer = torch.optim.Adam(parameters, 0.01)
    pixels = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    if stage == 0:
        batch = {"pixels": pixels, "step": 0}
    else:
        layout = pipe.layout_batch(scenes(*CAPTIONS[:2]))
        batch = {"latents": pipe.encode_latents(pixels), "layout": layout, "dropped": torch.tensor([False, True]), "empty_tokens": None}
    losses = []
    for _ in range(12):
        torch.manual_seed(1)
        loss = module(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    # of the start token and of pieces that no caption here has there is no gradient, but of every tensor some
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in getattr(pipe, trained).parameters())
    assert all(p.grad is None for p in getattr(pipe, left).parameters())


def test_a_dropped_caption_is_one_of_nothing(pipe: MHNPipeline) -> None:
    loss, codes = CodeLoss(pipe).eval(), torch.zeros(1, SIDE // 8, SIDE // 8)
    pipe.transformer.eval()
    told, silent = (pipe.layout_batch(scenes(caption)) for caption in ("two planes", ""))
    yes, no = torch.tensor([True]), torch.tensor([False])
    assert torch.equal(loss(codes, told, yes, None), loss(codes, silent, no, None))
    assert not torch.equal(loss(codes, told, no, None), loss(codes, silent, no, None))


def test_the_choice_of_codes_hardens_as_published() -> None:
    tau = 1.0
    for step in range(20_001):
        if step % 100 == 0:
            tau = max(tau * math.exp(-1e-6 * step), 0.5)
        if step % 5_000 == 0:
            assert temperature_at(step) == pytest.approx(tau)
    assert temperature_at(10**6) == 0.5


@pytest.mark.filterwarnings("error")
def test_a_long_caption_is_cut_with_a_warning(pipe: MHNPipeline) -> None:
    with pytest.raises(UserWarning, match="is cut to 40"):
        pipe.ids_of(["ship " * 60])


def test_released_folders_there_and_back(pipe: MHNPipeline, tmp_path: Path) -> None:
    from ccdiff_cli.files import write_json

    pipe.save_pretrained(tmp_path / "g")
    write_json(tmp_path / "g" / "ccdiff.json", {"method": "txt2img_mhn", "picture_size": SIDE, "classes": []})
    written = export_checkpoint(tmp_path / "g", tmp_path / "released")
    assert [path.name for path in written] == ["mhn_vqvae.pth", "vocabulary.bpe"]
    with pytest.raises(CCDiffError, match="expected a file of weights"):
        import_checkpoint(tmp_path, tmp_path / "no", method="txt2img_mhn")
    import_checkpoint(tmp_path / "released", tmp_path / "again", method="txt2img_mhn")
    description = read_generator(tmp_path / "again")
    assert method_of(description) is METHOD and description["picture_size"] == SIDE
    again = load_pipeline(tmp_path / "again")
    assert again.config.vocabulary == pipe.config.vocabulary
    for name in ("pictures", "transformer"):
        ours, theirs = getattr(pipe, name).state_dict(), getattr(again, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours) and ours.keys() == theirs.keys()


def test_what_it_cannot_do_is_refused(pipe: MHNPipeline) -> None:
    for call in (
        lambda: pipe(scenes("two planes"), latents=torch.zeros(1)),
        lambda: pipe(scenes("two planes"), gate_threshold=0.1),
        lambda: pipe([Scene("a.png", 64, 64, caption="two planes")]),
        lambda: pipe.set_up(compile=True),
    ):
        with pytest.raises(CCDiffError, match="Txt2Img-MHN"):
            call()
    with pytest.raises(CCDiffError, match="encoders"):
        load_recipe("txt2img_mhn-tiny", {"encoders": {"text_source": "tiny"}})
    with pytest.raises(CCDiffError, match="multiple of 8"):
        load_recipe("txt2img_mhn-tiny", {"picture_size": 100})
