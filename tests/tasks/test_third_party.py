"""Other people's code on our model: a notebook for the published code, and k-diffusion's own samplers."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_config, tiny_model

from golden_cases import case
from ldm import load_model
from ldm.config import load_config
from ldm.diffusion.cond import Cond
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


@pytest.mark.few(1)
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


@pytest.mark.few(1)
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
        wrapped,
        x / alphas[0],
        sigmas,
        extra_args={"cond": cond},
        disable=True,
        callback=lambda step: theirs.append(step["x"]),
        **options,
    )
    theirs = [*theirs[1:], last]
    assert len(ours) == len(theirs) == 8
    for x_t, x_k, alpha in zip(ours, theirs, alphas[1:], strict=True):
        assert close(x_k * alpha, x_t)


@pytest.mark.few(1)
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
    guided = ClassifierFreeGuidance(denoise, Cond(uncond), scale)
    ours = [step.x_t for step in sample_loop(DPMSolver(tiny.schedule, 16), guided, x, Cond(cond))]
    sigmas = wrapped.t_to_sigma(torch.linspace(999, 0, 17))  # its published times
    alphas = (1 + sigmas**2) ** -0.5
    theirs = []
    last = k_diffusion.sampling.sample_dpmpp_2m(
        Guided(),
        x / alphas[0],
        sigmas,
        extra_args={"cond": cond, "uncond": uncond},
        disable=True,
        callback=lambda step: theirs.append(step["x"]),
    )
    for x_t, x_k, alpha in zip(ours, [*theirs[1:], last], alphas[1:], strict=True):
        assert close(x_k * alpha, x_t)


def tiny_of(task, tmp_path):
    return tiny_model(tiny_config(task, tmp_path))


class AttentionStore:
    """Collects the weights of every attention and may change them, as prompt-to-prompt's controllers do."""

    def __init__(self, change=lambda weights, place, is_cross: weights):
        self.change = change
        self.weights = {}

    def register(self, unet):
        """Put an own forward in the place of each attn1's and attn2's."""
        for name, module in unet.named_modules():
            if module.__class__.__name__ == "CrossAttention":
                assert name.endswith(("attn1", "attn2"))
                module.forward = self.forward(module, name)

    def forward(self, module, name):
        def split(x):
            b, n, _ = x.shape
            x = x.reshape(b, n, module.heads, -1).permute(0, 2, 1, 3)
            return x.reshape(b * module.heads, n, -1)

        def forward(x, context=None, mask=None):
            is_cross = context is not None
            context = x if context is None else context
            q, k, v = split(module.to_q(x)), split(module.to_k(context)), split(module.to_v(context))
            weights = (torch.einsum("bid,bjd->bij", q, k) * module.scale).softmax(dim=-1)
            weights = self.change(weights, name, is_cross)
            self.weights[name] = weights
            out = torch.einsum("bij,bjd->bid", weights, v)
            b, n, d = out.shape
            out = out.reshape(b // module.heads, module.heads, n, d).permute(0, 2, 1, 3)
            return module.to_out(out.reshape(b // module.heads, n, -1))

        return forward


@torch.no_grad()
def test_attention_hooks_see_and_change_the_weights(tmp_path):
    from ldm.models.diffusion.ddim import DDIMSampler

    model = tiny_of("sd1", tmp_path)
    prompts = model.get_learned_conditioning(["a red apple", "a lighthouse"])
    x_T = torch.randn(2, 4, 8, 8)

    def sampled():
        sampler = DDIMSampler(model)
        return sampler.sample(4, 2, (4, 8, 8), prompts, x_T=x_T, verbose=False)[0]

    plain = sampled()
    store = AttentionStore()
    store.register(model.model.diffusion_model)
    torch.testing.assert_close(sampled(), plain, atol=1e-5, rtol=1e-4)
    cross = {name: w for name, w in store.weights.items() if name.endswith("attn2")}
    assert cross and len(cross) == len(store.weights) / 2
    for weights in cross.values():
        assert weights.shape[-1] == 77
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))

    def first_of_both(weights, name, is_cross):
        return weights.chunk(2)[0].repeat(2, 1, 1) if is_cross else weights

    AttentionStore(first_of_both).register(model.model.diffusion_model)
    changed = sampled()
    torch.testing.assert_close(changed[0], plain[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(changed[1], plain[1], atol=1e-3)


@pytest.mark.slow
@torch.no_grad()
def test_a_controlnet_demo_inverts_an_image_and_comes_back(tmp_path):
    """As ControlNet's demos are written, with `encode` before and `decode` after."""
    from cldm.ddim_hacked import DDIMSampler

    model = tiny_of("controlnet", tmp_path)
    model.model.diffusion_model.out[-1].weight.mul_(0.25)      # random, it is rougher than a trained one
    sampler = DDIMSampler(model)
    control = torch.rand(1, 3, 64, 64)
    cond = {"c_concat": [control], "c_crossattn": [model.get_learned_conditioning(["an apple"])]}
    un_cond = {"c_concat": None, "c_crossattn": [model.get_learned_conditioning([""])]}
    shape = (4, 8, 8)
    model.control_scales = [0.825 ** float(12 - i) for i in range(13)]
    samples, intermediates = sampler.sample(
        5, 1, shape, cond, verbose=False, eta=0.0, unconditional_guidance_scale=3.0,
        unconditional_conditioning=un_cond,
    )  # fmt: skip
    assert samples.shape == (1, *shape) and samples.isfinite().all()

    z = model.get_first_stage_encoding(model.encode_first_stage(torch.rand(1, 3, 64, 64) * 2 - 1).mode())
    sampler.make_schedule(20, verbose=False)
    encoded, out = sampler.encode(z, cond, 12, return_intermediates=2)
    assert len(out["intermediates"]) == len(out["intermediate_steps"]) == 4
    assert torch.equal(encoded, out["x_encoded"])
    back = sampler.decode(encoded, cond, 12)
    assert torch.nn.functional.cosine_similarity(back.flatten(), z.flatten(), dim=0) > 0.9
    other = {**cond, "c_concat": [1 - control]}
    assert not torch.allclose(sampler.decode(encoded, other, 12), back, atol=1e-4)


@torch.no_grad()
def test_a_ddim_sampler_of_ones_own_reads_the_model_as_the_reference_does(tiny):
    """Everything that such a sampler takes from the model and from the helper module."""
    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.modules.diffusionmodules.util import (
        extract_into_tensor,
        make_ddim_sampling_parameters,
        make_ddim_timesteps,
        noise_like,
    )

    times = make_ddim_timesteps("uniform", 5, tiny.num_timesteps, verbose=False)
    sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(
        tiny.alphas_cumprod.cpu(), times, eta=1.0, verbose=False
    )
    x, cond = start(tiny)
    x_T = x
    torch.manual_seed(4)
    for index in reversed(range(len(times))):
        t = torch.full((len(x),), int(times[index]), device=tiny.betas.device, dtype=torch.long)
        output = tiny.apply_model(x, t, cond)
        if tiny.parameterization == "v":
            eps = tiny.predict_eps_from_z_and_v(x, t, output)
            x_0 = tiny.predict_start_from_z_and_v(x, t, output)
        else:
            eps, x_0 = output, tiny.predict_start_from_noise(x, t, output)
        a = extract_into_tensor(tiny.alphas_cumprod, t, x.shape)
        torch.testing.assert_close(a.flatten(), torch.full((len(x),), float(alphas[index])))
        prev, sigma = float(alphas_prev[index]), float(sigmas[index])
        noise = sigma * noise_like(x.shape, x.device, False)
        x = prev**0.5 * x_0 + (1.0 - prev - sigma**2) ** 0.5 * eps + noise
    torch.manual_seed(4)
    expected, _ = DDIMSampler(tiny).sample(5, 2, (4, 8, 8), cond, x_T=x_T, eta=1.0, verbose=False)
    assert close(x, expected)


@pytest.mark.slow
def test_a_training_loop_over_p_losses_trains_the_unet(tmp_path):
    """As DreamBooth's repositories do: the subject's loss, and that of the class with a weight."""
    model = tiny_of("sd2-v", tmp_path)
    model.model.requires_grad_(True)
    model.train()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        z = model.get_first_stage_encoding(model.encode_first_stage(images).mode())
        c = model.get_learned_conditioning(["a photo of sks cat", "a photo of a cat"])
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(8):
        t = torch.randint(0, 1000, (2,), generator=generator)
        noise = torch.randn(z.shape, generator=generator)
        subject, parts = model.p_losses(z[:1], c[:1], t[:1], noise=noise[:1])
        prior, _ = model.p_losses(z[1:], c[1:], t[1:], noise=noise[1:])
        loss = subject + 0.5 * prior
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert parts.keys() == {"train/loss", "train/loss_simple", "train/loss_vlb"}
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    torch.manual_seed(5)
    drawn, _ = model(z, c)          # draws the times, then the noise
    torch.manual_seed(5)
    t = torch.randint(0, 1000, (2,))
    given, _ = model.p_losses(z, c, t, noise=torch.randn_like(z))
    assert torch.equal(drawn, given)


@torch.no_grad()
def test_consistency_distillation_takes_its_targets_from_the_model(tmp_path):
    """The identities that such code relies on: x_t, v, and back."""
    model = tiny_of("sd1", tmp_path)
    x_start, noise = torch.randn(2, 3, 4, 8, 8)
    t = torch.tensor([1, 500, 999])
    torch.manual_seed(2)
    drawn = model.q_sample(x_start, t)
    torch.manual_seed(2)
    assert torch.equal(drawn, model.q_sample(x_start, t, torch.randn_like(x_start)))
    x_t, v = model.q_sample(x_start=x_start, t=t, noise=noise), model.get_v(x_start, noise, t)
    options = {"atol": 2e-3, "rtol": 1e-3}
    torch.testing.assert_close(model.predict_start_from_z_and_v(x_t, t, v), x_start, **options)
    torch.testing.assert_close(model.predict_eps_from_z_and_v(x_t, t, v), noise, **options)
    torch.testing.assert_close(model.predict_start_from_noise(x_t, t, noise), x_start, **options)
    mean, variance, log_variance = model.q_posterior(x_start, x_t, t)
    assert mean.shape == x_t.shape and variance.shape == log_variance.shape == (3, 1, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
def test_p_sample_takes_a_step_of_ddpm(tmp_path, parameterization):
    """x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(1 - beta_t) + noise (DDPM, algorithm 2)."""
    model = tiny_of("sd1", tmp_path)
    model.parameterization = parameterization
    x_start, eps = torch.randn(2, 3, 4, 8, 8).double()
    t = torch.tensor([0, 500, 999])
    x_t = model.q_sample(x_start, t, eps)
    output = {"eps": eps, "v": model.get_v(x_start, eps, t), "x0": x_start}[parameterization]
    model.apply_model = lambda x, t, c: output + c
    beta, abar, before = (
        x[t].view(-1, 1, 1, 1)
        for x in (model.schedule.betas, model.schedule.alphas_cumprod, model.schedule.alphas_cumprod_prev)
    )
    mean = (x_t - beta / (1 - abar).sqrt() * eps) / (1 - beta).sqrt()
    variance = beta * (1 - before) / (1 - abar)
    torch.manual_seed(3)
    drawn, x_0 = model.p_sample(x_t, 0.0, t, return_x0=True, temperature=0.5)
    torch.manual_seed(3)
    noise = 0.5 * torch.randn(x_t.shape)
    torch.testing.assert_close(drawn, mean + variance.sqrt() * noise, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x_0, x_start, atol=1e-4, rtol=1e-4)
    clipped = model.p_mean_variance(x_t, 0.0, t, clip_denoised=True)
    torch.testing.assert_close(clipped[0][0], x_start[0].clamp(-1, 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(clipped[1], variance, atol=1e-6, rtol=1e-4)


def test_the_noise_schedule_and_the_text_encoder_can_be_replaced(tmp_path):
    model = tiny_of("sd1", tmp_path)
    model.register_schedule(given_betas=np.linspace(0.1, 0.2, 5))
    torch.testing.assert_close(model.alphas_cumprod, (1 - torch.linspace(0.1, 0.2, 5)).cumprod(0))
    assert model.num_timesteps == 5 and model.state_dict()["betas"].shape == (5,)
    torch.testing.assert_close(model.schedule.alphas_cumprod.float(), model.alphas_cumprod)
    model.register_schedule(beta_schedule="sqrt_linear", timesteps=3, linear_start=0.1, linear_end=0.3)
    torch.testing.assert_close(model.betas, torch.tensor([0.1, 0.2, 0.3]))
    model.instantiate_cond_stage("__is_unconditional__")
    assert model.cond_stage_model is None
    model.instantiate_cond_stage({"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"})
    assert not any(x.requires_grad for x in model.cond_stage_model.parameters())
    latents = torch.randn(1, 4, 2, 2, requires_grad=True)
    model.differentiable_decode_first_stage(latents).sum().backward()
    assert torch.count_nonzero(latents.grad)
