"""Each method learns what it should, and nothing else moves."""

import math
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file
from training_loop import Loop, changed, sharpen, weights

from demo.clip_training import contrastive_loss, retrieval
from ldm.errors import CheckpointError
from ldm.models.attention import BasicTransformerBlock
from ldm.models.unet import ResBlock
from ldm.training.cache import LatentCache
from ldm.training.discriminator import PatchDiscriminator, adaptive_weight, discriminator_loss
from ldm.training.fit import build_module
from ldm.training.options import resolve_config
from ldm.training.seeding import generator


def one_image(config: dict) -> dict:
    config["data"]["params"]["count"] = 1
    return config


@pytest.mark.slow
def test_the_autoencoder_overfits_one_image(config, monkeypatch):
    loop = Loop(one_image(config("autoencoder", {"gradient_weight": 1.0}, learning_rate=5e-3)), monkeypatch)
    losses = loop.run(60)
    assert losses[-1] < 0.3 * losses[0]
    assert loop.module.evaluate(loop.data)["val_psnr"] > 15
    assert loop.module.sample(loop.data).images.shape == (16, 3, 16, 16)


def test_the_discriminator_joins_at_disc_start(config, monkeypatch):
    loop = Loop(
        config("autoencoder", {"disc_start": 2, "disc_channels": 8, "disc_num_layers": 1}), monkeypatch
    )
    before = weights(loop.module.discriminator)
    loop.run(2)
    assert changed(before, loop.module.discriminator) == set()
    loop.run(2)
    assert changed(before, loop.module.discriminator) >= {"0.weight", "2.weight", "5.weight"}
    assert all(p.requires_grad for p in loop.module.discriminator.parameters())
    assert {"g_loss", "d_weight", "disc_loss", "kl", "l1"} <= loop.module.metrics.keys()


def test_the_generator_step_gives_the_discriminator_no_gradient(config, monkeypatch):
    """Its only gradient is that of its own loss."""
    loop = Loop(
        config("autoencoder", {"disc_start": 0, "disc_channels": 8, "disc_num_layers": 1}), monkeypatch
    )
    module, batch = loop.module, next(loop.batches)
    torch.manual_seed(3)
    module.backward_losses(batch)
    together = [p.grad.clone() for p in module.discriminator.parameters()]
    module.zero_grad()
    torch.manual_seed(3)
    with torch.no_grad():
        reconstruction, _ = module.autoencoder(batch["images"])
    module.discriminate(batch["images"], reconstruction)
    for alone, both in zip(module.discriminator.parameters(), together, strict=True):
        torch.testing.assert_close(alone.grad, both)


def test_discriminator_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert float(discriminator_loss("hinge", real, fake)) == pytest.approx(0.5 * (0.5 + 1.0))
    softplus = [math.log1p(math.exp(x)) for x in (-2.0, 0.0, -3.0, 1.0)]
    assert float(discriminator_loss("vanilla", real, fake)) == pytest.approx(0.25 * sum(softplus))
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    assert float(adaptive_weight(w.square().sum(), 2 * w.sum(), w)) == pytest.approx(10 / (8**0.5 + 1e-4))
    assert PatchDiscriminator()(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 6, 6)


@pytest.mark.slow
def test_the_unet_overfits_one_image_and_nothing_else_moves(config, monkeypatch):
    made = one_image(config("diffusion", {"ema_decay": 0.9, "text_dropout": 0.0}, learning_rate=3e-3))
    loop = Loop(made, monkeypatch)
    sharpen(loop)
    before = weights(loop.module.diffusion)
    losses = loop.run(80)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    moved = changed(before, loop.module.diffusion)
    assert moved == {
        name for name, _ in loop.module.diffusion.named_parameters() if name.startswith("model.")
    }
    assert loop.module.evaluate(loop.data)["val_loss"] < 0.7
    raw = weights(loop.module.diffusion)
    assert loop.module.sample(loop.data).images.shape == (16, 3, 16, 16)
    assert changed(raw, loop.module.diffusion) == set(), (
        "sampling with averaged weights must put the raw ones back"
    )


def count_calls(unet: torch.nn.Module) -> Counter:
    """Return a counter that goes on counting how often blocks of either kind begin."""
    seen = Counter()

    def watch(layer: torch.nn.Module, kind: str) -> None:
        layer.register_forward_hook(lambda *_: seen.update([kind]))

    for block in unet.modules():
        if isinstance(block, ResBlock):
            watch(block.in_layers[0], "residual")
        elif isinstance(block, BasicTransformerBlock):
            watch(block.norm1, "transformer")
    return seen


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_checkpointing_gives_equal_gradients(config, monkeypatch, parameterization):
    gradients, calls = [], []
    for recompute in (False, True):
        made = config("diffusion", {"gradient_checkpointing": recompute, "min_snr_gamma": 5.0})
        made["model"]["params"]["parameterization"] = parameterization
        loop = Loop(made, monkeypatch)
        for p in loop.module.diffusion.model.parameters():  # no zero layers, or there is nothing to compare
            p.data.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        seen = count_calls(loop.module.diffusion.model)
        torch.manual_seed(7)
        loop.module.backward_losses(next(loop.batches))
        gradients.append([p.grad for p in loop.module.diffusion.model.parameters()])
        calls.append(seen)
    assert calls[0].keys() == {"residual", "transformer"}
    assert calls[1] == {kind: 2 * count for kind, count in calls[0].items()}, "each runs again backwards"
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-8)


