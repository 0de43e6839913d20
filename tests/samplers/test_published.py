"""The reference sampler classes as third-party code calls them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gaussian_data import SCHEDULE, exact, network
from ldm.errors import InputError
from ldm.samplers.published import DDIMSampler, DPMSolverSampler, PLMSSampler

ALL = pytest.mark.parametrize("cls", [DDIMSampler, PLMSSampler, DPMSolverSampler])
SHAPE = (3, 4, 4)


def model(parameterization: str = "eps", apply_model=None, **more) -> SimpleNamespace:
    """The least that a third-party model has: no class of ours."""
    buffers = SCHEDULE.published_buffers()
    return SimpleNamespace(
        apply_model=apply_model or network(parameterization),
        parameterization=parameterization,
        betas=buffers["betas"],
        alphas_cumprod=buffers["alphas_cumprod"],
        num_timesteps=1000,
        device=torch.device("cpu"),
        **more,
    )


def shifted(x, t, cond):
    """A network that a conditioning of any form moves."""
    while not isinstance(cond, torch.Tensor):
        cond = cond["c_crossattn"] if isinstance(cond, dict) else cond[0]
    return network("eps")(x, t) + cond.view(-1, 1, 1, 1) / 10


@ALL
@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
def test_the_exact_image_comes_out(cls, parameterization: str):
    x_T = torch.randn(2, *SHAPE, dtype=torch.float64)
    sampler = cls(model(parameterization))
    samples, intermediates = sampler.sample(100, 2, SHAPE, x_T=x_T, log_every_t=10)
    top = 999 if cls is DPMSolverSampler else 991
    assert (samples - exact(x_T, top, 0)).abs().max() < 0.05
    assert intermediates.keys() == {"x_inter", "pred_x0"}
    assert torch.equal(intermediates["x_inter"][0], x_T) and torch.equal(intermediates["pred_x0"][0], x_T)
    assert len(intermediates["x_inter"]) == len(intermediates["pred_x0"]) == 12
    assert torch.equal(intermediates["x_inter"][-1], samples)


@ALL
def test_the_same_seed_gives_the_same_samples_and_draws_x_T_first(cls):
    def run(**more):
        torch.manual_seed(5)
        return cls(model()).sample(5, 2, SHAPE, **more)[0]

    torch.manual_seed(5)
    x_T = torch.randn(2, *SHAPE)
    assert torch.equal(run(), run())
    torch.testing.assert_close(run(), run(x_T=x_T))


@ALL
def test_every_form_of_conditioning_guides_alike(cls):
    c, u = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.5])
    x_T = torch.randn(2, *SHAPE)

    def run(cond, uncond):
        options = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": uncond}
        return cls(model(apply_model=shifted)).sample(4, 2, SHAPE, cond, x_T=x_T, **options)[0]

    plain = cls(model(apply_model=shifted)).sample(4, 2, SHAPE, u + 3 * (c - u), x_T=x_T)[0]
    for cond, uncond in ((c, u), ([c], [u]), ({"c_crossattn": [c]}, {"c_crossattn": [u]})):
        torch.testing.assert_close(run(cond, uncond), plain)


@ALL
def test_each_step_can_have_its_own_guidance_scale(cls):
    seen = []

    def spied(x, t, cond):
        seen.append(len(x))
        return shifted(x, t, cond)

    c, u = torch.ones(1), torch.zeros(1)
    options = {"unconditional_conditioning": u, "ucg_schedule": [1.0, 5.0, 1.0, 5.0]}
    cls(model(apply_model=spied)).sample(4, 1, SHAPE, c, **options)
    assert seen == ([1] if cls is PLMSSampler else []) + [1, 2, 1, 2]


@ALL
def test_callbacks_see_every_step(cls):
    steps, images = [], []
    samples, _ = cls(model()).sample(
        4, 1, SHAPE, callback=steps.append, img_callback=lambda x_0, i: images.append((i, x_0.shape))
    )
    assert steps == [0, 1, 2, 3]
    assert images == [(i, samples.shape) for i in range(4)]


@ALL
def test_masks_keep_the_original(cls):
    x0, mask = torch.randn(1, *SHAPE), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    samples, _ = cls(model()).sample(50, 1, SHAPE, mask=mask, x0=x0)
    # The last step's result is not masked again, so the kept part is near the original, not equal to it.
    kept, made = (samples - x0).abs().split(2, dim=-1)
    assert kept.mean() < 0.4 * made.mean()


@ALL
def test_x_0_can_be_quantized_and_thresholded(cls):
    codebook = SimpleNamespace(quantize=lambda x: (x.round(), None, None))
    _, kept = cls(model(first_stage_model=codebook)).sample(4, 1, SHAPE, quantize_x0=True, log_every_t=1)
    assert all(torch.equal(x, x.round()) for x in kept["pred_x0"][1:])
    _, kept = cls(model()).sample(4, 2, SHAPE, dynamic_threshold=0.1, log_every_t=1)
    for x_0 in kept["pred_x0"][1:]:
        assert x_0.square().mean((1, 2, 3)).sqrt().max() < 0.1001


@ALL
def test_a_score_corrector_changes_the_noise(cls):
    class Shift:
        def modify_score(self, model, eps, x, t, c, by):
            return eps + by

    x_T = torch.randn(1, *SHAPE)
    corrected, _ = cls(model()).sample(
        4, 1, SHAPE, x_T=x_T, score_corrector=Shift(), corrector_kwargs={"by": 0.25}
    )
    biased = model(apply_model=lambda x, t, c: network("eps")(x, t) + 0.25)
    torch.testing.assert_close(corrected, cls(biased).sample(4, 1, SHAPE, x_T=x_T)[0])


def test_the_table_is_readable_by_its_reference_names():
    sampler = DDIMSampler(model())
    sampler.make_schedule(ddim_num_steps=50, ddim_eta=1.0, verbose=False)
    assert isinstance(sampler.ddim_timesteps, np.ndarray)
    assert sampler.ddim_timesteps.tolist() == list(range(1, 1000, 20))
    assert sampler.ddim_alphas.dtype == sampler.ddim_sqrt_one_minus_alphas.dtype == torch.float32
    assert float(sampler.ddim_alphas[24]) == pytest.approx(0.30229566, abs=1e-7)
    assert float(sampler.ddim_alphas_prev[0]) == pytest.approx(0.99914998, abs=1e-7)
    assert float(sampler.ddim_sigmas[49]) == pytest.approx(0.45446329, abs=1e-7)
    torch.testing.assert_close(sampler.ddim_alphas + sampler.ddim_sqrt_one_minus_alphas**2, torch.ones(50))
    assert sampler.ddpm_num_timesteps == 1000


@pytest.mark.parametrize("cls", [DDIMSampler, PLMSSampler, DPMSolverSampler])
def test_encode_with_noise_and_decode(cls):
    x0, noise = torch.randn(2, 1, *SHAPE, dtype=torch.float64)
    sampler = cls(model())
    sampler.make_schedule(50)
    steps = []
    z = sampler.stochastic_encode(x0, torch.tensor([20]), noise=noise)
    decoded = sampler.decode(z, None, 20, callback=steps.append)
    assert steps == list(range(20))
    assert (decoded - exact(z, 20 * 20 - 20, 0)).abs().max() < 0.2
    every = sampler.stochastic_encode(x0, torch.tensor([99]), use_original_steps=True, noise=noise)
    alpha, sigma = SCHEDULE.alpha_sigma(torch.tensor([99]), x0)
    torch.testing.assert_close(every, alpha * x0 + sigma * noise, rtol=1e-6, atol=1e-6)
    assert sampler.decode(every, None, 100, use_original_steps=True).shape == x0.shape


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_inversion_and_back(parameterization: str):
    x0 = torch.randn(1, *SHAPE, dtype=torch.float64)
    sampler = DDIMSampler(model(parameterization))
    sampler.make_schedule(200, verbose=False)
    z, out = sampler.encode(x0, None, 150, return_intermediates=3)
    assert (z - exact(x0, 0, sampler.ddim_timesteps[149])).abs().max() < 0.1
    assert torch.equal(out["x_encoded"], z) and torch.equal(out["intermediates"][-1], z)
    assert out["intermediate_steps"] == [0, 50, 100, 148, 149]
    assert (sampler.decode(z, None, 150) - x0).abs().max() < 0.1
    z, _ = sampler.encode(x0, None, 100, use_original_steps=True)
    assert (z - exact(x0, 0, 99)).abs().max() < 0.02


def test_given_noise_is_used_in_order_and_must_suffice():
    draws = torch.randn(4, 1, *SHAPE)
    sampler = DDIMSampler(model())
    one, _ = sampler.sample(2, 1, SHAPE, eta=1.0, normals_sequence=list(draws[:3]))
    two, _ = sampler.sample(2, 1, SHAPE, eta=1.0, x_T=draws[0], normals_sequence=list(draws[1:3]))
    assert torch.equal(one, two)
    with pytest.raises(InputError, match="has only 2 tensors"):
        DDIMSampler(model()).sample(2, 1, SHAPE, normals_sequence=list(draws[:2]))
    with pytest.raises(InputError, match="normals_sequence holds"):
        DDIMSampler(model()).sample(2, 1, SHAPE, normals_sequence=list(draws[..., :2]))


C, U = torch.ones(2), torch.zeros(2)


@pytest.mark.parametrize(
    ("cls", "options", "text"),
    [
        (PLMSSampler, {"eta": 0.5}, "eta must be 0"),
        (DPMSolverSampler, {"eta": 0.5}, "eta must be 0"),
        (PLMSSampler, {"temperature": 0.5}, "adds none"),
        (DPMSolverSampler, {"noise_dropout": 0.5}, "adds none"),
        (DDIMSampler, {"mask": torch.ones(1)}, "a mask needs"),
        (DDIMSampler, {"conditioning": C[:1]}, "conditioning describes 1 samples: expected batch_size, 2"),
        (DDIMSampler, {"unconditional_conditioning": [U[:1]]}, "unconditional_conditioning describes 1"),
        (DDIMSampler, {"unconditional_guidance_scale": 2.0}, "needs unconditional_conditioning"),
        (DDIMSampler, {"ucg_schedule": [1.0], "unconditional_conditioning": U}, "one for each of 5 steps"),
        (DDIMSampler, {"ucg_schedule": [1.0] * 5}, "ucg_schedule needs"),
        (DDIMSampler, {"quantize_x0": True}, "codebook"),
        (DDIMSampler, {"corrector_kwargs": {"a": 1}}, "without a score_corrector"),
    ],
)
def test_what_cannot_be_honoured_is_one_clear_error(cls, options, text: str):
    with pytest.raises(InputError, match=text):
        cls(model()).sample(5, 2, SHAPE, **options)


def test_nothing_is_swallowed():
    with pytest.raises(TypeError, match="guidance"):
        DDIMSampler(model()).sample(5, 2, SHAPE, guidance=3.0)
    with pytest.raises(InputError, match="brings its own"):
        DDIMSampler(model(), schedule="cosine")
    with pytest.raises(InputError, match="call make_schedule"):
        DDIMSampler(model()).decode(torch.zeros(1, *SHAPE), None, 3)
    sampler = DDIMSampler(model())
    sampler.make_schedule(5, verbose=False)
    with pytest.raises(InputError, match="t_enc is 6"):
        sampler.encode(torch.zeros(1, *SHAPE), None, 6)
