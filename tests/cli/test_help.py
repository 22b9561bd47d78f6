"""Help that fits on a screen, options that stay, names that a shell completes, and imports that no verb pays for another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ccdiff_cli.cli import app
from ccdiff_cli.cli.app import VERBS, descriptions
from ccdiff_cli.cli.completion import COMPLETERS
from ccdiff_cli.options import Options

SYNTHESIZE = (
    "--n -n --checkpoint -c --layouts -l --out -o --layout-source --balance --llm-url --llm-model --llm-captions --shuffle-layouts "
    "--filter --filter-recall --filter-retries --filter-detector --filter-clip --filter-judges --steps --guidance-scale --retrieval "
    "--top-k --published --precision --channels-last --no-channels-last --compile --no-compile --format -f --val-share --batch-size "
    "--num-processes --part --ray --seed --dry-run --json"
)
KEPT = {
    "synthesize": SYNTHESIZE,
    "layout": "--out -o --source -s --n -n --split --balance --compare --llm-url --llm-model --llm-captions --seed --json",
    "train": "--data -d --out -o --recipe -r --from --transplant --set --cpu --dry-run --json",
}
"""Flags of the version before options were types."""


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_fits_on_a_screen(verb: str) -> None:
    done = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "100"})
    assert done.exit_code == 0 and done.output.count("\n") < 60, done.output
    command = get_command(app).get_command(None, verb)  # type: ignore[attr-defined]
    assert descriptions()[verb] == command.help, "the list of all verbs says the same"
    every = CliRunner().invoke(app, [verb, "--help-all"], env={"COLUMNS": "100"}).output
    for parameter in command.params:
        if parameter.required or not parameter.hidden:
            longest = max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.name
            assert longest in every
            assert longest in done.output or not parameter.required
    assert ("more option" in done.output) == (len(done.output.splitlines()) < len(every.splitlines()))


@pytest.mark.parametrize("verb", KEPT)
def test_no_flag_was_lost(verb: str) -> None:
    command = get_command(app).get_command(None, verb)  # type: ignore[attr-defined]
    found = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert set(KEPT[verb].split()) <= found


def test_help_shows_every_character_of_the_texts() -> None:
    """They are rendered as Markdown: underscores and brackets stay, spans of code lose their backticks alone."""
    for verb in VERBS:
        said = "".join(CliRunner().invoke(app, [verb, "--help-all"], env={"COLUMNS": "800"}).output.split())
        for parameter in get_command(app).get_command(None, verb).params:  # type: ignore[attr-defined]
            text = getattr(parameter, "help", None)
            assert parameter.hidden or not text or "".join(text.replace("`", "").split()) in said, (verb, parameter.name)
    assert r"^(.+)_\d+_\d+$" in CliRunner().invoke(app, ["prepare", "--help-all"], env={"COLUMNS": "200"}).output


@pytest.mark.parametrize("columns", ["80", "100"])
def test_a_help_always_shows_how_to_try_and_how_to_change_an_experiment(columns: str) -> None:
    said = CliRunner().invoke(app, ["eval-trainability", "--help"], env={"COLUMNS": columns}).output
    assert all(f" {flag} " in said for flag in ("--dry-run", "--set", "--match"))
    for verb in ("train", "synthesize", "evaluate", "misses", "compare", "run"):
        assert " --dry-run " in CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": columns}).output


def complete(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    words = line.split(" ")
    given = {"_CCDIFF_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return CliRunner().invoke(app, [], env=given, prog_name="ccdiff").stdout.split()


def test_a_shell_completes_recipes_sets_and_generators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, mark in (("runs/set", "manifest.json"), ("runs/generator", "ccdiff.json"), ("runs/other", "x.txt"), ("sound/deep/er", "y")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / mark).touch()
    (tmp_path / "mine.yaml").touch()
    assert complete("ccdiff train --recipe ccdiffpp-sd14-dio", monkeypatch) == ["ccdiffpp-sd14-dior"]
    assert complete("ccdiff train --recipe m", monkeypatch)[-1:] == ["mine.yaml"]
    assert complete("ccdiff synthesize --layouts runs/s", monkeypatch) == ["runs/set"]
    assert complete("ccdiff synthesize --checkpoint runs/", monkeypatch) == ["runs/generator"]
    assert "tiny" in complete("ccdiff synthesize --checkpoint t", monkeypatch)
    assert complete("ccdiff synthesize --references s", monkeypatch) == ["sound/"]
    assert complete("ccdiff layout runs/", monkeypatch) == ["runs/set"]
    assert {"yolo", "yolo-obb"} <= set(COMPLETERS["formats"]("yolo")) and "dota-task1" in COMPLETERS["export formats"]("dota")
    assert COMPLETERS["experiments"]("trainability-vhr10-c") == ["trainability-vhr10-cpu"]
    assert COMPLETERS["sets"]("nowhere/at/all") == []


HEAVY = ("torch", "scipy", "diffusers", "transformers", "accelerate", "matplotlib", "cv2", "numpy")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["synthesize", "--help"], ["train", "--help"], ["layout", "--help"], ["misses", "--help"]]
)
def test_a_help_imports_no_heavy_library(arguments: list[str]) -> None:
    script = f"""import json, sys
from ccdiff_cli.cli import main
try: main({arguments!r})
except SystemExit: pass
no = [*{HEAVY!r}, *(["pydantic"] if {arguments!r} == ["--help"] else [])]
print(json.dumps([n for n in no if n in sys.modules]))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_verify_imports_neither_torch_nor_scipy(tmp_path: Path) -> None:
    script = f"""import json, sys
from ccdiff_cli.cli import main
try: main(["verify", {str(tmp_path)!r}])
except SystemExit: pass
from ccdiff_cli.synthesis import verify_set
print(json.dumps([n for n in ("torch", "scipy", "diffusers", "transformers", "matplotlib") if n in sys.modules]))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_worker_imports_of_the_large_libraries_torch_alone() -> None:
    """What a generator needs comes with the generator, which a stand-in does without."""
    script = """import json, sys
import ccdiff_cli.synthesis.worker
heavy = ("scipy", "diffusers", "transformers", "accelerate", "matplotlib", "torchvision", "pyarrow", "typer")
print(json.dumps([n for n in heavy if n in sys.modules]))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_every_option_says_what_it_is() -> None:
    from ccdiff_cli.layouts import LayoutOptions
    from ccdiff_cli.options import group_of
    from ccdiff_cli.synthesis import RepairOptions, SynthesisOptions, WorkOptions
    from ccdiff_cli.trainability import MissesOptions
    from ccdiff_cli.training import TrainOptions

    def check(model: type[Options]) -> None:
        for name, field in model.model_fields.items():
            group = group_of(field.annotation)
            if group is not None and issubclass(group, Options):
                check(group)
            else:
                assert field.description, f"{model.__name__}.{name}"
        assert model.model_json_schema()["properties"].keys() == model.model_fields.keys()

    for model in (LayoutOptions, SynthesisOptions, WorkOptions, TrainOptions, MissesOptions, RepairOptions):
        check(model)
