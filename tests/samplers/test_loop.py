"""The loop: what it draws, yields, keeps and refuses, and the table of samplers."""

from itertools import islice

import pytest
import torch

from gaussian_data import MIXTURE, SCHEDULE, denoise, exact
from ldm.diffusion.cond import Cond
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import add_noise, denoiser
from ldm.diffusion.spacing import SPACINGS
from ldm.errors import InputError
from ldm.samplers import DDIM, DDPM, PLMS, SAMPLERS, DPMSolver, find_sampler, make_sampler, sample_loop
from ldm.samplers.loop import gaussian

ALWAYS_NOISY = {"ddpm", "lcm"}  # of these the distribution is tested, in test_convergence.py
X = torch.linspace(-2, 2, 2 * 3 * 4 * 4, dtype=torch.float64).view(2, 3, 4, 4)


class CountedNoise:
    def __init__(self):
        self.draws = 0

    def __call__(self, x):
        self.draws += 1
        return torch.randn_like(x)


@pytest.mark.parametrize(
    ("name", "draws", "with_mask"), [("ddim", 10, 20), ("plms", 11, 21), ("dpm", 0, 10)]
)
def test_noise_is_drawn_where_the_reference_draws(name: str, draws: int, with_mask: int):
    noise = CountedNoise()
    list(sample_loop(make_sampler(name, SCHEDULE, 10), denoise, X, None, noise=noise))
    assert noise.draws == draws
    noise = CountedNoise()
    kept = {"keep_mask": torch.ones(1, 1, 4, 4), "keep_x_0": X}
    list(sample_loop(make_sampler(name, SCHEDULE, 10), denoise, X, None, noise=noise, **kept))
    assert noise.draws == with_mask


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_is_yielded_in_order_and_nothing_runs_ahead(name: str):
    sampler = make_sampler(name, SCHEDULE, 10)
    calls = []

    def counted(x, t, cond):
        calls.append(float(t[0]))
        return denoise(x, t)

    steps = sample_loop(sampler, counted, X, None)
    assert calls == []
    first = next(steps)
    assert calls[0] == first.t == sampler.timesteps[0] and len(calls) == (2 if name == "plms" else 1)
    rest = list(steps)
    assert [step.i for step in (first, *rest)] == list(range(len(sampler)))
    assert [step.t for step in (first, *rest)] == sampler.timesteps


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_can_be_run_twice(name: str):
    sampler = make_sampler(name, SCHEDULE, 20)
    one, two = (
        [step.x_t for step in sample_loop(sampler, denoise, X, None, noise=torch.ones_like)] for _ in range(2)
    )
    assert torch.equal(one[-1], two[-1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_gets_whole_times_as_integers_and_fractions_as_floats(name: str):
    dtypes = set()

    def typed(x, t, cond):
        dtypes.add(t.dtype)
        return denoise(x, t)

    sampler = make_sampler(name, SCHEDULE, 4)
    list(sample_loop(sampler, typed, X.float(), None))
    fractional = isinstance(sampler.timesteps[0], float)
    assert fractional == (name == "dpm" or sampler.default_spacing in ("karras", "exponential"))
    assert dtypes == {torch.float32 if fractional else torch.int64}


@pytest.mark.few(4)
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - ALWAYS_NOISY))
def test_image_to_image_from_every_strength_ends_near_the_exact_solution(name: str):
    eta = 0.0 if SAMPLERS[name].cls.default_eta else None
    sampler = make_sampler(name, SCHEDULE, 100, eta=eta)
    for t_enc in [t for t in (100, 80, 30, 1) if t <= len(sampler)]:
        eps = torch.randn_like(X)
        start = sampler.start_index(t_enc)
        x_t = sampler.noised(X, t_enc, eps)
        steps = list(sample_loop(sampler, denoise, x_t, None, start=start))
        assert len(steps) == t_enc
        error = (steps[-1].x_t - exact(x_t, sampler.timesteps[start], 0)).abs().max()
        assert error < 0.1, t_enc
    assert list(sample_loop(sampler, denoise, X, None, start=sampler.start_index(0))) == []


