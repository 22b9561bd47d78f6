"""Class names of the public data sets, frozen here and nowhere else.

Names are written for people and text encoders (spaces, not underscores);
spellings are compared without case, spaces, hyphens and underscores.
Sources: the papers and label files of DIOR, DOTA v1.0 / v1.5 / v2.0, FAIR1M, HRSC2016, NWPU VHR-10, SODA-A and VisDrone (DET).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import CCDiffError
from ..files import is_file
from ..scene import ClassList, cleaned
from ..settings import compose_yaml
from .raw import UnknownClass, lines_of, read_text, some

DIOR = ClassList(
    (
        "airplane", "airport", "baseball field", "basketball court", "bridge", "chimney", "dam", "expressway service area",
        "expressway toll station", "golf field", "ground track field", "harbor", "overpass", "ship", "stadium", "storage tank",
        "tennis court", "train station", "vehicle", "windmill",
    )
)  # fmt: skip
VHR10 = ClassList(
    (
        "airplane", "ship", "storage tank", "baseball diamond", "tennis court", "basketball court", "ground track field", "harbor",
        "bridge", "vehicle",
    )
)  # fmt: skip
_DOTA = (
    "plane", "baseball-diamond", "bridge", "ground-track-field", "small-vehicle", "large-vehicle", "ship", "tennis-court",
    "basketball-court", "storage-tank", "soccer-ball-field", "roundabout", "harbor", "swimming-pool", "helicopter",
)  # fmt: skip
DOTA10 = ClassList(tuple(name.replace("-", " ") for name in _DOTA))
DOTA15 = ClassList((*DOTA10, "container crane"))
DOTA20 = ClassList((*DOTA15, "airport", "helipad"))
HRSC_TREE: dict[str, tuple[str, str | None]] = {
    f"1000000{number}": (name, f"1000000{parent}" if parent else None)
    for number, name, parent in (
        ("01", "ship", ""), ("02", "aircraft carrier", "01"), ("03", "warcraft", "01"), ("04", "merchant ship", "01"),
        ("05", "Nimitz", "02"), ("06", "Enterprise", "02"), ("07", "Arleigh Burke", "03"), ("08", "Whidbey Island", "03"),
        ("09", "Perry", "03"), ("10", "San Antonio", "03"), ("11", "Ticonderoga", "03"), ("12", "Kitty Hawk", "02"),
        ("13", "Kuznetsov", "02"), ("14", "Abukuma", "03"), ("15", "Austen", "03"), ("16", "Tarawa", "02"), ("17", "Blue Ridge", "03"),
        ("18", "container", "04"), ("19", "commander A", "03"), ("20", "car carrier A", "04"), ("22", "hovercraft", "04"),
        ("24", "yacht", "04"), ("25", "container A", "04"), ("26", "cruise", "04"), ("27", "submarine", "01"), ("28", "lute", "03"),
        ("29", "medical", "03"), ("30", "car carrier B", "04"), ("31", "Ford class", "02"), ("32", "Midway class", "02"),
        ("33", "Invincible class", "02"),
    )
}  # fmt: skip
"""HRSC2016: ``Class_ID`` -> name, ``Class_ID`` of the class above. The source names 19, 20, 25 and 30 by a sketch of the ship's outline
(``OXo|--)``, ``Car carrier([]==[])``, ``CntShip(_|.--.--|_]=``, ``Car carrier(======|``)."""
HRSC = ClassList(("ship",))
HRSC2 = ClassList(("ship", "aircraft carrier", "warcraft", "merchant ship", "submarine"))
HRSC3 = ClassList(tuple(name for name, _ in HRSC_TREE.values()))
FAIR1M_GROUPS: dict[str, tuple[str, ...]] = {
    "airplane": (
        "Boeing 737", "Boeing 747", "Boeing 777", "Boeing 787", "C919", "A220", "A321", "A330", "A350", "ARJ21", "other airplane",
    ),
    "ship": (
        "passenger ship", "motorboat", "fishing boat", "tugboat", "engineering ship", "liquid cargo ship", "dry cargo ship", "warship",
        "other ship",
    ),
    "vehicle": (
        "small car", "bus", "cargo truck", "dump truck", "van", "trailer", "tractor", "excavator", "truck tractor", "other vehicle",
    ),
    "court": ("basketball court", "tennis court", "football field", "baseball field"),
    "road": ("intersection", "roundabout", "bridge"),
}  # fmt: skip
"""FAIR1M: the five groups and what is in them."""
FAIR1M = ClassList(tuple(name for members in FAIR1M_GROUPS.values() for name in members))
FAIR1M5 = ClassList(tuple(FAIR1M_GROUPS))
SODAA = ClassList(
    (
        "airplane", "helicopter", "small vehicle", "large vehicle", "ship", "container", "storage tank", "swimming pool", "windmill",
    )
)  # fmt: skip
VISDRONE = ClassList(("pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning tricycle", "bus", "motor"))

MAX_NAME_BYTES = 200
"""Crops of a class lie in a folder of its name."""
CLASS_LISTS: dict[str, ClassList] = {
    "dior": DIOR,
    "vhr10": VHR10,
    "dota10": DOTA10,
    "dota15": DOTA15,
    "dota20": DOTA20,
    "hrsc": HRSC,
    "hrsc2": HRSC2,
    "hrsc3": HRSC3,
    "fair1m": FAIR1M,
    "fair1m5": FAIR1M5,
    "sodaa": SODAA,
    "visdrone": VISDRONE,
}
_AIRLINERS = {f"{maker} {name}": name for maker, names in {"Airbus": ("A220", "A321", "A330", "A350"), "COMAC": ("C919", "ARJ21")}.items()
              for name in names}  # fmt: skip
SPELLINGS: dict[str, dict[str, str]] = {
    "fair1m": _AIRLINERS,
    "fair1m5": {name: group for group, members in FAIR1M_GROUPS.items() for name in (*members, *_AIRLINERS)
                if name in members or _AIRLINERS[name] in members},
}  # fmt: skip
"""Key of ``CLASS_LISTS`` -> other names of its classes (``fair1m5`` knows those of ``fair1m``) -> the class."""


def plain_name(name: str) -> str:
    """How a spelling is compared: "Expressway-toll-station" and "expressway toll station" are the same."""
    return "".join(ch for ch in name.lower() if ch not in " -_")


def clean_name(name: object, *, where: str) -> str:
    """A class name found in a data set, with single spaces.

    Raises:
        CCDiffError: empty, not a text, or with characters that cannot be printed.
    """
    text = cleaned(name) if isinstance(name, str) else ""
    if not text:
        raise CCDiffError(f"expected a class name, found {name!r:.60}", where=where)
    if len(text.encode("utf-8")) > MAX_NAME_BYTES:
        raise CCDiffError(f"a class name of {len(text)} characters: {text[:40]!r}...", where=where, fix="give it a shorter name")
    return text


@dataclass(frozen=True)
class ClassMap:
    """From the spellings of a source to the class list of the set.

    Attributes:
        classes: the class list.
        aliases: spelling (see :func:`plain_name`) -> class name.
        adds: whether it is to be laid over the source's own classes (see :func:`over`) rather than to replace them.
    """

    classes: ClassList
    aliases: dict[str, str]
    adds: bool = False

    @classmethod
    def of(cls, classes: ClassList) -> ClassMap:
        """Every class under its own name, in any spelling.

        Raises:
            CCDiffError: two names that differ in case, spaces, hyphens and underscores alone.
        """
        aliases: dict[str, str] = {}
        for name in classes:
            if aliases.setdefault(plain_name(name), name) != name:
                raise CCDiffError(
                    f"the classes {aliases[plain_name(name)]!r} and {name!r} cannot be told apart",
                    fix="give one class list that maps both to one name, or rename one in the source",
                )
        return cls(classes, aliases)

    @classmethod
    def frozen(cls, family: str) -> ClassMap:
        """The class map of a public data set, one of ``CLASS_LISTS``."""
        made = cls.of(CLASS_LISTS[family])
        return cls(made.classes, made.aliases | {plain_name(found): name for found, name in SPELLINGS.get(family, {}).items()})

    def knows(self, spelling: str) -> bool:
        """Whether :meth:`name` has an answer."""
        return plain_name(spelling) in self.aliases

    def name(self, spelling: str, *, where: str) -> str:
        """The class name of a spelling.

        Raises:
            UnknownClass: listing the known ones.
        """
        known = self.aliases.get(plain_name(spelling))
        if known is None:
            raise UnknownClass(
                f"unknown class {spelling!r:.80}",
                where=where,
                fix=f"known classes: {some(self.classes)}; give a class file (--classes) that lists all classes, one a line, or has a line "
                f"'{spelling} = NAME' to map it",
            )
        return known


def over(classes: ClassMap | None, base: Callable[[], ClassMap]) -> ClassMap:
    """What a reader goes by: the source's own classes, the user's in their place, or the user's pairs laid over them.

    A pair ``found = name`` renames the class that ``found`` is a spelling of (or merges it, where ``name`` is another class), or lets a
    spelling that the source's list does not know stand for ``name``.
    """
    if classes is None:
        return base()
    if not classes.adds:
        return classes
    below = base()
    pairs = {spelling: name for spelling, name in classes.aliases.items() if spelling != plain_name(name)}
    moved = {below.aliases[spelling]: name for spelling, name in pairs.items() if spelling in below.aliases}
    kept = {plain_name(name): name for name in below.classes if name not in moved}
    own = {name: kept.get(plain_name(name), name) for name in pairs.values()}  # in the spelling of the class that it joins
    names = [own[moved[name]] if name in moved else name for name in below.classes] + list(own.values())
    aliases = {spelling: own[moved[name]] if name in moved else name for spelling, name in below.aliases.items()}
    aliases |= {spelling: own[name] for spelling, name in pairs.items()}
    for name in own.values():
        aliases.setdefault(plain_name(name), name)
    return ClassMap(ClassList(tuple(dict.fromkeys(names))), aliases)


def read_class_file(source: str | Path) -> ClassMap:
    """The classes a user gives.

    * a text file with one class a line, in the order wanted, or ``found = name``, which maps a spelling of the source to a class; lines
      that are empty or start with # are left out;
    * a YAML or JSON file: a list of such lines, or a mapping from found to name;
    * pairs such as ``car=vehicle,boat=ship``, or a key of ``CLASS_LISTS`` ("dota15", "hrsc3"), whatever the current folder holds: a
      file of such a name is named by its path (``./dota15``).

    What holds nothing but pairs is laid over the classes of the source (see :func:`over`); else it is the whole list.

    Raises:
        CCDiffError: a missing or broken file, an empty list, a spelling mapped twice.
    """
    path, bare = Path(source), os.sep not in str(source)
    if bare and str(source) in CLASS_LISTS:
        return ClassMap.frozen(str(source))
    if is_file(path) and not (bare and "=" in str(source) and not path.suffix):
        lines = _lines_of_file(path)
    elif "=" in str(source):
        lines = [(f"class pairs {source!s:.60}", text) for text in str(source).split(",")]
    else:
        lists = ", ".join(CLASS_LISTS)
        raise CCDiffError(
            "the class file does not exist", where=path, fix=f"give a file, pairs such as car=vehicle,boat=ship, or one of {lists}"
        )
    names: list[str] = []
    aliases: dict[str, str] = {}
    adds = True
    for where, line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found, equals, name = (part.strip() for part in text.partition("="))
        if not found or (equals and not name):
            raise CCDiffError(f"expected NAME or FOUND = NAME, found {text!r:.60}", where=where)
        adds &= bool(equals)
        name = clean_name(name or found, where=where)
        name = aliases.get(plain_name(name), name)
        if name not in names:
            names.append(name)
        for spelling in (plain_name(found), plain_name(name)):
            if aliases.setdefault(spelling, name) != name:
                raise CCDiffError(f"{found!r} is mapped to both {aliases[spelling]!r} and {name!r}", where=where)
    if not names:
        raise CCDiffError("the class file names no class", where=path)
    return ClassMap(ClassList(tuple(names)), aliases, adds)


def _lines_of_file(path: Path) -> list[tuple[str, str]]:
    """Where and what of every line; of YAML and JSON, the same lines made from their nodes."""
    text = read_text(path)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        return [(f"{path}:{k}", line) for k, line in enumerate(lines_of(text), start=1)]
    # nodes rather than values: they know their line, keep a key that stands twice, and read 1 and no as texts
    node = compose_yaml(text, where=path)
    if isinstance(node, yaml.SequenceNode):
        pairs = [(entry, None) for entry in node.value]
    elif isinstance(node, yaml.MappingNode):
        pairs = node.value
    else:
        raise CCDiffError("expected a list of classes, or a mapping from found to name", where=path)
    lines = []
    for key, value in pairs:
        where = f"{path}:{key.start_mark.line + 1}"
        for entry in (key, value) if value is not None else (key,):
            if not isinstance(entry, yaml.ScalarNode):
                raise CCDiffError("expected a class name, found a list or a mapping", where=where)
        lines.append((where, key.value if value is None else f"{key.value} = {value.value}"))
    return lines
