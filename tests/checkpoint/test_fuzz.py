"""Whatever bytes they are given, the readers answer with tensors or with a CheckpointError, soon and small.

By default a few hundred files; a long run is

    HYPOTHESIS_PROFILE=long python -m pytest tests/checkpoint/test_fuzz.py

Files are built to get far: whole ones of each container with bits flipped, cut, spliced and their lengths
changed, JSON headers of the right form with wrong figures, and pickles made of opcodes rather than of bytes.
"""

import json
import os
import resource
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from checkpoint_files import call, legacy_with, safetensors_with, saved, stored, tensor, weights, zip_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ldm.checkpoint import identify
from ldm.checkpoint.opened import open_weights
from ldm.errors import CheckpointError

EXAMPLES = {"default": 150, "long": 10_000}[os.environ.get("HYPOTHESIS_PROFILE", "default")]
TIME_LIMIT = 20.0                   # seconds of processor time for one file
MEMORY_LIMIT = 300_000_000          # bytes that all of them together may add
CANARY = "canary"

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,                  # measured below in processor time, which neighbours do not change
    database=None,
    suppress_health_check=list(HealthCheck),
)

LEGACY = {"_use_new_zipfile_serialization": False}
TRAINING = {"state_dict": weights(), "epoch": 1, "optimizer_states": [{"betas": (0.9, 0.999), "x": None}]}
WHOLE = [
    saved({"w": torch.ones(3)}), saved({"w": torch.ones(3)}, **LEGACY),
    saved(TRAINING), saved(TRAINING, **LEGACY),
    save({"w": torch.ones(3)}), save(weights(), metadata={"format": "pt"}),
]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """Work in an empty folder; afterwards nothing may have been made, imported or kept there."""
    folder, back = tmp_path_factory.mktemp("fuzz"), Path.cwd()
    os.chdir(folder)
    (folder / "warm.ckpt").write_bytes(WHOLE[2])
    stored(folder / "warm.ckpt")                    # torch imports parts of itself on first use
    (folder / "warm.safetensors").write_bytes(WHOLE[4])
    stored(folder / "warm.safetensors")
    import numpy.random  # noqa: F401 - hypothesis seeds it

    modules, peak = set(sys.modules), _peak()
    yield folder
    os.chdir(back)
    assert {path.name for path in folder.iterdir()} <= {"warm.ckpt", "warm.safetensors", "a.ckpt", "folder"}
    foreign = {name.partition(".")[0] for name in set(sys.modules) - modules}
    # a file imports nothing: only readers, test tools and the codec of a text came in
    assert foreign <= {"ldm", "hypothesis", "encodings"}, foreign
    assert _peak() - peak < MEMORY_LIMIT


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answers(path: Path) -> bool:
    """Open `path`; tell whether it gave tensors. Anything but a CheckpointError of one line goes through."""
    started = time.process_time()
    with suppress(CheckpointError):
        identify(path).sentence()
    try:
        opened = open_weights(path)
        size = sum(file.stat().st_size for file in opened.files)
        for part in opened.parts.values():
            for x in part.values():
                assert x.numel() * x.element_size() <= size
                x.sum()                             # every value can be read
        return True
    except CheckpointError as error:
        assert "\n" not in str(error) and len(str(error)) < len(str(path)) + 600
        return False
    finally:
        assert time.process_time() - started < TIME_LIMIT


@st.composite
def damaged(draw) -> bytes:
    """A whole file with up to four faults."""
    data = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["bit", "byte", "cut", "insert", "length", "splice", "repeat"]))
        if kind == "bit" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, len(data) + 1))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif kind == "length":
            form = draw(st.sampled_from("<H <I <Q".split()))
            bits = 8 * struct.calcsize(form)
            number = struct.pack(form, draw(st.sampled_from([0, 1, 2**bits - 1, 2 ** (bits - 1), len(data)])))
            data[at : at + len(number)] = number
        elif kind == "splice":
            other = draw(st.sampled_from(WHOLE))
            data[at:] = other[draw(st.integers(0, len(other))) :]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
    return bytes(data)


@fuzz
@given(damaged())
def test_damaged_files(place, data):
    (place / "a.ckpt").write_bytes(data)
    answers(place / "a.ckpt")


