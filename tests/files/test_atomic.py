"""Files and folders are complete or absent, and what a killed process left behind is removed by the next."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.files import atomic, cache
from ldm.files.numbering import NumberedFiles

WRITE = """
import os, signal, sys, time
from pathlib import Path
from ldm.files.atomic import atomic_folder, atomic_write

def slowly(path):
    (path / "part").write_bytes(bytes(1000)) if path.is_dir() else path.write_bytes(bytes(1000))
    print("writing", flush=True)
    time.sleep(60)

{write}(Path(sys.argv[1]) / "result", slowly)
"""


def killed(folder, write="atomic_write", number=signal.SIGKILL):
    """Write into a folder in a process that is killed meanwhile; return what is left there."""
    command = [sys.executable, "-c", WRITE.format(write=write), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        process.stdout.readline()
        process.send_signal(number)
    return [path.name for path in folder.iterdir()]


@pytest.fixture(autouse=True)
def _nothing_swept(monkeypatch):
    monkeypatch.setattr(atomic, "_swept", set())


@pytest.mark.parametrize("write", ["atomic_write", "atomic_folder"])
def test_the_next_to_write_removes_and_names_what_a_killed_process_left(write, tmp_path, caplog):
    (left,) = killed(tmp_path, write)
    caplog.set_level(logging.INFO, "ldm")
    atomic.atomic_write(tmp_path / "other", lambda path: path.write_bytes(b"x"))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert caplog.messages == [f"removed from {tmp_path} what a killed run had left there: {left} (0.0 MB)"]


def test_numbered_files_remove_it_too(tmp_path):
    killed(tmp_path)
    assert NumberedFiles(tmp_path, "%05d.png").save(b"x").name == "00000.png"
    assert [path.name for path in tmp_path.iterdir()] == ["00000.png"]


def test_what_belongs_to_others_stays(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stays = [
        f".ldm-{os.getpid()}-0123456789ab.tmp",                 # running
        f".ldm-{gone.pid}-{'0' * 8}-0123456789ab.tmp",          # of another machine
        f".ldm-{gone.pid}.tmp", ".ldm-x-0123456789ab.tmp", ".ldm-notes", f"x.ldm-{gone.pid}-0123456789ab.tmp",
    ]  # fmt: skip
    for name in (*stays, f".ldm-{gone.pid}-0123456789ab.tmp", f".ldm-{10**30}-0123456789ab.tmp"):
        (tmp_path / name).touch()
    atomic.atomic_write(tmp_path / "a", lambda path: path.write_bytes(b"x"))
    assert {path.name for path in tmp_path.iterdir()} == {"a", *stays}
    long_ago = time.time() - 8 * 86400
    os.utime(tmp_path / stays[1], (long_ago, long_ago))  # as of a container that is no more
    atomic.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a", *stays} - {stays[1]}


def test_names_are_bounded(tmp_path, caplog):
    for i in range(50):
        (tmp_path / f".ldm-{10**9 + i}-{i:012x}.tmp").touch()
    caplog.set_level(logging.INFO, "ldm")
    atomic.sweep(tmp_path)
    assert not list(tmp_path.iterdir())
    (message,) = caplog.messages
    assert message.endswith(" and 47 more") and len(message) < 400


@pytest.mark.parametrize("durable", [True, False])
def test_only_what_must_outlive_a_power_cut_is_flushed(tmp_path, monkeypatch, durable):
    flushed = []
    monkeypatch.setattr(atomic.os, "fsync", flushed.append)
    atomic.atomic_write(tmp_path / "file", lambda path: path.write_text("new"), durable)
    assert (tmp_path / "file").read_text() == "new" and len(flushed) == 2 * durable


def test_findings_are_written_like_other_files(tmp_path, monkeypatch):
    """One that cannot be written whole leaves nothing behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "weights").write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", lambda *_: (_ for _ in ()).throw(OSError))
        cache.put(tmp_path / "weights", "kind", {"a": 1})
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    cache.put(tmp_path / "weights", "kind", {"a": 2})
    (note,) = (tmp_path / "cache/ldm/kind").iterdir()
    assert json.loads(note.read_text())["a"] == 2 and note.suffix == ".json"
