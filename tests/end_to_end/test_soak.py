"""Thousands of pictures through one process: neither memory nor open files grow with what was done before."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.files import write_json
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.synthesis import verify_set
from tests.synthesis.grouped import make_set

psutil = pytest.importorskip("psutil")
PICTURES = 1000
ROUNDS = 5
FAKE = "tests.synthesis.fake:load"


def raw_set(root: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    images, boxes = [], []
    for k in range(PICTURES):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(root / "images" / f"p{k}.png")
        images.append({"id": k, "file_name": f"p{k}.png", "width": 32, "height": 32, "split": "train" if k % 5 else "test"})
        x, y = (int(v) for v in rng.integers(0, 16, 2))
        boxes.append({"id": k, "image_id": k, "category_id": 1, "bbox": [x, y, 12, 10]})
    labels = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "ship"}]}
    (root / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    return root


@pytest.mark.slow
def test_five_thousand_pictures_leave_memory_and_open_files_as_they_were(tmp_path: Path) -> None:
    generator = tmp_path / "generator"
    (generator / "unet").mkdir(parents=True)
    (generator / "unet" / "weights.safetensors").write_text("1.5")
    recipe = {"name": "fake", "caption_style": "short", "sampling": {"steps": 1, "guidance_scale": 1.0}, "denoiser": {"top_k": 2}}
    write_json(generator / "ccdiff.json", {"picture_size": 32, "classes": ["ship"], "recipe": recipe, "steps": 5})
    process, megabytes, handles = psutil.Process(), [], []
    for k in range(ROUNDS):
        here = tmp_path / str(k)
        prepare_dataset(raw_set(here / "raw", k), here / "set", PrepareOptions(size=32), processes=1)
        make_set(generator, here / "set", here / "synthetic", PICTURES, pipeline=FAKE, num_processes=1, batch_size=50)
        export_set(here / "synthetic", here / "coco", ExportOptions(format="coco"))
        assert verify_set(here / "synthetic")["ok"] and verify_set(here / "set")["ok"]
        gc.collect()
        megabytes.append(process.memory_info().rss >> 20)
        handles.append(len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else process.num_fds())
    print(megabytes, handles)
    assert handles[-1] == handles[0], handles
    assert megabytes[-1] - megabytes[0] < 100, f"MB after each {PICTURES} pictures: {megabytes}"
