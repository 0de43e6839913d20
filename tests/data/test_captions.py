"""Captions: every place where they may be, and a file, a line and a byte for what is no text."""

import json

import pytest

from ldm.data.captions import captions_of, read_table, read_text
from ldm.errors import InputError


@pytest.fixture
def files(tmp_path):
    """Names of images in two folders; nothing reads them."""
    names = "a.png", "b.jpg", "sub/c.png", "sub/deeper/d.webp"
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return [tmp_path / name for name in names]


def table(path, *rows: tuple[str, str]) -> None:
    path.write_text("".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows))


def test_texts_beside_the_images(tmp_path, files):
    (tmp_path / "a.txt").write_text(" a cat \n")
    (tmp_path / "b.caption").write_text("a dog")
    (tmp_path / "sub/c.caption").write_text("second")
    (tmp_path / "sub/c.txt").write_text("first")
    (tmp_path / "sub/deeper/d.txt").mkdir()
    assert captions_of(tmp_path, files) == ["a cat", "a dog", "first", ""]


def test_tables_of_sub_folders_count_and_the_nearest_wins(tmp_path, files, caplog):
    table(tmp_path / "metadata.jsonl", ("a.png", "A"), ("sub/c.png", "far"), ("sub\\deeper\\d.webp", "D"))
    table(tmp_path / "sub/metadata.jsonl", ("./c.png", "near"))
    (tmp_path / "captions.csv").write_text("file_name,caption\nb.jpg,\"B, with a comma\"\n")
    assert captions_of(tmp_path, files) == ["A", "B, with a comma", "near", "D"]
    assert not caplog.messages


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "captions.csv"])
@pytest.mark.parametrize("folder", [".", "sub", "sub/deeper"])
def test_every_table_is_found_in_every_folder(tmp_path, files, name, folder):
    inside = [file for file in files if file.parent == tmp_path / folder]
    if name.endswith("jsonl"):
        table(tmp_path / folder / name, *((file.name, file.stem) for file in inside))
    else:
        rows = "".join(f"{file.name},{file.stem}\n" for file in inside)
        (tmp_path / folder / name).write_text("file_name,text\n" + rows)
    assert captions_of(tmp_path, files) == [file.stem if file in inside else "" for file in files]


def test_rows_that_name_no_image_are_counted(tmp_path, files, caplog):
    table(tmp_path / "metadata.jsonl", ("a.png", "A"), ("A.png", "x"), ("images/b.jpg", "x"), ("zzz", "x"))
    assert captions_of(tmp_path, files)[0] == "A"
    assert "3 of 4 rows of captions name no image of the folder, such as A.png" in caplog.text
    caplog.clear()
    captions_of(tmp_path, files, say=False)
    assert not caplog.messages


def test_accents_may_be_written_in_two_ways(tmp_path):
    file = tmp_path / "cafe\u0301.png"
    table(tmp_path / "metadata.jsonl", ("caf\u00e9.png", "a coffee"))
    assert captions_of(tmp_path, [file]) == ["a coffee"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark_are_read(tmp_path, files, encoding):
    (tmp_path / "a.txt").write_text("ein M\u00e4dchen \U0001f600", encoding=encoding)
    row = '{"file_name": "c.png", "text": "\u00e9"}'
    (tmp_path / "sub/metadata.jsonl").write_text(row, encoding=encoding)
    assert captions_of(tmp_path, files)[:3] == ["ein M\u00e4dchen \U0001f600", "", "\u00e9"]


def test_utf_16_of_either_order(tmp_path):
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        (tmp_path / "a.txt").write_bytes(mark + "caf\u00e9".encode(encoding))
        assert read_text(tmp_path / "a.txt") == "caf\u00e9"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xe9", "line 1: byte 1 of the line, 0xE9, is not UTF-8"),
        (b"fine\ncaf\xe9 au lait", "line 2: byte 4 of the line, 0xE9, is not UTF-8"),
        ("\u00e9t\u00e9 ".encode() + b"\xff", "line 1: byte 7 of the line, 0xFF"),
        (b"\xef\xbb\xbf\xe9", "line 1: byte 4 of the line, 0xE9"),
        ("a cat".encode("utf-16-le"), "line 1: it has NUL bytes"),
        (b"\xff\xfea\0b", "line 1: byte 5 of the line, 0x62, is not UTF-16"),
    ],
)
def test_what_is_no_text_is_named_with_line_and_byte(tmp_path, files, content, says):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError) as error:
        captions_of(tmp_path, files)
    assert f"a.txt, {says}" in str(error.value) and "save the file as UTF-8" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a"}\n{"file_name": ', 2),
        ("metadata.jsonl", "\n\n[1]", 3),
        ("metadata.jsonl", '{"file_name": 7, "text": "a"}', 1),
        ("metadata.jsonl", '{"file_name": "a.png", "text": ["a", "b"]}', 1),
        ("metadata.jsonl", '{"file_name": "a.png"}', 1),
        ("metadata.jsonl", "[" * 100_000, 1),
        ("captions.csv", "name,text\na.png,a\n", 2),
        ("captions.csv", 'file_name,text\n"a.png","two\nlines"\n,a\n', 4),
        ("captions.csv", "file_name,text\na.png," + "x" * 200_000, 2),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, name, content, line):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}, line {line}: ") as error:
        read_table(tmp_path / name)
    assert len(str(error.value)) < 400


def test_a_table_that_is_given_is_the_only_one(tmp_path, files):
    table(tmp_path / "metadata.jsonl", ("a.png", "A"))
    (tmp_path / "sub/other.csv").write_text("file_name,text\na.png,other\n")
    assert captions_of(tmp_path, files, "sub/other.csv")[0] == "other"
    with pytest.raises(InputError, match=r"missing\.csv: no such file"):
        captions_of(tmp_path, files, "missing.csv")
