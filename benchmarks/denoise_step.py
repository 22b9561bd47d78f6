"""Time and peak memory of one denoising step at Stable Diffusion 1.4 size, 512 x 512, guidance pair.

    python -m benchmarks.denoise_step --instances 1 6 20 100 300 --batch 1 4 8 --repeats 3

Compared: (plain) the same UNet without conditioning; (ours); (published) the plain, uncached, unbatched form of
``published_form.py``.  Weights are random: time does not depend on them.  The three forms take turns, so that a busy machine
disturbs all alike, and the figure is the smallest over the repeats (with ``--repeats 0``, of the one warm-up);
``ours/published`` is the median over the repeats of the ratio of neighbouring turns, which drift of the machine touches least.
``--clock cpu`` counts processor time instead, which other programs disturb less; give it OMP_NUM_THREADS=1.  Memory is the peak above
what lay there before the step (on the CPU: resident memory, Linux only).  ``layers`` is the part of a step spent in the cross-attention
of the enhanced places, summed by hooks (CPU only): what the forms differ in, free of the noise of the rest.  ``--layers-only`` runs
those layers and nothing else, on random states of the right shape: seconds instead of a quarter of a minute a turn, so that large
batches can be compared on a CPU.  ``prepare`` is what is computed once per batch of pictures, the resampler excepted.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.published_form import published_step
from ccdiff_cli.models.conditioning import ConditioningConfig, FusionProcessor, grid_sizes, install_conditioning, prepare_context
from ccdiff_cli.models.layout import LayoutBatch
from ccdiff_cli.models.resamplers import ContextTokens

WIDTH, TOKENS, QUERIES, SIDE = 768, 77, 8, 512
CLASSES = 20
UNETS = {
    "sd14": dict(sample_size=64, cross_attention_dim=WIDTH),  # diffusers' defaults are Stable Diffusion 1.x
    "small": dict(sample_size=64, cross_attention_dim=WIDTH, block_out_channels=(32, 64, 64, 64), layers_per_block=1, norm_num_groups=8),
}


def make_layout(batch: int, count: int, device: str, dtype: torch.dtype) -> LayoutBatch:
    """Rotated boxes with sides of 16 to 96 px, log-uniform, at random places."""
    g = torch.Generator().manual_seed(count)
    shape = (batch, count, 1)
    centre = torch.rand(batch, count, 2, generator=g)
    side, other = (16 * 6 ** torch.rand(shape, generator=g) / SIDE / 2 for _ in range(2))
    angle = math.pi * torch.rand(shape, generator=g)
    e1, e2 = side * torch.cat([angle.cos(), angle.sin()], -1), other * torch.cat([-angle.sin(), angle.cos()], -1)
    corners = torch.stack([centre - e1 - e2, centre + e1 - e2, centre + e1 + e2, centre - e1 + e2], dim=-2)
    layout = LayoutBatch(
        hbb=torch.cat([corners.amin(-2), corners.amax(-2)], -1),
        obb=corners.transpose(-1, -2).flatten(-2),
        valid=torch.ones(batch, count, dtype=torch.bool),
        class_index=torch.randint(0, CLASSES, (batch, count), generator=g),
        class_tokens=torch.randn(CLASSES, TOKENS, WIDTH, generator=g),
        class_pooled=torch.randn(CLASSES, WIDTH, generator=g),
        caption_tokens=torch.randn(batch, TOKENS, WIDTH, generator=g),
        caption_pooled=torch.randn(batch, WIDTH, generator=g),
        features=torch.zeros(0, 257, 1024),
        instance_reference=torch.full((batch, count), -1),
        background_reference=torch.full((batch,), -1),
        image_size=(SIDE, SIDE),
        latent_size=(SIDE // 8, SIDE // 8),
    )
    return layout.to(device, dtype)


class Peak:
    """Peak memory in MiB above the start: of the GPU, or resident memory of the process (Linux)."""

    def __init__(self, device: str):
        self.cuda = device.startswith("cuda")

    def __enter__(self) -> Peak:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # else memory that earlier steps freed hides what this one takes
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            self.start = _resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.mib = (torch.cuda.max_memory_allocated() - self.start) / 2**20
        else:
            self.mib = (_resident("VmHWM") - self.start) / 2**20 if sys.platform == "linux" else math.nan


def _resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


class LayerClock:
    """Seconds spent in the enhanced cross-attention layers since the last :meth:`take`."""

    def __init__(self, unet: UNet2DConditionModel, now: Callable[[], float]):
        self.total = self.start = 0.0
        for name, module in unet.named_modules():
            if name.endswith(".attn2") and isinstance(module.processor, FusionProcessor):
                module.register_forward_pre_hook(lambda *_: setattr(self, "start", now()))
                module.register_forward_hook(lambda *_: setattr(self, "total", self.total + now() - self.start))

    def take(self) -> float:
        total, self.total = self.total, 0.0
        return total


class LayersOnly:
    """The enhanced cross-attention layers of a UNet and nothing else, called as the UNet is."""

    def __init__(self, unet: UNet2DConditionModel, latent: int):
        self.unet = unet
        self.layers = [m for n, m in unet.named_modules() if n.endswith(".attn2") and isinstance(m.processor, FusionProcessor)]
        names = [m.processor.name for m in self.layers]
        sizes = grid_sizes(unet, names, (latent, latent))
        self.cells = [math.prod(sizes[name]) for name in names]
        self.states: dict[int, list[Tensor]] = {}
        self.set_attn_processor = unet.set_attn_processor

    @property
    def attn_processors(self) -> dict:
        return self.unet.attn_processors

    def __call__(self, x: Tensor, t: Tensor, text: Tensor, cross_attention_kwargs: dict | None = None) -> SimpleNamespace:
        rows, g = len(x), torch.Generator().manual_seed(0)
        if rows not in self.states:
            shapes = [(cells, layer.to_q.in_features) for layer, cells in zip(self.layers, self.cells, strict=True)]
            self.states[rows] = [torch.randn(1, *shape, generator=g).to(x).repeat(rows, 1, 1) for shape in shapes]
        states = zip(self.layers, self.states[rows], strict=True)
        return SimpleNamespace(
            sample=torch.stack([layer(h, text, **cross_attention_kwargs or {}).mean((1, 2)) for layer, h in states], dim=1)
        )


@torch.no_grad()
def measure(
    unet: UNet2DConditionModel,
    batch: int,
    count: int,
    repeats: int,
    device: str,
    dtype: torch.dtype,
    forms: list[str],
    variant: str,
    now: Callable[[], float],
    layers: LayerClock,
    layers_only: bool,
) -> dict[str, float]:
    """Seconds a step and MiB of each form for one number of instances and batch size."""

    def clock(run: Callable[[], object]) -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = now()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return now() - start

    g = torch.Generator().manual_seed(0)
    layout = make_layout(batch, count, device, dtype)

    def tokens_of(*shape: int) -> Tensor:
        return torch.randn(*shape, QUERIES, WIDTH, generator=g).to(device, dtype)

    plus = variant == "ccdiff++"
    tokens = ContextTokens(tokens_of(batch * count), tokens_of(batch), tokens_of(batch) if plus else None)
    x = torch.randn(batch, 4, SIDE // 8, SIDE // 8, generator=g).to(device, dtype).repeat(2, 1, 1, 1)
    t = torch.tensor(500, device=device)
    text = torch.cat([torch.randn(1, TOKENS, WIDTH, generator=g).to(device, dtype).expand(batch, -1, -1), layout.caption_tokens])
    prepared: list = []

    def prepare() -> None:
        prepared[:] = [prepare_context(unet, layout, tokens, guidance=True)]

    row: dict[str, float] = {"instances": count, "batch": batch, "prepare_s": clock(prepare)}
    called: Any = LayersOnly(unet, SIDE // 8) if layers_only else unet
    runs: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: called(x, t, text).sample,
        "ours": lambda: called(x, t, text, cross_attention_kwargs={"conditioning": prepared[0]}).sample,
        "published": lambda: published_step(called, x, t, text, layout, tokens),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    inside: dict[str, list[float]] = {name: [] for name in forms}
    results = {}
    for repeat in range(repeats + 1):
        for name in forms:
            layers.take()
            if repeat == 0:  # warm up, and see memory and results
                with Peak(device) as peak:
                    seconds = clock(lambda name=name: results.__setitem__(name, runs[name]()))
                row[f"{name}_mib"] = round(peak.mib)
            else:
                seconds = clock(runs[name])
            if repeat or not repeats:
                times[name].append(seconds)
                inside[name].append(layers.take())
    for name in forms:
        row[f"{name}_s"] = min(times[name])
        row[f"{name}_layers_s"] = math.nan if device.startswith("cuda") else min(inside[name])
        if "plain" in forms and name != "plain":
            row[f"{name}_ratio"] = min(times[name]) / min(times["plain"])
    if "ours" in results and "published" in results:
        difference = (results["ours"] - results["published"]).float().norm() / results["published"].float().norm()
        row["difference"] = float(difference)
        row["ours_over_published"] = statistics.median(a / b for a, b in zip(times["ours"], times["published"], strict=True))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, nargs="+", default=[1, 6, 20, 100, 300])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--forms", nargs="+", default=["plain", "ours", "published"], choices=["plain", "ours", "published"])
    parser.add_argument("--variant", default="ccdiff++", choices=["ccdiff++", "ccdiff"])
    parser.add_argument("--places", nargs="+", default=["mid_block", "up_blocks.1"])
    parser.add_argument("--size", default="sd14", choices=sorted(UNETS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--layers-only", action="store_true", help="run the enhanced cross-attention layers alone")
    parser.add_argument("--method", nargs="+", help="steps of these methods beside the plain UNet's instead (see method_step.py)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    now = time.process_time if arguments.clock == "cpu" else time.perf_counter
    if arguments.method:
        from benchmarks.method_step import table

        table(arguments.method, arguments.size, arguments.instances, arguments.batch[0], arguments.repeats, now)
        return

    dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNETS[arguments.size]).requires_grad_(False).eval()
    install_conditioning(unet, ConditioningConfig(variant=arguments.variant, places=tuple(arguments.places), zero_init=False))
    torch.nn.Module.to(unet, arguments.device, dtype).requires_grad_(False)  # diffusers' own warns where there is nothing to warn of
    machine = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.processor() or platform.machine()
    print(
        f"{arguments.size}, {sum(p.numel() for p in unet.parameters()) / 1e6:.0f} M parameters, {arguments.variant} at "
        f"{', '.join(arguments.places)}; {arguments.dtype}, {machine}, {torch.get_num_threads()} threads, "
        f"{arguments.clock} time, torch {torch.__version__}\n"
    )
    heads = ["N", "batch", "prepare s"] + [
        f"{f} {u}" for f in arguments.forms for u in (("s", "layers s", "MiB") if f == "plain" else ("s", "x plain", "layers s", "MiB"))
    ]
    print("| " + " | ".join([*heads, "ours/published", "difference"]) + " |\n|" + " --- |" * (len(heads) + 2), flush=True)
    layers = LayerClock(unet, now)
    rows = []
    for batch in arguments.batch:
        for count in arguments.instances:
            row = measure(
                unet, batch, count, arguments.repeats, arguments.device, dtype, arguments.forms, arguments.variant, now, layers,
                arguments.layers_only,
            )  # fmt: skip
            rows.append(row)
            cells = [str(count), str(batch), f"{row['prepare_s']:.3f}"]
            for form in arguments.forms:
                cells.append(f"{row[f'{form}_s']:.3f}")
                if form != "plain":
                    cells.append(f"{row.get(f'{form}_ratio', math.nan):.3f}")
                cells += [f"{row[f'{form}_layers_s']:.3f}", f"{row[f'{form}_mib']:.0f}"]
            cells += [f"{row.get('ours_over_published', math.nan):.3f}", f"{row.get('difference', math.nan):.1e}"]
            print("| " + " | ".join(cells) + " |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "dtype": arguments.dtype, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
