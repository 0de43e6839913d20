"""Renaming loses and changes nothing, for every variant and for any architecture."""

import json
from pathlib import Path

import pytest
import torch
from diffusers_models import (
    controlnet,
    image_encoder,
    noise,
    same,
    shapes,
    text_encoder,
    text_names,
    unet,
    vae,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldm.checkpoint.layouts import UNUSED, ldm_to_parts, part_to_ldm, to_ldm
from ldm.checkpoint.layouts import text_encoder as text_module
from ldm.errors import NotACheckpointError, WrongModelError
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.text_openclip import FrozenOpenCLIPEmbedder
from ldm.models.unet import UNetModel

TINY = dict(block_out_channels=(32, 64), cross_attention_dim=24, attention_head_dim=8, layers_per_block=1)
TWO = dict(
    TINY,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
UNETS = {
    "sd1": TWO,
    "sd2": dict(TWO, use_linear_projection=True),
    "inpaint": dict(TWO, in_channels=9),
    "upscaler": dict(TWO, in_channels=7, num_class_embeds=10, only_cross_attention=(True, False)),
    "unclip": dict(TWO, class_embed_type="projection", projection_class_embeddings_input_dim=12),
    "one linear layer": dict(
        TWO, class_embed_type="simple_projection", projection_class_embeddings_input_dim=1
    ),
    "deep transformer": dict(TWO, transformer_layers_per_block=2),
}  # fmt: skip
TEXT = dict(
    hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, vocab_size=60,
    bos_token_id=58, eos_token_id=59,
)  # fmt: skip
VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28,
    patch_size=14, projection_dim=24,
)  # fmt: skip
VAE = dict(widths=(32, 64), layers_per_block=1)


@pytest.mark.parametrize("variant", UNETS)
def test_unet(variant: str):
    tensors = noise(unet(UNETS[variant]))
    file = part_to_ldm("unet", tensors)
    assert all(name.startswith("model.diffusion_model.") for name in file)
    parts = ldm_to_parts(file)
    assert parts.pop(UNUSED) == {}
    assert same(parts.pop("unet"), tensors) and not parts


@pytest.mark.parametrize("config", [VAE, dict(VAE, mid_block_add_attention=False), dict(widths=(32, 32, 64))])
def test_vae(config: dict):
    tensors = noise(vae(**config))
    file = part_to_ldm("vae", tensors)
    assert same(ldm_to_parts(file)["vae"], tensors)
    assert all(x.data_ptr() == y.data_ptr() for x, y in zip(file.values(), tensors.values(), strict=True))


def test_the_old_names_of_the_vae_attention():
    tensors = noise(vae(**VAE))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    aged = {}
    for name, x in tensors.items():
        path, _, leaf = name.rpartition(".")
        new = next((new for new in old if path.endswith("." + new)), None)
        aged[path.removesuffix(new) + old[new] + "." + leaf if new else name] = x
    assert aged.keys() != tensors.keys()
    assert same(part_to_ldm("vae", aged), part_to_ldm("vae", tensors))


def test_vae_training_file_keeps_its_discriminator_and_averages():
    tensors = noise(vae(**VAE))
    bare = {
        name.removeprefix("first_stage_model."): x for name, x in part_to_ldm("vae", tensors).items()
    }
    bare |= {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.ones(())}
    bare |= {"model_ema.encoderconv_inbias": torch.ones(32)}
    file = to_ldm({"": bare})
    assert file.keys() == {"first_stage_model." + name for name in bare}
    parts = ldm_to_parts(file)
    assert same(parts["vae"], tensors)
    assert set(parts[UNUSED]) == {
        "first_stage_model.loss.logvar",
        "first_stage_model.model_ema.decay",
        "first_stage_model.model_ema.encoderconv_inbias",
    }


@pytest.mark.parametrize("linear", [False, True])
def test_controlnet(linear: bool):
    tensors = noise(controlnet(
        dict(
            block_out_channels=(32, 64), cross_attention_dim=24, attention_head_dim=8, layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), use_linear_projection=linear,
            conditioning_embedding_out_channels=(4, 8, 12),
        )
    ))  # fmt: skip
    file = part_to_ldm("controlnet", tensors)
    assert all(name.startswith("control_model.") for name in file)
    assert same(ldm_to_parts(file)["controlnet"], tensors)
    assert same(to_ldm({"": tensors}), file)
    bare = {name.removeprefix("control_model."): x for name, x in file.items()}
    assert same(to_ldm({"": bare}), file)


