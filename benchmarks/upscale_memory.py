"""Measure the peak memory of 4x upscaling, compare it with the estimate, and estimate the full-width model.

    python benchmarks/upscale_memory.py                                  # 128 -> 512 and 256 -> 1024, narrow
    python benchmarks/upscale_memory.py --runs 512:1.5GB                 # 512 -> 2048 within 1.5 GB: tiles
    python benchmarks/upscale_memory.py --runs 128:8GB --full            # the full width, slowly

Each run is a separate process. A model with the shape of the reference and constant weights, whose UNet and
decoder have an eighth of the width unless --full is given, samples with guidance on an image of the given
side within the given budget. It takes one step, because the peak does not depend on their number. Finally
the plan of the full width for 512 -> 2048 within 8 GB is printed, without a run, for float32 and, if the CPU
has it, bfloat16. The networks run once on something small for it, which takes many minutes with `--estimate
bfloat16` on a CPU that emulates it.

    needs      the estimate before the run          peak       the maximum of the process (VmHWM)
"""

import argparse
import copy
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ldm.backends.memory import peak_resident_bytes, resident_bytes
from ldm.config import find_config, instantiate, load_config
from ldm.devices import DTYPES, is_fast
from ldm.jobs.inputs import load_inputs
from ldm.jobs.opening import facts_of
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.networks import networks_of
from ldm.requests import Upscale
from ldm.requests.readers import size_in_bytes
from ldm.requests.resolving import resolved
from ldm.tasks import memory_plan
from ldm.tasks.generate import generate
from ldm.tasks.tiles import Tiling

CONFIG = "configs/stable-diffusion/x4-upscaling.yaml"
UNET_WIDTH, DECODER_WIDTH = 32, 16  # an eighth of the reference
TEXT_PARAMETERS, TEXT_TOKENS, TEXT_WIDTH = 354_032_641, 77, 1024  # OpenCLIP ViT-H's text tower


class NoText(nn.Module):
    """In place of the text encoder: contexts of zeros."""

    def forward(self, prompts: list[str]) -> torch.Tensor:
        return torch.zeros(len(prompts), TEXT_TOKENS, TEXT_WIDTH)


def build(full: bool, dtype: torch.dtype) -> LatentDiffusion:
    """Return an upscaler of the reference shape without a text encoder."""
    node = copy.deepcopy(load_config(find_config(CONFIG)).model)
    params = node["params"]
    params["cond_stage_config"] = None
    if not full:
        params["unet_config"]["params"]["model_channels"] = UNET_WIDTH
        params["first_stage_config"]["params"]["ddconfig"] |= {"ch": DECODER_WIDTH, "num_groups": 8}
    with torch.device("meta"):
        model = instantiate(node)
    model = model.to_empty(device="cpu").to(dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(0.01)
    model.materialise_buffers("cpu")
    model.low_scale_model.materialise_buffers("cpu")
    model.cond_stage_model = NoText()
    return model


def child(side: int, budget: int, full: bool, dtype: torch.dtype) -> None:
    """Upscale once and print: plan, needs, peak, seconds."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build(full, dtype)
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    asked = Upscale(init_img=image, prompts=["x"], steps=1, sampler="ddim", seed=0, max_memory=budget)
    request = resolved(load_inputs(asked), facts_of(model))
    plans: list[tuple[Tiling, float]] = []
    find = memory_plan.fitting

    def fitting(*args):
        plans.append(find(*args))
        return plans[-1]

    memory_plan.fitting = fitting
    started = time.perf_counter()
    (batch,) = generate(model, request, dtype=dtype)
    batch.to_uint8()
    seconds, peak = time.perf_counter() - started, peak_resident_bytes()
    tiling, need = plans[0]
    print(f"{memory_plan.described(tiling)}\t{need / 1e9:.2f}\t{peak / 1e9:.2f}\t{seconds:.0f}")


def full_width_plan(dtype: torch.dtype, side: int, budget: int) -> str:
    """Return what upscaling one image of side x side would be at the full width."""
    model = build(True, dtype)
    costs = memory_plan.measure(networks_of(model, dtype))
    text = TEXT_PARAMETERS * dtype.itemsize
    weights = sum(x.numel() * x.element_size() for x in model.parameters())
    costs = replace(costs, used=costs.used + text)
    found = memory_plan.fitting(costs, (side, side), 1, 2, 8, budget)
    if found is None:
        return f"does not fit into {budget / 1e9:.1f} GB"
    tiling, need = found
    return (
        f"{memory_plan.described(tiling)}: needs {need / 1e9:.2f} GB: {(weights + text) / 1e9:.2f} weights, "
        f"{(costs.used - weights - text) / 1e9:.2f} process, {(need - costs.used) / 1e9:.2f} activations"
    )


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--runs", nargs="*", default=["128:8GB", "256:8GB"], metavar="SIDE:BUDGET")
    parser.add_argument("--full", action="store_true", help="use the full width")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    own = [name for name in ("float32", "bfloat16") if is_fast(DTYPES[name], "cpu")]
    parser.add_argument("--estimate", nargs="*", default=own, choices=DTYPES)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    runs = [(int(side), budget) for side, budget in (run.split(":") for run in args.runs)]
    if args.child:
        child(runs[0][0], size_in_bytes(runs[0][1]), args.full, DTYPES[args.dtype])
        return
    print(f"base: this process with all imported {resident_bytes() / 1e9:.2f} GB")
    for side, budget in runs:
        command = [sys.executable, __file__, "--child", "--runs", f"{side}:{budget}", "--dtype", args.dtype]
        done = subprocess.run([*command, *["--full"] * args.full], capture_output=True, text=True)
        if done.returncode:
            print(f"{side} -> {4 * side} within {budget}: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        what, needs, peak, seconds = done.stdout.strip().splitlines()[-1].split("\t")
        off = float(needs) / float(peak) - 1
        print(
            f"{side} -> {4 * side} within {budget}: needs {needs} GB, peak {peak} GB ({off:+.0%}), "
            f"{seconds} s, {what}",
            flush=True,
        )
    for name in args.estimate:
        planned = full_width_plan(DTYPES[name], 512, 8 * 10**9)
        print(f"full width, {name}, 512 -> 2048 within 8 GB: {planned}")


if __name__ == "__main__":
    main()
