"""The diagonal normal distribution that the encoder returns for each image.

    q(z|x) = N(mean, diag(exp(logvar)))                       (arXiv 1312.6114, section 3)
    KL(q || N(0,1)) = 1/2 sum(mean^2 + var - 1 - logvar)      (arXiv 1312.6114, appendix B)
"""

import math

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """Normal distribution from (b, 2c, h, w): the mean, then the log variance, clamped to [-30, 20]."""

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.zeros_like(self.mean) if deterministic else torch.exp(0.5 * self.logvar)
        self.var = torch.zeros_like(self.mean) if deterministic else torch.exp(self.logvar)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Return mean + std * noise; without `noise` it is drawn from the CPU's default generator."""
        if noise is None:
            noise = torch.randn(self.mean.shape)
        return self.mean + self.std * noise.to(self.mean)

    def mode(self) -> Tensor:
        return self.mean

    def kl(self, other: "DiagonalGaussianDistribution | None" = None) -> Tensor:
        """Return the KL divergence from `other`, or from the standard normal, as (b,), in nats."""
        if self.deterministic:
            return torch.zeros(1)
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            distance = (self.mean - other.mean).square() / other.var
            terms = distance + self.var / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: tuple[int, ...] = (1, 2, 3)) -> Tensor:
        """Return the negative log likelihood of `sample`, summed over `dims`, in nats."""
        if self.deterministic:
            return torch.zeros(1)
        terms = math.log(2.0 * math.pi) + self.logvar + (sample - self.mean).square() / self.var
        return 0.5 * terms.sum(dim=dims)
