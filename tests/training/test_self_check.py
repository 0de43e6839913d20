"""The check that training reaches every tensor."""

import pytest
import torch
from torch import nn

from ldm.errors import TrainingError
from ldm.training.self_check import SelfCheck


def steps(model: nn.Module, loss, check: SelfCheck, count: int, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for _ in range(count):
        optimizer.zero_grad()
        loss(model).backward()
        check.before_step()
        optimizer.step()
        check.after_step()


def chain() -> nn.Sequential:
    """Two layers, of which the last starts at zero, as in a residual block."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    nn.init.zeros_(model[1].weight)
    return model


def whole(model: nn.Module) -> torch.Tensor:
    return (model(torch.ones(2, 4)) - 1).square().mean()


def test_passes_when_everything_learns_although_the_last_layer_starts_at_zero():
    model = chain()
    check = SelfCheck(dict(model.named_parameters()), steps=3)
    steps(model, whole, check, 3)
    assert check.done


def test_names_a_tensor_that_no_gradient_reaches():
    model = chain()
    check = SelfCheck(dict(model.named_parameters()), steps=3)
    with pytest.raises(TrainingError, match=r"0\.weight.*no gradient"):
        steps(model, lambda m: (m[1](m[0](torch.ones(2, 4)).detach()) - 1).square().mean(), check, 3)


def test_a_tensor_with_a_reason_may_rest():
    model = chain()
    check = SelfCheck(dict(model.named_parameters()), steps=3, allow={"0.": "frozen on purpose"})
    steps(model, lambda m: (m[1](m[0](torch.ones(2, 4)).detach()) - 1).square().mean(), check, 3)
    assert check.done


def test_names_a_tensor_that_does_not_move():
    model = nn.Linear(4, 1)
    check = SelfCheck(dict(model.named_parameters()), steps=2)
    with pytest.raises(TrainingError, match="has not moved"):
        steps(model, whole, check, 200, lr=0.0)


def test_a_gradient_that_is_not_finite_stops_at_once():
    model = chain()
    check = SelfCheck(dict(model.named_parameters()), steps=3)
    with pytest.raises(TrainingError, match="not finite"):
        steps(model, lambda m: m(torch.full((2, 4), float("nan"))).sum(), check, 1)
