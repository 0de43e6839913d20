"""The writer of .safetensors: exact, streaming, and whole or absent."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint_files import entry_of, stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from ldm.checkpoint import writer
from ldm.checkpoint.stored import PLAIN
from ldm.checkpoint.writer import Entry, write_safetensors
from ldm.errors import InputError

DTYPES = [getattr(torch, name) for name in PLAIN]


def bits(tensor):
    """Return the bytes of a tensor, so that NaN equals NaN and -0 differs from 0."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def random_tensor(dtype, shape, seed):
    """Return any bit patterns that the type can hold, NaN and infinities among them."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
    if dtype is torch.bool:
        data %= 2
    if not data.size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape).clone()


names = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
tensors = st.dictionaries(
    names,
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 2**32)),
    min_size=1,
    max_size=6,
)


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch):
    """Leave out what only a power cut would show."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("no_waiting_for_the_disk")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors, st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3))
def test_what_is_written_is_read_bit_for_bit(tmp_path, recipe, metadata):
    path = tmp_path / "a.safetensors"
    content = {name: random_tensor(*spec) for name, spec in recipe.items()}
    write_safetensors(path, [entry_of(*item) for item in content.items()], metadata)

    with safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == metadata
        theirs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    ours = stored(path)
    assert theirs.keys() == content.keys()
    assert list(ours) == list(content)
    for name, tensor in content.items():
        for read in (theirs[name], ours[name]):
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert bits(read) == bits(tensor)

    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    for name, tensor in content.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.element_size() == 0


def test_views_and_casts_are_written_as_they_look(tmp_path):
    path = tmp_path / "a.safetensors"
    x = torch.randn(6, 4)
    count = torch.arange(3)
    entries = [
        entry_of("turned", x.T),
        entry_of("half", x, torch.float16),
        entry_of("count", count, torch.float16),
        entry_of("slice", x[1:5:2, ::2]),
    ]
    write_safetensors(path, entries, {})
    read = load_file(path)
    assert torch.equal(read["turned"], x.T)
    assert torch.equal(read["half"], x.half())
    assert torch.equal(read["count"], count)
    assert torch.equal(read["slice"], x[1:5:2, ::2])


def test_progress_counts_bytes_to_the_end(tmp_path):
    seen = []
    entries = [entry_of(str(n), torch.zeros(n, 5)) for n in range(1, 4)]
    write_safetensors(tmp_path / "a.safetensors", entries, {}, progress=lambda *counts: seen.append(counts))
    assert seen == [(20, 120), (60, 120), (120, 120)]


def test_an_entry_that_breaks_its_word_writes_nothing(tmp_path):
    path = tmp_path / "a.safetensors"
    wrong = Entry("x", torch.float32, (2, 3), lambda: torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"x: announced as torch.float32 \(2, 3\), got .* \(3, 2\)"):
        write_safetensors(path, [wrong], {})
    with pytest.raises(ValueError, match="two tensors are named 'x'"):
        write_safetensors(path, [entry_of("x", torch.zeros(1))] * 2, {})
    with pytest.raises(ValueError, match="metadata must be text"):
        write_safetensors(path, [entry_of("x", torch.zeros(1))], {"step": 3})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_read_from_is_not_written_over(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [entry_of("x", torch.ones(3))], {})
    before = path.read_bytes()
    link = tmp_path / "the same.safetensors"
    link.symlink_to(path)
    mapped = stored(path)["x"]
    for target in (path, link):
        with pytest.raises(InputError, match="is also read from; give the result another name"):
            write_safetensors(target, [entry_of("y", mapped)], {}, sources=[path])
    assert path.read_bytes() == before


def test_bad_targets_are_one_line(tmp_path):
    entry = entry_of("x", torch.ones(3))
    with pytest.raises(InputError, match="is a folder; expected the name of the file"):
        write_safetensors(tmp_path, [entry], {})
    with pytest.raises(InputError, match="there is no folder .*nowhere; make it first"):
        write_safetensors(tmp_path / "nowhere" / "a.safetensors", [entry], {})


