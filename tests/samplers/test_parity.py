"""Every sampler, step by step, against its counterpart in diffusers or k-diffusion, at the same noise levels.

The network is a smooth function, the twins' tables are replaced by ours in float64, and random numbers are
handed to both. What differs by design is said where it is compared.
"""

import sys
import warnings
from itertools import repeat

import diffusers
import numpy as np
import pytest
import torch

from gaussian_data import SCHEDULE
from ldm.diffusion.prediction import Prediction, from_eps
from ldm.samplers import DDIM, DEIS, PLMS, DPMSolver, UniPC, make_sampler, sample_loop

# Of diffusers, which hands torch's tensors to numpy, in numpy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

GENERATOR = torch.Generator().manual_seed(7)
X = torch.randn(2, 4, 3, 3, generator=GENERATOR, dtype=torch.float64)
DRAWS = torch.randn(40, *X.shape, generator=GENERATOR, dtype=torch.float64)
STEPS = 10


def network(x_t, t):
    """Return some smooth eps of x_t and t, of which neither is linear."""
    t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, *(1,) * (x_t.ndim - 1))
    return (0.7 * x_t + 0.4 * torch.sin(2 * x_t + t / 250) + 0.1 * torch.cos(t / 90)).to(x_t.dtype)


def denoise(x_t, t, cond=None) -> Prediction:
    return from_eps(x_t, network(x_t, t), *SCHEDULE.alpha_sigma(t, x_t))


def trajectory(sampler, draws=DRAWS, x=X):
    """Return our latents after every step."""
    left = iter(draws)
    return [step.x_t for step in sample_loop(sampler, denoise, x, None, noise=lambda x: next(left))]


def assert_same(ours, theirs, tolerance=1e-9):
    """Compare in parts of the largest value and name the first step that differs.

    Looser than 1e-9 where a twin computes in float32 whatever it is given.
    """
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        off = float((a - b).abs().max() / b.abs().max())
        assert off < tolerance, f"step {i} of {len(ours)} differs by {off:.1e}"


# ------------------------------------------------------------------------------------------- diffusers


def scheduler(name, **options):
    """Return a scheduler of diffusers with our schedule in float64."""
    cls = getattr(diffusers, f"{name}Scheduler")
    made = cls(trained_betas=SCHEDULE.betas.numpy(), **options)
    made.alphas_cumprod = SCHEDULE.alphas_cumprod
    made.final_alpha_cumprod = SCHEDULE.alphas_cumprod[0]
    return made


def at_our_nodes(twin, sampler, last_sigma=None):
    """Give a scheduler the times and noise levels of one of our samplers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy about its own conversion
        twin.set_timesteps(len(sampler))
    sigmas = [sampler.nodes.sigma_karras(i) for i in range(len(sampler) + 1)]
    if last_sigma is not None:
        sigmas[-1] = last_sigma
    twin.timesteps = torch.tensor(sampler.timesteps, dtype=torch.float64)
    twin.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    twin.set_begin_index(0)
    return twin


def run(twin, x=X, **options):
    """Return the scheduler's samples after every of its steps, as it keeps them."""
    samples = []
    for t in twin.timesteps:
        eps = network(twin.scale_model_input(x, t), t)
        x = twin.step(eps, t, x, **options).prev_sample
        samples.append(x)
    return samples


