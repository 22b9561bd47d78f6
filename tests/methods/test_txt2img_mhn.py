"""Txt2Img-MHN against its published computation in plain form; its text tokenizer; sampling; gradients; released names."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.methods.txt2img_mhn.checkpoints import joined_weights, load_released, split_weights
from ccdiff_cli.methods.txt2img_mhn.network import PrototypeTransformer, keep_largest, sizes_of, uniform_of
from ccdiff_cli.methods.txt2img_mhn.pictures import VQGAN, VQVAE, gumbel_noise
from ccdiff_cli.methods.txt2img_mhn.tokenizer import CaptionPieces, learn_pieces, plain_words, read_pieces, write_pieces
from tests import golden_check
from tests.models.plain import linear, norm

T, GRID = 6, (2, 3)
MHN = dict(width=16, blocks=2, heads=2, head_width=5, prototypes=7, text_ids=20, text_length=T, codes=11, grid=GRID)
CAPTIONS = [
    "Three ships in a harbor.",
    "two planes near the harbor, parked",
    "a ship",
    "ships and planes; many ships",
    "bridge over a river",
]


def close(found: Tensor, expected: Tensor) -> None:
    assert golden_check.relative_error(found.detach(), expected.detach()) < 2e-6


# ---- text ----


def plain_encode(text: str, model: str) -> list[int]:
    """The page's paragraph, word by word, pair by pair."""
    lines = [[int(v) for v in line.split()] for line in model.strip().split("\n")]
    n, m = lines[0]
    known = {chr(code): number for code, number in lines[1 : 1 + n]}
    rules = [tuple(line) for line in lines[1 + n : 1 + n + m]]
    unk = lines[-1][0]
    out = []
    for word in text.split():
        ids = []
        for character in "\u2581" + word:
            number = known.get(character, unk)
            if number == unk and ids and ids[-1] == unk:
                continue
            ids.append(number)
        merged = True
        while merged:
            merged = False
            for left, right, new in rules:
                for k in range(len(ids) - 1):
                    if (ids[k], ids[k + 1]) == (left, right):
                        ids[k : k + 2] = [new]
                        merged = True
                        break
                if merged:
                    break
        out += ids
    return out


PIECES = learn_pieces(CAPTIONS, 60, length=T)


@given(st.text(alphabet="shipanedroblgtkr vZ!é3", max_size=30))
@settings(max_examples=200, deadline=None)
def test_encoding_is_the_published_one(text):
    assert PIECES.encode(text) == plain_encode(text, PIECES.config.text)


def test_unknown_characters_in_a_row_are_one_and_words_do_not_mix():
    unk = 1
    assert PIECES.encode("ZZQ!") == [PIECES.characters["\u2581"], unk]
    assert PIECES.encode("Z Z").count(unk) == 2
    assert PIECES.encode("a\tship\n") == PIECES.encode("a ship") == PIECES.encode("a") + PIECES.encode("ship")
    assert PIECES.encode(" \u2581a") == PIECES.encode("a")
    assert PIECES.encode("") == []


def test_best_priority_goes_first_then_leftmost():
    model = "3 3\n9601 4\n97 5\n98 6\n5 5 7\n7 7 8\n6 5 9\n1 0 2 3\n"
    pieces = CaptionPieces(text=model)
    assert pieces.encode("aaa") == [4, 7, 5]  # leftmost
    assert pieces.encode("baa") == [4, 6, 7]  # aa before ba
    assert pieces.encode("aaaa") == [4, 8]


def test_captions_are_lowered_stripped_filled_and_cut():
    assert plain_words("Three  SHIPS, in a harbor's end.") == "three ships in a harbors end"
    ids, counts = PIECES(["A ship.", "many planes over the river near many ships", ""])
    assert ids.shape == (3, T) and ids.dtype == torch.int64
    assert ids[0].tolist() == (PIECES.encode("a ship") + [0] * T)[:T]
    assert counts[1] > T and ids[1].tolist() == PIECES.encode("many planes over the river near many ships")[:T]
    assert counts[2] == 0 and ids[2].tolist() == [0] * T


