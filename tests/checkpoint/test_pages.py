"""Pages of mapped files are asked for ahead, a bounded way, each once and in order."""

import mmap

import torch
from checkpoint_files import stored
from safetensors.torch import save_file

from ldm.checkpoint import pages
from ldm.checkpoint.pages import ReadAhead


def test_the_next_tensors_are_asked_for_and_not_all_at_once(tmp_path, monkeypatch):
    save_file({f"x.{i}": torch.full((4096,), float(i)) for i in range(8)}, tmp_path / "a.safetensors")
    tensors = list(stored(tmp_path / "a.safetensors").values())
    asked = []
    monkeypatch.setattr(pages, "WINDOW", 3 * tensors[0].nbytes)
    monkeypatch.setattr(pages, "_advise", lambda first, last, advice: asked.append((first, last, advice)))

    ahead = ReadAhead(tensors)
    ahead.go_on()
    for done, tensor in enumerate(tensors, start=1):
        assert done <= len(asked) <= done + 3
        ahead.go_on(tensor)
    assert len(asked) == 8
    for (first, last, advice), tensor in zip(asked, tensors, strict=True):
        assert first <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= last
        assert first % mmap.PAGESIZE == last % mmap.PAGESIZE == 0 and advice == mmap.MADV_WILLNEED


def test_memory_of_no_file_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(pages, "_advise", lambda *_: 1 / 0)
    ReadAhead([torch.ones(10_000)]).go_on()
