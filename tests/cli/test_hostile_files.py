"""A hostile or broken weights file ends a script with exit code 2 and one line; nothing is run or written."""

import subprocess
import sys
import time

import pytest
import torch
from checkpoint_files import call, legacy_with, safetensors_with, saved, weights, zip_with
from safetensors.torch import save
from script_files import REPOSITORY, run_script

DEMO = str(REPOSITORY / "configs/demo/emoji.yaml")
PAYLOAD = b"\x80\x02" + call("os", "system", "touch canary") + b"."
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def _folder(path):
    path.mkdir()
    (path / "readme.txt").write_text("no weights")


def _with_nan():
    tensors = weights()
    tensors["model.diffusion_model.a.weight"][0, 0] = torch.nan
    return tensors


HOSTILE = {
    "a.ckpt": (lambda path: zip_with(PAYLOAD, path), "refused"),
    "old.ckpt": (lambda path: legacy_with(PAYLOAD, path), "refused"),
    "renamed.safetensors": (lambda path: zip_with(PAYLOAD, path), "refused"),
    "bomb.ckpt": (lambda path: zip_with(b"\x80\x02}.", path, {"data/0": bytes(10**7)}, 8), "compressed"),
    "cut.ckpt": (lambda path: path.write_bytes(saved(weights())[:-100]), "truncated"),
    "cut.safetensors": (lambda path: path.write_bytes(save(weights())[:-4]), "truncated"),
    "lying.safetensors": (lambda path: path.write_bytes((9 * 10**6).to_bytes(8, "little") + b"{"), "claims"),
    "overlap.safetensors": (
        lambda path: safetensors_with({"a": ENTRY, "b": ENTRY}, bytes(8), path), "overlaps"
    ),
    "empty.ckpt": (lambda path: path.write_bytes(b""), "empty"),
    "page.safetensors": (lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "HTML page"),
    "pointer.ckpt": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 12\n"), "git-lfs"
    ),
    "folder": (_folder, "folder"),
    "other.safetensors": (lambda path: path.write_bytes(save({"w": torch.ones(3)})), "tensors"),
    "nan.safetensors": (lambda path: path.write_bytes(save(_with_nan())), ""),
    "list.ckpt": (lambda path: path.write_bytes(saved([torch.ones(3)])), "holds a list"),
    "line\nbreak.ckpt": (lambda path: path.write_bytes(b"x" * 100), "no checkpoint"),
}


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _nothing_was_written(folder, name):
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_script_ends_with_one_line(name, at, capsys):
    write, expected = HOSTILE[name]
    write(at / name)
    started = time.process_time()
    flags = "--ckpt", at / name, "--config", DEMO, "--outdir", at / "out", "--prompt", "a cat"
    code = run_script("txt2img.py", *flags)
    assert time.process_time() - started < 30
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: "), err
    assert expected in err and "Traceback" not in err
    _nothing_was_written(at, name)


@pytest.mark.slow
@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["a.ckpt", "cut.safetensors"])
def test_a_real_process_ends_with_one_line(name, at):
    write, expected = HOSTILE[name]
    write(at / name)
    command = [sys.executable, str(REPOSITORY / "scripts/txt2img.py"), "--ckpt", name, "--config", DEMO]
    run = subprocess.run([*command, "--outdir", "out"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("error: ") and expected in run.stderr
    _nothing_was_written(at, name)


MEASURE = """
import resource, sys, time
from pathlib import Path
from ldm.checkpoint.opened import open_weights
from ldm.errors import CheckpointError
open_weights(Path("warm.ckpt"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    started = time.process_time()
    try:
        open_weights(Path(name))
    except CheckpointError:
        seconds = time.process_time() - started
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, seconds, name, sep="\\t")
"""
GREEDY = {
    "a compressed archive": lambda path: zip_with(b"\x80\x02}.", path, {"data/0": bytes(10**8)}, 8),
    "lists in a header": lambda path: safetensors_with(b'{"a":[' + b"[]," * 2_600_000 + b"[]]}", b"", path),
    "texts in a header": lambda path: safetensors_with(
        b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(700_000)) + b"}}", b"", path
    ),
    "metadata": lambda path: safetensors_with(
        b'{"__metadata__":{"a":"' + b"\\u0061" * 1_300_000 + b'"}}', b"", path
    ),
    "dicts in a pickle": lambda path: zip_with(b"\x80\x02}K\x01](" + b"}" * 299_000 + b"es.", path),
    "tuples in tuples": lambda path: zip_with(
        b"\x80\x02}K\x01q\x00" + b"h\x00h\x00\x86q\x00" * 80 + b"Ns.", path
    ),
    "a pickle of 15 MB": lambda path: zip_with(b"\x80\x02" + b"}0" * 7_500_000 + b".", path),
}


@pytest.mark.slow
def test_hostile_files_cost_little(at):
    """Measured in a process of its own: less than 100 MB more, about a second for each."""
    for name, write in GREEDY.items():
        write(at / name)
    (at / "warm.ckpt").write_bytes(saved(weights()))
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *GREEDY], capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    answers = [line.split("\t") for line in run.stdout.splitlines()]
    assert [name for _, _, name in answers] == list(GREEDY), run.stderr
    for kilobytes, seconds, name in answers:
        assert int(kilobytes) < 100_000 and float(seconds) < 20, (kilobytes, seconds, name)
