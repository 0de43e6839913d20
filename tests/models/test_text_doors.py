"""Third-party code that reaches into CLIP's text tower: new tokens, replaced embeddings, hooks."""

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from torch import nn

NEW = 49408         # the id after the vocabulary's last


@pytest.fixture
def embedder(tmp_path):
    return tiny_model(tiny_config("sd1", tmp_path)).cond_stage_model


def with_new_token(embedder, text: str = "a photo of sks") -> torch.Tensor:
    """Return the ids of a text whose last word is the new token."""
    ids = embedder.tokenize([text])
    ids[0, 4:] = embedder.tokenizer.eot_token_id
    ids[0, 4] = NEW
    return ids


def test_textual_inversion_trains_one_row_of_a_grown_table(embedder):
    """As training scripts for transformers' text encoder do it."""
    transformer = embedder.transformer
    old = transformer.get_input_embeddings()
    grown = nn.Embedding(old.num_embeddings + 1, old.embedding_dim)
    with torch.no_grad():
        grown.weight[:-1] = old.weight
        grown.weight[-1] = old.weight[320]
    transformer.set_input_embeddings(grown)
    before = grown.weight.detach().clone()
    ids = with_new_token(embedder)
    optimizer = torch.optim.SGD(transformer.get_input_embeddings().parameters(), lr=1.0)
    losses = []
    for _ in range(3):
        hidden = transformer(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        loss = (hidden[0, 5] - 1).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        grown.weight.grad[:-1] = 0
        optimizer.step()
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
    assert torch.equal(grown.weight[:-1], before[:-1]) and not torch.equal(grown.weight[-1], before[-1])


def test_the_token_embedding_may_be_wrapped(embedder):
    """As web UIs do it: a module that puts learned vectors in the place of some tokens, and has no weight."""

    class WithFixes(nn.Module):
        def __init__(self, wrapped):
            super().__init__()
            self.wrapped = wrapped
            self.fixes = []

        def forward(self, input_ids):
            vectors = self.wrapped(input_ids)
            for row, (offset, vector) in enumerate(self.fixes):
                vectors[row, offset : offset + len(vector)] = vector
            return vectors

    plain = embedder(["a cat"])
    embeddings = embedder.transformer.text_model.embeddings
    embeddings.token_embedding = WithFixes(embeddings.token_embedding)
    assert torch.equal(embedder(["a cat"]), plain)
    embeddings.token_embedding.fixes = [(2, torch.ones(1, plain.shape[-1]))]
    fixed = embedder(["a cat"])
    assert torch.equal(fixed[:, :2], plain[:, :2]) and not torch.allclose(fixed[:, 2:], plain[:, 2:])


def test_clip_skip_as_web_uis_take_it(embedder):
    """They ask for the hidden states with a negative number, and put the final norm on one of them."""
    transformer = embedder.transformer
    tokens = embedder.tokenize(["a red apple"])
    outputs = transformer(input_ids=tokens, output_hidden_states=-2)
    z = transformer.text_model.final_layer_norm(outputs.hidden_states[-2])
    assert torch.equal(z, embedder.encode_tokens(tokens, clip_skip=2))


def test_hooks_on_the_tower_see_every_prompt(embedder):
    seen = []
    handles = [
        module.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
        for module in (embedder.transformer, embedder.transformer.text_model)
    ]
    embedder(["a cat"])
    for handle in handles:
        handle.remove()
    assert seen == ["TextModel", "CLIPTextModel"]
    embedder.transformer.text_model.embeddings.forward = lambda input_ids, position_ids=None: torch.zeros(
        *input_ids.shape, 32
    )
    assert torch.equal(embedder(["a cat"]), embedder(["a dog"]))
