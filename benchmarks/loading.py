"""Measure what loading a checkpoint costs: peak resident memory over the weights kept, and seconds.

    python benchmarks/loading.py                         # 5.2 GB of SD 2.x in every layout, one by one
    python benchmarks/loading.py --dtypes float16 --layouts ckpt folder-bin

Random float32 weights with the keys and shapes of `--config` are written in each layout, then loaded by
`ldm.load_model` in a process of its own, which has done its imports and reads its resident memory every 2 ms:

    safetensors, ckpt, legacy               one file; legacy is torch's format before 1.6, which is no zip
    folder, folder-bin, folder-sharded      a diffusers folder: .safetensors, .bin, shards of at most 1 GB

    kept        bytes of the weights and buffers that the loaded model holds
    peak        the highest resident memory during loading, less what was resident before, over kept
    own         the same of anonymous memory alone, without pages mapped from the file
    touched     the highest resident memory until every weight has been read, less what was resident
                before, over kept

Pages mapped from the file count as resident, though the kernel could drop them. Weights that keep the file's
precision are mapped and come in when they are first read, so `touched` is the honest figure for them; weights
that change precision are made while loading, and `peak` is. Seconds stand beside those of plainly reading the
files; before either they are dropped from the page cache, so that both start from the disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PAGE_STATUS = Path("/proc/self/status")
LAYOUTS = ("safetensors", "ckpt", "legacy", "folder", "folder-bin", "folder-sharded")
SHARD_BYTES = 10**9


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


def write(path: Path, layout: str, config: str) -> None:
    """Write random float32 weights for `config` to `path`, a file or a folder, in the published order."""
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
    if layout == "safetensors":
        save_file(weights, path)
    elif layout in ("ckpt", "legacy"):
        content = {"global_step": 0, "state_dict": weights}
        torch.save(content, path, _use_new_zipfile_serialization=layout == "ckpt")
    else:
        write_folder(path, layout, weights)


def write_folder(path: Path, layout: str, weights: "dict[str, Tensor]") -> None:
    """Write a diffusers folder."""
    import torch
    from safetensors.torch import save_file

    from ldm.checkpoint.layouts import UNUSED, ldm_to_parts

    parts = ldm_to_parts(weights)
    parts.pop(UNUSED)
    index = {part: ["diffusers", "Model"] for part in parts}
    path.mkdir()
    (path / "model_index.json").write_text(json.dumps(index))
    (path / "text_encoder").mkdir()
    is_openclip = any(name.startswith("cond_stage_model.model.") for name in weights)
    activation = {"hidden_act": "gelu" if is_openclip else "quick_gelu"}
    (path / "text_encoder/config.json").write_text(json.dumps(activation))
    for part, tensors in parts.items():
        stem = path / part / ("model" if part == "text_encoder" else "diffusion_pytorch_model")
        stem.parent.mkdir(exist_ok=True)
        if layout == "folder-bin":
            stem = stem.with_name("pytorch_model" if part == "text_encoder" else stem.name)
            torch.save({name: x.clone() for name, x in tensors.items()}, f"{stem}.bin")
            continue
        tensors = {name: x.contiguous() for name, x in tensors.items()}
        if layout == "folder":
            save_file(tensors, f"{stem}.safetensors")
            continue
        shards, room = [{}], SHARD_BYTES
        for name, x in tensors.items():
            if x.nbytes > room:
                shards.append({})
                room = SHARD_BYTES
            shards[-1][name] = x
            room -= x.nbytes
        weight_map = {}
        for number, shard in enumerate(shards, 1):
            file = Path(f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors")
            save_file(shard, file)
            weight_map |= dict.fromkeys(shard, file.name)
        Path(f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


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


def files_of(path: Path) -> list[Path]:
    """Return the files that hold weights."""
    return [path] if path.is_file() else [x for x in path.rglob("*") if x.is_file() and x.suffix != ".json"]


def evict(path: Path) -> None:
    """Drop the files from the page cache, so that they are read from the disk as on the first use."""
    for file in files_of(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_seconds(path: Path) -> float:
    """Return how long it takes to read all of it once."""
    start = time.perf_counter()
    buffer = bytearray(16 << 20)
    for file in files_of(path):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - start


def in_process(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    run = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return run.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/stable-diffusion/v2-inference.yaml")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS, metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"], help="precisions to load in")
    parser.add_argument("--folder", help="where to put the files (default: a temporary folder)")
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        return write(Path(args.write[0]), args.write[1], args.config)
    if args.measure:
        return print(json.dumps(measure(args.measure[0], args.config, args.measure[1])))

    columns = ("file GB", "kept GB", "peak", "own", "touched", "load s", "read s")
    print(f"{'layout':16s}{'dtype':10s}" + "".join(f"{column:>9s}" for column in columns), flush=True)
    for layout in args.layouts:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder) / "random"
            in_process("--write", str(path), layout, "--config", args.config)
            size = sum(file.stat().st_size for file in files_of(path))
            for dtype in args.dtypes:
                evict(path)
                read = read_seconds(path)
                evict(path)
                got = json.loads(in_process("--measure", str(path), dtype, "--config", args.config))
                row = (size / 1e9, got["kept"] / 1e9, got["peak"], got["own"], got["touched"])
                numbers = "".join(f"{x:9.3f}" for x in (*row, got["seconds"], read))
                print(f"{layout:16s}{dtype:10s}{numbers}", flush=True)


if __name__ == "__main__":
    main()
