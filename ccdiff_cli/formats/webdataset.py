"""Shards of webdataset with labels for detection, as our exporter writes them: tar files of ``KEY.png`` (or .jpg, ...) and ``KEY.json``.

``SPLIT-000000.tar``, ... in one folder; the JSON is that of our ``huggingface`` export (see there), ``classes.txt`` beside the shards names
the classes.  Followed: the README of webdataset (files of one key stand one after the other; a key ends at the first dot of its name).

* Everything else of this program opens pictures by their path, so those in the shards are unpacked: once a process, into a temporary
  folder (``TMPDIR`` says where) that goes when it ends; that of a process that was killed goes when the next one makes its own.
* NOTE: names in the archive lead nowhere: pictures are written under numbers, and links, devices and sparse members are left out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CCDiffError, os_errors
from ..files import is_file, write_bytes
from ..pictures import SUFFIXES
from ..scene import Scene
from .classes import ClassMap
from .huggingface import class_names, scene_of
from .raw import Faults, RawSet, missing_picture, parse_json, split_of_name

MAX_MEMBER_BYTES = 2_000_000_000
_HEAD_MEMBERS = 20
unpacked: dict[tuple[Any, ...], tempfile.TemporaryDirectory[str]] = {}
"""Paths, sizes and times of shards -> where their pictures lie."""
PREFIX = "ccdiff-webdataset-"
FRESH_SECONDS = 60.0
"""So young a folder may not be held yet."""
_held: list[int] = []
"""Locks on these folders, which the operating system gives back however this process ends."""


def is_webdataset(root: Path) -> bool:
    """Whether the first shard of the folder holds labels with objects among its first members."""
    for shard in _shards(root)[:1]:
        try:
            for k, (name, data) in enumerate(_members(shard, labels_alone=True)):
                if name.endswith(".json") and b'"objects"' in data:
                    return True
                if k >= _HEAD_MEMBERS:
                    break
        except CCDiffError:
            return False
    return False


def read_webdataset(root: Path, classes: ClassMap | None = None, faults: Faults | None = None) -> RawSet:
    """Read the shards of a folder and unpack their pictures.

    Raises:
        CCDiffError: a broken shard, labels that are not as above, an unknown class, a picture that is missing, a full disk.
    """
    faults = faults or Faults()
    shards = _shards(root)
    if not shards:
        raise CCDiffError("no shards (*.tar)", where=root)
    splits = {shard: split_of_name(shard.stem, [other.stem for other in shards], where=shard) for shard in shards}
    room = _room(shards)
    labels: list[tuple[str, str, dict[str, Any], Path | None]] = []
    for shard in shards:
        with faults.leaving_out("shards"):
            labels += _examples(shard, splits[shard], room, faults)
    spellings, names = class_names(root, classes, [entry for _, _, entry, _ in labels])
    raw = RawSet("webdataset", names.classes, [])
    for where, split, entry, picture in labels:
        with faults.leaving_out("pictures"):
            if picture is None:
                raise missing_picture(str(entry.get("file_name") or where.rpartition(": ")[2].removesuffix(".json")), where=where)
            scene = scene_of(entry, spellings, names, raw, faults, where=where, split=split)
            source = scene.source or f"{picture.parent.name}/{picture.stem}"  # a label without a name: each picture is its own
            raw.scenes.append(scene.replace(file_name=_file_name(scene, picture), source=source, path=str(picture)))
    alike = Counter(scene.file_name for scene in raw.scenes)
    raw.scenes = [s if alike[s.file_name] == 1 else s.replace(file_name=_numbered(Path(str(s.path)))) for s in raw.scenes]
    raw.notes["pictures unpacked from shards into a temporary folder"] += len(raw.scenes)
    return raw


def _shards(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*.tar") if is_file(path) and not path.name.startswith(".")) if root.is_dir() else []


def _room(shards: list[Path]) -> Path:
    """The temporary folder of these shards as they are: read again, they are unpacked to the same place."""
    key = tuple((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in shards)
    if key not in unpacked:
        with os_errors(Path(tempfile.gettempdir()), "make a temporary folder for the pictures"):
            _clear_abandoned(Path(tempfile.gettempdir()))
            unpacked[key] = tempfile.TemporaryDirectory(prefix=PREFIX)
            _held.extend(_lock(Path(unpacked[key].name)))
    return Path(unpacked[key].name)


def forget_unpacked() -> None:
    """Remove every temporary folder of this process."""
    while unpacked:
        unpacked.popitem()[1].cleanup()
    while _held:
        os.close(_held.pop())


def _lock(folder: Path) -> list[int]:
    """The handle by which a folder is held; none where somebody else holds it, or there are no such locks."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (ImportError, OSError):
        return []
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return []
    return [handle]


