"""Add an untrained ControlNet to a Stable Diffusion model, from which its training can start.

    control_model.X  =  model.diffusion_model.X, where the UNet has it; what it has not begins untrained:
                        zero convolutions, and a hint block whose last convolution is zero

The file is a flat dict of tensors, as the reference's tool_add_control.py writes it.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.checkpoint import identify
from ldm.checkpoint.classify import config_for
from ldm.checkpoint.controlnet import encoder_of
from ldm.checkpoint.opened import open_weights, to_ldm_names
from ldm.checkpoint.parts import EMA
from ldm.checkpoint.writer import Entry, write_safetensors
from ldm.config import find_config, find_weights, instantiate, read_config
from ldm.devices import on_meta
from ldm.errors import InputError, WrongModelError
from ldm.files.atomic import atomic_write
from ldm.jobs.choosing import check_kind, own_yaml
from ldm.loading.controls import PREFIX
from ldm.loading.match import match_keys
from ldm.models.controlnet import ControlNet

PICKLED = (".ckpt", ".pth", ".pt")
SUFFIXES = (*PICKLED, ".safetensors")


class Added(NamedTuple):
    """The written file, and the names of the tensors that are not the model's.

    Args:
        count: of all tensors.
    """

    path: Path
    new: list[str]
    count: int


def check_paths(source: str, target: str) -> tuple[Path, Path]:
    """Return the paths, expanded. Raises: InputError where IN is missing or OUT exists or cannot be made."""
    out = Path(target).expanduser()
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"OUT {out}: expected a name that ends in one of {', '.join(SUFFIXES)}")
    if out.exists():
        raise InputError(f"OUT {out} already exists; give another name")
    if not out.parent.is_dir():
        raise InputError(f"OUT {out}: there is no folder {out.parent}; make it first")
    return find_weights(source), out


def add_control(source: Path, out: Path, control_only: bool = False, seed: int = 0) -> Added:
    """Write the model of `source` with an untrained ControlNet, or that alone.

    Args:
        source: a text-to-image model in any layout.
        seed: of the weights of the hint block.

    Raises:
        WrongModelError: it is no text-to-image model.
        InputError, CheckpointError: in one line.
    """
    opened = open_weights(source)
    tensors = {name: x for name, x in to_ldm_names(opened).items() if not name.startswith(EMA)}
    unet, channels, schedule = _unet(source, tensors)
    torch.manual_seed(seed)
    network = ControlNet.for_unet(unet, channels).state_dict()
    theirs = encoder_of(unet.state_dict(), channels)
    control = {PREFIX + name: theirs.get(name, x) for name, x in network.items()}
    new = [PREFIX + name for name in network if name not in theirs]
    if not control_only:
        logvar = {"logvar": torch.zeros(len(schedule["betas"]))}
        new = [name for name in logvar if name not in tensors] + new
        control = schedule | logvar | tensors | control
    _write(out, control, opened.files)
    return Added(out, new, len(control))


def _unet(source: Path, tensors: dict[str, Tensor]) -> tuple[nn.Module, int, dict[str, Tensor]]:
    """Return the UNet with its weights, the channels of its latents, and the tables of the schedule."""
    identity = identify(source)
    check_kind(identity, ("txt2img",), whole=False)
    config = own_yaml(identity) or config_for(identity, "eps")
    if config is None:
        raise WrongModelError(
            f"{source} is {identity.sentence()}; expected a model of the family 1.x (a context of width 768) "
            "or 2.x (1024)"
        )
    with on_meta():
        model = instantiate(read_config(find_config(str(config)))["model"], "model")
    prefix = "model.diffusion_model."
    found = match_keys(model, {k: x for k, x in tensors.items() if k.startswith(prefix)}, prefix)
    if not found.is_good:
        raise WrongModelError(f"{source} does not fit {config} in the UNet: {found.report()}")
    unet = model.model.diffusion_model
    unet.load_state_dict({k.removeprefix(prefix): tensors[k] for k in found.matched}, assign=True)
    return unet, model.channels, model.schedule.published_buffers()


def _write(out: Path, tensors: dict[str, Tensor], sources: list[Path]) -> None:
    if out.suffix.lower() not in PICKLED:
        entries = [Entry(k, x.dtype, tuple(x.shape), lambda x=x: x) for k, x in tensors.items()]
        write_safetensors(out, entries, {"format": "pt"}, sources=sources)
        return
    # A view would be saved with the whole file that it is mapped from.
    own = {name: x.detach().clone().contiguous() for name, x in tensors.items()}
    atomic_write(out, lambda temporary: torch.save(own, temporary))
