"""Put a trained demo model where the package ships it, configs/demo/.

    python demo/ship_demo.py --diffusion runs/emoji_diffusion --clip runs/emoji_clip
    python demo/ship_demo.py --task inpaint --diffusion runs/emoji_inpaint

The diffusion run's export becomes emoji.safetensors and emoji.yaml. Of the CLIP only the image tower is
added, emoji_clip_image.safetensors: the text tower is in the model, and both together are the judge of
benchmarks/demo_quality.py. Then fit the colours of previews to the new weights: demo/fit_preview.py.

With --task the export becomes emoji_TASK.yaml and emoji_TASK.safetensors, which holds what differs from
emoji.safetensors alone, and names it (ldm.checkpoint.delta).
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a clone works without being installed

from ldm.cli import app  # noqa: E402
from ldm.cli.parser import Parser, add_messages  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

# what is trained -> the task that the file states, as `identify` calls it
TASKS = {"inpaint": "inpaint", "depth": "depth", "upscale": "upscale", "unclip": "unclip-h"}
HEADING = """\
# python scripts/txt2img.py --prompt "3d emoji of a cat, blue background"
#
# The demo model: 128 x 128 emoji. What it can draw, and how well: MODEL_CARD.md.

"""


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    runs = Path("runs")
    parser.add_argument("--task", choices=[*TASKS], help="ship the model of this task; default: the base")
    parser.add_argument("--diffusion", type=Path, help="run of the UNet; default runs/emoji_TASK")
    parser.add_argument("--clip", type=Path, default=runs / "emoji_clip", help="run of the CLIP")
    parser.add_argument("--out", type=Path, default=ROOT / "configs/demo", help="folder of the demo model")
    add_messages(parser)
    return parser


def main(args: Namespace) -> None:
    run = args.diffusion or Path("runs") / f"emoji_{args.task or 'diffusion'}"
    if args.task:
        ship_difference(run, args.out, args.task)
    else:
        ship_base(run, args.clip, args.out)
    for path in sorted(args.out.glob("*.safetensors")):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def ship_base(run: Path, clip: Path, out: Path) -> None:
    from safetensors.torch import load_file, save_file

    from ldm.files.atomic import atomic_write

    weights, config = run / "model.safetensors", run / "model.yaml"
    towers = clip / "clip.safetensors"
    check_there(weights, config, towers)
    image_tower = {name: x for name, x in load_file(towers).items() if name.startswith("visual.")}
    text = HEADING + config.read_text().partition("\n")[2]
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "emoji.safetensors", lambda file: file.write_bytes(weights.read_bytes()))
    atomic_write(out / "emoji.yaml", lambda file: file.write_text(text))
    atomic_write(
        out / "emoji_clip_image.safetensors",
        lambda file: save_file(image_tower, file, metadata={"format": "pt"}),
    )


def ship_difference(run: Path, out: Path, task: str) -> None:
    """Write emoji_TASK.safetensors, and emoji_TASK.yaml with the heading of the one that is there.

    One that says the same as the run's, in a hand's layout, stays.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from ldm.files.atomic import atomic_write
    from ldm.jobs.choosing import prediction_of
    from ldm.yaml_file import read_yaml, to_yaml

    weights, config, base = run / "model.safetensors", run / "model.yaml", out / "emoji.safetensors"
    heading = out / f"emoji_{task}.yaml"
    check_there(weights, config, base, heading)
    differing, absent = difference(load_file(weights), load_file(base))
    with safe_open(weights, "pt") as file:
        about = {**(file.metadata() or {}), "sd.task": TASKS[task], "sd.prediction": prediction_of(config)}
    about |= description(base, absent)
    comment = "".join(line for line in heading.read_text().splitlines(True) if line.startswith("#"))
    described = read_yaml(config)
    if task == "unclip":  # the weights hold the statistics
        described["model"]["params"]["noise_aug_config"]["params"].pop("clip_stats_path", None)
    text = f"{comment}\n{to_yaml(described)}"
    atomic_write(out / f"emoji_{task}.safetensors", lambda file: save_file(differing, file, metadata=about))
    if read_yaml(heading) != described:
        atomic_write(heading, lambda file: file.write_text(text))


def difference(
    tuned: "Mapping[str, Tensor]", base: "Mapping[str, Tensor]"
) -> "tuple[dict[str, Tensor], list[str]]":
    """Return what differs from `base`, and the names that only `base` has."""
    differing = {name: x for name, x in tuned.items() if name not in base or not same(x, base[name])}
    return differing, sorted(set(base) - set(tuned))


def same(one: "Tensor", other: "Tensor") -> bool:
    import torch

    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def description(base: Path, absent: list[str]) -> dict[str, str]:
    """Return the metadata of a delta from the file `base`."""
    from ldm.checkpoint.delta import ABSENT, BASE, BASE_SHA256
    from ldm.files.digest import sha256

    return {BASE: base.name, BASE_SHA256: sha256(base), ABSENT: json.dumps(absent)}


def check_there(*paths: Path) -> None:
    from ldm.errors import InputError

    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is not there; it is written when the training ends")


if __name__ == "__main__":
    app.run(make_parser(), main)
