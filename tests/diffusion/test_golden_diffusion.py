"""Schedule, timesteps, identities, losses and moving average beside the reference's numbers."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from bare_model import bare_model, schedule_of
from golden_cases import Case, cases
from ldm.diffusion.loss import diffusion_loss
from ldm.diffusion.prediction import add_noise, from_eps
from ldm.diffusion.published import (
    make_beta_schedule,
    make_ddim_sampling_parameters,
    make_ddim_timesteps,
)
from ldm.diffusion.timesteps import timestep_embedding
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.samplers import DPMSolver
from ldm.training.ema import LitEma


def by_name(kind: str):
    return pytest.mark.parametrize("case", cases(kind), ids=lambda case: case.name)


@by_name("schedule")
def test_schedule(case: Case):
    config = case.config
    schedule = schedule_of(config)
    betas = make_beta_schedule(
        config["beta_schedule"], config["timesteps"], config["linear_start"], config["linear_end"]
    )
    got = schedule.published_buffers() | {
        "betas_float64": betas,
        "lvlb_weights_eps": schedule.lvlb_weights("eps"),
    }
    abar = schedule.alphas_cumprod
    for name in case.expected:
        if not (found := re.fullmatch(r"ddim_(\w+)_(\d+)(?:_eta([\d.]+))?\.(\w+)", name)):
            continue
        method, steps, eta, what = found.groups()
        times = make_ddim_timesteps(method, int(steps), config["timesteps"], verbose=False)
        sigmas, alphas, prev = make_ddim_sampling_parameters(abar, times, float(eta or 0), verbose=False)
        got[name] = {
            "timesteps": times,
            "sigmas": sigmas,
            "alphas": alphas,
            "alphas_prev": prev,
            "sqrt_one_minus_alphas": np.sqrt(1 - alphas.astype(np.float32)),
        }[what]
    case.check_all(got)


@by_name("dpm_schedule")
def test_dpm_schedule(case: Case):
    n = case.config["timesteps"]
    schedule = schedule_of(case.config)
    t = case.inputs["t"]
    alpha, sigma = schedule.alpha_sigma(t.double() * n - 1, t.double())
    got = {"t": t, "alpha": alpha, "sigma": sigma, "log_alpha": alpha.log(), "lambda": (alpha / sigma).log()}
    for steps in case.config["steps"]:
        model_t = torch.tensor([*DPMSolver(schedule, steps).timesteps, 0.0])
        got |= {f"model_t_{steps}": model_t, f"timesteps_{steps}": (model_t.double() + 1) / n}
    case.check_all(got)


@by_name("timestep_embedding")
def test_timestep_embedding(case: Case):
    for dim in case.config["dims"]:
        case.check(f"dim{dim}", timestep_embedding(case.inputs["t"], dim, case.config["max_period"]))


def diffusion_of(config, unet: nn.Module | None = None, **params) -> LatentDiffusion:
    """Return a model of a case, whose methods are the reference's."""
    for name in ("beta_schedule", "timesteps", "linear_start", "linear_end", "parameterization"):
        params[name] = config.get(name, params.get(name, "linear"))
    key = "crossattn" if unet else None
    return LatentDiffusion(unet or nn.Identity(), nn.Identity(), conditioning_key=key, **params)


@by_name("diffusion_math")
def test_diffusion_math(case: Case):
    schedule = schedule_of(case.config)
    model = diffusion_of(case.config)
    x_0, x_t, t, n = (case.inputs[name] for name in ("x0", "x_t", "t", "noise_or_pred"))
    alpha, sigma = schedule.alpha_sigma(t, x_t)
    x_0_from_eps = from_eps(x_t, n, alpha, sigma).x_0  # as samplers compute it: other last digits
    torch.testing.assert_close(x_0_from_eps, case.expected["x0_from_eps"], atol=3e-5, rtol=1e-6)
    q_mean, q_variance, q_log_variance = model.q_mean_variance(x_0, t)
    mean, variance, log_variance = model.q_posterior(x_start=x_0, x_t=x_t, t=t)
    case.check_all(
        {
            "q_sample": model.q_sample(x_start=x_0, t=t, noise=n),
            "v": model.get_v(x_0, n, t),
            "x0_from_eps": model.predict_start_from_noise(x_t, t=t, noise=n),
            "x0_from_v": model.predict_start_from_z_and_v(x_t, t, n),
            "eps_from_v": model.predict_eps_from_z_and_v(x_t, t, n),
            "post_mean": mean,
            "post_var": variance,
            "post_logvar_clipped": log_variance,
            "q_mean": q_mean,
            "q_var": q_variance,
            "q_logvar": q_log_variance,
            "lvlb_weights": schedule.lvlb_weights(case.config["parameterization"]),
        }
    )


