"""Released Txt2Img-MHN checkpoints to our parts and back.

``mhn_vqvae.pth`` / ``mhn_vqgan.pth`` hold the transformer and the picture tokenizer; a VQGAN also comes as Lightning's ``last.ckpt``; the
text tokenizer is a text file of its own.

Notable here:
- weights are matched by name; the released program matches them by order.
- sizes are read from the weights; the attention's heads cannot be, and are 8 as published unless said.
- the discriminator and the perceptual loss of a VQGAN's training are left out, and named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import CCDiffError
from ...files import sha256_file
from ...generator import read_generator
from ...locks import locked
from ...models.accounting import account_for
from ...models.checkpoints import check_empty, imported, odd_sizes, read_pickle, write_generator, write_tensors
from .network import PrototypeTransformer, sizes_of
from .pictures import VQGAN, VQVAE
from .pipeline import MHNPipeline
from .tokenizer import read_pieces, write_pieces

_OTHER_NAME = re.compile(r"^image_pos_emb\.weights\.(\d)$")  # of other versions of axial_positional_embedding


def split_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Released names -> (transformer's, picture tokenizer's, names that only training needs)."""
    transformer: dict[str, Tensor] = {}
    pictures: dict[str, Tensor] = {}
    unused = []
    for released, value in weights.items():
        name = released.removeprefix("module.")
        if not name.startswith("vae."):
            transformer[_OTHER_NAME.sub(r"image_pos_emb.weights_\1", name)] = value
            continue
        name = name.removeprefix("vae.").removeprefix("model.")
        if name.startswith("loss."):
            unused.append(released)
        else:
            pictures[name] = value
    return transformer, pictures, sorted(unused)


def joined_weights(transformer: Mapping[str, Tensor], pictures: Mapping[str, Tensor], tokenizer: str) -> dict[str, Tensor]:
    """The names of a released file again; ``tokenizer`` is "vqvae" or "vqgan"."""
    prefix = {"vqvae": "module.vae.", "vqgan": "module.vae.model."}[tokenizer]
    return {f"module.{k}": v for k, v in transformer.items()} | {prefix + k: v for k, v in pictures.items()}


def load_released(
    weights: Mapping[str, Tensor], where: str | Path, *, heads: int = 8, resolution: int | None = None
) -> tuple[PrototypeTransformer, VQVAE | VQGAN, list[str]]:
    """The transformer and the picture tokenizer of a released file, in the precision it is stored in.

    Args:
        heads: of the transformer's attention, which the weights do not show.
        resolution: side of the pictures the tokenizer was trained on; None: that of the transformer's grid.

    Returns:
        the two parts, and the released names that only training needs.

    Raises:
        CCDiffError: not such a file; missing, surplus and wrongly shaped weights, all listed; heads that do not divide the width.
    """
    own, pictures, unused = split_weights(weights)
    fix = "give a released mhn_vqvae.pth or mhn_vqgan.pth, which hold both stages"
    with odd_sizes("a Txt2Img-MHN checkpoint", where, fix):
        sizes = sizes_of(own, heads)
        made = make_pictures(pictures, resolution_of(pictures, sizes["grid"]) if resolution is None else resolution)
        width = own["prototype_learning.layers.0.1.fn.fn.to_qk.weight"].shape[0]
        if width % (2 * heads):
            raise CCDiffError(f"attention of width {width // 2} cannot have {heads} heads", where=where, fix="say how many it has")
        transformer = PrototypeTransformer(**sizes)
    kind = "vqvae" if isinstance(made, VQVAE) else "vqgan"
    found = {k.removeprefix("module."): v for k, v in joined_weights(own, pictures, kind).items()}
    expected = {k.removeprefix("module."): v for k, v in joined_weights(transformer.state_dict(), made.state_dict(), kind).items()}
    account_for(expected, found, where, fix)
    for module, values in ((transformer, own), (made, pictures)):
        kinds = {value.dtype for value in values.values() if value.is_floating_point()}
        if len(kinds) == 1:
            module.to(kinds.pop())
        module.load_state_dict(values)
        module.eval()
    return transformer, made, unused


def resolution_of(pictures: Mapping[str, Tensor], grid: tuple[int, int]) -> int:
    """Pixels of a side, from the grid of the transformer and the levels of the tokenizer."""
    if "codebook.weight" in pictures:
        return grid[0] * 2 ** _count(pictures, r"encoder\.(\d+)\.0\.weight")
    return grid[0] * 2 ** (_count(pictures, r"encoder\.down\.(\d+)\.") - 1)


