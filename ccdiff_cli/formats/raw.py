"""RawSet: what every reader returns, and the small helpers readers share.

A reader keeps every object it can make sense of and counts the rest under a reason, in three ranks: ``RawSet.changes`` (what altered a
label), ``RawSet.skipped`` (what is left out) and ``RawSet.notes``.  What is broken raises :class:`CCDiffError` with file and line inside
``with faults.leaving_out("objects")``, which lets it through or leaves the broken thing out, see :class:`Faults`.  Pictures are not
decoded by readers.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from ..errors import CCDiffError, UnsafeInput
from ..files import inside, is_file, open_file, read_bytes
from ..geometry import le90_to_corners
from ..pictures import SUFFIXES
from ..scene import HBB, ClassList, Corners, Scene

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass
class RawSet:
    """A raw data set in memory.

    Attributes:
        format: the reader's name.
        classes: the frozen class list.
        scenes: in a stable order; ``path`` set; ``split`` is "" where the source names none; ``width`` and ``height`` are what the
            source declares, 0 where it declares nothing.
        skipped: reason -> count of what the reader left out.
        notes: reason -> count of what it matched or took for granted.
        changes: reason -> count of what it altered in a label or a split.
        places: reason (of any rank) -> the first places it was found at, as ``{"where": "a.txt:3", "what": "..."}``.
    """

    format: str
    classes: ClassList
    scenes: list[Scene]
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def note(self, what: str, where: str, detail: str = "", count: int = 1) -> None:
        """Count in ``notes``, and keep where it was found first."""
        self.notes[what] += count
        keep_place(self.places, what, where, detail)

    def change(self, what: str, where: str, detail: str = "") -> None:
        """Count in ``changes``, and keep where it was found first."""
        self.changes[what] += 1
        keep_place(self.places, what, where, detail)


def keep_place(places: dict[str, list[dict[str, str]]], reason: str, where: str, what: str) -> None:
    """Add a place to the first :data:`PLACES` of a reason; names that are no UTF-8 are written so that any terminal and file holds them."""
    found = places.setdefault(reason, [])
    if len(found) < PLACES:
        found.append(
            {"where": where.encode("utf-8", "backslashreplace").decode(), "what": what.encode("utf-8", "backslashreplace").decode()}
        )


class MissingPicture(CCDiffError):
    """Labels whose picture is not there, see :func:`missing_picture`."""


class UnknownClass(CCDiffError):
    """A class that the class list does not know."""


class OtherUnits(CCDiffError):
    """A value that shows that the set counts in other units than its format (degrees, where it has radians): no slip of the pen."""


def missing_picture(name: str, *, where: str | Path, looked: str | None = None) -> MissingPicture:
    """The error of a picture that is not there: the same message, and counted alike, in every format."""
    among = f" from {looked}" if looked else ""
    return MissingPicture(f"the picture {name:.200} is missing{among}", where=where, fix="restore it, or remove its labels")


PLACES = 20
"""The first places of each reason are kept; all are counted."""
RARE = 0.01
"""An unknown class of a larger share of the objects is no slip of the pen, but missing from the class list."""
TELL_EVERY = 1000
"""So many files, lines and objects are read between two reports."""
FEW = 10
"""Of fewer things it takes all, of more than half of them, to be broken for the set not to be what its format says."""
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![\w.])[-+]?\d[\d.,e+-]*")


class Faults:
    """What is broken in a set's labels: an error at once (``strict``), else left out, counted by reason, its first places kept.

    Readers wrap the smallest thing that can be left out alone, the innermost block catches::

        for path in files:
            with faults.leaving_out("files"):
                for line in ...:
                    with faults.leaving_out("lines"):
                        instances.append(...)

    :class:`UnsafeInput` passes through in any mode.  Errors that concern the whole set are raised outside any block.

    Args:
        told: called now and then with how many things were tried.
    """

    def __init__(self, *, strict: bool = True, told: Callable[[int], None] | None = None) -> None:
        self.strict, self._told, self._count = strict, told, 0
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[dict[str, str]]] = {}
        self._tried: Counter[str] = Counter()
        self._broken: dict[str, list[CCDiffError]] = {}
        self._unknown: dict[str, tuple[str, CCDiffError]] = {}
        self._broken_count: Counter[str] = Counter()

    @contextmanager
    def leaving_out(self, kind: str) -> Iterator[None]:
        """Leave the ``kind`` ("objects", "lines", "files", "pictures": a plural) read in this block out if it is broken."""
        self._tried[kind] += 1
        self._count += 1
        if self._told is not None and self._count % TELL_EVERY == 0:
            self._told(self._count)
        try:
            yield
        except UnsafeInput:
            raise
        except CCDiffError as error:
            if self.strict:
                raise
            self._record(kind, error)

    def _record(self, kind: str, error: CCDiffError) -> None:
        if isinstance(error, MissingPicture):
            reason = "pictures that are missing"
        elif isinstance(error, UnknownClass):
            reason = f"{kind} of the {error.what}"
            self._unknown.setdefault(reason, (kind, error))
        else:
            reason = f"broken {kind}: {_VALUES.sub('...', error.what):.120}"
            if isinstance(error, OtherUnits):
                self._unknown.setdefault(reason, (kind, error))
            self._broken_count[kind] += 1
            first = self._broken.setdefault(kind, [])
            if len(first) < 3:
                first.append(error)
        self.counts[reason] += 1
        keep_place(self.places, reason, error.where or "", error.what)

    def check(self) -> None:
        """That what was left out is the exception.

        Raises:
            CCDiffError: most of a kind is broken, naming the first; a class that the class list lacks is no rarity.
        """
        for kind, errors in self._broken.items():
            tried, broken = self._tried[kind], self._broken_count[kind]
            if broken == tried or (tried >= FEW and 2 * broken > tried):
                others = "".join(f"; {e.where or 'another'}: {e.what}" for e in errors[1:])
                more = f" ({broken:,} of {tried:,} {kind} are broken{others})" if broken > 1 else ""
                fix = errors[0].fix or "correct them, or name the format of the folder yourself (--format)"
                raise CCDiffError(f"{errors[0].what}{more}", where=errors[0].where, fix=fix)
        for reason, (kind, error) in self._unknown.items():
            if self.counts[reason] > RARE * self._tried[kind]:
                many = f" ({self.counts[reason]:,} of {self._tried[kind]:,} {kind})" if self.counts[reason] > 1 else ""
                raise CCDiffError(f"{error.what}{many}", where=error.where, fix=error.fix)


_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_head(path: Path, size: int) -> bytes:
    """The first bytes of a file, to recognise a format by; none of what is missing, cannot be read or is no plain file.

    Text that begins with the mark of UTF-16 or UTF-32 comes as UTF-8, as :func:`read_text` will read it.
    """
    try:
        with open_file(path) as stream:
            head = stream.read(size)
    except (OSError, ValueError):
        return b""
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    return head if encoding is None else head.decode(encoding, "ignore").encode("utf-8", "ignore")


def read_text(path: Path) -> str:
    """A label file as text: UTF-8, or UTF-16 or UTF-32 that begins with its mark (as Windows' editor saves it).

    Raises:
        CCDiffError: see ``files.read_bytes``; another encoding.
    """
    data = read_bytes(path)
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8-sig")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        fix = "save the file as UTF-8, or convert it: iconv -f GBK -t UTF-8 (or LATIN1, CP1252: what it was written in)"
        raise CCDiffError(f"not UTF-8 text (byte {error.start})", where=path, fix=fix) from error


def lines_of(text: str) -> list[str]:
    """The lines of a text, as editors count them: a form feed or one of Unicode's separators ends none, as it does for ``splitlines``."""
    lines = re.split(r"\r\n|\r|\n", text)
    return lines if lines[-1] else lines[:-1]


def text_lines(path: Path) -> list[str]:
    """The lines of a label file, see :func:`read_text`."""
    return lines_of(read_text(path))


def parse_json(text: str, *, where: str | Path) -> Any:
    """The value of a JSON text.  ``NaN`` and ``Infinity`` pass, as in the standard library: numbers are checked where they are used.

    Raises:
        CCDiffError: not JSON, nested too deeply, a number of thousands of digits, half a surrogate pair (which no file can hold).
    """
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        raise CCDiffError(f"not valid JSON: {error.msg} at column {error.colno}", where=_at_line(where, error.lineno)) from error
    except UnicodeEncodeError as error:
        raise CCDiffError("not valid JSON: half a surrogate pair in a text", where=where) from error
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CCDiffError(f"not valid JSON: {what}", where=where) from error


def some(words: Iterable[str], limit: int = 40) -> str:
    """A list for a message, cut where it would fill the screen."""
    words = list(words)
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def _at_line(where: str | Path, line: int) -> str:
    return f"{where}:{line}" if isinstance(where, Path) else where


def number(text: object, *, where: str, what: str) -> float:
    """A finite number.

    Raises:
        CCDiffError: naming what was found.
    """
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise CCDiffError(f"{what}: expected a number, found {str(text)[:40]!r}", where=where) from None
    if not math.isfinite(value) or abs(value) > 1e9:
        raise CCDiffError(f"{what}: expected a finite number up to 1e9, found {str(text)[:40]!r}", where=where)
    return value


_YES, _NO = ("1", "true", "yes", "y", "t", "on"), ("", "0", "false", "no", "n", "f", "off", "none", "null", "unspecified")


def flag(value: object, *, where: str, what: str) -> bool:
    """A flag, as a number, a truth value or a word; what labelling tools write where nobody said ("Unspecified") is no.

    Raises:
        CCDiffError: anything else.
    """
    text = "" if value is None else str(value).strip().lower()
    if text.endswith(".0"):
        text = text[:-2]
    if text in _NO or text in _YES:
        return text in _YES
    raise CCDiffError(f"{what}: expected 0 or 1 (or yes, no, true, false), found {str(value)[:40]!r}", where=where)


def radians(angle: float, *, where: str, what: str) -> float:
    """An angle of a format that has radians.

    Raises:
        OtherUnits: it is beyond a full turn.
    """
    if abs(angle) > 7:  # a full turn is 6.28
        fix = "write radians: if this one is in degrees, the smaller ones are, too"
        raise OtherUnits(f"{what}: expected radians, found {angle:g}", where=where, fix=fix)
    return angle


TURNS = ("angle", "theta", "rotation", "orientation", "rbox", "rotated_box", "rotated_bbox", "obbox")
"""Keys under which tools keep the turn of a box; each may mean degrees or radians, of either sense."""


def note_turn(raw: RawSet, found: Mapping[str, object], *, where: str) -> None:
    """Note the first key that may say that a box is turned, where the format does not say how: the box is read as it stands."""
    for key, value in found.items():
        name = key.strip().lower()
        if name in TURNS and (isinstance(value, (list, tuple)) or _is_turn(value)):
            raw.note(f"boxes with a key {name!r}, which is not read: is the object turned?", where, f"{value!s:.60}")
            return


def _is_turn(value: object) -> bool:
    try:
        return not isinstance(value, bool) and float(value) not in (0.0, math.inf, -math.inf) and value == value  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def in_order(raw: RawSet, box: Sequence[float], *, where: str) -> HBB:
    """A box of two opposite corners as x1 y1 x2 y2, smaller ones first; said where they stood otherwise."""
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        raw.change("boxes whose two corners stood in another order, put in order", where)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def turned_box(hbb: HBB, degrees: float) -> Corners:
    """The corners of a box turned about its centre, clockwise as the picture shows it: how CVAT means its attribute ``rotation``."""
    x1, y1, x2, y2 = hbb
    return le90_to_corners(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, math.radians(degrees)))


