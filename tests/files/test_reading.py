"""A failure of memory or disk is told from damage, whatever library's words it comes in."""

import errno
import os

import pytest

from ldm.errors import DamagedCheckpointError, OutOfMemory
from ldm.files.reading import no_file, reading


def _raised(error, damaged=DamagedCheckpointError):
    with pytest.raises(Exception) as caught, reading("a.ckpt", damaged):
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError("out of memory error when reading image file"),
        RuntimeError("unable to mmap 10 bytes from file <a.ckpt>: Cannot allocate memory (12)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes"),
        Exception("(-4:Insufficient memory) Failed to allocate 10 bytes in function 'OutOfMemoryError'"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_memory(error):
    found = _raised(error)
    assert type(found) is OutOfMemory and found.exit_code == 6
    assert str(found).startswith("a.ckpt: out of memory") and "free some" in str(found)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("words", ["own", "of a library"])
def test_the_file_system_speaks_for_itself(number, words):
    text = os.strerror(number)
    error = OSError(number, text) if words == "own" else RuntimeError(f"open failed because of {text} (5)")
    found = _raised(error)
    assert type(found) is type(OSError(number, text))
    assert (found.errno, found.strerror, found.filename) == (number, text, "a.ckpt")


@pytest.mark.parametrize("error", [ValueError("bad magic"), OSError("truncated"), OSError(errno.EINVAL, "x")])
def test_what_a_library_says_of_bytes_is_damage_and_of_our_own_code_a_defect(error):
    found = _raised(error)
    assert type(found) is DamagedCheckpointError and type(error).__name__ in str(found)
    assert _raised(error, None) is error


def test_what_is_no_regular_file_is_called_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("gone")
    named = {"": "folder", "pipe": "pipe", "/dev/null": "device", "dangling": "no such", "file/x": "no such"}
    for name, word in named.items():
        assert word in no_file(tmp_path / name), name
    assert no_file(tmp_path / "file") is no_file(tmp_path / "link") is None
