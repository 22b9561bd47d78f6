"""The wheel stands alone: installed the ways people install things, it works from another folder and without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ccdiff_cli.drawn import draw_dataset

ROOT = Path(__file__).parents[1]
PACKED = ("pyproject.toml", "README.md", "LICENSE", "ccdiff_cli", "recipes")
"""What the build reads; copied, for it leaves a folder ``build/`` behind, and would pack what an older one left there."""

pytestmark = pytest.mark.slow


def run(*words: object, **how: object) -> str:
    """Standard output of a command that must succeed, without the variables that would lead it to the checkout."""
    given = how.pop("env", {})
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {"OMP_NUM_THREADS": "1"} | given  # type: ignore[operator]
    done = subprocess.run([str(w) for w in words], env=environment, capture_output=True, text=True, timeout=600, check=False, **how)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source)
    (made,) = out.glob("ccdiff-*.whl")
    return made


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("raw") / "DRAWN", pictures=8, size=128)


def test_everything_is_packed(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "ccdiff_cli").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT).as_posix() in packed
    recipes = {name.rpartition("/")[2] for name in packed if "/data/share/ccdiff/recipes/" in name}
    assert recipes == {path.name for path in (ROOT / "recipes").iterdir()}


def test_the_image_is_given_what_the_build_reads() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert copied == {*PACKED, "constraints.txt"}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    assert let_in == copied


@pytest.mark.parametrize("way", ["environment", "target", "prefix"])
def test_it_works_without_the_checkout(wheel: Path, raw: Path, tmp_path: Path, way: str) -> None:
    """In an environment that sees the libraries of this one, but not the checkout; ``--prefix`` installs as ``--user`` does.

    A package of the name ``recipes`` lies beside ours: what somebody else installs is no shipped recipe.
    """
    environment, elsewhere, program = tmp_path / "environment", tmp_path / "elsewhere", tmp_path / "environment" / "bin" / "python"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    libraries = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    own = Path(run(program, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (own / "libraries.pth").write_text("\n".join(libraries))
    pip = [sys.executable, "-m", "pip", "--python", program, "install", "--no-deps", "--no-index", "--ignore-installed"]
    if way == "environment":
        run(*pip, wheel)
        site = own
    elif way == "target":
        site = tmp_path / "target"
        run(*pip, "--target", site, wheel)
    else:
        run(*pip, "--prefix", tmp_path / "prefix", wheel)
        site = next((tmp_path / "prefix").rglob("ccdiff_cli")).parent
    (site / "recipes").mkdir()
    (site / "recipes" / "tiny.yaml").write_text("name: not ours\n")

    def ccdiff(*words: object) -> str:
        script = environment / "bin" / "ccdiff"
        start = [script] if way == "environment" else [program, "-m", "ccdiff_cli"]
        return run(*start, *words, cwd=elsewhere, env={} if way == "environment" else {"PYTHONPATH": str(site)})

    where = run(program, "-c", "import ccdiff_cli; print(ccdiff_cli.__file__)", cwd=elsewhere, env={"PYTHONPATH": str(site)})
    assert Path(where.strip()).parent == site / "ccdiff_cli"
    assert ccdiff("--version").startswith("ccdiff 0.")
    ccdiff("prepare", raw, "--out", "set", "--processes", 1)
    plan = json.loads(ccdiff("train", "--recipe", "tiny", "--data", "set", "--out", "generator", "--dry-run", "--json"))
    assert plan["recipe"] == "tiny"
    ccdiff("eval-trainability", "--real", "set", "--recipe", "trainability-vhr10-cpu", "--out", "t", "--arm", "copy-paste=1", "--dry-run")
    if way == "environment":  # the shipped weights make a picture, the templates a page
        ccdiff("synthesize", "--n", 1, "--checkpoint", "tiny", "--layouts", "set", "--out", "one", "--num-processes", 1)
        ccdiff("verify", "one")
        page = json.loads(ccdiff("inspect", "one", "--out", "page", "--json"))["page"]
        assert "<html" in (elsewhere / page).read_text(encoding="utf-8")