# ------------------------------------------------------------------------------------------------------------- files and folders

_LITTER = {".ds_store", "thumbs.db", "desktop.ini", "ehthumbs.db"}
LITTER_FOLDER = "__MACOSX"


def is_litter(name: str) -> bool:
    """Whether a file is what macOS and Windows leave beside others (``._NAME``, ``.DS_Store``, ``Thumbs.db``): no label and no picture."""
    return name.startswith("._") or name.lower() in _LITTER


def count_litter(root: Path) -> int:
    """How many such files lie in a folder and below."""
    count = 0
    for folder, _, names in os.walk(root):
        count += len(names) if LITTER_FOLDER in Path(folder).relative_to(root).parts else sum(map(is_litter, names))
    return count


def listed(folder: Path, *suffixes: str) -> list[Path]:
    """The files of a folder that end so (in any case), sorted, without litter; [] where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not is_litter(p.name))


def files_below(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files below a folder whose names end so (lower case), sorted; without the litter of macOS and Windows."""
    return sorted(_walk(root, tuple(suffixes)))


def first_files(root: Path, suffixes: Sequence[str], count: int) -> list[Path]:
    """The first of :func:`files_below`, those nearest to the top, to recognise a format by."""
    return list(islice(_walk(root, tuple(suffixes)), count)) if root.is_dir() else []


