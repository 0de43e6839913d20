"""Tiny models of both families, and the same text encoders in transformers' hands."""

import pytest
from open_clip.tokenizer import SimpleTokenizer
from tiny_models import tiny_config, tiny_model

from ldm.checkpoint.layouts import text_encoder

FAMILIES = ("sd1", "sd2")


@pytest.fixture(scope="session", params=FAMILIES)
def model(request, tmp_path_factory):
    """Return a tiny model: SD 1.x with 77 tokens, or SD 2.x with 12."""
    return tiny_model(tiny_config(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="session")
def transformers_text(model):
    """Return transformers' tokenizer and text encoder with the vocabulary and the weights of `model`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tower = model.cond_stage_model
    vocabulary = tower.vocabulary()
    weights, _ = text_encoder.to_diffusers(tower.state_dict())
    openclip = vocabulary.pad == 0
    config = CLIPTextConfig(
        vocab_size=len(tower.tokenizer.encoder), hidden_size=32, intermediate_size=128 if openclip else 64,
        num_hidden_layers=2, num_attention_heads=2, hidden_act="gelu" if openclip else "quick_gelu",
        max_position_embeddings=vocabulary.context_length, bos_token_id=vocabulary.start,
        eos_token_id=vocabulary.end,
    )  # fmt: skip
    twin = CLIPTextModel(config).eval().requires_grad_(False)
    own = twin.state_dict()
    twin.load_state_dict({k if k in own else k.removeprefix("text_model."): x for k, x in weights.items()})
    return _tokenizer(tower.tokenizer, "!" if openclip else None, vocabulary.context_length), twin


def _tokenizer(simple: SimpleTokenizer, pad: str | None, length: int):
    """Return transformers' tokenizer with the vocabulary of open_clip's; its default pads with the end."""
    from transformers import CLIPTokenizer

    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    words = {names.get(word, word): number for word, number in simple.encoder.items()}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    return CLIPTokenizer(
        vocab=words, merges=merges, model_max_length=length, pad_token=pad or "<|endoftext|>"
    )
