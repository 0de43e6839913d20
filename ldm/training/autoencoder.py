"""Train the autoencoder (arXiv 2012.09841, eq. 5 to 7; arXiv 2112.10752, section 3.1).

    rec = |x - x_hat| + w_grad |Dx - Dx_hat| + w_perc P(x, x_hat)       D: differences of neighbouring pixels
    nll = rec / exp(logvar) + logvar
    L   = nll + w_kl KL(q(z|x) || N(0, 1)) + w_disc lambda g,    lambda = ||d nll|| / (||d g|| + 1e-4)

Sums over an image are divided by its number of values, all alike: reference weights keep their meaning, and
the size of the loss does not depend on the size of the image. Both optimizers use one pass of the
autoencoder: the discriminator sees the reconstruction from before the autoencoder's step. `disc_start` counts
optimizer steps of the autoencoder.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config import find_class
from ldm.errors import BackendUnavailable
from ldm.loading import load_part
from ldm.training.discriminator import PatchDiscriminator, adaptive_weight, discriminator_loss
from ldm.training.ema import LitEma
from ldm.training.exporting import export_config, export_weights
from ldm.training.module import TrainingModule, averaged, evaluating
from ldm.training.options import AutoencoderOptions, TrainOptions
from ldm.training.run_folder import Shown
from ldm.training.seeding import generator

log = logging.getLogger(__name__)

VALIDATED, SHOWN = 32, 8  # images in the figures, and in the grid


def gradient_difference(x: Tensor, y: Tensor) -> Tensor:
    """Return mean |Dx - Dy| over horizontal and vertical neighbours."""
    error = x - y
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def psnr(x: Tensor, y: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio, in dB, of images in [-1, 1]."""
    mse = (x.clamp(-1, 1) - y.clamp(-1, 1)).square().flatten(1).mean(1) / 4.0
    return float((-10.0 * mse.clamp(min=1e-10).log10()).mean())


