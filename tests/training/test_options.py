"""What a training configuration may say."""

import pytest
from script_files import REPOSITORY

from ldm.config import read_config
from ldm.errors import ConfigError
from ldm.training.options import (
    METHODS,
    AutoencoderOptions,
    TrainOptions,
    method_of,
    parse_duration,
    read_options,
)

SHIPPED = sorted((REPOSITORY / "configs" / "training").glob("*.yaml"))


@pytest.mark.parametrize(
    "text, seconds", [("90", 90), (90, 90), ("01:30", 90), ("01:30:00", 5400), ("", 0), (0.5, 0.5)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1:2:3:4", "-5", "1h"])
def test_wrong_durations_are_named(text):
    with pytest.raises(ConfigError, match="HH:MM:SS"):
        parse_duration(text)


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"train\.learning_rat: unknown.*learning_rate"):
        read_options(TrainOptions, {"learning_rat": 1e-4}, "train")


@pytest.mark.parametrize(
    "section",
    [
        {"batch_size": "many"},
        {"batch_size": 2.5},
        {"channels_last": 1},
        {"betas": 0.9},
        {"precision": "float16"},
    ],
)
def test_a_wrong_value_is_refused(section):
    with pytest.raises(ConfigError, match=next(iter(section))):
        read_options(TrainOptions, section, "train")


def test_yaml_writes_small_numbers_as_text():
    assert read_options(TrainOptions, {"learning_rate": "1e-4"}, "train").learning_rate == 1e-4
    assert read_options(AutoencoderOptions, {"kl_weight": 1}, "autoencoder").kl_weight == 1.0


def test_exactly_one_method():
    assert method_of({"model": {}, "clip": {}}) == "clip"
    with pytest.raises(ConfigError, match="exactly one"):
        method_of({"model": {}, "clip": {}, "diffusion": {}})
    with pytest.raises(ConfigError, match="exactly one"):
        method_of({"model": {}})
    with pytest.raises(ConfigError, match="modle.*did you mean 'model'"):
        method_of({"modle": {}, "clip": {}})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    from ldm.training.fit import resolve_config

    resolved = resolve_config(read_config(path))
    method = method_of(resolved)
    assert set(resolved["train"]) == set(TrainOptions.__dataclass_fields__)
    assert set(resolved[method]) == set(METHODS[method][0].__dataclass_fields__)
    assert path.read_text().startswith(f"# python scripts/train.py --config configs/training/{path.name}")


def test_a_schedule_over_steps_needs_their_number(config):
    from ldm.training.fit import resolve_config

    with pytest.raises(ConfigError, match="max_steps"):
        resolve_config(config("clip", lr_schedule="cosine", max_steps=0))
