"""Make pictures from a picture and a prompt.

  python scripts/img2img.py --init-img sketch.png --prompt "a castle by the sea" --strength 0.7 \\
      --ckpt v2-1_512-ema-pruned.ckpt
  python scripts/img2img.py --init-img photo.jpg --prompt "a watercolour" --H 512 --W 768 --fit crop

The pictures have exactly the size of the init image, whatever it is, or that of --H and --W. An old command
of the published script is repeated with --fit stretch where a side is no multiple of 64.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app, inputs, options  # noqa: E402


def make_parser() -> app.Parser:
    parser = app.Parser(description=__doc__)
    options.prompt(parser, "a painting of a virus monster playing guitar")
    options.init_image(parser)
    options.fit(parser)
    options.sampling(parser, "--ddim_steps", n_iter=1, n_samples=2)
    options.prompt_syntax(parser)
    options.guidance(parser)
    options.randomness(parser)
    options.control(parser, "img2img")
    options.model(parser)
    options.output(parser, "outputs/img2img-samples")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli.run import Run

    run = Run(args)
    image, about = inputs.read_init(args, run.start)
    fit = inputs.chosen_fit(args, image)
    model = run.open()
    if fit is not None:
        image = fit.of(image, model.size_multiple)
        about["fit"] = fit.mode

    from ldm.tasks.img2img import img2img

    how = {"strength": args.strength}
    size = run.start.picture_size()
    run.save(img2img(model, image, run.prompts, size=size, **how, **run.arguments()), **about, **how)


if __name__ == "__main__":
    app.run(make_parser(), main)
