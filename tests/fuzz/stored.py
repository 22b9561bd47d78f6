"""Folders of our own, sound and small, their files to be damaged: sets, exports, plans and records, generators, detectors, answers kept.

What must hold: whoever reads them ends in one :class:`CCDiffError` that can be printed, or in something the rest can work with.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ccdiff_cli.dataset import EditedSet, read_set, scene_record, write_set
from ccdiff_cli.detectors import Detections
from ccdiff_cli.detectors.config import DetectorConfig
from ccdiff_cli.detectors.store import read_detections, write_detections
from ccdiff_cli.detectors.training import Description
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.export.receipt import damaged as damaged_files
from ccdiff_cli.export.receipt import read_receipt
from ccdiff_cli.files import sha256_file, write_json
from ccdiff_cli.generator import INDEX, check_index, generator_key, read_generator
from ccdiff_cli.layouts import LayoutOptions, layouts_of_set
from ccdiff_cli.layouts.misses import MISSES, VERSION, misses_of, times_of
from ccdiff_cli.references import ReferenceBank
from ccdiff_cli.scene import ClassList, Instance, Scene
from ccdiff_cli.stored import read_as
from ccdiff_cli.synthesis import accept_set, verify_set
from ccdiff_cli.synthesis.finish import changed_by_hand, is_whole
from ccdiff_cli.synthesis.options import SamplingOptions, SynthesisOptions
from ccdiff_cli.synthesis.plan import PLAN, PLAN_LINES, Job, Plan, holds_plan, read_plan, write_plan
from ccdiff_cli.synthesis.planning import identity_of, make_plan, resolved
from ccdiff_cli.synthesis.records import known_pictures, missing_blocks
from ccdiff_cli.synthesis.worker import save_block
from tests.rawsets import picture

OBB = (40.0, 10.0, 60.0, 12.0, 58.0, 30.0, 38.0, 28.0)


@contextlib.contextmanager
def _refused_or_read():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EditedSet)
        try:
            yield
        except CCDiffError as error:
            str(error).encode("utf-8")


def a_set(root: Path) -> list[str]:
    """A prepared set with a bank and an export of it."""
    instances = (Instance.from_corners("ship", OBB, difficult=True, mask=(OBB,)), Instance.from_hbb("car", (5, 5, 30, 20), extra={"a": 1}))
    scenes, hashes, crops = [], {}, []
    for k, split in enumerate(("train", "val")):
        name = f"{k}.png"
        hashes[name] = sha256_file(picture(root / "images" / name))
        place = {"picture": f"{k}.jpg", "offset": [0, 0]}
        scenes.append(Scene(name, 96, 64, instances, split=split, source=f"s{k}", caption="a port", provenance=place))
    crop = picture(root / "references" / "ship" / "0_0000.png", 20, 10)
    crops.append({"file": "ship/0_0000.png", "class": "ship", "width": 20, "height": 10, "source": "s0", "picture": "0.jpg"})
    crops[0] |= {"difficult": False, "sha256": sha256_file(crop), "aspect_ratio": 2.0, "mask": "none"}
    write_json(root / "references" / "references.json", {"instances": crops, "backgrounds": ["images/0.png"]})
    details = {"prepare": {"options": {"size": 96}, "inputs": "x"}, "skipped": {"a": 1}, "references": {"instances": 1, "masks": {}}}
    write_set(root, scenes, ClassList(("ship", "car")), kind="prepared", details=details, picture_hashes=hashes)
    export_set(root, root / "exported", ExportOptions(format="yolo"))
    return ["annotations.json", "manifest.json", "references/references.json", "exported/export.json"]


def read_a_set(root: Path, path: Path) -> None:
    """Whatever reads a set."""
    before = path.read_bytes()
    with _refused_or_read():
        found = read_set(root)
        assert len(found.key()) == 16 and set(found.hashes) == {s.file_name for s in found.scenes}
        for scene in found.scenes:
            json.dumps(scene_record(scene), allow_nan=False, ensure_ascii=False).encode("utf-8")
            assert Path(str(scene.path)).parent == root / "images" and all(i.category in found.classes for i in scene.instances)
        assert all(name.isprintable() for name in found.classes)
    with _refused_or_read():
        assert isinstance(verify_set(root)["problems"], list)
    with _refused_or_read():
        ReferenceBank.read(root)
    with _refused_or_read():
        receipt = read_receipt(root / "exported")
        if receipt is not None:
            damaged_files(root / "exported", receipt)
    assert path.read_bytes() == before
    if path.name == "annotations.json":
        manifest = (root / "manifest.json").read_bytes()
        bank = (root / "references" / "references.json").read_bytes()
        crop = (root / "references" / "ship" / "0_0000.png").read_bytes()
        try:
            with _refused_or_read():
                accept_set(root)
                assert not read_set(root).edited()
        finally:
            (root / "manifest.json").write_bytes(manifest)
            (root / "references" / "references.json").write_bytes(bank)
            (root / "references" / "ship" / "0_0000.png").write_bytes(crop)


OPTIONS = SynthesisOptions(n=4, batch_size=2, layouts=LayoutOptions(source="set"), sampling=SamplingOptions(steps=1, guidance_scale=2.0))
GENERATOR = {"picture_size": 96, "classes": ["ship", "car"], "key": "k", "recipe": {"name": "r", "caption_style": "short"}}


def _planned(root: Path) -> tuple[dict, Plan]:
    layouts = root.with_name(f"{root.name}-layouts")
    if not layouts.is_dir():
        hashes, scenes = {}, []
        for k in range(3):
            hashes[f"{k}.png"] = sha256_file(picture(layouts / "images" / f"{k}.png", 96, 96))
            boxes = (Instance.from_hbb("ship", (5, 5, 30, 20)), Instance.from_hbb("car", (50, 50, 80, 90)))
            scenes.append(Scene(f"{k}.png", 96, 96, boxes, source=f"s{k}"))
        write_set(layouts, scenes, ClassList(("ship", "car")), kind="prepared", details={}, picture_hashes=hashes)
    found = read_set(layouts)
    identity = identity_of(GENERATOR, found, None, resolved(OPTIONS, GENERATOR, {}))
    return identity, make_plan(identity, found, None)


def a_synthesis(root: Path) -> list[str]:
    """An unfinished synthesis: a plan, and the record of the first of its two blocks."""
    root.mkdir(parents=True, exist_ok=True)
    _, plan = _planned(root)
    write_plan(root, plan, {"device": "cpu"})
    data = picture(root / "images" / plan.jobs[0].scene.file_name, 96, 96).read_bytes()

    def made(job: Job) -> tuple[dict, bytes]:
        return {"file_name": job.scene.file_name, "sha256": sha256_file(root / "images" / plan.jobs[0].scene.file_name)}, data

    save_block(root, 0, plan, [made(job) for job in plan.block(0)], 2)
    return [PLAN, PLAN_LINES, "records/block-000000.json"]


def read_a_synthesis(root: Path, path: Path) -> None:
    """What `synthesize` reads of its folder before it goes on."""
    identity, plan = _planned(root)
    with _refused_or_read():
        holds_plan(root, identity, {"device": "cpu"})
    with _refused_or_read():
        found = read_plan(root)
        assert found.blocks >= 1 and found.classes and found.options["batch_size"] >= 1
        known_pictures(root, found)
    assert missing_blocks(root, plan) in ([1], [0, 1]), "what is damaged is made again"
    with _refused_or_read():
        changed_by_hand(root, plan)
    is_whole(root)


def a_generator(root: Path) -> list[str]:
    """What is read of a generator before a library is."""
    write_json(root / "ccdiff.json", {**GENERATOR, "data": {"key": "k", "sources": ["s"]}, "steps": 3, "files": {}})
    index = {
        "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"], 
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["ccdiff_cli.models.conditioning", "ConditionedUNet"], "scheduler": ["diffusers", "DDPMScheduler"],
        "resampler": ["ccdiff_cli.models.resamplers", "CoResampler"], "image_encoder": [None, None], "feature_extractor": [None, None],
    }  # fmt: skip
    write_json(root / INDEX, index)
    for part in index:
        write_json(root / part / "config.json", {"width": 3})
    return ["ccdiff.json", INDEX, "unet/config.json"]


def read_a_generator(root: Path, _: Path) -> None:
    """``ccdiff.json``, the index, the hashes."""
    with _refused_or_read():
        found = read_generator(root)
        assert found["picture_size"] >= 1 and all(name.isprintable() for name in found["classes"])
    with _refused_or_read():
        check_index(root)
    with _refused_or_read():
        generator_key(root)


def a_detector(root: Path) -> list[str]:
    """A detector's description, and what it found."""
    weights = {"name": "none", "sha256": None, "note": ""}
    losses = {"columns": ["step"], "rows": [[1]]}
    config = DetectorConfig().model_dump(mode="json")
    write_json(root / "detector.json", {"config": config, "classes": ["ship"], "backbone_weights": weights, "losses": losses})
    found = Detections(np.ones((2, 4), np.float32), np.ones(2, np.float32), np.zeros(2, np.int64))
    write_detections(root / "found.safetensors", [found, found])
    return ["detector.json", "found.safetensors"]


