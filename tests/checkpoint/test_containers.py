"""Every container that carries published weights is read, and only its tensors come out."""

import sys
import threading
from collections import defaultdict

import numpy as np
import pytest
import torch
from checkpoint_files import is_mapped, pretended_class, same, saved, stored, tensor, weights, zip_with
from omegaconf import OmegaConf
from safetensors.torch import save_file

from golden_cases import cases
from ldm.errors import CheckpointError

LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.mark.parametrize("case", cases("ckpt_file"), ids=lambda case: case.name)
def test_golden_files(case):
    read = stored(case.files["checkpoint"])
    assert read.keys() == case.expected.keys()
    case.check_all(read)
    assert all(read[name].dtype == x.dtype for name, x in case.expected.items())


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "wrapped"])
def test_pickled_files(options, wrap, tmp_path):
    path = tmp_path / "model.ckpt"
    content = {"state_dict": weights(), "global_step": 3, "epoch": 1} if wrap else weights()
    path.write_bytes(saved(content, **options))
    assert same(stored(path), weights())


def test_safetensors(tmp_path):
    save_file(weights(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert same(stored(tmp_path / "model.safetensors"), weights())


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_a_trainers_file_needs_neither_lightning_nor_omegaconf(options, tmp_path, monkeypatch):
    with (
        pretended_class("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint") as checkpoint_class,
        pretended_class("lightning_fabric.utilities.types.Thing") as thing_class,
    ):
        thing = thing_class()
        thing.state = {"a": 1}
        content = {
            "state_dict": weights(),
            "callbacks": {checkpoint_class: {"best": np.float64(0.5), "n": np.int64(3)}, "thing": thing},
            "lr_schedulers": [{"base": np.float32(1e-4), "table": defaultdict(list, {1: [2]})}],
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "dtype": torch.float16}],
            "hyper_parameters": {"config": OmegaConf.create({"a": {"b": [1, "x", None, 1.5]}})},
        }
        data = saved(content, **options)
    path = tmp_path / "last.ckpt"
    path.write_bytes(data)
    for module in ("pytorch_lightning", "lightning_fabric", "omegaconf"):
        monkeypatch.setitem(sys.modules, module, None)      # importing it now fails
    assert same(stored(path), weights())


TRAINERS = ["pytorch_lightning", "lightning.pytorch"]
BESIDE_WEIGHTS = """
    argparse.Namespace pathlib.PosixPath datetime.timedelta typing.Any torch.torch_version.TorchVersion
    numpy.ndarray torch.optim.lr_scheduler.LambdaLR torch.optim.adamw.AdamW
    torchmetrics.aggregation.MeanMetric
    deepspeed.runtime.fp16.loss_scaler.LossScaler omegaconf.listconfig.ListConfig omegaconf.base.SCMode
    lightning_fabric.utilities.enums.LightningEnum pytorch_lightning.utilities.enums.GradClipAlgorithmType
""".split()


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_all_that_training_files_hold_beside_the_weights(trainer, options, tmp_path):
    import argparse
    import pathlib

    callback = f"{trainer}.callbacks.model_checkpoint.ModelCheckpoint"
    attributes = f"{trainer}.utilities.parsing.AttributeDict"
    with pretended_class(callback) as old_key, pretended_class(attributes, dict) as kind:
        content = {
            "epoch": 7, "global_step": 470000, f"{trainer}_version": "1.4.2",
            "state_dict": weights() | {"model_ema.decay": torch.tensor(0.9999)},
            "callbacks": {old_key: {"best_model_score": torch.tensor(1.0), "path": pathlib.PosixPath("x")},
                          "ModelCheckpoint{'monitor': 'val/loss'}": {"kth_value": torch.tensor(2.0)}},
            "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}},
                                  "param_groups": [{"betas": (0.9, 0.999), "foreach": None, "params": [0]}]}],
            "lr_schedulers": [{"base_lrs": [np.float64(1e-4)], "_step_count": 2, "lr_lambdas": [{}]}],
            "hparams_name": "kwargs",
            "hyper_parameters": kind(unet_config=OmegaConf.create({"target": "a", "params": {"b": [1, 2]}}),
                                     args=argparse.Namespace(seed=1), array=np.arange(3.0), keys={"a", "b"}),
            "rng": np.random.RandomState(0).get_state()[1],
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
            "native_amp_scaling_state": {"scale": 65536.0, "_growth_tracker": 5},
        }
        data = saved(content, **options)
    path = tmp_path / "last.ckpt"
    path.write_bytes(data)
    before = set(sys.modules)
    read = stored(path)
    assert same({name: x for name, x in read.items() if name != "model_ema.decay"}, weights())
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not new & {"pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "argparse"}


@pytest.mark.parametrize("dotted", BESIDE_WEIGHTS)
def test_objects_beside_the_weights_are_inert(dotted, tmp_path):
    module, _, name = dotted.rpartition(".")
    made = f"c{module}\n{name}\n)\x81}}bc{module}\n{name}\n(K\x01K\x02tR".encode("latin1")
    pickled = b"\x80\x02}(X\x01\x00\x00\x00z](" + made + b"eX\x01\x00\x00\x00w" + tensor(3, 3) + b"u."
    before = set(sys.modules)
    path = zip_with(pickled, tmp_path / "a.ckpt", {"data/0": bytes(12)})
    assert stored(path)["w"].tolist() == [0, 0, 0]
    assert module in before or module not in sys.modules


def test_an_embedding_keeps_its_parameters(tmp_path):
    """Textual-inversion files hold a `ParameterDict`."""
    from ldm.checkpoint.pickle_file import read_zip

    content = {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 3))})}
    (tmp_path / "a.pt").write_bytes(saved(content))
    read = read_zip(tmp_path / "a.pt")["string_to_param"]
    assert list(read) == ["*"] and torch.equal(read["*"], torch.ones(2, 3))


