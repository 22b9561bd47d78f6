"""CCDiffPipeline: folders, batches, schedulers, precisions, refusals."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods.ccdiff.pipeline import CCDiffPipeline
from ccdiff_cli.methods.method import stable_diffusion_schedule
from ccdiff_cli.models.pipeline import SAMPLERS
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.scene import Instance

from .small import DrawnReferences, make_pipeline, make_scenes


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in numbers]


@pytest.fixture(scope="module")
def pipe() -> CCDiffPipeline:
    return make_pipeline()


def test_a_picture_does_not_depend_on_its_batch(pipe):
    scenes, references = make_scenes([2, 0, 30, 5])
    together = pipe(scenes, references, generator=seeds(0, 1, 2, 3), output_type="np").images
    for k in range(4):
        alone = pipe([scenes[k]], [references[k]], generator=seeds(k), output_type="np").images[0]
        assert np.abs(alone - together[k]).max() < 1e-4  # floating point rounding of batched products
    again = pipe(scenes, references, generator=seeds(0, 1, 2, 3), output_type="np").images
    assert np.array_equal(again, together)


def test_layout_references_seed_and_guidance_each_matter(pipe):
    scenes, references = make_scenes([4])
    base = pipe(scenes, references, generator=seeds(0), output_type="latent").images
    moved = [scenes[0].replace(instances=tuple(Instance.from_hbb(i.category, (90, 90, 120, 120)) for i in scenes[0].instances))]
    other_class = [scenes[0].replace(instances=tuple(Instance.from_corners("court", i.corners) for i in scenes[0].instances))]
    nothing = [DrawnReferences((None,) * 4, None)]
    for changed in (
        pipe(moved, references, generator=seeds(0), output_type="latent"),
        pipe(other_class, references, generator=seeds(0), output_type="latent"),
        pipe(scenes, nothing, generator=seeds(0), output_type="latent"),
        pipe(scenes, references, generator=seeds(1), output_type="latent"),
        pipe(scenes, references, generator=seeds(0), guidance_scale=1.0, output_type="latent"),
        pipe(scenes, references, generator=seeds(0), negative_prompt="plane", output_type="latent"),
        pipe(scenes, references, generator=seeds(0), num_inference_steps=5, output_type="latent"),
    ):
        assert not torch.allclose(changed.images, base, atol=1e-4)


def test_save_and_load(pipe, tmp_path):
    scenes, references = make_scenes([3, 1], (64, 96))
    before = pipe(scenes, references, generator=seeds(0, 1), output_type="np").images
    pipe.save_pretrained(tmp_path / "g")
    loaded = CCDiffPipeline.from_pretrained(tmp_path / "g")
    loaded.set_progress_bar_config(disable=True)
    after = loaded(scenes, references, generator=seeds(0, 1), output_type="np").images
    assert np.abs(after - before).max() < 1e-5
    assert loaded.config.num_inference_steps == 3 and loaded.config.negative_prompt == "two"
    names = {p.name for p in (tmp_path / "g").rglob("*") if p.is_file()}
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names)
    index = json.loads((tmp_path / "g" / "model_index.json").read_text())
    assert index["tokenizer"][1] == "PreTrainedTokenizerFast" and index["resampler"][0].startswith("ccdiff_cli.")


def test_half_precision_folders_load_as_float32(tmp_path):
    make_pipeline("ccdiff").to(torch.float16).save_pretrained(tmp_path)
    loaded = CCDiffPipeline.from_pretrained(tmp_path)
    parts = (loaded.unet, loaded.vae, loaded.text_encoder, loaded.image_encoder, loaded.resampler)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}


def test_pictures_come_out_in_the_asked_form(pipe):
    scenes, _ = make_scenes([2, 1], (64, 96))
    pictures = pipe(scenes, generator=seeds(0, 1)).images
    assert [p.size for p in pictures] == [(96, 64)] * 2 and all(isinstance(p, Image.Image) for p in pictures)
    assert pipe(scenes, generator=seeds(0, 1), output_type="latent").images.shape == (2, 4, 8, 12)
    array = pipe(scenes, generator=seeds(0, 1), output_type="np").images
    assert array.shape == (2, 64, 96, 3) and 0 <= array.min() <= array.max() <= 1
    assert np.array_equal(np.asarray(pictures[0]), (array[0] * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    "scheduler", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DDIMScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler]
)
def test_schedulers_interchange(pipe, scheduler):
    scenes, references = make_scenes([2, 1])
    kept = pipe.scheduler
    try:
        pipe.scheduler = scheduler.from_config(kept.config)
        a, b = (pipe(scenes, references, generator=seeds(0, 1), output_type="np").images for _ in range(2))
        assert np.array_equal(a, b) and np.isfinite(a).all()
        alone = pipe(scenes[1:], references[1:], generator=seeds(1), output_type="np").images
        assert np.abs(alone[0] - a[1]).max() < 1e-4
    finally:
        pipe.scheduler = kept


def test_samplers_by_name_stand_in_whatever_stood_there():
    pipe, scenes = make_pipeline(), make_scenes([2, 1])
    last = {}
    for name in ("dpmsolver++-karras", "euler", "dpmsolver++", "euler", "dpmsolver++-karras"):
        pipe.set_up(scheduler=name)
        pipe.scheduler.set_timesteps(8)
        sigmas = pipe.scheduler.sigmas
        assert (sigmas[:-1] > sigmas[1:]).all()
        assert last.setdefault(name, float(sigmas[-2])) == float(sigmas[-2]), "what stood there before makes no difference"
        assert np.isfinite(pipe(*scenes, generator=seeds(0, 1), output_type="np").images).all()
    assert last["dpmsolver++-karras"] < 0.05 < 0.3 < last["dpmsolver++"]
    with pytest.raises(CCDiffError, match="unknown scheduler 'heun'"):
        pipe.set_up(scheduler="heun")


@pytest.mark.parametrize("name", ["dpmsolver++", "dpmsolver++-karras", "euler"])
def test_a_recipe_samples_as_it_says(name):
    recipe = load_recipe("tiny", {"sampling.scheduler": name})
    made = stable_diffusion_schedule(recipe, training=False)
    kind, own = SAMPLERS[name]
    assert type(made) is kind and own.items() <= dict(made.config).items()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_half_precision_runs_close_to_float32(dtype, bound):
    scenes, references = make_scenes([2, 4])
    exact = make_pipeline()(scenes, references, generator=seeds(0, 1), output_type="np").images
    half = make_pipeline().to(dtype)(scenes, references, generator=seeds(0, 1), output_type="np").images
    assert np.abs(half - exact).mean() < bound


def test_encodings_are_remembered_and_bounded(pipe):
    scenes, references = make_scenes([6])
    calls = []
    encode = pipe.encode_references
    pipe.encode_references = lambda images: calls.append(len(images)) or encode(images)
    try:
        pipe._references.entries.clear()
        pipe.layout_batch(scenes, references)
        distinct = {r.key for r in (*references[0].instances, references[0].background) if r is not None}
        assert len(calls) == len(distinct)
        pipe.layout_batch(scenes, references)
        assert len(calls) == len(distinct)
        pipe._references.limit, kept = 1, pipe._references.limit
        pipe.layout_batch(scenes, references)
        pipe._references.get(("new",), lambda: (torch.zeros(4),))
        assert len(pipe._references.entries) == 1
        pipe._references.limit = kept
    finally:
        pipe.encode_references = encode


def test_latents_survive_the_autoencoder_scaling(pipe):
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = pipe.encode_latents(pixels)
    with torch.no_grad():
        expected = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        decoded = pipe.vae.decode(expected / pipe.vae.config.scaling_factor).sample
    assert torch.allclose(latents, expected) and torch.allclose(pipe.decode_latents(latents), (decoded / 2 + 0.5).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("scheduler", [None, DDIMScheduler, EulerDiscreteScheduler])
def test_sampling_begins_at_a_step_with_latents_noised_to_it(scheduler, monkeypatch):
    pipe = make_pipeline()
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    scenes, references = make_scenes([2, 1])
    layout, empty = pipe.layout_batch(scenes, references), pipe.encode_text([""])[0]
    latents = torch.randn(2, pipe.unet.config.in_channels, *layout.latent_size, generator=seeds(5)[0])
    pipe.scheduler.set_timesteps(4)
    t = pipe.scheduler.timesteps[2]
    wanted = pipe.scheduler.add_noise(latents, pipe.initial_noise(seeds(1, 2), layout), t.repeat(2))
    given = []
    predict = pipe.predict
    monkeypatch.setattr(pipe, "predict", lambda x, time, *rest: given.append((float(time), x)) or predict(x, time, *rest))
    found = pipe.sample(layout, empty, seeds(1, 2), steps=4, scale=1.0, latents=latents, begin=2)
    assert [time for time, _ in given] == [float(x) for x in pipe.scheduler.timesteps[2:]]
    assert torch.isfinite(found).all()
    pipe.scheduler.set_timesteps(4)
    pipe.scheduler.set_begin_index(2) if hasattr(pipe.scheduler, "set_begin_index") else None
    assert torch.allclose(given[0][1], pipe.scheduler.scale_model_input(wanted, t), atol=1e-6)
    again = pipe.sample(layout, empty, seeds(1, 2), steps=4, scale=1.0, latents=latents, begin=2)
    assert torch.equal(found, again)
    fresh = make_pipeline()
    fresh.scheduler = pipe.scheduler
    whole = pipe.sample(layout, empty, seeds(1, 2), steps=4, scale=1.0)  # what began late leaves nothing behind
    assert torch.equal(whole, fresh.sample(layout, empty, seeds(1, 2), steps=4, scale=1.0))


def test_a_cut_caption_is_said(pipe):
    with pytest.warns(UserWarning, match="cut to 8"):
        pipe.encode_text(["an aerial picture with ship and plane and court"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.encode_text(["an aerial picture"])


def test_published_padding_is_a_switch_of_the_generator(pipe):
    scenes, references = make_scenes([2])
    assert pipe.layout_batch(scenes, references).valid.sum() == 2
    pipe.register_to_config(published_padding=6)
    try:
        assert pipe.layout_batch(scenes, references).valid.sum() == 6
    finally:
        pipe.register_to_config(published_padding=0)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_give_the_same_picture(backend):
    if backend == "inductor" and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    pipe = make_pipeline()
    scenes, references = make_scenes([2, 3])
    plain = pipe(scenes, references, generator=seeds(0, 1), output_type="np").images
    torch._dynamo.reset()
    pipe.compile_blocks(backend=backend)
    assert np.abs(pipe(scenes, references, generator=seeds(0, 1), output_type="np").images - plain).max() < 1e-4
    torch._dynamo.reset()


def test_parts_are_fetched_before_they_are_used_when_offloaded():
    # the hooks of enable_model_cpu_offload, which needs an accelerator, with a device that can be checked here: a part that is
    # not fetched stays on "meta" and fails
    from accelerate.hooks import ModelHook, add_hook_to_module

    pipe = make_pipeline()
    scenes, references = make_scenes([2, 1])
    plain = pipe(scenes, references, generator=seeds(0, 1), output_type="np").images

    class Fetch(ModelHook):
        execution_device = torch.device("cpu")

        def __init__(self, module):
            self.weights = {k: v.clone() for k, v in module.state_dict().items()}

        def pre_forward(self, module, *args, **kwargs):
            module.to_empty(device="cpu").load_state_dict(self.weights)
            return args, kwargs

    away = []
    for name in ("resampler", "unet"):
        part = getattr(pipe, name)
        add_hook_to_module(part, Fetch(part))
        away.append(part.to("meta"))
    kept = CCDiffPipeline._execution_device
    CCDiffPipeline._execution_device = property(lambda self: torch.device("cpu"))
    try:
        after = pipe(scenes, references, generator=seeds(0, 1), output_type="np").images
    finally:
        CCDiffPipeline._execution_device = kept
    assert np.abs(after - plain).max() < 1e-5


def test_refusals(pipe, tmp_path):
    scenes, references = make_scenes([2, 1])
    wide, _ = make_scenes([1], (64, 96))
    odd, _ = make_scenes([1], (60, 64))
    broken = scenes[0].replace(instances=(Instance.from_hbb("ship", (0, 0, float("nan"), 4)),))
    for wrong, message in (
        (lambda: pipe([]), "no scenes"),
        (lambda: pipe([scenes[0], wide[0]]), "differ in size"),
        (lambda: pipe(odd), "multiples of 8"),
        (lambda: pipe([broken]), "finite"),
        (lambda: pipe(scenes, references[:1]), "sets of references"),
        (lambda: pipe(scenes, references[::-1]), "references for"),
        (lambda: pipe(scenes, generator=seeds(1)), "generators"),
        (lambda: pipe(scenes, num_inference_steps=0), "steps"),
        (lambda: pipe(scenes, output_type="png"), "output type"),
        (lambda: pipe(scenes, latents=torch.zeros(1, 4, 16, 16)), "latents of shape"),
        (lambda: CCDiffPipeline.from_pretrained(tmp_path), "cannot load the generator"),
    ):
        with pytest.raises(CCDiffError, match=message):
            wrong()


@pytest.mark.parametrize("damage", ["no part", "cut weights", "bad index"])
def test_a_damaged_folder_is_one_clear_message(pipe, tmp_path, damage):
    pipe.save_pretrained(tmp_path)
    weights = tmp_path / "resampler" / "diffusion_pytorch_model.safetensors"
    if damage == "no part":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        (tmp_path / "model_index.json").write_text('{"_class_name": ')
    with pytest.raises(CCDiffError, match="cannot load the generator"):
        CCDiffPipeline.from_pretrained(tmp_path)


def test_no_image_encoder_means_no_references(tmp_path):
    pipe = make_pipeline()
    pipe.register_modules(image_encoder=None, feature_extractor=None)
    pipe.save_pretrained(tmp_path)
    loaded = CCDiffPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    scenes, references = make_scenes([2])
    assert len(loaded(scenes, generator=seeds(0)).images) == 1
    with pytest.raises(CCDiffError, match="image encoder"):
        loaded(scenes, references)