def test_clip_text_encoder_by_all_its_names():
    tensors = text_names(noise(text_encoder(TEXT)))
    file = part_to_ldm("text_encoder", tensors)
    assert all(name.startswith("cond_stage_model.transformer.text_model.") for name in file)
    assert same(ldm_to_parts(file)["text_encoder"], tensors)
    shallow = {name.removeprefix("text_model."): x for name, x in tensors.items()}
    assert same(to_ldm({"text_encoder": shallow}), file)
    for prefix in ("", "transformer.", "cond_stage_model.transformer."):
        for names in (tensors, shallow):
            assert same(to_ldm({"": {prefix + name: x for name, x in names.items()}}), file)


def test_position_ids_go_where_they_have_a_place():
    position_ids = torch.arange(77)[None]
    tensors = text_names(noise(text_encoder(TEXT))) | {"text_model.embeddings.position_ids": position_ids}
    file = part_to_ldm("text_encoder", tensors)
    stored = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    assert file[stored] is position_ids
    parts = ldm_to_parts(file)
    assert list(parts[UNUSED]) == [stored]
    assert "text_model.embeddings.position_ids" not in parts["text_encoder"]
    assert same(to_ldm(parts), file)
    assert "position_ids" not in " ".join(part_to_ldm("text_encoder", tensors, {"hidden_act": "gelu"}))


def openclip_tower(tmp_path: Path) -> dict[str, Tensor]:
    """Return a whole OpenCLIP text tower under published names."""
    arch = tmp_path / "tiny.json"
    text = {"context_length": 77, "vocab_size": 60, "width": 32, "heads": 2, "layers": 3}
    arch.write_text(json.dumps({"embed_dim": 24, "vision_cfg": {}, "text_cfg": text}))
    return noise(FrozenOpenCLIPEmbedder(arch=str(arch)), "cond_stage_model.")


def test_openclip_text_encoder(tmp_path: Path):
    file = openclip_tower(tmp_path)
    parts = ldm_to_parts(file)
    want = text_names(text_encoder(TEXT).state_dict())      # one block less than the tower
    assert shapes(parts["text_encoder"]) == shapes(want)
    assert sorted(name for name in parts[UNUSED] if "resblocks" not in name) == [
        "cond_stage_model.model.logit_scale", "cond_stage_model.model.text_projection",
    ]  # fmt: skip
    assert all("resblocks.2." in name for name in parts[UNUSED] if "resblocks" in name)
    assert same(to_ldm(parts), file), "what is kept aside tells the family"
    del parts[UNUSED]
    back = to_ldm(parts, {"text_encoder": {"hidden_act": "gelu"}})
    assert same(back, {name: x for name, x in file.items() if name in back})
    assert len(back) == len(file) - 12 - 2


def test_the_parts_of_in_proj_are_views(tmp_path: Path):
    file = openclip_tower(tmp_path)
    text = ldm_to_parts(file)["text_encoder"]
    q, k, v = (text[f"text_model.encoder.layers.1.self_attn.{p}_proj.weight"] for p in "qkv")
    stored = file["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"]
    assert torch.equal(torch.cat([q, k, v]), stored)
    assert q.untyped_storage().data_ptr() == v.untyped_storage().data_ptr() == stored.data_ptr()


def test_a_projected_text_encoder_gives_its_projection_back(tmp_path: Path):
    file = openclip_tower(tmp_path)
    text = ldm_to_parts(file)["text_encoder"]
    projection = file["cond_stage_model.model.text_projection"]         # x @ projection; transformers: W x
    projected = text | {"text_projection.weight": projection.T}
    got = part_to_ldm("text_encoder", projected, {"hidden_act": "gelu"})
    assert torch.equal(got["cond_stage_model.model.text_projection"], projection)


def test_a_bare_openclip_tower_gets_its_prefix(tmp_path: Path):
    file = openclip_tower(tmp_path)
    for prefix in ("model.", ""):
        bare = {prefix + name.removeprefix("cond_stage_model.model."): x for name, x in file.items()}
        assert same(to_ldm({"": bare | {prefix + "visual.proj": torch.ones(2)}}), file)


def test_the_tower_of_openais_clip_is_the_text_encoder_of_sd1():
    with torch.device("meta"):
        sizes = dict(TEXT, hidden_size=768, num_attention_heads=12)
        want = text_names(text_encoder(sizes).state_dict())
    tower = text_module.openclip_names({name.removeprefix("text_model."): x for name, x in want.items()})
    extra = {"logit_scale": torch.ones(()), "visual.proj": torch.ones(2), "context_length": torch.tensor(77)}
    file = to_ldm({"": tower | extra})
    prefix = "cond_stage_model.transformer."
    assert shapes(file) == {prefix + name: shape for name, shape in shapes(want).items()}


