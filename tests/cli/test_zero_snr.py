"""--zero-snr as a command: for models that predict v, remembered, and refused in one line elsewhere."""

import pytest
from omegaconf import OmegaConf

from golden_cases import cases
from ldm.config import load_config
from ldm.imaging import metadata

FILES = cases("e2e_txt2img")[0].files
QUICK = ("--ckpt", FILES["checkpoint"], "--n_iter", 1, "--n_samples", 1, "--precision", "full", "--no-grid")
QUICK += ("--steps", 3, "--H", 32, "--W", 16)


@pytest.fixture
def config(tmp_path):
    """Write the tiny model's YAML for a parameterization."""

    def write(parameterization: str) -> str:
        path = tmp_path / f"{parameterization}.yaml"
        tree = load_config(FILES["config"], [f"model.params.parameterization={parameterization}"])
        OmegaConf.save(tree, path)
        return str(path)

    return write


def test_images_start_from_pure_noise_and_remember_it(run, tmp_path, config):
    images = {}
    for folder, flags in (("zero", ["--zero-snr"]), ("plain", [])):
        flags += ["--config", config("v"), "--schedule", "trailing", "--outdir", folder]
        outcome = run("txt2img.py", *QUICK, *flags)
        assert outcome.code == 0, outcome.err
        path = tmp_path / folder / "samples" / "00000.png"
        images[folder] = path.read_bytes()
        assert metadata.read_record(path)["resolved"]["zero_snr"] == (folder == "zero")
    assert images["zero"] != images["plain"]


@pytest.mark.parametrize(
    ("parameterization", "flags", "text"),
    [
        ("eps", (), "expected a model that predicts v, or no --zero-snr"),
        ("v", ("--sampler", "dpmpp_2m"), "use --schedule trailing"),
    ],
)
def test_where_it_cannot_be_it_is_one_line(run, tmp_path, config, parameterization, flags, text):
    flags = ("--zero-snr", "--config", config(parameterization), "--outdir", "o", *flags)
    outcome = run("txt2img.py", *QUICK, *flags)
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    assert text in outcome.err
    assert not (tmp_path / "o").exists()