def _clear_abandoned(place: Path) -> None:
    """Remove the folders of processes that were killed: one's own that nobody holds."""
    for folder in place.glob(f"{PREFIX}*") if hasattr(os, "getuid") else ():  # else there are no locks either
        with contextlib.suppress(OSError):
            about = folder.lstat()
            if about.st_uid != os.getuid() or time.time() - about.st_mtime < FRESH_SECONDS:
                continue
            for handle in _lock(folder):
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)


def _members(shard: Path, *, labels_alone: bool = False) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a shard's plain files, in their order.

    Raises:
        CCDiffError: not a tar file, a damaged one, a file larger than ``MAX_MEMBER_BYTES``.
    """
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse() or member.offset_data + member.size > shard.stat().st_size:
                    continue
                if member.size > MAX_MEMBER_BYTES:
                    raise CCDiffError(f"{member.name:.80} has {member.size:,} bytes", where=shard, fix="split the set")
                if labels_alone and not member.name.endswith(".json"):
                    yield member.name, b""
                elif (stream := archive.extractfile(member)) is not None:
                    yield member.name, stream.read()
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, UnicodeError) as error:
        raise CCDiffError(f"not a whole tar file: {error!s:.200}", where=shard, fix="restore the shard") from error


def _examples(shard: Path, split: str, room: Path, faults: Faults) -> list[tuple[str, str, dict[str, Any], Path | None]]:
    """Where, split (the shard's), label and unpacked picture of every key of a shard."""
    labels: dict[str, bytes] = {}
    pictures: dict[str, Path] = {}
    for k, (name, data) in enumerate(_members(shard)):
        place = PurePosixPath(name)
        stem, _, suffix = place.name.partition(".")
        key, suffix = str(place.parent / stem), f".{suffix.lower()}"
        if suffix == ".json":
            labels[key] = data
        elif suffix in SUFFIXES:
            pictures[key] = room / shard.stem / f"{k:08d}{suffix}"
            if not is_file(pictures[key]):
                write_bytes(pictures[key], data, durable=False)
    found: list[tuple[str, str, dict[str, Any], Path | None]] = []
    faults.counts["pictures without annotations"] += len(pictures.keys() - labels.keys())
    for key, data in labels.items():
        where = f"{shard}: {key}.json"
        with faults.leaving_out("labels"):
            try:
                entry = parse_json(data.decode("utf-8"), where=where)
            except UnicodeDecodeError as error:
                raise CCDiffError(f"not UTF-8 text (byte {error.start})", where=where) from error
            if not isinstance(entry, dict):
                raise CCDiffError(f"expected an object with objects, found {type(entry).__name__}", where=where)
            found.append((where, split, entry, pictures.get(key)))
    return found


def _file_name(scene: Scene, picture: Path) -> str:
    """The name the label gives, without anything that leads out of a folder."""
    name = PurePosixPath(scene.file_name)
    good = scene.file_name and not name.is_absolute() and not {"..", "\\", "\x00"} & {*name.parts, *scene.file_name}
    return scene.file_name if good else _numbered(picture)


def _numbered(picture: Path) -> str:
    return f"{picture.parent.name}-{picture.name}"
