"""Our own small text and image encoders: the classes of Stable Diffusion and DINOv2 at a hundredth of the size.

A word-level tokenizer with ``CLIPTextModel``, and ``Dinov2Model``, trained together: a crop must find its class name, a picture its
caption (contrastive, as CLIP), and each patch token must still tell the colours of its patch, so that reference tokens carry appearance
and not only class.  They are frozen afterwards; the generator sees their tokens exactly as it would see CLIP's and DINOv2's.
"""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BitImageProcessor, CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast

from ..methods.recipe import EncodersConfig
from .loop import Run, batch_indices, pass_of, run_stage, seed_of

SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")
NUMBER_WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "several", "many", "no"]


def build_tokenizer(texts: list[str], max_words: int) -> PreTrainedTokenizerFast:
    """A lower-case word tokenizer over every word of ``texts``, the numbers to 99 and a few number words."""
    words = set(NUMBER_WORDS) | {str(n) for n in range(100)}
    for text in texts:
        words.update(re.findall(r"\w+|[^\w\s]", text.lower()))
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", SPECIAL.index("<start>")), ("<end>", SPECIAL.index("<end>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_words, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    )


def build_encoders(
    config: EncodersConfig, texts: list[str]
) -> tuple[PreTrainedTokenizerFast, CLIPTextModel, BitImageProcessor, Dinov2Model]:
    """Untrained tokenizer, text encoder, image processor and image encoder of the recipe's sizes."""
    tokenizer = build_tokenizer(texts, config.max_words)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_width // 32 or 1,
            max_position_embeddings=config.max_words,
            hidden_act="gelu",
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    size = config.image_size
    processor = BitImageProcessor(
        size={"height": size, "width": size},
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        resample=3,
    )
    image = Dinov2Model(
        Dinov2Config(
            hidden_size=config.image_width,
            num_hidden_layers=config.image_layers,
            num_attention_heads=max(1, config.image_width // 32),
            mlp_ratio=3,
            image_size=size,
            patch_size=config.image_patch,
        )
    )
    return tokenizer, text, processor, image


def resize_pixels(pixels: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 to (size, size, 3) uint8, as the image processor does (bicubic with antialiasing)."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


class _ContrastiveLoss(nn.Module):
    def __init__(self, text: CLIPTextModel, image: Dinov2Model, class_ids: torch.Tensor, class_mask: torch.Tensor) -> None:
        super().__init__()
        self.text, self.image = text, image
        width = image.config.hidden_size
        self.to_text = nn.Linear(width, text.config.hidden_size)
        self.to_patch = nn.Linear(width, 3 * image.config.patch_size**2)
        self.scale = nn.Parameter(torch.tensor(2.6))
        self.class_ids: torch.Tensor
        self.class_mask: torch.Tensor
        self.register_buffer("class_ids", class_ids)
        self.register_buffer("class_mask", class_mask)

    def forward(
        self, crops: torch.Tensor, classes: torch.Tensor, pictures: torch.Tensor, captions: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        tokens = self.image(torch.cat([crops, pictures])).last_hidden_state
        embedded = F.normalize(self.to_text(tokens[:, 0]).float(), dim=-1)
        patch = self.image.config.patch_size
        patches = F.unfold(torch.cat([crops, pictures]), patch, stride=patch).transpose(1, 2)
        loss = F.l1_loss(self.to_patch(tokens[:, 1:]).float(), patches)
        scale = self.scale.clamp(max=4.6).exp()
        names = F.normalize(self.text(input_ids=self.class_ids, attention_mask=self.class_mask).pooler_output.float(), dim=-1)
        loss = loss + F.cross_entropy(scale * embedded[: len(crops)] @ names.T, classes)
        written = F.normalize(self.text(input_ids=captions, attention_mask=mask).pooler_output.float(), dim=-1)
        logits = scale * embedded[len(crops) :] @ written.T
        # pictures with the same caption are not each other's negatives
        same = (captions[:, None] == captions[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        return loss + 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def train_encoders(
    config: EncodersConfig,
    run: Run,
    *,
    crops: list[tuple[np.ndarray, int]],
    pictures: list[np.ndarray],
    captions: list[str],
    class_names: list[str],
    texts: list[str],
) -> tuple[PreTrainedTokenizerFast, CLIPTextModel, BitImageProcessor, Dinov2Model]:
    """Train (or finish training) our own encoders.

    Args:
        crops: reference crops, (image_size, image_size, 3) uint8, with the index of their class.
        pictures: training pictures, same size, one for each of ``captions``.
        texts: everything the vocabulary must cover.
    """
    assert config.train is not None
    torch.manual_seed(seed_of(run.seed, "encoders", "weights"))
    tokenizer, text, processor, image = build_encoders(config, texts)
    names = tokenizer(class_names, padding=True, return_tensors="pt")
    written = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    module = _ContrastiveLoss(text, image, names["input_ids"], names["attention_mask"])
    train = config.train
    crop_pixels, crop_classes = np.stack([c for c, _ in crops]), np.array([i for _, i in crops])
    picture_pixels = np.stack(pictures)
    by_class = [np.flatnonzero(crop_classes == i) for i in range(len(class_names))]
    present = [i for i, members in enumerate(by_class) if len(members)]

    def augmented(pixels: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        turned = [np.rot90(p, int(rng.integers(4)))[:, :: (-1 if rng.integers(2) else 1)] for p in pixels]
        values = torch.from_numpy(np.ascontiguousarray(np.stack(turned))).permute(0, 3, 1, 2).float() / 127.5 - 1
        gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(values), 1, 1, 1))).float()
        return values * gain

    def batch_of(step: int, micro: int, rank: int, world: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(seed_of(run.seed, "encoders", "draw", step, *pass_of(micro, rank, world)))
        half = train.model_copy(update={"batch_size": max(1, train.batch_size // 2)})
        shown = batch_indices(len(pictures), step=step, micro=micro, rank=rank, world=world, config=half, seed=run.seed, stage="encoders")
        # classes are drawn evenly: rare ones must be told apart as well
        drawn = [int(rng.choice(by_class[present[int(rng.integers(len(present)))]])) for _ in range(half.batch_size)]
        return {
            "crops": augmented(crop_pixels[drawn], rng),
            "classes": torch.from_numpy(crop_classes[drawn]).long(),
            "pictures": augmented(picture_pixels[shown], rng),
            "captions": written["input_ids"][shown],
            "mask": written["attention_mask"][shown],
        }

    run_stage("encoders", module, batch_of, train, run)
    text.eval().requires_grad_(False)
    image.eval().requires_grad_(False)
    return tokenizer, text, processor, image
