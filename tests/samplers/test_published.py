"""The reference sampler classes as third-party code calls them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gaussian_data import SCHEDULE, exact, network
from ldm.errors import InputError
from ldm.samplers.published import ControlDDIMSampler, DDIMSampler, DPMSolverSampler, PLMSSampler

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
    buffers = SCHEDULE.published_buffers()
    for name in ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
                 "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod",
                 "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"):  # fmt: skip
        torch.testing.assert_close(getattr(sampler, name), buffers[name], rtol=1e-4, atol=1e-6)
    abar, prev = sampler.alphas_cumprod.double(), sampler.alphas_cumprod_prev.double()
    sigmas = ((1 - prev) / (1 - abar) * (1 - abar / prev)).sqrt().float()
    torch.testing.assert_close(sampler.ddim_sigmas_for_original_num_steps, sigmas, rtol=1e-3, atol=1e-5)


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
    z, out = sampler.encode(x0, None, 150, return_intermediates=3, times="before")
    assert (z - exact(x0, 0, sampler.ddim_timesteps[149])).abs().max() < 0.1
    assert torch.equal(out["x_encoded"], z) and torch.equal(out["intermediates"][-1], z)
    assert out["intermediate_steps"] == [0, 50, 100, 148, 149]
    assert (sampler.decode(z, None, 150) - x0).abs().max() < 0.1
    z, _ = sampler.encode(x0, None, 100, use_original_steps=True, times="before")
    assert (z - exact(x0, 0, 99)).abs().max() < 0.02


def reference_inversion(sampler, asked, x, t_enc, all_times=False):
    """Return x after steps from abar a to b: sqrt(b/a) x + sqrt(b) (sqrt(1/b - 1) - sqrt(1/a - 1)) eps."""
    rows = slice(None) if all_times else torch.from_numpy(sampler.ddim_timesteps)
    after = SCHEDULE.alphas_cumprod[rows]
    first = torch.ones(1, dtype=torch.float64) if all_times else SCHEDULE.alphas_cumprod[:1]
    before = torch.cat([first, after[:-1]])
    for t, a, b in zip(asked[:t_enc], before, after, strict=False):
        eps = network("eps")(x, torch.full((len(x),), int(t)))
        x = (b / a).sqrt() * x + b.sqrt() * ((1 / b - 1).sqrt() - (1 / a - 1).sqrt()) * eps
    return x


@pytest.mark.parametrize("all_times", [False, True])
@pytest.mark.parametrize("cls", [DDIMSampler, ControlDDIMSampler])
def test_encode_passes_the_network_the_times_of_its_own_reference(cls, all_times):
    """The loop index in Stability's code, the time of the row in ControlNet's."""
    x0 = torch.randn(2, *SHAPE, dtype=torch.float64)
    seen = []

    def spied(x, t, cond):
        seen.append(int(t[0]))
        return network("eps")(x, t)

    sampler = cls(model(apply_model=spied))
    sampler.make_schedule(20, verbose=False)
    encoded, _ = sampler.encode(x0, None, 12, use_original_steps=all_times)
    by_index = all_times or cls is DDIMSampler
    assert seen == (list(range(12)) if by_index else sampler.ddim_timesteps[:12].tolist())
    expected = reference_inversion(sampler, seen, x0, 12, all_times)
    torch.testing.assert_close(encoded, expected, rtol=1e-5, atol=1e-5)
    seen.clear()
    again, _ = sampler.encode(x0, None, 12, use_original_steps=all_times, times=cls.inversion_times)
    assert torch.equal(again, encoded)
    seen.clear()
    sampler.encode(x0, None, 12, use_original_steps=all_times, times="before")
    assert seen == [0, *(range(11) if all_times else sampler.ddim_timesteps[:11].tolist())]


def test_what_the_times_of_an_inversion_cost():
    """Measured with the exact network: index 0.56, row 0.047, before 0.084 of standard normal latents."""
    x0 = torch.randn(4, *SHAPE, dtype=torch.float64)
    errors = {}
    for times in ("index", "row", "before"):
        sampler = DDIMSampler(model())
        sampler.make_schedule(50, verbose=False)
        encoded, _ = sampler.encode(x0, None, 40, times=times)
        errors[times] = float((sampler.decode(encoded, None, 40) - x0).abs().mean())
    assert errors["index"] > 0.3 and errors["row"] < 0.07 and errors["before"] < 0.12, errors


def test_a_model_that_predicts_v_is_inverted_at_the_times_of_its_latents():
    x0 = torch.randn(1, *SHAPE)
    sampler = DDIMSampler(model("v"))
    sampler.make_schedule(20, verbose=False)
    assert torch.equal(sampler.encode(x0, None, 9)[0], sampler.encode(x0, None, 9, times="before")[0])
    with pytest.raises(InputError, match="'exact' of an inversion: expected before, row, index"):
        sampler.encode(x0, None, 9, times="exact")


def test_ddim_sampling_runs_the_steps_of_make_schedule():
    x_T = torch.randn(2, *SHAPE)
    sampler = DDIMSampler(model())
    whole, kept = sampler.sample(10, 2, SHAPE, x_T=x_T, eta=0.0, log_every_t=1, verbose=False)
    again, _ = sampler.ddim_sampling(None, (2, *SHAPE), x_T=x_T)
    assert torch.equal(whole, again)
    # Of K steps the reference runs one less than asked for; the last ones.
    last, _ = sampler.ddim_sampling(None, (2, *SHAPE), x_T=kept["x_inter"][-4], timesteps=4)
    assert torch.equal(last, whole)
    seen = []
    every, _ = sampler.ddim_sampling(
        None, (2, *SHAPE), x_T=x_T, timesteps=5, ddim_use_original_steps=True, callback=seen.append
    )
    assert seen == [0, 1, 2, 3, 4]
    assert torch.equal(every, sampler.decode(x_T, None, 5, use_original_steps=True))
    torch.manual_seed(3)
    drawn, _ = sampler.ddim_sampling(None, (2, *SHAPE))
    torch.manual_seed(3)
    assert torch.equal(drawn, sampler.ddim_sampling(None, (2, *SHAPE), x_T=torch.randn(2, *SHAPE))[0])
    with pytest.raises(InputError, match="timesteps is below 1"):
        sampler.ddim_sampling(None, (2, *SHAPE), timesteps=0)
    with pytest.raises(InputError, match="call make_schedule"):
        DDIMSampler(model()).ddim_sampling(None, (2, *SHAPE))


def test_p_sample_ddim_adds_the_noise_that_its_arguments_say():
    x = torch.randn(2, *SHAPE)
    sampler = DDIMSampler(model())
    sampler.make_schedule(10, ddim_eta=1.0, verbose=False)
    t = torch.full((2,), int(sampler.ddim_timesteps[6]))

    def step(**more):
        torch.manual_seed(1)
        return sampler.p_sample_ddim(x, None, t, 6, **more)

    (full, x_0), (none, _) = step(), step(temperature=0.0)
    torch.manual_seed(1)
    n = torch.randn(2, *SHAPE)
    torch.testing.assert_close(full - none, sampler.ddim_sigmas[6] * n, rtol=1e-4, atol=1e-5)
    alpha = sampler.ddim_alphas[6].sqrt()
    eps = network("eps")(x, t)
    torch.testing.assert_close(x_0, (x - sampler.ddim_sqrt_one_minus_alphas[6] * eps) / alpha)
    same, _ = step(repeat_noise=True)
    torch.testing.assert_close((same - none)[0], (same - none)[1], rtol=1e-4, atol=1e-5)
    assert 0 < ((step(noise_dropout=0.5)[0] - none).abs() < 1e-6).float().mean() < 1
    original, _ = sampler.p_sample_ddim(x, None, t, int(t[0]), use_original_steps=True, temperature=0.0)
    abar, prev = sampler.alphas_cumprod[t[0]], sampler.alphas_cumprod_prev[t[0]]
    sigma = sampler.ddim_sigmas_for_original_num_steps[t[0]]
    x_0 = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
    torch.testing.assert_close(original, prev.sqrt() * x_0 + (1 - prev - sigma**2).sqrt() * eps)


@pytest.mark.parametrize("way", ["sample", "decode"])
def test_a_subclass_changes_the_steps_by_overriding_them(way):
    """As attention and colour guidance are written: the step of the reference, and something after it."""
    seen = []

    class Shifted(DDIMSampler):
        def p_sample_ddim(self, x, c, t, index, repeat_noise=False, use_original_steps=False,
                          quantize_denoised=False, temperature=1., noise_dropout=0., score_corrector=None,
                          corrector_kwargs=None, unconditional_guidance_scale=1.,
                          unconditional_conditioning=None, dynamic_threshold=None):  # fmt: skip
            seen.append((index, int(t[0])))
            x_prev, x_0 = super().p_sample_ddim(
                x, c, t, index, unconditional_guidance_scale=unconditional_guidance_scale,
                unconditional_conditioning=unconditional_conditioning,
            )  # fmt: skip
            return x_prev + 0.1, x_0

    x_T, c, u = torch.randn(1, *SHAPE), torch.ones(1), torch.zeros(1)
    guided = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": u}
    results = []
    for cls in (Shifted, DDIMSampler):
        sampler = cls(model(apply_model=shifted))
        sampler.make_schedule(5, verbose=False)
        if way == "sample":
            results.append(sampler.sample(5, 1, SHAPE, c, x_T=x_T, verbose=False, **guided)[0])
        else:
            results.append(sampler.decode(x_T, c, 5, **guided))
    assert seen == [(4, 801), (3, 601), (2, 401), (1, 201), (0, 1)]
    assert (results[0] - results[1]).mean() > 0.1


def test_controlnets_sampler_asks_for_the_conditional_half_first_and_alone():
    seen = []

    def spied(x, t, cond):
        seen.append((len(x), float(cond[0])))
        return shifted(x, t, cond)

    x_T, c, u = torch.randn(1, *SHAPE), torch.ones(1), torch.zeros(1)
    options = {"x_T": x_T, "unconditional_guidance_scale": 4.0, "unconditional_conditioning": u}
    separate, _ = ControlDDIMSampler(model(apply_model=spied)).sample(2, 1, SHAPE, c, **options)
    assert seen == [(1, 1.0), (1, 0.0)] * 2
    joined, _ = DDIMSampler(model(apply_model=shifted)).sample(2, 1, SHAPE, c, **options)
    torch.testing.assert_close(separate, joined)


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
        (PLMSSampler, {"eta": 0.5}, "PLMS takes no eta"),
        (DPMSolverSampler, {"eta": 0.5}, "DPMSolver takes no eta"),
        (PLMSSampler, {"temperature": 0.5}, "adds none"),
        (DPMSolverSampler, {"noise_dropout": 0.5}, "adds none"),
        (DDIMSampler, {"mask": torch.ones(1)}, "keep_mask and keep_x_0 must"),
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
