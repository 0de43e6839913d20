"""Tell eps from v by one step of the network on images whose noise is known.

With x_t = alpha x_0 + sigma eps and alpha^2 + sigma^2 = 1 (arXiv 2202.00512, appendix D):

    v   = alpha eps - sigma x_0          what a v-network gives
    eps = sigma x_t + alpha v            what an eps-network gives

x_t and v are uncorrelated. So either answer needs an output that correlates with v, which only a network that
tells an image from its noise has; an eps-network's correlates with x_t as well. One that copies or blurs its
input, or gives something of its own, agrees with neither.

The images, smooth colours with discs, go through the model's own autoencoder: on latents that are no
image's even a good network fails (agreement of the demo model: 0.3 instead of 0.8).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.diffusion.cond import Cond
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.networks import HALVES, are_finite

METHOD = 1  # to be raised with every change that may give other verdicts
TIMES = (400, 500, 600)  # of 1000; both noise and image matter there
IMAGES = 2  # at each of the times
SIDES = (16, 32)  # least and most latents a side
AGREEMENT = 0.6  # correlation that the answer must have,
LEAD = 0.15  # and lead the other one by,
INSIGHT = 0.4  # and share of v's part that an eps-network must get right


@dataclass(frozen=True)
class Verdict:
    """What the network predicts, or None where that cannot be told, with both correlations."""

    prediction: str | None
    agreement_eps: float
    agreement_v: float

    @property
    def agreement(self) -> float:
        return max(self.agreement_eps, self.agreement_v)


@torch.no_grad()
def probe_prediction(model: LatentDiffusion) -> Verdict:
    """Run the network once on noisy images and see what comes out; no random state but its own is touched.

    It computes in float32, whatever dtype the weights have and the run will compute in.

    Args:
        model: loaded, with an autoencoder; models of every task have their further inputs filled in.
    """
    generator = torch.Generator().manual_seed(0)
    side = _side(model)
    images = synthetic_images(IMAGES, side * model.downsampling_factor, generator).to(model.device)
    t = torch.tensor([time * model.num_timesteps // 1000 for time in TIMES]).repeat_interleave(IMAGES)
    alphas_cumprod = torch.as_tensor(model.schedule.alphas_cumprod)[t].float().to(model.device)
    alphas_cumprod = alphas_cumprod.view(-1, 1, 1, 1)
    alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
    with _in_float32(model):
        x_0 = model.get_first_stage_encoding(model.encode_first_stage(images).mode())
        x_0 = x_0.float().repeat(len(TIMES), 1, 1, 1)
        eps = torch.randn(x_0.shape, generator=generator).to(x_0)
        cond = further_inputs(model, images.repeat(len(TIMES), 1, 1, 1), x_0)
        if model.cond_stage_model is not None:
            cond = replace(cond, context=model.get_learned_conditioning([""] * len(x_0)))
        output = model.apply_model(alpha * x_0 + sigma * eps, t.to(model.device), cond).float()
    if not are_finite(output):
        return Verdict(None, 0.0, 0.0)
    v = alpha * eps - sigma * x_0
    return judge(_correlation(output, eps), _correlation(output, v), float(alpha.mean()))


@contextlib.contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Let a model compute in float32 with weights of fewer bits, converted one layer at a time.

    So it takes no more memory than the largest layer, and weights that are mapped from a file stay so.
    """
    stored: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def convert(module: nn.Module, inputs: tuple) -> tuple:
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if hasattr(module, "time_embed"):       # whose dtype a UNet rounds the time to
            own += module.time_embed.parameters()
        stored[module] = [(tensor, tensor.data) for tensor in own if tensor.dtype in HALVES]
        for tensor, data in stored[module]:
            tensor.data = data.float()
        return tuple(x.float() if isinstance(x, Tensor) and x.dtype in HALVES else x for x in inputs)

    def put_back(module: nn.Module, *_: object) -> None:
        for tensor, data in stored.pop(module, ()):
            tensor.data = data

    hooks = []
    try:
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(convert))
            hooks.append(module.register_forward_hook(put_back, always_call=True))
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def judge(agreement_eps: float, agreement_v: float, alpha: float) -> Verdict:
    """Decide from the correlations of the output with eps and with v, of which eps has the part `alpha`."""
    prediction = None
    if agreement_v > AGREEMENT and agreement_v > agreement_eps + LEAD:
        prediction = "v"
    elif agreement_eps > AGREEMENT and agreement_eps > agreement_v + LEAD and agreement_v > INSIGHT * alpha:
        prediction = "eps"
    return Verdict(prediction, agreement_eps, agreement_v)


def synthetic_images(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Return smooth backgrounds with discs of one colour, (count, 3, side, side) in [-1, 1]."""
    corners = 2 * torch.rand(count, 3, 3, 3, generator=generator) - 1
    images = F.interpolate(corners, size=(side, side), mode="bilinear", align_corners=True)
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    for image in images:
        for _ in range(4):
            centre_x, centre_y, radius, *colour = torch.rand(6, generator=generator).tolist()
            inside = (x - centre_x) ** 2 + (y - centre_y) ** 2 < (0.1 + 0.2 * radius) ** 2
            image[:, inside] = 2 * torch.tensor(colour)[:, None] - 1
    return images


def _side(model: LatentDiffusion) -> int:
    """Return the latents' side: the model's own within SIDES, and one that the UNet can halve."""
    step = model.model.diffusion_model.downsampling_factor
    low, high = SIDES
    return -(-min(max(model.image_size, low), high) // step) * step


def further_inputs(model: LatentDiffusion, images: Tensor, x_0: Tensor) -> Cond:
    """Return what the network needs with x_t and a text: what the tasks give it."""
    unet, batch = model.model.diffusion_model, len(x_0)
    surplus = unet.input_blocks[0][0].in_channels - x_0.shape[1]
    concat = _further_channels(surplus, images, x_0) if surplus else None
    embedding, label = getattr(unet, "label_emb", None), None
    if isinstance(embedding, nn.Embedding):
        label = torch.zeros(batch, dtype=torch.long, device=x_0.device)
    elif embedding is not None:
        width = next(embedding.parameters()).shape[1]
        label = torch.zeros(batch, width, device=x_0.device)
    return Cond(concat=concat, label=label)


def _further_channels(count: int, images: Tensor, x_0: Tensor) -> Tensor:
    """Return the channels that a task joins to x_t, by their number."""
    nothing = x_0.new_zeros(len(x_0), 1, *x_0.shape[2:])
    if count == x_0.shape[1]:  # editing: the image before
        return x_0
    if count == 1 + x_0.shape[1]:  # inpainting: a mask, and what is outside it: all
        return torch.cat([nothing, x_0], dim=1)
    if count == 3:  # upscaling: the small image
        return F.interpolate(images, size=x_0.shape[2:], mode="area")
    return nothing.expand(-1, count, -1, -1)  # depth: the same everywhere


def _correlation(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))
