"""scripts/upscale.py as a command: files, what is refused, going on after a stop, tiles and memory."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_config, tiny_model

from ldm.requests import Upscale
from ldm.requests.readers import size_in_bytes
from ldm.requests.resolving import ModelFacts, resolved

QUICK = ("--steps", 2, "--no-grid", "--device", "cpu", "--precision", "full", "--outdir", "out")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple:
    """Return the flags of an upscaler with random weights."""
    folder = tmp_path_factory.mktemp("upscaler")
    config = tiny_config("upscale", folder)
    model = tiny_model(config)
    state = {name: x.contiguous().clone() for name, x in model.state_dict().items()}
    save_file(state, folder / "upscaler.safetensors")
    return "--config", config, "--ckpt", folder / "upscaler.safetensors"


@pytest.fixture
def small(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 37, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "small.png")
    return tmp_path / "small.png"


def test_the_defaults_are_those_of_the_published_page():
    request = resolved(Upscale(), ModelFacts(512, 512, 4, 4))
    assert (request.steps, request.scale, request.eta) == (75, 10.0, 0.0)
    assert (request.n_samples, request.n_iter) == (1, 1)
    assert request.prompt == "a high quality professional photograph"
    assert request.TASKS == ("upscale",) and request.DEMO == "emoji_upscale"


def test_tiles_of_any_size_are_made_and_remembered(run, small, weights, tmp_path):
    outcome = run("upscale.py", "--init-img", small, *QUICK, *weights, "--tile", 17, "--noise-level", 5)
    assert outcome.code == 0, outcome.err
    assert "memory: tiles of 20, overlapping by 8, one sample at a time" in outcome.out
    with Image.open(tmp_path / "out/samples/00000.png") as image:
        assert image.size == (8 * 37, 8 * 20)  # this autoencoder's factor is 8


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--noise-level", 351), "noise level is 351; expected 0 to 350"),
        (("--max-memory", "1MB"), "--max-memory 1 MB: the smallest tiles need about"),
        (("--tile", 4), "--tile 4: expected 16 or more"),
        (("--overlap", 4), "--overlap 4 requires --tile"),
        (("--max-memory", "lots"), "expected auto or a size such as 8GB"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(run, small, weights, tmp_path, flags, says):
    outcome = run("upscale.py", "--init-img", small, *QUICK, *weights, *flags)
    assert outcome.code == 2 and says in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_images_are_refused_before_the_model_is_loaded(run, tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    for flags, says in (
        ((), "--init-img is missing: give the image to enlarge"),
        (("--init-img", "none.png"), "no such file"),
        (("--init-img", "bomb.png"), "at most 64 megapixels"),
    ):
        outcome = run("upscale.py", *flags, *QUICK)
        assert outcome.code == 2 and says in outcome.err, outcome.err


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_its_own_tiles(
    run, small, weights, tmp_path, monkeypatch, stop_at
):
    """Whatever memory is free by then."""
    from ldm.tasks import memory_plan

    flags = "--init-img", small, *QUICK, *weights, "--sampler", "euler_a", "--tile", 20
    assert run("upscale.py", *flags).code == 0
    stop_at(1)
    outcome = run("upscale.py", *flags)
    assert outcome.code == 75, outcome.err
    stop_at(None)
    (file,) = (tmp_path / "out").glob("interrupted-*.safetensors")
    monkeypatch.setattr(memory_plan, "free_bytes", lambda _: 1)  # now nothing would fit
    outcome = run("upscale.py", "--latents", file)
    assert outcome.code == 0, outcome.err
    images = [np.asarray(Image.open(tmp_path / f"out/samples/0000{i}.png")) for i in (0, 1)]
    assert np.array_equal(*images)


def test_sizes_of_memory_are_read():
    assert size_in_bytes("auto") is None
    assert [size_in_bytes(text) for text in ("8GB", "6.5GiB", "900M", "8 gb", "1024")] == [
        8 * 10**9, int(6.5 * 2**30), 9 * 10**8, 8 * 10**9, 1024,
    ]  # fmt: skip
