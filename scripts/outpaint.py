"""Make a picture larger at its sides: what is added is painted, the picture itself stays byte for byte.

  python scripts/outpaint.py --init-img cat.png --left 64 --right 64 --prompt "a cat"           the demo model
  python scripts/outpaint.py --init-img room.jpg --right 512 --up 200 --ckpt 512-inpainting-ema.ckpt
  python scripts/outpaint.py --init-img room.jpg --down 256 --prompt "a carpet" --ckpt v1-5-pruned.ckpt

Any size and shape. What is larger than the model was trained at is painted window by window, each of which
sees what is there already. Models made for inpainting see the mask; any text-to-image model is held to it.

45 steps, scale 10 and eta 1 for DDIM are those of the published inpainting page; --ddim_eta 0 is
deterministic.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app, inputs, options  # noqa: E402


def make_parser() -> app.Parser:
    parser = app.Parser(description=__doc__)
    options.prompt(parser, "")
    options.grown_picture(parser)
    options.sampling(parser, "--steps", n_iter=1, n_samples=1, scale=10.0, eta=1.0)
    parser.set_defaults(steps=45)
    options.prompt_syntax(parser)
    options.guidance(parser)
    options.randomness(parser)
    options.control(parser, "outpaint", keeps_latents=False)
    options.model(parser, tasks=("inpaint", "txt2img"), demo="emoji_inpaint")
    options.output(parser, "outputs/outpaint-samples")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli.run import Run

    run = Run(args)
    image, sides, about = inputs.read_growing(args, run.start)
    model = run.open()

    from ldm.cli.model import native_size, trained_size
    from ldm.tasks.outpaint import outpaint

    how = {"strength": args.strength, "window": args.window or trained_size(run.opened) or native_size(model)}
    run.save(outpaint(model, image, run.prompts, **sides, **how, **run.arguments()), **about, **sides, **how)


if __name__ == "__main__":
    app.run(make_parser(), main)
