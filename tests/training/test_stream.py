"""Data addressed by step, and what is on the disk."""

import csv
import itertools
import logging

import pytest
import torch
from PIL import Image

from demo.discs import Discs
from ldm.errors import CheckpointError
from ldm.training.run_folder import MetricsLog, choose_folder, save_grid
from ldm.training.seeding import draw_seed
from ldm.training.state import load_state, save_state
from ldm.training.stream import BatchStream


def read(stream: BatchStream, count: int) -> list[dict]:
    return list(itertools.islice(iter(stream), count))


def test_a_batch_depends_on_its_step_alone():
    straight = read(BatchStream(Discs(8), 2, 2, seed=5), 6)
    later = BatchStream(Discs(8), 2, 2, seed=5, prefetch=2)
    later.start = 2
    for expected, got in zip(straight[4:], read(later, 2), strict=True):
        assert (got["step"], got["micro"]) == (expected["step"], expected["micro"])
        assert got["captions"] == expected["captions"]
        assert torch.equal(got["images"], expected["images"])


def test_seeds_and_ranks_differ():
    first = read(BatchStream(Discs(8), 4, 1, seed=0), 1)[0]
    for other in (BatchStream(Discs(8), 4, 1, seed=1), BatchStream(Discs(8), 4, 1, seed=0, rank=1)):
        assert not torch.equal(first["images"], read(other, 1)[0]["images"])
    assert draw_seed(1, 23) != draw_seed(12, 3)


def test_states_keep_the_last_few_and_survive_a_torn_file(tmp_path, caplog):
    for step in (1, 2, 3):
        save_state(tmp_path, {"step": step, "value": torch.full((3,), float(step))}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last.ckpt",
        "step-00000002.ckpt",
        "step-00000003.ckpt",
    ]
    assert load_state(tmp_path)["step"] == 3
    torn = (tmp_path / "last.ckpt").read_bytes()[:200]
    for name in ("last.ckpt", "step-00000003.ckpt"):
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(torn)
    with caplog.at_level(logging.WARNING, logger="ldm"):
        assert load_state(tmp_path)["step"] == 2
    assert "cannot be read" in caplog.text


def test_a_failed_write_leaves_the_old_state(tmp_path, monkeypatch):
    save_state(tmp_path, {"step": 1}, keep=2)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError):
        save_state(tmp_path, {"step": 2}, keep=2)
    assert load_state(tmp_path)["step"] == 1
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        load_state(tmp_path)


def test_a_taken_folder_is_left_alone(tmp_path):
    wanted = tmp_path / "run"
    assert choose_folder(wanted, None) == (wanted, False)
    save_state(wanted / "checkpoints", {"step": 1}, keep=1)
    (wanted / "config.yaml").touch()
    second = tmp_path / "run-2"
    assert choose_folder(wanted, None) == (second, False)
    assert choose_folder(wanted, "auto") == (wanted, True)
    assert choose_folder(wanted, str(wanted / "checkpoints" / "last.ckpt")) == (wanted, True)
    assert choose_folder(tmp_path / "other", "auto") == (tmp_path / "other", False)


def test_metrics_drop_what_a_kill_left_behind_and_take_new_columns(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv", 0)
    for step in (1, 2, 3):
        log.add({"step": step, "loss": 1.0 / step})
    log = MetricsLog(tmp_path / "metrics.csv", 2)
    log.add({"step": 3, "loss": 0.25, "disc_loss": 1.0})
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [row["disc_loss"] for row in rows] == ["", "", "1"]
    assert rows[2]["loss"] == "0.25"
    log.draw(tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as drawing:
        assert drawing.width > 100


def test_a_grid_has_every_image_in_its_place(tmp_path):
    images = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 3, 2, 4)
    save_grid(images, tmp_path / "grid.png", columns=3)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (12, 4)
        assert [grid.getpixel((4 * (i % 3), 2 * (i // 3)))[0] for i in range(6)] == [
            0,
            64,
            128,
            191,
            255,
            255,
        ]
