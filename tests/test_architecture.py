"""The rooms of the package: arrows run one way, and what serves every method knows none by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ccdiff_cli"
DRAWING = Path(__file__).parent.parent / "docs" / "architecture.md"


def arrows() -> dict[tuple[str, str], str]:
    """(room, room it imports) -> where; a room is a folder or a single module of the package.  Imports for types alone do not count."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        here = parts[0]
        for node in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _targets(node, ("ccdiff_cli", *parts)):
                room = name.split(".")[1] if "." in name else ""
                if room and room != here and ((PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()):
                    found.setdefault((here, room), f"{path.relative_to(PACKAGE.parent)}:{node.lineno}")
    return found


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        yield from _imports(node)


def _targets(node: ast.Import | ast.ImportFrom, module: tuple[str, ...]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.startswith("ccdiff_cli")]
    base = ".".join(module[: -node.level]) if node.level else ""
    source = ".".join(part for part in (base, node.module) if part)
    if source == "ccdiff_cli":
        return [f"ccdiff_cli.{alias.name}" for alias in node.names]
    return [source] if source.startswith("ccdiff_cli.") else []


def layers() -> list[list[str]]:
    """The drawing in docs/architecture.md, from the lowest line to the highest."""
    block = DRAWING.read_text(encoding="utf-8").split("```rooms\n")[1].split("```")[0]
    return [re.findall(r"[a-z_]+", line.split("|")[1]) for line in reversed(block.strip().splitlines())]


def test_every_room_is_drawn_once() -> None:
    drawn = [room for layer in layers() for room in layer]
    there = {p.stem for p in PACKAGE.glob("*.py") if not p.stem.startswith("__")}
    there |= {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()}
    assert sorted(drawn) == sorted(there - {"weights"})


def test_no_arrow_runs_upwards_and_none_in_a_circle() -> None:
    height = {room: k for k, layer in enumerate(layers()) for room in layer}
    wrong = [
        f"{here} -> {there} ({where})" for (here, there), where in arrows().items() if here in height and height[there] >= height[here]
    ]
    assert not wrong, "\n".join(wrong)


SERVING = (
    "training", "synthesis", "detectors", "trainability", "layouts", "report", "evaluation", "retrieval", "demo", "generator",
    "export", "inspection", "references", "dataset",
)  # fmt: skip
NAMES = re.compile(
    r"cc-?diff\+\+|cc-diff\b|ccdiffp|migc|gligen|aerogen|layout-?diffusion|diffusionsat|txt2img|\bmhn\b|conditionedunet|resampler", re.I
)
TABLES = {"trainability/published.py", "report/evaluation.py", "export/metadata.py", "export/options.py"}
"""What the papers printed, row by row; a file format that has the name of the program that reads it."""


@pytest.mark.parametrize("room", SERVING)
def test_what_serves_every_method_names_none(room: str) -> None:
    named = []
    for path in sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]:
        if path.relative_to(PACKAGE).as_posix() in TABLES:
            continue
        for node in ast.walk(_without_docstrings(ast.parse(path.read_text(encoding="utf-8")))):
            texts = [
                getattr(node, name)
                for name in ("id", "attr", "arg", "module", "name", "value")
                if isinstance(getattr(node, name, None), str)
            ]
            named += [f"{path.name}:{getattr(node, 'lineno', '?')}: {text[:60]}" for text in texts if NAMES.search(text)]
    assert not named, "\n".join(named)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]  # type: ignore[attr-defined]
    return tree


# ---- limits ----

MOST_PARAMETERS, MOST_LINES = 8, 80


def too_much(path: Path) -> Iterator[tuple[str, str]]:
    """(function, what of it is too much), of those that say no reason: ``# wide: ...`` or ``# long: ...`` on the line of its name or above.

    Lines are those with code: docstring, comments and blank lines do not count.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len(arguments) - (arguments[:1] in (["self"], ["cls"]))
        first = node.body[0]
        said = range(first.lineno, (first.end_lineno or 0) + 1) if ast.get_docstring(node) is not None else range(0)
        code = [
            k for k in range(node.lineno, (node.end_lineno or 0) + 1) if k not in said and not lines[k - 1].strip().startswith(("#", '"""'))
        ]
        length = sum(bool(lines[k - 1].strip()) for k in code)
        reasons = "".join(lines[max(0, node.lineno - 2) : node.lineno])
        if count > MOST_PARAMETERS and "# wide: " not in reasons:
            yield node.name, f"{count} parameters"
        if length > MOST_LINES and "# long: " not in reasons:
            yield node.name, f"{length} lines"


def test_no_function_is_wider_or_longer_than_it_needs_to_be() -> None:
    found = {(path.relative_to(PACKAGE).as_posix(), name): what for path in sorted(PACKAGE.rglob("*.py")) for name, what in too_much(path)}
    assert not found, "\n".join(f"{place}: {what}" for place, what in sorted(found.items()))


def test_what_is_too_much_is_found(tmp_path: Path) -> None:
    wide, long = ", ".join("abcdefghi"), "".join(f"    x = {k}\n" for k in range(80))
    source = f'def wide({wide}):\n    pass\n\n\n# wide: so\ndef said({wide}):\n    pass\n\n\ndef long():\n    """x\n\n    y"""\n{long}'
    source += f"    # a comment\n\n\ndef short():\n{long[10:]}\n\nclass A:\n    def method(self, {wide[:-3]}):\n        pass\n"
    (tmp_path / "m.py").write_text(source)
    assert dict(too_much(tmp_path / "m.py")) == {"wide": "9 parameters", "long": "81 lines"}


def test_no_private_name_is_imported_across_rooms() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        for node in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                for source in _targets(node, ("ccdiff_cli", *parts)):
                    private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
                    if private and source.split(".")[1] != parts[0]:
                        found.append(f"{path.name}: {', '.join(private)} of {source}")
    assert not found, "\n".join(found)
