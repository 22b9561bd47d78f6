"""The real pipeline (small, random weights) and a real reference bank through the same machinery."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ccdiff_cli.dataset import read_set, write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.files import read_json, sha256_file, write_json
from ccdiff_cli.references import cut_reference, reference_window, write_bank
from ccdiff_cli.scene import ClassList, Instance, Scene
from ccdiff_cli.synthesis import verify_set
from tests.models.small import make_pipeline
from tests.synthesis.grouped import make_set
from tests.synthesis.test_faults import kill_and_go_on

CLASSES = ClassList(("ship", "plane", "court"))


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    make_pipeline().save_pretrained(folder)
    recipe = {"name": "small", "caption_style": "short", "sampling": {"steps": 2, "guidance_scale": 2.5}, "denoiser": {"top_k": 3}}
    write_json(folder / "ccdiff.json", {"picture_size": 64, "classes": list(CLASSES), "recipe": recipe})
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Six noise pictures of 64 px with oriented boxes and a reference bank."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "images").mkdir()
    scenes, hashes, crops = [], {}, []
    for k in range(6):
        name = f"p{k}.png"
        rng = np.random.default_rng(k)
        picture = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        picture.save(root / "images" / name)
        hashes[name] = sha256_file(root / "images" / name)
        boxes = [
            Instance.from_corners(
                CLASSES.names[(k + j) % 3],
                (10 + 5 * j, 20 * j + 8, 22 + 5 * j, 20 * j + 2, 25 + 5 * j, 20 * j + 8, 13 + 5 * j, 20 * j + 14),
            )
            for j in range(1 + k % 3)
        ]
        for number, box in enumerate(boxes):
            window = reference_window(box, *picture.size)
            data, entry = cut_reference(picture.crop(window), window[:2], box, 1.0)
            file = f"crops/{name[:-4]}-{number}.png"
            (root / "references" / "crops").mkdir(parents=True, exist_ok=True)
            (root / "references" / file).write_bytes(data)
            crops.append({**entry, "file": file, "sha256": sha256_file(root / "references" / file), "source": f"s{k}"})
        scenes.append(Scene(name, 64, 64, tuple(boxes), source=f"s{k}", caption="an aerial picture with ship"))
    write_bank(root, crops, scenes)
    write_set(root, scenes, CLASSES, kind="prepared", details={}, picture_hashes=hashes)
    return root


def pictures(root):
    return {p.name: sha256_file(p) for p in (root / "images").iterdir()}


def test_one_and_two_processes_make_the_same_set(generator, prepared, tmp_path):
    one = make_set(generator, prepared, tmp_path / "one", 6, batch_size=2, num_processes=1)
    two = make_set(generator, prepared, tmp_path / "two", 6, batch_size=2, num_processes=2)
    assert one["content"] == two["content"] and pictures(tmp_path / "one") == pictures(tmp_path / "two")
    assert len(set(pictures(tmp_path / "one").values())) == 6
    assert verify_set(tmp_path / "one")["ok"]
    made = read_set(tmp_path / "one")
    for scene in made.scenes:
        assert len(scene.provenance["references"]["instances"]) == len(scene.instances)
        assert all(key is not None for key in scene.provenance["references"]["instances"])
    original = {s.file_name: s.source for s in read_set(prepared).scenes}
    assert all(original[s.provenance["layout"]["picture"]] == s.source for s in made.scenes)


@pytest.mark.slow
def test_fifty_kills_leave_one_hash_whatever_the_number_of_processes(generator, prepared, tmp_path):
    for batch in (1, 8):
        whole = make_set(generator, prepared, tmp_path / f"whole-{batch}", 24, batch_size=batch, num_processes=1)["content"]
        for processes, kills in ((1, 9), (2, 8), (3, 8)):
            out = tmp_path / f"{batch}-{processes}"
            longest = 2.5 if processes == 1 else 12  # workers of their own import torch first
            assert kill_and_go_on(generator, prepared, out, kills, longest, batch_size=batch, num_processes=processes) == whole
            assert verify_set(out)["ok"] and pictures(out) == pictures(tmp_path / f"whole-{batch}")


def test_a_picture_is_the_same_in_another_batch_up_to_rounding(generator, prepared, tmp_path):
    for size in (1, 6):
        make_set(generator, prepared, tmp_path / str(size), 6, batch_size=size, num_processes=1)
    for name in pictures(tmp_path / "1"):
        a, b = (np.asarray(Image.open(tmp_path / size / "images" / name), int) for size in "16")
        assert np.abs(a - b).max() <= 1


def test_a_truncated_weight_file_is_one_message(generator, prepared, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(generator, broken)
    weights = sorted((broken / "unet").glob("*.safetensors"))[0]
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CCDiffError, match="cannot"):
        make_set(broken, prepared, tmp_path / "s", 2, num_processes=1)
    shutil.rmtree(broken / "vae")
    with pytest.raises(CCDiffError, match="cannot"):
        make_set(broken, prepared, tmp_path / "t", 2, num_processes=1)


def test_euler_and_channels_last_make_other_pictures_of_the_same_labels(generator, prepared, tmp_path):
    plain = make_set(generator, prepared, tmp_path / "plain", 2, num_processes=1)
    euler = make_set(generator, prepared, tmp_path / "euler", 2, num_processes=1, scheduler="euler")
    last = make_set(generator, prepared, tmp_path / "last", 2, num_processes=1, channels_last=True)
    assert len({plain["content"], euler["content"]}) == 2 and euler["options"]["scheduler"] == "euler"
    assert not set(pictures(tmp_path / "plain").values()) & set(pictures(tmp_path / "euler").values())
    for name in pictures(tmp_path / "plain"):
        a, b = (np.asarray(Image.open(tmp_path / which / "images" / name), int) for which in ("plain", "last"))
        assert np.abs(a - b).max() <= 1, "up to rounding"
    assert last["objects"] == plain["objects"] == euler["objects"]


def test_speed_settings_are_the_recipes_unless_given(generator, prepared, tmp_path):
    quick = tmp_path / "quick"
    shutil.copytree(generator, quick)
    description = read_json(quick / "ccdiff.json")
    description["recipe"]["sampling"] |= {"precision": "bfloat16", "channels_last": True}
    write_json(quick / "ccdiff.json", description)
    as_recipe = make_set(quick, prepared, tmp_path / "s", 2, dry_run=True)["options"]
    assert as_recipe["precision"] == "bfloat16" and as_recipe["channels_last"] is True
    given = make_set(quick, prepared, tmp_path / "s", 2, dry_run=True, precision="float32", channels_last=False)["options"]
    assert given["precision"] == "float32" and given["channels_last"] is False
