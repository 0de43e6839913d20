"""Pictures of a given depth: the UNet sees a depth map beside x_t, and the picture lends its colours.

    t_enc = trunc(strength * num_steps)     steps are taken, from the encoded picture with noise: img2img

At strength 1 they start from pure noise: all of them, but for the published samplers on the published times
all but the first, as t_enc is min(t_enc, num_steps - 1) there. Without a picture strength is 1.

The map goes straight to the latents' size, as in the published demo. Where the picture must be padded inside,
the map is first brought to the picture's size and padded like it.

Draws, in order: the encoder's posterior noise (used or not), the start noise, and the sampler's, one a step.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.backends.meta import on_meta
from ldm.config import instantiate
from ldm.data.hints import inflated
from ldm.errors import InputError, LdmError
from ldm.imaging.colour import from_uint8
from ldm.imaging.depth import inverse_depth
from ldm.imaging.padding import Frame
from ldm.loading import load_part
from ldm.models.latent_depth import LatentDepth2ImageDiffusion, concat_depth
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.midas import MiDaSInference, network_size
from ldm.tasks.draws import Draws, make_draws
from ldm.tasks.latents import Position
from ldm.tasks.sampling import Batch, Diffuser, Settings, Track

STRENGTH = 0.9  # of the published demo
ALPHA_SIDE = 512  # pixels; latents of the largest pictures are hardly finer

logger = logging.getLogger(__name__)


def depth2img(
    model: LatentDiffusion,
    image: np.ndarray | None,
    prompts: list[str],
    *,
    depth: np.ndarray | Tensor | None = None,
    seed: int,
    strength: float | None = None,
    batch_size: int = 1,
    n_iter: int = 1,
    settings: Settings | None = None,
    fixed_code: bool = False,
    track: Track | None = None,
    size: tuple[int, int] | None = None,
    resume: Position | None = None,
    show_depth: Callable[[np.ndarray], None] | None = None,
) -> Iterator[Batch]:
    """Make pictures of the depth of `image` (h, w, 3) uint8, or of `depth`, of exactly that size.

    Args:
        image: None makes pictures of `depth` alone.
        depth: (h, w) inverse depth, larger = nearer, in any unit, NaN where unknown: of the picture's aspect
            ratio. Or a Tensor (1, 1, h, w), as the model's `estimate_depth` returns it, of any size. None is
            what that estimates.
        strength: 0 keeps the picture (but for the autoencoder and the least noise), 1 keeps nothing of its
            colours. None is 0.9, and 1 without a picture.
        size: (height, width) of pictures that are made without `image`; None is that of `depth`.
        resume: go on from here, exactly, to the end of the run.
        show_depth: called with the map used (h, w), once, before the first batch.

    Raises: InputError for another model, a strength outside 0..1, a map that does not fit or none at all, or
        settings that the sampler or the model cannot honour.
    """
    settings = settings or Settings()
    model = _require(model)
    strength = chosen_strength(image is not None, strength)
    if image is None and depth is None:
        raise InputError("depth2img needs a picture, a depth map, or both")
    if depth is None and model.depth_model is None:
        raise InputError(
            "this model has no network that estimates depth: give a map (--depth FILE, --depth-from alpha), "
            "or the network's weights (--depth-ckpt dpt_hybrid-midas-501f0c75.pt)"
        )
    if image is not None and size not in (None, image.shape[:2]):
        raise InputError(f"the picture is {image.shape[1]}x{image.shape[0]}; a size is for runs without one")
    height, width = image.shape[:2] if image is not None else size or depth.shape[-2:]
    if isinstance(depth, Tensor) and (depth.shape[:2] != (1, 1) or depth.dim() != 4):
        raise InputError(f"the depth map is a tensor {tuple(depth.shape)}; expected (1, 1, height, width)")
    if isinstance(depth, Tensor) and not bool(depth.isfinite().all()):
        raise InputError("the depth map holds NaN or infinity; give it as an array, whose holes are filled")
    if isinstance(depth, np.ndarray):
        check_size(depth.shape, height, width)
        depth = torch.from_numpy(inverse_depth(depth))[None, None]
    diffuser = Diffuser(model, settings, batch_size, track, resume, accepts=("hybrid",))
    start = Start.at(strength, diffuser)
    draws = make_draws(
        settings.rng, seed, model.device, batch_size, n_iter * len(prompts), fixed_code=fixed_code
    )
    frame = Frame.around(height, width, model.size_multiple)
    return _generate(diffuser, frame, image, depth, draws, prompts, start, n_iter, show_depth)


@dataclass(frozen=True)
class Start:
    """Where a run begins: before the last t_enc steps, from the picture with noise or from noise alone."""

    t_enc: int
    pure_noise: bool

    @classmethod
    def at(cls, strength: float, diffuser: Diffuser) -> "Start":
        """Return where a strength begins."""
        sampler = diffuser.sampler
        t_enc = diffuser.t_enc(strength)
        if diffuser.settings.spacing is None and sampler.default_spacing is None:
            t_enc = min(t_enc, sampler.num_steps - 1)
            if strength == 1 and not t_enc:
                raise InputError("at strength 1 the published steps are all but one, so 1 is none: take 2")
        elif strength == 1:
            t_enc = len(sampler)
        return cls(t_enc, strength == 1)


def chosen_strength(has_picture: bool, strength: float | None) -> float:
    """Return the strength that is meant. Raises: InputError where it makes no sense."""
    if strength is None:
        return STRENGTH if has_picture else 1.0
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {strength}; expected 0 (keep the picture) to 1 (keep its depth alone)")
    if not has_picture and strength != 1:
        raise InputError(f"strength is {strength} without a picture to keep anything of; leave it out")
    return strength


def check_size(shape: tuple[int, ...], height: int, width: int) -> None:
    """Refuse a map (h, w) of another aspect ratio than the picture's.

    Sides may be rounded, and the map may be of the size at which the depth network looks at the picture,
    which is that of the maps that the published demo shows.

    Raises: InputError.
    """
    if len(shape) != 2:
        raise InputError(f"the depth map is of shape {shape}; expected (height, width)")
    h, w = shape
    if (h, w) == (height, width):
        return
    rounding = max(height + width, h + w) / 2
    if abs(h * width - w * height) > rounding and (h, w) != network_size(height, width):
        raise InputError(
            f"the depth map is {w}x{h} and the picture {width}x{height}, another aspect ratio; "
            "expected the map of this picture, uncropped"
        )
    logger.info("the depth map is %dx%d and the picture %dx%d: it is resized", w, h, width, height)


def alpha_depth(alpha: np.ndarray) -> np.ndarray:
    """Return what stands for the depth of a cut-out: its alpha (h, w) uint8 inflated, 0 to 1 (h, w).

    It is what models are trained on by `hint: depth` of the data, in place of an estimate. The map of a
    picture with a side above 512 pixels is smaller: inflating takes a pass over it for each step inwards.

    Raises: InputError where nothing is transparent, or nothing opaque.
    """
    share = torch.from_numpy(alpha.astype(np.float32))[None, None] / 255
    if bool((share >= 0.5).all()) or bool((share < 0.5).all()):
        state = "transparent" if share[0, 0, 0, 0] < 0.5 else "opaque"
        raise InputError(f"the picture is {state} throughout: its alpha has no shape to inflate")
    scale = ALPHA_SIDE / max(alpha.shape)
    if scale < 1:
        size = [max(1, round(scale * side)) for side in alpha.shape]
        share = F.interpolate(share, size, mode="area")
    return inflated(share)[0, 0].numpy()


def load_depth_network(model: LatentDiffusion, path: str | Path, config: Any = None) -> None:
    """Give a model the depth network of a file: MiDaS's own, or a depth model that holds one.

    Args:
        config: `depth_stage_config` of the model's YAML; None is the published network.

    Raises: InputError, and CheckpointError as `ldm.loading.load_part`; the model is as it was then.
    """
    model = _require(model)
    before = model.depth_model
    if before is None:
        like = next(model.first_stage_model.parameters())
        with on_meta():
            network = MiDaSInference() if config is None else instantiate(config)
        model.depth_model = network.to(like.dtype).to_empty(device=like.device)
    try:
        load_part(model, path, "depth_model")
    except LdmError:
        model.depth_model = before
        raise


def _require(model: LatentDiffusion) -> LatentDepth2ImageDiffusion:
    if not isinstance(model, LatentDepth2ImageDiffusion):
        raise InputError(
            f"this model is no depth-to-image model ({type(model).__name__}); expected one such as "
            "512-depth-ema.ckpt, with configs/stable-diffusion/v2-midas-inference.yaml"
        )
    return model


def _generate(
    diffuser: Diffuser,
    frame: Frame,
    image: np.ndarray | None,
    depth: Tensor | None,
    draws: Draws,
    prompts: list[str],
    start: Start,
    n_iter: int,
    show_depth: Callable[[np.ndarray], None] | None,
) -> Iterator[Batch]:
    shape = diffuser.latent_shape(frame)
    depth = _estimated(diffuser, image) if depth is None else depth.to(diffuser.model.device)
    if show_depth is not None:
        show_depth(depth[0, 0].float().cpu().numpy())
    depth = concat_depth(_framed(depth, frame), shape[1:])  # (1, 1, h, w) in -1..1
    if bool((depth == -1).all()):
        logger.warning("the depth map is flat: it says nothing of the picture")
    posterior = None if start.pure_noise else diffuser.encode(frame.pad(from_uint8(image)))
    first = diffuser.sampler.start_index(start.t_enc)
    for part in diffuser.batches(prompts, n_iter):
        noise = draws.batch(part.first, len(part.prompts), first)
        eps = noise.normal("posterior", *shape)  # drawn in any case, so that what follows is the seed's
        x_t = noise.normal("start", *shape)  # (b, c, h, w)
        if posterior is not None:
            x_t = diffuser.sampler.noised(diffuser.drawn(posterior, eps), start.t_enc, x_t)
        context, uncond = diffuser.text(part.prompts)
        cond = diffuser.model.hybrid(context, depth)
        if uncond is not None:
            uncond = diffuser.model.unconditional(cond, uncond)
        latents = diffuser.sample(x_t, cond, uncond, noise, start=first)
        yield diffuser.batch(part, noise, latents, diffuser.decode(latents, frame))


@torch.no_grad()
def _estimated(diffuser: Diffuser, image: np.ndarray) -> Tensor:
    """Return what the model's own network sees in a picture (h, w, 3): (1, 1, h', w')."""
    images = from_uint8(image).to(diffuser.model.device)
    estimate = lambda: diffuser.model.estimate_depth(images)  # noqa: E731
    return diffuser.guard.run("depth network", "estimating the depth", estimate).float()


def _framed(depth: Tensor, frame: Frame) -> Tensor:
    """Pad a map (1, 1, h, w) as the picture is padded, at its size; as it is where nothing is padded."""
    if (frame.height, frame.width) == (frame.inner_height, frame.inner_width):
        return depth
    size = (frame.height, frame.width)
    if tuple(depth.shape[-2:]) != size:
        depth = F.interpolate(depth.float(), size, mode="bicubic", align_corners=False)
    return frame.pad(depth)
