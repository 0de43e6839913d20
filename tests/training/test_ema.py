"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from ldm.errors import TrainingError
from ldm.training.ema import LitEma


def test_closed_form_after_three_updates():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = LitEma(model)
    nn.init.ones_(model.weight)
    left = 1.0
    for n in (1, 2, 3):
        ema(model)
        left *= (1 + n) / (10 + n)
    assert float(ema.weight) == pytest.approx(1 - left)
    assert int(ema.num_updates) == 3


def test_a_constant_decay_counts_nothing():
    model = nn.Linear(1, 1)
    ema = LitEma(model, 0.5, use_num_updates=False)
    before = model.weight.detach().clone()
    nn.init.ones_(model.weight)
    ema(model)
    torch.testing.assert_close(ema.weight, (before + 1) / 2)
    assert int(ema.num_updates) == -1


def test_weights_come_back_after_a_block_even_when_it_fails():
    model = nn.Linear(2, 2)
    ema = LitEma(model)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    changed = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), ema.applied_to(model):
        assert torch.equal(model.weight, before)
        raise RuntimeError("inside")
    assert torch.equal(model.weight, changed) and model.weight.requires_grad


def test_published_names_and_frozen_parameters():
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1).requires_grad_(False)})
    assert list(LitEma(model).state_dict()) == ["decay", "num_updates", "aweight", "abias"]


def test_half_precision_weights_have_float32_shadows():
    assert LitEma(nn.Linear(1, 1).half()).weight.dtype == torch.float32


def test_two_parameters_of_one_shadow_name_are_an_error():
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(1, 1)}), "ab": nn.Linear(1, 1)})
    with pytest.raises(TrainingError, match="abweight"):
        LitEma(model)
