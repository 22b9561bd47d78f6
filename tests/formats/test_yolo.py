"""YOLO and YOLO-OBB: descriptions with foreign paths, splits, class names, broken lines, our exporter's folders."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ccdiff_cli.dataset import write_set
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.export import ExportOptions, export_set
from ccdiff_cli.files import sha256_file
from ccdiff_cli.formats import detect_format, read_raw
from ccdiff_cli.formats.classes import read_class_file
from ccdiff_cli.geometry import le90_to_corners, polygon_iou
from ccdiff_cli.scene import ClassList, Instance, Scene
from tests.rawsets import picture

BOX = "1 0.5 0.5 0.25 0.5"
OBB = "0 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75"
NAMES = ["ship", "storage tank"]


def yolo(root: Path, labels: dict[str, str | None], description: object = None) -> Path:
    """Pictures of 96 x 64 with their labels (None: no file): picture path -> text; and a ``data.yaml``."""
    for k, (name, text) in enumerate(sorted(labels.items())):
        path = picture(root / name, seed=k)
        if text is not None:
            path = root / Path(*("labels" if part == "images" else part for part in Path(name).parts)).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
    if description is not None:
        (root / "data.yaml").write_text(description if isinstance(description, str) else yaml.safe_dump(description))
    return root


def test_boxes(tmp_path):
    labels = {"images/train/a.jpg": f"{BOX}\r\n\r\n0.0 0 0 .5 .5 \n", "images/train/b.png": "", "images/val/c.png": None}
    root = yolo(tmp_path / "r", labels, {"train": "images/train", "val": "images/val", "nc": 2, "names": NAMES})
    raw = read_raw(root)
    assert raw.format == "yolo" and list(raw.classes) == NAMES and not raw.skipped
    assert raw.notes == {"pictures without a label file, taken as without objects": 1}
    assert [(s.file_name, s.split, s.source, s.width, s.height, len(s.instances)) for s in raw.scenes] == [
        ("a.jpg", "train", "a", 96, 64, 2),
        ("b.png", "train", "b", 96, 64, 0),
        ("c.png", "val", "c", 96, 64, 0),
    ]
    first, second = raw.scenes[0].instances
    assert (first.category, first.hbb, first.oriented) == ("storage tank", (36, 16, 60, 48), False)
    assert (second.category, second.hbb) == ("ship", (-24, -16, 24, 16))  # reaches out of the picture: kept as it is


def test_a_label_file_that_is_a_link_to_nowhere_is_no_picture_without_objects(tmp_path):
    root = yolo(tmp_path, {f"images/train/{name}.png": BOX for name in "abc"}, {"train": "images/train", "names": NAMES})
    (lost,) = root.rglob("b.txt")
    lost.unlink()
    lost.symlink_to(tmp_path / "gone.txt")
    raw = read_raw(root, strict=False)
    assert len(raw.scenes) == 2 and raw.skipped == {"broken label files: the file does not exist": 1}


def test_oriented_boxes(tmp_path):
    root = yolo(
        tmp_path / "r", {"images/train/a.png": OBB}, {"train": "images/train", "val": "images/train", "names": dict(enumerate(NAMES))}
    )
    assert detect_format(root) == "yolo-obb" and detect_format(root / "data.yaml") == "yolo-obb"
    raw = read_raw(root)
    instance = raw.scenes[0].instances[0]
    assert instance.corners == (24, 16, 48, 16, 48, 48, 24, 48) and instance.oriented and instance.category == "ship"
    assert raw.scenes[0].split == "train" and raw.notes == {"pictures of train that val names again": 1}
    (root / "labels" / "train" / "a.txt").write_text(f"{OBB}\n{BOX}\n")
    with pytest.raises(CCDiffError, match=r"a\.txt:2: expected class x1 y1 .* found 5 fields(.|\n)*--format yolo"):
        read_raw(root)
    assert [i.oriented for i in read_raw(root, "yolo").scenes[0].instances] == [True, False]


def test_outlines_become_masks(tmp_path):
    root = yolo(tmp_path / "r", {"images/train/a.png": "0 0.5 0.25 0.75 0.5 0.5 0.75\n"}, {"train": "images/train", "names": NAMES})
    raw = read_raw(root)
    instance = raw.scenes[0].instances[0]
    assert instance.mask == ((48, 16, 72, 32, 48, 48),) and instance.hbb == (48, 16, 72, 48) and instance.oriented
    assert raw.format == "yolo" and raw.notes == {"outlines, with the minimum-area rectangle as OBB": 1}


@pytest.mark.parametrize(
    "description",
    [
        {"train": "../train/images", "val": "../valid/images", "test": "../test/images"},  # as Roboflow writes it
        {"path": "../datasets/mine", "train": "train/images", "val": "valid/images"},
        {"path": "/home/someone/mine", "train": "/home/someone/mine/train/images", "val": ["valid/images"]},
        {"path": "C:\\data\\mine", "train": "C:\\data\\mine\\train\\images", "val": "valid\\images"},
        {"train": "./train/images/", "val": "lists/val.txt"},
        {},
        None,
    ],
)
def test_where_the_pictures_are(tmp_path, description):
    root = yolo(tmp_path / "r", {"train/images/a.png": BOX, "valid/images/b.png": BOX}, description and {**description, "names": NAMES})
    if not description:
        (root / "classes.txt").write_text("ship\nstorage tank\n")
    (root / "lists").mkdir()
    (root / "lists" / "val.txt").write_text("/somewhere/else/valid/images/b.png\n\n")
    raw = read_raw(root)
    assert [(Path(s.path).relative_to(root).as_posix(), s.split, len(s.instances)) for s in raw.scenes] == [
        ("train/images/a.png", "train", 1),
        ("valid/images/b.png", "val", 1),
    ]
    missing_test = {"test folders that are named and do not exist (../test/images)": 1}
    assert raw.skipped == (missing_test if description and "test" in description else {})


def test_pictures_that_share_a_name(tmp_path):
    labels = {"images/train/1.png": BOX, "images/val/1.png": "", "images/val/P7__1__0___0.png": ""}
    raw = read_raw(yolo(tmp_path / "r", labels, {"train": "images/train", "val": "images/val", "names": NAMES}))
    assert [(s.file_name, s.source) for s in raw.scenes] == [
        ("train/1.png", "train/1"),
        ("val/1.png", "val/1"),
        ("val/P7__1__0___0.png", "val/P7"),
    ]


def test_a_picture_in_two_splits(tmp_path):
    root = yolo(tmp_path / "r", {"images/a.png": BOX, "images/b.png": BOX}, {"train": "images", "val": "val.txt", "names": NAMES})
    (root / "val.txt").write_text("./images/b.png\n./images/a.png\n")
    raw = read_raw(root)  # the same pictures once more: a set without val, whose detector asks for one
    assert [s.split for s in raw.scenes] == ["train", "train"] and raw.notes == {"pictures of train that val names again": 2}
    picture(root / "more" / "c.png")
    for some in ("./images/b.png\n", "./images/b.png\nmore/c.png\n"):  # whose are they? a detector would be tested on what it knows
        (root / "val.txt").write_text(some)
        with pytest.raises(CCDiffError, match=r"the picture images/b\.png is in train and in val"):
            read_raw(root)


def test_a_folder_of_val_inside_that_of_train_is_in_both(tmp_path):
    labels = {"images/a.png": BOX, "images/val/b.png": BOX}
    root = yolo(tmp_path / "r", labels, {"train": "images", "val": "images/val", "names": NAMES})
    with pytest.raises(CCDiffError, match=r"the picture images/val/b\.png is in train and in val\n.*folders in it"):
        read_raw(root)
    twice = yolo(
        tmp_path / "t", {"images/x/a.png": BOX, "images/y/b.png": BOX}, {"train": ["images/x", "images/y"], "val": "images", "names": NAMES}
    )
    assert [s.split for s in read_raw(twice).scenes] == ["train", "train"]


def test_lines_end_as_editors_count_them(tmp_path):
    root = yolo(tmp_path / "r", {"images/a.png": "1 0.5 0.5 0.25 0.5"})
    (root / "classes.txt").write_text("ship\x0cbig\nplane\n")
    assert [i.category for i in read_raw(root).scenes[0].instances] == ["plane"]


def test_split_lists_and_lonely_labels(tmp_path):
    root = yolo(tmp_path / "r", {"images/a.png": BOX, "images/b.png": BOX, "images/c.png": BOX})
    (root / "labels" / "z.txt").write_text(BOX)
    (root / "labels" / "classes.txt").write_text("ship\ntank\n")
    (root / "splits").mkdir()
    (root / "splits" / "test.txt").write_text("b\n")
    (root / "splits" / "train.txt").write_text("a\n")
    with pytest.raises(CCDiffError, match=r"z\.txt: the picture z is missing"):
        read_raw(root)
    raw = read_raw(root, strict=False)
    assert [(s.source, s.split) for s in raw.scenes] == [("a", "train"), ("b", "test")] and list(raw.classes) == ["ship", "tank"]
    assert raw.skipped == {"pictures in no split list": 1, "pictures that are missing": 1}


def test_class_file(tmp_path):
    root = yolo(tmp_path / "r", {"images/train/a.png": BOX})
    with pytest.raises(CCDiffError, match="nothing names the classes"):
        read_raw(root)
    path = tmp_path / "classes.txt"
    path.write_text("boat\ntank\n")
    assert read_raw(root, classes=read_class_file(path)).scenes[0].categories() == ["tank"]
    path.write_text("ship\nStorage_Tank = silo\n")
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "names": NAMES}))
    raw = read_raw(root, classes=read_class_file(path))
    assert raw.scenes[0].categories() == ["silo"] and list(raw.classes) == ["ship", "silo"]


@pytest.mark.parametrize("format", ["yolo", "yolo-obb"])
def test_our_export_is_read_back(tmp_path, format):
    root = tmp_path / "set"
    slanted = le90_to_corners((50, 30, 40, 10, 0.5))
    instances = (Instance.from_corners("storage tank", slanted), Instance.from_corners("ship", (5, 5, 25.5, 5, 25.5, 25.25, 5, 25.25)))
    scenes, hashes = [], {}
    for k, (name, split) in enumerate((("a.png", "train"), ("b.jpg", "val"), ("c.png", "test"))):
        hashes[name] = sha256_file(picture(root / "images" / name, seed=k))
        scenes.append(Scene(name, 96, 64, instances if k != 1 else (), split, name[0]))
    data = write_set(root, scenes, ClassList(("ship", "storage tank")), kind="prepared", details={}, picture_hashes=hashes)
    done = export_set(data, tmp_path / "out", ExportOptions(format=format))
    for source in (done.root, done.entry):
        raw = read_raw(source)
        assert raw.format == format and raw.classes == data.classes and not raw.skipped and not raw.notes
        for found, scene in zip(sorted(raw.scenes, key=lambda s: s.file_name), scenes, strict=True):
            assert (found.file_name, found.split, found.source, found.width) == (scene.file_name, scene.split, scene.source, 96)
            for a, b in zip(found.instances, scene.instances, strict=True):
                assert a.category == b.category and a.hbb == pytest.approx(b.hbb, abs=2e-4) and a.oriented == (format == "yolo-obb")
                assert format == "yolo" or polygon_iou(a.corners, b.corners) > 0.9999


def test_an_export_without_val_is_read_back(tmp_path):
    root = tmp_path / "set"
    hashes = {"a.png": sha256_file(picture(root / "images" / "a.png"))}
    scene = Scene("a.png", 96, 64, (Instance.from_hbb("ship", (1, 2, 30, 40)),), "train", "a")
    data = write_set(root, [scene], ClassList(("ship",)), kind="prepared", details={}, picture_hashes=hashes)
    raw = read_raw(export_set(data, tmp_path / "out", ExportOptions(format="yolo")).root)
    assert [s.split for s in raw.scenes] == ["train"]


def test_a_picture_that_does_not_decode_keeps_its_objects(tmp_path):
    root = yolo(tmp_path / "r", {"images/train/a.png": BOX}, {"train": "images/train", "names": NAMES})
    (root / "images" / "train" / "a.png").write_bytes(b"not a picture")
    scene = read_raw(root).scenes[0]  # `prepare` finds out, and says so or stops
    assert (scene.width, scene.height, len(scene.instances)) == (0, 0, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.25 0.5", "unknown class number '2'(.|\n)*0 ship, 1 storage tank"),
        ("-1 0.5 0.5 0.25 0.5", "unknown class number '-1'"),
        ("0.5 0.5 0.5 0.25 0.5", "unknown class number '0.5'"),
        ("ship 0.5 0.5 0.25 0.5", "class number: expected a number, found 'ship'"),
        ("0 0.5 0.5 0.25", "expected class cx cy w h, or .* found 4 fields"),
        ("0 0.5 0.5 0.25 0.5 0.9", "expected class cx cy w h, or .* found 6 fields"),
        ("0 48 32 24 32", "expected coordinates from 0 to 1 .* found 48"),
        ("0 0.5 0.5 nan 0.5", "field 4: expected a finite number"),
        ("0 0.5 0.5 0.25 1e300", "field 5: expected a finite number"),
        ("0 0.5 0.5 -0.25 0.5", "not negative"),
    ],
)
def test_broken_lines(tmp_path, line, message):
    root = yolo(tmp_path / "r", {"images/train/a.png": f"{BOX}\n{line}\n"}, {"train": "images/train", "names": NAMES})
    with pytest.raises(CCDiffError, match=rf"a\.txt:2: .*{message}"):
        read_raw(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [images/train\nnames: [ship]", "data.yaml:2: not valid YAML"),
        ("- train", "expected a mapping with names, train and val, found list"),
        ("train: images/train\nnames: 3", "names: expected a list of class names"),
        ("train: images/train\nnames: {-1: ship, 2: tank}", "names: expected class numbers, 0 or more, each once"),
        ("train: images/train\nnames: {a: ship}", "names: expected class numbers, 0 or more, each once"),
        ("train: images/train\nnames: [yes, ship]", "names: class 0 is a bool"),
        ("train: images/train\nnames: [[ship]]", "names: class 0 is a list"),
        ("train: images/train\nnames: [ship, ship]", "class names repeat"),
        ('train: images/train\nnames: ["a\\ud800", ship]', "expected a class name"),
        ("train: images/train\nnames: [small-car, small car]", "cannot be told apart"),
        ("train: images/train\nnames: []", "the class list is empty"),
        ("train: images/train\nnc: 3\nnames: [ship, tank]", "nc is not 2"),
        ("train: 7\nnames: [ship, tank]", "train: expected a folder or a list of folders, found a int"),
        ("train: images/elsewhere\nnames: [ship, tank]", "train: 'images/elsewhere' is not below"),
        ("train: /etc/ssl\nnames: [ship, tank]", "train: '/etc/ssl' is not below"),
        ("path: /\ntrain: etc/ssl\nnames: [ship, tank]", "train: 'etc/ssl' is not below"),
        ("path: //etc\ntrain: //etc/ssl\nnames: [ship, tank]", "train: '//etc/ssl' is not below"),
        ("train: ../../other\nnames: [ship, tank]", r"train: '\.\./\.\./other' is not below"),
        ("train: list.txt\nnames: [ship, tank]", r"list\.txt:1: the picture /etc/passwd is missing from "),
        ("train: empty\nnames: [ship, tank]", "no pictures in the folders"),
        ("a: &a {train: images/train}\nnames: [ship]\n<<: [*a, *a]", r"data\.yaml:3: not valid YAML: merge keys"),
        ("train: images/train\nnames: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_broken_descriptions(tmp_path, text, message):
    root = yolo(tmp_path / "r", {"images/train/a.png": BOX}, text)
    (root / "list.txt").write_text("/etc/passwd\n")
    (root / "empty").mkdir()
    (tmp_path / "other").mkdir()
    picture(tmp_path / "other" / "secret.png")
    with pytest.raises(CCDiffError, match=message):
        read_raw(root, "yolo")


def test_other_folders_are_not_yolo(tmp_path):
    picture(tmp_path / "images" / "a.png")
    with pytest.raises(CCDiffError, match="not recognised"):
        detect_format(tmp_path)
    (tmp_path / "data.yaml").write_text("seed: 3\n")
    with pytest.raises(CCDiffError, match="not recognised"):
        detect_format(tmp_path)


@settings(max_examples=50, deadline=None)
@given(
    label=st.text(alphabet=st.sampled_from("0123456789.-e \n\r\tnaif\u2028"), max_size=60),
    description=st.one_of(
        st.just("train: images/train\nnames: [a, b]"),
        st.text(alphabet=st.sampled_from("trainvlmespgc:/.-[]{}&*!0 \n'\"\x00"), max_size=60),
    ),
    format=st.sampled_from(["yolo", "yolo-obb"]),
)
def test_any_text_is_a_scene_or_our_error(tmp_path_factory, label, description, format):
    root = yolo(tmp_path_factory.mktemp("r"), {"images/train/a.png": label}, description or " ")
    try:
        raw = read_raw(root, format)
    except CCDiffError:
        return
    assert all(i.is_finite() for s in raw.scenes for i in s.instances)


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("names", [("train", "validation", "test"), ("training", "valid", "testing"), ("trainval", "minival", "Test")])
def test_every_word_for_a_split_is_known(tmp_path, names, described):
    keys = [name.lower() for name in names]
    description = {"names": NAMES, **{key: f"images/{name}" for key, name in zip(keys, names, strict=True)}} if described else None
    root = yolo(tmp_path, {f"images/{name}/{k}.png": BOX for k, name in enumerate(names)}, description)
    (root / "classes.txt").write_text("\n".join(NAMES))
    raw = read_raw(root)
    assert {s.file_name: s.split for s in raw.scenes} == {"0.png": "train", "1.png": "val", "2.png": "test"} and not raw.skipped


def test_pictures_outside_the_folders_of_the_splits_are_counted(tmp_path):
    root = yolo(tmp_path, {"images/train/a.png": BOX, "images/b.png": BOX, "more/c.png": None}, {"train": "images/train", "names": NAMES})
    raw = read_raw(root)
    assert [s.file_name for s in raw.scenes] == ["a.png"] and raw.skipped == {"pictures in no split list": 2}


def test_class_numbers_that_begin_at_1_or_have_gaps(tmp_path):
    labels = {"images/train/a.png": "1 0.5 0.5 0.25 0.5\n7 0.5 0.5 0.25 0.5\n"}
    (scene,) = read_raw(yolo(tmp_path / "r", labels, {"train": "images/train", "names": {7: "storage tank", 1: "ship"}})).scenes
    assert scene.categories() == ["ship", "storage tank"]


def test_labels_that_count_classes_from_1_stop_rather_than_shift(tmp_path):
    labels = {f"images/train/{k}.png": "1 0.5 0.5 0.25 0.5\n1 0.3 0.5 0.25 0.5\n2 0.5 0.5 0.25 0.5\n" for k in range(9)}
    root = yolo(tmp_path, labels, {"train": "images/train", "names": NAMES})
    with pytest.raises(CCDiffError, match=r"0\.txt:3: unknown class number '2' \(9 of 27 lines\)(.|\n)*count from 1"):
        read_raw(root, strict=False)


@pytest.mark.parametrize("points", ["0.2 0.2 2 0.3 0.3 2", "0.2 0.2 0.3 0.3"])
def test_keypoints_are_no_outline(tmp_path, points):
    shape = [2, len(points.split()) // 2]
    root = yolo(tmp_path, {"images/train/a.png": f"{BOX} {points}"}, {"train": "images/train", "names": NAMES, "kpt_shape": shape})
    raw = read_raw(root)
    (instance,) = raw.scenes[0].instances
    assert raw.format == "yolo" and instance.hbb == (36, 16, 60, 48) and not instance.oriented
    assert raw.notes["keypoints of boxes, passed over"] == 1


def test_a_label_file_that_two_pictures_share_is_said(tmp_path):
    root = yolo(tmp_path, {"images/train/a.png": BOX}, {"train": "images/train", "names": NAMES})
    picture(root / "images" / "train" / "a.jpg", seed=7)
    raw = read_raw(root)
    assert len(raw.scenes) == 2 and raw.changes == {"label files that several pictures of one name share, used for each": 1}


NAME_FILES = ("0: ship\n1: storage tank\n", "0 ship\n1 storage tank", '"ship"\n"storage tank"\n', "# my classes\nship\n\nstorage tank\n")


@pytest.mark.parametrize("text", NAME_FILES)
def test_name_files_with_numbers_quotes_or_comments(tmp_path, text):
    root = yolo(tmp_path, {"images/a.png": BOX})
    (root / "classes.txt").write_text(text)
    raw = read_raw(root)
    assert list(raw.classes) == NAMES and raw.scenes[0].categories() == ["storage tank"]
