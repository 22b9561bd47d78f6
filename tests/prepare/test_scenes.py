"""Scene sentences by a zero-shot CLIP (random weights): the choice, who is not asked, resumption, errors."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.options import checked_options
from ccdiff_cli.prepare import PrepareOptions, prepare_dataset
from ccdiff_cli.prepare import scenes as module
from ccdiff_cli.prepare.captions import caption_of, scene_sentence
from ccdiff_cli.prepare.scenes import DEFAULT_PLACES, read_places, scene_class
from ccdiff_cli.pretrained import Clip
from ccdiff_cli.scene import Instance, Scene
from tests.foreign import tiny_clip, tiny_sam
from tests.rawsets import coco, files_of, vhr10

BOXES = {f"{k:03d}": [("ship", (5, 5, 35, 30))] for k in range(6)}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return vhr10(tmp_path_factory.mktemp("raw") / "raw", BOXES, splits={"train": ["000", "001", "002", "003", "004"], "test": ["005"]})


def test_the_place_is_the_one_that_clip_finds_likeliest(tmp_path, raw, clip_folder):
    places = tmp_path / "places.txt"
    places.write_text("# ours\na harbor by night\n\n  a   quiet lake.\nmountains\nthe moon\n")
    done = prepare_dataset(raw, tmp_path / "out", PrepareOptions(scene_clip=clip_folder, places=places, size=48))
    sentences = [scene_sentence(place) for place in read_places(places)]
    assert sentences[1] == "This is an aerial image of a quiet lake."
    model, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    for scene in done.scenes:
        inputs = processor(text=sentences, images=Image.open(str(scene.path)), return_tensors="pt", padding="max_length", max_length=77)
        with torch.no_grad():
            likely = model(**inputs).logits_per_image[0].numpy()
        assert scene.provenance["sentence"] == sentences[int(np.argmax(likely))]
        assert scene.caption.startswith(scene.provenance["sentence"] + " top left: 1 ship")
    assert caption_of(done.scenes[0], "short") == f"{done.scenes[0].provenance['sentence']} 1 ship."  # training and layouts keep it
    assert {"scene_clip", "places"} <= done.manifest["prepare"]["options"].keys()


def test_who_is_not_asked(tmp_path, clip_folder):
    """A user's sentence and an object that is the scene come first."""
    categories = [{"id": 1, "name": "ship"}, {"id": 2, "name": "Harbor"}, {"id": 3, "name": "Expressway-Service-area"}]
    images = [{"id": k, "file_name": f"{k}.png", "width": 96, "height": 64} for k in range(1, 4)]
    pairs = [(1, 1), (2, 1), (2, 2), (3, 1)]
    annotations = [
        {"id": k, "image_id": i, "category_id": c, "bbox": [5, 5, 20, 20], "iscrowd": 0} for k, (i, c) in enumerate(pairs, start=1)
    ]
    source = coco(tmp_path / "raw", annotations, images=images, categories=categories)
    (tmp_path / "said.json").write_text('{"3.png": "A quay in fog."}')
    done = prepare_dataset(source, tmp_path / "out", PrepareOptions(scene_clip=clip_folder, sentences=tmp_path / "said.json"))
    heads = {s.file_name: s.caption.split(". ")[0] + "." for s in done.scenes}
    assert heads["2.png"] == "This is an aerial image of a Harbor." and heads["3.png"] == "A quay in fog."
    assert heads["1.png"] in {scene_sentence(place) for place in DEFAULT_PLACES}
    area = Instance.from_hbb("Expressway-Service-area", (0, 0, 9, 9))
    assert scene_class(Scene("a.png", 9, 9, (area,))) == area.category and scene_class(Scene("a.png", 9, 9, ())) is None


def test_an_interrupted_run_asks_only_for_the_rest(tmp_path, raw, clip_folder, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 2)
    prepare_dataset(raw, tmp_path / "whole", PrepareOptions(scene_clip=clip_folder))

    def stop(stage, done, total):
        if (stage, done) == ("naming scenes", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(raw, tmp_path / "out", PrepareOptions(scene_clip=clip_folder), progress=stop)
    seen, pictures = [], Clip.pictures
    monkeypatch.setattr(Clip, "pictures", lambda self, images: seen.append(len(images)) or pictures(self, images))
    prepare_dataset(raw, tmp_path / "out", PrepareOptions(scene_clip=clip_folder))
    assert sum(seen) == 4  # of 6: the second file was not written yet
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_default_places_are_as_they_stand_in_a_sentence():
    assert len(set(DEFAULT_PLACES)) == len(DEFAULT_PLACES) >= 20
    assert all(place == place.strip() and not place.endswith(".") for place in DEFAULT_PLACES)


@pytest.mark.parametrize(("text", "message"), [("a lake\n# a sea\n", "1 places"), ("a lake\na  lake\n", "'a lake' stands there twice")])
def test_broken_places(tmp_path, text, message):
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(CCDiffError, match=message):
        read_places(tmp_path / "p.txt")


def test_what_is_not_a_clip(tmp_path, raw, clip_folder):
    def message(source):
        with pytest.raises(CCDiffError) as caught:
            prepare_dataset(raw, tmp_path / "out", PrepareOptions(scene_clip=source))
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "--scene-clip: no such folder" in message(tmp_path / "none")
    assert "found sam, expected CLIPModel" in message(tiny_sam(tmp_path / "sam"))
    (tmp_path / "empty").mkdir()
    assert "--scene-clip: " in (told := message(tmp_path / "empty")) and "no config.json there, and nothing else" in told
    lacking = tmp_path / "lacking"
    shutil.copytree(clip_folder, lacking)
    weights = load_file(lacking / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "visual_projection.weight"}, lacking / "model.safetensors", {"format": "pt"})
    assert "1 missing, first visual_projection.weight" in message(lacking)
    (lacking / "model.safetensors").write_bytes(b"\x00" * 100)
    assert "not a whole safetensors file" in message(lacking)
    config = json.loads((lacking / "config.json").read_text())
    (lacking / "config.json").write_text(json.dumps(config)[:-20])
    assert "config.json" in message(lacking)
    with pytest.raises(CCDiffError, match="places without a CLIP"):
        checked_options(PrepareOptions, {"places": tmp_path / "p.txt"}, where=None)