def test_micro_batches_add_up(config, monkeypatch):
    """Two micro-batches of 2 give the mean of their gradients."""
    loop = Loop(config("diffusion", batch_size=2, accumulate=2, grad_clip=0.0), monkeypatch)
    module = loop.module
    parameter = dict(module.named_group("unet"))["unet.diffusion_model.out.2.bias"]
    separate = []
    for _ in range(2):
        module.training_step(next(loop.batches), 0)
        if module.step == 0:
            separate.append(parameter.grad.clone())
    assert module.step == 1 and parameter.grad is None
    assert separate[0].abs().sum() > 0


def test_text_dropout_gives_the_empty_caption(config, monkeypatch):
    loop = Loop(config("diffusion", {"text_dropout": 1.0}), monkeypatch)
    asked = []
    encode = loop.module.encode_text
    monkeypatch.setattr(
        loop.module, "encode_text", lambda captions: asked.append(captions) or encode(captions)
    )
    loop.module.backward_losses(next(loop.batches))
    assert asked == [[""] * 4]


def test_the_cache_holds_what_the_encoders_say(config, monkeypatch, tmp_path):
    loop = Loop(config("diffusion", {"cache_latents": 40, "scale_by_std": True}), monkeypatch)
    module = loop.module
    cache = module.prepare(loop.data, tmp_path, torch.device("cpu"))
    moments, captions = cache.batch(generator(1), 16)
    images, expected_captions = loop.data.batch(generator(0, "cache", 0), 32)
    expected = module.encode_moments(images)
    torch.testing.assert_close(cache.moments[:32].float(), expected, rtol=1e-3, atol=1e-3)
    assert cache.captions[:32] == expected_captions and "" in cache.texts
    torch.testing.assert_close(
        cache.context_of(captions).float(), module.encode_text(captions), rtol=1e-2, atol=2e-3
    )
    latents = module.diffusion.scale_factor * (moments[:, :4] + moments[:, 4:] * torch.randn(16, 4, 8, 8))
    assert float(latents.std()) == pytest.approx(1.0, abs=0.15)
    again = module.read_or_build_cache(loop.data, 40, tmp_path / "cache.safetensors")
    assert torch.equal(again.moments, cache.moments) and again.captions == cache.captions
    with torch.no_grad():
        next(module.diffusion.first_stage_model.parameters()).add_(0.1)
    other = module.read_or_build_cache(loop.data, 40, tmp_path / "cache.safetensors")
    assert not torch.equal(other.moments, cache.moments), "a cache of other weights must not be used"


def test_latent_std_is_that_of_samples():
    moments = torch.cat([torch.randn(500, 4, 8, 8) * 3 + 1, torch.full((500, 4, 8, 8), 2.0)], dim=1)
    cache = LatentCache(moments.half(), [""] * 500, None, [""])
    assert cache.latent_std() == pytest.approx((3**2 + 2**2) ** 0.5, rel=0.02)


@pytest.mark.slow
def test_clip_learns_its_captions(config, monkeypatch):
    loop = Loop(config("clip", {"retrieval_count": 32}, batch_size=16, learning_rate=3e-3), monkeypatch)
    losses = loop.run(60)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert loop.module.evaluate(loop.data)["val_recall_at_5"] > 0.5, "5 of 30 captions at random are 0.17"
    assert loop.module.clip.logit_scale.item() <= math.log(100.0) + 1e-6
    assert loop.module.sample(loop.data).images.shape == (64, 3, 16, 16)


def test_a_clip_goes_on_from_its_file_and_refuses_another(config, tmp_path):
    first = build_module(resolve_config(config("clip", seed=1)))
    file = tmp_path / "clip.safetensors"
    save_file(first.clip.state_dict(), file)
    second = build_module(resolve_config(config("clip", {"ckpt": str(file)}, seed=2)))
    assert changed(weights(first.clip), second.clip) == set()
    save_file({"visual.proj": torch.zeros(2, 2)}, file)
    with pytest.raises(CheckpointError, match=r"clip\.safetensors does not fit CLIPModel"):
        build_module(resolve_config(config("clip", {"ckpt": str(file)})))


def test_contrastive_loss_by_hand():
    features = torch.eye(3)
    distinct = torch.eye(3, dtype=torch.bool)
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert float(contrastive_loss(features, features, torch.tensor(2.0), distinct)) == pytest.approx(expected)
    same = torch.ones(3, 3, dtype=torch.bool)  # all captions equal: guessing evenly is the best one can do
    flat = torch.ones(3, 3) / 3**0.5
    assert float(contrastive_loss(flat, flat, torch.tensor(2.0), same)) == pytest.approx(math.log(3))


def test_retrieval_by_hand():
    images, texts = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    assert retrieval(images, texts, torch.tensor([1, 0, 2]), 1) == 1.0
    assert retrieval(images, texts, torch.tensor([0, 0, 2]), 1) == pytest.approx(2 / 3)
    assert retrieval(images, texts, torch.tensor([0, 1, 2]), 3) == 1.0
