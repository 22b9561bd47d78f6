"""Masks by a model: SAM's code path (random weights), U-2-Net where it is installed, windows, resumption, errors."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import SamModel, SamProcessor

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.prepare import masks as module
from ccdiff_cli.prepare.masks import SAM_SIDE, masker_of, sam, sam_windows, u2netp
from ccdiff_cli.references import cut_reference
from ccdiff_cli.scene import Instance
from tests.foreign import tiny_clip, tiny_sam
from tests.rawsets import files_of, picture, vhr10

BOXES = {f"{k:03d}": [("ship", (5, 5, 35, 30)), ("vehicle", (40, 20, 90, 60))] for k in range(3)}
SPLITS = {"train": ["000", "001"], "test": ["002"]}


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    return tiny_sam(tmp_path_factory.mktemp("sam"))


def test_sam_is_prompted_with_each_box(tmp_path, sam_folder, monkeypatch):
    """The masker's masks are those of transformers' own calls, one box at a time."""
    path, boxes = picture(tmp_path / "a.png", 140, 100), [(5, 5, 30, 40), (60, 50, 139, 100), (0, 0, 140, 100)]
    monkeypatch.setattr(module, "SAM_BOXES", 2)
    found = sam(str(sam_folder))[0](str(path), 140, 100, boxes)
    model, processor = SamModel.from_pretrained(sam_folder).eval(), SamProcessor.from_pretrained(sam_folder)
    for (x1, y1, x2, y2), mask in zip(boxes, found, strict=True):
        inputs = processor(Image.open(path), input_boxes=[[[float(v) for v in (x1, y1, x2, y2)]]], return_tensors="pt")
        inputs["input_boxes"] = inputs["input_boxes"].float()
        with torch.no_grad():
            out = model(**inputs, multimask_output=False)
        whole = processor.post_process_masks(out.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])[0][0, 0].numpy()
        assert mask.shape == (y2 - y1, x2 - x1) and (mask == whole[y1:y2, x1:x2]).mean() > 0.999
        assert 0 < whole.mean() < 1


def boxes_in(width, height):
    corner = st.tuples(st.integers(0, width - 1), st.integers(0, height - 1), st.integers(1, width), st.integers(1, height))
    return st.lists(corner.map(lambda v: (v[0], v[1], min(width, v[0] + v[2]), min(height, v[1] + v[3]))), max_size=30)


@given(st.sampled_from([(800, 600), (5000, 700), (4000, 6000)]).flatmap(lambda s: st.tuples(st.just(s), boxes_in(*s))))
@settings(max_examples=100, deadline=None)
def test_every_box_lies_whole_in_one_window(case):
    (width, height), boxes = case
    windows = sam_windows(boxes, width, height)
    assert sorted(k for _, held in windows for k in held) == list(range(len(boxes)))
    for (x1, y1, x2, y2), held in windows:
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        largest = max(max(boxes[k][2] - boxes[k][0], boxes[k][3] - boxes[k][1]) for k in held)
        assert max(x2 - x1, y2 - y1) <= max(SAM_SIDE, 2 * largest)
        assert all(boxes[k][0] >= x1 and boxes[k][1] >= y1 and boxes[k][2] <= x2 and boxes[k][3] <= y2 for k in held)


def test_masks_of_a_set(tmp_path, sam_folder):
    raw = vhr10(tmp_path / "raw", BOXES, splits=SPLITS)
    done = prepare_dataset(raw, tmp_path / "out", PrepareOptions(masks=f"sam:{sam_folder}"))
    bank = json.loads((tmp_path / "out/references/references.json").read_text())["instances"]
    assert {entry["mask"] for entry in bank} <= {"sam", "none"} and any(entry["mask"] == "sam" for entry in bank)
    assert sum(done.manifest["references"]["masks"].values()) == len(bank) == 4
    assert done.manifest["prepare"]["options"]["masks"]["source"] == "sam"
    assert not (tmp_path / "out" / "masks").exists()
    for entry in bank:
        alpha = np.asarray(Image.open(tmp_path / "out/references" / entry["file"]).getchannel("A"))
        assert (alpha.min() < 255) == (entry["mask"] == "sam")
        assert entry["aspect_ratio"] == round(entry["width"] / entry["height"], 4) and entry["source"] in SPLITS["train"]
    with pytest.raises(CCDiffError, match=r"made differently \(masks: {.*} before, None now\)"):
        prepare_dataset(raw, tmp_path / "out")


def test_an_interrupted_run_keeps_its_masks(tmp_path, sam_folder, monkeypatch):
    raw, masks = vhr10(tmp_path / "raw", BOXES, splits=SPLITS), f"sam:{sam_folder}"
    prepare_dataset(raw, tmp_path / "whole", PrepareOptions(masks=masks))

    def stop(stage, done, total):
        if (stage, done) == ("masking objects", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(raw, tmp_path / "out", PrepareOptions(masks=masks), progress=stop)
    first = tmp_path / "out/masks/000.npz"
    assert first.is_file() and not (tmp_path / "out/masks/001.npz").exists()
    asked, masker = [], sam(str(sam_folder))
    monkeypatch.setattr(module, "sam", lambda source: (lambda path, *rest: asked.append(path) or masker[0](path, *rest), masker[1]))
    prepare_dataset(raw, tmp_path / "out", PrepareOptions(masks=masks))
    assert [path.rpartition("/")[2] for path in asked] == ["001.jpg"]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_without_a_model(tmp_path):
    outline = [("ship", [5, 5, 35, 5, 5, 30])]
    raw = vhr10(tmp_path / "raw", BOXES, splits=SPLITS, masks={"000": outline})
    counts = {}
    for masks in ("coco", "none"):
        counts[masks] = prepare_dataset(raw, tmp_path / masks, PrepareOptions(masks=masks)).manifest["references"]["masks"]
    assert counts == {"coco": {"coco": 1, "none": 3}, "none": {"none": 4}}
    assert "masks" not in json.loads((tmp_path / "coco/manifest.json").read_text())["prepare"]["options"]


def test_a_mask_that_missed_the_object_is_not_used():
    crop, box = Image.new("RGB", (20, 10), "white"), Instance.from_hbb("ship", (0, 0, 20, 10))
    mask = np.zeros((10, 20), bool)
    assert cut_reference(crop, (0, 0), box, 1.0, masks="sam", mask=mask)[1]["mask"] == "none"
    mask[:, :2] = True
    assert cut_reference(crop, (0, 0), box, 1.0, masks="sam", mask=mask)[1]["mask"] == "sam"


def test_pictures_that_do_not_decode_are_left_out_as_ever(tmp_path, sam_folder):
    raw = vhr10(tmp_path / "raw", BOXES, splits=SPLITS)
    broken = raw / "positive image set" / "000.jpg"
    broken.write_bytes(broken.read_bytes()[: len(broken.read_bytes()) // 2])
    done = prepare_dataset(raw, tmp_path / "out", PrepareOptions(masks=f"sam:{sam_folder}"))
    assert [q["file"] for q in done.manifest["quarantined"]] == ["000.jpg"] and done.manifest["references"]["instances"] == 2


@pytest.mark.parametrize("masks", ["sam", "sam:", "box", ""])
def test_unknown_masks(masks):
    with pytest.raises(CCDiffError, match=r"unknown masks.*\n.*u2netp, or sam:FOLDER"):
        masker_of(masks)


def test_what_is_not_a_sam(tmp_path, sam_folder):
    with pytest.raises(CCDiffError, match="no such folder"):
        masker_of(f"sam:{tmp_path / 'none'}")
    with pytest.raises(CCDiffError, match="found clip, expected SamModel"):
        masker_of(f"sam:{tiny_clip(tmp_path / 'clip')}")


def test_u2netp_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    u2netp.cache_clear()
    with pytest.raises(CCDiffError, match=r"not installed\n.*ccdiff\[masks\]"):
        masker_of("u2netp")
    (tmp_path / "u2netp.onnx").write_bytes(b"other weights")
    found = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(CCDiffError, match="its SHA-256 is not"):
        masker_of("u2netp")


def test_u2netp_finds_what_stands_out(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("rembg")
    image = Image.effect_noise((200, 160), 20).convert("RGB")
    ImageDraw.Draw(image).ellipse((60, 50, 140, 110), fill=(220, 60, 40))
    image.save(tmp_path / "a.png")
    mask = masker_of("u2netp")[0](str(tmp_path / "a.png"), 200, 160, [(60, 50, 141, 111)])[0]
    true = Image.new("L", (81, 61))
    ImageDraw.Draw(true).ellipse((0, 0, 80, 60), fill=255)
    wanted = np.asarray(true) > 0
    assert (mask & wanted).sum() / (mask | wanted).sum() > 0.8


@pytest.mark.slow
def test_u2netp_in_several_processes_makes_the_same_set(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("rembg")
    raw = vhr10(tmp_path / "raw", BOXES, splits=SPLITS)
    for processes in (1, 2):
        prepare_dataset(raw, tmp_path / str(processes), PrepareOptions(masks="u2netp"), processes=processes)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