def read_a_detector(root: Path, _: Path) -> None:
    """Its description by the model of it (building the network takes too long here), and its finds."""
    with _refused_or_read():
        assert read_as(Description, root / "detector.json").classes
    found = read_detections(root / "found.safetensors", 2)
    assert found is None or all(np.isfinite(d.boxes).all() and len(d.boxes) == len(d) == len(d.labels) for d in found)


def some_misses(root: Path) -> list[str]:
    """What a detector misses in a set."""
    a_set(root)
    tables: dict = {name: {"a": {"objects": 2, "missed": 1, "false_alarms": 0}} for name in ("classes", "sizes", "crowding")}
    config = DetectorConfig().training_record()
    said = {"version": VERSION, "set": read_set(root).key(), "detector": config, "boxes": "hbb", "folds": 3, "seed": 0, "threshold": 0.5}
    write_json(root / MISSES, {**said, **tables, "pictures": [{"file_name": "0.png", "missed": [0], "false_alarms": 2}]})
    return [MISSES]


def read_some_misses(root: Path, _: Path) -> None:
    """What layouts take of them."""
    found = read_set(root)
    pool = layouts_of_set(found)
    with _refused_or_read():
        times = times_of(pool, misses_of(root / MISSES, found))
        assert len(times) == len(pool) and np.isfinite(times).all() and times.min() >= 1 and times.sum() <= 2.01 * len(pool)


STORED: dict[str, tuple[Callable[[Path], list[str]], Callable[[Path, Path], None]]] = {
    "our-set": (a_set, read_a_set),
    "synthesis": (a_synthesis, read_a_synthesis),
    "generator": (a_generator, read_a_generator),
    "detector": (a_detector, read_a_detector),
    "misses": (some_misses, read_some_misses),
}
"""What builds a sound folder and names its files, and what reads it after one of them (the second path) changed."""
