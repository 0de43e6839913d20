"""Measure how far a picture of a batch is from the same picture made alone, with --rng per-image.

    python benchmarks/batch_variance.py                        the demonstration model, all samplers
    python benchmarks/batch_variance.py --operations           where the batch size shows: one layer at a time

Every sampler makes `--pictures` pictures alone and in one batch; latents are compared in parts of the
largest, pictures in steps of 1 of 255. With --exact all of it is 0.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ldm import generate, load_model  # noqa: E402
from ldm.imaging.colour import to_uint8  # noqa: E402
from ldm.requests import Txt2Img  # noqa: E402
from ldm.samplers import SAMPLERS  # noqa: E402

PROMPTS = ("3d emoji of a cat", "flat emoji of a red apple", "3d emoji of a house, blue background", "a star")
DTYPES = ("float32", "float16", "bfloat16")


def make_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--config", default=ROOT / "configs" / "demo" / "emoji.yaml")
    parser.add_argument("--ckpt", default=ROOT / "configs" / "demo" / "emoji.safetensors")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--operations", action="store_true")
    return parser


def pictures(
    model, prompts: list[str], seed: int, args: argparse.Namespace, sampler: str
) -> tuple[Tensor, Tensor]:
    """Return the latents and the pixels of one batch."""
    request = Txt2Img(
        prompts=prompts, seed=seed, height=args.size, width=args.size, n_samples=len(prompts), n_iter=1,
        sampler=sampler, steps=args.steps, rng="per-image", exact=args.exact,
    )  # fmt: skip
    (batch,) = generate(model, request)
    return batch.latents.cpu(), torch.from_numpy(to_uint8(batch.images)).int()


def compare(model, args: argparse.Namespace, sampler: str) -> str:
    """Return a row of the table: how far the pictures of a batch are from the same ones made alone."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(args.pictures)]
    latents, together = pictures(model, prompts, 1, args, sampler)
    alone = [pictures(model, [prompt], 1 + k, args, sampler) for k, prompt in enumerate(prompts)]
    latents_alone, pixels_alone = (torch.cat(parts) for parts in zip(*alone, strict=True))
    error = (latents - latents_alone).abs().max() / latents_alone.abs().max()
    off = (together - pixels_alone).abs()
    return f"{sampler:14} {error:12.1e} {off.max():8d} {off.float().mean():12.1e}"


def operations(model) -> None:
    """Print how far the first row of a batch of 3 is from the same row alone, in parts of the largest."""
    torch.manual_seed(0)

    def attention(_: Tensor, y: Tensor) -> Tensor:
        q = y.unflatten(2, (2, 32)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q)

    x, tokens = torch.randn(3, 64, 16, 16), torch.randn(3, 256, 64)
    weight, square = torch.randn(64, 64, 3, 3) / 24, torch.randn(64, 64) / 8
    found = {
        "conv2d 3 x 3": lambda x, _: F.conv2d(x, weight, padding=1),
        "conv2d 1 x 1": lambda x, _: F.conv2d(x, weight[:, :, :1, :1]),
        "linear": lambda _, y: F.linear(y, square),
        "group_norm": lambda x, _: F.group_norm(x, 32),
        "layer_norm": lambda _, y: F.layer_norm(y, (64,)),
        "attention": attention,
        "silu, gelu": lambda x, y: F.silu(x) + F.gelu(x),
        "text encoder": lambda x, y: model.get_learned_conditioning([PROMPTS[0]] * len(x)),
    }
    for name, operation in found.items():
        alone, batch = operation(x[:1], tokens[:1]), operation(x, tokens)[:1]
        print(f"{name:14} {(alone - batch).abs().max() / alone.abs().max():.1e}")


@torch.no_grad()
def main() -> None:
    args = make_parser().parse_args()
    model = load_model(args.config, args.ckpt, device=args.device, dtype=args.dtype)
    if args.operations:
        operations(model)
        return
    print(f"{'sampler':14} {'latents':>12} {'max/255':>8} {'mean/255':>12}")
    for sampler in args.samplers:
        print(compare(model, args, sampler), flush=True)


if __name__ == "__main__":
    main()
