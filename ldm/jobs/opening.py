"""Open the model that a request asks for, and keep it for the next request."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.checkpoint import identify
from ldm.checkpoint.parts import PARTS
from ldm.config import config_sha256, find_config, find_weights, load_config
from ldm.errors import CheckpointError, ConfigError, InputError
from ldm.jobs.choosing import choose_config, confirm_prediction
from ldm.jobs.controls import ControlFiles, ControlNets, OpenedControl, check_controls, control_files
from ldm.jobs.watch import SILENT, Watch
from ldm.requests import Depth2Img, Request, fields_of, names_of
from ldm.requests.depth2img import NO_DEPTH
from ldm.requests.groups import Model
from ldm.requests.resolving import ModelFacts

if TYPE_CHECKING:
    import torch

    from ldm.checkpoint.identity import Identity
    from ldm.models.latent_diffusion import LatentDiffusion

DEMO = "configs/demo"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedModel:
    """A loaded model, and the information about it that images record."""

    model: "LatentDiffusion"
    config: Path
    checkpoint: Path
    dtype: "torch.dtype"
    sha256: Callable[[], str | None]
    facts: ModelFacts
    is_demo: bool = False
    knows_size: bool = True     # the training size of the weights is known, not only the size in the YAML
    # "vae", "depth" -> the file that replaced that part of the checkpoint, and its digest
    replaced: Mapping[str, tuple[Path, Callable[[], str | None]]] = field(default_factory=dict)
    controls: tuple[OpenedControl, ...] = ()        # one for each control of the request

    def record(self) -> dict[str, Any]:
        """Return the model's part of an image's metadata."""
        made_by = {
            "config": self.config.name, "config_sha256": config_sha256(self.config),
            "checkpoint": self.checkpoint.name, "sha256": self.sha256(),
        }  # fmt: skip
        for part, (path, digest) in self.replaced.items():
            made_by |= {part: path.name, f"{part}_sha256": digest()}
        if self.controls:
            made_by["controls"] = [control.loaded.name for control in self.controls]
            made_by["controls_sha256"] = [control.sha256() for control in self.controls]
        return made_by


class Models:
    """Opens models and keeps the last one open, so that successive requests with one model load it once."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._opened: OpenedModel | None = None
        self._controls = ControlNets()

    def open(self, request: Request, watch: Watch = SILENT, any_kind: bool = False) -> OpenedModel:
        """Return the model that --ckpt, --config, --weights, --vae, --device, --dtype, ... specify.

        Without --config the YAML is chosen by inspecting the file; eps or v is checked or detected
        (`ldm.jobs.choosing`).

        Args:
            any_kind: open models of other tasks too, whose autoencoders decode latents as well.

        Raises: ConfigError, CheckpointError, BackendUnavailable, InputError.
        """
        key = (any_kind, request.TASKS, request.DEMO, getattr(request, "depth_ckpt", None))
        key += tuple(getattr(request, name) for name in names_of(Model))
        files = [] if any_kind else control_files(request)
        if key != self._key:
            self._key = self._opened = None     # before the next one is loaded
            self._controls = ControlNets()
            self._opened, self._key = _open(request, watch, any_kind, files), key
        opened = self._opened
        base, allow = opened.checkpoint.name, request.allow_nonfinite
        return replace(opened, controls=self._controls.open(files, opened.model, base, allow))


def _open(request: Request, watch: Watch, any_kind: bool, controls: ControlFiles) -> OpenedModel:
    if request.ckpt is None:
        _refuse_without_weights(request)
        choice, (config, checkpoint) = None, demo_files(request.DEMO)
    else:
        checkpoint = find_weights(request.ckpt)
        choice = choose_config(request, checkpoint, any_kind)
        config = choice.config
    if isinstance(request, Depth2Img):
        _check_has_depth(request, identify(checkpoint) if choice is None else choice.identity)

    import torch

    from ldm.checkpoint.sniff import sniff
    from ldm.devices import resolve_device
    from ldm.files.digest import sha256_in_background
    from ldm.loading import load_model, load_part

    others = {"vae": request.vae, "depth": getattr(request, "depth_ckpt", None)}
    others = {part: find_weights(path) for part, path in others.items() if path is not None}
    for path in others.values():
        sniff(path)                 # which refuses what is no weights, before the model is loaded
    device = resolve_device(request.device)
    dtype = _dtype(request, device)
    sha256 = sha256_in_background(checkpoint)
    source = config if choice is None else choice.source()
    if choice is None:
        log.info("no --ckpt given: using the small demo model that is included")
    with watch.loading() as progress:
        model = load_model(
            source, checkpoint, device=device, dtype=dtype, weights=request.weights,
            allow_nonfinite=request.allow_nonfinite, progress=progress,
            check=None if any_kind else partial(check_request, request, checkpoint, controls),
        )  # fmt: skip
    replaced = {part: (path, sha256_in_background(path)) for part, path in others.items()}
    if (vae := others.get("vae")) is not None:
        load_part(model, vae, "first_stage_model", allow_nonfinite=request.allow_nonfinite)
    if choice is not None:
        choice = confirm_prediction(choice, model, request)
        config = choice.config
    if "depth" in others:
        _open_depth_network(model, config, others["depth"])
    if request.channels_last or (device.type == "cpu" and dtype != torch.float32):

        model.model.diffusion_model.to(memory_format=torch.channels_last)
        model.first_stage_model.to(memory_format=torch.channels_last)
    if choice is not None:
        identity = replace(choice.identity, prediction=model.parameterization)
        model.trained_at = None if choice.is_own else identity.training_size
    known = choice is None or choice.is_own or model.trained_at is not None
    return OpenedModel(
        model, config, checkpoint, dtype, sha256, facts_of(model), choice is None, known, replaced
    )


