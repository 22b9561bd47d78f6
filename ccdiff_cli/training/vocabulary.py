"""Words for classes that the training set did not have: the classes of the known data sets and the common words of captions.

Our own text encoder knows words, not parts of words.  So that a generator can be trained on for other classes, its vocabulary is made wide
from the start, and what is still missing is added when it is met.  The row of a new word is drawn from the distribution of the rows that
are there, by a seed that depends on the word alone: the same word gets the same row in every run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from ..prepare.captions import plural
from ..prepare.scenes import DEFAULT_PLACES
from .loop import seed_of

CLASSES = """
airplane, airport, baseball field, basketball court, bridge, chimney, dam, expressway service area, expressway toll station, golf course,
golf field, ground track field, harbor, overpass, ship, stadium, storage tank, tennis court, train station, vehicle, windmill
plane, baseball diamond, small vehicle, large vehicle, soccer ball field, roundabout, swimming pool, helicopter, container crane, helipad
aircraft carrier, warcraft, merchant ship, submarine, cruiser, destroyer, frigate, yacht, container ship, hovercraft, cargo ship, barge
boeing, airbus, arj21, c919, a220, a321, a330, a350, boeing737, boeing747, boeing777, boeing787, other airplane, other ship, other vehicle
passenger ship, motorboat, fishing boat, tugboat, engineering ship, liquid cargo ship, dry cargo ship, warship, small car, bus, cargo truck,
dump truck, van, trailer, tractor, excavator, truck tractor, football field, intersection
container, ground track, pedestrian, people, person, bicycle, car, truck, tricycle, awning tricycle, motor, motorcycle
building, house, road, tree, boat, crane, playground, parking lot, oil tank, solar panel, wind turbine, cow, animal, field, pool
shed, tower
"""
"""Classes of DIOR, DOTA, HRSC2016, FAIR1M, SODA-A, VisDrone, NWPU VHR-10 and others, separated by commas and line ends."""

WORDS = """
this is are an a the of in on at by with and or no near next to between beside around along above below over under from into through image
picture photograph photo view aerial satellite overhead optical scene area region land ground colour color infrared panchromatic grey gray
natural false composite black white red green blue yellow brown dark light bright small large big tiny long short wide narrow round square
rectangular oval straight curved dense sparse empty open bare full many few several some one two three four five six seven eight nine ten
center centre middle top bottom left right upper lower corner edge side north south east west northwest northeast southwest southeast
airport apron runway terminal hangar taxiway desert sand sandy beach sea ocean lake river stream water pond wetland swamp coast shore island
bay port pier dock quay wharf marina forest wood meadow grass grassland lawn farmland farm crop crops orchard garden park mountain
hill valley snow ice rock soil mud road street highway motorway freeway lane crossing railway rail track station viaduct tunnel square plaza
city town village suburb residential commercial industrial school church hospital factory plant warehouse office roof roofs wall fence
power line pylon mine quarry construction site parking lot cars vehicles buildings houses trees stadium court courts fields sport sports
resort summer winter day night shadow cloud clouds fog traffic busy calm moored parked flying sailing moving standing anchored
"""


def known_words() -> list[str]:
    """Every word of the lists above, their plurals and the scene places, sorted."""
    classes = [name.strip() for name in re.split(r"[,\n]", CLASSES) if name.strip()]
    texts = [*classes, *(plural(name, 2) for name in classes), *WORDS.split(), *DEFAULT_PLACES]
    return sorted({word for text in texts for word in words_of(text)} | {"-", "_", ":", ";", "/", "'"})


def words_of(text: str) -> list[str]:
    """The words of a text, as the tokenizer cuts it."""
    return re.findall(r"\w+|[^\w\s]+", text.lower())


def extend_vocabulary(
    tokenizer: PreTrainedTokenizerFast, text: CLIPTextModel, words: Iterable[str]
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """A tokenizer that knows further words, and rows for them in ``text``, in place; what is known keeps its number and its row.

    Returns:
        the tokenizer, and the words that were new.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary: dict[str, int] = described["model"]["vocab"]
    new = sorted(set(words) - set(vocabulary))
    if not new:
        return tokenizer, []
    vocabulary.update({word: len(vocabulary) + k for k, word in enumerate(new)})
    known = text.get_input_embeddings().weight.detach()
    rows = known[4:].float()  # the first four are the marks, not words
    mean, deviation = rows.mean(0), rows.std(0)
    drawn = torch.stack([torch.randn(known.shape[1], generator=torch.Generator().manual_seed(seed_of("word", word))) for word in new])
    text.resize_token_embeddings(len(vocabulary), mean_resizing=False)
    with torch.no_grad():
        text.get_input_embeddings().weight[len(known) :] = (mean + deviation * drawn.to(mean)).to(known.dtype)
    wider = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        model_max_length=tokenizer.model_max_length,
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )
    return wider, new


def is_word_level(tokenizer: object) -> bool:
    """Whether it is a tokenizer of our own, whose vocabulary can be extended."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and json.loads(backend.to_str())["model"].get("type") == "WordLevel"
