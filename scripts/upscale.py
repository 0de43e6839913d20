"""Make a picture four times as large, as a prompt says.

  python scripts/upscale.py --init-img small.png                                the demo model
  python scripts/upscale.py --init-img cat.jpg --prompt "a photograph of a cat" --ckpt x4-upscaler-ema.ckpt

The result is exactly 4 times as wide and as high, whatever the size. --noise-level says how much the model
may invent. What does not fit into memory is made in tiles: --max-memory, --tile.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app, inputs, options  # noqa: E402


def make_parser() -> app.Parser:
    parser = app.Parser(description=__doc__)
    options.prompt(parser, "a high quality professional photograph")
    options.small_picture(parser)
    options.tiles(parser)
    options.sampling(parser, "--steps", n_iter=1, n_samples=1, scale=10.0, demo_scale=1.0, demo_steps=10)
    parser.set_defaults(steps=75)  # as the published page
    options.prompt_syntax(parser)
    options.guidance(parser)
    options.randomness(parser)
    options.control(parser, "upscale")
    options.model(parser, tasks=("upscale",), demo="emoji_upscale")
    options.output(parser, "outputs/upscale-samples")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli.run import Run

    inputs.check_overlap(args)
    run = Run(args)
    image, about = inputs.read_same_image(args, run.start)
    noise = run.start.latents and run.start.latents.latents
    model = run.open()

    from ldm.tasks.tiles import Tiling
    from ldm.tasks.upscale import checked_level, plan_upscale, upscale

    how = {"noise_level": checked_level(model, args.noise_level)}
    arguments = run.arguments()
    if run.start.stopped is not None:  # exactly as it began
        tiling = Tiling(**run.start.stopped.record.get("tiling", {}))
    else:
        size, settings = image.shape[:2], arguments["settings"]
        tiles = {"tile": args.tile, "overlap": args.overlap, "max_memory": args.max_memory}
        tiling = plan_upscale(model, size, args.n_samples, settings, **tiles)
    usual = run.opened.is_demo or tiling.tile is not None  # as the task does with tiles
    how["faithful"] = usual if args.faithful is None else args.faithful == "on"
    batches = upscale(model, image, run.prompts, tiling=tiling, latents=noise, **how, **arguments)
    run.save(batches, **about, **run.start.record(), **how, tiling=vars(tiling))


if __name__ == "__main__":
    app.run(make_parser(), main)
