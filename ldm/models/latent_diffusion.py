"""Diffusion in the latent space of an autoencoder (arXiv 2112.10752).

The object that samplers, tasks and third-party code hold: UNet, autoencoder and text encoder under their
LDM key names, and the noise schedule. It computes; it neither trains nor saves.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config import instantiate
from ldm.diffusion.cond import Cond, call_directly, total_residuals
from ldm.errors import ConfigError
from ldm.models.ddpm import DDPM
from ldm.models.gaussian import DiagonalGaussianDistribution

PARAMETERIZATIONS = ("eps", "v", "x0")

# conditioning key -> the parts of a Cond that the UNet reads
CONDITIONING_KEYS = {
    None: (),
    "concat": ("concat",),
    "crossattn": ("context",),
    "hybrid": ("concat", "context"),
    "adm": ("label",),
    "crossattn-adm": ("context", "label"),
    "hybrid-adm": ("concat", "context", "label"),
}
# part of a Cond -> its reference name
PUBLISHED_PARTS = {"context": "c_crossattn", "concat": "c_concat", "label": "c_adm"}


class DiffusionWrapper(nn.Module):
    """Hands each part of the conditioning to the UNet where its key says: channels, context or label.

    Attributes:
        call: how the UNet and its ControlNets are called; a backend puts its own function here.
    """

    def __init__(self, diffusion_model: nn.Module, conditioning_key: str | None) -> None:
        super().__init__()
        if conditioning_key not in CONDITIONING_KEYS:
            known = ", ".join(str(key) for key in CONDITIONING_KEYS)
            raise ConfigError(f"conditioning_key {conditioning_key!r}; expected one of {known}")
        self.diffusion_model = diffusion_model
        self.conditioning_key = conditioning_key
        self.call = call_directly

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond, control: list[Tensor] | None = None) -> Tensor:
        """Run the UNet.

        Args:
            control: what ControlNets add, see UNetModel.forward.

        Raises: ConfigError where a part is missing that the model's key names.
        """
        parts = {name: getattr(cond, name) for name in CONDITIONING_KEYS[self.conditioning_key]}
        for name, part in parts.items():
            if part is None:
                missing = f"{name} ({PUBLISHED_PARTS[name]}), which is missing"
                raise ConfigError(f"conditioning_key {self.conditioning_key!r} needs {missing}")
        if "concat" in parts:
            x_t = torch.cat([x_t, parts["concat"]], dim=1)
        more = {} if control is None else {"control": control}
        context, label = parts.get("context"), parts.get("label")
        return self.call(self.diffusion_model, x_t, t, context=context, y=label, **more)


class LatentDiffusion(DDPM):
    """Text-conditional latent diffusion.

    Args:
        unet_config, first_stage_config, cond_stage_config: the three networks, already built; the names are
            those of the reference files. cond_stage_config is None for an unconditional model.
        conditioning_key: how conditioning enters the UNet, a key of CONDITIONING_KEYS.
        parameterization: what the UNet predicts: "eps", "v" or "x0".
        beta_schedule, linear_start, linear_end, cosine_s, timesteps: see ldm.diffusion.schedule.make_betas.
        scale_factor: latents = scale_factor * what the encoder gives.
        image_size: latent side in training.
        channels: latent channels.
        v_posterior: see ldm.diffusion.schedule.Schedule.
        loss_type, l_simple_weight, original_elbo_weight, logvar_init: of `p_losses`.
    """

    def __init__(
        self,
        unet_config: nn.Module,
        first_stage_config: nn.Module,
        cond_stage_config: nn.Module | None = None,
        conditioning_key: str | None = None,
        parameterization: str = "eps",
        beta_schedule: str = "linear",
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        timesteps: int = 1000,
        scale_factor: float = 1.0,
        image_size: int = 256,
        channels: int = 3,
        use_ema: bool = True,
        v_posterior: float = 0.0,
        loss_type: str = "l2",
        l_simple_weight: float = 1.0,
        original_elbo_weight: float = 0.0,
        logvar_init: float = 0.0,
    ) -> None:
        super().__init__()
        if parameterization not in PARAMETERIZATIONS:
            expected = ", ".join(PARAMETERIZATIONS)
            raise ConfigError(f"parameterization {parameterization!r}; expected one of {expected}")
        if conditioning_key is None and cond_stage_config is not None:
            conditioning_key = "crossattn"      # the only key that text can enter by alone
        self.parameterization = parameterization
        self.scale_factor = scale_factor
        self.image_size = image_size
        self.channels = channels
        self.use_ema = use_ema                  # which set of weights loading prefers when a file holds both
        self.v_posterior = v_posterior
        self.register_schedule(None, beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        self.loss_type, self.logvar_init = loss_type, logvar_init
        self.l_simple_weight, self.original_elbo_weight = l_simple_weight, original_elbo_weight
        self.defaults: dict[str, dict[str, Any]] = {}   # options that its YAML recommends, for each task
        self.knows: str | None = None       # file with what it was trained on, see ldm.jobs.vocabulary
        self.trained_at: int | None = None              # side in pixels, where the weights are known to
        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.first_stage_model = first_stage_config
        self.cond_stage_model = cond_stage_config

    def materialise_buffers(self, device: torch.device | str) -> None:
        """Fill the schedule's buffers from its float64 values; a file's copies may be in half precision."""
        for name, buffer in self.schedule.published_buffers().items():
            setattr(self, name, buffer.to(device))

    @property
    def device(self) -> torch.device:
        return self.betas.device

    @property
    def native_size(self) -> int:
        """Side in pixels of the images that the model is made for."""
        return self.image_size * self.downsampling_factor

    @property
    def training_size(self) -> int:
        """Side in pixels of the images that the weights were trained on, as far as that is known."""
        return self.trained_at or self.native_size

    @property
    def downsampling_factor(self) -> int:
        """Pixels a latent side."""
        return self.first_stage_model.downsampling_factor

    @property
    def size_multiple(self) -> int:
        """Image sides, in pixels, must be multiples of this for the UNet's skips to fit: 64 for SD."""
        return self.downsampling_factor * self.model.diffusion_model.downsampling_factor

    def apply_model(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Run the UNet at `t` (b,) on x_t (b, c, h, w); returns its output in the model's parameterization.

        `cond` is a Cond, or anything that `as_cond` takes.
        """
        cond = self.as_cond(cond)
        control = total_residuals(x_t, t, cond, self.num_timesteps, self.model.call)
        return self.model(x_t, t, cond, control)

    def as_cond(self, cond: Any) -> Cond:
        """Return the Cond of a conditioning in the reference's form.

        Args:
            cond: a dict of c_concat, c_crossattn (lists, joined along channels or tokens) and c_adm; a tensor
                or list alone is the context, or the channels of a model whose key is "concat"; None is empty.
        """
        if isinstance(cond, Cond):
            return cond
        key = self.model.conditioning_key
        if not isinstance(cond, dict):
            cond = {"c_concat" if key == "concat" else "c_crossattn": cond}
        context, concat, label = (cond.get(name) for name in PUBLISHED_PARTS.values())
        if key == "adm":  # the reference wrapper reads the label from there
            return Cond(label=context[0] if isinstance(context, (list, tuple)) else context)
        return Cond(_joined(context), _joined(concat), label)

    def instantiate_cond_stage(self, config: Any) -> None:
        """Take the text encoder that a node {target, params} describes, with new weights and frozen.

        Raises: ConfigError.
        """
        self.cond_stage_model = instantiate(config, "cond_stage_config")
        if self.cond_stage_model is not None:
            self.cond_stage_model.eval().requires_grad_(False)

    def get_learned_conditioning(self, prompts: list[str]) -> Tensor:
        """Encode prompts to the context (b, n, width)."""
        if self.cond_stage_model is None:
            raise ConfigError("this model has no text encoder (cond_stage_config); it cannot take a prompt")
        return self.cond_stage_model(prompts)

    def get_unconditional_conditioning(self, batch_size: int, null_label: str = "") -> Tensor:
        """Encode `null_label` once and repeat it over the batch."""
        return self.get_learned_conditioning([null_label]).expand(batch_size, -1, -1)

    def unconditional(self, cond: Cond, context: Tensor) -> Cond:
        """Return guidance's other half of `cond`: the text is `context`; controls that act on it are left."""
        both = tuple(control for control in cond.controls if not control.is_conditional)
        return replace(cond, context=context, controls=both)

    def ema_scope(self, context: str | None = None) -> AbstractContextManager:
        """Change nothing: averaged or raw weights was decided in loading (`use_ema`).

        Reference scripts sample inside `with model.ema_scope():`; `context` is what theirs print.
        """
        return nullcontext()

    def encode_first_stage(self, images: Tensor) -> DiagonalGaussianDistribution:
        """Encode images (b, 3, H, W) in [-1, 1] to the distribution of their unscaled latents."""
        return self.first_stage_model.encode(images)

    def get_first_stage_encoding(
        self, posterior: DiagonalGaussianDistribution | Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Draw scaled latents from `posterior`; the noise comes from the CPU generator unless given."""
        z = posterior if isinstance(posterior, Tensor) else posterior.sample(noise)
        return self.scale_factor * z

    def decode_first_stage(self, latents: Tensor) -> Tensor:
        """Decode scaled latents (b, c, h, w) to images, about [-1, 1], not clamped."""
        return self.first_stage_model.decode(latents / self.scale_factor)

    def differentiable_decode_first_stage(self, z: Tensor) -> Tensor:
        """Return `decode_first_stage`, which has gradients as well, unlike the reference's."""
        return self.decode_first_stage(z)


class LatentFinetuneDiffusion(LatentDiffusion):
    """Latent diffusion whose UNet takes more channels than the latents have; what they hold, a subclass says.

    Reference models of this kind grew out of a text-to-image model by finetuning.
    """

    @staticmethod
    def hybrid(context: Tensor, concat: Tensor) -> Cond:
        """Return the conditioning of text (b, n, width) and channels (b or 1, c, h, w)."""
        return Cond(context, concat.expand(len(context), -1, -1, -1))


def _joined(part: Any) -> Tensor | None:
    """Return a part that may be a list: of channels, or of tokens."""
    if not isinstance(part, (list, tuple)):
        return part
    return part[0] if len(part) == 1 else torch.cat(part, dim=1)