def _walk(root: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(d for d in folders if not d.startswith(".") and d != LITTER_FOLDER)
        if real not in seen:  # a link may lead to a folder above it
            yield from (Path(folder, n) for n in sorted(names) if n.lower().endswith(suffixes) and not is_litter(n))
        seen.add(real)


def child(root: Path, name: str) -> Path:
    """``root / name`` (of one part or more), each part in the case that the disk has it in; as given where the disk has none."""
    path = root
    for part in name.split("/"):
        exact = path / part
        if not exact.exists() and path.is_dir():
            exact = min((p for p in path.iterdir() if p.name.lower() == part.lower()), default=exact)
        path = exact
    return path


def path_parts(name: str) -> list[list[str]]:
    """The parts of a path that another machine wrote, as they stand and, where it has them, with its %20 made characters again.

    Windows' backslashes and drives, ``file://`` and other addresses, and leading ``./``, ``/`` and ``../`` do not matter.
    """
    text = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]+://[^/]*", "", name.strip())
    text = re.sub(r"[?#].*$", "", text) if text != name.strip() else text
    ways = [text] if unquote(text) == text else [text, unquote(text)]
    found = []
    for way in ways:
        parts = [part for part in re.sub(r"^/?[A-Za-z]:", "", way.replace("\\", "/")).split("/") if part not in ("", ".")]
        while ".." in parts:
            parts = parts[parts.index("..") + 1 :]
        found.append(parts)
    return found


