"""The site says what the program has: every option and key with what it does; every page stands in the menu; the notebooks run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccdiff_cli.cli.app import VERBS
from ccdiff_cli.methods import METHODS
from ccdiff_cli.trainability.config import ExperimentConfig

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture(scope="module")
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("ccdiff_site_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(hooks: Any) -> dict[str, str]:
    made: dict[str, str] = hooks.pages()
    return made


def rows(page: str) -> dict[str, list[str]]:
    """First cell of every row of a page's tables -> the others."""
    found = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in page.splitlines() if line.startswith("|")]
    return {first: others for first, *others in found}


def test_every_option_and_key_says_what_it_is(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        nothing = [first for first, others in rows(page).items() if not others[-1]]
        assert not nothing, f"{name}: {nothing}"


def test_options_and_keys_are_all_there(pages: dict[str, str]) -> None:
    options, recipes = pages["reference/options.md"], pages["reference/recipes.md"]
    assert re.findall(r"^## ccdiff (\S+)$", options, re.M) == list(VERBS)
    assert {"`--n`, `-n`", "`--keep-partial`, `--drop-partial`", "`--recipe`, `-r`"} <= rows(options).keys()
    assert rows(options)["`--tile`"][0] == "whole number, 8 to 65500", "bounds that stand in a model of options are shown"
    keys = {re.sub(r"[*`]", "", first) for first in rows(recipes)}
    assert {"denoiser.train.steps", "conditioning.gate", "detector", "anchor_sizes", *ExperimentConfig.model_fields} <= keys
    assert re.findall(r"^## Method (\S+)$", recipes, re.M) == list(METHODS)
    for path in (ROOT / "recipes").glob("*.yaml"):
        shown = rows(recipes)[f"`{path.stem}`"]
        assert len(shown) == 2
        if not path.stem.startswith("trainability-"):
            assert _keys(yaml.safe_load(path.read_text(encoding="utf-8"))) <= keys, path.name


def _keys(values: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in values.items():
        found |= {f"{prefix}{key}"} | (_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else set())
    return found


def test_words_for_values(hooks: Any) -> None:
    assert hooks.kind(int | None) == "whole number or null" and hooks.kind(tuple[float, ...]) == "list of number"
    assert hooks._range(0, None) == "0 or more" and hooks._range(0, 1, above=True, below=True) == "above 0 to below 1"
    assert hooks._text("a|b `c|d` <e> ``f``") == r"a\|b `c\|d` \<e> `f`"


def test_every_page_stands_in_the_menu(pages: dict[str, str]) -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r": (\S+\.md)$", text.partition("nav:")[2], re.M)
    there = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(there | set(pages))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_small_and_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert path.stat().st_size < 20_000
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


def test_there_are_two_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_steps", "own_data"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of their own, with this environment's ``ccdiff``; `make check-full` installs what runs them."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(book, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("image/png" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", []))