@pytest.fixture
def draws_of(monkeypatch):
    """Let a module of diffusers draw our numbers."""

    def give(twin, draws=DRAWS):
        left = iter(draws)
        module = sys.modules[type(twin).__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda shape, dtype=None, **_: next(left).to(dtype))

    return give


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta):
    twin = scheduler("DDIM", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    twin.set_timesteps(STEPS)
    ours = DDIM(SCHEDULE, STEPS, eta=eta)
    assert ours.timesteps == twin.timesteps.tolist()
    theirs, x = [], X
    for t, n in zip(twin.timesteps, DRAWS, strict=False):
        x = twin.step(network(x, t), t, x, eta=eta, variance_noise=n).prev_sample
        theirs.append(x)
    assert_same(trajectory(ours), theirs)


def test_plms():
    """PNDM has a step of its own for the look ahead, which our first step holds."""
    twin = scheduler("PNDM", skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    twin.set_timesteps(STEPS)
    ours = PLMS(SCHEDULE, STEPS)
    assert twin.timesteps.tolist() == [*ours.timesteps[:2], *ours.timesteps[1:]]
    assert_same(trajectory(ours), run(twin)[1:])


@pytest.mark.parametrize("steps", [3, 10, 20])
def test_dpm_at_the_reference_times(steps):
    twin = scheduler("DPMSolverMultistep", final_sigmas_type="sigma_min")
    ours = DPMSolver(SCHEDULE, steps)
    assert_same(trajectory(ours), run(at_our_nodes(twin, ours)), tolerance=1e-6)


@pytest.mark.parametrize("spacing", ["karras", "exponential", "trailing", "linspace", "uniform"])
def test_dpmpp_2m(spacing):
    ours = make_sampler("dpmpp_2m", SCHEDULE, STEPS, spacing=spacing)
    assert_same(trajectory(ours), run(at_our_nodes(scheduler("DPMSolverMultistep"), ours)), tolerance=1e-6)


def test_karras_sigmas_are_diffusers_own():
    """Its times are those of the sigmas rounded to whole ones; ours are not rounded."""
    twin = scheduler("DPMSolverMultistep", use_karras_sigmas=True)
    twin.set_timesteps(STEPS)
    ours = make_sampler("dpmpp_2m", SCHEDULE, STEPS)
    sigmas = [ours.nodes.sigma_karras(i) for i in range(STEPS + 1)]
    assert twin.sigmas.tolist() == pytest.approx(sigmas, rel=1e-5)
    assert np.abs(np.array(ours.timesteps) - twin.timesteps.numpy()).max() <= 1


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("spacing", ["linspace", "karras", "trailing"])
def test_unipc(order, variant, spacing):
    ours = UniPC(SCHEDULE, STEPS, order=order, variant=variant, spacing=spacing)
    twin = scheduler("UniPCMultistep", solver_order=order, solver_type=variant)
    until = -1 if variant == "bh1" else None  # where the twin divides infinities in its last step
    assert_same(trajectory(ours)[:until], run(at_our_nodes(twin, ours))[:until])


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("spacing", ["linspace", "karras", "trailing"])
def test_deis(order, spacing):
    """The twin ends at the noise of time 0 and ours at the clean latents, so all steps but the last."""
    ours = DEIS(SCHEDULE, STEPS, order=order, spacing=spacing)
    twin = scheduler("DEISMultistep", solver_order=order)
    assert_same(trajectory(ours)[:-1], run(at_our_nodes(twin, ours, last_sigma=0.02))[:-1])


def test_ddpm(draws_of):
    """The twin adds noise of deviation 1e-10 in its last step, ours none."""
    ours = make_sampler("ddpm", SCHEDULE, STEPS)
    twin = scheduler("DDPM", clip_sample=False, timestep_spacing="trailing")
    twin.set_timesteps(STEPS)
    draws_of(twin)
    assert ours.timesteps == twin.timesteps.tolist()
    assert_same(trajectory(ours), run(twin), tolerance=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 50])
def test_lcm(steps, draws_of):
    ours = make_sampler("lcm", SCHEDULE, steps)
    twin = scheduler("LCM", clip_sample=False)
    twin.set_timesteps(steps)
    assert ours.timesteps == twin.timesteps.tolist()
    draws = torch.randn(steps, *X.shape, generator=GENERATOR, dtype=torch.float64)
    draws_of(twin, draws)
    assert_same(trajectory(ours, draws), run(twin), tolerance=1e-7)


@pytest.mark.parametrize(
    ("name", "twin", "tolerance"),
    [
        ("euler", "EulerDiscrete", 1e-6),
        ("euler_a", "EulerAncestralDiscrete", 1e-6),
        ("lms", "LMSDiscrete", 1e-9),
    ],
)
@pytest.mark.parametrize("spacing", ["linspace", "karras"])
def test_samplers_in_units_of_sigma_karras(name, twin, tolerance, spacing, draws_of):
    """The twins keep x_t / alpha. They are asked for whole times, and are given ours unrounded."""
    ours = make_sampler(name, SCHEDULE, STEPS, spacing=spacing)
    twin = at_our_nodes(scheduler(twin), ours)
    if name == "euler_a":
        draws_of(twin)
    theirs = run(twin, X / ours.nodes.alphas[0])
    assert_same(trajectory(ours), unscaled(theirs, ours), tolerance)


@pytest.mark.parametrize("spacing", ["linspace", "karras"])
def test_heun(spacing):
    """The twin's steps are halves of ours: its odd ones are the looks ahead."""
    ours = make_sampler("heun", SCHEDULE, 2 * STEPS - 1, spacing=spacing)
    twin = at_our_nodes(scheduler("HeunDiscrete"), ours)
    first, inner, last = twin.sigmas[:1], twin.sigmas[1:-1], twin.sigmas[-1:]
    twin.sigmas = torch.cat([first, inner.repeat_interleave(2), last])
    twin.timesteps = torch.cat([twin.timesteps[:1], twin.timesteps[1:].repeat_interleave(2)])
    theirs = run(twin, X / ours.nodes.alphas[0])
    assert_same(trajectory(ours), unscaled([*theirs[1::2], theirs[-1]], ours))


def unscaled(samples, sampler):
    """Return x_t from x_t / alpha."""
    return [alpha * x for alpha, x in zip(sampler.nodes.alphas[1:], samples, strict=True)]


# ------------------------------------------------------------------------------------------ k-diffusion


@pytest.mark.parametrize(
    ("name", "eta"),
    [
        *((name, None) for name in ("euler", "heun", "lms", "dpmpp_2m")),
        *((name, eta) for name in ("euler_a", "dpmpp_2m_sde", "dpmpp_3m_sde") for eta in (0.0, 0.6, 1.0)),
    ],
)
@pytest.mark.parametrize("spacing", ["karras", "exponential", "linspace"])
def test_k_diffusion(k_diffusion, name, spacing, eta):
    evaluations = 2 * STEPS - 1 if name == "heun" else STEPS
    ours = make_sampler(name, SCHEDULE, evaluations, spacing=spacing, eta=eta)
    nodes = ours.nodes
    sigmas = torch.tensor([nodes.sigma_karras(i) for i in range(STEPS + 1)], dtype=torch.float64)

    def clean(x, sigma):
        i = int((sigmas - sigma[0]).abs().argmin())
        x_t = x * nodes.alphas[i]
        return (x_t - nodes.sigmas[i] * network(x_t, ours.timesteps[i])) / nodes.alphas[i]

    left = iter(DRAWS)
    options = {} if eta is None else {"eta": eta, "noise_sampler": lambda *_: next(left)}
    before = []
    last = getattr(k_diffusion.sampling, "sample_euler_ancestral" if name == "euler_a" else f"sample_{name}")(
        clean,
        X / nodes.alphas[0],
        sigmas,
        disable=True,
        callback=lambda state: before.append(state["x"]),
        **options,
    )
    assert_same(trajectory(ours), unscaled([*before[1:], last], ours))


# ------------------------------------------------------------------------------------------- half of it


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "deis", "lms", "heun", "dpmpp_3m_sde"])
def test_float32_follows_float64(name):
    sampler = make_sampler(name, SCHEDULE, STEPS)
    zeros = repeat(torch.zeros_like(X))
    low = trajectory(sampler, repeat(torch.zeros_like(X).float()), X.float())
    assert low[-1].dtype == torch.float32
    assert_same([x.double() for x in low], trajectory(sampler, zeros), tolerance=2e-5)
