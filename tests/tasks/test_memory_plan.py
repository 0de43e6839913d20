"""The plan of memory: whole where it fits, tiles where not, else refused; and what is counted is right."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from requesting import make_images, ready
from tiny_models import tiny_config, tiny_model

from ldm.backends import memory
from ldm.backends.memory import Peak
from ldm.errors import InputError, OutOfMemory
from ldm.networks import networks_of
from ldm.requests import Txt2Img, Upscale
from ldm.tasks import memory_plan
from ldm.tasks.memory_plan import Costs, Stage, fitting, plan, tiling_for
from ldm.tasks.tiles import Tiling

COSTS = Costs(used=1_000_000, unet=100, decoder=400, stages=(Stage(50, 300, 2), Stage(80, 350, 1)), image=1)
SIDES = (256, 200)
AREA = 256 * 200


def test_the_first_that_fits_is_taken():
    """In the order of the module: together, apart, tiles for the decoder, tiles for both."""
    base = 1_000_000 + 2 * AREA
    found = [fitting(COSTS, SIDES, 2, 4, 8, base + budget * AREA) for budget in (800, 799, 400, 399, 105, 99)]
    tilings = [tiling for tiling, _ in found]
    assert tilings[0] == Tiling()
    assert tilings[1] == tilings[2] == Tiling(one_by_one=True)
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
    with pytest.raises(OutOfMemory, match="the smallest tiles need about"):
        plan(COSTS, SIDES, 1, 2, 8, device)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda _: None)
    assert plan(COSTS, SIDES, 1, 2, 8, device) == Tiling()


def test_tiles_that_are_asked_for_are_taken_and_checked():
    forced = Tiling(64, 16, one_by_one=True)
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


@pytest.mark.slow
def test_a_budget_makes_tiles_and_the_picture_stays(model, monkeypatch):
    """The decoder's tiles change nothing; the UNet's keep the size, and so the run is planned end to end."""
    monkeypatch.setattr(memory_plan, "HEADROOM", {})
    monkeypatch.setattr(memory_plan, "used_bytes", lambda _: 0)
    settings = {"sampler": "ddim", "steps": 1, "scale": 3.0, "seed": 1, "faithful": "off"}
    image = np.random.default_rng(0).integers(0, 256, (40, 33, 3), np.uint8)
    networks = networks_of(model, torch.float32)

    def planned(size: int) -> Tiling:
        request = ready(model, Upscale, init_img=image, prompts=["a"], max_memory=size, **settings)
        return tiling_for(networks, request, (40, 36), 1)

    assert planned(10**9) == Tiling()
    budget = next(size for size in range(40 * 10**6, 4 * 10**6, -(10**6)) if planned(size).decoder_tile)
    tight = planned(budget)
    assert tight.tile is None and tight.one_by_one
    pictures = [
        next(make_images(model, Upscale, init_img=image, prompts=["a"], max_memory=size, **settings)).images
        for size in (10**9, budget)
    ]
    torch.testing.assert_close(*pictures, atol=2e-4, rtol=0)


def test_overlap_needs_tiles(model):
    image = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(InputError, match="--overlap 8 requires --tile"):
        make_images(model, Upscale, init_img=image, prompts=["a"], overlap=8)


def test_what_is_small_is_planned_only_where_it_is_asked_for(tmp_path, monkeypatch):
    other = tiny_model(tiny_config("sd2", tmp_path))
    networks, measured = networks_of(other, torch.float32), []
    monkeypatch.setattr(memory_plan, "measure", lambda networks: measured.append(1) or COSTS)
    plain, limited = (ready(other, Txt2Img, prompts=["a"], max_memory=size) for size in (None, 10**9))
    assert tiling_for(networks, plain, (128, 128), 8) == Tiling() and not measured
    tiling_for(networks, plain, (128, 132), 8)
    tiling_for(networks, limited, (8, 8), 8)
    tiling_for(networks, plain, (8, 8), 8, always=True)
    assert len(measured) == 3


@pytest.mark.slow
def test_planning_leaves_torchs_compiler_alone(tmp_path):
    """Its import takes seconds."""
    config = tiny_config("sd2", tmp_path)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tiny_models import tiny_model\n"
        "from ldm.networks import networks_of\n"
        "from ldm.tasks.memory_plan import measure\n"
        f"model = tiny_model(Path({str(config)!r}))\n"
        "assert measure(networks_of(model)).unet > 0\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    tests = Path(__file__).parents[1]
    paths = {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | paths)