def test_learning_is_repeatable_bounded_and_knows_its_captions(tmp_path):
    assert learn_pieces(CAPTIONS, 60).config.text == PIECES.config.text
    assert PIECES.size <= 60 and learn_pieces(CAPTIONS, 10_000).size < 10_000
    assert not any(1 in PIECES.encode(plain_words(caption)) for caption in CAPTIONS)
    assert len(PIECES.encode("ships")) < 5
    PIECES.save_pretrained(tmp_path / "part")
    assert CaptionPieces.from_pretrained(tmp_path / "part").encode("two ships") == PIECES.encode("two ships")
    write_pieces(PIECES, tmp_path / "bpe.txt")
    again = read_pieces(tmp_path / "bpe.txt", length=4)
    assert again.merges == PIECES.merges and again(["a ship"])[0].shape == (1, 4)
    with pytest.raises(CCDiffError, match="no caption has a word"):
        learn_pieces(["...", ""], 50)


@pytest.mark.parametrize(
    "text, line",
    [
        ("", 1),
        ("2 0\n97 4\n1 0 2 3", "announces"),
        ("1 1\n97 4\n4 x 5\n1 0 2 3", 3),
        ("1 0\n9999999 4\n1 0 2 3", 2),
        ("1 0\n97 4\n1 0 2", 3),
    ],
)
def test_a_vocabulary_that_is_none_is_refused_with_its_line(tmp_path, text, line):
    (tmp_path / "bpe.txt").write_text(text)
    with pytest.raises(CCDiffError, match=f"line {line} " if isinstance(line, int) else line) as caught:
        read_pieces(tmp_path / "bpe.txt")
    assert caught.value.where == str(tmp_path / "bpe.txt")


# ---- picture tokenizers ----


def conv(w: dict[str, Tensor], name: str, x: Tensor, **options) -> Tensor:
    return F.conv2d(x, w[name + ".weight"], w[name + ".bias"], **options)


