"""Other people's code on our model: a notebook for the published code, and k-diffusion's own samplers."""

import pytest
import torch
from safetensors.torch import load_file

from golden_cases import case
from ldm import load_model
from ldm.config import load_config
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import denoiser
from ldm.samplers import DDIM, sample_loop
from ldm.samplers.dpm_solver import DPMSolver


def test_a_published_notebook_gives_the_reference_latents():
    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.util import instantiate_from_config

    golden = case("e2e_txt2img_ddim")
    c = golden.config
    model = instantiate_from_config(load_config(golden.files["config"]).model)
    model.load_state_dict(load_file(golden.files["checkpoint"]), strict=False)
    model.eval()
    sampler = DDIMSampler(model, device=torch.device("cpu"))
    torch.manual_seed(golden.seed)
    with torch.no_grad(), model.ema_scope():
        start_code = torch.randn(c["n_samples"], 4, c["H"] // 8, c["W"] // 8)
        samples, _ = sampler.sample(
            S=c["steps"],
            conditioning=model.get_learned_conditioning(c["n_samples"] * [c["prompt"]]),
            batch_size=c["n_samples"],
            shape=[4, c["H"] // 8, c["W"] // 8],
            verbose=False,
            unconditional_guidance_scale=c["scale"],
            unconditional_conditioning=model.get_learned_conditioning(c["n_samples"] * [""]),
            eta=c["eta"],
            x_T=start_code,
        )
        golden.check("latents", samples)
        golden.check("image", model.decode_first_stage(samples))


@pytest.fixture(scope="module", params=["eps", "v"])
def tiny(request):
    """Return a tiny LatentDiffusion of either kind, as `load_model` gives it."""
    files = case("e2e_txt2img_ddim").files
    config = load_config(files["config"], [f"model.params.parameterization={request.param}"])
    return load_model(config, files["checkpoint"], device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def wrapped(tiny, k_diffusion):
    """Return the model in k-diffusion's own wrapper, as wrappers and notebooks make it."""
    theirs = k_diffusion.external
    return (theirs.CompVisVDenoiser if tiny.parameterization == "v" else theirs.CompVisDenoiser)(tiny)


def start(tiny, seed=0):
    """Return standard normal latents and a conditioning of two prompts."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    return x, tiny.get_learned_conditioning(["a red apple", "a lighthouse"])


def close(a, b, tolerance=2e-4):
    """Compare by the largest difference, in parts of the largest value."""
    return (a - b).abs().max() < tolerance * b.abs().max()


def ours_in_sigmas(tiny, wrapped):
    """Return D(x, sigma) of arXiv 2206.00364 from this package's own `denoise`: x is x_t / alpha."""
    denoise = denoiser(tiny.apply_model, tiny.schedule, tiny.parameterization)

    def clean(x, sigma, cond):
        alpha = (1 + sigma**2) ** -0.5
        return denoise(x * alpha[:, None, None, None], wrapped.sigma_to_t(sigma), cond).x_0

    return clean


K_SAMPLERS = (
    "euler heun dpm_2 lms dpmpp_2m euler_ancestral dpm_2_ancestral dpmpp_2s_ancestral dpmpp_sde dpmpp_2m_sde"
).split()


@pytest.mark.few(4)
@pytest.mark.parametrize("name", K_SAMPLERS)
@torch.no_grad()
def test_k_diffusions_samplers_run_on_the_model(tiny, wrapped, k_diffusion, name):
    """Through its wrapper they do what they do on the x_0 that this package computes itself."""
    sample = getattr(k_diffusion.sampling, f"sample_{name}")
    sigmas = wrapped.get_sigmas(6)
    x, cond = start(tiny)
    results = []
    for model in (wrapped, ours_in_sigmas(tiny, wrapped)):
        noise = torch.Generator().manual_seed(1)
        options = {}
        if "ancestral" in name or "sde" in name:
            options["noise_sampler"] = lambda *_, noise=noise: torch.randn(x.shape, generator=noise)
        results.append(
            sample(model, x * sigmas[0], sigmas, extra_args={"cond": cond}, disable=True, **options)
        )
    assert results[0].isfinite().all() and results[0].std() > 0.01
    assert close(*results)


@pytest.mark.parametrize("name, eta", [("euler", 0.0), ("euler_ancestral", 1.0)])
@torch.no_grad()
def test_k_diffusions_trajectory_is_that_of_ddim(tiny, wrapped, k_diffusion, name, eta):
    """Euler's method in x_t / alpha over sigma / alpha is DDIM, and with ancestral noise DDIM at eta 1."""
    ddim = DDIM(tiny.schedule, 8, eta=eta)
    times = torch.tensor([*ddim.timesteps, 0])  # the published last step goes to time 0
    sigmas = wrapped.sigmas[times]
    alphas = (1 + sigmas**2) ** -0.5
    x, cond = start(tiny)
    draws = torch.randn(8, *x.shape, generator=torch.Generator().manual_seed(2))

    denoise = denoiser(tiny.apply_model, tiny.schedule, tiny.parameterization)
    left = iter(draws)
    ours = [step.x_t for step in sample_loop(ddim, denoise, x, cond, noise=lambda _: next(left))]

    left_k = iter(draws)
    options = {"noise_sampler": lambda *_: next(left_k)} if eta else {}
    theirs = []
    last = getattr(k_diffusion.sampling, f"sample_{name}")(
        wrapped, x / alphas[0], sigmas, extra_args={"cond": cond}, disable=True,
        callback=lambda step: theirs.append(step["x"]), **options,
    )
    theirs = [*theirs[1:], last]
    assert len(ours) == len(theirs) == 8
    for x_t, x_k, alpha in zip(ours, theirs, alphas[1:], strict=True):
        assert close(x_k * alpha, x_t)


@torch.no_grad()
def test_k_diffusions_dpm_solver_with_guidance_is_ours(tiny, wrapped, k_diffusion):
    """DPM-Solver++(2M) at the same noise levels, guided as front ends write it: one batch of both halves."""
    scale = 5.0

    class Guided(torch.nn.Module):
        def forward(self, x, sigma, cond, uncond):
            halves = wrapped(torch.cat([x] * 2), torch.cat([sigma] * 2), cond=torch.cat([uncond, cond]))
            without, with_text = halves.chunk(2)
            return without + (with_text - without) * scale

    x, cond = start(tiny)
    uncond = tiny.get_learned_conditioning(["", ""])
    denoise = denoiser(tiny.apply_model, tiny.schedule, tiny.parameterization)
    guided = ClassifierFreeGuidance(denoise, uncond, scale)
    ours = [step.x_t for step in sample_loop(DPMSolver(tiny.schedule, 16), guided, x, cond)]
    sigmas = wrapped.t_to_sigma(torch.linspace(999, 0, 17))  # its published times
    alphas = (1 + sigmas**2) ** -0.5
    theirs = []
    last = k_diffusion.sampling.sample_dpmpp_2m(
        Guided(), x / alphas[0], sigmas, extra_args={"cond": cond, "uncond": uncond},
        disable=True, callback=lambda step: theirs.append(step["x"]),
    )
    for x_t, x_k, alpha in zip(ours, [*theirs[1:], last], alphas[1:], strict=True):
        assert close(x_k * alpha, x_t)
