"""Train the UNet of a latent diffusion model (arXiv 2112.10752, eq. 3; loss in ldm.diffusion.loss).

    z = scale * sample of the encoder's posterior,   x_t = alpha_t z + sigma_t eps,   t uniform over 0 .. N-1
    L = mean w_t |target - UNet(x_t, t, text)|^2

A conditional model (inpainting, depth, upscaling, unCLIP) is shown something more, its extra input:
ldm.training.extra_inputs. Autoencoder and text encoder are frozen. Trained weights are float32 whatever
`precision` says; the average of the weights (LitEma) moves once an optimizer step, is used for samples and
validation, and is what gets exported.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.extra_inputs import EXTRA_INPUTS
from ldm.diffusion.cond import Cond
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.loss import diffusion_loss, offset_noise
from ldm.diffusion.prediction import add_noise, denoiser
from ldm.errors import ConfigError
from ldm.loading import load_part
from ldm.models.latent_upscale import LatentUpscaleDiffusion
from ldm.samplers import make_sampler, sample_loop
from ldm.training.building import choose_trained
from ldm.training.cache import LatentCache, build_cache, fingerprint, load_cache, save_cache
from ldm.training.ema import LitEma
from ldm.training.exporting import export_config, export_weights
from ldm.training.extra_inputs import ExtraInput, extra_input_of
from ldm.training.module import TrainingModule, averaged, evaluating
from ldm.training.options import DiffusionOptions, TrainOptions
from ldm.training.run_folder import Shown
from ldm.training.seeding import generator

log = logging.getLogger(__name__)

SHOWN_LEVEL = 20  # of the noise on extra inputs, outside of training steps
VALIDATION_TIMES = (0.1, 0.35, 0.6, 0.85)  # fractions of N at which the held-out loss is measured


class DiffusionTraining(TrainingModule):
    """The UNet of a LatentDiffusion; everything else in it is frozen.

    Args:
        model: ldm.models.latent_diffusion.LatentDiffusion.

    Attributes:
        trained: the module that training changes; GROUP is its name in checkpoints, PREFIX that of its
            parameters in `only`.
    """

    GROUP, PREFIX = "unet", "model."

    def __init__(self, model: nn.Module, train: TrainOptions, options: DiffusionOptions) -> None:
        super().__init__(train)
        self.options = options
        self.diffusion = model
        model.requires_grad_(False).eval()
        load_parts(model, options)
        self.extra_input = self.make_extra_input()
        self.trained = self.make_trained()
        choose_trained(self.trained, self.PREFIX, options.only)
        if options.gradient_checkpointing:
            for module in (*model.model.modules(), *self.trained.modules()):
                if hasattr(module, "use_checkpoint"):
                    module.use_checkpoint = True
        self.ema = LitEma(self.trained, options.ema_decay) if options.ema_decay > 0 else None
        self.cache: LatentCache | None = None
        self.images_shown = 32 * len(VALIDATION_TIMES) + 2 * options.sample_steps * options.sample_count

    def make_extra_input(self) -> ExtraInput | None:
        """Return what the model is shown besides the text."""
        return extra_input_of(self.diffusion, self.options.embedding_dropout)

    def make_trained(self) -> nn.Module:
        """Return the module whose parameters are trained, all or some of them."""
        return self.diffusion.model

    def groups(self) -> dict[str, nn.Module]:
        return {self.GROUP: self.trained}

    def compile_networks(self) -> None:
        self.diffusion.model.diffusion_model.compile()

    def train(self, mode: bool = True) -> "DiffusionTraining":
        """Switch the UNet alone; the frozen networks stay in evaluation mode."""
        super().train(mode)
        self.diffusion.eval()
        self.trained.train(mode)
        return self

    # Data

    def prepare(self, data: Any, run_folder: Path, device: torch.device) -> Any:
        """Encode images and captions once, and measure the scale factor, where the options say so."""
        options = self.options
        if self.diffusion.cond_stage_model is not None and hasattr(data, "check_captions"):
            data.check_captions()
        if not options.cache_latents and not options.scale_by_std:
            return data
        self.to(device)
        count = options.cache_latents or 256
        cache = self.read_or_build_cache(data, count, run_folder / "cache.safetensors")
        if options.scale_by_std and self.step == 0:
            self.diffusion.scale_factor = 1.0 / cache.latent_std()
            log.info("scale_factor %.5f", self.diffusion.scale_factor)
        if not options.cache_latents:
            return data
        self.cache = cache
        if device.type != "cpu" and cache.contexts is not None:
            cache.contexts = cache.contexts.to(device)
        return cache

    def read_or_build_cache(self, data: Any, count: int, path: Path) -> LatentCache:
        """Return the cache of the run folder, made now if there is none from these data and weights."""
        model, options = self.diffusion, self.options
        texts = model.cond_stage_model is not None and options.cache_text_mb > 0
        about = [
            type(data).__name__,
            {k: v for k, v in vars(data).items() if isinstance(v, (str, int, float))},
        ]
        about += [count, self.train_options.seed, self.train_options.precision, type(model).__name__]
        about += [getattr(options, name, "") for name in ("annotator", "annotator_weights")]
        frozen = [model.cond_stage_model if texts else None, getattr(model, "embedder", None)]
        mark = fingerprint(about, model.first_stage_model, *(part for part in frozen if part is not None))
        cache = load_cache(path, mark)
        if cache is None:
            encode_text = self.encode_text if texts else None
            encode_extra = None if self.extra_input is None else self.encode_extra
            seed = self.train_options.seed
            cache = build_cache(
                data, count, self.encode_moments, encode_text, options.cache_text_mb, seed, encode_extra,
                self.hurried,
            )  # fmt: skip
            save_cache(cache, path, mark)
        return cache

    @torch.no_grad()
    def encode_moments(self, images: Tensor) -> Tensor:
        """Return mean and standard deviation (b, 2c, h, w) of the unscaled latents."""
        with self.autocast():
            posterior = self.diffusion.encode_first_stage(images.to(self.device))
        return torch.cat([posterior.mean.float(), posterior.std.float()], dim=1)

    @torch.no_grad()
    def encode_text(self, captions: list[str]) -> Tensor:
        """Return the encoded captions (b, tokens, width), float32."""
        with self.autocast():
            return self.diffusion.get_learned_conditioning(captions).float()

    @torch.no_grad()
    def encode_extra(self, images: Tensor, given: dict[str, Tensor]) -> Tensor:
        """Return the additional input made from images (b, 3, h, w) and the data's own: float32, or uint8."""
        with self.autocast():
            given = {name: x.to(self.device) for name, x in given.items()}
            found = self.extra_input.encode(images.to(self.device), given)
            return found.float() if found.is_floating_point() else found

    def conditioning(self, context: Tensor | None, extra: Tensor | None) -> Cond:
        """Return what the UNet is passed next to x_t and t; noise on the extra input is drawn again."""
        if self.extra_input is None:
            return Cond(context)
        return self.extra_input.condition(context, extra, self.noise)

    def extra_of(self, batch: dict[str, Any]) -> Tensor | None:
        """Return the extra inputs of a batch, cached or not."""
        if self.extra_input is None or "extra_input" in batch:
            return batch.get("extra_input")
        given = {name: x for name, x in batch.items() if name in EXTRA_INPUTS}
        return self.encode_extra(batch["images"], given)

    def latents(self, batch: dict[str, Any]) -> Tensor:
        """Return scaled latents (b, c, h, w), a fresh sample of each posterior."""
        moments = batch["images"] if self.cache is not None else self.encode_moments(batch["images"])
        mean, std = moments.chunk(2, dim=1)
        return self.diffusion.scale_factor * (mean + std * self.noise(mean))

    @staticmethod
    def noise(like: Tensor) -> Tensor:
        """Return normal numbers in an order that, unlike randn_like's, does not depend on the layout."""
        return torch.randn(like.shape, device=like.device)

    def context(self, captions: list[str]) -> Tensor | None:
        """Return the encoded captions (b, tokens, width)."""
        if self.diffusion.cond_stage_model is None:
            return None
        if self.cache is not None and self.cache.contexts is not None:
            return self.cache.context_of(captions).to(self.device).float()
        return self.encode_text(captions)

    # The step

    def backward_losses(self, batch: dict[str, Any]) -> dict[str, Any]:
        model, options = self.diffusion, self.options
        x_0 = self.latents(batch)
        dropped = torch.rand(len(x_0)) < options.text_dropout
        cond = self.context(
            [
                "" if drop else caption
                for drop, caption in zip(dropped.tolist(), batch["captions"], strict=True)
            ]
        )
        cond = self.conditioning(cond, self.extra_of(batch))
        t = torch.randint(model.num_timesteps, (len(x_0),), device=self.device)
        eps = self.noise(x_0)
        if options.offset_noise > 0:
            eps = offset_noise(eps, options.offset_noise)
        x_t = add_noise(model.schedule, x_0, eps, t)
        output = model.apply_model(x_t, t, cond)
        with torch.autocast(self.device.type, enabled=False):
            loss = diffusion_loss(
                model.schedule,
                model.parameterization,
                output,
                x_0,
                eps,
                t,
                loss_type=options.loss_type,
                min_snr_gamma=options.min_snr_gamma or None,
            )
        self.loss_backward(loss.total)
        return {"loss": loss.total.detach(), "loss_simple": loss.simple.detach()}

    def after_step(self) -> None:
        if self.ema is not None:
            self.ema(self.trained)

    # Figures and images

    @torch.no_grad()
    def evaluate(self, data: Any) -> dict[str, float]:
        """Return the loss of the EMA weights by noise level, on the same 32 images and noise always."""
        model = self.diffusion
        random = generator(0, "validation")
        images, captions, *given = data.batch(random, 32)
        mean, std = self.encode_moments(images).chunk(2, dim=1)
        x_0 = model.scale_factor * (mean + std * torch.randn(mean.shape, generator=random).to(mean))
        eps = torch.randn(mean.shape, generator=random).to(mean)
        cond = self.encode_text(captions) if model.cond_stage_model is not None else None
        cond = self.fixed_conditioning(cond, images, given)
        figures = {}
        with evaluating(self.trained), averaged(self.ema, self.trained):
            for fraction in VALIDATION_TIMES:
                if self.hurried():
                    return {}
                t = torch.full((len(x_0),), int(fraction * model.num_timesteps), device=self.device)
                output = model.apply_model(add_noise(model.schedule, x_0, eps, t), t, cond)
                loss = diffusion_loss(model.schedule, model.parameterization, output, x_0, eps, t)
                figures[f"val_loss_t{int(t[0])}"] = float(loss.simple)
        return {"val_loss": sum(figures.values()) / len(figures), **figures}

    def fixed_conditioning(self, context: Tensor | None, images: Tensor, given: list[dict]) -> Cond:
        """Return the conditioning of held-out images, with the same noise on the extra inputs always."""
        if self.extra_input is None:
            return Cond(context)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            extra = self.encode_extra(images, given[0] if given else {})
            return self.extra_input.condition(
                context, extra, lambda x: torch.randn(x.shape).to(x), SHOWN_LEVEL
            )

    @torch.no_grad()
    def sample(self, data: Any) -> Shown | None:
        """Return images of fixed prompts from fixed noise, by DDIM with the EMA weights."""
        model, options = self.diffusion, self.options
        if options.sample_count == 0:
            return None
        images, captions, *given = data.batch(generator(0, "samples"), options.sample_count)
        prompts = (options.sample_prompts * options.sample_count)[: options.sample_count] or captions
        side = model.image_size if self.extra_input is None else images.shape[-1] // model.downsampling_factor
        noise = torch.randn(len(prompts), model.channels, side, side, generator=generator(0, "sample noise"))
        cond, uncond = Cond(), None
        if model.cond_stage_model is not None:
            cond, uncond = self.encode_text(prompts), self.encode_text([""] * len(prompts))
            cond = self.fixed_conditioning(cond, images, given)
            uncond = model.unconditional(cond, uncond)
        denoise = denoiser(model.apply_model, model.schedule, model.parameterization)
        guided = ClassifierFreeGuidance(denoise, uncond, options.sample_scale)
        sampler = make_sampler("ddim", model.schedule, options.sample_steps)
        with evaluating(self.trained), averaged(self.ema, self.trained):
            x_t = noise.to(self.device)
            for step in sample_loop(sampler, guided, x_t, cond):
                if self.hurried():
                    return None
                x_t = step.x_t
        shown = prompts if model.cond_stage_model is not None else [""] * len(prompts)
        return Shown(model.decode_first_stage(x_t).float(), shown)

    # State

    def trained_modules(self) -> dict[str, nn.Module | None]:
        return {self.GROUP: self.trained, "ema": self.ema}

    def trained_state(self) -> dict[str, Any]:
        return {**super().trained_state(), "scale_factor": float(self.diffusion.scale_factor)}

    def load_trained_state(self, state: dict[str, Any]) -> None:
        super().load_trained_state(state)
        self.diffusion.scale_factor = state["scale_factor"]

    def trained_side(self, data: Any | None) -> int | None:
        """Return the side of the latents of the data, at which sampling is best; None where it is not theirs.

        An upscaling model is trained on crops.
        """
        if data is None or isinstance(self.diffusion, LatentUpscaleDiffusion):
            return None
        images = data.batch(generator(0, "size"), 1)[0]
        return images.shape[-1] // self.diffusion.downsampling_factor

    def export(self, folder: Path, config: dict[str, Any], data: Any | None) -> Path:
        """Write the complete model with LDM key names, with the EMA weights as the UNet's."""
        path = folder / "model.safetensors"
        scale_factor = round(float(self.diffusion.scale_factor), 5)
        about = {
            "weights": "ema" if self.ema is not None else "raw",
            "steps": self.step,
            "scale_factor": scale_factor,
            "sd.prediction": self.diffusion.parameterization,
        }
        with averaged(self.ema, self.trained):
            tensors = exported(self.diffusion)
            export_weights(path, tensors, self.train_options.export_dtype, about)
        params = {**config["model"]["params"], "scale_factor": scale_factor}
        params["image_size"] = self.trained_side(data) or self.diffusion.image_size
        model = {**config["model"], "params": params}
        script = "sample.py" if self.diffusion.cond_stage_model is None else "txt2img.py --prompt ..."
        heading = f"python scripts/{script} --config {folder / 'model.yaml'} --ckpt {path}"
        if self.extra_input is not None:
            heading = f"ldm.load_model({str(folder / 'model.yaml')!r}, {str(path)!r})"
        export_config(folder / "model.yaml", model, heading)
        return path


