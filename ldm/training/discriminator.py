"""A discriminator of patches (PatchGAN, arXiv 1611.07004, sec. 3.2.2) and its losses (arXiv 1705.02894).

hinge      L_D = (mean relu(1 - D(x)) + mean relu(1 + D(x_hat))) / 2
vanilla    L_D = (mean softplus(-D(x)) + mean softplus(D(x_hat))) / 2
generator  g   = -mean D(x_hat)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Sequential):
    """Image (b, 3, H, W) -> one logit a patch (b, 1, H/2^n - 2, W/2^n - 2), 70 pixels wide for n = 3."""

    def __init__(self, in_channels: int = 3, channels: int = 64, num_layers: int = 3) -> None:
        widths = [channels * min(2**level, 8) for level in range(num_layers + 1)]
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for level in range(1, num_layers + 1):
            stride = 2 if level < num_layers else 1
            layers += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[level]),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_initialise)


def _initialise(module: nn.Module) -> None:
    """Draw weights as the PatchGAN of the reference does."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def discriminator_loss(kind: str, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Return L_D for kind "hinge" or "vanilla"."""
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


def adaptive_weight(nll: Tensor, g: Tensor, last_layer: Tensor) -> Tensor:
    """Return ||d nll / d w|| / (||d g / d w|| + 1e-4), at most 1e4: balance at the decoder's last layer w."""
    nll_grad = torch.autograd.grad(nll, last_layer, retain_graph=True)[0]
    g_grad = torch.autograd.grad(g, last_layer, retain_graph=True)[0]
    return (nll_grad.norm() / (g_grad.norm() + 1e-4)).clamp(0.0, 1e4).detach()
