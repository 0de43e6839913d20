"""Prompts -> contexts: the plain encoding where nothing is weighed, A1111's formula where it is."""

import logging
from copy import deepcopy

import pytest
import torch
from requesting import encoder_of
from torch import Tensor

from ldm.errors import InputError
from ldm.prompts.encoding import PromptEncoder

SYNTAXES = ("plain", "a1111", "compel")
SHORT = ["a red apple", "", "cat, it's 5 o'clock!"]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_without_weights_every_syntax_is_the_plain_encoding_to_the_bit(model, syntax):
    encoder = encoder_of(model, syntax)
    assert torch.equal(encoder.encode(SHORT), model.get_learned_conditioning(SHORT))
    ones = {"plain": "a red apple", "a1111": "a (red:1.0) [(apple)]", "compel": "a (red)1 (apple)1.0"}[syntax]
    assert torch.equal(encoder.encode([ones]), model.get_learned_conditioning(["a red apple"]))


def test_short_prompts_do_not_feel_long_ones_beside_them(model):
    contexts = encoder_of(model).encode([*SHORT, "cat " * 200])
    length = model.cond_stage_model.vocabulary().context_length
    beside = [*SHORT, "cat " * (length - 2)]
    assert torch.equal(contexts[:, :length], model.get_learned_conditioning(beside))
    empty = encoder_of(model).encode([""])
    assert torch.equal(contexts[:3, length : 2 * length], empty.expand(3, -1, -1))


def test_plain_text_has_no_syntax(model):
    text = ["(a:2)+ ["]
    assert torch.equal(encoder_of(model).encode(text), model.get_learned_conditioning(text))


def test_long_prompts_can_be_cut_as_in_the_reference(model, caplog):
    texts = ["cat " * 200, "a cat"]
    cut = encoder_of(model, long_prompts="cut").encode(texts)
    assert torch.equal(cut, model.get_learned_conditioning(texts))
    assert "prompt has 200 tokens: cut after" in caplog.text


def test_a_long_prompt_is_said_once_with_its_tokens(model, caplog):
    caplog.set_level(logging.INFO)
    encoder = encoder_of(model, "a1111")
    room = model.cond_stage_model.vocabulary().room
    for _ in range(2):
        encoder.encode(["cat " * (room + 1), "dog"], "negative prompt")
    encoder.encode(["cat " * room])
    assert caplog.text.count("tokens") == 1
    assert f"negative prompt has {room + 1} tokens: encoded in 2 parts of {room} ('cat cat" in caplog.text


def test_contexts_of_two_lengths_are_filled_with_empty_chunks(model):
    encoder = encoder_of(model)
    long, short = encoder.pad_to_longest([encoder.encode(["cat " * 200]), encoder.encode(["dog"])])
    length = model.cond_stage_model.vocabulary().context_length
    assert long.shape == short.shape
    assert torch.equal(short[:, :length], encoder.encode(["dog"]))
    assert torch.equal(short[:, length : 2 * length], encoder.encode([""]))


def by_the_formula(model, twin, pieces: list[list[tuple[str, float]]]) -> Tensor:
    """Encode with transformers what each chunk holds, and weigh it as A1111's interface does."""
    vocabulary = model.cond_stage_model.vocabulary()
    contexts = []
    for piece in pieces:
        numbers, weights = [vocabulary.start], [1.0]
        for text, weight in piece:
            ids = model.cond_stage_model.tokenizer.encode(text)
            numbers += ids
            weights += [weight] * len(ids)
        missing = vocabulary.context_length - len(numbers) - 1
        numbers += [vocabulary.end, *[vocabulary.pad] * missing]
        weights += [1.0] * (missing + 1)
        z = twin(torch.tensor([numbers])).last_hidden_state.double()
        weighted = z * torch.tensor(weights).double()[None, :, None]
        contexts.append(weighted * (z.mean() / weighted.mean()))
    return torch.cat(contexts, dim=1).float()


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a (red:1.5) apple", [[("a ", 1), ("red", 1.5), (" apple", 1)]]),
        ("((cat)) [dog]", [[("cat", 1.21), (" ", 1), ("dog", 1 / 1.1)]]),
        ("(a:0) (b:-1)", [[("a", 0), (" ", 1), ("b", -1)]]),
        ("(red cat:1.3) BREAK dog", [[("red cat", 1.3)], [("dog", 1)]]),
        ("\\(red\\) (cat:0.5)", [[("(red) ", 1), ("cat", 0.5)]]),
    ],
)
def test_a1111_weights_the_states_and_restores_the_mean(model, transformers_text, text, pieces):
    expected = by_the_formula(model, transformers_text[1], pieces)
    torch.testing.assert_close(encoder_of(model, "a1111").encode([text]), expected, atol=5e-6, rtol=1e-5)


def test_a1111_weights_do_not_depend_on_the_batch(model):
    encoder = encoder_of(model, "a1111")
    alone, beside = encoder.encode(["(cat:1.4)"]), encoder.encode(["(cat:1.4)", "(a red apple:0.3)"])
    torch.testing.assert_close(beside[:1], alone)


def test_a1111_chunks_end_behind_a_comma(model, transformers_text):
    room = model.cond_stage_model.vocabulary().room
    head, tail = "cat " * (room - 3) + ",", " red apple apple dog"
    expected = by_the_formula(model, transformers_text[1], [[(head, 1)], [(tail, 1)]])
    contexts = encoder_of(model, "a1111").encode([head + tail])
    torch.testing.assert_close(contexts, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("syntax", "text"), [("a1111", "(red:1.9) [cat]"), ("compel", "(red)0 (cat)0.001 dog+")]
)
def test_half_precision_holds_the_weights(model, syntax, text):
    expected = encoder_of(model, syntax).encode([text])
    copied = deepcopy(model).half()
    half = encoder_of(copied, syntax, torch.float16).encode([text])
    assert half.dtype == torch.float32, "the weights are applied in float32"
    torch.testing.assert_close(half, expected, atol=0.02, rtol=0.02)


def test_unknown_ways_are_refused(model):
    with pytest.raises(InputError, match="'a111'; expected one of plain, a1111, compel"):
        encoder_of(model, "a111")
    with pytest.raises(InputError, match="'keep'; expected chunk or cut"):
        encoder_of(model, long_prompts="keep")


class Foreign:
    """Runs a text encoder that is not one of ours."""

    text_encoder = torch.nn.Identity()
    device = torch.device("cpu")

    def text_of(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), 5, 2)


def test_foreign_text_encoders_take_plain_prompts():
    assert PromptEncoder(Foreign()).encode(["a", "b"]).shape == (2, 5, 2)
    with pytest.raises(InputError, match="plain prompts only"):
        PromptEncoder(Foreign(), "a1111")
    with pytest.raises(InputError, match="no clip skip"):
        PromptEncoder(Foreign(), clip_skip=2)
