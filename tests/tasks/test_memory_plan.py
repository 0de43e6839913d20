"""The plan of memory: whole where it fits, tiles where not, else refused; and what is counted is right."""

import logging

import numpy as np
import pytest
import torch
from tiny_models import tiny_config, tiny_model

from ldm.backends import memory
from ldm.backends.memory import Peak
from ldm.errors import InputError, OutOfMemory
from ldm.tasks import memory_plan
from ldm.tasks.memory_plan import Costs, Stage, fitting, plan
from ldm.tasks.sampling import Settings
from ldm.tasks.tiles import Tiling
from ldm.tasks.upscale import plan_upscale, upscale

COSTS = Costs(used=1_000_000, unet=100, decoder=400, stages=(Stage(50, 300, 2), Stage(80, 350, 1)), picture=1)
SIDES = (256, 200)
AREA = 256 * 200


def test_the_first_that_fits_is_taken():
    """In the order of the module: together, apart, tiles for the decoder, tiles for both."""
    base = 1_000_000 + 2 * AREA
    found = [fitting(COSTS, SIDES, 2, 4, 8, base + budget * AREA) for budget in (800, 799, 400, 399, 105, 99)]
    tilings = [tiling for tiling, _ in found]
    assert tilings[0] == Tiling()
    assert tilings[1] == tilings[2] == Tiling(apart=True)
    assert tilings[3].tile is None and tilings[3].decoder_tile == 128
    assert tilings[4].tile is None and tilings[4].decoder_tile < 64
    assert 32 <= tilings[5].tile < 256 and tilings[5].tile % 8 == 0 and tilings[5].overlap >= 8
    for (_, need), budget in zip(found, (800, 799, 400, 399, 105, 99), strict=True):
        assert need <= base + budget * AREA


def test_what_does_not_fit_in_the_smallest_tiles_is_refused():
    assert fitting(COSTS, SIDES, 1, 2, 8, 1_000_000) is None
    device = torch.device("cpu")
    with pytest.raises(InputError, match=r"--max-memory 1 MB: the smallest tiles need about 5"):
        plan(COSTS, SIDES, 1, 2, 8, device, 1_000_000)


def test_free_memory_is_the_budget_where_none_is_given(monkeypatch, caplog):
    device = torch.device("cpu")
    monkeypatch.setattr(memory_plan, "free_bytes", lambda _: 10**9)
    with caplog.at_level(logging.INFO, logger="ldm"):
        assert plan(COSTS, SIDES, 1, 2, 8, device) == Tiling()
    assert caplog.messages == ["memory: whole: needs about 21.5 MB of 901 MB free"]
    monkeypatch.setattr(memory_plan, "free_bytes", lambda _: 10_000)
    with pytest.raises(OutOfMemory, match="are needed in the smallest tiles"):
        plan(COSTS, SIDES, 1, 2, 8, device)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda _: None)
    assert plan(COSTS, SIDES, 1, 2, 8, device) == Tiling()


def test_tiles_that_are_asked_for_are_taken_and_checked():
    forced = Tiling(64, 16, apart=True)
    tiling, _ = fitting(COSTS, SIDES, 1, 2, 8, 10**9, forced)
    assert (tiling.tile, tiling.overlap) == (64, 16)
    assert fitting(COSTS, SIDES, 1, 2, 8, 1_100_000, forced) is None


def test_the_bytes_that_are_alive_are_counted():
    """Three tensors at most, of which views and what was there before are none."""
    x = torch.zeros(1000)
    with Peak() as counted:
        a = x + 1
        b = a.view(10, 100).t()
        c = b * 2
        del a, b
        d = c + 1
        del c, d
        x.view(10, 100).sum()
    assert counted.peak == 2 * 4000


def test_a_convolution_counts_its_copies_on_cpus():
    conv = torch.nn.Conv2d(2, 4, 3, padding=1).requires_grad_(False)
    with Peak(workspace=1.0) as counted:
        conv(torch.zeros(1, 2, 8, 8))
    assert counted.peak == 4 * 64 * (2 + 4 + 2 + 4)


@pytest.fixture
def group(tmp_path):
    """A control group with limits of its own and above, as Linux shows it."""
    root, own = tmp_path / "cgroup", tmp_path / "own"
    inner = root / "outer" / "inner"
    inner.mkdir(parents=True)
    own.write_text("0::/outer/inner\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("100\n")
    (root / "outer" / "memory.max").write_text("8000\n")
    (root / "outer" / "memory.current").write_text("5000\n")
    (root / "outer" / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    return root, own


def test_the_tightest_limit_of_a_control_group_counts(group, tmp_path):
    assert memory._cgroup_free(*group) == 8000 - 5000 + 500
    assert memory._cgroup_free(tmp_path / "none", tmp_path / "nowhere") is None


def test_this_machine_says_what_is_there():
    free, held = memory.free_bytes(torch.device("cpu")), memory.resident_bytes()
    assert free is None or free > 0
    assert 10**7 < held <= memory.peak_resident_bytes() * 1.01


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tiny_config("upscale", tmp_path_factory.mktemp("upscale")))


def test_a_budget_makes_tiles_and_the_picture_stays(model, monkeypatch):
    """The decoder's tiles change nothing; the UNet's keep the size, and so the run is planned end to end."""
    monkeypatch.setattr(memory_plan, "HEADROOM", {})
    monkeypatch.setattr(memory_plan, "used_bytes", lambda _: 0)
    settings = Settings("ddim", 1, guidance_scale=3.0)
    image = np.random.default_rng(0).integers(0, 256, (40, 33, 3), np.uint8)
    whole = plan_upscale(model, (40, 33), settings=settings, max_memory=10**9)
    assert whole == Tiling()
    tight = next(
        tiling
        for budget in range(40, 4, -1)
        if (
            tiling := plan_upscale(model, (40, 33), settings=settings, max_memory=budget * 10**6)
        ).decoder_tile
    )
    pictures = [
        next(upscale(model, image, ["a"], seed=1, settings=settings, tiling=tiling)).images
        for tiling in (whole, tight)
    ]
    assert tight.tile is None and tight.apart
    torch.testing.assert_close(*pictures, atol=2e-4, rtol=0)


def test_overlap_needs_tiles(model):
    with pytest.raises(InputError, match="overlap 8 is of tiles; give --tile too"):
        plan_upscale(model, (40, 40), overlap=8)
