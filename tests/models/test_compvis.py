"""CompVis names of UNet parameters against diffusers' own converter."""

import pytest
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.models.compvis import diffusers_unet_names, renamed

from .small import UNET

_WIDE = UNET | {
    "layers_per_block": 2,
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


@pytest.mark.parametrize("config", [UNET, _WIDE, UNET | {"layers_per_block": 3}])
def test_names_are_those_of_diffusers_converter_and_reverse(config):
    unet = UNet2DConditionModel(**config)
    names = diffusers_unet_names(unet.config)
    back = {ours: theirs for theirs, ours in names.items()}
    assert len(back) == len(names)
    released = {renamed(name, back): name for name in unet.state_dict()}
    assert len(released) == len(unet.state_dict())
    assert {name: renamed(name, names) for name in released} == released
    # the converter moves values: give it names as values
    prefixed = {f"model.diffusion_model.{theirs}": ours for theirs, ours in released.items()}
    assert all(key == value for key, value in convert_ldm_unet_checkpoint(prefixed, dict(unet.config)).items())


def test_names_of_stable_diffusion():
    back = {ours: theirs for theirs, ours in diffusers_unet_names(_WIDE).items()}
    assert renamed("up_blocks.0.upsamplers.0.conv.bias", back) == "output_blocks.2.1.conv.bias"
    assert renamed("up_blocks.1.upsamplers.0.conv.bias", back) == "output_blocks.5.2.conv.bias"
    attention = "transformer_blocks.0.attn2.to_q.weight"
    assert renamed(f"up_blocks.1.attentions.2.{attention}", back) == f"output_blocks.5.1.{attention}"
    assert renamed("position_net.linears.0.weight", back) == "position_net.linears.0.weight"


def test_blocks_of_different_depth_are_refused():
    with pytest.raises(CCDiffError, match="layers a block"):
        diffusers_unet_names(_WIDE | {"layers_per_block": (1, 2, 2, 2)})
