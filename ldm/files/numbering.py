"""Numbered output files: complete or absent, and never replacing another file.

In a new folder the numbers are those of the reference scripts, which start at the number of entries in the
folder. That count alone goes back when files are deleted, and gives two processes the same number. Here the
next number is above every number that is present or was ever used, and taking it is atomic: the finished
file is linked to its name, which fails if the name exists. The next number is kept as an extended attribute
of the folder, so no file is added and a new folder starts from the beginning; a file system without such
attributes knows only the files present. Files that the reference scripts do not write (previews, latents,
depth maps, maps of controls, interrupted runs) do not count.
"""

import contextlib
import os
import re
from pathlib import Path

from ldm.files.atomic import sync, temporary_path

UNCOUNTED = re.compile(
    r"\.ldm-.*|preview\.png|depth|controls|interrupted-\d+\.safetensors|.*\.latents\.safetensors"
)

IMAGES = (".png", ".jpg", ".webp")  # which are numbered together


class NumberedFiles:
    """Hand out the names `pattern % number` in `folder`.

    folder      created by the first file
    pattern     one %0Nd, as in "grid-%04d.png"
    foreign     how many entries do not count: the reference's grid number leaves out samples/;
                None: no entries count, and the first number is 0
    """

    def __init__(self, folder: str | Path, pattern: str, foreign: int | None = 0) -> None:
        self.folder = Path(folder)
        self.pattern = pattern
        self.foreign = foreign
        before, width, after = re.fullmatch(r"(.*)%0(\d+)d(.*)", pattern).groups()
        # a longer number may be a date: where ours grow so long, each taken one is passed over
        ends = "|".join(map(re.escape, IMAGES if after in IMAGES else (after,)))
        self._name = re.compile(re.escape(before) + rf"([0-9]{{{width}}})(?:{ends})")
        self._attribute = f"user.ldm.next.{before}{IMAGES[0] if after in IMAGES else after}"
        self._next = 0

    def save(self, data: bytes) -> Path:
        """Write a new file under the next free number and return its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(self.folder)
        try:
            temporary.write_bytes(data)
            sync(temporary)
            self._next = max(self._next, self._first_free())
            while not _claim(temporary, self.folder / (self.pattern % self._next)):
                self._next += 1
            taken = self.folder / (self.pattern % self._next)
            self._next += 1
            self._remember()
            return taken
        finally:
            temporary.unlink(missing_ok=True)

    def _first_free(self) -> int:
        names = os.listdir(self.folder)
        numbers = [int(match[1]) for match in map(self._name.fullmatch, names) if match]
        count = sum(not UNCOUNTED.fullmatch(name) for name in names)
        first = 0 if self.foreign is None else count - self.foreign
        return max([first, self._remembered(), *(number + 1 for number in numbers)])

    def _remembered(self) -> int:
        """Return the number after the highest ever used, or 0 if none is on record."""
        try:
            return int(os.getxattr(self.folder, self._attribute))
        except (OSError, ValueError, AttributeError):  # none yet, damaged, or a system without attributes
            return 0

    def _remember(self) -> None:
        """Put the next number on record, never a lower one than is there."""
        with contextlib.suppress(OSError, AttributeError):
            os.setxattr(self.folder, self._attribute, str(max(self._next, self._remembered())).encode())


def _claim(temporary: Path, final: Path) -> bool:
    """Give the finished file its name; False if the name is taken."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: claim the name empty, then fill it in one step
        try:
            os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            return False
        os.replace(temporary, final)
    return True
