"""Txt2Img-MHN (Xu et al., IEEE TIP 2023): a caption to picture codes one after another, by a transformer of prototypes (modern Hopfield
networks).

It takes no boxes: its labels are the layout that the caption was made from, and a set says so.  Here the text vocabulary is learnt from the
set's captions and the picture tokenizer is the discrete VAE; the other one, a VQGAN, is read from released files but not trained.
Differences by choice: long captions are cut and not refused; keys are kept from code to code; colours are those of the training pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from typing_extensions import Self

from ..method import CAPTION, Base, Given, Method, Stage
from ..recipe import MOST_WIDTH, Recipe, Section, StageConfig

if TYPE_CHECKING:
    from torch import nn

    from .pipeline import MHNPipeline


class MHNSettings(Section):
    """Text vocabulary, picture tokenizer and transformer."""

    pieces: int = Field(5000, gt=10, le=1_000_000, description="most pieces of the text vocabulary, which is learnt from the captions")
    text_length: int = Field(40, gt=0, le=4096, description="places of a caption; longer ones are cut (40 as published)")
    codes: int = Field(2048, gt=1, le=2048, description="codes of the picture tokenizer (2048 as published)")
    code_width: int = Field(512, gt=0, le=MOST_WIDTH, description="width of a code (512 as published)")
    halvings: int = Field(3, gt=0, le=8, description="the picture shrinks by 2 to this power (3 as published)")
    residual_blocks: int = Field(2, ge=0, le=32, description="of the picture tokenizer (2 as published)")
    hidden: int = Field(64, gt=0, le=MOST_WIDTH, description="channels of the picture tokenizer (64 as published)")
    width: int = Field(512, gt=0, le=MOST_WIDTH, description="width of the transformer (512 as published)")
    blocks: int = Field(10, gt=0, le=200, description="of the transformer, a Hopfield layer and an attention each (10 as published)")
    heads: int = Field(8, gt=0, le=256, description="attention heads (8 as published)")
    head_width: int = Field(48, gt=0, le=MOST_WIDTH, description="width of an attention head (48 as published)")
    prototypes: int = Field(1000, gt=0, le=1_000_000, description="of every Hopfield layer and of the last one (1000 as published)")
    dropout: float = Field(0.1, ge=0, lt=1, description="after Hopfield layers and attentions, while training (0.1 as published)")
    left_out: float = Field(0.9, ge=0, le=1, description="share of the whole vocabulary that a code is not drawn from (0.9 as published)")
    temperature: float = Field(1.0, gt=0, le=100, description="of the draws; lower is less varied (1 as published)")
    tokenizer_train: StageConfig = Field(description="training of the picture tokenizer, before the transformer's")


class MHNRecipe(Recipe):
    txt2img_mhn: MHNSettings

    @model_validator(mode="after")
    def _as_it_is(self) -> Self:
        for key, values in (("autoencoder", self.autoencoder), ("encoders", self.encoders), ("unet", self.unet)):
            if values is not None:
                raise ValueError(f"{key}: Txt2Img-MHN has its own parts: leave this section out")
        if self.picture_size % 2**self.txt2img_mhn.halvings:
            raise ValueError(f"picture_size: must be a multiple of {2**self.txt2img_mhn.halvings} (txt2img_mhn.halvings)")
        return self


def build(base: Base) -> dict[str, Any]:
    """Picture tokenizer, transformer, and the vocabulary as the text of its file."""
    from .network import PrototypeTransformer
    from .pictures import VQVAE
    from .tokenizer import learn_pieces

    s: MHNSettings = base.recipe.txt2img_mhn
    pieces = learn_pieces(base.captions, s.pieces, s.text_length) if base.captions else None
    side = base.latent_side // 2**s.halvings
    return {
        "pictures": VQVAE(s.codes, s.code_width, s.halvings, s.residual_blocks, s.hidden),
        "transformer": PrototypeTransformer(
            width=s.width, blocks=s.blocks, heads=s.heads, head_width=s.head_width, prototypes=s.prototypes,
            text_ids=pieces.size if pieces is not None else s.pieces, text_length=s.text_length, codes=s.codes, grid=(side, side),
            dropout=s.dropout,
        ),
        **({"vocabulary": pieces.config.text} if pieces is not None else {}),
    }  # fmt: skip


def _pictures(pipe: MHNPipeline, recipe: MHNRecipe) -> Iterable[nn.Parameter]:
    return pipe.pictures.parameters()


def _transformer(pipe: MHNPipeline, recipe: MHNRecipe) -> Iterable[nn.Parameter]:
    return pipe.transformer.parameters()


def _picture_loss(pipe: MHNPipeline, recipe: MHNRecipe) -> nn.Module:
    from .loss import PictureLoss

    return PictureLoss(pipe.pictures)


def _code_loss(pipe: MHNPipeline, recipe: MHNRecipe) -> nn.Module:
    from .loss import CodeLoss

    return CodeLoss(pipe)


def _pictures_once(recipe: MHNRecipe, parts: Mapping[str, Any]) -> Any:
    import torch

    pictures, side = parts["pictures"], recipe.picture_size
    cells = side // pictures.factor
    return pictures.loss(torch.empty(1, 3, side, side), torch.empty(1, pictures.codes, cells, cells), 1.0)


def _transformer_once(recipe: MHNRecipe, parts: Mapping[str, Any]) -> Any:
    import torch

    transformer = parts["transformer"]
    text = torch.zeros(1, transformer.config.text_length, dtype=torch.int64)
    return transformer.loss(text, torch.zeros(1, transformer.cells, dtype=torch.int64))


def _pipeline() -> type[MHNPipeline]:
    from .pipeline import MHNPipeline

    return MHNPipeline


def _import(released: Path, out: Path, given: Given) -> dict[str, Any]:
    from .checkpoints import import_checkpoint

    return import_checkpoint(released, out)


def _export(generator: Path, out: Path) -> list[Path]:
    from .checkpoints import export_checkpoint

    return export_checkpoint(generator, out)


METHOD = Method(
    name="txt2img_mhn",
    title="Txt2Img-MHN",
    licence='MIT, "academic purposes only"',
    exact="< 1e-5",
    differs="keys kept from code to code, long captions cut, seeds by picture; its VQGAN is read, not trained",
    takes=frozenset({CAPTION}),
    recipe=MHNRecipe,
    pipeline=_pipeline,
    build=build,
    stages=(
        Stage(
            "tokenizer",
            config=lambda recipe: recipe.txt2img_mhn.tokenizer_train,
            trains=_pictures,
            loss=_picture_loss,
            sees="pixels",
            once=_pictures_once,
        ),
        Stage("transformer", config=lambda recipe: recipe.denoiser.train, trains=_transformer, loss=_code_loss, once=_transformer_once),
    ),
    schedule=lambda recipe, training: None,
    options=lambda recipe: {"left_out": recipe.txt2img_mhn.left_out, "temperature": recipe.txt2img_mhn.temperature},
    import_checkpoint=_import,
    export_checkpoint=_export,
    schedulers=(),
)