@fuzz
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x10" + bytes(7) + b"{"]))
def test_random_bytes(place, data, magic):
    (place / "a.ckpt").write_bytes(magic + data)
    answers(place / "a.ckpt")


NUMBER = st.one_of(st.integers(0, 12), st.integers(), st.floats(), st.sampled_from([2**31, 2**63, 2**64]))
LEAF = st.one_of(st.none(), st.booleans(), NUMBER, st.text(max_size=5))
FLAT = st.one_of(LEAF, st.lists(LEAF, max_size=3), st.dictionaries(st.text(max_size=5), LEAF, max_size=3))
JSON = st.one_of(FLAT, st.lists(FLAT, max_size=3), st.dictionaries(st.text(max_size=5), FLAT, max_size=3))
ENTRY = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "F16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "x", None]),
    "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), st.lists(NUMBER, max_size=3), JSON),
    "data_offsets": st.one_of(st.tuples(st.integers(0, 24), st.integers(0, 24)), JSON),
})


@fuzz
@given(
    st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ENTRY | JSON, max_size=4),
    st.integers(0, 48),
)
def test_json_headers(place, header, length):
    answers(safetensors_with(json.dumps(header).encode(), bytes(length), place / "a.ckpt"))


SHORT = st.integers(0, 5).map(lambda number: bytes([number]))
OPCODES = st.one_of(
    st.sampled_from([b"}", b"]", b")", b"(", b"t", b"u", b"s", b"a", b"e", b"R", b"b", b"Q", b"\x81", b"\x85",
                     b"\x86", b"\x87", b"N", b"\x88", b"\x89", b"0", b"2", b".", b"\x8f", b"\x90", b"\x93"]),
    SHORT.map(lambda at: b"q" + at), SHORT.map(lambda at: b"h" + at), SHORT.map(lambda number: b"K" + number),
    st.integers(-5, 2**31 - 1).map(lambda number: b"J" + struct.pack("<i", number)),
    st.sampled_from(["w", "storage", "0", "cpu", "state_dict", "latin1", "f8"]).map(
        lambda text: b"X" + struct.pack("<I", len(text)) + text.encode()),
    st.sampled_from([
        "torch FloatStorage", "torch HalfStorage", "torch._utils _rebuild_tensor_v2", "torch Size",
        "torch._utils _rebuild_parameter", "collections OrderedDict", "collections Counter", "builtins set",
        "collections defaultdict", "numpy dtype", "numpy.core.multiarray scalar", "_codecs encode",
        "torch.nn.modules.container ParameterDict", "pytorch_lightning.callbacks X", "argparse Namespace",
        "torch device", "torch float16", "os system", "builtins eval", "lightning.a AttributeDict",
    ]).map(lambda name: b"c" + name.replace(" ", "\n").encode() + b"\n"),
    st.tuples(st.sampled_from([3, 10**9]), st.integers(-1, 4), st.integers(-1, 3), st.integers(0, 2)).map(
        lambda geometry: tensor(*geometry)),
    st.just(call("os", "system", f"touch {CANARY}")),
    st.just(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQ"),
)
NAMED = st.sampled_from([b"X\x01\x00\x00\x00w", b"X\x0a\x00\x00\x00state_dict"])


@fuzz
@given(st.lists(OPCODES, max_size=20), NAMED, st.booleans(), st.booleans())
def test_pickles_of_opcodes(place, opcodes, name, in_a_dict, is_legacy):
    pickled = b"".join(opcodes)
    pickled = b"\x80\x02" + (b"}" + name + pickled + b"s." if in_a_dict else pickled + b".")
    if is_legacy:
        path = legacy_with(pickled, place / "a.ckpt", (("0", bytes(12)),))
    else:
        path = zip_with(pickled, place / "a.ckpt", {"data/0": bytes(12)})
    answers(path)


@fuzz
@given(st.dictionaries(st.sampled_from(["_class_name", "unet", "vae", "..", "/etc", "scheduler", "a"]), JSON |
                       st.tuples(st.sampled_from(["diffusers", "x"]), st.text(max_size=5)), max_size=4),
       st.dictionaries(st.sampled_from(["weight_map", "metadata"]), JSON | st.dictionaries(
           st.text(max_size=3), st.sampled_from(["../a", "/etc/passwd", "m-00001-of-00002.safetensors"]))),
       damaged())
def test_folders(place, index, shards, data):
    unet = place / "folder" / "unet"
    unet.mkdir(parents=True, exist_ok=True)
    (place / "folder" / "model_index.json").write_text(json.dumps(index))
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(shards))
    (unet / "m-00001-of-00002.safetensors").write_bytes(data)
    answers(place / "folder")
    answers(unet)


def test_the_files_that_are_mutated_are_whole(place):
    for data in WHOLE:
        (place / "a.ckpt").write_bytes(data)
        assert answers(place / "a.ckpt")
