"""A synthesis that is run again makes good what its folder lost, to the same bytes, and leaves alone what a person did."""

import json
import shutil

import pytest

from ccdiff_cli.dataset import read_set
from ccdiff_cli.errors import CCDiffError, EditedSet
from ccdiff_cli.synthesis import accept_set, verify_set
from tests.synthesis.test_synthesis import files_of, make, reference  # noqa: F401


def edit(root):
    coco = json.loads((root / "annotations.json").read_text())
    coco["annotations"][0]["difficult"] = 1
    (root / "annotations.json").write_text(json.dumps(coco))


@pytest.mark.parametrize("damage", ["missing", "torn", "a list", "a folder"])
@pytest.mark.parametrize("name", ["annotations.json", "contact_sheet.png", "README.md", "plan.json", "plan.jsonl", "images/00000003.png"])
def test_what_was_lost_is_made_again(generator, layouts, tmp_path, reference, name, damage):  # noqa: F811
    if damage != "missing" and name in ("contact_sheet.png", "README.md"):
        pytest.skip("what these hold is for people")
    out = tmp_path / "s"
    make(generator, layouts, out)
    path = out / name
    data = path.read_bytes()
    path.unlink()
    if damage == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "a list":
        path.write_text("[]")
    elif damage == "a folder":
        if name != "images/00000003.png":
            return  # refused by the operating system's own words
        path.mkdir()
    if damage == "a list" and name == "plan.json":
        with pytest.raises(CCDiffError, match="not a plan of this version"):
            make(generator, layouts, out)
        return
    if damage == "a folder":
        with pytest.raises(CCDiffError):
            make(generator, layouts, out)
        return
    assert not verify_set(out)["ok"]
    make(generator, layouts, out)
    assert files_of(out) == reference and verify_set(out)["ok"]


RECORDS = ["{", "[]", "null", "", '{"plan": 1}', '{"pictures": []}', '{"plan": "x", "pictures": [{"file_name": 3}]}', '{"a": 1, "a": 2}']


@pytest.mark.parametrize("text", [*RECORDS, "KEEP none of its pictures", "KEEP a hash that is none", "a folder", "a link to nowhere"])
def test_a_block_with_a_damaged_record_is_made_again(generator, layouts, tmp_path, reference, text):  # noqa: F811
    out = tmp_path / "s"
    make(generator, layouts, out, part=(0, 2))
    path = out / "records" / "block-000000.json"
    record = json.loads(path.read_text())
    path.unlink()
    if text == "a folder":
        path.mkdir()
    elif text == "a link to nowhere":
        path.symlink_to(out / "nowhere")
    elif text.startswith("KEEP"):
        record["pictures"] = [] if "none of" in text else [{**e, "sha256": "x"} for e in record["pictures"]]
        path.write_text(json.dumps(record))
    else:
        path.write_text(text)
    made = make(generator, layouts, out)
    assert made["made"] >= 4 and files_of(out) == reference


def test_edited_labels_stay_and_lost_pictures_come_back(generator, layouts, tmp_path, reference):  # noqa: F811
    out = tmp_path / "s"
    make(generator, layouts, out)
    edit(out)
    edited = files_of(out)
    (out / "images" / "00000003.png").unlink()
    with pytest.warns(EditedSet):
        make(generator, layouts, out)
    assert files_of(out) == edited
    accept_set(out)
    assert verify_set(out)["ok"]
    accepted = files_of(out)
    assert make(generator, layouts, out)["made"] == 0 and files_of(out) == accepted
    (out / "images" / "00000003.png").unlink()
    with pytest.raises(CCDiffError, match="edited and accepted"):
        make(generator, layouts, out)
    accept_set(out)
    assert verify_set(out)["ok"] and len(read_set(out).scenes) == 9


def test_a_file_that_is_not_the_sets_is_refused(generator, layouts, tmp_path):
    out = tmp_path / "s"
    make(generator, layouts, out)
    (out / "images" / "mine.png").write_bytes(b"x")
    with pytest.raises(CCDiffError, match=r"mine\.png does not belong"):
        make(generator, layouts, out)


def test_layouts_that_were_edited_are_another_plan(generator, layouts, tmp_path):
    mine = shutil.copytree(layouts, tmp_path / "layouts")
    make(generator, mine, tmp_path / "s")
    edit(mine)
    with pytest.warns(EditedSet), pytest.raises(CCDiffError, match=r"belongs to another run; changed: layouts\.key"):
        make(generator, mine, tmp_path / "s")
