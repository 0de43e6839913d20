"""A pickle is a program; these try to run one. None may, in any container, under any name."""

import pickle
import struct
import subprocess
import time

import pytest
import torch
from checkpoint_files import call, legacy_with, pretended_class, saved, stored, weights, zip_with

from ldm.checkpoint.pickle_stubs import Inert, refused
from ldm.errors import CheckpointError, NotACheckpointError, UnsafeCheckpointError

PAYLOADS = """
    os.system posix.system nt.system subprocess.Popen subprocess.run subprocess.call
    subprocess.check_output subprocess.getoutput builtins.eval builtins.exec builtins.compile
    builtins.open builtins.__import__ builtins.getattr builtins.input builtins.breakpoint
    builtins.bytearray __builtin__.eval pkgutil.resolve_name importlib.import_module runpy.run_path
    runpy._run_code shutil.rmtree os.remove os.popen os.execv pickle.loads _pickle.loads marshal.loads
    types.FunctionType types.CodeType operator.attrgetter operator.methodcaller functools.partial
    functools.reduce ctypes.CDLL code.interact pdb.run timeit.timeit cProfile.run bdb.Bdb.run
    webbrowser.open socket.socket multiprocessing.Process asyncio.run pip.main numpy.load
    numpy.testing._private.utils.runstring numpy.core.multiarray.fromstring torch.load torch.hub.load
    torch.jit.load torch.ops.load_library torch.serialization.load
    torch._utils._validate_loaded_sparse_tensors torch.hub.load_state_dict_from_url torch.jit._script.load
    torch.package.PackageImporter torch.Tensor torch.storage._load_from_bytes torch.nn.parameter.Parameter
    torch.nn.modules.linear.Linear omegaconf.OmegaConf.create pytorch_lightning.utilities.cloud_io.load
    pytorch_lightning.trainer.call omegaconf._utils.get_yaml_loader transformers.AutoModel.from_pretrained
    ldm.config.instantiate
""".split()
CANARY = "touch canary"


def _refuses(path, name, tmp_path):
    started = time.process_time()
    with pytest.raises(UnsafeCheckpointError) as caught:
        stored(path)
    assert time.process_time() - started < 20
    message = str(caught.value)
    assert name in message and "nothing was executed" in message and "\n" not in message
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("dotted", PAYLOADS)
def test_payloads_are_refused_by_name(dotted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, _, name = dotted.rpartition(".")
    shown = dotted.replace("__builtin__", "builtins")
    pickled = b"\x80\x02}" + call(module, name, CANARY) + b"0."
    with_weights = b"\x80\x02}X\x01\x00\x00\x00w" + call(module, name, CANARY) + b"s."
    for suffix in ("ckpt", "pt", "safetensors"):
        _refuses(zip_with(pickled, tmp_path / f"zip.{suffix}"), shown, tmp_path)
        _refuses(legacy_with(with_weights, tmp_path / f"legacy.{suffix}"), shown, tmp_path)


@pytest.mark.parametrize("write", [zip_with, legacy_with])
@pytest.mark.parametrize("protocol", [2, 4])
def test_newer_opcodes_are_named_too(write, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled = b"\x80" + bytes([protocol]) + call("os", "system", CANARY, protocol) + b"."
    _refuses(write(pickled, tmp_path / "a.ckpt"), "os.system", tmp_path)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x8c\x0ctouch canary\x85R.",
        b"cos\nsystem\n(S'touch canary'\ntR.",
        b"(S'touch canary'\nios\nsystem\n.",
        b"\x80\x02}0cos\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.trailing",
    ],
)
@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_a_bare_pickle_is_refused(pickled, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickled)
    _refuses(tmp_path / name, "os.system", tmp_path)


def test_a_payload_behind_the_first_pickles_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = legacy_with(b"\x80\x02}.", tmp_path / "a.ckpt")
    path.write_bytes(path.read_bytes()[:-1] + b"0" + call("os", "system", CANARY) + b".")
    _refuses(path, "os.system", tmp_path)


