"""Train a ControlNet (arXiv 2302.05543) of a model: a copy of its UNet's encoder that follows a hint.

    L = mean w_t |target - UNet(x_t, t, text; control(x_t, hint, t, text))|^2

The model is locked: its encoder computes without gradients, which pass through its decoder to the ControlNet.
With `sd_locked: false` the decoder is trained as well. The ControlNet begins with zero convolutions, so
that the first step computes what the model computes alone.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.annotators import prepared
from ldm.checkpoint.controlnet import DIFFERENCE, encoder_of
from ldm.config import find_weights
from ldm.errors import ConfigError, InputError
from ldm.loading.controls import PREFIX, load_control
from ldm.models.controlnet import ControlNet
from ldm.training.building import Trained, device_of, precision_of
from ldm.training.diffusion import DiffusionTraining, load_parts
from ldm.training.exporting import export_config, export_weights
from ldm.training.extra_inputs import HintInput
from ldm.training.module import averaged
from ldm.training.options import ControlOptions
from ldm.training.run_folder import Shown
from ldm.training.seeding import generator


class ControlTraining(DiffusionTraining):
    """A ControlNet of a LatentDiffusion."""

    GROUP, PREFIX = "control", ""

    def make_extra_input(self) -> HintInput:
        options, model = self.options, self.diffusion
        if not options.ckpt:
            raise ConfigError("control.ckpt: missing; expected the complete model that is to be steered")
        if options.save == "difference" and not options.sd_locked:
            raise ConfigError("control.save=difference keeps the ControlNet alone; set control.save=full")
        is_pooled = False
        if options.control_ckpt:
            found = load_control(find_weights(options.control_ckpt), model)
            network, is_pooled = found.network, found.is_pooled
        else:
            unet = model.model.diffusion_model
            network = ControlNet.for_unet(unet, model.channels)
            copied = encoder_of(unet.state_dict(), model.channels)
            network.load_state_dict(network.state_dict() | copied)
        return HintInput(model, network, annotator_of(options), is_pooled)

    def make_trained(self) -> Trained:
        unet = None if self.options.sd_locked else self.diffusion.model.diffusion_model
        return Trained(self.extra_input.network, unet)

    def compile_networks(self) -> None:
        super().compile_networks()
        self.trained.control_model.compile()

    def prepare(self, data: Any, run_folder: Path, device: torch.device) -> Any:
        """As its base; the locked networks take the precision of the training where the device is a GPU."""
        data = super().prepare(data, run_folder, device)
        train = self.train_options
        if self.options.sd_locked and device_of(train).type != "cpu" and precision_of(train) != "float32":
            for part in (self.diffusion.model, self.diffusion.cond_stage_model):
                if part is not None:
                    part.to(torch.bfloat16)
        return data

    @torch.no_grad()
    def sample(self, data: Any) -> Shown | None:
        """Return rows of the hint, the target and what is drawn from fixed noise."""
        drawn = super().sample(data)
        if drawn is None:
            return None
        images, _, *given = data.batch(generator(0, "samples"), self.options.sample_count)
        hints = self.encode_extra(images, given[0] if given else {})
        columns = hints.to(drawn.images) / 127.5 - 1, images.to(drawn.images), drawn.images
        texts = [text for caption in drawn.captions for text in ("map", "target", caption)]
        return Shown(torch.stack(columns, 1).flatten(0, 1), texts, 3)

    def export(self, folder: Path, config: dict[str, Any], data: Any | None) -> Path:
        """Write the ControlNet alone, as a difference, or with the model, as `control.save` says."""
        path, options = folder / "model.safetensors", self.options
        if options.sd_locked and options.save != "control":  # it may have been kept in half precision
            load_parts(self.diffusion.float(), options)
        weights = "ema" if self.ema is not None else "raw"
        about = {"steps": self.step, "weights": weights, "sd.prediction": self.diffusion.parameterization}
        with averaged(self.ema, self.trained):
            tensors = {PREFIX + name: x for name, x in self.trained.control_model.state_dict().items()}
            if options.save == "difference":
                tensors = self._difference(tensors)
            elif options.save == "full":
                tensors = self.diffusion.state_dict() | tensors
                tensors["logvar"] = torch.zeros(self.diffusion.num_timesteps)
            export_weights(path, tensors, self.train_options.export_dtype, about)
        if options.save == "full":
            model = with_control(config["model"], self.diffusion, self.trained.control_model)
            heading = f"python scripts/controlnet.py --config {folder / 'model.yaml'} --ckpt {path}"
            export_config(folder / "model.yaml", model, f"{heading} --control KIND:FILE --prompt ...")
        return path

    def _difference(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the ControlNet minus the UNet's encoder, without the tensors that are equal in both."""
        base = encoder_of(self.diffusion.model.diffusion_model.state_dict(), self.diffusion.channels)
        found = {DIFFERENCE: torch.ones(())}
        for name, x in tensors.items():
            own = base.get(name.removeprefix(PREFIX))
            if own is None or not torch.equal(own, x):
                found[name] = x if own is None else x - own
        return found


def annotator_of(options: ControlOptions) -> Any:
    """Return what makes hints of images, or None. Raises: ConfigError."""
    if not options.annotator:
        return None
    from ldm.requests.control_unit import read_unit

    try:
        unit = read_unit(options.annotator)
        return prepared(unit.kind, unit.settings, weights=options.annotator_weights or None, device="cpu")
    except InputError as error:
        raise ConfigError(f"control.annotator {options.annotator!r}: {error}") from error


def with_control(config: dict[str, Any], model: nn.Module, control: nn.Module) -> dict[str, Any]:
    """Return the configuration of a model with its ControlNet."""
    settings = {k: v for k, v in control.settings.items() if v is not None} | {"hint_channels": 3}
    stage = {"target": "ldm.models.controlnet.ControlNet", "params": settings}
    params = {**config["params"], "scale_factor": model.scale_factor, "control_stage_config": stage}
    return {"target": "ldm.models.controlnet.ControlLDM", "params": params}
