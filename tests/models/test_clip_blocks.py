"""CLIP's towers against those of open_clip, and what of a description they refuse."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ldm.clip_files import architecture, merges_file
from ldm.errors import ConfigError
from ldm.models.clip_blocks import TextSizes, VisionSizes
from ldm.models.image_clip import CLIPModel
from ldm.models.text_openclip import FrozenOpenCLIPEmbedder, TextTower

DEMO = Path(__file__).parents[2] / "configs" / "demo"
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 58, "layers": 2, "width": 48, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 9, "vocab_size": 50, "width": 32, "heads": 4, "layers": 3},
}
VARIANTS = {
    "gelu": {},
    "quick-gelu": {"quick_gelu": True},
    "odd mlp": {"text_cfg": {"mlp_ratio": 2.7}, "vision_cfg": {"mlp_ratio": 3.3}},
    "layer scale": {"text_cfg": {"ls_init_value": 0.3}, "vision_cfg": {"ls_init_value": 0.2}},
    "one head": {"text_cfg": {"heads": 1}, "vision_cfg": {"head_width": 48}},
}
IMAGES = torch.randn(3, 3, 58, 58, generator=torch.manual_seed(1))
TOKENS = torch.randint(0, 49, (3, 9), generator=torch.manual_seed(2))
TOKENS[:, 6] = 49


def described(variant: dict) -> dict:
    nested = {key: {**TINY[key], **variant.get(key, {})} for key in ("text_cfg", "vision_cfg")}
    return {**TINY, **variant, **nested}


@pytest.fixture(params=VARIANTS)
def pair(request) -> tuple[CLIPModel, nn.Module]:
    """Return our CLIP and open_clip's with the same weights."""
    config = described(VARIANTS[request.param])
    torch.manual_seed(0)
    theirs = open_clip.CLIP(**config).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours = CLIPModel(config, text_blocks=True).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("grad", [False, True])
def test_equals_open_clip(pair, grad):
    ours, theirs = pair
    with torch.set_grad_enabled(grad):
        got = ours.encode_text(TOKENS), ours.encode_image(IMAGES)
        want = theirs.encode_text(TOKENS), theirs.encode_image(IMAGES)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_demonstration_models_text_tower_equals_open_clips_to_the_bit(batch_size):
    """Prompts of old pictures were encoded by it, and steps enlarge the last bit to what can be seen."""
    config = json.loads((DEMO / "emoji_clip.json").read_text())
    prefix = "cond_stage_model.model."
    weights = {
        name.removeprefix(prefix): weight.float()
        for name, weight in load_file(DEMO / "emoji.safetensors").items()
        if name.startswith(prefix)
    }
    theirs = open_clip.CLIP(**config).eval()
    theirs.load_state_dict(weights, strict=False)  # its image tower is not in the file
    ours = TextTower(config["embed_dim"], TextSizes.read(config, "text_cfg")).eval()
    ours.load_state_dict(weights)
    length, last = ours.context_length, config["text_cfg"]["vocab_size"] - 1
    tokens = torch.randint(1, last, (batch_size, length))
    tokens[:, -1] = last
    wanted = theirs.encode_text(tokens)
    assert torch.equal(ours(tokens)[:, -1] @ ours.text_projection, wanted)


def test_gradients_equal_those_of_open_clip(pair):
    gradients = []
    for model in pair:
        (model.encode_text(TOKENS) * model.encode_image(IMAGES)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if name != "logit_scale"})
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_half_precision_stays_half_under_autocast_and_is_as_exact(pair):
    exact = pair[0].bfloat16().float().encode_text(TOKENS)
    ours, theirs = (model.bfloat16() for model in pair)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = (model.encode_text(TOKENS) for model in (ours, theirs))
    assert got.dtype == want.dtype == torch.bfloat16
    assert (got - exact).abs().mean() < 1.3 * (want - exact).abs().mean()


def test_the_first_weights_spread_as_those_of_open_clip():
    config = described({})
    sizes = {"text_cfg": {"width": 256}, "vision_cfg": {"width": 256}}
    config = {**config, **{key: {**config[key], **size} for key, size in sizes.items()}}
    torch.manual_seed(0)
    ours, theirs = CLIPModel(config, text_blocks=True), open_clip.CLIP(**config)
    for name, want in theirs.state_dict().items():
        got = ours.state_dict()[name]
        assert got.shape == want.shape and torch.isfinite(got).all()
        if want.numel() > 4000:
            torch.testing.assert_close(got.std(), want.std(), rtol=0.05, atol=0, msg=name)
            assert abs(got.mean()) < 0.1 * want.std(), name
        elif want.min() == want.max():
            assert torch.equal(got, want), name


def test_recomputing_gives_equal_gradients():
    torch.manual_seed(0)
    tower = TextTower(24, TextSizes.read(TINY, "text_cfg")).train()
    gradients = []
    for recompute in (False, True):
        tower.transformer.grad_checkpointing = recompute
        tower.zero_grad()
        tower(TOKENS, skip=1).square().sum().backward()
        gradients.append([p.grad.clone() for p in tower.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


def test_no_token_looks_ahead():
    tower = TextTower(24, TextSizes.read(TINY, "text_cfg")).eval()
    changed = TOKENS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 49
    before, after = tower(TOKENS), tower(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


REFUSED = {
    "another library's tower": ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name: roberta-base"),
    "no causal mask": ("text_cfg", {"no_causal_mask": True}, "no_causal_mask"),
    "a tower of timm": ("vision_cfg", {"timm_model_name": "convnext_base"}, "timm_model_name"),
    "a ResNet": ("vision_cfg", {"layers": [3, 4, 6, 3]}, "is a ResNet"),
    "another pooling": ("vision_cfg", {"pool_type": "avg"}, "pool_type: avg"),
    "heads that do not divide": ("text_cfg", {"heads": 5}, "width 32 cannot be split into 5 heads"),
}


@pytest.mark.parametrize(("part", "change", "message"), REFUSED.values(), ids=REFUSED)
def test_another_architecture_is_refused(part, change, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        CLIPModel(described({part: change}), text_blocks=True)


def test_a_description_without_a_tower_is_refused(tmp_path):
    file = tmp_path / "half.json"
    file.write_text(json.dumps({"embed_dim": 8, "vision_cfg": TINY["vision_cfg"]}))
    with pytest.raises(ConfigError, match="has no text_cfg"):
        FrozenOpenCLIPEmbedder(str(file))


IGNORED = [{"output_tokens": True}, {"pool_type": "eos"}, {"no_causal_mask": False}]


@pytest.mark.parametrize("ignored", IGNORED)
def test_what_changes_no_state_is_ignored(ignored):
    assert TextSizes.read(described({"text_cfg": ignored}), "text_cfg") == TextSizes.read(TINY, "text_cfg")


@pytest.mark.parametrize("arch", ["ViT-H-14", "ViT-L-14-quickgelu", "ViT-bigG-14", "ViT-B-32"])
def test_descriptions_are_those_of_open_clip(arch):
    assert architecture(arch) == open_clip.get_model_config(arch)
    assert VisionSizes.read(architecture(arch), "vision_cfg").heads == {
        "ViT-H-14": 16, "ViT-L-14-quickgelu": 16, "ViT-bigG-14": 16, "ViT-B-32": 12
    }[arch]
    assert str(merges_file()) == open_clip.tokenizer.default_bpe()


def test_an_unknown_architecture_names_its_neighbours():
    with pytest.raises(ConfigError, match="'ViT-H_14' is not known to open_clip.*did you mean .*ViT-H-14"):
        architecture("ViT-H_14")