def make_pictures(weights: Mapping[str, Tensor], resolution: int) -> VQVAE | VQGAN:
    """An untrained picture tokenizer of the sizes of weights.

    Raises:
        KeyError: neither of the two.
    """
    if "codebook.weight" in weights:
        codes, width = weights["codebook.weight"].shape
        halvings = _count(weights, r"encoder\.(\d+)\.0\.weight")
        last = weights[f"encoder.{halvings + _count(weights, _RESIDUAL)}.weight"]
        channels = weights[f"decoder.{len({k.split('.')[1] for k in weights if k.startswith('decoder.')}) - 1}.weight"].shape[0]
        return VQVAE(codes, width, halvings, _count(weights, _RESIDUAL), hidden=last.shape[1], channels=channels)
    codes, width = weights["quantize.embedding.weight"].shape
    levels = _count(weights, r"encoder\.down\.(\d+)\.")
    first = weights["encoder.conv_in.weight"]
    into, latent = weights["encoder.conv_out.weight"].shape[0], weights["post_quant_conv.weight"].shape[0]
    return VQGAN(
        codes=codes,
        code_width=width,
        latent_channels=latent,
        width=first.shape[0],
        multiples=tuple(weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // first.shape[0] for i in range(levels)),
        residual_blocks=_count(weights, r"encoder\.down\.0\.block\.(\d+)\."),
        resolution=resolution,
        attention_sides=tuple(resolution // 2**i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in weights),
        channels=first.shape[1],
        out_channels=weights["decoder.conv_out.weight"].shape[0],
        double_latent=into == 2 * latent,
    )


_RESIDUAL = r"encoder\.(\d+)\.net\.0\.weight"


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in weights if (found := re.match(pattern, name))})


@locked("import-checkpoint", whole=True)
def import_checkpoint(released: str | Path, out: str | Path) -> dict[str, Any]:
    """Make a generator folder of a released checkpoint.

    Args:
        released: a folder with ``mhn_vqvae.pth`` or ``mhn_vqgan.pth`` (another name will do) and the vocabulary's text file.
        out: the generator folder; must not exist, or be empty.

    Returns:
        the generator's description, as in its ``ccdiff.json``; ``unused_keys`` lists what of the checkpoint only training needs.

    Raises:
        CCDiffError: a file is missing, or does not hold what it should; missing and surplus keys are listed.
    """
    released, out = Path(released), Path(out)
    check_empty(out)
    there = sorted(p for p in released.iterdir() if p.is_file() and not p.name.startswith(".")) if released.is_dir() else []
    weights = [p for p in there if p.suffix in (".pth", ".pt", ".ckpt")]
    texts = [p for p in there if p not in weights]
    if len(weights) != 1 or len(texts) != 1:
        raise CCDiffError(
            f"expected a file of weights and one of the vocabulary, found {', '.join(p.name for p in there) or 'none'}",
            where=released,
            fix="give a folder that holds mhn_vqvae.pth (or mhn_vqgan.pth) and the vocabulary's text file, nothing else",
        )
    transformer, pictures, unused = load_released(read_pickle(weights[0], "state_dict"), weights[0])
    pieces = read_pieces(texts[0], transformer.config.text_length)
    if pieces.size > transformer.config.text_ids:
        raise CCDiffError(
            f"the vocabulary has ids up to {pieces.size - 1}, the weights know {transformer.config.text_ids}",
            where=texts[0],
            fix="give the vocabulary that the checkpoint was trained with",
        )
    pipe = MHNPipeline(transformer=transformer, pictures=pictures, vocabulary=pieces.config.text)
    hashes = {path.name: sha256_file(path) for path in (*weights, *texts)}
    size = transformer.config.grid[0] * pictures.factor
    description = imported("txt2img_mhn", ["txt2img_mhn", hashes], size, hashes, unused=unused)
    description["method"] = "txt2img_mhn"
    write_generator(pipe, out, description)
    return description


@locked("export-checkpoint")
def export_checkpoint(generator: str | Path, out: str | Path) -> list[Path]:
    """Write a generator as a released checkpoint folder; the files written."""
    read_generator(generator)
    pipe, out = MHNPipeline.from_pretrained(str(generator)), Path(out)
    kind = "vqvae" if isinstance(pipe.pictures, VQVAE) else "vqgan"
    target, vocabulary = out / f"mhn_{kind}.pth", out / "vocabulary.bpe"
    write_tensors(joined_weights(pipe.transformer.state_dict(), pipe.pictures.state_dict(), kind), target)
    write_pieces(pipe.pieces, vocabulary)
    return [target, vocabulary]