def test_the_unclip_image_encoder():
    tensors = noise(image_encoder(VISION))
    file = part_to_ldm("image_encoder", tensors)
    assert all(name.startswith("embedder.model.visual.") for name in file)
    assert same(ldm_to_parts(file)["image_encoder"], tensors)
    assert same(to_ldm({"": tensors}), file)


def test_midas_own_file_gets_its_prefix():
    tensors = {"pretrained.model.cls_token": torch.ones(1, 1, 8), "scratch.output_conv.4.bias": torch.ones(1)}
    file = to_ldm({"": tensors})
    assert same(file, {"depth_model.model." + name: x for name, x in tensors.items()})


def test_image_normalizer():
    tensors = {"mean": torch.randn(1, 8), "std": torch.randn(1, 8)}
    file = to_ldm({"": tensors})
    assert list(file) == ["noise_augmentor.data_mean", "noise_augmentor.data_std"]
    betas = {"noise_augmentor.betas": torch.ones(4)}
    parts = ldm_to_parts(file | betas)
    assert same(parts["image_normalizer"], tensors) and same(parts[UNUSED], betas)


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_a_bare_unet_gets_its_prefix(prefix: str):
    file = part_to_ldm("unet", noise(unet(UNETS["sd1"])))
    bare = {prefix + name.removeprefix("model.diffusion_model."): x for name, x in file.items()}
    assert same(to_ldm({"": bare}), file)
    assert same(to_ldm({"": file}), file), "published names pass"


def test_a_pipeline_becomes_one_file_and_its_other_parts_are_left_out():
    parts = {"unet": noise(unet(UNETS["sd1"])), "vae": noise(vae(**VAE))}
    parts["text_encoder"] = noise(text_encoder(TEXT))
    file = to_ldm(parts | {"safety_checker": {"x": torch.ones(1)}})
    assert len(file) == sum(len(tensors) for tensors in parts.values())
    back = ldm_to_parts(file)
    assert same(back["unet"], parts["unet"]) and same(back["vae"], parts["vae"]) and back[UNUSED] == {}


@pytest.mark.parametrize(
    ("names", "error", "what"),
    [
        (["lora_unet_down_blocks_0_attentions_0.lora_up.weight"], WrongModelError, "LoRA"),
        (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], WrongModelError, "LoRA"),
        (["lycoris_x.hada_w1_a"], WrongModelError, "LyCORIS"),
        (["emb_params"], WrongModelError, "textual-inversion"),
        (["model.diffusion_model.out.2.bias", "conditioner.embedders.0.x"], WrongModelError, "SDXL"),
        (["down_blocks.0.resnets.0.norm1.weight", "add_embedding.linear_1.bias"], WrongModelError, "SDXL"),
        (["model.diffusion_model.joint_blocks.0.x.weight"], WrongModelError, "SD3"),
        (["down_blocks.0.resnets.0.norm7.weight"], WrongModelError, "norm7"),
        (["embeddings.token_embedding.weight", "pooler.weight"], WrongModelError, "pooler"),
        (["layer1.0.conv1.weight", "a", "b", "c"], NotACheckpointError, r"4 tensors \('layer1"),
        (["encoder.mid_block.attentions.0.to_q.weight", "encoder.mid_block.attentions.0.query.weight"],
         WrongModelError, "twice"),
        (["down_blocks.0.resnets.0." + 1000 * "long\n"], WrongModelError, "long"),
        ([], NotACheckpointError, "holds"),
    ],
)
def test_what_is_no_stable_diffusion_is_refused_in_a_sentence(names: list[str], error: type, what: str):
    tensors = {name: torch.ones(2, 1024) for name in names}
    with pytest.raises(error, match=f"^some.file: .*{what}") as caught:
        to_ldm({"": tensors}, source="some.file")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("part", ["text_encoder_2", "transformer", "vqvae"])
def test_a_pipeline_of_another_kind_is_refused(part: str):
    with pytest.raises(WrongModelError, match="pipeline|vqvae"):
        to_ldm({"unet": noise(unet(UNETS["sd1"])), part: {"x": torch.ones(1)}})


