"""Make pictures from a prompt.

  python scripts/txt2img.py --prompt "a red apple next to a cat"                 the demo model
  python scripts/txt2img.py --prompt "a lighthouse" --ckpt v2-1_512-ema-pruned.ckpt
  python scripts/txt2img.py --from-file prompts.txt --ckpt v2-1_768-ema-pruned.safetensors \\
      --config configs/stable-diffusion/v2-inference-v.yaml --H 768 --W 768 --dpm --steps 20
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app, inputs, options  # noqa: E402


def make_parser() -> app.Parser:
    parser = app.Parser(description=__doc__)
    options.prompt(parser, "a professional photograph of an astronaut riding a triceratops", repeat=True)
    options.size(parser)
    options.sampling(parser, "--steps", n_iter=3, n_samples=3)
    parser.add_argument("--plms", action="store_true", help="the same as --sampler plms")
    parser.add_argument("--dpm", action="store_true", help="the same as --sampler dpm")
    options.prompt_syntax(parser)
    options.guidance(parser)
    options.randomness(parser)
    options.model(parser)
    options.intel(parser)
    options.output(parser, "outputs/txt2img-samples")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli.model import open_model, picture_size
    from ldm.cli.pictures import Pictures, run_record, sampling_arguments, save_all
    from ldm.cli.progress import batch_bar

    prompts, sampler, pictures = inputs.read_prompts(args), inputs.chosen_sampler(args), Pictures(args)
    inputs.check_seeds(args, prompts)
    opened = open_model(args)
    height, width = picture_size(args, opened)

    from ldm.tasks.txt2img import txt2img

    settings = sampling_arguments(args, opened, sampler)
    batches = txt2img(opened.model, prompts, height=height, width=width, **settings)
    save_all(
        pictures,
        batch_bar(batches, prompts, args),
        lambda: run_record(args, opened, "txt2img", sampler=sampler),
    )


if __name__ == "__main__":
    app.run(make_parser(), main)