def test_too_little_room_is_said_before_a_byte_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: SimpleNamespace(total=200, free=100))
    asked = []
    entry = Entry("x", torch.float32, (50,), lambda: asked.append(1) or torch.zeros(50))
    with pytest.raises(OSError, match=r"\d+ bytes are needed and 100 are free") as caught:
        write_safetensors(tmp_path / "a.safetensors", [entry], {})
    assert caught.value.errno == errno.ENOSPC
    assert not asked and list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """Return a file system of one megabyte."""
    if os.name != "posix" or os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_keeps_the_old_file_alone(small_disk, monkeypatch):
    path = small_disk / "a.safetensors"
    write_safetensors(path, [entry_of("x", torch.ones(100_000))], {})
    monkeypatch.setattr(writer, "_check_space", lambda *_: None)  # another program took the room meanwhile
    with pytest.raises(OSError) as caught:
        write_safetensors(path, [entry_of("x", torch.zeros(200_000))], {})
    assert caught.value.errno == errno.ENOSPC
    assert [file.name for file in small_disk.iterdir()] == ["a.safetensors"]
    assert torch.equal(load_file(path)["x"], torch.ones(100_000))


def test_a_write_that_fails_keeps_the_old_file_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [entry_of("x", torch.ones(5))], {})

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError):
        write_safetensors(
            path, [entry_of("x", torch.zeros(5)), Entry("y", torch.uint8, (1,), fail)], {}
        )
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert torch.equal(load_file(path)["x"], torch.ones(5))


FOREVER = """
import sys, torch
from ldm.checkpoint.writer import Entry, write_safetensors
torch.set_num_threads(1)
n = 0
while True:
    n += 1
    make = lambda: torch.full((20_000,), float(n))
    entries = [Entry(str(k), torch.float32, (20_000,), make) for k in range(10)]
    write_safetensors(sys.argv[1], entries, {"n": str(n)})
    if n == 1:
        print("ready", flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_old_or_the_new_file_is_there(tmp_path):
    path = tmp_path / "a.safetensors"
    rng = random.Random(0)
    generations = set()
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", FOREVER, path], stdout=subprocess.PIPE)
        child.stdout.readline()
        for _ in range(10):  # look while it writes: what stands there is always whole
            time.sleep(rng.uniform(0, 0.02))
            values = {tensor.unique().item() for tensor in load_file(path).values()}
            assert len(values) == 1
            generations |= values
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        content = load_file(path)
        assert len(content) == 10
        assert len({tensor.unique().item() for tensor in content.values()}) == 1
    assert len(generations) > 3


PEAK = """
import sys, torch
from ldm.checkpoint.opened import open_weights
from ldm.checkpoint.writer import Entry, write_safetensors
torch.set_num_threads(1)
seen = []
def own_kilobytes():  # without pages of mapped files, which the system takes back when it needs them
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
def copy(source, target):
    tensors = open_weights(source).parts[""]
    entries = [Entry(name, torch.float16, x.shape, lambda x=x: x.half()) for name, x in tensors.items()]
    write_safetensors(target, entries, {}, sources=[source], progress=lambda *_: seen.append(own_kilobytes()))
copy(sys.argv[1], sys.argv[3])
before = max(seen)
copy(sys.argv[2], sys.argv[3])
print(max(seen) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is counted in kB only on Linux")
def test_the_peak_memory_is_a_tensor_and_not_the_file(tmp_path):
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    one = torch.zeros(1_000_000)
    write_safetensors(small, [entry_of("x", one[:1000])], {})
    write_safetensors(large, [Entry(str(k), one.dtype, (1_000_000,), lambda: one) for k in range(64)], {})
    run = subprocess.run(
        [sys.executable, "-c", PEAK, small, large, tmp_path / "out.safetensors"],
        capture_output=True, text=True, check=True,
    )
    assert int(run.stdout) < 24_000  # the file has 256 MB, a tensor 4 MB and its half-precision copy 2 MB


def test_a_folder_on_no_disk_is_called_that(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: SimpleNamespace(total=0, free=0))
    with pytest.raises(InputError, match="is on no disk; write to another folder"):
        write_safetensors(tmp_path / "a.safetensors", [], {})
