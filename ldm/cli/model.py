"""Open the model that the flags ask for, and say what was opened."""

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.choice import choose, settle
from ldm.cli.inputs import chosen_dtype
from ldm.cli.progress import byte_bar
from ldm.config import find_config
from ldm.errors import CheckpointError, ConfigError, InputError

if TYPE_CHECKING:
    import torch

    from ldm.models.latent_diffusion import LatentDiffusion

DEMO = "configs/demo"
PUBLISHED_SIZE = 512

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedModel:
    """A loaded model and what its pictures should remember of it."""

    model: "LatentDiffusion"
    config: Path
    checkpoint: Path
    is_demo: bool
    dtype: "torch.dtype"
    sha256: Callable[[], str | None]
    training_size: int | None = None    # side in pixels, where the weights are known
    vae: Path | None = None             # whose autoencoder took the place of the checkpoint's

    def record(self) -> dict[str, Any]:
        """Return the model's part of a picture's metadata."""
        made_by = {"config": self.config.name, "checkpoint": self.checkpoint.name, "sha256": self.sha256()}
        return made_by if self.vae is None else made_by | {"vae": self.vae.name}


def open_model(args: argparse.Namespace) -> OpenedModel:
    """Load what --ckpt, --config, --weights, --vae, --device, --dtype, --precision and the Intel flags name.

    Without --config the YAML is chosen from the file; eps or v is checked or found out (`ldm.cli.choice`).

    Raises: ConfigError, CheckpointError, BackendUnavailable, InputError.
    """
    dtype_name = chosen_dtype(args)
    if args.ckpt is None:
        _refuse_without_weights(args)
        choice, (config, checkpoint) = None, demo_files(args.demo)
    else:
        checkpoint = Path(args.ckpt).expanduser()
        choice = choose(args, checkpoint)
        config = choice.config

    from ldm.backends.device import resolve_device, resolve_dtype
    from ldm.files.digest import sha256_in_background
    from ldm.loading import load_model, load_part

    device = resolve_device(args.device)
    dtype = resolve_dtype(dtype_name, device)
    sha256 = sha256_in_background(checkpoint)
    with byte_bar("loading", quiet=args.quiet or not sys.stderr.isatty()) as progress:
        model = load_model(
            config if choice is None else choice.source(),
            checkpoint,
            device=device,
            dtype=dtype,
            weights=args.weights,
            allow_nonfinite=args.allow_nonfinite,
            progress=progress,
        )
    vae = None if args.vae is None else Path(args.vae).expanduser()
    if vae is not None:
        load_part(model, vae, "first_stage_model", allow_nonfinite=args.allow_nonfinite)
    _check_latents(args, model)
    if choice is not None:
        choice = settle(choice, model, args, dtype)
        config = choice.config
    if args.ckpt is None:
        log.info(
            "no --ckpt given: using the small demo model that ships with this (%d pixels)", native_size(model)
        )
        for name in set(args.demo_defaults) - getattr(args, "given", set(args.demo_defaults)):
            setattr(args, name, args.demo_defaults[name])
    _explain_intel_flags(args, model)
    identity = choice and replace(choice.identity, prediction=model.parameterization)
    size = identity and identity.training_size
    return OpenedModel(model, config, checkpoint, args.ckpt is None, dtype, sha256, size, vae)


def demo_files(name: str = "emoji") -> tuple[Path, Path]:
    """Return the paths of a demo model's YAML and weights."""
    config, checkpoint = f"{DEMO}/{name}.yaml", f"{DEMO}/{name}.safetensors"
    try:
        return find_config(config), find_config(checkpoint)
    except ConfigError as error:
        raise CheckpointError(
            f"no --ckpt given, and this copy lacks the demo model ({config}, {checkpoint}); give --ckpt FILE"
        ) from error


def _refuse_without_weights(args: argparse.Namespace) -> None:
    """Refuse flags that say something of weights that are not given."""
    given = {"--config": args.config, "--sha256": args.sha256}
    given["--prediction"] = None if args.prediction == "auto" else args.prediction
    given["--weights"] = None if args.weights == "auto" else args.weights
    for flag, value in given.items():
        if value is not None:
            raise InputError(f"{flag} {value} needs the weights: --ckpt FILE (without both, the demo model)")


def native_size(model: "LatentDiffusion") -> int:
    """Return the side in pixels of the pictures that the model was trained on."""
    return model.image_size * model.downsampling_factor


def picture_size(
    args: argparse.Namespace, opened: OpenedModel, default: int = PUBLISHED_SIZE
) -> tuple[int, int]:
    """Return (height, width) from --H, --W and --f, else `default`, or the demo model's own.

    As published, latents are H // f: an --f that is not the model's factor scales the picture.
    """
    model = opened.model
    default = native_size(model) if opened.is_demo else default
    height, width = args.H or default, args.W or default
    if args.f in (None, model.downsampling_factor):
        _hint_at_size(height, width, trained_size(opened), hasattr(args, "hires"), model.size_multiple)
        return height, width
    height, width = (side // args.f * model.downsampling_factor for side in (height, width))
    if not (height and width):
        raise InputError(f"--f {args.f} is larger than the picture; leave --f out")
    log.info(
        "--f %d is not this model's %d: pictures will be %dx%d",
        args.f,
        model.downsampling_factor,
        width,
        height,
    )
    return height, width


def trained_size(opened: OpenedModel) -> int | None:
    """Return the side in pixels of the pictures trained on, where that is known."""
    return native_size(opened.model) if opened.is_demo else opened.training_size


def _hint_at_size(
    height: int, width: int, trained: int | None, hires: bool = False, multiple: int = 64
) -> None:
    """Say so where pictures are far from what was trained on: in pixels, or in shape.

    A larger picture gets two heads, or two of anything: a first pass of about the trained size prevents it.
    """
    if not trained:
        return
    area, aspect = height * width / trained**2, max(height, width) / min(height, width)
    if 0.5 <= area <= 1.6 and aspect <= 2:
        return
    advice = f"try --H {trained} --W {trained}"
    if hires and area > 1.6:
        first = [max(multiple, round(side / area**0.5 / multiple) * multiple) for side in (height, width)]
        scale = min(4.0, height / first[0])
        advice = f"try --H {first[0]} --W {first[1]} --hires {scale:.3g}"
    asked, known = f"{width}x{height}", f"{trained}x{trained}"
    log.info("%s is far from the %s that this model was trained at: %s", asked, known, advice)


def check_factor(args: argparse.Namespace, opened: OpenedModel) -> None:
    """Refuse an --f that is not the model's where the size comes from a picture."""
    factor = opened.model.downsampling_factor
    if args.f not in (None, factor):
        raise InputError(
            f"--f {args.f}: this model's latents stand for {factor} pixels a side; leave --f out"
        )


def _check_latents(args: argparse.Namespace, model: "LatentDiffusion") -> None:
    if args.C not in (None, model.channels):
        raise InputError(f"--C {args.C}: this model's latents have {model.channels} channels; leave --C out")


def _explain_intel_flags(args: argparse.Namespace, model: "LatentDiffusion") -> None:
    """Honour what is left of --ipex, and say what is not."""
    if getattr(args, "torchscript", False):
        log.info("--torchscript has no effect: nothing is traced, the pictures are the same without it")
    if getattr(args, "ipex", False):
        import torch

        model.model.diffusion_model.to(memory_format=torch.channels_last)
        model.first_stage_model.to(memory_format=torch.channels_last)
        log.info(
            "--ipex only sets channels-last: Intel's extension is no longer developed, PyTorch itself is used"
        )
