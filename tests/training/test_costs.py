"""What a training takes is said before it starts, for every method, and is about what a step keeps."""

import pytest
import torch

from ccdiff_cli.methods import METHODS
from ccdiff_cli.recipes import load_recipe
from ccdiff_cli.scene import Instance, Scene
from ccdiff_cli.training.costs import MORE, _kept_by, _parts_without_weights, memory_of_training

RECIPES = {name: "tiny" if name == "ccdiff++" else f"{name}-tiny" for name in METHODS}
SCENES = [Scene(f"{k}.png", 128, 128, (Instance.from_hbb("ship", (1, 1, 9, 9)),) * 3) for k in range(20)]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_takes(name: str) -> None:
    recipe = load_recipe(RECIPES[name])
    need = memory_of_training(recipe, SCENES)
    assert 0.9e9 < need["all"] < 8e9 and need["pictures"] > 0 and need["weights"] > 0


def test_of_two_stages_the_larger_counts() -> None:
    recipe = load_recipe("txt2img_mhn-tiny")
    parts, _ = _parts_without_weights(recipe, None)
    stages = METHODS["txt2img_mhn"].stages
    kept = [_kept_by(stage, recipe, parts) * stage.config(recipe).batch_size for stage in stages]
    assert memory_of_training(recipe, SCENES)["pictures"] in [pytest.approx(4 * MORE * k) for k in kept]


def test_gated_layers_are_counted() -> None:
    """No less than a real pass of the same network keeps (which has attentions that keep less), and no gated layer left out."""
    recipe = load_recipe("gligen-tiny")
    parts, _ = _parts_without_weights(recipe, None)
    counted = _kept_by(METHODS["gligen"].stages[0], recipe, parts)
    unet = type(parts["unet"]).from_config(parts["unet"].config)
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    real, own = {}, {p.data_ptr() for p in unet.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own and tensor._base is None:
            real[tensor.data_ptr()] = tensor
        return tensor

    def passed(**more: object) -> int:
        real.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            unet(torch.randn(1, unet.config.in_channels, size, size), torch.ones(1), torch.randn(1, 77, width), **more)
        return sum(tensor.numel() for tensor in real.values())

    slots = recipe.gligen.slots
    boxes = {"boxes": torch.rand(1, slots, 4), "masks": torch.ones(1, slots), "positive_embeddings": torch.randn(1, slots, width)}
    plain, gated = passed(), passed(cross_attention_kwargs={"gligen": boxes})
    assert gated > 1.2 * plain and gated < counted < 2 * gated
