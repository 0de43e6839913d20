"""Measure how long scripts/identify.py takes on files of 5 GB, which are sparse: only their headers are real.

    python benchmarks/identify.py

A .safetensors file, a .ckpt file and a diffusers folder with the names and shapes of SD 2.1 (float32; the
files with EMA weights) are created in a temporary folder. Each is identified `--repeats` times in a separate
process, and the median is printed. The exit code is 1 if a median exceeds `--limit` seconds.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ldm.checkpoint.layouts import ldm_to_parts  # noqa: E402

MANIFEST = ROOT / "tests" / "golden" / "manifests" / "manifest_v2-inference.json.gz"
UNET = "model.diffusion_model."


def tensors() -> dict[str, torch.Tensor]:
    """Return SD 2.1 with its EMA weights, without memory."""
    with gzip.open(MANIFEST, "rt") as file, torch.device("meta"):
        held = {name: torch.empty(shape) for name, (shape, _) in json.load(file).items()}
    names = [name for name in held if name.startswith(UNET)]
    return held | {"model_ema." + name.removeprefix("model.").replace(".", ""): held[name] for name in names}


def write_safetensors(held: dict[str, torch.Tensor], path: Path) -> None:
    """Write the header and leave the rest a hole."""
    header, position = {}, 0
    for name, x in held.items():
        header[name] = {
            "dtype": "F32", "shape": list(x.shape), "data_offsets": [position, position + x.nbytes]
        }  # fmt: skip
        position += x.nbytes
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)


def write_ckpt(held: dict[str, torch.Tensor], path: Path) -> None:
    """Write what torch.save does, but for the values, which are holes."""
    with torch.serialization.skip_data():
        torch.save({"state_dict": {n: torch.empty_like(x, device="cpu") for n, x in held.items()}}, path)


def write_folder(held: dict[str, torch.Tensor], path: Path) -> None:
    """Write a pipeline of three parts."""
    parts = ldm_to_parts({n: x for n, x in held.items() if not n.startswith("model_ema.")})
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    for part in classes:
        write_safetensors(parts[part], path / part / "diffusion_pytorch_model.safetensors")
    index = {part: ["diffusers", name] for part, name in classes.items()}
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"} | index))


def seconds(path: Path) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "scripts" / "identify.py"), str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds a median may take")
    args = parser.parse_args()
    slow = False
    with tempfile.TemporaryDirectory() as folder:
        writers = {"sd21.safetensors": write_safetensors, "sd21.ckpt": write_ckpt, "sd21": write_folder}
        for name, write in writers.items():
            path = Path(folder) / name
            write(tensors(), path)
            seconds(path)
            times = [seconds(path) for _ in range(args.repeats)]
            median = statistics.median(times)
            slow |= median > args.limit
            size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*.*")))
            print(f"{name:18s} {size / 1e9:5.2f} GB  {median:.3f} s   ({min(times):.3f} to {max(times):.3f})")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