class AutoencoderTraining(TrainingModule):
    """Autoencoder and, from `disc_start` on, a discriminator of patches.

    Args:
        model: ldm.models.autoencoder.AutoencoderKL.
    """

    exports_without_data = False  # the latents' scale is measured

    def __init__(self, model: nn.Module, train: TrainOptions, options: AutoencoderOptions) -> None:
        super().__init__(train)
        self.options = options
        self.autoencoder = model
        if options.ckpt:
            load_part(nn.ModuleDict({"first_stage_model": model}), options.ckpt)
        self.loss_parameters = nn.ParameterDict(
            {"logvar": nn.Parameter(torch.tensor(options.logvar_init), requires_grad=options.learn_logvar)}
        )
        self.discriminator = None
        if options.disc_start >= 0:
            self.discriminator = PatchDiscriminator(3, options.disc_channels, options.disc_num_layers)
        self.perceptual = None
        if options.perceptual_weight > 0:
            try:
                self.perceptual = find_class("demo.perceptual.PerceptualDistance").load()
            except BackendUnavailable as error:
                log.warning("no perceptual loss: %s", error)
        self.ema = LitEma(model, options.ema_decay) if options.ema_decay > 0 else None
        self.images_shown = VALIDATED + SHOWN
        self.images_at_export = options.scale_images // 2  # which are encoded only

    def compile_networks(self) -> None:
        self.autoencoder.compile()

    def groups(self) -> dict[str, nn.Module]:
        groups: dict[str, Any] = {"autoencoder": nn.ModuleList([self.autoencoder, self.loss_parameters])}
        return groups | ({"discriminator": self.discriminator} if self.discriminator is not None else {})

    def active_groups(self) -> list[str]:
        return ["autoencoder", "discriminator"] if self.adversarial else ["autoencoder"]

    def may_rest(self) -> dict[str, str]:
        if self.discriminator is None:
            return {}
        last = f"discriminator.{len(self.discriminator) - 1}.bias"
        return {
            last: "hinge pulls real patches up as hard as it pushes others down while all are in the margin"
        }

    @property
    def adversarial(self) -> bool:
        """Whether the discriminator takes part in this step."""
        return self.discriminator is not None and self.step >= self.options.disc_start

    def backward_losses(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["images"]
        reconstruction, posterior = self.autoencoder(images)
        with torch.autocast(self.device.type, enabled=False):
            reconstruction = reconstruction.float()
            nll, figures = self.nll(images, reconstruction)
            kl = posterior.kl().float().mean() / images[0].numel()
            loss = nll + self.options.kl_weight * kl
        if self.adversarial:
            loss = loss + self.generator_loss(nll, reconstruction, figures)
        self.loss_backward(loss)
        if self.adversarial:
            figures["disc_loss"] = self.discriminate(images, reconstruction.detach())
        return {"loss": loss.detach(), **figures, "kl": kl.detach() * images[0].numel()}

    def nll(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the reconstruction term, a mean over values, and its parts."""
        options = self.options
        pixel = (images - reconstruction).abs().mean()
        figures = {"l1": pixel.detach()}
        rec = options.pixel_weight * pixel
        if options.gradient_weight > 0:
            edges = gradient_difference(images, reconstruction)
            rec = rec + options.gradient_weight * edges
            figures["l1_gradient"] = edges.detach()
        if self.perceptual is not None and self.step % options.perceptual_every == 0:
            with self.autocast():
                distance = self.perceptual(*self.crop(images, reconstruction)).mean()
            rec = rec + options.perceptual_weight * distance
            figures["perceptual"] = distance.detach()
        logvar = self.loss_parameters["logvar"]
        return rec / logvar.exp() + logvar, figures

    def crop(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Cut the same random window out of both, where `perceptual_crop` asks for it."""
        side = self.options.perceptual_crop
        height, width = images.shape[2:]
        if not 0 < side < min(height, width):
            return images, reconstruction
        top = int(torch.randint(height - side + 1, ()))
        left = int(torch.randint(width - side + 1, ()))
        window = (..., slice(top, top + side), slice(left, left + side))
        return images[window], reconstruction[window]

    def generator_loss(self, nll: Tensor, reconstruction: Tensor, figures: dict[str, Any]) -> Tensor:
        """Return w_disc lambda g, with the discriminator's weights held fixed."""
        self.discriminator.requires_grad_(False)
        g = -self.discriminator(reconstruction).float().mean()
        weight = adaptive_weight(nll, g, self.autoencoder.last_layer)
        figures |= {"g_loss": g.detach(), "d_weight": weight}
        return self.options.disc_weight * self.options.disc_factor * weight * g

    def discriminate(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Add the discriminator's own gradient and return its loss."""
        self.discriminator.requires_grad_(True)
        real, fake = self.discriminator(images).float(), self.discriminator(reconstruction).float()
        loss = discriminator_loss(self.options.disc_loss, real, fake)
        self.loss_backward(self.options.disc_factor * loss)
        return loss.detach()

    def after_step(self) -> None:
        if self.ema is not None:
            self.ema(self.autoencoder)

    # Figures and images

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Return reconstructions from the posteriors' means, with EMA weights if there are any."""
        with evaluating(self.autoencoder), averaged(self.ema, self.autoencoder):
            return self.autoencoder(images.to(self.device), sample_posterior=False)[0].float()

    def evaluate(self, data: Any) -> dict[str, float]:
        images, _ = data.batch(generator(0, "validation"), VALIDATED)
        images = images.to(self.device)
        return {"val_psnr": psnr(images, self.reconstruct(images))}

    def sample(self, data: Any) -> Shown:
        images, _ = data.batch(generator(0, "samples"), SHOWN)
        images = images.to(self.device)
        pairs = torch.stack([images, self.reconstruct(images)], 1).flatten(0, 1)
        return Shown(pairs, ["image", "reconstruction"] * SHOWN, columns=SHOWN)

    @torch.no_grad()
    def latent_std(self, data: Any) -> float:
        """Return the standard deviation of unscaled latents; a diffusion model scales by 1 / std."""
        values = []
        with evaluating(self.autoencoder), averaged(self.ema, self.autoencoder):
            for index in range(max(1, self.options.scale_images // 32)):
                images, _ = data.batch(generator(0, "scale", index), min(32, self.options.scale_images))
                values.append(self.autoencoder.encode(images.to(self.device)).mode().float().flatten())
        return float(torch.cat(values).std())

    # State

    def trained_modules(self) -> dict[str, nn.Module | None]:
        networks = {"autoencoder": self.autoencoder, "discriminator": self.discriminator}
        return {**networks, "loss": self.loss_parameters, "ema": self.ema}

    def export(self, folder: Path, config: dict[str, Any], data: Any) -> Path:
        """Write the autoencoder alone, EMA weights if any; the metadata hold the latents' scale factor."""
        std = self.latent_std(data)
        with averaged(self.ema, self.autoencoder):
            tensors = {k: v for k, v in self.autoencoder.state_dict().items() if not k.startswith("loss.")}
            about = {
                "weights": "ema" if self.ema is not None else "raw",
                "steps": self.step,
                "scale_factor": round(1.0 / std, 5),
            }
            path = folder / "model.safetensors"
            export_weights(path, tensors, self.train_options.export_dtype, about)
        heading = (
            f"ldm.load_model({str(folder / 'model.yaml')!r}, {str(path)!r}); scale_factor {1.0 / std:.5f}"
        )
        export_config(folder / "model.yaml", config["model"], heading)
        return path
