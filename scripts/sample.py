"""Make pictures without a prompt: of a model without text encoder, or by the empty prompt of one that has it.

  python scripts/sample.py                                               the demo model
  python scripts/sample.py --n_samples 4 --n_iter 8 --ckpt v2-1_512-ema-pruned.ckpt
  python scripts/sample.py --config runs/unconditional/model.yaml --ckpt runs/unconditional/model.safetensors

The published script, sample_diffusion.py, makes batches of 10 in 50 steps too, with DDIM's eta at 1: --eta 1.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app, options  # noqa: E402


def make_parser() -> app.Parser:
    parser = app.Parser(description=__doc__)
    options.no_prompt(parser)
    options.size(parser, "the model's own")
    options.sampling(parser, "--steps", n_iter=1, n_samples=10, scale=1.0, demo_scale=1.0)
    options.guidance(parser)
    options.randomness(parser)
    options.control(parser, "sample")
    options.model(parser, tasks=("unconditional", "txt2img"))
    options.output(parser, "outputs/sample-samples")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli.run import Run

    run = Run(args)
    model = run.open()

    from ldm.cli.model import native_size, picture_size
    from ldm.tasks.decode import decode_latents
    from ldm.tasks.sample import sample

    if run.start.finished is not None:
        run.save(decode_latents(model, run.start.finished, run.arguments()["settings"]))
        return
    height, width = picture_size(args, run.opened, native_size(model))
    noise = run.start.latents and run.start.latents.latents
    size = {"height": height, "width": width}
    run.save(
        sample(model, len(run.prompts), **size, latents=noise, **run.arguments()), **run.start.record()
    )


if __name__ == "__main__":
    app.run(make_parser(), main)
