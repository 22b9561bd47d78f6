"""Fractions by source, nested; parts of a set, nested; steps and epochs; what each arm is trained on."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccdiff_cli.dataset import PictureSet
from ccdiff_cli.detectors import DetectorConfig
from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.scene import Scene
from ccdiff_cli.trainability.arms import fraction_of, fractions_of, make_arms, part_of, trainings_of, write_split_lists
from ccdiff_cli.trainability.config import ExperimentConfig
from ccdiff_cli.trainability.results import headline_of

from ..detectors.small import CLASSES, make_set


def tiles(sources: int, each: int = 3) -> list[Scene]:
    return [Scene(f"{s}-{k}.png", 64, 64, source=f"s{s:03d}") for s in range(sources) for k in range(each)]


def files(scenes) -> set[str]:
    return {s.file_name for s in scenes}


@given(st.integers(1, 40), st.floats(0.5, 100), st.floats(0.5, 100), st.integers(0, 5))
def test_fractions_keep_sources_whole_and_lie_within_one_another(sources, a, b, draw):
    train = tiles(sources)
    small, large = (fraction_of(train, p, draw) for p in sorted((a, b)))
    names = {s.source for s in small}
    assert len(small) == 3 * len(names) and len(names) == max(1, round(sources * min(a, b) / 100))
    assert files(small) <= files(large) and fraction_of(train, 100, draw) == tuple(train)
    assert list(small) == [s for s in train if s.source in names]  # in the set's order, whatever the draw


def test_another_draw_is_another_fraction_and_pictures_without_source_are_their_own():
    assert fraction_of(tiles(40), 25, 0) != fraction_of(tiles(40), 25, 1)
    alone = [Scene(f"{k}.png", 9, 9) for k in range(10)]
    assert len(fraction_of(alone, 30, 0)) == 3


@given(st.integers(0, 30), st.integers(0, 30))
def test_parts_lie_within_one_another(a, b):
    scenes = tiles(10)
    small, large = (part_of(scenes, n, 0) for n in sorted((a, b)))
    assert len(small) == min(a, b) and files(small) <= files(large) and part_of(scenes, 30, 0) == tuple(scenes)


def experiment(**values) -> ExperimentConfig:
    return ExperimentConfig(detector=DetectorConfig(steps=100, warmup_steps=10), **{"match": "steps", **values})


def added(config, count=100):
    return {
        (kind, f): [Scene(f"{kind}{k}.png", 64, 64, source=f"x{k}") for k in range(count)] for kind in config.arms for f in config.fractions
    }


def test_every_arm_of_every_fraction_by_name():
    config = experiment(
        fractions=[25, 100], arms={"synthetic": [0.5, "all"], "copy-paste": [1], "pretrain": [1], "synthetic-only": [2], "migc": [1]}
    )
    arms = {a.name: a for a in make_arms(config, tiles(16), added(config))}
    assert list(arms)[:7] == [
        "25 % of real", "25 % of real + 0.5x synthetic", "25 % of real + synthetic", "25 % of real + 1x copy-paste",
        "1x synthetic, then 25 % of real", "2x synthetic only (25 %)", "25 % of real + 1x migc",
    ]  # fmt: skip
    assert [(len(a.scenes), a.added) for a in arms.values()][7:] == [(48, 0), (72, 24), (148, 100), (96, 48), (48, 48), (96, 96), (96, 48)]
    assert {a.steps + a.first_steps for a in arms.values()} == {100}  # the same number for every arm
    staged = arms["1x synthetic, then real"]
    assert (staged.first_steps, staged.steps, len(staged.first)) == (50, 50, 48)
    assert files(arms["25 % of real"].scenes) <= files(arms["25 % of real + 0.5x synthetic"].scenes)


def test_equal_epochs_train_longer_on_more_pictures():
    config = experiment(match="epochs", fractions=[50, 100], arms={"synthetic": [1], "pretrain": [1]})
    steps = {a.name: (a.first_steps, a.steps) for a in make_arms(config, tiles(16), added(config))}
    assert steps == {
        "50 % of real": (0, 100), "50 % of real, longer (200 steps)": (0, 200), "50 % of real + 1x synthetic, equal epochs": (0, 200),
        "1x synthetic, then 50 % of real, equal epochs": (100, 100),
        "real": (0, 100), "real, longer (200 steps)": (0, 200), "real + 1x synthetic, equal epochs": (0, 200),
        "1x synthetic, then real, equal epochs": (100, 100),
    }  # fmt: skip


def test_both_protocols_stand_side_by_side_with_real_pictures_trained_as_long():
    config = experiment(match="both", arms={"synthetic": [0.5, 1], "copy-paste": [1], "synthetic-only": [1]}, fractions=[50])
    arms = make_arms(config, tiles(16), added(config))
    assert [(a.name, a.protocol, a.total_steps) for a in arms] == [
        ("50 % of real", "", 100), ("50 % of real, longer (150 steps)", "", 150), ("50 % of real, longer (200 steps)", "", 200),
        ("50 % of real + 0.5x synthetic", "steps", 100), ("50 % of real + 0.5x synthetic, equal epochs", "epochs", 150),
        ("50 % of real + 1x synthetic", "steps", 100), ("50 % of real + 1x synthetic, equal epochs", "epochs", 200),
        ("50 % of real + 1x copy-paste", "steps", 100), ("50 % of real + 1x copy-paste, equal epochs", "epochs", 200),
        ("1x synthetic only (50 %)", "steps", 100),  # as many pictures as real ones: both protocols are one
        ("real", "", 100),  # the yardstick alone
    ]  # fmt: skip
    longer = arms[2]
    assert longer.kind == "longer" and longer.scenes == arms[0].scenes and longer.added == 0


def test_the_yardstick_of_the_whole_set_is_what_it_gains_over_half_of_it():
    assert fractions_of(experiment(fractions=[100]), tiles(16)) == (50, 100)
    assert fractions_of(experiment(fractions=[25, 100]), tiles(16)) == (25, 100) == fractions_of(experiment(fractions=[25]), tiles(16))
    assert fractions_of(experiment(fractions=[100]), tiles(1)) == (100,)  # one source cannot be halved


def test_too_few_pictures_for_a_ratio():
    config = experiment(arms={"synthetic": [3]})
    with pytest.raises(CCDiffError, match=r"arms.synthetic: ratio 3 asks for 144 pictures beside 48 real ones, but the set has 100"):
        make_arms(config, tiles(16), added(config))


def test_the_headline_is_chosen_by_rule():
    config = experiment(fractions=[25, 100], arms={"synthetic": [0.25, 2, 1], "copy-paste": [1]})
    chosen, real = headline_of(make_arms(config, tiles(16), added(config)))
    assert (chosen.name, real.name) == ("real + 1x synthetic", "real")
    config = experiment(arms={"copy-paste": [2], "synthetic": ["all"]})
    assert headline_of(make_arms(config, tiles(16), added(config)))[0].kind == "copy-paste"
    for match, name in (("both", "10 % of real + 1x synthetic"), ("epochs", "10 % of real + 1x synthetic, equal epochs")):
        config = experiment(fractions=[10], match=match, arms={"synthetic": [2, 1]})
        chosen, real = headline_of(make_arms(config, tiles(16), added(config)))
        assert (chosen.name, real.name) == (name, "10 % of real")  # at equal steps, and not at the yardstick's fraction


def test_trainings_of_two_stages_hang_together(tmp_path):
    real = make_set(tmp_path / "r", {"train": 6}).split("train")
    config = experiment(arms={"pretrain": [1], "synthetic-only": [1]}, fractions=[50, 100])
    pool = {(k, f): make_set(tmp_path / "s", {"train": 6}, tag="s").split("train") for k in config.arms for f in config.fractions}
    arms = {a.name: a for a in make_arms(config, real, pool)}
    first, second = trainings_of(arms["1x synthetic, then real"], CLASSES, config, 0)
    assert (first.start, second.start, first.config.steps, second.config.steps) == (None, first.key, 50, 50)
    assert len({first.key, second.key, trainings_of(arms["real"], CLASSES, config, 0)[0].key}) == 3
    assert trainings_of(arms["real"], CLASSES, config, 0) != trainings_of(arms["real"], CLASSES, config, 1)


def test_split_lists_are_those_of_this_part_whatever_lay_there(tmp_path):
    def cut(name: str, split: str, source: str) -> Scene:
        return Scene(name, 64, 64, source=source, split=split, provenance={"picture": f"{source}.jpg"})

    scenes = [cut(f"{s}-{k}.png", split, s) for s, split in (("a", "train"), ("b", "train"), ("c", "val")) for k in range(2)]
    real = PictureSet(tmp_path / "set", CLASSES, tuple(scenes), {})
    lists = tmp_path / "lists"

    def written() -> dict[str, str]:
        return {path.name: path.read_text() for path in lists.iterdir()}

    write_split_lists(real, scenes[:2], lists)
    assert written() == {"train.txt": "a.jpg\n", "val.txt": "c.jpg\n"}
    before = {path.name: path.stat().st_ino for path in lists.iterdir()}
    write_split_lists(real, scenes[2:4], lists)  # another draw
    assert written() == {"train.txt": "b.jpg\n", "val.txt": "c.jpg\n"}
    after = {path.name: path.stat().st_ino for path in lists.iterdir()}
    assert after["val.txt"] == before["val.txt"] and after["train.txt"] != before["train.txt"]  # what is right is not written again
    write_split_lists(dataclasses.replace(real, scenes=tuple(scenes[:4])), scenes[:4], lists)  # another set, without a val split
    assert written() == {"train.txt": "a.jpg\nb.jpg\n"}
    bare = dataclasses.replace(real, scenes=tuple(s.replace(provenance={}) for s in scenes))
    write_split_lists(bare, bare.scenes[:2], lists)
    assert written() == {}
