"""Pictures per second end to end, where the time goes, and whether sorting pictures by their number of objects pays.

    OMP_NUM_THREADS=1 python -m benchmarks.synthesize --checkpoint GENERATOR --layouts runs/vhr10 --pictures 32 --clock cpu

End to end is what ``ccdiff synthesize`` does in one process: conditioning, denoising, decoding, encoding and writing files.  The second
pass makes the same pictures again, so every text and reference is remembered by then; a long run lies between the two.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ccdiff_cli.generator import generator_key, read_generator
from ccdiff_cli.models.pipeline import ScenePipeline
from ccdiff_cli.references import ReferenceBank
from ccdiff_cli.synthesis.options import SynthesisOptions
from ccdiff_cli.synthesis.plan import Plan
from ccdiff_cli.synthesis.planning import identity_of, make_plan, open_layouts, resolved
from ccdiff_cli.synthesis.worker import Parts, device_of, fixed_arithmetic, maker_of, save_block

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(spent: Counter[str], name: str, function: Callable[..., Any], now: Callable[[], float]) -> Callable[..., Any]:
    """The function, its time added up under a name."""

    def run(*arguments: Any, **options: Any) -> Any:
        start = now()
        result = function(*arguments, **options)
        spent[name] += now() - start
        return result

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--layouts", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, help="denoising steps; the generator's own unless given")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--ask-device", action="store_true", help="let diffusers look for the device each time, as before it was kept")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: processor time, on a machine shared with others")
    options = parser.parse_args()
    if options.ask_device:
        ScenePipeline._in_place = lambda self: contextlib.nullcontext()  # type: ignore[method-assign]
    device = device_of(0)

    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return CLOCKS[options.clock]()

    generator = {**read_generator(options.checkpoint), "key": generator_key(options.checkpoint)}
    source, bank = open_layouts(options.layouts, "train"), ReferenceBank.read(options.layouts)
    threads, source_of = torch.get_num_threads(), {"source": "sampled"}
    sampling = {"steps": options.steps, "precision": options.precision, "channels_last": options.channels_last, "compile": options.compile}
    wanted = {
        "n": options.pictures,
        "batch_size": options.batch,
        "threads": threads,
        "layouts": source_of,
        "sampling": sampling,
    }
    identity = identity_of(generator, source, bank, resolved(SynthesisOptions.model_validate(wanted), generator, {}))
    plan = make_plan(identity, source, bank)
    by_count = Plan(plan.header, tuple(sorted(plan.jobs, key=lambda job: (len(job.scene.instances), job.k))))
    spent: Counter[str] = Counter()
    with fixed_arithmetic(threads), tempfile.TemporaryDirectory() as folder:
        maker = maker_of(plan, Parts(str(options.checkpoint), str(options.layouts)), device)
        pipe = maker.pipe
        pipe.layout_batch = timed(spent, "texts, references, layout tensors", pipe.layout_batch, now)
        pipe.resampler.forward = timed(spent, "resampler", pipe.resampler.forward, now)
        pipe.unet.forward = timed(spent, "UNet", pipe.unet.forward, now)
        pipe.scheduler.step = timed(spent, "sampler", pipe.scheduler.step, now)
        pipe.decode_latents = timed(spent, "decoding", pipe.decode_latents, now)

        def run(which: Plan) -> float:
            spent.clear()
            maker.plan = which
            start = now()
            for b in range(which.blocks):
                made = maker.block(b)
                begin = now()
                save_block(Path(folder), b, which, made, maker.most)
                spent["writing files"] += now() - begin
            return now() - start

        print(f"{options.pictures} pictures in batches of {options.batch}, {device}, {options.precision}, {options.clock} clock")
        for name, which in (("first pass", plan), ("again", plan), ("again, sorted by number of objects", by_count)):
            total = run(which)
            spent["everything else (encoding PNG, module's context, ...)"] = total - sum(spent.values())
            outside = 1 - spent["UNet"] / total
            print(f"\n{name}: {options.pictures / total:.3f} pictures/s, {100 * outside:.1f} % outside the UNet")
            for part, seconds in spent.most_common():
                print(f"  {part:52} {seconds:8.2f} s {100 * seconds / total:5.1f} %")


if __name__ == "__main__":
    main()
