"""Old dotted names: one table, importable, lazy, and never in the way of a real module."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.import_finder import install
from ldm.published_names import PUBLISHED, resolve

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("old, new", PUBLISHED.items(), ids=PUBLISHED)
def test_every_old_name_imports_and_is_todays(old, new):
    module, _, name = old.rpartition(".")
    assert getattr(importlib.import_module(module), name) is resolve(new)


def test_a_name_that_is_not_kept_says_what_is():
    import ldm.modules.attention as attention

    with pytest.raises(AttributeError, match=r"no attribute 'LinearAttention'; .*CrossAttention, .*see ldm"):
        attention.LinearAttention  # noqa: B018
    with pytest.raises(ImportError, match="LinearAttention"):
        exec("from ldm.modules.attention import LinearAttention", {})
    assert not hasattr(attention, "__wrapped__")


def test_the_small_helpers_do_what_they_did():
    import torch

    import ldm.util as util

    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert util.exists(0) and not util.exists(None)
    assert (util.default(None, 3), util.default(None, lambda: 4), util.default(0, 3)) == (3, 4, 0)
    assert util.isimage(x) and util.isimage(x[:, :1]) and not util.isimage(x[0]) and not util.isimage("x")
    assert util.ismap(torch.zeros(1, 4, 2, 2)) and not util.ismap(x) and not util.ismap(None)
    assert util.mean_flat(x).tolist() == [5.5, 17.5]
    assert util.count_params(torch.nn.Linear(3, 4), verbose=True) == 16
    assert util.get_obj_from_str("ldm.modules.attention.GEGLU").__module__ == "ldm.models.attention"
    assert util.get_obj_from_str("torch.nn.Linear") is torch.nn.Linear
    captions = util.log_txt_as_img((64, 32), ["a cat", "", "a long caption that takes several lines"])
    assert captions.shape == (3, 3, 32, 64) and captions.dtype == torch.float32
    assert captions.min() >= -1 and captions.max() == 1
    ink = (captions < 0).flatten(1).sum(1)
    assert ink[0] > 0 and ink[1] == 0 and ink[2] > ink[0]


# One published name of each old module -> what its callers do with it, which is true if it works.
USES = {
    "ldm.modules.attention.GEGLU": lambda found, x: found(4, 8)(x).shape == (1, 32, 4, 8),
    "ldm.modules.diffusionmodules.openaimodel.Downsample": lambda found, x: found(32, True)(x).shape[-1] == 2,
    "ldm.modules.diffusionmodules.model.AttnBlock": lambda found, x: found(32, 32)(x).shape == x.shape,
    "ldm.modules.diffusionmodules.util.timestep_embedding":
        lambda found, x: found(x[0, :2, 0, 0], 8).shape == (2, 8),
    "ldm.modules.distributions.distributions.DiagonalGaussianDistribution":
        lambda found, x: found(x).mode().shape == (1, 16, 4, 4),
    "ldm.models.autoencoder.AutoencoderKL": lambda found, x: hasattr(found, "encode"),
}


@pytest.mark.parametrize("name", USES)
def test_old_names_can_be_used(name):
    import torch

    module, _, attribute = name.rpartition(".")
    assert USES[name](getattr(importlib.import_module(module), attribute), torch.zeros(1, 32, 4, 4))


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


def test_models_are_of_the_references_base_class():
    from ldm.models.diffusion.ddpm import DDPM, LatentDiffusion, LatentUpscaleDiffusion
    from ldm.modules.attention import CrossAttention, MemoryEfficientCrossAttention

    assert issubclass(LatentUpscaleDiffusion, LatentDiffusion) and issubclass(LatentDiffusion, DDPM)
    assert isinstance(CrossAttention(32, heads=2, dim_head=16), MemoryEfficientCrossAttention)


def test_noise_like_repeats_the_noise_of_one_sample():
    import torch

    from ldm.modules.diffusionmodules.util import noise_like

    torch.manual_seed(1)
    plain, repeated = (noise_like((3, 4, 2, 2), "cpu", repeat) for repeat in (False, True))
    torch.manual_seed(1)
    assert torch.equal(plain, torch.randn(3, 4, 2, 2))
    assert torch.equal(repeated, torch.randn(1, 4, 2, 2).expand(3, -1, -1, -1))


def test_checkpoint_gives_the_gradients_of_the_function_itself():
    import torch

    from ldm.modules.diffusionmodules.model import nonlinearity
    from ldm.modules.diffusionmodules.util import checkpoint

    layer, x, calls = torch.nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True), []

    def compute(x, scale):
        calls.append(1)
        return nonlinearity(layer(x)) * scale

    torch.testing.assert_close(nonlinearity(x), x * x.sigmoid())
    found = []
    for flag in (False, True):
        out = checkpoint(compute, (x, 2.0), layer.parameters(), flag)
        found.append(torch.autograd.grad(out.square().sum(), [x, layer.weight, layer.bias]))
    assert len(calls) == 3 and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# The first line of scripts that do not import ldm before.
FIRST_LINES = [
    "import cldm.model; cldm.model.create_model",
    "from cldm.model import create_model, load_state_dict",
    "from cldm.hack import disable_verbosity, enable_sliced_attention",
    "from cldm.ddim_hacked import DDIMSampler",
    "from cldm.cldm import ControlLDM, ControlledUnetModel, ControlNet",
    "from cldm.logger import ImageLogger",
    "from scripts.txt2img import put_watermark, load_model_from_config, chunk",
    "from scripts.img2img import load_img, load_model_from_config",
]


@pytest.mark.slow
@pytest.mark.parametrize("line", FIRST_LINES)
def test_first_lines_of_other_scripts(tmp_path, line):
    """Run from another folder, with the checkout on the path."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", line], check=True, cwd=tmp_path, env=environment)


def test_a_folder_named_scripts_of_ones_own_is_left_alone(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "mine.py").write_text("answer = 42\n")
    code = (
        f"import sys; sys.path.insert(1, {str(ROOT)!r}); import ldm; del sys.path[1]\n"
        "from scripts.mine import answer; assert answer == 42\n"
        "from scripts.txt2img import put_watermark"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


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
    install()
    assert sys.meta_path == before


def test_importing_the_package_and_reading_a_config_load_no_torch(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1\n")
    code = (
        "import sys, ldm, ldm.config, ldm.errors, ldm.util, ldm.models.diffusion.ddim, cldm.model\n"
        "import scripts.txt2img, scripts.img2img, ldm.reference_scripts\n"
        f"ldm.config.load_config({str(tmp_path / 'a.yaml')!r})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