def _check_has_depth(request: Depth2Img, identity: "Identity") -> None:
    """Raise InputError where depth is to be estimated, and the file of the model has no network for it."""
    has_other = request.depth is not None or request.depth_from == "alpha" or request.depth_ckpt is not None
    if identity.is_model and not has_other and PARTS["depth_estimator"].label not in identity.parameters:
        raise InputError(NO_DEPTH)


def _dtype(request: Request, device: "torch.device") -> "torch.dtype":
    """Return --dtype, or float32 if the device would emulate it, which is far slower."""
    from ldm import devices

    dtype = devices.resolve_dtype(request.dtype, device)
    if devices.is_fast(dtype, device):
        return dtype
    log.warning(
        "this CPU emulates %s, which takes up to 24 times as long as float32 (docs/MEASUREMENTS.md): "
        "computing in float32", request.dtype,
    )  # fmt: skip
    return devices.DTYPES["float32"]


def check_request(
    request: Request, checkpoint: Path, controls: ControlFiles, model: "LatentDiffusion"
) -> None:
    """Check what depends on the model, but not on its weights.

    Raises:
        InputError: there are more steps than the model was trained with, or tiles that its UNet cannot take.
        WrongModelError: a ControlNet is for another family of models.
    """
    check_controls(controls, model, checkpoint.name)
    from ldm.diffusion.timesteps import ddim_timesteps
    from ldm.tasks.tiles import tiling_of

    if request.steps is not None:
        ddim_timesteps(request.steps, model.num_timesteps)
    if request.tile is not None:
        unit = 1 if request.ENLARGES else model.downsampling_factor
        tiling_of(request.tile, request.overlap, model.model.diffusion_model.downsampling_factor, unit)


def facts_of(model: "LatentDiffusion") -> ModelFacts:
    """Return the properties of the model that requests are resolved with."""
    highest = getattr(getattr(model, "low_scale_model", None), "max_noise_level", 0)
    return ModelFacts(
        model.native_size, model.training_size, model.channels, model.downsampling_factor,
        model.defaults, highest, model.size_multiple,
    )  # fmt: skip


def _open_depth_network(model: "LatentDiffusion", config: Path, path: Path) -> None:
    from ldm.tasks.depth2img import load_depth_network

    load_depth_network(model, path, load_config(config).model.params.get("depth_stage_config"))


def demo_files(name: str = "emoji") -> tuple[Path, Path]:
    """Return the paths of a demo model's YAML and weights."""
    config, checkpoint = f"{DEMO}/{name}.yaml", f"{DEMO}/{name}.safetensors"
    try:
        return find_config(config), find_config(checkpoint)
    except ConfigError as error:
        raise CheckpointError(
            f"no --ckpt given, and the demo model ({config}, {checkpoint}) is missing; give --ckpt FILE"
        ) from error


def _refuse_without_weights(request: Request) -> None:
    """Raise InputError for options that describe weights if no weights are given."""
    fields = fields_of(type(request))
    for name in ("config", "sha256", "prediction", "weights"):
        if (value := getattr(request, name)) != fields[name].default:
            raise InputError(
                f"{fields[name].flag} {value} requires --ckpt FILE; without both, the demo model is used"
            )


def hint_at_size(request: Request, opened: OpenedModel) -> None:
    """Log a hint if the size is far from the training size of the weights, in pixels or aspect ratio.

    Images that are much larger repeat their subject; a first pass at about the training size prevents it.
    """
    height, width, trained = request.height, request.width, opened.facts.training_size
    if not opened.knows_size:
        return
    area, aspect = height * width / trained**2, max(height, width) / min(height, width)
    if 0.5 <= area <= 1.6 and aspect <= 2:
        return
    advice = f"try --H {trained} --W {trained}"
    if hasattr(request, "hires") and area > 1.6:
        from ldm.tasks.hires import first_pass

        if passes := first_pass(height, width, trained, opened.model.size_multiple):
            advice = "try --H {} --W {} --hires {:g}".format(*passes)
    asked, known = f"{width}x{height}", f"{trained}x{trained}"
    log.info("%s is far from %s, the training size of this model: %s", asked, known, advice)
