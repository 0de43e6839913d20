"""Data addressed by step, and what is on the disk."""

import csv
import itertools
import logging

import pytest
import torch
from PIL import Image

from demo.discs import Discs
from ldm.errors import CheckpointError
from ldm.training.run_folder import GAP, MetricsLog, Shown, choose_folder, full_columns, save_grid
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


def test_a_grid_has_every_image_in_its_place_with_its_caption(tmp_path):
    images = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 3, 128, 256)
    captions = ["a red disc", "x" * 400, "many words " * 30, "", "Bär", "a"]
    save_grid(Shown(images, captions, columns=3), tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width == 3 * 256 + 4 * GAP
        wide, high = 256 + GAP, (grid.height - GAP) // 2
        levels = [grid.getpixel((GAP + i % 3 * wide, GAP + i // 3 * high))[0] for i in range(6)]
        assert levels == [0, 51, 102, 153, 204, 255]
        below = [grid.crop((i * wide, GAP + 128, (i + 1) * wide, high)) for i in range(2)]
        assert all(strip.convert("L").getextrema()[0] < 100 for strip in below), "captions are there"
        gutter = grid.crop((wide, GAP, wide + GAP, grid.height))
        assert gutter.convert("L").getextrema() == (255, 255), "captions end where their image ends"


def test_small_images_are_enlarged_in_a_grid(tmp_path):
    save_grid(Shown(torch.zeros(2, 3, 16, 16), ["a", "b"]), tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width == 2 * 128 + 3 * GAP


def test_sheets_are_full():
    assert [full_columns(count) for count in (1, 2, 3, 4, 6, 8, 9, 12, 16)] == [1, 2, 3, 2, 3, 4, 3, 4, 4]
    assert all(-count % full_columns(count) <= count // 6 for count in range(1, 65))


def test_the_drawing_has_a_panel_for_what_there_is_to_draw(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    monkeypatch.setattr("ldm.training.run_folder.atomic_write", lambda path, write: write(path))
    log = MetricsLog(tmp_path / "metrics.csv", 0)
    log.columns = ["step", "seconds", "never", "loss", "lr_unet", "kl", "l1", "val_loss", "val_loss_t100"]
    log.rows = [
        {"step": 1, "seconds": "1", "loss": "2", "kl": "nan", "l1": "0", "lr_unet": "1"},
        {"step": 2, "seconds": "2", "loss": "1", "kl": "0.5", "l1": "3", "never": ""},
        {"step": 2, "seconds": "3", "val_loss": "1", "val_loss_t100": "2"},
    ]
    log.draw(tmp_path / "loss.png")
    panels = {axis.get_title(): [line.get_label() for line in axis.get_lines()] for axis in drawn[0].axes}
    assert list(panels) == ["loss", "kl", "l1", "val_loss"]
    assert panels["val_loss"] == ["val_loss", "val_loss_t100"]
    assert all(len(line.get_xdata()) for axis in drawn[0].axes for line in axis.get_lines())
    widths = [round(axis.get_position().width, 1) for axis in drawn[0].axes]
    assert widths[3] > 2 * widths[0], "the last row is full"
    log.columns, log.rows = ["step", "never"], [{"step": 1}]
    log.draw(tmp_path / "loss.png")
    assert len(drawn) == 1