def test_the_start_of_image_to_image_is_one_row_noisier_than_its_first_step():
    """Reference: 50 steps at strength 0.8 add the noise of 801 and then begin at 781."""
    sampler = DDIM(SCHEDULE, 50)
    eps = torch.randn_like(X)
    torch.testing.assert_close(
        sampler.noised(X, 40, eps), add_noise(SCHEDULE, X, eps, torch.tensor([801, 801]))
    )
    assert sampler.timesteps[sampler.start_index(40)] == 781
    full = add_noise(SCHEDULE, X, eps, torch.tensor([981, 981]))
    torch.testing.assert_close(sampler.noised(X, 50, eps), full)  # strength 1: there is no row above
    rows = sampler.noised(X, torch.tensor([40, 50]), eps)  # one row a sample
    torch.testing.assert_close(rows[1], full[1])
    solver = DPMSolver(SCHEDULE, 10)
    torch.testing.assert_close(
        solver.noised(X, 4, eps), add_noise(SCHEDULE, X, eps, torch.full((2,), 399.6).double())
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mask_keeps_the_noised_original_before_every_step(name: str, dtype: torch.dtype):
    keep = torch.zeros(1, 1, 4, 4, dtype=dtype)
    keep[..., :2] = 1
    original = X.flip(0)
    eps = torch.randn_like(X)
    seen = []

    def spied(x, t, cond):
        seen.append((x, t))
        return denoise(x, t)

    sampler = make_sampler(name, SCHEDULE, 10)
    list(
        sample_loop(sampler, spied, X, None, keep_mask=keep, keep_x_0=original, keep_noise=eps)
    )
    if name == "plms":
        del seen[1]  # its extra look ahead
    if name == "heun":
        seen = seen[:1] + seen[1:-1:2] + seen[-1:]  # without those of its corrections
    assert len(seen) == len(sampler)
    for x, t in seen:
        want = add_noise(SCHEDULE, original, eps, t)
        torch.testing.assert_close(x[..., :2], want[..., :2], rtol=1e-6, atol=1e-6)
        assert not torch.allclose(x[..., 2:], want[..., 2:])


def test_temperature_and_noise_dropout_act_on_the_added_noise_only():
    def run(**options):
        torch.manual_seed(1)
        return next(sample_loop(DDIM(SCHEDULE, 10, **options), denoise, X, None)).x_t

    plain, noisy = run(eta=1.0, temperature=0.0), run(eta=1.0)
    torch.testing.assert_close(run(eta=1.0, temperature=0.5), (plain + noisy) / 2)
    dropped = run(eta=1.0, noise_dropout=0.5)
    share = float(torch.isclose(dropped, plain).float().mean())
    assert 0.3 < share < 0.7
    torch.testing.assert_close(run(eta=1.0, noise_dropout=1.0), plain)


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_x_0_can_be_corrected(name: str):
    sampler = make_sampler(name, SCHEDULE, 10, correct_x_0=lambda x: x.clamp(-0.1, 0.1))
    for step in sample_loop(sampler, denoise, X, None):
        assert step.x_0.abs().max() <= 0.1
    assert step.x_t.abs().max() < 0.4


def test_ancestral_steps_can_clip_their_x_0():
    clipped = DDPM(SCHEDULE, correct_x_0=lambda x: x.clamp(-1, 1))
    steps = list(sample_loop(clipped, denoise, 9 * X, None, start=clipped.start_index(5)))
    assert [step.t for step in steps] == [4, 3, 2, 1, 0]
    assert max(float(step.x_0.abs().max()) for step in steps) <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_are_not_kept(name: str):
    x_t = X.clone().requires_grad_()
    for step in sample_loop(make_sampler(name, SCHEDULE, 2), denoise, x_t, None):
        assert not step.x_t.requires_grad
    assert torch.is_grad_enabled()


def test_the_order_of_random_numbers_does_not_depend_on_the_memory_layout():
    torch.manual_seed(0)
    plain = gaussian(X.float())
    torch.manual_seed(0)
    assert torch.equal(gaussian(X.float().to(memory_format=torch.channels_last)), plain)
    torch.manual_seed(0)
    assert torch.equal(torch.randn(X.shape), plain)


def test_samplers_are_found_by_any_spelling():
    assert find_sampler("DDIM").cls is DDIM
    for name in ("dpm", "DPM-Solver++", "dpm_solver"):
        assert find_sampler(name).cls is DPMSolver
    for name, found in (("DPM++ 2M SDE", "dpmpp_2m_sde"), ("dpm++ 2M", "dpmpp_2m"), ("Euler a", "euler_a")):
        assert find_sampler(name).name == found
    with pytest.raises(InputError, match="did you mean 'plms'"):
        find_sampler("plm")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: make_sampler("eulr", SCHEDULE, 10), "unknown sampler 'eulr'"),
        (lambda: make_sampler("plms", SCHEDULE, 10, eta=0.5), "takes no eta"),
        (lambda: make_sampler("dpm", SCHEDULE, 10, eta=0.5), "takes no eta"),
        (lambda: make_sampler("ddim", SCHEDULE, 10, eta=-1), "expected 0"),
        (lambda: make_sampler("ddim", SCHEDULE, 10, eta=3.0), "more noise than its end has"),
        (lambda: make_sampler("ddim", SCHEDULE, 1001), "1001 sampling steps"),
        (lambda: make_sampler("dpm", SCHEDULE, 0), "0 sampling steps"),
        (lambda: make_sampler("lcm", SCHEDULE, 51), "51 LCM steps: expected 1 to 50, or --schedule"),
        (lambda: make_sampler("unipc", SCHEDULE, 9, order=4), "expected 1, 2 or 3"),
        (lambda: make_sampler("unipc", SCHEDULE, 9, variant="bh3"), "expected bh1 or bh2"),
        (lambda: make_sampler("deis", SCHEDULE, 9, order=5), "expected 1 to 4"),
        (lambda: make_sampler("unipc", SCHEDULE, 9, eta=1.0), "takes no eta"),
        (lambda: DDPM(SCHEDULE, 1001), "1001 sampling steps"),
        (lambda: PLMS(SCHEDULE, 10).start_index(11), "cannot run 11 of 10"),
        (lambda: DPMSolver(SCHEDULE, 10).start_index(-1), "cannot run -1 of 10"),
        (lambda: DDIM(SCHEDULE, 10).noised(X, 11, X), "noise of 11 of 10"),
        (lambda: DPMSolver(SCHEDULE, 10).noised(X, 11, X), "11 of 10"),
        (lambda: next(sample_loop(DDIM(SCHEDULE, 10), denoise, X, None, keep_mask=X)), "given together"),
        (lambda: next(sample_loop(DDIM(SCHEDULE, 10), denoise, X, None, start=11)), "step 11 of 10"),
    ],
)
def test_what_cannot_be_honoured_is_one_clear_error(make, text: str):
    with pytest.raises(InputError, match=text):
        make()


