"""Make pictures of a given depth: of a picture's, or of a depth map's.

  python scripts/depth2img.py --init-img room.jpg --prompt "a room of ice" --ckpt 512-depth-ema.ckpt
  python scripts/depth2img.py --init-img room.jpg --depth room.exr --prompt "a room of ice" --strength 1.0
  python scripts/depth2img.py --init-img cutout.png --depth-from alpha --prompt "fluent emoji of a red apple"

Depth is estimated by the model's own network, or read from --depth FILE, alone or beside the picture. At
--strength 1.0 nothing but the depth is kept. The pictures have exactly the size of the init image.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app, depth, options  # noqa: E402


def make_parser() -> app.Parser:
    parser = app.Parser(description=__doc__)
    options.prompt(parser, "")
    options.depth_map(parser)
    options.sampling(parser, "--steps", n_iter=1, n_samples=1)
    options.prompt_syntax(parser)
    options.guidance(parser)
    options.randomness(parser)
    options.control(parser, "depth2img")
    options.model(parser, tasks=("depth",), demo="emoji_depth")
    options.output(parser, "outputs/depth2img-samples")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli.run import Run

    run = Run(args)
    given = depth.read_given(args, run.start)
    model = run.open()
    depth.open_network(args, run.opened)

    from ldm.tasks.depth2img import depth2img

    how = {"depth": given.depth, "size": given.size, "strength": given.strength}
    how["show_depth"] = depth.keeper(args, run.start, run.pictures.outdir)
    run.save(depth2img(model, given.image, run.prompts, **how, **run.arguments()), **given.about)


if __name__ == "__main__":
    app.run(make_parser(), main)
