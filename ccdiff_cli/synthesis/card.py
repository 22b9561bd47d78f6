"""The data set card, ``README.md``: what the set is, how it was made, its terms and limits, for people and for the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..dataset import count_scenes
from ..errors import markdown, markdown_code
from ..methods import method_named
from ..scene import Scene
from .filtering import judges_of
from .plan import Plan

_JUDGED = {
    "detector": "a detector trained on the real set looked for every object",
    "clip": "CLIP compared every crop with the name of its class",
    "crops": "a classifier of the real set's crops looked at every crop",
}
_SOURCES = {
    "set": "the layouts of the set as they are",
    "augmented": "layouts of the set, flipped, turned, shifted, scaled, and single objects moved a little",
    "mixed": "layouts mixed of two pictures of the set",
    "sampled": "layouts drawn from a statistical model of the set",
    "diffusion": "layouts drawn from a diffusion model of the set's layouts",
    "llm": "layouts written by a language model for captions of the set",
}


def card(scenes: Sequence[Scene], plan: Plan, details: Mapping[str, Any]) -> str:
    """The card's Markdown: the same for the same set."""
    options, identity = plan.options, plan.header["identity"]
    counts = count_scenes(scenes)
    size = "n<1K" if len(scenes) < 1000 else "1K<n<10K" if len(scenes) < 10_000 else "10K<n<100K" if len(scenes) < 100_000 else "100K<n<1M"
    head = yaml.safe_dump(
        {
            "pretty_name": "Synthetic aerial pictures with boxes",
            "task_categories": ["object-detection"],
            "tags": ["synthetic", "aerial", "remote-sensing", "oriented-bounding-boxes", "ccdiff"],
            "size_categories": [size],
        },
        sort_keys=False,
    )
    generator, layouts = details["generator"], identity["layouts"]
    made_by = method_named(generator["method"])
    per_class = "\n".join(f"| {markdown(name)} | {count:,} |" for name, count in counts["per_class"].items())
    splits = ", ".join(
        f"{markdown(name)} {c['pictures']:,} pictures with {c['objects']:,} objects" for name, c in counts["per_split"].items()
    )
    sampler = options["scheduler"].capitalize() if options["scheduler"] else "the generator's own sampler"
    how = [
        f"* Generator: {made_by.title}, {markdown_code(generator['recipe'] or 'imported')}, key `{generator['key']}`"
        + (f", trained for {generator['steps']:,} steps" if generator.get("steps") else "")
        + (f" on the set {markdown_code(generator['trained_on'])}" if generator.get("trained_on") else "")
        + f"; {options['steps']} denoising steps by {sampler}, guidance {options['guidance_scale']:g}, {options['precision']}.",
        f"* Layouts: {_SOURCES.get(layouts['source'], layouts['source'])}, from the {layouts['split']} split of the set "
        + markdown_code(layouts["key"])
        + (f" (balance: {layouts['balance']})" if layouts["balance"] != "none" else "")
        + "; the labels are the layouts that the pictures were drawn from.",
        f"* Looks: {'no reference pictures' if identity['references'] is None else 'reference crops and backgrounds of the same set'}.",
        f"* Filter: {_filter(details)}",
        *_colours(details),
        f"* Plan `{plan.key}`, seed {options['seed']}; `plan.jsonl` holds layout, caption, references and seed of every picture.",
    ]
    limits = [
        "* Pictures are made by a model: textures, fine structure and everything between the objects are invented.",
        "* An object may be missing or misshapen where its label says it stands. "
        + ("Labels carry the scores of the judges that looked for it (`extra.scores`)." if options["filter"] else "Nothing was filtered."),
        "* Rare classes and rare appearances of the training set stay rare; its mistakes and gaps are inherited.",
        "* Train on it, do not test on it: a detector's score on these pictures says nothing of real ones.",
    ]
    if generator.get("boxes"):
        limits.insert(0, f"* **{generator['boxes']}.**")
    if options["shuffle_layouts"]:
        limits.insert(0, "* **This is a floor set**: its labels do not belong to its pictures on purpose. Never train on it.")
    sources = generator.get("sources")
    named = ""
    if isinstance(sources, (dict, list)) and sources:
        named = f" ({', '.join(markdown(s) for s in sorted(sources)[:8])}{', ...' if len(sources) > 8 else ''})"
    return (
        f"---\n{head}---\n\n# Synthetic aerial pictures\n\n"
        f"{len(scenes):,} pictures of {scenes[0].width} x {scenes[0].height} pixels with {counts['objects']:,} labelled objects of "
        f"{len(plan.classes)} classes, made by `ccdiff synthesize`.\n\n![Pictures with their boxes](contact_sheet.png)\n\n"
        f"## What is in it\n\nSplits: {splits}.\n\n| class | objects |\n|---|---|\n{per_class}\n\n"
        "`annotations.json` is COCO: `bbox` the horizontal box, `segmentation` the four corners of the oriented one, `provenance` of each "
        "picture (layout, seed, references, generator"
        + (", filter" if options["filter"] else "")
        + "). `manifest.json` holds the SHA-256 of every picture; `ccdiff verify` proves the set whole.\n\n"
        "## How it was made\n\n" + "\n".join(how) + "\n\n## Terms\n\n"
        f"The generator learned from a labelled set{named}, and its pictures take their looks from that set's crops: the terms of that set "
        "hold for this one too. Check them before you pass it on.\n\n## Limits\n\n" + "\n".join(limits) + "\n"
    )


def _colours(details: Mapping[str, Any]) -> list[str]:
    if not (found := details.get("colours")):
        return []
    redrawn, still = found["redrawn"], found["infrared"]
    return [f"* Colours: {redrawn:,} pictures came out colour-infrared and were drawn again; {still:,} are so all the same."]


def _filter(details: Mapping[str, Any]) -> str:
    found = details.get("filter")
    if not found:
        return "none."
    result = found["result"]
    pictures, objects = result["pictures"], result["objects"]
    kept, planned = (sum(o[what] for o in objects.values()) for what in ("kept", "planned"))
    worst = sorted(objects, key=lambda name: objects[name]["share"])[:3]
    most = ", ".join(f"{markdown(name)} ({100 * (1 - objects[name]['share']):.0f} %)" for name in worst)
    return (
        f"{'; '.join(_JUDGED[judge] for judge in judges_of(found))} (thresholds: what {100 * found['recall']:g} % of the real validation "
        f"objects reach); {pictures['left_out']:,} of {pictures['planned']:,} pictures and {planned - kept:,} of {planned:,} labels were "
        f"left out; most of {most}."
    )
