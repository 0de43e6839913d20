"""File numbers: those of the published scripts in a fresh folder, and never one that is taken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.files.atomic import TEMPORARY_PREFIX
from ldm.files.numbering import NumberedFiles

REPOSITORY = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def save(folder: Path, count: int = 1) -> list[str]:
    """Save as a new run would."""
    files = NumberedFiles(folder, "%05d.png")
    return [files.save(b"data").name for _ in range(count)]


def test_a_fresh_folder_starts_at_zero(tmp_path):
    assert save(tmp_path / "samples", 2) == ["00000.png", "00001.png"]
    assert save(tmp_path / "samples", 2) == ["00002.png", "00003.png"]


def test_deleting_files_never_leads_to_overwriting(tmp_path):
    save(tmp_path, 4)
    (tmp_path / "00001.png").unlink()
    (tmp_path / "00002.png").write_bytes(b"mine")
    assert save(tmp_path) == ["00004.png"]
    assert (tmp_path / "00002.png").read_bytes() == b"mine"


def test_the_number_of_a_deleted_last_file_does_not_come_back(tmp_path):
    files = save(tmp_path, 3)
    try:
        os.setxattr(tmp_path, "user.ldm.test", b"1")
    except (OSError, AttributeError):
        expected = "00002.png"  # no extended attributes here: only the files present count
    else:
        expected = "00003.png"
    (tmp_path / files[-1]).unlink()
    assert names(tmp_path) == files[:-1]  # nothing beside the images
    assert save(tmp_path) == [expected]


def test_a_deletion_during_a_run_does_not_bring_a_number_back(tmp_path):
    files = NumberedFiles(tmp_path, "%05d.png")
    files.save(b"")
    files.save(b"").unlink()
    assert files.save(b"").name in ("00001.png", "00002.png")
    (tmp_path / "00009.png").touch()
    assert files.save(b"").name == "00010.png"


def test_foreign_entries_count_as_published(tmp_path):
    for name in ("notes.txt", "old.jpg"):
        (tmp_path / name).touch()
    assert save(tmp_path) == ["00002.png"]


def test_the_grid_number_leaves_out_the_samples_folder(tmp_path):
    (tmp_path / "samples").mkdir()
    grids = NumberedFiles(tmp_path, "grid-%04d.png", foreign=1)
    assert [grids.save(b"").name for _ in range(2)] == ["grid-0000.png", "grid-0001.png"]


def test_numbers_grow_beyond_their_digits(tmp_path):
    (tmp_path / "99999.png").touch()
    assert save(tmp_path, 2) == ["100000.png", "100001.png"]


@pytest.mark.parametrize("name", ["20230409035063.png", "230409.png", "7.png", "٠٠٠٠٧.png", "00009.jpg.png"])
def test_a_number_of_another_shape_does_not_count(tmp_path, name):
    save(tmp_path, 2)
    (tmp_path / name).touch()
    assert save(tmp_path, 2) == ["00003.png", "00004.png"]  # after the number of entries, as in the reference


def test_no_temporary_file_is_left_and_none_counts(tmp_path):
    (tmp_path / f"{TEMPORARY_PREFIX}of-a-killed-process.tmp").touch()
    assert save(tmp_path) == ["00000.png"]
    assert len(names(tmp_path)) == 2


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path)
    assert names(tmp_path) == []


def test_without_hard_links_the_name_is_still_claimed(tmp_path, monkeypatch):
    def no_links(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "00003.png").touch()
    files = NumberedFiles(tmp_path, "%05d.png")
    monkeypatch.setattr(files, "_first_free", lambda: 3)  # another process took 3 after we had looked
    assert files.save(b"data").name == "00004.png"
    assert (tmp_path / "00004.png").read_bytes() == b"data" and (tmp_path / "00003.png").read_bytes() == b""
    assert len(names(tmp_path)) == 2


def test_a_symbolic_link_is_not_written_through(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "00001.png").symlink_to(tmp_path / "outside" / "victim")
    save(tmp_path / "samples", 3)
    assert names(tmp_path / "outside") == []


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "00000.png").stat().st_mode & 0o777 == 0o640


def test_four_processes_in_one_folder_lose_nothing(tmp_path):
    code = (
        "import sys; from ldm.files.numbering import NumberedFiles\n"
        "f = NumberedFiles(sys.argv[1], '%05d.png')\n"
        "for i in range(40): f.save(f'{sys.argv[2]}-{i}'.encode())"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(worker)], cwd=REPOSITORY)
        for worker in range(4)
    ]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert names(tmp_path) == [f"{number:05d}.png" for number in range(160)]
    contents = {path.read_text() for path in tmp_path.iterdir()}
    assert contents == {f"{worker}-{i}" for worker in range(4) for i in range(40)}


def test_images_of_all_formats_are_numbered_together(tmp_path):
    saved = [
        NumberedFiles(tmp_path, f"%05d.{format}").save(b"").name for format in ("png", "jpg", "webp", "png")
    ]
    assert saved == ["00000.png", "00001.jpg", "00002.webp", "00003.png"]
    (tmp_path / "00009.webp").touch()
    assert NumberedFiles(tmp_path, "%05d.jpg").save(b"").name == "00010.jpg"
    (tmp_path / "00012.gif").touch()
    (tmp_path / "20230409035063.webp").touch()
    assert NumberedFiles(tmp_path, "%05d.png").save(b"").name == "00011.png"
