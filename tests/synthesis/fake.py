"""A stand-in for the pipeline whose pictures show every mistake of the machinery: they depend on the layout, the caption, the
references, the noise and, slightly, on everything else in the batch."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ccdiff_cli.errors import CCDiffError


class FakePipeline:
    def __init__(self, weights: float) -> None:
        self.weights = weights

    def __call__(self, scenes, references, num_inference_steps, guidance_scale, negative_prompt, generator, output_type):
        assert output_type == "np"
        if len(scenes) > int(os.environ.get("FAKE_ROOM", "999")):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        fatal = os.environ.get("FAKE_DEATH")  # the worker that meets this picture dies, once
        if fatal and any(s.file_name == fatal for s in scenes):
            mark = Path(os.environ["FAKE_MARK"])
            if not mark.exists():
                mark.touch()
                os._exit(9)
        if os.environ.get("FAKE_NAN"):
            return SimpleNamespace(images=[np.full((s.height, s.width, 3), np.nan) for s in scenes])
        images = []
        for scene, chosen, noise in zip(scenes, references, generator, strict=True):
            image = torch.rand((scene.height, scene.width, 3), generator=noise) * 0.5
            for number, instance in enumerate(scene.instances):
                x1, y1, x2, y2 = (round(v) for v in instance.hbb)
                image[y1:y2, x1:x2, number % 3] = 1.0
            image[0, 0, 0] = (len(scene.caption) % 100) / 100
            image[0, 1, 0] = (num_inference_steps + guidance_scale + self.weights) / 1000
            if chosen is not None:
                keys = [r.key if r else "" for r in (*chosen.instances, chosen.background)]
                image[0, 2, 0] = (sum(map(ord, "".join(keys))) % 255) / 255
            images.append(image)
        if os.environ.get("FAKE_EXACT"):  # as if batched arithmetic did not round
            return SimpleNamespace(images=[i.numpy() for i in images])
        together = torch.stack(images).mean()
        return SimpleNamespace(images=[(0.98 * i + 0.02 * together).numpy() for i in images])


def load(checkpoint, device, precision):
    text = (Path(checkpoint) / "unet" / "weights.safetensors").read_text()
    try:
        return FakePipeline(float(text))
    except ValueError:
        raise CCDiffError("the generator cannot be loaded", where=checkpoint, fix="copy it again") from None