class Reduced:
    """Pickles as a call; `how` is one of the ways in which a class can ask for one."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce_ex__(self, protocol):
        return self.call


def _wrapped(payload):
    """Return the payload in all the places of a training file where an object may stand."""
    yield "the weights", {"state_dict": weights() | {"w": payload}}
    yield "a key", {"state_dict": weights(), "lr_schedulers": [{(payload,): 1}]}
    yield "hyper_parameters", {"state_dict": weights(), "hyper_parameters": {"unet_config": [{"a": payload}]}}
    yield "the optimizer", {"state_dict": weights(), "optimizer_states": [{"state": {0: payload}}]}
    yield "behind the weights", {"state_dict": weights(), "z": [[[[payload]]]]}
    yield "a pickle within", {"state_dict": weights(), "z": Reduced(pickle.loads, pickle.dumps(payload))}


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", [place for place, _ in _wrapped(None)])
def test_payloads_within_a_training_file(place, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    payload = Reduced(subprocess.Popen, ["touch", "canary"])
    content = dict(_wrapped(payload))[place]
    name = "pickle.loads" if place == "a pickle within" else "subprocess.Popen"
    (tmp_path / "last.ckpt").write_bytes(saved(content, **options))
    _refuses(tmp_path / "last.ckpt", name, tmp_path)


def test_payloads_within_a_trainers_callback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pretended_class("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint") as callback_class:
        callback = callback_class()
        callback.state = Reduced(eval, "open('canary', 'w')")
        data = saved({"state_dict": weights(), "callbacks": {callback_class: callback}})
    (tmp_path / "last.ckpt").write_bytes(data)
    _refuses(tmp_path / "last.ckpt", "builtins.eval", tmp_path)


def test_a_whole_model_is_a_python_object(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(saved(torch.nn.Linear(2, 2)))
    _refuses(tmp_path / "a.ckpt", "torch.nn.modules.linear.Linear", tmp_path)


@pytest.mark.parametrize("write", [zip_with, legacy_with])
def test_states_set_on_inert_things_stay_without_effect(write, tmp_path, monkeypatch):
    """BUILD calls `__setstate__` or fills `__dict__`; on a stand-in it does neither."""
    monkeypatch.chdir(tmp_path)
    text = b"__class__"
    pickled = (
        b"\x80\x02}X\x01\x00\x00\x00wcpytorch_lightning.callbacks\nTimer\n)\x81"
        b"}X" + struct.pack("<I", len(text)) + text + b"cpytorch_lightning.callbacks\nTimer\nsbs."
    )
    with pytest.raises(NotACheckpointError, match="no weights, only 'w'"):
        stored(write(pickled, tmp_path / "a.ckpt"))


def test_an_extension_registered_with_copyreg_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        stored(zip_with(b"\x80\x02\x82\x01.", tmp_path / "a.ckpt"))


def test_a_pickle_that_hides_its_names_from_the_scan_meets_torchs_own_gate(tmp_path, monkeypatch):
    from ldm.checkpoint import pickle_file
    from ldm.checkpoint.symbolic_pickle import Symbol

    monkeypatch.chdir(tmp_path)
    unseen = Symbol("dict", content={})
    monkeypatch.setattr(pickle_file.SymbolicUnpickler, "load", lambda self, file: self.results.append(unseen))
    path = zip_with(b"\x80\x02" + call("os", "system", CANARY) + b".", tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError):
        stored(path)
    assert not (tmp_path / "canary").exists()


def test_an_object_of_ones_own_class_says_what_to_do(tmp_path):
    with pytest.raises(UnsafeCheckpointError, match="__main__.Net.*state_dict"):
        stored(zip_with(b"\x80\x02" + call("__main__", "Net", "x") + b".", tmp_path / "a.ckpt"))


def test_stand_ins_are_for_classes_of_trainers_only():
    assert refused({"pytorch_lightning.callbacks.EarlyStopping", "omegaconf.nodes.AnyNode"}) == []
    assert refused({"pytorch_lightning.run", "pytorch_lightningx.A", "omegaconf.a.B.c", "x.omegaconf.A"}) == [
        "omegaconf.a.B.c", "pytorch_lightning.run", "pytorch_lightningx.A", "x.omegaconf.A",
    ]
    inert = Inert(1, x=2)
    inert.__setstate__({"__class__": int})
    assert type(inert) is Inert and vars(inert) == {}
