"""Old dotted names: one table, importable, lazy, and never in the way of a real module."""

import importlib
import subprocess
import sys

import pytest

from ldm.published_names import PUBLISHED, install_import_finder, resolve


@pytest.mark.parametrize("old, new", PUBLISHED.items(), ids=PUBLISHED)
def test_every_old_name_imports_and_is_todays(old, new):
    module, _, name = old.rpartition(".")
    assert getattr(importlib.import_module(module), name) is resolve(new)


def test_as_notebooks_write_it():
    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.models.diffusion.ddpm import LatentDiffusion
    from ldm.modules.diffusionmodules import openaimodel
    from ldm.util import instantiate_from_config

    assert DDIMSampler.__module__ == "ldm.samplers.published"
    assert LatentDiffusion.__module__ == "ldm.models.latent_diffusion"
    assert openaimodel.UNetModel.__module__ == "ldm.models.unet"
    assert callable(instantiate_from_config)
    assert dir(openaimodel).count("UNetModel") == 1


def test_what_was_never_there_is_an_import_error():
    with pytest.raises(ImportError):
        importlib.import_module("ldm.models.diffusion.no_such_module")
    with pytest.raises(ImportError):
        exec("from ldm.models.diffusion.ddpm import NoSuchClass", {})


def test_real_modules_win():
    import ldm.models.autoencoder

    assert ldm.models.autoencoder.__spec__.origin.endswith("autoencoder.py")


def test_installing_twice_adds_nothing():
    before = list(sys.meta_path)
    install_import_finder()
    assert sys.meta_path == before


def test_importing_the_package_and_reading_a_config_load_no_torch(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1\n")
    code = (
        "import sys, ldm, ldm.config, ldm.errors, ldm.util, ldm.models.diffusion.ddim\n"
        f"ldm.config.load_config({str(tmp_path / 'a.yaml')!r})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
