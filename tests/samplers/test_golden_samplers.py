"""Every sampler beside the reference's numbers, step by step, on a tiny UNet."""

import pytest
import torch

from bare_model import bare_model, conditionings, schedule_of
from golden_cases import Case, cases
from ldm.diffusion.prediction import Prediction, denoiser
from ldm.samplers import DDPM, DDIMInversion, sample_loop
from ldm.samplers.loop import batch_of
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


@pytest.mark.few(3)
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


@pytest.mark.few(2)
@by_name("sampler_dpm")
def test_dpm_solver_asks_the_network_what_the_reference_asks(case: Case):
    model = bare_model(case)
    final, _ = run(DPMSolverSampler(model), case)
    n = case.config["batch_size"]
    case.check("model_t", torch.stack([t[:n] for _, t in model.calls]))
    case.check("model_x", torch.stack([x[:n] for x, _ in model.calls])[case.expected["model_x_index"]])
    case.check("final", final)


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


@by_name("sampler_invert")
def test_inversion_equals_the_reference_where_the_network_is_told_the_loop_index(case: Case):
    """The reference tells the network 0, 1, 2, ... instead of the time; all else is the same."""
    config = case.config
    model = bare_model(case)
    inversion = DDIMInversion(schedule_of(config), config["steps"])
    index = {t: i for i, t in reversed(list(enumerate(inversion.timesteps)))}

    def denoise(x_t, t, cond):
        return Prediction(x_t, model.apply_model(x_t, batch_of(index[int(t[0])], x_t), cond))

    cond, _ = conditionings(case)
    steps = sample_loop(inversion, denoise, case.inputs["x0"], cond)
    for _ in range(config["t_enc"]):
        step = next(steps)
    case.check("x_encoded", step.x_t)


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