def test_a_layer_that_diffusers_has_not_is_refused_by_name():
    with pytest.raises(WrongModelError, match="qkv.weight"):
        ldm_to_parts({"model.diffusion_model.middle_block.1.qkv.weight": torch.ones(1)})


def test_a_misshapen_attention_is_refused():
    block = "cond_stage_model.model.transformer.resblocks"
    file = {f"{block}.0.attn.in_proj_weight": torch.ones(4, 2), f"{block}.1.ln_1.bias": torch.ones(2)}
    with pytest.raises(WrongModelError, match=r"in_proj_weight' is \(4, 2\)"):
        ldm_to_parts(file)
    tower = {f"encoder.layers.0.self_attn.{part}_proj.bias": torch.ones(2 + (part == "k")) for part in "qkv"}
    with pytest.raises(WrongModelError, match="misshapen"):
        part_to_ldm("text_encoder", tower, {"hidden_act": "gelu"})


def test_absurd_numbers_of_blocks_cost_nothing():
    many = 10**12
    names = [f"down_blocks.{many}.resnets.0.norm1.bias", f"encoder.down_blocks.0.resnets.{many}.conv1.bias"]
    for name in names:
        with pytest.raises(WrongModelError):
            to_ldm({"": {name: torch.ones(1)}})


@st.composite
def architectures(draw) -> tuple[dict, dict]:
    """Return one UNet in our words and in diffusers'."""
    levels = draw(st.integers(1, 4))
    mult = [1, *draw(st.lists(st.sampled_from([1, 2, 3]), min_size=levels - 1, max_size=levels - 1))]
    attends = draw(st.lists(st.booleans(), min_size=levels, max_size=levels))
    resnets = draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))
    cross_only = draw(st.lists(st.booleans(), min_size=levels, max_size=levels))
    linear, depth, channels = draw(st.booleans()), draw(st.integers(1, 2)), draw(st.sampled_from([4, 9]))
    label = draw(st.sampled_from([None, 7, "sequential"]))
    ours = dict(
        in_channels=channels, out_channels=4, model_channels=32, num_res_blocks=resnets, channel_mult=mult,
        attention_resolutions=[2**level for level in range(levels) if attends[level]], num_head_channels=8,
        use_spatial_transformer=True, context_dim=12, transformer_depth=depth, legacy=False,
        use_linear_in_transformer=linear, disable_self_attentions=cross_only, num_classes=label,
        adm_in_channels=10 if label == "sequential" else None,
    )
    theirs = dict(
        in_channels=channels, block_out_channels=tuple(32 * m for m in mult), layers_per_block=tuple(resnets),
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=8, cross_attention_dim=12, transformer_layers_per_block=depth,
        use_linear_projection=linear, only_cross_attention=tuple(cross_only),
        num_class_embeds=label if isinstance(label, int) else None,
    )
    if label == "sequential":
        theirs |= dict(class_embed_type="projection", projection_class_embeddings_input_dim=10)
    return ours, theirs


@settings(max_examples=10, deadline=None)
@given(architectures())
def test_any_unet_has_the_names_and_shapes_of_diffusers(architecture: tuple[dict, dict]):
    ours, theirs = architecture
    with torch.device("meta"):
        file = {"model.diffusion_model." + n: x for n, x in UNetModel(**ours).state_dict().items()}
        want = unet(theirs).state_dict()
    got = ldm_to_parts(file)["unet"]
    assert shapes(got) == shapes(want)
    back = part_to_ldm("unet", got)
    assert back.keys() == file.keys() and all(back[name] is file[name] for name in file)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([32, 64]), max_size=4), st.integers(1, 3), st.booleans())
def test_any_autoencoder_has_the_names_and_shapes_of_diffusers(
    widths: list[int], resnets: int, attention: bool
):
    widths = [32, *widths]
    ddconfig = dict(
        double_z=True, z_channels=4, resolution=64, in_channels=3, out_ch=3, ch=32, num_res_blocks=resnets,
        ch_mult=[width // 32 for width in widths], attn_resolutions=[], dropout=0.0,
        **({} if attention else {"attn_type": "none"}),
    )  # fmt: skip
    with torch.device("meta"):
        ours = AutoencoderKL(ddconfig, embed_dim=4).state_dict()
        want = vae(tuple(widths), layers_per_block=resnets, mid_block_add_attention=attention).state_dict()
    file = {"first_stage_model." + name: x for name, x in ours.items()}
    got = ldm_to_parts(file)["vae"]
    assert shapes(got) == shapes(want)
    assert shapes(part_to_ldm("vae", got)) == shapes(file)
