"""A file is what its names, shapes and labels say: published layouts, parts, add-ons, other families."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import call, zip_with
from hypothesis import given, settings, strategies
from safetensors.torch import load_file, save_file

from golden_cases import cases, manifest
from ldm.checkpoint import identify
from ldm.checkpoint.classify import classify, config_for
from ldm.checkpoint.identification import is_reference
from ldm.checkpoint.identity import KINDS
from ldm.checkpoint.layouts import ldm_to_parts
from ldm.checkpoint.opened import open_weights
from ldm.checkpoint.stored import Stored
from ldm.config import find_config, load_config
from ldm.errors import (
    CheckpointError,
    DamagedCheckpointError,
    NotACheckpointError,
    UnsafeCheckpointError,
    WrongModelError,
)
from ldm.jobs.choosing import check_kind
from ldm.training.state import save_state

SD = "configs/stable-diffusion/"
# layout -> (family, task, prediction, YAML, million parameters of the UNet)
PUBLISHED = {
    "v1-inference": ("1.x", "txt2img", "eps", SD + "v1-inference.yaml", 859.5),
    "v2-inference": ("2.x", "txt2img", None, SD + "v2-inference.yaml", 865.9),
    "v2-inference-v": ("2.x", "txt2img", None, SD + "v2-inference-v.yaml", 865.9),
    "v2-inpainting": ("2.x", "inpaint", "eps", SD + "v2-inpainting-inference.yaml", 865.9),
    "v2-midas": ("2.x", "depth", "eps", SD + "v2-midas-inference.yaml", 865.9),
    "x4-upscaling": ("2.x", "upscale", "v", SD + "x4-upscaling.yaml", 473.4),
    "v2-1-stable-unclip-h": ("2.x", "unclip-h", "v", SD + "v2-1-stable-unclip-h-inference.yaml", 870.2),
    "v2-1-stable-unclip-l": ("2.x", "unclip-l", "v", SD + "v2-1-stable-unclip-l-inference.yaml", 869.5),
    "cldm_v15": ("1.x", "controlnet", "eps", "configs/controlnet/cldm_v15.yaml", 859.5),
    "cldm_v21": ("2.x", "controlnet", "eps", "configs/controlnet/cldm_v21.yaml", 865.9),
}
UNET = "model.diffusion_model."


def shapes(layout: str, dtype: str | None = None) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (dtype or kind, shape) for name, (shape, kind) in manifest(layout).items()}


def averaged(held: dict) -> dict:
    """Add the EMA weights and its counters, as training files have them."""
    copy = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): x
        for name, x in held.items()
        if name.startswith(UNET)
    }
    return held | copy | {"model_ema.decay": ("float32", ()), "model_ema.num_updates": ("int32", ())}


@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_layouts(layout):
    family, task, prediction, config, millions = PUBLISHED[layout]
    identity = classify(shapes(layout))
    assert (identity.family, identity.task, identity.prediction) == (family, task, prediction)
    assert identity.kind == ("controlnet" if task == "controlnet" else "model") and identity.is_model
    assert identity.layout == "published" and identity.weights == "raw" and not identity.lacks
    assert identity.parameters["UNet"] / 1e6 == pytest.approx(millions, abs=0.05)
    assert not identity.notes


@pytest.mark.parametrize("layout", PUBLISHED)
def test_the_published_yaml_is_chosen_and_says_the_same(layout):
    *_, config, _ = PUBLISHED[layout]
    says = load_config(find_config(config)).model.params.get("parameterization", "eps")
    assert config_for(classify(shapes(layout)), says) == config
    if PUBLISHED[layout][2]:
        assert classify(shapes(layout)).config == config and says == PUBLISHED[layout][2]
    else:
        assert classify(shapes(layout)).config is None        # eps or v must be known first
        assert classify(shapes(layout), {"sd.prediction": says}).config == config


@pytest.mark.parametrize("layout", PUBLISHED)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halved_files(layout, dtype):
    whole, half = classify(shapes(layout)), classify(shapes(layout, dtype))
    assert half.parameters.items() >= {k: v for k, v in whole.parameters.items() if k == "UNet"}.items()
    assert half.dtypes.keys() == {dtype} and half.sentence() == whole.sentence()


@pytest.mark.parametrize("layout", PUBLISHED)
def test_averaged_copies(layout):
    held = averaged(shapes(layout))
    assert classify(held).weights == "raw+ema"
    assert classify(held).task == PUBLISHED[layout][1]
    only = {name: x for name, x in held.items() if not name.startswith("model.")}
    identity = classify(only)
    if PUBLISHED[layout][1] != "controlnet":
        assert (identity.weights, identity.family, identity.task) == ("ema", *PUBLISHED[layout][:2])
        assert "the EMA weights alone" in identity.sentence()


def test_a_file_says_which_copy_it_holds():
    assert classify(shapes("v1-inference"), {"sd.weights": "ema"}).weights == "ema"


@pytest.mark.parametrize("layout", PUBLISHED)
def test_missing_parts_are_named(layout):
    without = {n: x for n, x in shapes(layout).items() if not n.startswith("first_stage_model.")}
    assert classify(without).task == PUBLISHED[layout][1]
    if PUBLISHED[layout][1] == "controlnet":
        return
    assert classify(without).lacks == ["VAE"]
    assert "without VAE" in classify(without).sentence()
    alone = {n: x for n, x in without.items() if n.startswith(UNET)}
    assert classify(alone).kind == "unet" and classify(alone).family == PUBLISHED[layout][0]


@pytest.mark.few(6)
@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
@pytest.mark.parametrize("layout", PUBLISHED)
def test_parts_alone(layout, prefix):
    def below(start):
        return {n.removeprefix(start): x for n, x in shapes(layout).items() if n.startswith(start)}

    unet = classify({prefix + name: x for name, x in below(UNET).items()})
    assert (unet.kind, unet.family, unet.layout) == ("unet", PUBLISHED[layout][0], "bare")
    vae = below("first_stage_model.")
    alone = classify(vae)
    assert alone.kind == "vae"
    copy = {f"model_ema.{name.replace('.', '')}": x for name, x in vae.items()}
    trained = classify(vae | copy | {"loss.logvar": ("float32", ()), "loss.net.0.weight": ("float32", (9,))})
    assert (trained.kind, trained.layout) == ("vae", "bare")
    assert trained.parameters == {
        "VAE": alone.parameters["VAE"], "EMA weights": alone.parameters["VAE"], "discriminator": 10,
    }  # fmt: skip
    text = classify(below("cond_stage_model."))
    assert (text.kind, text.family) == ("text_encoder", PUBLISHED[layout][0])


@pytest.mark.parametrize("layout", [name for name in PUBLISHED if name.startswith("cldm")])
def test_controlnet_files(layout):
    held = {n: x for n, x in shapes(layout).items() if n.startswith("control_model.")}
    family = PUBLISHED[layout][0]
    only = classify(held)
    assert (only.kind, only.variant, only.family) == ("controlnet", "control-only", family)
    assert not only.is_model
    bare = classify({n.removeprefix("control_model."): x for n, x in held.items()})
    assert (bare.kind, bare.family, bare.layout) == ("controlnet", family, "bare")
    difference = classify(held | {"difference": ("float32", ())})
    assert difference.variant == "difference" and difference.sentence().endswith("as a difference")


@pytest.mark.few(3)
@pytest.mark.parametrize("layout", PUBLISHED)
def test_diffusers_folders_of_full_size(layout):
    """The same model in diffusers' names is recognised as the same."""
    with torch.device("meta"):
        tensors = {n: torch.empty(s, dtype=getattr(torch, k)) for n, (s, k) in manifest(layout).items()}
    parts = ldm_to_parts(tensors)
    parts.pop("unused", None)
    held = {
        f"{part}/{name}": (str(x.dtype).removeprefix("torch."), tuple(x.shape))
        for part, group in parts.items()
        for name, x in group.items()
    }
    identity = classify(held, None, {"scheduler": {"prediction_type": "v_prediction"}})
    family, task, *_ = PUBLISHED[layout]
    assert (identity.family, identity.task, identity.layout) == (family, task, "diffusers")
    if task != "controlnet":
        assert (identity.prediction, identity.prediction_source) == ("v", "scheduler_config")
    for part in ("unet", "vae", "controlnet"):
        alone = {n.removeprefix(f"{part}/"): x for n, x in held.items() if n.startswith(f"{part}/")}
        assert not alone or classify(alone).kind == part
    unet = {n.removeprefix("unet/"): x for n, x in held.items() if n.startswith("unet/")}
    assert classify(unet).family == family
    assert task == "controlnet" or classify(unet).task == task


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"sd.prediction": "v"}, ("v", "metadata")),
        ({"sd.prediction": "eps"}, ("eps", "metadata")),
        ({"modelspec.prediction_type": "v"}, ("v", "metadata")),
        ({"modelspec.prediction_type": "epsilon"}, ("eps", "metadata")),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, ("v", "metadata")),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, ("eps", "metadata")),
        ({"sd.prediction": "eps", "modelspec.prediction_type": "v"}, ("eps", "metadata")),
        ({"sd.prediction": "whatever"}, (None, None)),
        ({"sd.prediction": "x0"}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_eps_or_v_from_metadata(metadata, expected):
    identity = classify(shapes("v2-inference"), metadata)
    assert (identity.prediction, identity.prediction_source) == expected


def test_a_file_goes_before_what_is_usual():
    assert classify(shapes("v1-inference"), {"sd.prediction": "v"}).prediction == "v"
    assert classify(shapes("v1-inference")).prediction_source == "family"


def test_distilled_models_get_no_published_yaml():
    held = {n: x for n, x in shapes("v1-inference").items() if ".middle_block." not in n}
    held = {n: x for n, x in held.items() if not re.search(r"put_blocks\.([2-5]|1[01])\.", n)}
    assert classify(held).config is None and "distilled" in classify(held).notes[0]


def test_mixed_families_are_said():
    held = {n: x for n, x in shapes("v2-inference").items() if not n.startswith("cond_stage_model.")}
    held |= {n: x for n, x in shapes("v1-inference").items() if n.startswith("cond_stage_model.")}
    assert classify(held).notes == ["its text encoder is SD 1.x's, its UNet SD 2.x's"]


def pair(name: str, inputs: int, rank: int, down="lora_down", up="lora_up") -> dict:
    shapes = {down: (rank, inputs), up: (320, rank)}
    return {f"{name}.{which}.weight": ("float16", shape) for which, shape in shapes.items()}


KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
PEFT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TE = "lora_te_text_model_encoder_layers_0_mlp_fc1"
ADD_ONS = [
    (pair(KOHYA, 768, 16) | {KOHYA + ".alpha": ("float16", ())}, "lora", "1.x", "16", "kohya"),
    (pair(KOHYA, 1024, 4) | pair("lora_te_x", 9, 32), "lora", "2.x", "4 to 32", "kohya"),
    (pair(KOHYA, 2048, 8), "lora", "SDXL", "8", "kohya"),
    (pair(TE, 768, 8), "lora", "1.x", "8", "kohya"),
    (pair(PEFT, 768, 8, "lora_A", "lora_B"), "lora", "1.x", "8", "PEFT"),
    (pair("base_model.model." + PEFT, 1024, 8, "lora_A.default", "lora_B.default"),
     "lora", "2.x", "8", "PEFT"),
    (pair("down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora", 1024, 4, "down", "up"),
     "lora", "2.x", "4", "diffusers attention processors"),
    (pair(PEFT.replace("to_k", "to_k.lora"), 768, 4, "down", "up"), "lora", "1.x", "4", "diffusers"),
    (pair("lora_unet_double_blocks_0_img_attn_proj", 3072, 16), "lora", "Flux", "16", "kohya"),
    ({KOHYA + ".hada_w1_a": ("float16", (320, 8)), KOHYA + ".hada_w1_b": ("float16", (8, 768))},
     "lycoris", "1.x", "8", "kohya"),
    ({KOHYA + ".lokr_w1": ("float16", (4, 4)), KOHYA + ".lokr_w2_b": ("float16", (8, 192))},
     "lycoris", None, "8", "kohya"),
    ({"emb_params": ("float32", (4, 768))}, "textual_inversion", "1.x", None, "A1111, as safetensors"),
    ({"<cat>": ("float32", (1024,))}, "textual_inversion", "2.x", None, "diffusers"),
    ({"string_to_param.*": ("float32", (3, 768))}, "textual_inversion", "1.x", None, "A1111"),
    ({"clip_l": ("float32", (2, 768)), "clip_g": ("float32", (2, 1280))},
     "textual_inversion", "SDXL", None, "two text encoders"),
    ({f"{w}.{i}.linear.0.weight": ("float32", (2 * w, w)) for w in (320, 768) for i in (0, 1)},
     "hypernetwork", "1.x", None, "A1111"),
    ({"conv_in.weight": ("float32", (320, 192, 3, 3)), "body.0.block1.weight": ("float32", (320, 320, 3, 3))},
     "t2i_adapter", "1.x", None, None),
    ({"adapter.conv_in.weight": ("float32", (320, 768, 3, 3)),
      "adapter.body.0.resnets.0.block1.weight": ("float32", (320, 320, 3, 3))},
     "t2i_adapter", "SDXL", None, None),
]


def words(count, *shape):
    return {f"<word-{i}>": ("float16", shape) for i in range(count)}


def encoders(**vectors):
    return {name: ("float16", (vectors[name], width)) for name, width in
            dict(clip_l=768, clip_g=1280, t5xxl=4096, t5=4096).items() if name in vectors}  # fmt: skip


EMBEDDINGS = [
    (words(9, 768), "1.x", 9, "9 words"),
    (words(300, 4, 1024), "2.x", 1200, "300 words"),
    (words(1, 16, 768), "1.x", 16, None),
    ({f"string_to_param.{i}": ("float32", (2, 768)) for i in range(12)}, "1.x", 24, "12 words"),
    (encoders(clip_l=1, clip_g=1), "SDXL", 1, None),
    (encoders(clip_l=2, clip_g=2, t5xxl=2), "SD3", 2, None),
    (encoders(clip_l=3, t5=3), "Flux", 3, None),
    (encoders(clip_g=4), "SDXL", 4, None),
    (encoders(clip_l=5), "1.x", 5, None),
    ({"clip_l": ("float32", (768,)), "clip_g": ("float32", (1280,))}, "SDXL", 1, None),
]


@pytest.mark.parametrize("held, family, vectors, variant", EMBEDDINGS)
def test_embeddings_of_many_words_and_of_several_encoders(held, family, vectors, variant):
    found = classify(held)
    assert (found.kind, found.family, found.vectors, found.variant) == (
        "textual_inversion", family, vectors, variant
    )  # fmt: skip
    whose = f"SD {family}" if "." in family else family
    assert found.sentence() == f"a textual-inversion embedding for {whose}, no model"


@pytest.mark.parametrize(
    "held",
    [
        words(9, 700), words(9, 5000, 768), words(3, 768) | {"b": ("float16", (1024,))}, words(2, 3, 4, 768),
        {f"layers.{i}.weight": ("float32", (4, 768)) for i in range(9)}, {"x": ("int64", (4, 768))},
        encoders(clip_l=1) | {"clip_g": ("float32", (1, 768))}, {"clip_l": ("float32", ())},
    ],
)  # fmt: skip
def test_what_is_no_embedding(held):
    assert classify(held).kind == "unknown"


@pytest.mark.parametrize(
    ("layer", "family"),
    [
        ("lora_unet_double_blocks_0_img_mlp_0", "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "Flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "SD3"),
        ("transformer.transformer_blocks.0.attn.add_k_proj", "SD3"),
        ("transformer.transformer_blocks.0.img_mlp.net.2", "Qwen-Image"),
        ("diffusion_model.blocks.0.cross_attn.k", "Wan"),
        ("lora_unet_blocks_0_self_attn_q", "Wan"),
        ("transformer.joint_transformer_blocks.0.attn.to_q", "AuraFlow"),
        ("transformer.adaln_single.linear", "PixArt"),
        ("lora_prior_unet_down_blocks_0_x_kv_mapper_1", "Stable Cascade"),
        ("diffusion_model.layers.0.attention.qkv", "Lumina"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.attention_q", "AnimateDiff"),
        ("transformer.transformer_blocks.0.attn1.to_q", "a diffusion transformer"),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q", "SDXL"),
        (KOHYA, "1.x"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "1.x"),
    ],
)
def test_loras_of_other_families(layer, family):
    found = classify(pair(layer, 768, 8))
    assert (found.kind, found.family) == ("lora", family)
    assert found.sentence() == f"a LoRA for {'SD ' * ('.' in family)}{family}, no model"


def test_optimizers_and_other_autoencoders():
    adam = {f"state.{i}.{name}": ("float32", (3,)) for i in (0, 1) for name in ("step", "exp_avg")}
    assert classify(adam).sentence() == "the state of an optimizer" and not classify(adam).is_model
    assert classify({f"optimizer.{name}": x for name, x in adam.items()}).kind == "optimizer"
    assert classify(adam | {"weight": ("float32", (3,))}).kind == "unknown"
    vae = {"decoder.conv_in.weight": ("float32", (8, 16, 3, 3)), "decoder.mid.x": ("float32", (1,))}
    assert classify(vae).kind == "vae"
    assert classify(vae).notes == [
        "its latents have 16 channels; those of SD have 4, those of SD3 and Flux 16"
    ]


POOL = sorted(
    {name for held, *_ in ADD_ONS for name in held} | {name for held, *_ in EMBEDDINGS for name in held}
    | {
        "model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x.token_embedding.weight",
        "model.diffusion_model.label_emb.0.0.weight", "a.attn2.to_k.weight", "decoder.conv_in.weight",
        "decoder.mid.a", "conv_in.weight", "down_blocks.0.resnets.0.x", "zero_convs.0.x", "embedder.visual.x",
        "control_model.input_blocks.0.0.weight",
    }
)  # fmt: skip


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(
    strategies.dictionaries(
        strategies.sampled_from(POOL),
        strategies.lists(strategies.sampled_from([0, 1, 768, 2048]), max_size=5),
        max_size=4,
    )
)
def test_no_shape_is_stumbled_over(held):
    identity = classify({name: ("float32", tuple(shape)) for name, shape in held.items()})
    assert identity.kind in KINDS and identity.sentence()


@pytest.mark.parametrize("is_finished", [False, True])
def test_the_state_of_a_training_run_says_how_to_make_a_model_of_it(is_finished, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "mine"
    trained = {"unet": {"input_blocks.0.0.weight": torch.ones(2)}, "scale_factor": 0.2}
    adam = {"unet": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}}
    save_state(run / "checkpoints", {"step": 70, "trained": trained, "optimizers": adam, "elapsed": 1.0}, 2)
    (run / "config.yaml").touch()
    if is_finished:
        (run / "model.safetensors").touch()
    last, earlier = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "step-00000070.ckpt"
    identity = identify(last)
    assert identity.sentence() == "the state of a training run" and not identity.is_model
    how = f"scripts/train.py --resume {run} --export makes a model of it"
    how = f"the model of this run is {run / 'model.safetensors'}" if is_finished else how
    assert identity.notes == [how]
    with pytest.raises(WrongModelError, match="is the state of a training run; --ckpt takes a whole model; "):
        check_kind(identity, None, whole=True)
    of_step = [f"scripts/train.py --resume {earlier} --export makes a model of it"]
    assert identify(earlier).notes == of_step
    # As conversion and merging, which read all of it; the folder of a run with a model stands for that.
    for path in (last, run / "checkpoints", *([] if is_finished else [run])):
        with pytest.raises(NotACheckpointError, match=f"of a training run, no model; {re.escape(how)}"):
            open_weights(path)
    monkeypatch.chdir(last.parent)
    assert identify("last.ckpt").notes == [how]
    moved = earlier.rename(tmp_path / "moved.ckpt")
    assert "put it back into the folder checkpoints of its run" in identify(moved).notes[0]


@pytest.mark.parametrize("held, kind, family, rank, layout", ADD_ONS)
def test_add_ons(held, kind, family, rank, layout):
    identity = classify(held)
    assert (identity.kind, identity.family, identity.rank, identity.layout) == (kind, family, rank, layout)
    assert not identity.is_model and identity.sentence().endswith("no model")
    assert identity.task is None and identity.prediction is None


def test_vectors_of_an_embedding():
    assert classify({"emb_params": ("float32", (4, 768))}).vectors == 4
    assert classify({"<cat>": ("float32", (768,))}).vectors == 1
    assert classify({"clip_l": ("float32", (2, 768)), "clip_g": ("float32", (2, 1280))}).vectors == 2


def test_kinds_of_loras():
    conv = {"lora_unet_conv_in.lora_down.weight": ("float16", (8, 4, 3, 3))}
    assert classify(pair(KOHYA, 768, 8)).variant == "LoRA"
    assert classify(pair(KOHYA, 768, 8) | conv).variant == "LoCon"
    assert classify(pair(KOHYA, 768, 8) | {KOHYA + ".dora_scale": ("float16", (1, 768))}).variant == "DoRA"
    assert classify(conv, {"ss_base_model_version": "sd_v2_768_v"}).family == "2.x"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("conditioner.embedders.1.model.ln_final.weight", "SDXL model"),
        ("conditioner.embedders.0.model.ln_final.weight", "SDXL refiner"),
        ("unet/add_embedding.linear_1.weight", "SDXL model"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "SD3 model"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux model"),
        ("transformer/single_transformer_blocks.0.attn.to_q.weight", "Flux model"),
        ("ip_adapter.1.to_k_ip.weight", "IP-Adapter"),
        ("down_blocks.0.motion_modules.0.x.weight", "AnimateDiff motion module"),
        ("model.diffusion_model.input_blocks.1.1.time_stack.0.x", "Stable Video Diffusion model"),
        ("model.layers.0.self_attn.q_proj.weight", "language model"),
    ],
)
def test_other_families_are_named(name, family):
    identity = classify({name: ("float16", (8, 8))})
    assert (identity.kind, identity.family) == ("foreign", family) and family in identity.sentence()


def test_an_sdxl_unet_alone():
    held = {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": ("float16", (640, 2048))}
    assert classify(held).family == "SDXL model"


@pytest.mark.parametrize("name", ["anything", "model.unheard_of.weight", "state", ""])
def test_weights_of_no_known_kind(name):
    assert classify({name: ("float32", (4, 4))}).kind == "unknown"


def test_nothing_at_all():
    assert classify({}).kind == "unknown"


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".legacy"])
def test_files(tmp_path, suffix):
    case = cases("e2e_txt2img")[0]
    tensors = {
        n: torch.empty_like(x) for n, x in load_file(case.files["checkpoint"]).items() if "embedding" not in n
    }
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path, metadata={"sd.prediction": "v", "sd.weights": "ema"})
    else:
        optimizer = [{"state": {0: torch.ones(3)}}]
        content = {"state_dict": tensors, "global_step": 7000, "optimizer_states": optimizer}
        torch.save(content, path, _use_new_zipfile_serialization=suffix == ".ckpt")
    identity = identify(path)
    assert (identity.kind, identity.task, identity.bytes) == ("model", "txt2img", path.stat().st_size)
    assert sum(identity.dtypes.values()) == sum(x.nbytes for x in tensors.values())
    if suffix == ".safetensors":
        assert (identity.prediction, identity.prediction_source, identity.weights) == ("v", "metadata", "ema")
    else:
        assert "saved at training step 7,000" in identity.notes
        assert "besides the weights it holds optimizer_states, which loading skips" in identity.notes
    assert json.loads(json.dumps(identity.record()))["path"] == str(path)


