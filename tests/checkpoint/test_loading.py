"""A model is loaded whole and exactly, or not at all."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm
from golden_cases import case
from ldm.checkpoint.guess import guess
from ldm.config import instantiate, load_config
from ldm.errors import BackendUnavailable, CheckpointError, ConfigError, LdmError
from ldm.loading import COMPUTED, SURPLUS, UNUSED, averaged_names, load_model, match

BASE = case("e2e_txt2img_ddim").files
YAML = BASE["config"]
SKIPPED = ("betas", "alphas", "sqrt_", "log_one", "posterior", "cond_stage_model.model.logit_scale")
TEXT_PROJECTION = "cond_stage_model.model.text_projection"
FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def stored():
    return load_file(BASE["checkpoint"])


@pytest.fixture(scope="module")
def on_meta():
    with torch.device("meta"):
        return instantiate(load_config(YAML).model)


def load(weights, tmp_path, **options):
    save_file({name: x.contiguous() for name, x in weights.items()}, tmp_path / "model.safetensors")
    return load_model(options.pop("config", YAML), tmp_path / "model.safetensors", device="cpu", **options)


def fails(weights, tmp_path, *expected, **options):
    with pytest.raises(CheckpointError) as caught:
        load(weights, tmp_path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in expected), message


@pytest.mark.parametrize("kind", ["checkpoint", "checkpoint_ckpt"])
def test_both_formats_load_every_tensor_exactly(kind, stored):
    model = ldm.load_model(YAML, BASE[kind], device="cpu")
    loaded = model.state_dict()
    assert loaded.keys() == stored.keys()
    for name, x in stored.items():
        exact = not name.startswith(SKIPPED)
        assert torch.equal(loaded[name], x.float()) if exact else torch.allclose(loaded[name], x.float())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    tensors = [*model.parameters(), *model.buffers()]
    assert {x.device.type for x in tensors} == {"cpu"}
    assert {x.dtype for x in tensors if x.is_floating_point()} == {torch.float32}


def test_takes_a_read_configuration_and_bare_model_nodes(stored):
    config = load_config(YAML, ["model.params.scale_factor=0.5"])
    assert load_model(config, BASE["checkpoint"], device="cpu").scale_factor == 0.5
    assert load_model(config.model, BASE["checkpoint"], device="cpu").scale_factor == 0.5


def test_half_precision_converts_weights_and_leaves_the_schedule(tmp_path, stored):
    model = load(stored, tmp_path, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.state_dict()[FIRST_CONV], stored[FIRST_CONV].bfloat16())
    assert model.alphas_cumprod.dtype is torch.float32
    assert torch.equal(model.alphas_cumprod, model.schedule.alphas_cumprod.float())


def test_the_schedule_comes_from_the_configuration(tmp_path, stored, caplog):
    rounded = {name: x.half() if name in ("betas", "alphas_cumprod") else x for name, x in stored.items()}
    with caplog.at_level(logging.WARNING):
        model = load(rounded, tmp_path)
    assert torch.equal(model.betas, model.schedule.published_buffers()["betas"]) and not caplog.records
    other = stored | {"alphas_cumprod": stored["alphas_cumprod"] * 0.9}
    with caplog.at_level(logging.WARNING):
        load(other, tmp_path)
    assert "another noise schedule" in caplog.text


def test_a_file_that_lacks_any_one_tensor_is_refused(stored, on_meta):
    needed = [name for name in stored if not name.startswith(SKIPPED) and name != TEXT_PROJECTION]
    assert len(needed) > 400
    for name in needed:
        x = stored.pop(name)
        assert match(on_meta, stored).missing == [name]
        stored[name] = x
    assert match(on_meta, stored).is_good


def test_a_tensor_of_another_shape_kind_or_name_is_refused(stored, on_meta):
    for name in [name for name in stored if not name.startswith(SKIPPED)][::10]:
        for wrong in (stored[name][None], stored[name].to(torch.int64)):
            fit = match(on_meta, stored | {name: wrong})
            assert len(fit.misshapen) == 1 and name in fit.misshapen[0]
    assert match(on_meta, stored | {"model.diffusion_model.extra": torch.zeros(1)}).unexpected
    assert match(on_meta, stored | {"first_stage_model.lossy": torch.zeros(1)}).unexpected


def test_the_refusal_counts_groups_and_guesses(tmp_path, stored):
    kept = {name: x for name, x in stored.items() if not name.startswith("first_stage_model.")}
    kept[FIRST_CONV] = torch.zeros(32, 9, 3, 3)
    kept["strange"] = torch.zeros(1)
    lacking = len(stored) - len(kept) + 1
    fails(
        kept, tmp_path,
        f"{lacking} missing, 1 misshapen; 1 unexpected",
        f"missing {lacking} of the autoencoder (first_stage_model.",
        f"misshapen 1 of the UNet ({FIRST_CONV} (32, 9, 3, 3) instead of (32, 4, 3, 3))",
        "unexpected 1 of no known part (strange)",
        "model.safetensors is a model of context width 8 for inpainting (9 input channels) without VAE, but "
        f"{YAML} asks for a model of context width 8 for text-to-image (4 input channels); ",
    )


def test_a_lora_is_not_mistaken_for_a_model(tmp_path):
    fails({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, tmp_path, "is a LoRA, which changes a model")


def test_harmless_differences_are_harmless(tmp_path, stored):
    extra = {
        "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3, dtype=torch.int32),
        "logvar": torch.zeros(1000), "lvlb_weights": torch.zeros(1000),
        "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    lean = {name: x for name, x in stored.items() if not name.startswith(SKIPPED) and name != TEXT_PROJECTION}
    assert len(stored) - len(lean) == 14
    for weights in (stored | extra, lean | extra):
        model = load(weights, tmp_path)
        assert torch.equal(model.state_dict()[FIRST_CONV], stored[FIRST_CONV].float())
        assert not any(x.is_meta for x in [*model.parameters(), *model.buffers()])
    assert torch.count_nonzero(model.state_dict()[TEXT_PROJECTION]) == 0


def test_every_harmless_key_has_a_reason():
    assert all(table.values() for table in (COMPUTED, SURPLUS, UNUSED))


@pytest.fixture(scope="module")
def with_average(stored, on_meta):
    names = averaged_names(on_meta)
    assert names["model_ema.diffusion_modelinput_blocks00weight"] == FIRST_CONV
    return stored | {averaged: stored[raw] + 1 for averaged, raw in names.items()}


def test_averaged_weights_are_used_where_the_configuration_says_so(tmp_path, stored, with_average, caplog):
    caplog.set_level(logging.INFO)
    raw = load(with_average, tmp_path).state_dict()
    assert torch.equal(raw[FIRST_CONV], stored[FIRST_CONV].float()) and "raw ones are used" in caplog.text
    config = load_config(YAML, ["model.params.use_ema=true"])
    averaged = load(with_average, tmp_path, config=config).state_dict()
    assert "averaged (EMA) weights are used" in caplog.text
    for name, x in averaged.items():
        if name.startswith("model.diffusion_model."):
            assert torch.equal(x, (stored[name] + 1).float())
        elif name.startswith("first_stage_model."):
            assert torch.equal(x, stored[name].float())


def test_half_an_average_is_not_used(tmp_path, stored, with_average, caplog):
    partial = dict(with_average)
    del partial["model_ema.diffusion_modelinput_blocks00weight"]
    config = load_config(YAML, ["model.params.use_ema=true"])
    model = load(partial, tmp_path, config=config)
    assert "lacks 1 of its averaged weights" in caplog.text
    assert torch.equal(model.state_dict()[FIRST_CONV], stored[FIRST_CONV].float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_found(value, tmp_path, stored, caplog):
    spoilt = stored[FIRST_CONV].clone()
    spoilt.flatten()[17] = value
    weights = stored | {FIRST_CONV: spoilt}
    fails(weights, tmp_path, f"{FIRST_CONV} (1 of {spoilt.numel()})")
    load(weights, tmp_path, allow_nonfinite=True)
    assert "loaded all the same" in caplog.text


def test_weights_beyond_the_dtype_are_found_and_large_sums_are_not_mistaken(tmp_path, stored):
    large = torch.full_like(stored[FIRST_CONV], 60000.0, dtype=torch.float32)
    load(stored | {FIRST_CONV: large}, tmp_path, dtype="float16")
    fails(stored | {FIRST_CONV: large * 2}, tmp_path, "torch.float16", FIRST_CONV, dtype="float16")


def test_a_configuration_without_a_model(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {}\n")
    with pytest.raises(ConfigError, match="no 'model' node"):
        load_model(tmp_path / "a.yaml", BASE["checkpoint"], device="cpu")


@pytest.mark.parametrize("options", [{"device": "cuda:99"}, {"device": "abc"}, {"dtype": "float64"}])
def test_device_and_dtype_are_checked_first(options, tmp_path):
    with pytest.raises(LdmError) as caught:
        load_model("no such.yaml", tmp_path / "no such.ckpt", **({"device": "cpu"} | options))
    assert isinstance(caught.value, BackendUnavailable) or "expected auto" in str(caught.value)


def test_the_guess_for_the_model_itself(on_meta):
    shapes = {name: tuple(x.shape) for name, x in on_meta.state_dict().items()}
    assert guess(shapes) == "a model of context width 8 for text-to-image (4 input channels)"
