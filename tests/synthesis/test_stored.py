"""What plans store: the bytes of earlier versions, whatever the form in which options are given."""

import pytest

from ccdiff_cli.dataset import read_set
from ccdiff_cli.files import content_key
from ccdiff_cli.synthesis.planning import identity_of, make_plan, resolved
from tests.synthesis.grouped import options_of

GENERATOR = {
    "picture_size": 32,
    "classes": ["ship", "airplane"],
    "key": "9f77e99f1cdd3c50",
    "recipe": {"name": "fake", "caption_style": "short", "sampling": {"steps": 3, "guidance_scale": 2.0}, "denoiser": {"top_k": 2}},
}
MIXED = {
    "seed": 3, "n": 7, "batch_size": 2, "steps": 9, "guidance_scale": 4.0, "negative_prompt": "fog", "val_share": 0.25, "format": "webp",
    "precision": "bfloat16", "channels_last": False, "layout_source": "mixed", "balance": "rare", "top_k": 1,
}  # fmt: skip
FLOOR = {"n": 10, "batch_size": 4, "shuffle_layouts": True, "format": "jpeg", "threads": 2, "layout_source": "set", "balance": "classes"}
BEFORE = [
    ({"n": 10, "batch_size": 4}, "691926705665cdd7", "7528cbc0222ca19b4f97bb08e9f960032e19eb13c3f57df772e38fa6d781a8f2"),
    (MIXED, "17cb7e86c225ae50", "f7d8dd8d26a36198e67c954d440d4c627e23078dae949f394ee007733ccfe782"),
    (FLOOR, "fe77ab466026b308", "4abcf8f8e1f657553172562fd38197b465cb8c6bb7e41694b92b4f93d85534ec"),
]
"""Options, key of the plan, hash of plan.jsonl: made before options were types."""


@pytest.mark.parametrize(("options", "key", "lines"), BEFORE, ids=["usual", "mixed", "floor"])
def test_plans_have_the_keys_and_bytes_of_before(layouts, options, key, lines):
    found = read_set(layouts)
    identity = identity_of(GENERATOR, found, None, resolved(options_of(**options), GENERATOR, {}))
    plan = make_plan(identity, found, None)
    assert (content_key(identity), plan.key, plan.header["lines"]) == (key, key, lines)


def test_what_is_not_given_is_the_generators():
    stored = {**GENERATOR, "recipe": {**GENERATOR["recipe"], "caption_style": "stored", "retrieval": "own"}}
    found = resolved(options_of(4), stored, {})
    assert (found.layouts.source, found.retrieval, found.top_k, found.sampling.steps) == ("set", "own", 2, 3)
    given = resolved(options_of(4, layout_source="mixed", retrieval="words", top_k=5, steps=7, compile=True), stored, {})
    assert (given.layouts.source, given.retrieval, given.top_k, given.sampling.steps, given.sampling.compile) == (
        "mixed",
        "words",
        5,
        7,
        True,
    )
    assert given.sampling.scheduler is None and given.sampling.guidance_scale == 2.0
    published = resolved(options_of(4, published=True), stored, {"steps": 50, "guidance_scale": 7.5, "scheduler": "euler"})
    assert (published.sampling.steps, published.sampling.guidance_scale, published.sampling.scheduler) == (50, 7.5, "euler")
