"""What a training configuration may say."""

from types import SimpleNamespace

import pytest
from script_files import REPOSITORY

from ldm.config import read_config
from ldm.errors import ConfigError
from ldm.training.building import check_side, precision_of
from ldm.training.options import (
    METHODS,
    SECTION_CLASSES,
    AutoencoderOptions,
    DiffusionOptions,
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


WRONG = {
    "train": [
        {"batch_size": 0}, {"batch_size": -3}, {"batch_size": True}, {"batch_size": float("inf")},
        {"accumulate": 0}, {"max_steps": -5}, {"max_steps": 1.5}, {"max_steps": "many"}, {"seed": -1},
        {"learning_rate": 0}, {"learning_rate": -1e-4}, {"learning_rate": float("nan")},
        {"learning_rate": float("inf")}, {"learning_rate": "nan"}, {"learning_rate": None},
        {"betas": [0.9]}, {"betas": [0.9, 1.0]}, {"betas": [-0.1, 0.9]}, {"betas": [0.9, 0.99, 0.999]},
        {"betas": [0.9, float("nan")]}, {"betas": ["a", "b"]}, {"betas": []}, {"betas": [True, 0.9]},
        {"weight_decay": -1}, {"grad_clip": -1}, {"lr_final": 1.5}, {"lr_final": -0.1},
        {"warmup_steps": -1}, {"precision": "fp16"}, {"precision": "bf16"}, {"precision": 16},
        {"lr_schedule": "linear"}, {"accelerator": "tpu"}, {"devices": 0}, {"num_threads": -1},
        {"prefetch": -1}, {"log_every": 0}, {"sample_every": -1}, {"save_every": 0}, {"keep": 0},
        {"self_check_steps": -1}, {"export_dtype": "bfloat16"}, {"max_time": "soon"}, {"max_time": -1},
        {"max_time": "nan"}, {"max_time": "inf"}, {"self_check_allow": ["a"]}, {"compile": "yes please"},
        {"num_threads": 10**400},
    ],
    "autoencoder": [
        {"pixel_weight": -1}, {"kl_weight": float("nan")}, {"disc_start": -2}, {"disc_channels": 0},
        {"disc_num_layers": 0}, {"ema_decay": 1.1}, {"ema_decay": -0.1}, {"scale_images": 0},
        {"perceptual_every": 0}, {"disc_loss": "hing"},
    ],
    "diffusion": [
        {"ema_decay": 2}, {"loss_type": "l3"}, {"min_snr_gamma": -5}, {"offset_noise": -0.1},
        {"text_dropout": 1.5}, {"text_dropout": -0.1}, {"embedding_dropout": 2}, {"cache_latents": -1},
        {"sample_count": -1}, {"sample_steps": 0}, {"sample_scale": float("inf")}, {"sample_prompts": "a"},
        {"sample_prompts": [True]}, {"sample_prompts": [["a"]]},
    ],
    "clip": [{"retrieval_count": 0}],
}  # fmt: skip


@pytest.mark.parametrize(
    "section, values",
    [(section, values) for section, wrong in WRONG.items() for values in wrong],
    ids=lambda value: str(value)[:40],
)
def test_a_value_out_of_its_range_is_refused_in_one_line(section, values):
    (key,) = values
    with pytest.raises(ConfigError) as caught:
        read_options(SECTION_CLASSES[section], values, section)
    text = str(caught.value)
    assert text.startswith(f"{section}.{key}") and "expected" in text and len(text.splitlines()) == 1


def test_the_bounds_themselves_fit():
    values = {"batch_size": 1, "max_steps": 0, "betas": [0, 0.9999], "lr_final": 1, "sample_every": 0}
    assert read_options(TrainOptions, values, "train").lr_final == 1.0
    assert read_options(DiffusionOptions, {"text_dropout": 1, "ema_decay": 0}, "diffusion").text_dropout == 1


@pytest.mark.parametrize("section", [[], "text", 3])
def test_a_section_that_is_no_mapping_is_refused(section):
    with pytest.raises(ConfigError, match="train: got .*expected a mapping"):
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
    from ldm.training.options import resolve_config

    resolved = resolve_config(read_config(path))
    method = method_of(resolved)
    assert set(resolved["train"]) == set(TrainOptions.__dataclass_fields__)
    assert set(resolved[method]) == set(METHODS[method][0].__dataclass_fields__)
    assert path.read_text().startswith(f"# python scripts/train.py --config configs/training/{path.name}")


def test_a_schedule_over_steps_needs_their_number(config):
    from ldm.training.options import resolve_config

    with pytest.raises(ConfigError, match="max_steps"):
        resolve_config(config("clip", lr_schedule="cosine", max_steps=0))


@pytest.mark.parametrize("is_fast, expected", [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_that_would_emulate_bfloat16_trains_in_float32(monkeypatch, is_fast, expected):
    monkeypatch.setattr("ldm.devices.is_fast", lambda dtype, device: is_fast)
    assert precision_of(TrainOptions(precision="bfloat16", accelerator="cpu")) == expected


@pytest.mark.parametrize(("side", "unit", "fits"), [(64, 32, 1), (100, 32, 0), (7, 8, 0), (7, 1, 1)])
def test_images_that_the_networks_cannot_halve_are_refused(side, unit, fits):
    model, data = SimpleNamespace(size_multiple=unit), SimpleNamespace(size=side)
    if fits:
        check_side(model, data, "data.params.size")
        check_side(model, SimpleNamespace(size=7, crop=side), "data.params.size")
    else:
        with pytest.raises(ConfigError, match=f"size: images of {side} x {side} .* multiples of {unit}$"):
            check_side(model, data, "data.params.size")


def test_a_bound_that_is_not_reached_is_called_so():
    with pytest.raises(ConfigError, match=r"betas: got \[1.0, 2.0\], expected at least 0 and less than 1$"):
        read_options(TrainOptions, {"betas": [1, 2]}, "train")
