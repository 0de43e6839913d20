"""Load a ControlNet, in any of its layouts, for a model that is loaded or still on the meta device.

    whole            control_sd15_canny.pth: an SD model with `control_model.*`; only that is read
    control alone    control_v11p_sd15_canny.pth: `control_model.*`, or the same names without the prefix
    difference       diff_control_sd15_canny.safetensors: tensors that the UNet also has are stored minus
                     SD 1.5's, and those that would be zero are left out; the model's own are added
    diffusers        a ControlNetModel: its folder, or its file alone
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint.controlnet import DIFFERENCE, completed, pooled_by
from ldm.checkpoint.opened import open_weights, to_ldm_names
from ldm.devices import on_meta
from ldm.errors import WrongModelError
from ldm.loading.fill import Progress, fill_in
from ldm.loading.match import KeyMatch, described, match_keys
from ldm.models.controlnet import ControlNet

PREFIX = "control_model."
HINT = "input_hint_block.0.weight"


@dataclass(frozen=True, eq=False)
class LoadedControl:
    """A ControlNet, and what its file says of it.

    Args:
        network: on the device and in the dtype of the model.
        file: None for the model's own.
        is_pooled: its residuals are averaged over the image (the shuffle model).
        is_bgr: it was trained on maps whose channels are in the order blue, green, red.
    """

    network: nn.Module
    file: Path | None = None
    is_pooled: bool = False
    is_bgr: bool = False

    @property
    def name(self) -> str | None:
        return None if self.file is None else self.file.name


def load_control(
    path: str | Path,
    model: nn.Module,
    base: str = "the model",
    *,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> LoadedControl:
    """Load the ControlNet of a file or folder for a model; nothing else of a larger file is read.

    Args:
        model: a LatentDiffusion, whose device and dtype the ControlNet gets.
        base: what messages call the model.

    Raises:
        WrongModelError: the file holds no ControlNet, or one for another family of models.
        BadValuesError: NaN or infinite weights.
        CheckpointError: it cannot be read.
    """
    found, tensors, keys = _matched(path, model, base)
    like = model.model.diffusion_model.input_blocks[0][0].weight
    fill_in(found.network, keys, tensors, like.device, like.dtype, found.file, allow_nonfinite, progress)
    found.network.eval().requires_grad_(False)
    if not like.is_contiguous():
        found.network.to(memory_format=torch.channels_last)
    return found


def check_control(path: str | Path, model: nn.Module, base: str = "the model") -> None:
    """Compare the names and shapes of a ControlNet with a model, which may be on the meta device.

    Raises: as `load_control`.
    """
    _matched(path, model, base)


def _matched(
    path: str | Path, model: nn.Module, base: str
) -> tuple[LoadedControl, dict[str, Tensor], KeyMatch]:
    """Return a ControlNet on the meta device, its tensors, and how the two agree."""
    opened = open_weights(path)
    file, named = opened.path, to_ldm_names(opened)
    tensors = {name.removeprefix(PREFIX): x for name, x in named.items() if name.startswith(PREFIX)}
    if HINT not in tensors:
        raise WrongModelError(f"{file} is {described(named)}; expected a ControlNet")
    unet = model.model.diffusion_model
    if DIFFERENCE in named:
        tensors = completed(tensors, unet.state_dict(), model.channels)
    with on_meta():
        network = ControlNet.for_unet(unet, model.channels, tensors[HINT].shape[1])
    keys = match_keys(network, tensors)
    if not keys.is_good:
        theirs, ours = described(named), described(model.state_dict())
        raise WrongModelError(
            f"{file} is {theirs}, and {base} is {ours}: the ControlNet does not fit; give one that was "
            f"trained for this family of models ({keys.counts()})"
        )
    config = opened.configs.get("controlnet", {})
    is_bgr = config.get("controlnet_conditioning_channel_order") == "bgr"
    is_pooled = pooled_by(file, opened.metadata, config) is not None
    return LoadedControl(network, file, is_pooled, is_bgr), tensors, keys
