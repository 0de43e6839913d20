"""Paint a part of a picture anew, as a prompt says; every other pixel stays as it is, byte for byte.

  python scripts/inpaint.py --init-img room.png --mask sofa.png --prompt "a red armchair"    the demo model
  python scripts/inpaint.py --init-img cut-out.png --prompt "a meadow" --ckpt 512-inpainting-ema.ckpt
  python scripts/inpaint.py --init-img room.png --mask sofa.png --prompt "a dog" --ckpt v1-5-pruned.ckpt

The mask is white where to paint; without --mask it is what is transparent in the picture. Models made for
inpainting see the mask; any text-to-image model is held to it by latent masking.

45 steps, scale 10, 4 pictures and eta 1 for DDIM are those of the published page; --ddim_eta 0 is
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
    options.masked_picture(parser)
    options.sampling(parser, "--steps", n_iter=1, n_samples=4, scale=10.0, eta=1.0)
    parser.set_defaults(steps=45)
    options.prompt_syntax(parser)
    options.guidance(parser)
    options.randomness(parser)
    options.control(parser, "inpaint")
    options.model(parser, tasks=("inpaint", "txt2img"), demo="emoji_inpaint")
    options.output(parser, "outputs/inpaint-samples")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli.run import Run

    run = Run(args)
    image, mask, about = inputs.read_masked(args, run.start)
    model = run.open()

    from ldm.cli.model import trained_size
    from ldm.tasks.inpaint import inpaint

    how = {
        "strength": args.strength,
        "mask_blur": args.mask_blur,
        "only_masked": args.only_masked,
        "matched": not args.no_match_border,
        "raw": args.raw,
    }
    size = trained_size(run.opened)
    batches = inpaint(model, image, mask, run.prompts, model_size=size, **how, **run.arguments())
    run.save(batches, **about, **how)


if __name__ == "__main__":
    app.run(make_parser(), main)