@pytest.mark.few(42)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 9, 30])
def test_with_a_spacing_the_network_is_asked_exactly_so_often(name: str, spacing: str, steps: int):
    sampler = make_sampler(name, SCHEDULE, steps, spacing=spacing)
    calls = []

    def counted(x, t, cond):
        calls.append(t)
        return denoise(x, t)

    *_, step = sample_loop(sampler, counted, X, None)
    assert len(calls) == sampler.evaluations() == steps
    assert torch.isfinite(step.x_t).all()


@pytest.mark.parametrize(("name", "steps", "calls"), [("ddim", 30, 31), ("plms", 30, 32), ("dpm", 30, 30)])
def test_without_a_spacing_the_reference_count_is_kept_and_known(name: str, steps: int, calls: int):
    assert make_sampler(name, SCHEDULE, steps).evaluations() == calls


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_count_is_known_where_an_earlier_run_is_gone_on_with(name: str):
    sampler = make_sampler(name, SCHEDULE, 9, spacing="trailing")
    *_, step = islice(sample_loop(sampler, denoise, X, None), 3)
    memory, calls = tuple(sampler.memory), []

    def counted(x, t, cond):
        calls.append(t)
        return denoise(x, t)

    list(sample_loop(sampler, counted, step.x_t, None, start=3, memory=memory))
    assert len(calls) == sampler.evaluations(3, memory)


