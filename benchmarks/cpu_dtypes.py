"""Time the layers of the UNet of SD 2 on this CPU in each dtype, and say which are computed in hardware.

    python benchmarks/cpu_dtypes.py

The layers are those of the first level at 128 x 128 pixels: a convolution of 320 channels on 16 x 16 latents,
in both memory formats, and a linear layer from 320 to 1280 features on their 256 tokens. The dtypes take
turns, and the median of the repeats is printed, in brackets relative to float32.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from ldm.devices import DTYPES, is_fast  # noqa: E402

LAYERS = ("convolution", "convolution, channels-last", "linear layer")


def layer(name: str, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """Return a function that runs a layer once."""
    if name == "linear layer":
        module, x = torch.nn.Linear(320, 1280), torch.randn(1, 256, 320)
    else:
        module, x = torch.nn.Conv2d(320, 320, 3, padding=1), torch.randn(1, 320, 16, 16)
    module, x = module.to(dtype), x.to(dtype)
    if name.endswith("channels-last"):
        module, x = module.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return lambda: module(x)


def seconds(run: Callable[[], torch.Tensor]) -> float:
    """Return the time of one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    runs = {(name, kind): layer(name, dtype) for name in LAYERS for kind, dtype in DTYPES.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for key, run in runs.items():
                times[key].append(seconds(run))
    cpu = torch.backends.cpu.get_cpu_capability()
    print(f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("in hardware:", ", ".join(kind for kind, dtype in DTYPES.items() if is_fast(dtype, "cpu")))
    for name in LAYERS:
        middle = {kind: statistics.median(times[name, kind][1:]) for kind in DTYPES}
        columns = [f"{kind} {1000 * t:6.1f} ms ({t / middle['float32']:.1f})" for kind, t in middle.items()]
        print(f"{name:28}" + "   ".join(columns))


if __name__ == "__main__":
    main()