def test_parameters_and_what_is_no_tensor(tmp_path):
    content = {"w": torch.nn.Parameter(torch.ones(2)), "note": "text", "step": 3}
    (tmp_path / "a.pt").write_bytes(saved(content))
    read = stored(tmp_path / "a.pt")
    assert read.keys() == {"w"} and not read["w"].requires_grad and type(read["w"]) is torch.Tensor


def test_strided_views_and_shared_memory(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    want = {"t": base.t(), "row": base[1], "again": base}
    (tmp_path / "a.pt").write_bytes(saved(want))
    assert same(stored(tmp_path / "a.pt"), want)


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors", "a.pt", "a", "a.SAFETENSORS"])
def test_the_content_decides_and_not_the_name(name, tmp_path):
    save_file(weights(), tmp_path / "source")
    for data in (saved(weights()), saved(weights(), **LEGACY), (tmp_path / "source").read_bytes()):
        (tmp_path / name).write_bytes(data)
        assert same(stored(tmp_path / name), weights())


def test_tensors_lie_in_the_file(tmp_path):
    big = {"w": torch.randn(1000, 1000)}
    save_file(big, tmp_path / "a.safetensors")
    torch.save(big, tmp_path / "a.ckpt")
    for name in ("a.safetensors", "a.ckpt"):
        read = stored(tmp_path / name)
        assert is_mapped(read["w"]) and same(read, big)
    assert not is_mapped(big["w"])


def test_unpadded_safetensors_are_read_exactly(tmp_path):
    want = {"a": torch.tensor([1, 2, 3], dtype=torch.uint8), "b": torch.randn(5), "c": torch.randn(3).half()}
    save_file(want, tmp_path / "a.safetensors")
    raw = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip() + b" "            # one byte more than aligned
    header += b" " * ((len(header) + 1) % 2)
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    assert same(stored(tmp_path / "a.safetensors"), want)


def test_many_threads_may_read_at_once(tmp_path):
    with pretended_class("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint") as cls:
        data = saved({"state_dict": weights(), "callbacks": {cls: {"x": np.float64(1)}}})
    (tmp_path / "a.ckpt").write_bytes(data)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(same(stored(tmp_path / "a.ckpt"), weights())))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


def test_torch_with_the_known_hole_reads_safetensors_only(tmp_path, monkeypatch):
    save_file(weights(), tmp_path / "a.safetensors")
    zip_with(b"\x80\x02}.", tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(saved(weights(), **LEGACY))
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert same(stored(tmp_path / "a.safetensors"), weights())
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(CheckpointError, match="install torch 2.10 or newer, or give a .safetensors"):
            stored(tmp_path / name)


def test_a_file_written_without_checksums_loads(tmp_path):
    options = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(options)
    assert torch.equal(stored(tmp_path / "plain.pt")["a"], torch.ones(3))