def test_embeddings_and_hypernetworks_of_a1111(tmp_path):
    embedding = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(2, 768)}, "name": "cat"}
    torch.save(embedding, tmp_path / "cat.pt")
    identity = identify(tmp_path / "cat.pt")
    assert (identity.kind, identity.vectors, identity.family) == ("textual_inversion", 2, "1.x")
    layer = {"linear.0.weight": torch.zeros(8, 1024), "linear.0.bias": torch.zeros(8)}
    torch.save({1024: [layer, dict(layer)], "step": 5, "name": "style"}, tmp_path / "style.pt")
    style = identify(tmp_path / "style.pt")
    assert (style.kind, style.family) == ("hypernetwork", "2.x")


def test_a_container_within_itself_is_gone_through_once(tmp_path):
    loop: dict = {"weight": torch.zeros(2)}
    loop["again"] = loop
    torch.save(loop, tmp_path / "loop.ckpt")
    assert identify(tmp_path / "loop.ckpt").dtypes == {"float32": 8}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", DamagedCheckpointError),
        (b"<!doctype html><html>", NotACheckpointError),
        (b"\x40\0\0\0\0\0\0\0{", DamagedCheckpointError),
        (b"\x02\0\0\0\0\0\0\0{}", NotACheckpointError),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, content, error):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(error) as caught:
        identify(tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value) and "model.safetensors" in str(caught.value)


