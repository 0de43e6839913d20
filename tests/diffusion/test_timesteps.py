"""The times that samplers visit, with the published oddities, and the embedding of a time."""

import pytest
import torch

from ldm.diffusion.schedule import Schedule, make_betas
from ldm.diffusion.timesteps import ddim_table, ddim_timesteps, timestep_embedding
from ldm.errors import InputError


@pytest.mark.parametrize(("asked", "got"), [(50, 50), (30, 31), (45, 46), (60, 63), (75, 77), (99, 100)])
def test_uniform_can_give_more_times_than_asked_for(asked: int, got: int):
    times = ddim_timesteps(asked)
    assert len(times) == got
    assert times[0] == 1 and times[1] - times[0] == 1000 // asked


@pytest.mark.parametrize("steps", [3, 9, 27, 36, 37, 101, 111, 251, 333, 501, 1000])
def test_a_time_past_the_end_becomes_the_last_one(steps: int):
    times = ddim_timesteps(steps)
    assert times[-1] == 999 and len(times) == -(-1000 // (1000 // steps))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_an_impossible_number_of_steps_is_an_error(steps: int):
    with pytest.raises(InputError, match=f"{steps} sampling steps"):
        ddim_timesteps(steps)


def test_an_unknown_spacing_is_an_error():
    with pytest.raises(InputError, match="uniform, quad"):
        ddim_timesteps(10, method="cubic")


def test_published_table():
    abar = Schedule(make_betas("linear", 1000, 0.00085, 0.012)).alphas_cumprod.numpy()
    times = ddim_timesteps(50)
    table = ddim_table(abar, times, 1.0)
    for row, (t, a, prev, sigma) in {
        0: (1, 0.99829602, 0.99914998, 0.02064835),
        24: (481, 0.30229566, 0.33084565, 0.28768537),
        49: (981, 0.00577550, 0.00728173, 0.45446329),
    }.items():
        assert times[row] == t
        # Published in float32.
        assert [column[row] for column in table] == pytest.approx([a, prev, sigma], abs=2e-7)


def test_embedding_is_cosines_then_sines_and_pads_odd_widths():
    t = torch.tensor([0.0, 1.5])
    embedding = timestep_embedding(t, 9)
    assert embedding.shape == (2, 9) and embedding.dtype == torch.float32
    assert embedding[0].tolist() == [1] * 4 + [0] * 5
    torch.testing.assert_close(embedding[1, [0, 4]], torch.stack([t[1].cos(), t[1].sin()]))
