"""Captions of the images of a folder.

They are looked for in this order:

    metadata.jsonl   one object a line: {"file_name": "a.png", "text": "..."}
    metadata.csv     columns file_name, text; also captions.csv, or any other table given by name
    NAME.txt         next to NAME.png
    NAME.caption     the same

A table counts for its own folder and those below it; the nearest one that names an image is used. Files are
UTF-8, or UTF-16 with a byte order mark.
"""

import codecs
import csv
import io
import json
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.errors import InputError

TABLES = ("metadata.jsonl", "metadata.csv", "captions.csv")
BESIDE = (".txt", ".caption")
TEXT_KEYS = ("text", "caption", "txt", "prompt")
ENCODINGS = {  # the longer marks first, of which the shorter ones are a part
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip

log = logging.getLogger(__name__)


def captions_of(folder: Path, files: Sequence[Path], given: str | None = None, say: bool = True) -> list[str]:
    """Return the caption of every image file, empty if there is none.

    Args:
        given: the only table to read, relative to the folder.
        say: log how many rows of tables name no image.

    Raises:
        InputError: a table or a text cannot be read; the file, and the line and the byte in it, are named.
    """
    if given is not None and not (folder / given).is_file():
        raise InputError(f"{folder / given}: no such file")
    folders = {parent for file in files for parent in file.relative_to(folder).parents}
    named = (folder / below / name for below in sorted(folders) for name in TABLES)
    tables = [folder / given] if given is not None else [table for table in named if table.is_file()]
    rows = {table: read_table(table) for table in tables}
    texts: dict[str, tuple[int, str]] = {}  # name in the folder -> how near its table is, caption
    for table, captions in rows.items():
        above = table.parent.relative_to(folder).as_posix() if given is None else "."
        for name, text in captions.items():
            found = (len(PurePosixPath(above).parts), text)
            key = _key((PurePosixPath(above) / name).as_posix())
            texts[key] = max(texts.get(key, found), found, key=lambda each: each[0])
    keys = [_key(file.relative_to(folder).as_posix()) for file in files]
    unused = texts.keys() - set(keys)
    if unused and say:
        log.warning(
            "%s: %d of %d rows of captions name no image of the folder, such as %s",
            folder, len(unused), len(texts), min(unused)[:100],
        )  # fmt: skip
    return [texts[key][1] if key in texts else _beside(file) for key, file in zip(keys, files, strict=True)]


def read_table(file: Path) -> dict[str, str]:
    """Return file name -> caption of a .jsonl or .csv file.

    Raises: InputError with the line.
    """
    captions = {}
    for number, row in rows_of(file):
        name = row.get("file_name")
        text = next((row[key] for key in TEXT_KEYS if row.get(key) is not None), None)
        if not isinstance(name, str) or not name or not isinstance(text, (str, int, float)):
            raise InputError(
                f"{file}, line {number}: expected file_name and one of {', '.join(TEXT_KEYS)}, with texts"
            )
        captions[PurePosixPath(name.replace("\\", "/")).as_posix()] = str(text).strip()
    return captions


def read_text(file: Path) -> str:
    """Return the text of a file. Raises: InputError with the line and the byte that are not text."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    mark = next((mark for mark in ENCODINGS if data.startswith(mark)), b"")
    encoding, data = ENCODINGS.get(mark, "utf-8"), data[len(mark) :]
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, "replace")
        line = before.count("\n") + 1
        byte = len(mark) * (line == 1) + len(before.rpartition("\n")[2].encode(encoding, "replace")) + 1
        raise InputError(
            f"{file}, line {line}: byte {byte} of the line, 0x{data[error.start]:02X}, is not "
            f"{encoding[:6].upper().rstrip('-')}; save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{file}, line {line}: it has NUL bytes and is no UTF-8; save the file as UTF-8")
    return text


def rows_of(file: Path, expected: str = "file_name and text") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the content of every row of CSV or JSON lines. Raises: InputError."""
    text = read_text(file)
    if file.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise InputError(f"{file}, line {reader.line_num + 1}: is not CSV ({error})") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _object(file, number, line, expected)


def _object(file: Path, number: int, line: str, expected: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {number}: is not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # numbers and nesting beyond all bounds
        raise InputError(f"{file}, line {number}: is not usable JSON ({type(error).__name__})") from error
    if not isinstance(row, dict):
        raise InputError(f"{file}, line {number}: expected an object with {expected}")
    return row


def _beside(file: Path) -> str:
    found = (file.with_suffix(suffix) for suffix in BESIDE)
    return next((read_text(each).strip() for each in found if each.is_file()), "")


def _key(name: str) -> str:
    """Return a name as it is compared: file systems write accents in one character or in two."""
    return unicodedata.normalize("NFC", name)
