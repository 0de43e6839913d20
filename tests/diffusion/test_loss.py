"""The training loss and its weights."""

import pytest
import torch

from ldm.diffusion.loss import diffusion_loss, min_snr_weights, offset_noise, target
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.errors import ConfigError

SCHEDULE = Schedule(make_betas("linear", 1000, 0.00085, 0.012))
T = torch.tensor([0, 100, 500, 999])
X_0, EPS, OUTPUT = torch.randn(3, 4, 2, 3, 3, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
@pytest.mark.parametrize("loss_type", ["l1", "l2"])
def test_the_target_itself_costs_nothing(parameterization: str, loss_type: str):
    output = target(SCHEDULE, parameterization, X_0, EPS, T)
    loss = diffusion_loss(SCHEDULE, parameterization, output, X_0, EPS, T, loss_type=loss_type)
    assert loss.total == loss.vlb == 0 and loss.per_sample.tolist() == [0] * 4


def test_logvar_scales_and_adds():
    logvar = torch.linspace(-1, 1, 1000)
    loss = diffusion_loss(SCHEDULE, "eps", OUTPUT, X_0, EPS, T, logvar=logvar, original_elbo_weight=0.5)
    per_sample = (EPS - OUTPUT).square().mean((1, 2, 3))
    gamma = (per_sample / logvar[T].exp() + logvar[T]).mean()
    torch.testing.assert_close(loss.per_sample, per_sample)
    torch.testing.assert_close(loss.simple, per_sample.mean())
    torch.testing.assert_close(loss.gamma, gamma)
    vlb = (SCHEDULE.lvlb_weights("eps")[T] * per_sample).mean()
    torch.testing.assert_close(loss.total, gamma + 0.5 * vlb)


def test_a_learned_logvar_gets_a_gradient():
    logvar = torch.zeros(1000, requires_grad=True)
    diffusion_loss(SCHEDULE, "v", OUTPUT, X_0, EPS, T, logvar=logvar).total.backward()
    assert logvar.grad.nonzero().flatten().tolist() == T.tolist()


def test_min_snr_weights_of_the_paper():
    snr = SCHEDULE.snr(T).double()
    capped = snr.clamp(max=5.0)
    for parameterization, want in {"eps": capped / snr, "v": capped / (snr + 1), "x0": capped}.items():
        got = min_snr_weights(SCHEDULE, parameterization, T, 5.0).double()
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
        # The same weighting of x_0's error, whatever the network predicts.
        error_of_x_0 = {"eps": 1 / snr, "v": 1 / (snr + 1), "x0": 1 / torch.ones(4)}[parameterization]
        torch.testing.assert_close(got / error_of_x_0, capped, rtol=1e-5, atol=0)


def test_min_snr_weights_reach_the_loss():
    plain = diffusion_loss(SCHEDULE, "eps", OUTPUT, X_0, EPS, T)
    weighted = diffusion_loss(SCHEDULE, "eps", OUTPUT, X_0, EPS, T, min_snr_gamma=5.0)
    want = (min_snr_weights(SCHEDULE, "eps", T, 5.0) * plain.per_sample).mean()
    torch.testing.assert_close(weighted.total, want)
    assert weighted.simple == plain.simple


def test_offset_noise_is_one_number_a_channel():
    added = offset_noise(EPS, 0.1, torch.Generator().manual_seed(1)) - EPS
    assert added.flatten(2).std(-1).max() < 1e-6
    assert added.mean((2, 3)).unique().numel() == EPS.shape[0] * EPS.shape[1]
    assert torch.equal(offset_noise(EPS, 0.0), EPS)


def test_faults_are_named():
    with pytest.raises(ConfigError, match="l1 or l2"):
        diffusion_loss(SCHEDULE, "eps", OUTPUT, X_0, EPS, T, loss_type="huber")
    with pytest.raises(ConfigError, match="min_snr_gamma is 0"):
        diffusion_loss(SCHEDULE, "eps", OUTPUT, X_0, EPS, T, min_snr_gamma=0)
    with pytest.raises(ConfigError, match="eps, v, x0"):
        target(SCHEDULE, "score", X_0, EPS, T)
