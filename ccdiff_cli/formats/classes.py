"""Class names of the public data sets, frozen here and nowhere else.

Names are written for people and text encoders (spaces, not underscores);
spellings are compared without case, spaces, hyphens and underscores.
Sources: the papers and label files of DIOR, DOTA v1.0 / v1.5 / v2.0, HRSC2016 and NWPU VHR-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import CCDiffError
from ..scene import ClassList

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
HRSC = ClassList(("ship",))

CLASS_LISTS: dict[str, ClassList] = {
    "dior": DIOR,
    "vhr10": VHR10,
    "dota10": DOTA10,
    "dota15": DOTA15,
    "dota20": DOTA20,
    "hrsc": HRSC,
}


def plain_name(name: str) -> str:
    """How a spelling is compared: "Expressway-toll-station" and "expressway toll station" are the same."""
    return "".join(ch for ch in name.lower() if ch not in " -_")


@dataclass(frozen=True)
class ClassMap:
    """From the spellings of a source to the class list of the set.

    Attributes:
        classes: the class list.
        aliases: spelling (see :func:`plain_name`) -> class name.
    """

    classes: ClassList
    aliases: dict[str, str]

    @classmethod
    def of(cls, classes: ClassList) -> ClassMap:
        """Every class under its own name, in any spelling."""
        return cls(classes, {plain_name(name): name for name in classes})

    @classmethod
    def frozen(cls, family: str) -> ClassMap:
        """The class map of a public data set, one of ``CLASS_LISTS``."""
        return cls.of(CLASS_LISTS[family])

    def name(self, spelling: str, *, where: str) -> str:
        """The class name of a spelling.

        Raises:
            CCDiffError: an unknown class, listing the known ones.
        """
        known = self.aliases.get(plain_name(spelling))
        if known is None:
            raise CCDiffError(
                f"unknown class {spelling!r}",
                where=where,
                fix=f"known classes: {', '.join(self.classes)}; give a class file with a line '{spelling} = NAME' to map it",
            )
        return known


def read_class_file(path: Path) -> ClassMap:
    """A user's class file: one class a line, in the order wanted; ``found = name`` maps a spelling of the source to a class.

    Lines that are empty or start with # are left out.

    Raises:
        CCDiffError: a missing file, an empty list, a spelling mapped twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CCDiffError(f"cannot read the class file: {error}", where=path) from error
    names: list[str] = []
    aliases: dict[str, str] = {}
    for line_number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found, _, name = (part.strip() for part in text.partition("="))
        name = name or found
        if not found:
            raise CCDiffError(f"expected NAME or FOUND = NAME, found {text!r}", where=f"{path}:{line_number}")
        if name not in names:
            names.append(name)
        for spelling in {plain_name(found), plain_name(name)}:
            if aliases.setdefault(spelling, name) != name:
                raise CCDiffError(f"{found!r} is mapped to both {aliases[spelling]!r} and {name!r}", where=f"{path}:{line_number}")
    if not names:
        raise CCDiffError("the class file names no class", where=path)
    return ClassMap(ClassList(tuple(names)), aliases)
