"""Token ids -> states, with blocks left out and tokens hidden, against transformers."""

import pytest
import torch
from tiny_models import tiny_config, tiny_model

from ldm.errors import InputError
from ldm.models.text_openclip import FrozenOpenCLIPEmbedder

TEXTS = ["a red apple", "cat"]


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    return {task: tiny_model(tiny_config(task, folder)).cond_stage_model for task in ("sd1", "sd2")}


@pytest.mark.parametrize(("task", "default", "blocks"), [("sd1", 1, 2), ("sd2", 2, 3)])
def test_clip_skip_counts_blocks_from_the_end(towers, task, default, blocks):
    tower = towers[task]
    tokens = tower.tokenize(TEXTS)
    assert torch.equal(tower.encode_tokens(tokens), tower(TEXTS))
    assert torch.equal(tower.encode_tokens(tokens, clip_skip=default), tower(TEXTS))
    states = [tower.encode_tokens(tokens, clip_skip=n) for n in range(1, blocks + 1)]
    assert all(x.shape == tower(TEXTS).shape for x in states)
    assert not any(torch.allclose(a, b) for i, a in enumerate(states) for b in states[:i])
    assert all(abs(x.mean(-1) - states[0].mean(-1)).max() < 1 for x in states)  # all through the last norm


@pytest.mark.parametrize(("task", "blocks"), [("sd1", 2), ("sd2", 3)])
@pytest.mark.parametrize("wrong", [0, -1, 99])
def test_clip_skip_has_its_bounds(towers, task, blocks, wrong):
    with pytest.raises(InputError, match=f"clip skip {wrong}; this model's text encoder takes 1 to {blocks}"):
        towers[task].check_clip_skip(wrong)


def test_a_block_that_was_not_in_the_file_is_not_used(tmp_path):
    tower = tiny_model(tiny_config("sd2", tmp_path)).cond_stage_model
    assert isinstance(tower, FrozenOpenCLIPEmbedder)
    tower.check_clip_skip(1)
    for name in tower.unused_parameters():
        tower.get_parameter(name).zero_()  # what loading does
    tower.check_clip_skip(2)
    with pytest.raises(InputError, match="clip skip 1 needs a block .* does not contain; expected 2 or more"):
        tower.check_clip_skip(1)


@pytest.mark.parametrize("task", ["sd1", "sd2"])
def test_hidden_tokens_are_not_looked_at(towers, task):
    tower = towers[task]
    tokens = tower.tokenize(TEXTS)
    hidden = torch.zeros_like(tokens, dtype=torch.bool)
    plain = tower.encode_tokens(tokens)
    torch.testing.assert_close(tower.encode_tokens(tokens, hidden=hidden), plain)
    hidden[0, 2] = True
    changed = tokens.clone()
    changed[0, 2] = 5
    seen, other = (tower.encode_tokens(t, hidden=hidden) for t in (tokens, changed))
    keep = torch.arange(tokens.shape[1]) != 2
    torch.testing.assert_close(seen[:, keep], other[:, keep])
    torch.testing.assert_close(seen[1], plain[1])
    assert not torch.allclose(seen[0, 3], plain[0, 3])


def test_clip_skip_takes_the_states_that_transformers_gives(towers):
    from transformers import CLIPTextConfig, CLIPTextModel

    from ldm.checkpoint.layouts import text_encoder

    tower = towers["sd1"]
    weights, _ = text_encoder.to_diffusers(tower.state_dict())
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    twin = CLIPTextModel(config).eval()
    own = twin.state_dict()
    twin.load_state_dict({k if k in own else k.removeprefix("text_model."): x for k, x in weights.items()})
    tokens = tower.tokenize(TEXTS)
    states = twin(tokens, output_hidden_states=True).hidden_states
    norm = dict(twin.named_modules())
    final = next(m for name, m in norm.items() if name.endswith("final_layer_norm"))
    for clip_skip in (1, 2):
        torch.testing.assert_close(
            tower.encode_tokens(tokens, clip_skip=clip_skip), final(states[-clip_skip]), atol=5e-6, rtol=1e-5
        )