def plain_residual(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    h = F.relu(conv(w, f"{name}.net.0", x, padding=1))
    return x + conv(w, f"{name}.net.4", F.relu(conv(w, f"{name}.net.2", h, padding=1)))


def plain_vqvae_decode(w: dict[str, Tensor], z: Tensor, halvings: int, residuals: int) -> Tensor:
    k = 0
    if residuals:
        z, k = conv(w, "decoder.0", z), 1
        for _ in range(residuals):
            z, k = plain_residual(w, f"decoder.{k}", z), k + 1
    for _ in range(halvings):
        z = F.relu(F.conv_transpose2d(z, w[f"decoder.{k}.0.weight"], w[f"decoder.{k}.0.bias"], stride=2, padding=1))
        k += 1
    return conv(w, f"decoder.{k}", z)


@pytest.mark.parametrize("halvings, residuals", [(2, 2), (3, 0), (1, 1)])
def test_vqvae_is_the_published_one(halvings, residuals):
    torch.manual_seed(0)
    vae = VQVAE(codes=9, code_width=5, halvings=halvings, residual_blocks=residuals, hidden=6)
    w = vae.state_dict()
    x = torch.rand(2, 3, 16, 24)
    h = 2 * x - 1
    for k in range(halvings):
        h = F.relu(conv(w, f"encoder.{k}.0", h, stride=2, padding=1))
    for k in range(halvings, halvings + residuals):
        h = plain_residual(w, f"encoder.{k}", h)
    logits = conv(w, f"encoder.{halvings + residuals}", h)
    close(vae.logits(x), logits)
    codes = vae.encode(x)
    assert codes.tolist() == logits.argmax(1).tolist() and codes.shape == (2, 16 // vae.factor, 24 // vae.factor)
    raw = plain_vqvae_decode(w, w["codebook.weight"][codes].permute(0, 3, 1, 2), halvings, residuals)
    close(vae.raw(codes), raw)
    assert torch.equal(vae.decode(codes), ((vae.raw(codes) + 1) / 2).clamp(0, 1))
    noise = gumbel_noise(torch.rand_like(logits))
    soft = torch.stack([((logits[b] + noise[b]) / 0.7).softmax(0).flatten(1).T @ w["codebook.weight"] for b in range(2)])
    close(vae.reconstruct(x, noise, 0.7), plain_vqvae_decode(w, soft.transpose(1, 2).unflatten(2, codes.shape[1:]), halvings, residuals))
    close(vae.loss(x, noise, 0.7), (vae.reconstruct(x, noise, 0.7) - (2 * x - 1)).square().mean())
    vae.loss(x, noise, 0.7).backward()
    assert not [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum()]


def group(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    parts = x.reshape(len(x), 32, -1)
    parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return parts.view_as(x) * w[name + ".weight"].view(-1, 1, 1) + w[name + ".bias"].view(-1, 1, 1)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def plain_block(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    h = conv(w, name + ".conv1", swish(group(w, name + ".norm1", x)), padding=1)
    h = conv(w, name + ".conv2", swish(group(w, name + ".norm2", h)), padding=1)
    return h + (conv(w, name + ".nin_shortcut", x) if name + ".nin_shortcut.weight" in w else x)


def plain_cells(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = group(w, name + ".norm", x)
    q, k, v = (conv(w, f"{name}.{p}", y).flatten(2) for p in "qkv")
    weights = (q.transpose(1, 2) @ k / math.sqrt(x.shape[1])).softmax(-1)
    return x + conv(w, name + ".proj_out", (v @ weights.transpose(1, 2)).view_as(x))


def plain_middle(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return plain_block(w, name + ".block_2", plain_cells(w, name + ".attn_1", plain_block(w, name + ".block_1", x)))


def plain_vqgan_encode(w: dict[str, Tensor], x: Tensor, levels: int, blocks: int, attention: set[int]) -> Tensor:
    h = conv(w, "encoder.conv_in", 2 * x - 1, padding=1)
    for i in range(levels):
        for j in range(blocks):
            h = plain_block(w, f"encoder.down.{i}.block.{j}", h)
            if i in attention:
                h = plain_cells(w, f"encoder.down.{i}.attn.{j}", h)
        if i < levels - 1:
            h = conv(w, f"encoder.down.{i}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    h = plain_middle(w, "encoder.mid", h)
    return conv(w, "quant_conv", conv(w, "encoder.conv_out", swish(group(w, "encoder.norm_out", h)), padding=1))


def plain_vqgan_decode(w: dict[str, Tensor], z: Tensor, levels: int, blocks: int, attention: set[int]) -> Tensor:
    h = plain_middle(w, "decoder.mid", conv(w, "decoder.conv_in", conv(w, "post_quant_conv", z), padding=1))
    for i in reversed(range(levels)):
        for j in range(blocks + 1):
            h = plain_block(w, f"decoder.up.{i}.block.{j}", h)
            if i in attention:
                h = plain_cells(w, f"decoder.up.{i}.attn.{j}", h)
        if i:
            h = conv(w, f"decoder.up.{i}.upsample.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
    return conv(w, "decoder.conv_out", swish(group(w, "decoder.norm_out", h)), padding=1)


@pytest.mark.parametrize("multiples, sides, blocks", [((1, 2), (8,), 1), ((1, 1, 2), (16, 4), 2)])
def test_vqgan_is_the_published_one(multiples, sides, blocks):
    torch.manual_seed(1)
    levels = len(multiples)
    vae = VQGAN(13, 6, 10, width=32, multiples=multiples, residual_blocks=blocks, resolution=16, attention_sides=sides).double()
    w = vae.state_dict()
    attention = {i for i in range(levels) if 16 // 2**i in sides}
    x = torch.rand(2, 3, 16, 16).double()
    z = plain_vqgan_encode(w, x, levels, blocks, attention)
    close(vae.latents(x), z)
    distance = torch.cdist(z.permute(0, 2, 3, 1).flatten(1, 2).double(), w["quantize.embedding.weight"].double().expand(2, -1, -1))
    codes = vae.encode(x)
    assert codes.flatten(1).tolist() == distance.argmin(-1).tolist()
    q = w["quantize.embedding.weight"][codes].permute(0, 3, 1, 2)
    close(vae.raw(codes), plain_vqgan_decode(w, q, levels, blocks, attention))
    assert torch.equal(vae.decode(codes), (vae.raw(codes).clamp(-1, 1) + 1) / 2)
    out, loss = vae.reconstruct(x)
    close(out, vae.raw(codes))
    close(loss, 1.25 * (q - z).square().mean())
    ((out - (2 * x - 1)).abs().mean() + loss).backward()
    assert not [n for n, p in vae.named_parameters() if p.grad is None]
    used = vae.quantize.embedding.weight.grad.abs().sum(1) > 0
    assert used.nonzero().flatten().tolist() == sorted(set(codes.flatten().tolist()))
    assert vae.encoder.conv_in.weight.grad.abs().sum() > 0  # through the nearest code, as if it were the latent


# ---- transformer ----


def plain_sequence(w: dict[str, Tensor], text: list[int], codes: list[int]) -> Tensor:
    """Masked logits of one picture, row by row."""
    text_n = w["text_emb.weight"].shape[0]
    ids = [0] + [text_n - T + p if number == 0 else number for p, number in enumerate(text)]
    rows = [w["text_emb.weight"][number] + w["text_pos_emb.weight"][r] for r, number in enumerate(ids)]
    for k, code in enumerate(codes):
        row, column = divmod(k, GRID[1])
        place = w["image_pos_emb.weights_0"][0, row, 0] + w["image_pos_emb.weights_1"][0, 0, column]
        rows.append(w["image_emb.weight"][code] + place)
    x = torch.stack(rows[: T + GRID[0] * GRID[1]])
    width = x.shape[1]
    for b in range(MHN["blocks"]):
        name = f"prototype_learning.layers.{b}"
        y = norm(w, f"{name}.0.fn.norm", x)
        weights = (y @ w[f"{name}.0.fn.fn.lookup_matrix.weight"].T / math.sqrt(width)).softmax(-1)
        x = x + w[f"{name}.0.scale"][0] * (weights @ w[f"{name}.0.fn.fn.content_matrix.weight"].T)
        q, k = linear(w, f"{name}.1.fn.fn.to_qk", norm(w, f"{name}.1.fn.norm", x)).chunk(2, -1)
        heads = []
        for a, c in zip(q.chunk(MHN["heads"], -1), k.chunk(MHN["heads"], -1), strict=True):
            out = [(a[r] @ c[: r + 1].T / math.sqrt(MHN["head_width"])).softmax(-1) @ c[: r + 1] for r in range(len(x))]
            heads.append(torch.stack(out))
        x = x + w[f"{name}.1.scale"][0] * linear(w, f"{name}.1.fn.fn.to_out.0", torch.cat(heads, -1))
    logits = norm(w, "content.1", (x @ w["lookup.weight"].T / math.sqrt(width)).softmax(-1) @ w["content.0.weight"].T)
    for r in range(len(x)):
        lowest = -torch.finfo(torch.float32).max
        if r < T:
            logits[r, text_n:] = lowest
        else:
            logits[r, :text_n] = lowest
    return logits


def make_mhn(**changes) -> PrototypeTransformer:
    torch.manual_seed(4)
    mhn = PrototypeTransformer(**MHN | changes).eval()
    with torch.no_grad():
        for name, parameter in mhn.named_parameters():
            if name.endswith("scale") or "norm" in name or name.startswith("content.1"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return mhn


TEXT = torch.tensor([[3, 4, 5, 19, 0, 0], [0, 0, 0, 0, 0, 0], [7, 0, 9, 1, 2, 3]])
CODES = torch.tensor([[1, 2, 3, 4, 5, 6], [10, 9, 8, 7, 0, 0], [0, 1, 0, 1, 0, 1]])


@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_logits_are_the_published_ones_and_rows_do_not_see_the_batch(count):
    mhn = make_mhn()
    w = mhn.state_dict()
    found = mhn(TEXT, CODES[:, :count] if count else None)
    assert found.shape[1] == min(T + 1 + count, T + 6)
    for b in range(3):
        expected = plain_sequence(w, TEXT[b].tolist(), CODES[b, :count].tolist())
        close(found[b].clamp(min=-100), expected.clamp(min=-100))
        assert (found[b].isfinite() & (found[b] == expected.min())).equal(expected == expected.min())
        close(mhn(TEXT[b : b + 1], CODES[b : b + 1, :count])[0].clamp(min=-100), found[b].clamp(min=-100))


def test_loss_is_the_cross_entropy_of_codes_over_the_whole_vocabulary():
    mhn = make_mhn()
    logits = mhn(TEXT, CODES)
    expected = F.cross_entropy(logits[:, T:].flatten(0, 1), (CODES + mhn.all_text).flatten())
    close(mhn.loss(TEXT, CODES), expected)
    mhn.loss(TEXT, CODES).backward()
    assert not [n for n, p in mhn.named_parameters() if p.grad is None or not p.grad.abs().sum()]


def test_dropout_only_while_training():
    mhn = make_mhn()
    assert torch.equal(mhn(TEXT, CODES), mhn(TEXT, CODES))
    mhn.train()
    assert not torch.equal(mhn(TEXT, CODES), mhn(TEXT, CODES))
    with pytest.raises(ValueError, match="6 places"):
        mhn(TEXT[:, :5])


def plain_sample(w: dict[str, Tensor], text: list[int], uniform: Tensor, threshold: float, temperature: float) -> list[int]:
    """The whole sequence again for every code."""
    codes: list[int] = []
    text_n = w["text_emb.weight"].shape[0]
    for numbers in uniform:
        logits = plain_sequence(w, text, codes)[-1]
        count = max(int((1 - threshold) * len(logits)), 1)
        kept = logits.argsort(descending=True)[:count]
        noise = -torch.log(-torch.log(numbers + 1e-20) + 1e-20)
        scores = logits[kept] / temperature + noise[kept]
        codes.append(int(kept[scores.argmax()]) - text_n)
    return codes


@pytest.mark.parametrize("threshold, temperature", [(0.9, 1.0), (0.5, 0.3), (1.0, 2.0), (0.0, 1.5), (0.7, 0.05)])
def test_sampling_row_by_row_gives_the_codes_of_the_whole_sequence(threshold, temperature):
    mhn = make_mhn()
    with torch.no_grad():
        mhn.content[1].weight.mul_(3)
    uniform = torch.rand(6, 3, mhn.all_text + 11, generator=torch.Generator().manual_seed(5))
    uniform[0, 0] = 0.0
    text = TEXT.clone()
    found = mhn.sample(text, uniform, filter_threshold=threshold, temperature=temperature)
    assert torch.equal(text, TEXT)
    for b in range(3):
        assert found[b].tolist() == plain_sample(mhn.state_dict(), TEXT[b].tolist(), uniform[:, b], threshold, temperature)
        alone = mhn.sample(TEXT[b : b + 1], uniform[:, b : b + 1], filter_threshold=threshold, temperature=temperature)
        assert alone[0].tolist() == found[b].tolist()


def test_guidance_pushes_away_from_no_caption_and_leaves_the_text_alone():
    mhn = make_mhn()
    uniform = torch.rand(6, 3, mhn.all_text + 11, generator=torch.Generator().manual_seed(6))
    text = TEXT.clone()
    guided = mhn.sample(text, uniform, guidance=4.0)
    assert torch.equal(text, TEXT)
    without, with_ = mhn(torch.zeros_like(TEXT))[:, -1, mhn.all_text :], mhn(TEXT)[:, -1, mhn.all_text :]
    logits = keep_largest(without + 4 * (with_ - without), 0.9, mhn.all_text + 11)
    assert guided[:, 0].tolist() == (logits + gumbel_noise(uniform[0, :, mhn.all_text :])).argmax(-1).tolist()
    assert torch.equal(mhn.sample(text, uniform, guidance=1.0), mhn.sample(text, uniform))
    assert torch.equal(mhn.sample(text[1:2], uniform[:, 1:2], guidance=9.0), mhn.sample(text[1:2], uniform[:, 1:2]))  # no caption


def test_a_picture_has_its_own_numbers_whatever_else_is_in_the_batch():
    def draw(seeds):
        numbers = uniform_of([torch.Generator().manual_seed(s) for s in seeds], 9)
        return torch.stack([next(numbers) for _ in range(4)])

    assert torch.equal(draw([1, 2, 3])[:, 1], draw([2])[:, 0])


def test_the_number_of_codes_kept_is_of_the_whole_vocabulary():
    for codes, kept in ((1024, 606), (2048, 708)):
        logits = torch.randn(2, codes)
        found = keep_largest(logits, 0.9, 5040 + codes)
        assert found.isfinite().sum(-1).tolist() == [kept, kept]
        assert found[0].max() == logits[0].max()
    assert keep_largest(torch.arange(5.0), 0.999, 100).isfinite().sum() == 1
    assert keep_largest(torch.arange(5.0), 0.5, 100).isfinite().all()


def test_settings_out_of_range_are_refused():
    for options in ({"temperature": 0.0}, {"temperature": math.nan}, {"filter_threshold": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            make_mhn().sample(TEXT, [], **options)


# ---- released files ----


def small_pictures(kind: str):
    torch.manual_seed(8)
    if kind == "vqvae":
        return VQVAE(codes=11, code_width=5, halvings=2, residual_blocks=1, hidden=6)
    return VQGAN(11, 6, 10, width=32, multiples=(1, 2, 1), residual_blocks=1, resolution=32, attention_sides=(8,), double_latent=True)


@pytest.mark.parametrize("kind", ["vqvae", "vqgan"])
def test_released_names_there_and_back(kind):
    mhn, vae = make_mhn(grid=(8, 8)), small_pictures(kind)
    weights = {k: v.half() for k, v in joined_weights(mhn.state_dict(), vae.state_dict(), kind).items()}
    assert f"module.vae.{'model.' if kind == 'vqgan' else ''}encoder.{'conv_in' if kind == 'vqgan' else '0.0'}.weight" in weights
    assert "module.prototype_learning.layers.1.1.fn.fn.to_out.0.bias" in weights
    ignored = {"module.vae.model.loss.discriminator.main.0.weight": torch.zeros(2)} if kind == "vqgan" else {}
    transformer, pictures, unused = load_released(weights | ignored, "here", heads=2)
    assert unused == list(ignored)
    assert dict(transformer.config)["grid"] == (8, 8) and transformer.config.head_width == 5 and transformer.config.text_ids == 20
    assert {k: v for k, v in pictures.config.items() if k[0] != "_"} == {k: v for k, v in vae.config.items() if k[0] != "_"}
    back = joined_weights(transformer.state_dict(), pictures.state_dict(), kind)
    assert set(back) == set(weights) and all(torch.equal(back[k], weights[k]) for k in weights)
    # in the other spelling of a later package, and without the wrapper's name
    other = {k.removeprefix("module.").replace("weights_0", "weights.0"): v for k, v in weights.items()}
    assert torch.equal(load_released(other, "here", heads=2)[0].image_pos_emb.weights_0, weights["module.image_pos_emb.weights_0"])


def test_every_odd_released_weight_is_named_at_once():
    weights = joined_weights(make_mhn(grid=(8, 8)).state_dict(), small_pictures("vqvae").state_dict(), "vqvae")
    del weights["module.content.1.bias"], weights["module.vae.decoder.1.net.2.bias"]
    weights |= {"module.more": torch.zeros(1), "module.text_pos_emb.bias": torch.zeros(1)}
    with pytest.raises(CCDiffError) as caught:
        load_released(weights, "mhn_vqvae.pth", heads=2)
    for name in ("content.1.bias", "vae.decoder.1.net.2.bias", "more", "text_pos_emb.bias", "mhn_vqvae.pth"):
        assert name in str(caught.value)
    with pytest.raises(CCDiffError, match="3 heads"):
        load_released(joined_weights(make_mhn().state_dict(), small_pictures("vqvae").state_dict(), "vqvae"), "x", heads=3)
    with pytest.raises(CCDiffError, match="not a Txt2Img-MHN checkpoint"):
        load_released({"unet.conv.weight": torch.zeros(1)}, "x")


def test_sizes_are_those_of_the_published_transformer():
    made = PrototypeTransformer()
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(27.5e6, rel=0.005)
    assert sizes_of(made.state_dict()) == {k: v for k, v in dict(made.config).items() if k[0] != "_" and k != "dropout"}
    assert sum(p.numel() for p in PrototypeTransformer(codes=1024, grid=(16, 16)).parameters()) == pytest.approx(25.9e6, rel=0.005)
    assert sum(p.numel() for p in VQVAE().parameters()) == pytest.approx(1.86e6, rel=0.005)


@pytest.mark.slow
def test_size_of_the_published_vqgan():
    assert sum(p.numel() for p in VQGAN().parameters()) == pytest.approx(72.1e6, rel=0.005)


@pytest.mark.parametrize("kind", ["vqvae", "vqgan"])
def test_a_golden_file_is_run_with_its_own_sizes(tmp_path, kind):
    """A file as the published ones, of our own weights, with other sizes; expected codes come from the plain sampler."""
    vae, mhn = small_pictures(kind), make_mhn()
    pieces = CaptionPieces(length=T, text=PIECES.config.text)
    texts = ["a ship", "", "many planes over the river near"]
    text = torch.tensor([(pieces.encode(t) + [0] * T)[:T] for t in texts]).clamp(max=19)
    uniform = torch.rand(6, 3, mhn.all_text + 11, generator=torch.Generator().manual_seed(9))
    expected = torch.tensor([plain_sample(mhn.state_dict(), text[b].tolist(), uniform[:, b], 0.8, 0.6) for b in range(3)])
    config = {"num_tokens": 11, "codebook_dim": 5, "num_layers": 2, "num_resnet_blocks": 1, "hidden_dim": 6, "channels": 3}
    if kind == "vqgan":
        net = {"double_z": True, "z_channels": 10, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2, 1],
               "num_res_blocks": 1, "attn_resolutions": [8]}  # fmt: skip
        config = {"embed_dim": 6, "n_embed": 11, "ddconfig": net}
    settings_ = {"dim": 16, "n_block": 2, "heads": 2, "dim_head": 5, "num_prototype": 7, "num_text_tokens": 20, "text_seq_len": T}
    description = {"model": "txt2img_mhn", "tokenizer": kind, "vae_config": json.dumps(config), "mhn_config": json.dumps(settings_),
                   "filter_thres": "0.8", "temperature": "0.6", "gumbel_tau": "0.5"}  # fmt: skip
    tensors = joined_weights(mhn.state_dict(), vae.state_dict(), kind) | {"module.vae.model.loss.x": torch.zeros(1)}
    image = torch.rand(2, 3, 32, 32)
    tensors |= {"in.text": text, "in.uniform": uniform, "in.image": image, "out.sampled_tokens": expected}
    tensors["out.indices"] = vae.encode(image).flatten(1)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "x.safetensors", metadata=description)
    assert golden_check.main([str(tmp_path / "x.safetensors")]) == 0
    split = split_weights(tensors)[0]
    assert set(split) >= set(mhn.state_dict())
