"""A model is loaded whole and exactly, or not at all."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm
from golden_cases import case
from ldm.checkpoint.classify import classify
from ldm.checkpoint.layouts.averaged import averaged_names
from ldm.config import instantiate, load_config
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.errors import BackendUnavailable, BadValuesError, ConfigError, LdmError, WrongModelError
from ldm.loading import is_same_schedule, load_model, load_part
from ldm.loading.match import COMPUTED, SURPLUS, UNUSED, match_keys

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


def load(tensors, tmp_path, metadata=None, **options):
    save_file({name: x.contiguous() for name, x in tensors.items()}, tmp_path / "model.safetensors", metadata)
    return load_model(options.pop("config", YAML), tmp_path / "model.safetensors", device="cpu", **options)


def fails(tensors, tmp_path, *expected, error=WrongModelError, **options):
    with pytest.raises(error) as caught:
        load(tensors, tmp_path, **options)
    message = str(caught.value)
    assert type(caught.value) is error and "\n" not in message
    assert all(part in message for part in expected), message


@pytest.mark.few(1)
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


def truncated(x):
    """Cut float32 to bfloat16 without rounding, as some converters do."""
    return (x.view(torch.int32) & -65536).view(torch.float32)


CASTS = {
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "float16, bfloat16": lambda x: x.half().bfloat16(),
    "bfloat16, float16": lambda x: x.bfloat16().half(),
    "float16, bfloat16, float32": lambda x: x.half().bfloat16().float(),
    "cut": truncated,
    "float16, cut": lambda x: truncated(x.half().float()),
}
SCHEDULES = [("linear", 0.00085, 0.012), ("linear", 1e-4, 0.02), ("sqrt_linear", 1e-4, 0.02),
             ("cosine", 0, 0), ("squaredcos_cap_v2", 0, 0)]  # fmt: skip


@pytest.mark.parametrize("name, start, end", SCHEDULES)
def test_roundings_are_no_other_schedule_and_other_numbers_are(name, start, end):
    schedule = Schedule(make_betas(name, 1000, start, end))
    ours, stored = schedule.alphas_cumprod, schedule.published_buffers()["alphas_cumprod"]
    for cast in CASTS.values():
        assert is_same_schedule(cast(stored), ours)
    others = [Schedule(make_betas(other, 1000, *ends)) for other, *ends in SCHEDULES[:3]]
    if end:
        more = ((1000, end + 2e-4), (999, end))
        others += [Schedule(make_betas(name, count, start, last)) for count, last in more]
        others.append(schedule.with_zero_terminal_snr())
    for other in (x for x in others if not torch.equal(x.alphas_cumprod, ours)):
        for cast in (torch.clone, *CASTS.values()):
            assert not is_same_schedule(cast(other.alphas_cumprod.float()), ours)


def test_a_file_that_lacks_one_tensor_is_refused(stored, on_meta):
    needed = [name for name in stored if not name.startswith(SKIPPED) and name != TEXT_PROJECTION]
    assert len(needed) > 400
    for name in needed[::5]:
        x = stored.pop(name)
        assert match_keys(on_meta, stored).missing == [name]
        stored[name] = x
    assert match_keys(on_meta, stored).is_good


def test_a_tensor_of_another_shape_kind_or_name_is_refused(stored, on_meta):
    for name in [name for name in stored if not name.startswith(SKIPPED)][::10]:
        for wrong in (stored[name][None], stored[name].to(torch.int64)):
            fit = match_keys(on_meta, stored | {name: wrong})
            assert len(fit.misshapen) == 1 and name in fit.misshapen[0]
    assert match_keys(on_meta, stored | {"model.diffusion_model.extra": torch.zeros(1)}).unexpected
    assert match_keys(on_meta, stored | {"first_stage_model.lossy": torch.zeros(1)}).unexpected


def test_the_refusal_counts_groups_and_guesses(tmp_path, stored):
    kept = {name: x for name, x in stored.items() if not name.startswith("first_stage_model.")}
    kept[FIRST_CONV] = torch.zeros(32, 9, 3, 3)
    kept["model.strange"] = torch.zeros(1)
    lacking = len(stored) - len(kept) + 1
    fails(
        kept, tmp_path,
        f"{lacking} missing, 1 misshapen; 1 unexpected",
        f"missing {lacking} of the VAE (first_stage_model.",
        f"misshapen 1 of the UNet ({FIRST_CONV} (32, 9, 3, 3) instead of (32, 4, 3, 3))",
        "unexpected 1 of no known part (model.strange)",
        "model.safetensors is a model of context width 8 for inpainting (9 input channels) without VAE, but "
        f"{YAML} asks for a model of context width 8 for text-to-image (4 input channels); ",
    )


FOREIGN = {
    "ddim_sigmas": torch.zeros(10),
    "embedding_manager.string_to_param_dict.*": torch.zeros(2, 8),
    "denoiser.sigmas": torch.ones(1000),
    "nothing": torch.zeros(0, 3),
    "optimizer.step": torch.tensor(5),
    "a\nb" + 500 * "x": torch.ones(1),
}


def test_what_belongs_to_no_part_is_left_out_in_one_line(tmp_path, stored, caplog):
    plain = load(stored, tmp_path).state_dict()
    caplog.clear()
    caplog.set_level(logging.WARNING, "ldm")
    torch.save(stored | FOREIGN, tmp_path / "model.ckpt")       # which keeps the order
    loaded = load_model(YAML, tmp_path / "model.ckpt", device="cpu").state_dict()
    assert loaded.keys() == plain.keys() and all(torch.equal(x, plain[name]) for name, x in loaded.items())
    assert caplog.messages == [
        "model.ckpt: left out 6 tensors of no part of the model: "
        + "ddim_sigmas, embedding_manager.string_to_param_dict.*, denoiser.sigmas, ..."
    ]


def test_a_surplus_inside_a_part_is_no_stranger(stored, on_meta):
    for name in ("first_stage_model.x", "cond_stage_model.model.x.y", "model.diffusion_model.x", "model.x",
                 "control_model.x", "embedder.model.x"):
        found = match_keys(on_meta, stored | FOREIGN | {name: torch.zeros(1)})
        assert found.unexpected == [name] and len(found.foreign) == len(FOREIGN)


def test_an_autoencoder_with_strangers_is_loaded_as_a_part(tmp_path, stored, caplog):
    model = load(stored, tmp_path)
    prefix = "first_stage_model."
    own = {name.removeprefix(prefix): 2 * x for name, x in stored.items() if name.startswith(prefix)}
    save_file(own | {"ddim_sigmas": torch.zeros(3)}, tmp_path / "vae.safetensors")
    load_part(model, tmp_path / "vae.safetensors")
    assert torch.equal(model.first_stage_model.encoder.conv_in.bias, own["encoder.conv_in.bias"])
    assert "left out 1 tensor of no part of the model: first_stage_model.ddim_sigmas" in caplog.text
    save_file(own | {"encoder.x": torch.zeros(3)}, tmp_path / "vae.safetensors")
    with pytest.raises(WrongModelError, match=r"unexpected 1 of the VAE \(first_stage_model.encoder.x\)"):
        load_part(model, tmp_path / "vae.safetensors")


def test_names_out_of_a_file_stay_on_their_line(tmp_path, stored):
    fails(stored | {"model.a\nb": torch.zeros(1)}, tmp_path, "unexpected 1 of no known part ('model.a\\nb')")


def test_a_lora_is_not_mistaken_for_a_model(tmp_path):
    fails({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, tmp_path, "is a LoRA, no model; give the")
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight"
    fails({attention: torch.zeros(4, 320)}, tmp_path, "is a LoRA")      # beside names of a UNet
    fails({"conditioner.embedders.1.model.x": torch.zeros(2, 2)}, tmp_path, "is an SDXL model; give a model")
    fails({"emb_params": torch.zeros(2, 768)}, tmp_path, "is a textual-inversion embedding for SD 1.x")


def test_harmless_differences_are_harmless(tmp_path, stored):
    extra = {
        "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3, dtype=torch.int32),
        "logvar": torch.zeros(1000), "lvlb_weights": torch.zeros(1000),
        "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        # what conversion scripts for SD 2.x and other programs leave behind
        "cond_stage_model.model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "cond_stage_model.transformer.text_projection.weight": torch.zeros(2, 2),
        "cond_stage_model.logit_scale": torch.zeros(()),
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


def test_marks_of_what_was_trained_for_are_heeded(tmp_path, stored, caplog):
    nothing = torch.zeros(0)
    fails(stored | {"v_pred": nothing}, tmp_path, "predicts v (a tensor of the name: v_pred)", "says")
    config = load_config(YAML, ["model.params.parameterization=v"])
    with caplog.at_level(logging.WARNING):
        load(stored | {"v_pred": nothing}, tmp_path, config=config)
        assert not caplog.records
        load(stored | {"v_pred": nothing, "ztsnr": nothing}, tmp_path, config=config)
    assert "was trained to zero terminal SNR" in caplog.text


@pytest.fixture(scope="module")
def with_average(stored, on_meta):
    names = averaged_names(name for name, _ in on_meta.named_parameters())
    assert names["model_ema.diffusion_modelinput_blocks00weight"] == FIRST_CONV
    return stored | {averaged: stored[raw] + 1 for averaged, raw in names.items()}


def test_averaged_weights_are_used_where_the_configuration_says_so(tmp_path, stored, with_average, caplog):
    caplog.set_level(logging.INFO)
    raw = load(with_average, tmp_path).state_dict()
    assert torch.equal(raw[FIRST_CONV], stored[FIRST_CONV].float()) and "raw ones are used" in caplog.text
    config = load_config(YAML, ["model.params.use_ema=true"])
    averaged = load(with_average, tmp_path, config=config).state_dict()
    assert "EMA weights are used" in caplog.text
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
    assert "lacks 1 of its EMA weights" in caplog.text
    assert torch.equal(model.state_dict()[FIRST_CONV], stored[FIRST_CONV].float())


def test_the_weights_asked_for_are_used_or_missed(tmp_path, stored, with_average, caplog):
    caplog.set_level(logging.INFO)
    use_ema = load_config(YAML, ["model.params.use_ema=true"])
    averaged = (stored[FIRST_CONV] + 1).float()
    model = load(with_average, tmp_path, weights="ema")
    assert torch.equal(model.state_dict()[FIRST_CONV], averaged) and "are used (as asked)" in caplog.text
    model = load(with_average, tmp_path, weights="raw", config=use_ema)
    assert torch.equal(model.state_dict()[FIRST_CONV], stored[FIRST_CONV].float())
    fails(stored, tmp_path, "has no EMA weights; leave --weights ema out", weights="ema")
    partial = dict(with_average)
    del partial["model_ema.diffusion_modelinput_blocks00weight"]
    fails(partial, tmp_path, "lacks 1 of its EMA weights", weights="ema")
    with pytest.raises(ConfigError, match="'best'; expected one of auto, ema, raw"):
        load(stored, tmp_path, weights="best")


def test_a_file_with_nothing_but_the_average(tmp_path, stored, with_average, caplog):
    caplog.set_level(logging.INFO)
    only = {name: x for name, x in with_average.items() if not name.startswith("model.")}
    for choice in ("auto", "ema"):
        model = load(only, tmp_path, weights=choice).state_dict()
        assert torch.equal(model[FIRST_CONV], (stored[FIRST_CONV] + 1).float())
    assert "are used (the file has no others)" in caplog.text
    fails(only, tmp_path, "holds only EMA weights; leave --weights raw out", weights="raw")
    del only["model_ema.diffusion_modelinput_blocks00weight"]
    fails(only, tmp_path, "model.safetensors is a model of context width 8", "EMA weights alone, but")


def test_a_file_may_say_which_weights_it_holds(tmp_path, stored):
    for mark, choice in (("ema", "auto"), ("ema", "ema"), ("raw", "raw"), ("raw", "auto")):
        model = load(stored, tmp_path, {"sd.weights": mark}, weights=choice)
        assert torch.equal(model.state_dict()[FIRST_CONV], stored[FIRST_CONV].float())
    fails(stored, tmp_path, "holds only EMA", metadata={"sd.weights": "ema"}, weights="raw")
    fails(stored, tmp_path, "has no EMA", metadata={"sd.weights": "raw"}, weights="ema")


@pytest.mark.few(1)
@pytest.mark.parametrize("key, value", [
    ("sd.prediction", "v"), ("modelspec.prediction_type", "v"), ("modelspec.prediction_type", "v_prediction"),
])
def test_what_the_file_predicts_must_be_what_the_configuration_says(key, value, tmp_path, stored):
    expected = f"predicts v (metadata {key}: {value}), but {YAML} says parameterization: eps"
    fails(stored, tmp_path, expected, metadata={key: value})
    config = load_config(YAML, ["model.params.parameterization=v"])
    assert load(stored, tmp_path, {key: value}, config=config).parameterization == "v"
    fails(stored, tmp_path, "predicts eps", metadata={key: "epsilon"}, config=config)
    load(stored, tmp_path, {key: "something of tomorrow"})


def test_progress_counts_every_byte(tmp_path, stored):
    calls = []
    load(stored, tmp_path, progress=lambda done, total: calls.append((done, total)), dtype="bfloat16")
    total = sum(x.nbytes for name, x in stored.items() if not name.startswith(SKIPPED[:5]))
    assert calls[-1] == (total, total) and {total for _, total in calls} == {total}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls) and len(calls) > 400


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_part_is_no_model(prefix, tmp_path, stored):
    vae = {
        prefix + name.removeprefix("first_stage_model."): x
        for name, x in stored.items() if name.startswith("first_stage_model.")
    }
    fails(vae, tmp_path, f"model.safetensors is the VAE alone, but {YAML} asks for a model of",
          "give the whole model with --ckpt and this file with --vae")
    unet = {name: x for name, x in stored.items() if name.startswith("model.diffusion_model.")}
    fails(unet, tmp_path, "model.safetensors is the UNet alone, but ", "missing ", " of the VAE (")


@pytest.mark.few(1)
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_part_of_a_loaded_model_is_replaced(prefix, tmp_path, stored):
    model = load(stored, tmp_path, dtype="bfloat16")
    other = {
        prefix + name.removeprefix("first_stage_model."): x + 1
        for name, x in stored.items() if name.startswith("first_stage_model.")
    }
    file = tmp_path / "vae.safetensors"
    save_file(other, file)
    load_part(model, file)
    for name, x in model.state_dict().items():
        if name.startswith("first_stage_model."):
            assert torch.equal(x, (stored[name] + 1).bfloat16())
        elif name.startswith("model."):
            assert torch.equal(x, stored[name].bfloat16())
    assert not any(p.requires_grad for p in model.parameters())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    name, x = other.popitem()
    for broken in (other, other | {name: x[None]}, other | {name: x, prefix + "decoder.more": x + 1}):
        save_file(broken, file)
        with pytest.raises(WrongModelError, match="does not fit the VAE: "):
            load_part(model, file)
    save_file({FIRST_CONV: stored[FIRST_CONV]}, file)
    with pytest.raises(WrongModelError, match="holds no weights of the VAE: it is the UNet alone"):
        load_part(model, file)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_whole_file_gives_its_part(tmp_path, stored):
    model = load(stored, tmp_path)
    load_part(model, BASE["checkpoint_ckpt"])
    load_part(model, BASE["checkpoint"], "cond_stage_model")


def test_the_block_that_is_left_out_may_be_left_out_whole(tmp_path, stored, on_meta):
    unused = sorted(name for name in stored if ".transformer.resblocks.2." in name)
    named = on_meta.cond_stage_model.unused_parameters()
    assert sorted(f"cond_stage_model.{name}" for name in named) == unused
    lean = {name: x for name, x in stored.items() if name not in unused}
    model = load(lean, tmp_path)
    assert all(torch.count_nonzero(model.state_dict()[name]) == 0 for name in unused)
    fails(lean | {unused[0]: stored[unused[0]]}, tmp_path, f"{len(unused) - 1} missing")
    last = load_config(YAML, ["model.params.cond_stage_config.params.layer=last"])
    fails(lean, tmp_path, f"{len(unused)} missing", config=last)


def test_a_file_may_hold_buffers_that_published_ones_lack():
    class Tables(torch.nn.Module):
        OPTIONAL_BUFFERS = ("mean",)

        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(1, 3), persistent=False)

    part = Tables()
    assert match_keys(part, {}).is_good and match_keys(part, {"mean": torch.ones(1, 3)}).matched == ["mean"]
    assert match_keys(part, {"mean": torch.ones(3)}).misshapen
    assert match_keys(part, {"std": torch.ones(3)}).foreign == ["std"]


@pytest.mark.few(1)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_found(value, tmp_path, stored, caplog):
    spoilt = stored[FIRST_CONV].clone()
    spoilt.flatten()[17] = value
    weights = stored | {FIRST_CONV: spoilt}
    fails(weights, tmp_path, f"{FIRST_CONV} (1 of {spoilt.numel()})", error=BadValuesError)
    load(weights, tmp_path, allow_nonfinite=True)
    assert "loaded all the same" in caplog.text


def test_weights_beyond_the_dtype_are_found_and_large_sums_are_not_mistaken(tmp_path, stored):
    large = torch.full_like(stored[FIRST_CONV], 60000.0, dtype=torch.float32)
    load(stored | {FIRST_CONV: large}, tmp_path, dtype="float16")
    beyond = stored | {FIRST_CONV: large * 2}
    fails(beyond, tmp_path, "torch.float16", FIRST_CONV, error=BadValuesError, dtype="float16")


def test_a_configuration_without_a_model(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {}\n")
    with pytest.raises(ConfigError, match="no 'model' node"):
        load_model(tmp_path / "a.yaml", BASE["checkpoint"], device="cpu")


@pytest.mark.parametrize("options", [{"device": "cuda:99"}, {"device": "abc"}, {"dtype": "float64"}])
def test_device_and_dtype_are_checked_first(options, tmp_path):
    with pytest.raises(LdmError) as caught:
        load_model("no such.yaml", tmp_path / "no such.ckpt", **({"device": "cpu"} | options))
    assert isinstance(caught.value, BackendUnavailable) or "expected auto" in str(caught.value)


def test_the_words_for_the_model_itself(on_meta):
    shapes = {name: ("float32", tuple(x.shape)) for name, x in on_meta.state_dict().items()}
    assert classify(shapes).sentence() == "a model of context width 8 for text-to-image (4 input channels)"


def test_a_configuration_of_one_part_takes_that_part_of_any_file(stored):
    node = load_config(YAML).model.params.first_stage_config
    model = load_model(node, BASE["checkpoint"], device="cpu", dtype="float32")
    name = "decoder.conv_out.weight"
    assert torch.equal(model.state_dict()[name], stored[f"first_stage_model.{name}"].float())
