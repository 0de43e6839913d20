"""Make variations of a picture, or a mix of several, as a prompt says.

  python scripts/unclip.py --init-img apple.png --scale 3                        the demo model
  python scripts/unclip.py --init-img cat.jpg --noise-level 300 --ckpt sd21-unclip-h.ckpt
  python scripts/unclip.py --init-img cat.jpg fox.png --image-weights 2 1 --prompt "in the snow" \\
      --ckpt sd21-unclip-l.ckpt

--noise-level says how freely: 0 stays near the picture, 999 keeps nothing of it. The mix of several pictures
is noised once more, as on the published page (--mix-noise-level). That has "a professional photograph" as its
prompt; here the pictures speak alone, unless one is given. unCLIP-L needs the file ViT-L-14_stats.th beside
the weights, or weights that hold those statistics, as folders that scripts/convert.py writes do.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app, inputs, options  # noqa: E402

SIZE = 768  # of the published models


def make_parser() -> app.Parser:
    parser = app.Parser(description=__doc__)
    options.prompt(parser, "")
    options.image_mix(parser)
    options.size(parser, f"{SIZE}; demo model: its own")
    options.sampling(parser, "--steps", n_iter=1, n_samples=2, scale=10.0, demo_scale=3.0)
    parser.set_defaults(steps=20)  # as the published page
    options.prompt_syntax(parser)
    options.guidance(parser)
    options.randomness(parser)
    options.control(parser, "unclip")
    options.model(parser, tasks=("unclip-h", "unclip-l"), demo="emoji_unclip")
    options.output(parser, "outputs/unclip-samples")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli.run import Run

    run = Run(args)
    images, mix, about = inputs.read_init_images(args, run.start)
    model = run.open()

    from ldm.cli.model import picture_size
    from ldm.tasks.unclip import unclip

    height, width = picture_size(args, run.opened, SIZE)
    noise = run.start.latents and run.start.latents.latents
    how = {"height": height, "width": width, "latents": noise, **vars(mix), **run.arguments()}
    run.save(unclip(model, images, run.prompts, **how), **about, **run.start.record())


if __name__ == "__main__":
    app.run(make_parser(), main)
