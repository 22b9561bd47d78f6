"""The filter: scores, calibration on real pictures, retries, what is left out, the same bytes however it is made."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import ccdiff_cli.synthesis as room
from ccdiff_cli.dataset import read_set, write_set
from ccdiff_cli.detectors import Detections
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import sha256_file
from ccdiff_cli.options import checked_options
from ccdiff_cli.pretrained import Clip
from ccdiff_cli.scene import ClassList, Instance, Scene
from ccdiff_cli.synthesis import verify_set
from ccdiff_cli.synthesis.filtering import Judge, calibrate, clip_scores, kept_objects, object_scores
from ccdiff_cli.synthesis.options import FilterOptions
from tests.synthesis.grouped import make_set

FAKE = "tests.synthesis.fake:load"
CLASSES = ClassList(("ship", "airplane"))


class BrightDetector:
    """Finds, for every known box, what it sees: the mean of the brightest channel inside; no training needed."""

    classes = CLASSES
    info = {"key": "bright"}  # noqa: RUF012

    def predict(self, scenes, progress=None):
        found = []
        for scene in scenes:
            pixels = np.asarray(Image.open(scene.path).convert("RGB"), float) / 255
            boxes = [i.hbb for i in scene.instances]
            scores = []
            for x1, y1, x2, y2 in (tuple(round(v) for v in b) for b in boxes):
                # one number of the picture's noise decides whether the object "is there"
                scores.append(float(pixels[y1:y2, x1:x2].mean()) % 0.1 * 10)
            labels = [CLASSES.index(i.category) for i in scene.instances]
            order = np.argsort(-np.array(scores))
            found.append(Detections(np.array(boxes, np.float32)[order], np.array(scores, np.float32)[order], np.array(labels)[order]))
        return found


@pytest.fixture
def real(layouts, tmp_path):
    """The layouts with a val split of three pictures."""
    root = tmp_path / "real"
    shutil.copytree(layouts, root)
    found = read_set(root)
    scenes = [s.replace(split="val" if k in (3, 4, 5) else "train") for k, s in enumerate(found.scenes)]
    write_set(root, scenes, found.classes, kind="prepared", details={}, picture_hashes=found.manifest["pictures"])
    return root


@pytest.fixture
def bright(monkeypatch, tmp_path):
    folder = tmp_path / "detector"
    folder.mkdir()
    (folder / "detector.json").write_text("{}")
    (folder / "model.safetensors").write_text("x")
    monkeypatch.setattr("ccdiff_cli.synthesis.filtering.load_detector", lambda folder, device="auto": BrightDetector())
    return folder


def make(generator, real, out, bright, mode="objects", **options):
    options = {"batch_size": 4, "pipeline": FAKE, "num_processes": 1, "filter_recall": 0.5, **options}
    return make_set(generator, real, out, 20, filter=mode, filter_detector=bright, **options)


def files_of(root):
    return {p.relative_to(root).as_posix(): sha256_file(p) for p in sorted(root.rglob("*")) if p.is_file()}


def test_each_object_and_each_detection_counts_once():
    scene = Scene("a.png", 64, 64, (Instance.from_hbb("ship", (0, 0, 10, 10)), Instance.from_hbb("ship", (1, 0, 11, 10))))
    boxes = np.array([(0, 0, 10, 10), (40, 40, 50, 50), (0, 0, 10, 10)], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 0, 1]))
    assert object_scores(scene, found, CLASSES) == pytest.approx([0.9, 0.0])
    twice = Detections(boxes[[0, 0]], np.array([0.9, 0.6], np.float32), np.array([0, 0]))
    assert object_scores(scene, twice, CLASSES) == pytest.approx([0.9, 0.6])
    assert object_scores(scene, Detections(boxes[:0], np.zeros(0), np.zeros(0, int)), CLASSES) == [0.0, 0.0]


def test_a_threshold_is_what_the_share_of_real_objects_reaches(real, bright, monkeypatch):
    monkeypatch.setattr("ccdiff_cli.synthesis.filtering.FEW", 2)
    judge = Judge(bright)
    pictures = read_set(real)
    found = calibrate(judge, pictures, 0.75)
    for name in CLASSES:
        scores = [
            e["detector"]
            for s, entries in zip(pictures.split("val"), judge.scores(pictures.split("val")), strict=True)
            for i, e in zip(s.instances, entries, strict=True)
            if i.category == name
        ]
        limit = found["thresholds"][name]["detector"]
        assert np.mean(np.array(scores) >= limit) >= 0.75 and limit in scores
        assert np.mean(np.array(scores) > limit) < 0.75
        assert found["real"][name]["objects"] == len(scores)


def test_a_set_without_a_val_split_cannot_be_filtered(generator, layouts, tmp_path, bright):
    with pytest.raises(CCDiffError, match="val split to calibrate"):
        make(generator, layouts, tmp_path / "s", bright)


def test_failing_labels_are_left_out_and_everything_is_counted(generator, real, tmp_path, bright):
    made = make(generator, real, tmp_path / "s", bright)
    pictures = read_set(tmp_path / "s")
    plan = [json.loads(line) for line in (tmp_path / "s" / "plan.jsonl").read_text().splitlines()]
    verdicts = [json.loads(line) for line in (tmp_path / "s" / "filter.jsonl").read_text().splitlines()]
    assert len(plan) == len(verdicts) == 20
    kept = {s.file_name: s for s in pictures.scenes}
    limits = pictures.manifest["filter"]["thresholds"]
    result = pictures.manifest["filter"]["result"]
    assert result == made["filter"] and 0 < result["pictures"]["rejected"] < 20
    assert set(result["pictures"]["accepted"]) <= {"0", "1", "2"} and len(result["pictures"]["accepted"]) > 1, "some at a later attempt"
    for job, verdict in zip(plan, verdicts, strict=True):
        planned = job["layout"]["instances"]
        allowed = int(0.5 * len(planned))
        failing = [i for i, e in zip(planned, verdict["scores"], strict=True) if e["detector"] < limits[i["category"]]["detector"]]
        assert verdict["accepted"] == (len(failing) <= allowed)
        if verdict.get("dropped"):
            assert len(failing) == len(planned) and verdict["file_name"] not in kept
            continue
        scene = kept[verdict["file_name"]]
        assert len(scene.instances) == len(planned) - (0 if verdict["accepted"] else len(failing))
        assert all(set(i.extra["scores"]) == {"detector"} for i in scene.instances)
        assert scene.provenance["seed"] == verdict["seed"] and scene.provenance["filter"]["attempt"] == verdict["attempt"]
        assert (verdict["seed"] == job["seed"]) == (verdict["attempt"] == 0)
    assert sum(o["kept"] for o in result["objects"].values()) == pictures.manifest["counts"]["objects"]
    assert sum(o["planned"] for o in result["objects"].values()) == sum(len(j["layout"]["instances"]) for j in plan)
    assert verify_set(tmp_path / "s")["ok"]
    assert "looked for every object" in (tmp_path / "s" / "README.md").read_text()


def test_rejected_pictures_are_left_out(generator, real, tmp_path, bright):
    made = make(generator, real, tmp_path / "s", bright, mode="pictures", filter_retries=0)
    result = made["filter"]["pictures"]
    assert result["rejected"] == result["left_out"] > 0 and len(read_set(tmp_path / "s").scenes) == 20 - result["left_out"]
    assert all(s.provenance["filter"]["accepted"] for s in read_set(tmp_path / "s").scenes)
    assert len(list((tmp_path / "s" / "images").iterdir())) == 20 - result["left_out"]
    found = verify_set(tmp_path / "s")
    assert found["ok"], found["problems"]
    (tmp_path / "s" / "filter.jsonl").write_text("")
    assert "filter.jsonl" in verify_set(tmp_path / "s")["problems"][0]


def test_an_interrupted_filter_ends_the_same(generator, real, tmp_path, bright, monkeypatch):
    make(generator, real, tmp_path / "whole", bright)
    whole, saved = files_of(tmp_path / "whole"), []
    write = room.worker.save_block

    def stop(*arguments):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(arguments[1])
        write(*arguments)

    monkeypatch.setattr(room.worker, "save_block", stop)
    with pytest.raises(KeyboardInterrupt):
        make(generator, real, tmp_path / "s", bright)
    monkeypatch.setattr(room.worker, "save_block", write)
    make(generator, real, tmp_path / "s", bright)
    assert files_of(tmp_path / "s") == whole
    picture = next((tmp_path / "s" / "images").iterdir())
    picture.unlink()
    assert make(generator, real, tmp_path / "s", bright)["made"] == 4
    assert files_of(tmp_path / "s") == whole


def test_changed_rules_are_refused(generator, real, tmp_path, bright):
    make(generator, real, tmp_path / "s", bright)
    with pytest.raises(CCDiffError, match=r"filter\.retries was 2, now 1"):
        make(generator, real, tmp_path / "s", bright, filter_retries=1)
    (bright / "model.safetensors").write_text("another")
    with pytest.raises(CCDiffError, match=r"filter\.detector was"):
        make(generator, real, tmp_path / "s", bright)


def test_wrong_options_are_refused(tmp_path):
    for options in ({"mode": "dreams"}, {"mode": "objects", "recall": 1.0}, {"mode": "objects", "retries": -1}, {"clip": tmp_path}):
        with pytest.raises(CCDiffError):
            checked_options(FilterOptions, options, where=None)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP model as small as can be, random weights: the machinery alone is tested."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

    root = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (root / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (root / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(str(root / "vocab.json"), str(root / "merges.txt"))
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    text = {**size, **ends, "vocab_size": len(tokens), "max_position_embeddings": 77}
    vision = {**size, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(root)
    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=pixels, tokenizer=tokenizer).save_pretrained(root)
    return root


def test_clip_scores_are_the_cosines_of_crops_and_names(clip, real):
    from transformers import CLIPModel, CLIPProcessor

    scene = read_set(real).scenes[5]
    scores = clip_scores(Clip(clip, where="test", device="cpu"), scene, {})
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    picture = Image.open(scene.path).convert("RGB")
    for instance, score in zip(scene.instances, scores, strict=True):
        crop = picture.crop(tuple(int(v) for v in instance.hbb))
        with torch.no_grad():
            given = processor(text=[f"an aerial photograph of a {instance.category}"], images=[crop], return_tensors="pt")
            found = model(**given)
        assert score == pytest.approx(float(found.logits_per_image[0, 0] / model.logit_scale.exp()), abs=1e-5)
    assert len(scores) == len(scene.instances) > 1


def test_both_judges_must_agree(generator, real, tmp_path, bright, clip):
    make(generator, real, tmp_path / "s", bright, filter_clip=clip)
    found = read_set(tmp_path / "s")
    limits = found.manifest["filter"]["thresholds"]
    assert all(set(limits[name]) == {"detector", "clip"} for name in CLASSES)
    for scene in found.scenes:
        for instance in scene.instances:
            scores = instance.extra["scores"]
            assert instance.extra["passed"] == all(scores[j] >= limits[instance.category][j] for j in ("detector", "clip"))
    with pytest.raises(CCDiffError, match="no CLIP model in safetensors"):
        make(generator, real, tmp_path / "t", bright, filter_clip=tmp_path)


def test_a_classifier_of_crops_judges_alone_in_processes_of_its_own(generator, real, tmp_path, monkeypatch):
    monkeypatch.setenv("CCDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ccdiff_cli.synthesis.crops.STEPS", 2)
    options = {
        "filter": "pictures",
        "filter_judges": ["crops"],
        "filter_recall": 0.5,
        "filter_retries": 1,
        "batch_size": 4,
        "pipeline": FAKE,
    }
    made = make_set(generator, real, tmp_path / "s", 12, num_processes=1, **options)
    found = read_set(tmp_path / "s")
    assert found.manifest["filter"]["judges"] == ["crops"] and set(made["filter"]["judges"]) == {"crops"}
    assert made["filter"]["not_judged"] == [] and made["filter"]["pictures"]["planned"] == 12
    (limit,) = {limits["crops"] for limits in found.manifest["filter"]["thresholds"].values()}
    assert all(i.extra["scores"]["crops"] >= limit for s in found.scenes for i in s.instances), "the least of a picture, too"
    card = (tmp_path / "s" / "README.md").read_text()
    assert (
        "a classifier of the real set's crops looked at every crop" in card and "a detector" not in card.split("Filter:")[1].split("\n")[0]
    )
    assert verify_set(tmp_path / "s")["ok"]


def test_labels_that_stay():
    entry = {"accepted": False, "passed": [True, False, True]}
    assert kept_objects(entry, 3, "objects") == [0, 2] and kept_objects({**entry, "accepted": True}, 3, "objects") == [0, 1, 2]
    assert kept_objects({**entry, "dropped": True}, 3, "pictures") == []
