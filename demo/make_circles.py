"""Make a data set to try the training of a ControlNet on: circles to be filled.

    python demo/make_circles.py --out data/circles --count 2000

The target is a coloured disc on coloured ground, the source its outline, white on black, and the prompt
names both colours. The folder has the layout of fill50k: source/, target/ and prompt.json.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a clone works without being installed

from ldm.cli import app  # noqa: E402
from ldm.cli.parser import Parser, add_messages  # noqa: E402


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/circles"), help="default: %(default)s")
    parser.add_argument("--count", type=int, default=2000, help="pairs (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    add_messages(parser)
    return parser


def main(args: Namespace) -> None:
    import torch
    from PIL import Image

    from demo.discs import Discs
    from ldm.errors import InputError
    from ldm.files.atomic import atomic_write

    if args.count < 1 or not 8 <= args.size <= 4096:
        raise InputError("expected --count of 1 or more, and --size of 8 to 4096")
    if (args.out / "prompt.json").exists():
        raise InputError(f"{args.out} already has a prompt.json; give another --out")
    images, prompts, given = Discs(args.size, extra_input="hint").batch(
        torch.Generator().manual_seed(args.seed), args.count
    )
    pixels = {"target": (images + 1) * 127.5, "source": given["hint"] * 255}
    for name, batch in pixels.items():
        (args.out / name).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(batch.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(args.out / name / f"{number}.png")
    rows = [
        json.dumps({**{name: f"{name}/{number}.png" for name in ("source", "target")}, "prompt": prompt})
        for number, prompt in enumerate(prompts)
    ]
    text = "\n".join(rows) + "\n"
    atomic_write(args.out / "prompt.json", lambda file: file.write_text(text))
    print(f"{args.out / 'prompt.json'}: {args.count} pairs of {args.size}x{args.size}")


if __name__ == "__main__":
    app.run(make_parser(), main)
