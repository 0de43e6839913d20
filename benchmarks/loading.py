"""Measure what loading a checkpoint costs: peak resident memory over the weights kept, and seconds.

    python benchmarks/loading.py                         # a 5.2 GB file of SD 2.x in both containers
    python benchmarks/loading.py --dtype float16

A file of random float32 weights with the keys and shapes of `--config` is written in each container, then
loaded by `ldm.load_model` in a process of its own, which has done its imports and reads its resident memory
every 2 ms:

    kept        bytes of the weights and buffers that the loaded model holds
    peak        the highest resident memory during loading, less what was resident before, over kept
    own         the same of anonymous memory alone, without pages mapped from the file
    touched     the highest resident memory until every weight has been read, less what was resident
                before, over kept

Pages mapped from the file count as resident, though the kernel could drop them. Weights that keep the file's
precision are mapped and come in when they are first read, so `touched` is the honest figure for them; weights
that change precision are made while loading, and `peak` is. Seconds stand beside those of plainly reading the
file, which was written just before and so is in the page cache where it fits.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PAGE_STATUS = Path("/proc/self/status")


def resident() -> dict[str, int]:
    """Return bytes resident now: all of them, and those that no file stands behind."""
    lines = dict(line.split(":", 1) for line in PAGE_STATUS.read_text().splitlines())
    return {name: int(lines[key].split()[0]) * 1024 for name, key in (("all", "VmRSS"), ("own", "RssAnon"))}


class Peak(threading.Thread):
    """Samples resident memory until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = resident()
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.002):
            now = resident()
            self.peak = {name: max(self.peak[name], now[name]) for name in now}


def write_file(path: Path, config: str) -> None:
    """Write random float32 weights for `config`, in the published layout, as the ending of `path` says."""
    import torch
    from safetensors.torch import save_file

    from ldm.config import instantiate, load_config

    with torch.device("meta"):
        model = instantiate(load_config(config).model)
    weights = {
        name: torch.randn(x.shape) * 0.02 if x.is_floating_point() else torch.zeros(x.shape, dtype=x.dtype)
        for name, x in model.state_dict().items()
    }
    weights |= model.schedule.published_buffers()  # loading compares these with the configuration
    if path.suffix == ".ckpt":
        torch.save({"global_step": 0, "state_dict": weights}, path)
    else:
        save_file(weights, path)


def measure(path: str, config: str, dtype: str) -> dict[str, float]:
    """Load `path` in this process and return bytes and seconds."""
    import torch

    import ldm
    from ldm.config import instantiate, load_config

    with torch.device("meta"):  # imports what loading will need, so that only the file is measured
        instantiate(load_config(config).model)
    load_model = ldm.load_model

    before = resident()
    sampler = Peak()
    sampler.start()
    start = time.perf_counter()
    model = load_model(config, path, device="cpu", dtype=dtype)
    seconds = time.perf_counter() - start
    sampler.stopped.set()
    sampler.join()
    tensors = [*model.parameters(), *model.buffers()]
    with torch.no_grad():
        if not all(bool(x.sum().isfinite()) for x in tensors):
            raise SystemExit("the loaded weights are not finite")
    kept = sum(x.numel() * x.element_size() for x in tensors)
    touched = max(resident()["all"], sampler.peak["all"])
    return {
        "seconds": seconds,
        "kept": kept,
        "peak": (sampler.peak["all"] - before["all"]) / kept,
        "own": (sampler.peak["own"] - before["own"]) / kept,
        "touched": (touched - before["all"]) / kept,
    }


def read_seconds(path: Path) -> float:
    """Return how long it takes to read the whole file once."""
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(16 << 20)
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def in_process(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    run = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return run.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/stable-diffusion/v2-inference.yaml")
    parser.add_argument("--dtype", default="float32", help="precision to load in")
    parser.add_argument("--folder", help="where to put the files (default: a temporary folder)")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        return write_file(Path(args.write), args.config)
    if args.measure:
        return print(json.dumps(measure(args.measure, args.config, args.dtype)))

    columns = ("file GB", "kept GB", "peak", "own", "touched", "load s", "read s")
    print(f"{'container':12s}" + "".join(f"{column:>9s}" for column in columns))
    for ending in ("safetensors", "ckpt"):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder) / f"random.{ending}"
            in_process("--write", str(path), "--config", args.config)
            read = read_seconds(path)
            measured = in_process("--measure", str(path), "--config", args.config, "--dtype", args.dtype)
            got = json.loads(measured)
            row = (path.stat().st_size / 1e9, got["kept"] / 1e9, got["peak"], got["own"], got["touched"])
            print(f"{ending:12s}" + "".join(f"{x:9.3f}" for x in (*row, got["seconds"], read)), flush=True)


if __name__ == "__main__":
    main()
