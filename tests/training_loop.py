"""Steps of a training method without Lightning's trainer, for tests."""

import math

import torch

from ldm.training.building import build_data
from ldm.training.fit import build_module
from ldm.training.options import resolve_config
from ldm.training.seeding import generator
from ldm.training.stream import BatchStream


class Loop:
    """Steps of a module without Lightning's trainer."""

    def __init__(self, config: dict, monkeypatch) -> None:
        self.config = config = resolve_config(config)
        self.module = build_module(config)
        self.data = build_data(config, "data")
        optimizers = [self.module.make_optimizer(name) for name in self.module.groups()]
        monkeypatch.setattr(
            self.module, "optimizer_of", lambda n: optimizers[list(self.module.groups()).index(n)]
        )
        monkeypatch.setattr(self.module, "manual_backward", lambda loss: loss.backward())
        monkeypatch.setattr(type(self.module), "global_rank", 0)
        monkeypatch.setattr(type(self.module), "trainer", type("OneProcess", (), {"world_size": 1})())
        options = self.module.train_options
        self.module.train()
        self.batches = iter(BatchStream(self.data, options.batch_size, options.accumulate, options.seed))

    def run(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps * self.module.train_options.accumulate):
            self.module.training_step(next(self.batches), 0)
            losses.append(float(self.module.metrics.get("loss", math.nan)))
        return losses


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def sharpen(loop: Loop) -> None:
    """Make the untrained encoder's posterior narrow and of unit scale, so that latents are no mere noise."""
    encoder = loop.module.diffusion.first_stage_model
    with torch.no_grad():
        encoder.quant_conv.bias[4:] -= 20.0
    images = loop.data.batch(generator(0), 4)[0]
    loop.module.diffusion.scale_factor = 1.0 / float(loop.module.encode_moments(images)[:, :4].std())