def loss_of(case: Case, model):
    config, given = case.config, case.inputs
    schedule = schedule_of(config)
    x_t = add_noise(schedule, given["x0"], given["noise"], given["t"])
    return diffusion_loss(
        schedule,
        config["parameterization"],
        model.apply_model(x_t, given["t"], given["c"]),
        given["x0"],
        given["noise"],
        given["t"],
        loss_type=config["loss_type"],
        logvar=torch.full((config["timesteps"],), config["logvar_init"]),
        l_simple_weight=config["l_simple_weight"],
        original_elbo_weight=config["original_elbo_weight"],
    )


@by_name("loss")
def test_loss(case: Case):
    loss = loss_of(case, bare_model(case))
    case.check_all(
        {"loss": loss.total[None], "loss_simple": loss.simple[None], "loss_vlb": loss.vlb[None]}
    )


@by_name("loss")
@pytest.mark.parametrize("mode", ["train", "val"])
def test_p_losses_gives_the_losses_of_the_reference(case: Case, mode: str):
    names = ("loss_type", "l_simple_weight", "original_elbo_weight", "logvar_init")
    unet = bare_model(case).unet
    model = diffusion_of(case.config, unet, **{name: case.config[name] for name in names})
    model.train(mode == "train")
    given = case.inputs
    loss, parts = model.p_losses(given["x0"], given["c"], given["t"], noise=given["noise"])
    assert parts.keys() == {f"{mode}/loss", f"{mode}/loss_simple", f"{mode}/loss_vlb"}
    assert torch.equal(parts[f"{mode}/loss"], loss)
    case.check_all({name.partition("/")[2]: value[None] for name, value in parts.items()})


@by_name("loss_grad")
def test_loss_gradients(case: Case):
    model = bare_model(case)
    loss_of(case, model).total.backward()
    gradients = {name: p.grad for name, p in model.unet.named_parameters()}
    got = {name: gradients[name.removeprefix("grad.")] for name in case.expected if name.startswith("grad.")}
    norm = torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt()
    case.check_all(got | {"grad_norm_total": norm[None]})


@by_name("ema")
def test_moving_average(case: Case):
    config, given = case.config, case.inputs
    model = _nested({name.removeprefix("init."): x for name, x in given.items() if name.startswith("init.")})
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in config["frozen"])
    ema = LitEma(model, config["decay"], config["use_num_updates"])
    assert ema.shadow_names == config["name_map"]
    got = {}
    for update in range(config["updates"]):
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, x in given.items():
                if name.startswith(f"step{update:02d}."):
                    weights[name.split(".", 1)[1]].copy_(x)
        ema(model)
        got |= {f"after{update:02d}.{name}": x.clone() for name, x in ema.state_dict().items()}
    case.check_all({name: got[name] for name in case.expected})


def _nested(weights: dict[str, torch.Tensor]) -> nn.Module:
    """Build a module whose parameters have these names."""
    root = nn.Module()
    for name, x in weights.items():
        *path, leaf = name.split(".")
        at = root
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at._modules[part]
        at.register_parameter(leaf, nn.Parameter(x.clone()))
    return root


@by_name("rng_torch_cpu")
def test_torch_draws_what_it_drew_for_the_reference(case: Case):
    for seed in case.config["seeds"]:
        torch.manual_seed(seed)
        for i, shape in enumerate(case.config["shapes"]):
            draw = torch.randn(shape).flatten()
            case.check(f"seed{seed}.draw{i}.first256", draw[:256])
            case.check(f"seed{seed}.draw{i}.every997th", draw[::997])
            case.check(f"seed{seed}.draw{i}.mean_std", torch.stack([draw.mean(), draw.std()]))
        case.check(f"seed{seed}.randint350", torch.randint(0, 350, (8,)))


@by_name("rng_numpy")
def test_numpy_draws_what_it_drew_for_the_reference(case: Case):
    for seed in case.config["seeds"]:
        shape = case.expected[f"seed{seed}.randn"].shape
        case.check(f"seed{seed}.randn", np.random.RandomState(seed).randn(*shape).astype(np.float32))
