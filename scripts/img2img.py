"""Make pictures from a picture and a prompt.

  python scripts/img2img.py --init-img sketch.png --prompt "a castle by the sea" --strength 0.7 \\
      --ckpt v2-1_512-ema-pruned.ckpt

The pictures have exactly the size of the init image, whatever it is.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app, inputs, latents, options  # noqa: E402


def make_parser() -> app.Parser:
    parser = app.Parser(description=__doc__)
    options.prompt(parser, "a painting of a virus monster playing guitar")
    options.init_image(parser)
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
    from ldm.cli.model import check_factor, open_model
    from ldm.cli.pictures import Pictures, run_record, sampling_arguments, save_all
    from ldm.cli.progress import batch_bar

    start = latents.read_start(args)
    prompts = start.prompts or inputs.read_prompts(args)
    sampler, pictures = inputs.chosen_sampler(args), Pictures(args)
    inputs.check_seeds(args, prompts)
    image, about = inputs.read_init(args, start)
    opened = open_model(args)
    start.check_model(opened)
    check_factor(args, opened)

    from ldm.tasks.img2img import img2img

    settings = sampling_arguments(args, opened, sampler)
    settings |= {"strength": args.strength, "size": start.picture_size(), "resume": start.position}
    batches = img2img(opened.model, image, prompts, **settings)
    about |= {"strength": args.strength}
    save_all(
        pictures,
        batch_bar(batches, start.batches_left(prompts, args), args),
        lambda: run_record(args, opened, "img2img", sampler, **about),
    )


if __name__ == "__main__":
    app.run(make_parser(), main)
