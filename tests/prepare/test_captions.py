"""Captions: places, counts, directions, plurals, lengths."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.geometry import le90_to_corners
from ccdiff_cli.prepare.captions import DIRECTIONS, MAX_TOKENS, PLACES, caption_of, count_tokens, direction_of, place_of, read_sentences
from ccdiff_cli.scene import Instance, Scene


def at(x, y, category="ship", w=20, h=8, degrees=0.0):
    return Instance.from_corners(category, le90_to_corners((x, y, w, h, math.radians(degrees))))


def test_the_account():
    scene = Scene("a.png", 400, 400, (at(200, 200), at(150, 220), at(30, 30, "vehicle", degrees=45), at(390, 200, degrees=90)))
    assert caption_of(scene) == (
        "This is an aerial image of ships. center: 2 ships east-west; top left: 1 vehicle northwest-southeast; right: 1 ship north-south."
    )
    assert caption_of(scene, "short") == "This is an aerial image of ships. 3 ships, 1 vehicle."
    assert caption_of(scene, place="a harbor").startswith("This is an aerial image of a harbor. center")
    assert caption_of(scene.replace(instances=())) == "This is an aerial image of open ground."
    told = scene.replace(provenance={"gsd": 0.5, "metadata": {"date": "2014-05-02"}})
    plain = caption_of(told)
    assert plain == caption_of(scene) and caption_of(scene, "measured") == plain
    assert caption_of(told, "measured") == plain.replace("of ships.", "of ships, 0.5 m per pixel, in May 2014.", 1)
    assert caption_of(told, "measured", sentence="A quay.").startswith("A quay, 0.5 m per pixel, in May 2014. center")
    with pytest.raises(CCDiffError, match="unknown caption style"):
        caption_of(scene, "baroque")


def test_places_are_a_grid_of_four_by_four():
    rows = [[place_of(50 + 100 * x, 50 + 100 * y, 400, 400) for x in range(4)] for y in range(4)]
    assert rows == [
        ["top left", "top", "top", "top right"],
        ["left", "center", "center", "right"],
        ["left", "center", "center", "right"],
        ["bottom left", "bottom", "bottom", "bottom right"],
    ]
    assert place_of(400, 400, 400, 400) == "bottom right" and place_of(-3, 500, 400, 400) == "bottom left"


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (0, "east-west"), (20, "east-west"), (25, "northwest-southeast"), (45, "northwest-southeast"), (90, "north-south"),
        (-90, "north-south"), (-45, "northeast-southwest"), (135, "northeast-southwest"), (180, "east-west"), (70, "north-south"),
    ],
)  # fmt: skip
def test_directions(degrees, expected):
    """y points down: a positive angle runs from the upper left to the lower right."""
    assert direction_of(at(50, 50, degrees=degrees)) == expected


def test_no_direction_for_squares_and_plain_boxes():
    assert direction_of(at(50, 50, w=10, h=9, degrees=30)) is None
    assert direction_of(Instance.from_hbb("ship", (0, 0, 90, 10))) is None
    scene = Scene("a.png", 100, 100, (at(50, 50, degrees=0), at(55, 50, degrees=90)))
    assert caption_of(scene).endswith("center: 2 ships.")  # no direction that most of them share


def test_long_accounts_lose_directions_then_places():
    names = ["ship", "vehicle", "bridge", "harbor"]
    spots = [(x, y) for x in (20, 200, 380) for y in (20, 200, 380)]
    crowded = Scene("a.png", 400, 400, tuple(at(x, y, n) for x, y in spots for n in names))
    assert caption_of(crowded) == "This is an aerial image of bridges. 9 bridges, 9 harbors, 9 ships, 9 vehicles."
    two = Scene("a.png", 400, 400, tuple(at(x, y, n) for x, y in spots[:8] for n in names[:2]))
    assert "east-west" not in caption_of(two) and "top left: 1 ship, 1 vehicle;" in caption_of(two)


@given(
    st.lists(
        st.tuples(st.floats(0, 400), st.floats(0, 400), st.sampled_from(["ship", "bus", "box", "ferry"]), st.floats(-90, 90)), max_size=60
    )
)
@settings(max_examples=100, deadline=None)
def test_captions_stay_short_count_everything_and_do_not_depend_on_order(items):
    instances = tuple(at(x, y, c, degrees=d) for x, y, c, d in items)
    scene = Scene("a.png", 400, 400, instances)
    text = caption_of(scene)
    assert count_tokens(text) <= MAX_TOKENS
    assert sum(int(w) for w in text.split() if w.isdigit()) == len(items)
    assert caption_of(scene.replace(instances=instances[::-1])) == text
    assert len(PLACES) == 9


def test_the_account_of_the_protocol():
    """Every class in each of the nine places, counted beyond ten, in each of the four directions."""
    spots = {place_of(x, y, 400, 400): (x, y) for x in (40, 200, 360) for y in (40, 200, 360)}
    assert set(spots) == set(PLACES)
    for place, (x, y) in spots.items():
        for direction, degrees in zip(DIRECTIONS, (0, 45, 90, 135), strict=True):
            for count in (1, 2, 10, 11, 12, 137):
                text = caption_of(Scene("a.png", 400, 400, (at(x, y, degrees=degrees),) * count))
                name = "ship" if count == 1 else "ships"
                assert text == f"This is an aerial image of ships. {place}: {count} {name} {direction}."


def test_tokens_are_counted_as_clip_counts_them():
    """25 tokens of CLIP's own vocabulary (measured): digits and hyphens stand alone."""
    assert count_tokens("This is an aerial image of ships. center: 12 ground track fields northwest-southeast; top left: 1 ship.") == 25
    assert count_tokens("") == 0


