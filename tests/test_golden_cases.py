"""The reader of the golden cases: what it accepts, and that it can refuse."""

import pytest
import torch

from golden_cases import GOLDEN, Case, case, cases, manifest


@pytest.mark.parametrize("golden", cases(), ids=lambda golden: golden.name)
def test_every_case_reads_and_accepts_its_own_numbers(golden: Case):
    golden.check_all(golden.expected)


def test_a_wrong_number_is_refused_with_its_size():
    golden = cases("unet")[0]
    eps = golden.expected["eps"].clone()
    eps[0, 0, 0, 0] += 1e-2
    with pytest.raises(AssertionError, match="max error 0.01"):
        golden.check("eps", eps)
    eps[0, 0, 0, 0] = float("nan")
    with pytest.raises(AssertionError, match="max error inf"):
        golden.check("eps", eps)


def test_a_wrong_shape_and_a_missing_output_are_refused():
    golden = cases("unet")[0]
    with pytest.raises(AssertionError, match="shape"):
        golden.check("eps", golden.expected["eps"][:1])
    with pytest.raises(AssertionError, match="nothing given"):
        golden.check_all({})


def test_integers_must_be_equal():
    golden = cases("tokenize")[0]
    with pytest.raises(AssertionError):
        golden.check("sd2_ids", golden.expected["sd2_ids"] + 1)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(LookupError):
        cases("no-such-kind")


def test_weights_are_float32_and_scaled():
    golden = case("vae_eps")
    assert golden.config["weight_scale"]
    plain = cases("vae_decode")[0].weights()
    scaled = golden.weights()
    assert {x.dtype for x in scaled.values()} == {torch.float32}
    text, factor = golden.config["weight_scale"][0]
    name = next(name for name in plain if text in name)
    torch.testing.assert_close(scaled[name], plain[name] * factor)


def test_both_containers_of_the_base_model_hold_the_same_tensors():
    from safetensors.torch import load_file

    files = cases("e2e_txt2img")[0].files
    plain = load_file(files["checkpoint"])
    wrapped = torch.load(files["checkpoint_ckpt"], weights_only=True)["state_dict"]
    assert wrapped.keys() - plain.keys() == {"model_ema.decay", "model_ema.num_updates"}
    assert all(torch.equal(wrapped[name], plain[name]) for name in plain)
    embedding = plain["cond_stage_model.model.token_embedding.weight"]
    assert embedding.shape == (49408, 8) and embedding[49407].abs().sum() > 0


def test_manifests_read():
    assert manifest("v2-inference")["betas"] == ((1000,), "float32")


def test_the_golden_data_stays_small():
    if GOLDEN.parent.name != "tests":
        pytest.skip("other golden data than the repository's own")
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*")) < 12e6
