"""Measure what keeping freed memory saves a training step on a CPU.

    python benchmarks/cpu_allocator.py

Trains a small autoencoder for a few steps in two processes, with and without `keep_freed_memory`, and
prints the wall-clock and system CPU seconds a step. System time is the pages that the kernel clears; it is
comparable even on a busy machine.
"""

import argparse
import os
import subprocess
import sys
import time


def steps(count: int, keep: bool) -> str:
    """Run `count` training steps after a warm-up and return their seconds."""
    import torch

    from ldm.backends.allocator import keep_freed_memory
    from ldm.models.autoencoder import AutoencoderKL

    if keep:
        keep_freed_memory()
    ddconfig = {
        "ch": 16,
        "ch_mult": [1, 2, 4, 8],
        "num_res_blocks": 1,
        "num_groups": 4,
        "attn_resolutions": [],
        "in_channels": 3,
        "out_ch": 3,
        "resolution": 128,
        "z_channels": 4,
    }
    model = AutoencoderKL(ddconfig, embed_dim=4)
    images = torch.rand(16, 3, 128, 128) * 2 - 1

    def step() -> None:
        reconstruction, _ = model(images)
        (reconstruction - images).abs().mean().backward()
        model.zero_grad()

    step()
    wall, system = time.perf_counter(), os.times().system
    for _ in range(count):
        step()
    wall, system = time.perf_counter() - wall, os.times().system - system
    return f"{wall / count:.2f} s a step, of which {system / count:.2f} CPU seconds in the kernel"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--one", choices=["as it comes", "kept"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(f"freed memory {args.one}: {steps(args.count, args.one == 'kept')}")
        return
    for which in ("as it comes", "kept"):
        command = [sys.executable, __file__, "--count", str(args.count), "--one", which]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