def test_phrases_of_classes_are_joined_as_aerogen_joins_them():
    def said(*names):
        return caption_of(Scene("a.png", 64, 64, tuple(Instance.from_hbb(n, (1, 1, 9, 9)) for n in names)), style="phrases")

    assert said() == "an aerial image"
    assert said("ship", "ship") == "an aerial image with ship on the water"
    assert said("ship", "Expressway-toll-station") == "an aerial image with busy expressway toll station and ship on the water"
    assert said("tank", "golffield", "dam") == "an aerial image with large dam, well-maintained golf field and tank", "others by their name"
    assert said("ground track field") == "an aerial image with athletic ground track field", "other spellings of the same letters"


def test_quadrants_go_round_from_the_top_left_and_long_ones_are_counted():
    def made(*boxes):
        return Scene("a.png", 100, 60, tuple(Instance.from_hbb(n, (x - 1, y - 1, x + 1, y + 1)) for n, x, y in boxes))

    corners = made(("bus", 10, 50), ("car", 90, 50), ("car", 90, 50), ("bus", 90, 10), ("bus", 10, 10))
    assert caption_of(corners, style="quadrants") == (
        "a satellite image of 1 bus in the top left, 1 bus in the top right, 2 cars in the bottom right, 1 bus in the bottom left"
    )
    assert caption_of(made(), style="quadrants") == "a satellite image"
    assert caption_of(made(("car", 50, 30)), style="quadrants").endswith("1 car in the bottom right"), "the middle counts so"
    crowd = made(*((f"class{chr(97 + k)}", 10 + 80 * (k % 2), 10 + 40 * (k % 3 == 0)) for k in range(20)))
    text = caption_of(crowd, style="quadrants")
    assert "top" not in text and text.startswith("a satellite image of 1 classa, 1 classb")


def test_a_noted_sentence_stays_with_a_scene():
    scene = Scene("a.png", 400, 400, (at(200, 200),), provenance={"sentence": "This is an aerial image of a coast."})
    assert caption_of(scene, "short") == "This is an aerial image of a coast. 1 ship."
    assert caption_of(scene, "short", sentence="A quay.") == "A quay. 1 ship."
    assert caption_of(scene, "short", place="a harbor") == "This is an aerial image of a harbor. 1 ship."


def test_sentences_from_json_and_csv(tmp_path):
    expected = {"a/b.png": "A harbor at low tide.", "c": "Fields, then a road!"}
    (tmp_path / "s.json").write_text('{"a/b.png": " A harbor\\n at low tide", "c": "Fields, then a road!"}')
    (tmp_path / "s.csv").write_text(
        '\ufefffile_name,sentence\r\na/b.png,A harbor at low tide\r\n\r\nc,"Fields, then a road!"\r\n', encoding="utf-8"
    )
    assert read_sentences(tmp_path / "s.json") == expected == read_sentences(tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.csv", "picture,caption\na,b\n", r"s.csv:1: the columns are \['picture', 'caption'\]"),
        ("s.csv", "file_name,sentence\na,b\na,c, d\n", r"s.csv:3: 3 columns, expected 2"),
        ("s.csv", "file_name,sentence\na,b\na,c\n", r"s.csv:3: 'a' has two sentences"),
        ("s.csv", "file_name,sentence\na,\n", r"s.csv:2: expected a file name and a sentence"),
        ("s.csv", 'file_name,sentence\na,"b\n', r"not a CSV file"),
        ("s.json", "[1]", r"found a list"),
        ("s.json", '{"a": 5}', r"s.json: a: expected a file name and a sentence, found 'a': 5"),
    ],
)
def test_broken_sentences(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(CCDiffError, match=message):
        read_sentences(tmp_path / name)


def test_a_sentence_opens_the_caption():
    scene = Scene("a.png", 100, 100, (Instance.from_hbb("ship", (5, 5, 15, 15)),))
    assert caption_of(scene, "short", sentence="A quay.") == "A quay. 1 ship."
    assert caption_of(scene.replace(instances=()), sentence="A quay.") == "A quay."
