"""Measure seconds of a training step and the most memory that training takes, with scripts/train.py itself.

    python benchmarks/training_speed.py --images FOLDER

Every configuration trains two runs of different lengths in a temporary folder; what the longer one takes more
is the time of its further steps. The seconds are those of the processor, over all cores, so that other load
on the machine counts less; on idle cores the time that passes is this number by the number of cores.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHORT, LONG = 2, 10  # steps
PLAIN = ["train.compile=false", "train.lr_schedule=constant", "train.sample_every=0", "train.save_every=100"]
CASES = {
    "the demo model's UNet": ["finetune.yaml", "diffusion.sample_count=0", "diffusion.cache_latents=16"],
    "the demo model's autoencoder": [
        "emoji_autoencoder.yaml", "data.target=ldm.data.images.CaptionedImages",
        "val_data=null", "train.batch_size=8", "autoencoder.scale_images=8",
    ],
}  # fmt: skip


def cost(config: str, overrides: list[str], images: str, steps: int) -> tuple[float, float]:
    """Return the processor seconds of a run, and the most bytes that it had at once."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "scripts/train.py", "--config", f"configs/training/{config}"]
        command += ["--run", f"{folder}/run", "--quiet"]
        command += [f"data.params.path={images}", f"train.max_steps={steps}"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, *PLAIN, *overrides], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_maxrss * 1024  # of the largest child so far


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--images", required=True, metavar="FOLDER")
    images = os.path.abspath(parser.parse_args().images)
    for name, (config, *overrides) in CASES.items():
        short, _ = cost(config, overrides, images, SHORT)
        long, memory = cost(config, overrides, images, LONG)
        step = (long - short) / (LONG - SHORT)
        print(f"{name}: {step:.2f} processor seconds a step of 8 images; {memory / 2**30:.1f} GiB at most")


if __name__ == "__main__":
    main()
