"""Measure seconds per UNet step, compared with diffusers' UNet of the same shape and weights, in one run.

    python benchmarks/unet_speed.py                                 # 865M parameters, 512 x 512, CPU
    python benchmarks/unet_speed.py --device cuda --dtypes float16
    python benchmarks/unet_speed.py --config configs/stable-diffusion/v1-inference.yaml

One step is one forward pass over a batch of 2, conditional and unconditional. The two networks share their
weights and alternate, so that other load on the machine affects both. The ratio is diffusers' time over ours:
above 1 ours is faster. The largest difference of the two outputs, relative to the largest output, is printed
too; it shows that both compute the same function.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn


def random_unet(config: str) -> tuple[nn.Module, dict]:
    """Build the UNet of `config` with random weights; returns it and its parameters."""
    from omegaconf import OmegaConf

    from ldm.config import instantiate, load_config

    node = load_config(config).model.params.unet_config
    with torch.device("meta"):
        unet = instantiate(node)
    unet.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(float(name.endswith("weight")))  # norms; biases are zero
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return unet.eval(), OmegaConf.to_container(node.params)


def diffusers_unet(ours: nn.Module, params: dict) -> nn.Module:
    """Build diffusers' network of the same shape around the same tensors."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    widths = [params["model_channels"] * mult for mult in params["channel_mult"]]
    attended = [2**level in params["attention_resolutions"] for level in range(len(widths))]
    head_dim = params.get("num_head_channels")
    with torch.device("meta"):
        theirs = UNet2DConditionModel(
            in_channels=params["in_channels"],
            out_channels=params["out_channels"],
            block_out_channels=widths,
            layers_per_block=params["num_res_blocks"],
            down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended],
            up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
            # diffusers calls the number of heads attention_head_dim
            attention_head_dim=[width // head_dim for width in widths] if head_dim else params["num_heads"],
            cross_attention_dim=params["context_dim"],
            use_linear_projection=params.get("use_linear_in_transformer", False),
        )
    weights = {f"model.diffusion_model.{name}": x for name, x in ours.state_dict().items()}
    weights = convert_ldm_unet_checkpoint(weights, dict(theirs.config))
    theirs.load_state_dict(weights, strict=True, assign=True)
    return theirs.eval()


def timed(network, x: Tensor, t: Tensor, context: Tensor) -> tuple[float, Tensor]:
    """Return seconds and output of one step."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    out = network(x, t, context)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, getattr(out, "sample", out)


@torch.inference_mode()
def compare(ours: nn.Module, theirs: nn.Module, params: dict, args: argparse.Namespace, dtype: str) -> str:
    """Time both networks in turn and return a line of the table."""
    name, dtype = dtype, getattr(torch, dtype)
    for network in (ours, theirs):
        network.to(args.device, dtype)
    generator = torch.Generator().manual_seed(1)
    side = args.size // 8
    x = torch.randn(2, params["in_channels"], side, side, generator=generator).to(args.device, dtype)
    context = torch.randn(2, 77, params["context_dim"], generator=generator).to(args.device, dtype)
    t = torch.tensor([500, 500], device=args.device)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    outputs: dict[str, Tensor] = {}
    for turn in range(args.repeats + 1):
        order = [("ours", ours), ("theirs", theirs)]
        for name_of, network in order if turn % 2 else reversed(order):
            seconds, outputs[name_of] = timed(network, x, t, context)
            if turn:  # the first warms up
                times[name_of].append(seconds)
    ours_out, theirs_out = outputs["ours"].float(), outputs["theirs"].float()
    difference = float((ours_out - theirs_out).abs().max() / theirs_out.abs().max())
    a, b = (statistics.median(times[name]) for name in ("ours", "theirs"))
    return f"{name:10s} {a:9.3f} {b:10.3f} {b / a:7.2f} {difference:12.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/stable-diffusion/v2-inference.yaml")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    ours, params = random_unet(args.config)
    theirs = diffusers_unet(ours, params)
    millions = sum(p.numel() for p in ours.parameters()) / 1e6
    print(f"{millions:.0f}M parameters, batch 2, {args.size} px, {args.device}, torch {torch.__version__}")
    print(f"seconds per step, median of {args.repeats}; {torch.get_num_threads()} CPU threads")
    print(f"{'dtype':10s} {'ours':>9s} {'diffusers':>10s} {'ratio':>7s} {'difference':>12s}")
    for name in args.dtypes:
        print(compare(ours, theirs, params, args, name), flush=True)


if __name__ == "__main__":
    main()