def test_nothing_is_executed(tmp_path):
    hostile = zip_with(b"\x80\x02" + call("posix", "system", "touch pwned") + b".", tmp_path / "hostile.ckpt")
    with pytest.raises(UnsafeCheckpointError, match="posix.system"):
        identify(hostile)


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        identify(tmp_path / "nowhere.ckpt")


def test_no_torch_is_imported(tmp_path):
    save_file({"emb_params": torch.zeros(1, 768)}, tmp_path / "a.safetensors")
    torch.save({"state_dict": {"emb_params": torch.zeros(1, 768)}}, tmp_path / "a.ckpt")
    code = (
        "import sys; from ldm.checkpoint import identify\n"
        "for path in sys.argv[1:]: assert identify(path).kind == 'textual_inversion'\n"
        "assert 'torch' not in sys.modules"
    )
    files = [tmp_path / "a.safetensors", tmp_path / "a.ckpt"]
    subprocess.run([sys.executable, "-c", code, *files], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("layout", PUBLISHED)
def test_reference_layouts_are_known_without_torch(layout):
    held = {name: Stored(*x) for name, x in shapes(layout).items()}
    config = PUBLISHED[layout][3]
    assert is_reference(held, config)
    assert is_reference({n: Stored(*x) for n, x in averaged(held).items()}, config)
    name, x = next((n, x) for n, x in held.items() if len(x.shape) == 4)
    for other in (
        {n: x for n, x in held.items() if n != name}, held | {UNET + "more": x},
        held | {name: Stored("float32", (1, *x.shape[1:]))}, held | {name: Stored("int64", x.shape)},
    ):
        assert not is_reference(other, config)
