"""Tell a failure of the machine from damage of a file: memory and disks fail while good files are read."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.errors import LdmError, OutOfMemory, is_out_of_memory

# What the system may answer although the bytes are good. EINVAL is none: bytes can lead to a wrong seek.
OF_THE_MACHINE = tuple(
    getattr(errno, name)
    for name in (
        "EIO", "EACCES", "EPERM", "ENOENT", "EMFILE", "ENFILE", "ENODEV", "ENXIO", "EBUSY", "ENOSPC",
        "EDQUOT", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO", "ENOMEDIUM",
    )
    if hasattr(errno, name)
)  # fmt: skip
ADVICE = "free some, raise its limit, or read the file on a machine with more"


def no_file(path: str | os.PathLike[str]) -> str | None:
    """Return what `path` is in place of a regular file, in a few words; None if it is one. Nothing is opened.

    Raises: OSError, if the file system does not say.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    if stat.S_ISREG(mode):
        return None
    kinds = ((stat.S_ISDIR, "it is a folder"), (stat.S_ISFIFO, "it is a pipe, not a file"),
             (stat.S_ISSOCK, "it is a socket, not a file"))  # fmt: skip
    return next((words for is_kind, words in kinds if is_kind(mode)), "it is a device, not a file")


@contextmanager
def reading(
    path: str | os.PathLike[str],
    damaged: Callable[[str], LdmError] | None = None,
    advice: str = ADVICE,
) -> Iterator[None]:
    """Judge what is raised while `path` is read; nothing but its bytes makes a file damaged.

    Args:
        damaged: makes, from a reason in a few words, the error for everything that is not the machine's. Give
            it only around the call of a library that raises nearly anything on bad bytes; what code of this
            project raises is a defect, and passes.
        advice: what to do where memory ran out.

    Raises:
        OutOfMemory: there was not enough memory to read the file.
        OSError: the system's own words, with the path.
    """
    try:
        yield
    except LdmError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"{os.fspath(path)}: out of memory while it was read; {advice}") from error
        number = _system_errno(error)
        if number is not None:
            where = getattr(error, "filename", None) or os.fspath(path)
            raise OSError(number, os.strerror(number), where) from error
        if damaged is None:
            raise
        raise damaged(_reason(error)) from error


@contextmanager
def name_in_utf8(path: Path) -> Iterator[Path]:
    """Yield a name of the file that is UTF-8, for libraries that take no other; it holds within the block."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with open(path, "rb") as file:
            yield Path(f"/dev/fd/{file.fileno()}")
    else:
        yield path


def _system_errno(error: Exception) -> int | None:
    """Return the errno of a failure of the machine; libraries put its words into texts of their own."""
    if isinstance(error, OSError) and error.errno is not None:
        return None if error.errno == errno.EINVAL else error.errno
    text = str(error)
    return next((number for number in OF_THE_MACHINE if os.strerror(number) in text), None)


def _reason(error: Exception) -> str:
    detail = (str(error).splitlines() or [""])[0][:120]
    return f"{type(error).__name__}: {detail}".rstrip(": ")