def exported(model: nn.Module) -> dict[str, Tensor]:
    """Return what a file of the model holds: not the loss, nor an image encoder's unused text part."""
    tensors = {k: v for k, v in model.state_dict().items() if ".loss." not in k}
    embedder, augmentor = (getattr(model, name, None) for name in ("embedder", "noise_augmentor"))
    if embedder is not None:
        for name in embedder.model.unused_parameters():
            del tensors[f"embedder.model.{name}"]
    if augmentor is not None:  # then a user needs no file of statistics
        tensors |= {f"noise_augmentor.{k}": getattr(augmentor, k) for k in augmentor.OPTIONAL_BUFFERS}
    return tensors


def load_parts(model: nn.Module, options: DiffusionOptions) -> None:
    """Load the weights that the options name.

    Raises:
        CheckpointError: a file does not fit its part.
        ConfigError: a complete checkpoint and parts of one.
    """
    if options.ckpt and (options.first_stage_ckpt or options.cond_stage_ckpt):
        raise ConfigError(
            "diffusion.ckpt is a complete checkpoint; leave first_stage_ckpt and cond_stage_ckpt out"
        )
    if options.ckpt:
        grown = {"grow_inputs": options.grow_inputs, "new_tensors": options.new_tensors}
        load_part(model, options.ckpt, "", **grown)
    elif options.grow_inputs or options.new_tensors:
        raise ConfigError("diffusion.grow_inputs and new_tensors are about diffusion.ckpt; give it")
    if options.cond_stage_ckpt and model.cond_stage_model is None:
        raise ConfigError("diffusion.cond_stage_ckpt: the model has no text encoder (cond_stage_config)")
    if options.embedder_ckpt:
        load_part(model, options.embedder_ckpt, "embedder.model")
    if options.first_stage_ckpt:
        load_part(model, options.first_stage_ckpt)
    if options.cond_stage_ckpt:
        load_part(model, options.cond_stage_ckpt, "cond_stage_model")
