"""Every sampler beside the reference's numbers, step by step, on a tiny UNet."""

import pytest
import torch

from bare_model import bare_model, conditionings, schedule_of
from golden_cases import Case, cases
from ldm.diffusion.prediction import add_noise, denoiser
from ldm.samplers import DDPM, sample_loop
from ldm.samplers.published import DDIMSampler, DPMSolverSampler, PLMSSampler


def by_name(*kinds: str):
    return pytest.mark.parametrize("case", cases(kinds), ids=lambda case: case.name)


def run(sampler, case: Case):
    """Run a published sampler as the reference was run, on the saved draws or, without them, on the seed."""
    config, given = case.config, case.inputs
    cond, uncond = conditionings(case)
    options = {name: config[name] for name in ("temperature", "ucg_schedule") if name in config}
    if "mask" in given:
        options |= {"mask": given["mask"], "x0": given["x0"]}
    torch.manual_seed(case.seed)
    return sampler.sample(
        config["steps"],
        config["batch_size"],
        config["shape"],
        cond,
        normals_sequence=case.draws or None,
        eta=config["eta"],
        x_T=given.get("x_T"),
        log_every_t=1,
        unconditional_guidance_scale=config["scale"],
        unconditional_conditioning=uncond,
        verbose=False,
        **options,
    )


@pytest.mark.few(1)
@by_name("sampler_ddim", "sampler_plms")
def test_table_samplers_give_every_intermediate_of_the_reference(case: Case):
    cls = DDIMSampler if case.kind == "sampler_ddim" else PLMSSampler
    sampler = cls(bare_model(case))
    final, intermediates = run(sampler, case)
    at = case.expected["inter_index"].tolist()
    case.check("timesteps", sampler.ddim_timesteps[::-1].copy())
    for name in ("x_inter", "pred_x0"):
        case.check(name, torch.stack([intermediates[name][i] for i in at]))
    case.check("final", final)


@pytest.mark.few(1)
@by_name("sampler_dpm")
def test_dpm_solver_asks_the_network_what_the_reference_asks(case: Case):
    model = bare_model(case)
    final, _ = run(DPMSolverSampler(model), case)
    n = case.config["batch_size"]
    case.check("model_t", torch.stack([t[:n] for _, t in model.calls]))
    case.check("model_x", torch.stack([x[:n] for x, _ in model.calls])[case.expected["model_x_index"]])
    case.check("final", final)


@pytest.mark.few(1)
@by_name("sampler_img2img")
def test_image_to_image_starts_one_row_above_its_first_step(case: Case):
    config, given = case.config, case.inputs
    model = bare_model(case)
    sampler = DDIMSampler(model)
    sampler.make_schedule(config["steps"], ddim_eta=config["eta"], verbose=False)
    encode_noise, *draws = case.draws
    left = iter(draws)  # empty at eta 0, where what is drawn does not matter
    rows = torch.full((config["batch_size"],), config["t_enc"])
    z_enc = sampler.stochastic_encode(given["x0"], rows, noise=encode_noise)
    case.check("z_enc", z_enc)
    cond, uncond = conditionings(case)
    steps = list(
        sample_loop(
            sampler.sampler,
            sampler._guided(uncond, config["scale"]),
            z_enc,
            cond,
            noise=lambda x: next(left) if draws else torch.randn_like(x),
            start=sampler.sampler.start_index(config["t_enc"]),
        )
    )
    case.check("x_steps", torch.stack([step.x_t for step in steps]))
    case.check("pred_x0_steps", torch.stack([step.x_0 for step in steps]))
    case.check("timesteps", torch.tensor([step.t for step in steps]))
    case.check("final", steps[-1].x_t)


SHORTEST = sorted(cases("sampler_ddim"), key=lambda case: case.config["steps"])[:6]


@pytest.mark.few(2)
@pytest.mark.parametrize("case", SHORTEST, ids=lambda case: case.name)
def test_p_sample_ddim_takes_the_steps_of_the_reference(case: Case):
    """The loop that third-party code writes around it."""
    config, given = case.config, case.inputs
    model = bare_model(case)
    sampler = DDIMSampler(model)
    sampler.make_schedule(config["steps"], ddim_eta=config["eta"], verbose=False)
    cond, uncond = conditionings(case)
    scales = config.get("ucg_schedule", [config["scale"]] * len(sampler.ddim_timesteps))
    draws = iter(case.draws)
    torch.manual_seed(case.seed)
    x = given["x_T"] if "x_T" in given else next(draws, None)
    x = torch.randn(config["batch_size"], *config["shape"]) if x is None else x
    sampler._noise = lambda x: next(draws) if case.draws else torch.randn(x.shape)
    inter, clean = [x], [x]
    for scale, index in zip(scales, reversed(range(len(sampler.ddim_timesteps))), strict=True):
        t = torch.full((len(x),), int(sampler.ddim_timesteps[index]))
        if "mask" in given:
            kept = add_noise(sampler.schedule, given["x0"], sampler._noise(given["x0"]), t)
            x = given["mask"] * kept + (1 - given["mask"]) * x
        x, x_0 = sampler.p_sample_ddim(
            x, cond, t, index=index, temperature=config.get("temperature", 1.0),
            unconditional_guidance_scale=scale, unconditional_conditioning=uncond,
        )  # fmt: skip
        inter.append(x)
        clean.append(x_0)
    at = case.expected["inter_index"].tolist()
    case.check("x_inter", torch.stack([inter[i] for i in at]))
    case.check("pred_x0", torch.stack([clean[i] for i in at]))
    case.check("final", x)


@by_name("sampler_invert")
def test_inversion_equals_the_reference(case: Case):
    config = case.config
    sampler = DDIMSampler(bare_model(case))
    sampler.make_schedule(config["steps"], verbose=False)
    cond, uncond = conditionings(case)
    x_t, _ = sampler.encode(
        case.inputs["x0"],
        cond,
        config["t_enc"],
        unconditional_guidance_scale=config["scale"],
        unconditional_conditioning=None if config["scale"] == 1 else uncond,
    )
    case.check("x_encoded", x_t)


@by_name("sampler_ddpm")
def test_ancestral_sampling(case: Case):
    config = case.config
    model = bare_model(case)
    schedule = schedule_of(config)
    draws = iter(case.draws)
    sampler = DDPM(schedule)
    steps = sample_loop(
        sampler,
        denoiser(model.apply_model, schedule, config["parameterization"]),
        case.inputs["x_T"],
        case.inputs["c"],
        noise=lambda x: next(draws),
        start=sampler.start_index(config["T"]),
    )
    x = [step.x_t for step in steps]
    assert next(draws, None) is None
    case.check("x_inter", torch.stack([case.inputs["x_T"], *x]))
    case.check("final", x[-1])
