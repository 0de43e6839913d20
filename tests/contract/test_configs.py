"""Every YAML that ships: it loads, opens with the command that uses it, and says what was published."""

import re
from pathlib import Path

import pytest

from ldm.config import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def names(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


@pytest.mark.parametrize("path", CONFIGS, ids=names)
def test_it_loads_and_names_its_model(path: Path):
    assert load_config(path)


@pytest.mark.parametrize("path", CONFIGS, ids=names)
def test_it_opens_with_a_comment_that_says_how_it_is_used(path: Path):
    comment = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line)
    text = "\n".join(comment)
    assert text, "the file opens with what it is"
    assert "python scripts/" in text or "is still to come" in text
    for name in re.findall(r"\b(?:scripts|configs)/[\w./-]+\.(?:py|yaml)\b", text):
        assert (ROOT / name).is_file(), name


def published(name: str) -> dict:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(load_config(f"configs/{name}").model)


@pytest.mark.parametrize("variant", ["", "-v"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_intel_files_differ_in_precision_only(variant: str, dtype: str):
    plain = published(f"stable-diffusion/v2-inference{variant}.yaml")
    intel = published(f"stable-diffusion/intel/v2-inference{variant}-{dtype}.yaml")
    for model in (plain, intel):
        for key in ("use_checkpoint", "use_fp16", "use_bf16"):
            model["params"]["unet_config"]["params"].pop(key, None)
    assert plain == intel


def test_the_two_sd2_files_differ_in_what_is_predicted_only():
    eps, v = (published(f"stable-diffusion/v2-inference{variant}.yaml") for variant in ("", "-v"))
    assert v["params"].pop("parameterization") == "v"
    assert eps == v


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("v2-inpainting-inference", {"conditioning_key": "hybrid", "unet_config.in_channels": 9}),
        ("v2-midas-inference", {"conditioning_key": "hybrid", "unet_config.in_channels": 5}),
        (
            "x4-upscaling",
            {
                "scale_factor": 0.08333,
                "unet_config.num_classes": 1000,
                "low_scale_config.max_noise_level": 350,
            },
        ),
        ("v2-1-stable-unclip-h-inference", {"image_size": 96, "unet_config.adm_in_channels": 2048}),
        ("v2-1-stable-unclip-l-inference", {"image_size": 96, "unet_config.adm_in_channels": 1536}),
        ("v1-inpainting-inference", {"conditioning_key": "hybrid", "unet_config.in_channels": 9}),
        (
            "v1-inference",
            {"scale_factor": 0.18215, "unet_config.num_heads": 8, "unet_config.context_dim": 768},
        ),
    ],
)
def test_what_sets_a_variant_apart(name: str, params: dict):
    model = published(f"stable-diffusion/{name}.yaml")["params"]
    for key, value in params.items():
        node, _, param = key.rpartition(".")
        assert (model[node]["params"][param] if node else model[key]) == value