def prompted(parameterization: str):
    """Return a network whose x_0 depends on the conditioning, in a parameterization."""

    def apply_model(x_t, t, cond):
        pull = cond.context.mean((1, 2)).view(-1, 1, 1, 1)
        x_0 = MIXTURE.denoise(x_t, t).x_0 + 0.3 * torch.tanh(x_t) * pull
        alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
        eps = (x_t - alpha * x_0) / sigma
        return {"eps": eps, "v": alpha * eps - sigma * x_0, "x0": x_0}[parameterization]

    return apply_model


@pytest.mark.few(14)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_eps_v_and_x_0_take_the_same_steps_guided_masked_and_from_an_image(name, start, masked):
    cond, uncond = map(Cond, torch.ones(2, 2, 3, 4, dtype=torch.float64).cumsum(0) / 2)
    kept = {}
    if masked:
        keep = (X > 0.5).double()
        kept = {"keep_mask": keep, "keep_x_0": X.flip(0), "keep_noise": torch.cos(9 * X)}
    runs = []
    for parameterization in ("eps", "v", "x0"):
        calls, network = [], prompted(parameterization)

        def counted(x, t, c, network=network, calls=calls):
            calls.append(len(x))
            return network(x, t, c)

        sampler = make_sampler(name, SCHEDULE, 12, spacing="trailing")
        x_t = sampler.noised(torch.sin(X), len(sampler) - start, torch.cos(5 * X))
        guided = ClassifierFreeGuidance(denoiser(counted, SCHEDULE, parameterization), uncond, 3.0)
        steps = sample_loop(sampler, guided, x_t, cond, noise=torch.sin, start=start, **kept)
        runs.append([step.x_t for step in steps])
        assert calls == [4] * sampler.evaluations(start)  # each once, on both halves
    torch.testing.assert_close(runs[0], runs[1])
    torch.testing.assert_close(runs[0], runs[2])
    assert not torch.allclose(runs[0][-1], X)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - ALWAYS_NOISY))
def test_what_a_mask_keeps_reaches_the_end(name: str):
    """The last step is left as it is, so the kept part ends as the network cleans it: near the original."""
    eta = 0.0 if SAMPLERS[name].cls.default_eta else None
    sampler = make_sampler(name, SCHEDULE, 30, eta=eta, spacing="karras")
    keep = torch.zeros_like(X)
    keep[..., :2] = 1
    kept = {"keep_mask": keep, "keep_x_0": X.flip(0).clamp(-1, 1), "keep_noise": torch.cos(9 * X)}
    *_, step = sample_loop(sampler, denoise, X, None, **kept)
    assert (step.x_t - kept["keep_x_0"])[..., :2].abs().max() < 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_goes_on_from_any_step_given_latents_and_memory(name: str):
    sampler = make_sampler(name, SCHEDULE, 10)
    whole, stops = [], []
    for step in sample_loop(sampler, denoise, X, None, noise=torch.zeros_like):
        whole.append(step.x_t)
        stops.append((step.i + 1, step.x_t, list(sampler.memory)))
    for start, x_t, memory in stops[:-1]:
        *_, step = sample_loop(
            sampler, denoise, x_t, None, noise=torch.zeros_like, start=start, memory=memory
        )
        assert torch.equal(step.x_t, whole[-1])


def test_keyed_noise_gets_the_step_and_the_purpose():
    asked = []

    class Keyed:
        def at(self, i, purpose):
            asked.append((i, purpose))
            return torch.zeros_like

    list(
        sample_loop(
            DDIM(SCHEDULE, 2), denoise, X, None, noise=Keyed(), keep_mask=torch.ones(1, 1, 4, 4), keep_x_0=X
        )
    )
    assert asked == [(0, "keep"), (0, "step"), (1, "keep"), (1, "step")]
