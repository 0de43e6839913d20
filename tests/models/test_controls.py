"""ControlNets with models of every kind: one or several, under guidance and in tiles."""

import pytest
import torch
from tiny_models import WIDTH, tiny_config, tiny_model
from torch import Tensor, nn

from ldm.diffusion.cond import Cond, Control
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import denoiser
from ldm.models.controlnet import ControlledUnetModel
from ldm.models.unet import UNetModel
from ldm.tasks.tiles import Tiling, tiled

pytestmark = pytest.mark.usefixtures("no_gradients")

T = torch.tensor([10, 900])


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """Return tiny models by task and seed."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def build(task: str, seed: int = 0) -> nn.Module:
        if (task, seed) not in made:
            made[task, seed] = tiny_model(tiny_config(task, folder), seed)
        return made[task, seed]

    return build


@pytest.fixture
def networks(model_of) -> list[nn.Module]:
    """Return two ControlNets."""
    return [model_of("controlnet", seed).control_model for seed in (0, 1)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X_T, CONTEXT, EMPTY = normal(2, 4, 8, 8), normal(2, 5, WIDTH, seed=1), normal(2, 5, WIDTH, seed=2)
HINTS = [torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]
CONDS = {
    "sd2-v": Cond(CONTEXT),
    "inpaint": Cond(CONTEXT, normal(2, 5, 8, 8, seed=5)),
    "unclip-l": Cond(CONTEXT, label=normal(2, 2 * WIDTH, seed=6)),
    "upscale": Cond(CONTEXT, normal(2, 3, 8, 8, seed=7), torch.tensor([20, 20])),
}


def with_controls(cond: Cond, *controls: Control) -> Cond:
    return Cond(cond.context, cond.concat, cond.label, controls)


def published(unet: UNetModel, x: Tensor, t: Tensor, cond: Cond, residuals: list[Tensor]) -> Tensor:
    """Add to the middle and the skips, by hand."""
    if cond.concat is not None:
        x = torch.cat([x, cond.concat], dim=1)
    emb = unet.embed(x, t, cond.label)
    h, skips = unet.encode(x, emb, cond.context)
    skips = [skip + r for skip, r in zip(skips, residuals[:-1], strict=True)]
    return unet.decode(h + residuals[-1], skips, emb, cond.context)


def test_one_control_is_a_controlled_model_to_the_bit(model_of):
    theirs = model_of("controlnet")
    plain = model_of("sd1")
    unet, network = theirs.model.diffusion_model, theirs.control_model
    own = {"c_crossattn": [CONTEXT], "c_concat": [HINTS[0]]}
    residuals = network(X_T, hint=HINTS[0], timesteps=T, context=CONTEXT)
    expected = published(unet, X_T, T, Cond(CONTEXT), residuals)
    assert torch.equal(theirs.apply_model(X_T, T, own), expected)
    plain.model.diffusion_model.load_state_dict(unet.state_dict())
    controlled = Cond(CONTEXT, controls=(Control(network, HINTS[0]),))
    assert torch.equal(plain.apply_model(X_T, T, controlled), expected)
    uncontrolled = theirs.apply_model(X_T, T, own | {"c_concat": None})
    assert torch.equal(uncontrolled, plain.apply_model(X_T, T, CONTEXT))
    assert (uncontrolled - expected).abs().max() > 0.01


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", CONDS)
def test_two_controls_are_the_sum_of_their_residuals_whatever_the_model(model_of, networks, kind):
    model, cond = model_of(kind), CONDS[kind]
    controls = [Control(network, hint, 0.6) for network, hint in zip(networks, HINTS, strict=True)]
    each = [network(X_T, hint, T, CONTEXT) for network, hint in zip(networks, HINTS, strict=True)]
    total = [0.6 * a + 0.6 * b for a, b in zip(*each, strict=True)]
    expected = published(model.model.diffusion_model, X_T, T, cond, total)
    got = model.apply_model(X_T, T, with_controls(cond, *controls))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for fewer in ((), controls[:1], controls[1:]):
        assert (model.apply_model(X_T, T, with_controls(cond, *fewer)) - got).abs().max() > 0.01


def guided(model, cond: Cond, scale: float):
    denoise = denoiser(model.apply_model, model.schedule, model.parameterization)
    return denoise, ClassifierFreeGuidance(denoise, model.unconditional(cond, EMPTY), scale)


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", ["sd2-v", "inpaint", "unclip-l"])
@pytest.mark.parametrize("guess", [False, True])
def test_under_guidance_both_halves_are_controlled_and_in_guess_mode_one(model_of, networks, kind, guess):
    model = model_of(kind)
    controls = (Control(networks[0], HINTS[0]), Control(networks[1], HINTS[1], guess=guess))
    cond = with_controls(CONDS[kind], *controls)
    uncond = model.unconditional(cond, EMPTY)
    assert len(uncond.controls) == (1 if guess else 2)
    denoise, guide = guided(model, cond, 3.0)
    c, u = denoise(X_T, T, cond), denoise(X_T, T, uncond)
    got = guide(X_T, T, cond)
    torch.testing.assert_close(got.eps, u.eps + 3 * (c.eps - u.eps), rtol=1e-4, atol=1e-4)
    if kind == "unclip-l":
        assert not uncond.label.any()


def test_guess_mode_of_the_published_dict_is_that_of_a_control(model_of):
    from ldm.samplers.published import DDIMSampler

    theirs, plain = model_of("controlnet"), model_of("sd1")
    plain.model.diffusion_model.load_state_dict(theirs.model.diffusion_model.state_dict())
    theirs.set_control_strength(0.8, guess_mode=True)
    options = {"x_T": X_T, "unconditional_guidance_scale": 4.0, "verbose": False}
    cond = {"c_crossattn": [CONTEXT], "c_concat": [HINTS[0]]}
    uncond = {"c_crossattn": [EMPTY], "c_concat": None}
    expected, _ = DDIMSampler(theirs).sample(
        3, 2, (4, 8, 8), cond, unconditional_conditioning=uncond, **options
    )
    cond = Cond(CONTEXT, controls=(Control(theirs.control_model, HINTS[0], 0.8, guess=True),))
    uncond = plain.unconditional(cond, EMPTY)
    got, _ = DDIMSampler(plain).sample(3, 2, (4, 8, 8), cond, unconditional_conditioning=uncond, **options)
    theirs.set_control_strength(1.0)
    assert torch.equal(got, expected)


def test_an_interval_is_of_training_times(model_of, networks):
    model, cond = model_of("inpaint"), CONDS["inpaint"]
    late = with_controls(cond, Control(networks[0], HINTS[0], interval=(0.5, 1.0)))
    always = with_controls(cond, Control(networks[0], HINTS[0]))
    got, with_it, without = (model.apply_model(X_T, T, c) for c in (late, always, cond))
    assert not torch.allclose(with_it, without, atol=1e-3)
    torch.testing.assert_close(got, torch.stack([without[0], with_it[1]]))  # times 10 and 900
    early = torch.tensor([10, 499])
    assert torch.equal(model.apply_model(X_T, early, late), model.apply_model(X_T, early, cond))


def test_in_tiles_each_sees_its_own_part_of_the_hint(model_of, networks):
    model = model_of("inpaint")
    x_t, hint = normal(1, 4, 16, 24), torch.rand(1, 3, 128, 192)
    cond = Cond(CONTEXT[:1], normal(1, 5, 16, 24, seed=8), controls=(Control(networks[0], hint),))
    seen = []

    def spied(x, t, c):
        seen.append(c)
        return model.apply_model(x, t, c)

    out = tiled(spied, Tiling(16, 0, one_by_one=True), 4)(x_t, T[1:], cond)
    left, right = seen
    assert torch.equal(left.controls[0].hint, hint[..., :128])
    assert torch.equal(right.controls[0].hint, hint[..., 64:])
    part = model.apply_model(x_t[..., :16], T[1:], cond.cropped((16, 24), slice(0, 16), slice(0, 16)))
    torch.testing.assert_close(out[..., :8], part[..., :8])


def test_the_published_class_of_unet_is_any_unet():
    assert ControlledUnetModel is UNetModel
