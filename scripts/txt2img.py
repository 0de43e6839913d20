"""Make pictures from a prompt.

  python scripts/txt2img.py --prompt "a red apple next to a cat"                 the demo model
  python scripts/txt2img.py --prompt "a lighthouse" --ckpt v2-1_512-ema-pruned.ckpt
  python scripts/txt2img.py --from-file prompts.txt --ckpt v2-1_768-ema-pruned.safetensors \\
      --config configs/stable-diffusion/v2-inference-v.yaml --H 768 --W 768 --dpm --steps 20
"""

import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app, inputs, latents, options  # noqa: E402


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
    options.control(parser, "txt2img")
    options.hires(parser)
    options.model(parser)
    options.intel(parser)
    options.output(parser, "outputs/txt2img-samples")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli.model import open_model, picture_size
    from ldm.cli.pictures import Pictures, run_record, sampling_arguments, save_all
    from ldm.cli.progress import batch_bar

    start = latents.read_start(args)
    prompts = start.prompts or inputs.read_prompts(args)
    sampler, pictures = inputs.chosen_sampler(args), Pictures(args)
    inputs.check_seeds(args, prompts)
    opened = open_model(args)
    start.check_model(opened)

    from ldm.tasks.decode import decode_latents
    from ldm.tasks.hires import hires_txt2img
    from ldm.tasks.txt2img import txt2img

    settings = sampling_arguments(args, opened, sampler)
    hires = inputs.chosen_hires(args)
    about = start.record()
    if start.finished is not None:
        batches = decode_latents(opened.model, start.finished, settings["settings"])
    else:
        height, width = picture_size(args, opened)
        settings |= {"height": height, "width": width, "resume": start.position}
        settings["latents"] = start.latents and start.latents.latents
        if hires is None:
            batches = txt2img(opened.model, prompts, **settings)
        else:
            batches = hires_txt2img(opened.model, prompts, hires, **settings)
            about["hires"] = asdict(hires) | {"first_pass": [width, height]}

    def describe() -> dict:
        if start.finished is not None:
            return latents.picture_record(start.finished, opened)
        return run_record(args, opened, "txt2img", sampler, **about)

    save_all(pictures, batch_bar(batches, start.batches_left(prompts, args), args), describe)


if __name__ == "__main__":
    app.run(make_parser(), main)