def below(folder: Path, name: str, *, least: int = 1) -> Path | None:
    """What lies below ``folder`` at the longest end of a foreign path (see :func:`path_parts`); never anything outside.

    Args:
        least: an end has at least so many parts, where the path has them: ``../test/images`` must not become ``images``.
    """
    if "\x00" in name:
        return None
    for parts in path_parts(name):
        for start in range(max(1, len(parts) - least + 1)) if parts else ():
            path = folder.joinpath(*parts[start:])
            try:
                if path.exists():
                    return path
            except (OSError, ValueError):  # a name that the file system cannot hold
                continue
    return None


def same_name(name: str) -> str:
    """How two file names are compared where they differ in case, or in how macOS composes letters."""
    return unicodedata.normalize("NFC", name).casefold()


SPLIT_WORDS = {
    "train": "train", "training": "train", "trainval": "train", "val": "val", "valid": "val", "validation": "val", "minival": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Word in the name of a file, folder or subset, in lower case -> split."""
UNION = "trainval"
"""Those of train and val together, as VOC lists them beside the two; the training pictures where nothing else names them."""


def split_words(there: Callable[[str], object]) -> dict[str, str]:
    """The words of ``SPLIT_WORDS`` that something stands under -> split; ``UNION`` comes last, and does not count beside "train"."""
    found = {word: split for word, split in SPLIT_WORDS.items() if word != UNION and there(word)}
    return found if "train" in found.values() or not there(UNION) else {**found, UNION: SPLIT_WORDS[UNION]}


def _told(name: str) -> list[str]:
    """The words of a name such as ``instances_val2017`` that tell a split, in their order."""
    return [word for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS]


def _splits_told(names: Iterable[str]) -> set[str]:
    return {SPLIT_WORDS[word] for name in names for word in _told(name)}


def split_of_name(name: str, others: Iterable[str] = (), *, where: Path | None = None) -> str:
    """The split that a name such as ``instances_val2017`` tells; "" where none.

    Args:
        others: the names of the files beside it.  A word that all of them have says nothing, where another one does: with
            ``flight_test_train`` and ``flight_test_val`` the first is of train.
        where: the file of that name; without it a name that tells two splits tells none.

    Raises:
        CCDiffError: (with ``where``) it tells two splits, and the others do not help.
    """
    common = Counter(words := _told(name))
    for other in others:
        common &= Counter(_told(other))
    splits = list(dict.fromkeys(SPLIT_WORDS[word] for word in (Counter(words) - common or words)))
    if splits == ["train", "val"]:  # as "trainval"
        return "train"
    if len(splits) == 2 and where is not None:
        fix = "rename it: let one of train, val and test alone stand in its name"
        raise CCDiffError(f"the name {name!r} tells two splits, {splits[0]} and {splits[1]}", where=where, fix=fix)
    return splits[0] if len(splits) == 1 else ""


class PictureFinder:
    """Finds the pictures that labels name by paths of their own making, below one folder and never outside.

    A name is taken as it stands below the folder of the file that names it or below one of ``bases``.  Else it means the one file of that
    name (in its case, else in any) whose folders agree with the longest end of the path, with the split, and then with the beginning of
    the path to the file that names it.

    Args:
        folder: where pictures lie, and below.
        bases: folders that names are relative to.
        by_name: what annotation tools write: where the path leads does not matter, and the picture may have another extension by now.
    """

    def __init__(self, folder: Path, bases: Sequence[Path] = (), *, by_name: bool = False) -> None:
        self.folder, self.bases, self.by_name = folder, list(dict.fromkeys(bases)), by_name
        self._all: dict[str, list[Path]] | None = None
        self._taken: dict[Path, str] = {}

    def find(self, name: str, *, where: str, near: Path | None = None, split: str = "") -> Path:
        """The picture.

        Args:
            near: the folder of the file that names it.

        Raises:
            MissingPicture: there is none.
            UnsafeInput: there is none, and the name climbs out of the folder.
            CCDiffError: several are as near.
        """
        ways = [] if "\x00" in name else [parts for parts in path_parts(name) if parts]
        climbs = ".." in re.split(r"[/\\]", name)
        if (path := self._as_it_stands(name, ways, climbs, near, split)) is not None:
            return path
        beside = near.relative_to(self.folder).parts if near is not None and near.is_relative_to(self.folder) else ()
        for parts in ways:
            found = self._candidates(parts[-1])
            ranked = {p: _common_end(p.relative_to(self.folder).parts[:-1], parts[:-1]) for p in found}
            if not found or (climbs and not self.by_name and max(ranked.values()) < 1):  # ../a.png may be any a.png
                continue
            best = [p for p in found if ranked[p] == max(ranked.values())]
            best = [p for p in best if split and split in _splits_told(p.relative_to(self.folder).parts[:-1])] or best
            shared = {p: _common_end(p.relative_to(self.folder).parts[:-1][::-1], beside[::-1]) for p in best}
            best = [p for p in best if shared[p] == max(shared.values())]
            if len(best) > 1:
                fix = f"name it by its path below {self.folder}, or keep one of them"
                raise CCDiffError(f"the picture {name:.200} lies in {len(best)} places: {best[0]}, {best[1]}", where=where, fix=fix)
            return best[0]
        if not self.by_name and ("\x00" in name or climbs):
            inside(self.folder, name, where=where)
        raise missing_picture(name, where=where, looked=str(self.folder))

    def take(self, name: str, *, labels: Path, where: str) -> Path:
        """The picture that an annotation file names, given out once.

        Raises:
            CCDiffError: see :meth:`find`; it was taken before.
        """
        path = self.find(name, where=where, near=labels.parent)
        if (other := self._taken.setdefault(path, where)) != where:
            raise CCDiffError(f"the picture {path.name} has labels in {other} too", where=where, fix="keep one of them")
        return path

    def forget(self, name: str, *, labels: Path) -> None:
        """The picture of annotations that are broken, which is counted already, is not left over as well."""
        with suppress(CCDiffError):
            self.take(name, labels=labels, where=str(labels))

    def left(self) -> int:
        """How many pictures nothing took."""
        return sum(map(len, self._pictures().values())) - len(self._taken)

    def _as_it_stands(self, name: str, ways: list[list[str]], climbs: bool, near: Path | None, split: str) -> Path | None:
        more = [child(self.folder, split), child(self.folder, f"images/{split}")] if split else []
        for base in (*((near,) if near is not None else ()), *self.bases, *more):
            for parts in ways:
                path = Path(os.path.normpath(base / name.replace("\\", "/"))) if climbs else base.joinpath(*parts)
                if path.suffix.lower() in SUFFIXES and path.is_relative_to(self.folder) and is_file(path):
                    return path
        return None

    def _pictures(self) -> dict[str, list[Path]]:
        """The pictures below the folder by their stems."""
        if self._all is None:
            self._all = {}
            for path in files_below(self.folder, SUFFIXES):
                self._all.setdefault(same_name(path.stem), []).append(path)
        return self._all

    def _candidates(self, name: str) -> list[Path]:
        """The files of that name, else of that name in another case, else (``by_name``) with another extension."""
        plain = PurePosixPath(name)
        stem = plain.stem if plain.suffix.lower() in SUFFIXES else name
        alike = [path for path in self._pictures().get(same_name(stem), []) if is_file(path)]
        tests: list[Callable[[Path], bool]] = [lambda p: p.name == name, lambda p: same_name(p.name) == same_name(name)]
        for same in (*tests, *((lambda p: p.stem == stem, lambda p: True) if self.by_name else ())):
            if found := [path for path in alike if same(path)]:
                return found
        return []


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """How many of the last parts of two paths are the same."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return next((k for k, (x, y) in enumerate(pairs) if same_name(x) != same_name(y)), min(len(a), len(b)))


def count_unnamed(raw: RawSet, named: Iterable[str], folders: Iterable[Path]) -> None:
    """Count the pictures in some folders that no label file names.

    Args:
        named: the file names or paths that label files name, those of broken entries as well: these are counted already.
    """
    known = {same_name(parts[-1]) for name in named for parts in path_parts(name) if parts}
    others = [path for folder in folders for path in listed(folder, *SUFFIXES) if same_name(path.name) not in known]
    if others:
        raw.skipped["pictures without annotations"] += len(others)


def make_names_differ(raw: RawSet, folder: Path) -> None:
    """Pictures of one name in several folders go by their paths."""
    counts = Counter(s.file_name for s in raw.scenes)
    for k, scene in enumerate(raw.scenes):
        if counts[scene.file_name] > 1:
            path = Path(str(scene.path)).relative_to(folder)
            stem = scene.file_name.rpartition(".")[0]
            source = f"{path.parent.as_posix()}/{scene.source}" if stem.startswith(scene.source) else scene.source
            raw.scenes[k] = scene.replace(file_name=path.as_posix(), source=source)


def find_pictures(folders: Sequence[Path]) -> dict[str, Path]:
    """Stem -> picture file of some folders (not their subfolders).

    Raises:
        CCDiffError: two pictures share a stem.
    """
    return by_stem((path for folder in folders for path in listed(folder, *SUFFIXES) if path.is_file()), "pictures")


def by_stem(paths: Iterable[Path], what: str) -> dict[str, Path]:
    """Stem -> file.

    Raises:
        CCDiffError: two of the files, which are ``what``, share a stem.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if (other := found.setdefault(path.stem, path)) != path:
            raise CCDiffError(
                f"two {what} are called {path.stem!r}: {other} and {path}", where=path.parent, fix="keep one of them, or rename it"
            )
    return found


def read_split_lists(folder: Path, known: Iterable[str], faults: Faults | None = None) -> dict[str, str]:
    """Picture id -> split, from ``train.txt``, ``val.txt`` and ``test.txt`` of ``folder``; {} where it has none of them.

    A line is a picture's stem, file name or path (folders and extension are ignored where the picture is not called so).

    Raises:
        CCDiffError: an id that stands in two lists; (strict) one that no picture has.
    """
    faults = faults or Faults()
    ids = set(known)
    alike = {same_name(name): name for name in sorted(ids, reverse=True)}
    split_of: dict[str, str] = {}
    for name, split in split_words(lambda word: child(folder, f"{word}.txt").is_file()).items():
        path = child(folder, f"{name}.txt")
        for line_number, line in enumerate(text_lines(path), start=1):
            text = line.strip()
            if not text or is_litter(path_parts(text)[0][-1] if path_parts(text)[0] else text):
                continue
            where = f"{path}:{line_number}"
            picture = None
            with faults.leaving_out("lines of split lists"):
                picture = _listed_id(text, ids, alike)
                if picture is None:
                    fix = "take the line out, or restore the picture and its labels"
                    raise MissingPicture(f"no picture is called {text!r:.200}", where=where, fix=fix)
            if name == UNION and picture is not None and split_of.get(picture) == "val":
                continue
            if picture is not None and split_of.setdefault(picture, split) != split:
                raise CCDiffError(
                    f"{text!r} stands in two lists, {split_of[picture]} and {split}", where=where, fix="leave it in one of them"
                )
    return split_of


_LISTED_SUFFIXES = {*SUFFIXES, ".xml", ".txt", ".json", ".gif", ".jp2", ".ppm"}
"""What a line of a list may end in beside the picture's stem: that of its labels, or of a picture in another form."""


def _listed_id(text: str, ids: set[str], alike: dict[str, str]) -> str | None:
    """The id that a line of a list means: the whole line, its last part, either without the extension."""
    ways = ["/".join(parts[start:]) for parts in path_parts(text) for start in range(len(parts))]
    if len(fields := text.split()) == 2 and fields[1] in ("-1", "0", "1"):  # as VOC lists the pictures of one class
        ways.append(fields[0])
    for way in (text, *ways):
        stem, _, suffix = way.rpartition(".")
        for name in (way, stem if f".{suffix.lower()}" in _LISTED_SUFFIXES else ""):
            if name and (name in ids or same_name(name) in alike):
                return name if name in ids else alike[same_name(name)]
    return None


def seeded_splits(sources: Sequence[str], seed: int, shares: Sequence[float] = (0.7, 0.1, 0.2)) -> dict[str, str]:
    """Source -> split, drawn by source so that pictures that share one stay together; depends on the names and the seed alone."""
    ordered = sorted(set(sources), key=lambda s: hashlib.sha256(f"{seed}:{s}".encode()).digest())
    n = len(ordered)
    test = round(n * shares[2])
    val = round(n * shares[1])
    train = n - val - test
    cut = [train, train + val]
    return {s: "train" if k < cut[0] else "val" if k < cut[1] else "test" for k, s in enumerate(ordered)}
