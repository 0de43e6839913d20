"""The exceptions of the library, grouped by what the user has to fix.

    LdmError                    exit code 2; one line: what is wrong, got, expected, what to do
    ├── ConfigError             a YAML file or an override
    ├── CheckpointError         a weights file
    │   ├── UnsafeCheckpointError   it would run code
    │   ├── DamagedCheckpointError  it is truncated, corrupt or inconsistent
    │   ├── NotACheckpointError     it is something else: a web page, an image, a folder without weights
    │   ├── WrongModelError         it contains a different model than the requested one
    │   └── BadValuesError          it contains NaN or infinite weights
    ├── InputError              a flag, a prompt, an image
    ├── BackendUnavailable      a missing optional package or device
    ├── TrainingError           training cannot continue
    ├── BadImageError           exit code 4; an image came out NaN or black
    ├── OutOfMemory             exit code 6; there is not enough memory to continue
    └── Stopped                 exit code 75; the user stopped the run, which can be resumed
"""

import errno
from collections.abc import Iterable


class LdmError(Exception):
    """Base of all errors that a user can fix; commands print its text as one line, without a traceback."""

    exit_code = 2


class ConfigError(LdmError):
    """A configuration that cannot be built."""


class CheckpointError(LdmError):
    """A weights file that cannot be read, or does not fit the model."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that refers to a name outside the allow-list; none of its code was executed."""


class DamagedCheckpointError(CheckpointError):
    """A weights file that is truncated, corrupt or declares more data than it contains."""


class NotACheckpointError(CheckpointError):
    """A file or folder that contains no weights, or weights in an unsupported format."""


class WrongModelError(CheckpointError):
    """Intact weights of a different model than the configuration or the flags describe."""


class BadValuesError(CheckpointError):
    """Weights with NaN or infinite values."""


class InputError(LdmError):
    """A flag, prompt or image that the task does not accept."""


class BackendUnavailable(LdmError):
    """A device or optional package that is not available; the text contains the install command."""


class TrainingError(LdmError):
    """Training would learn nothing, or its values are no longer finite."""


class BadImageError(LdmError):
    """An image came out NaN, infinite or all black; it is not saved."""

    exit_code = 4


class OutOfMemory(LdmError):
    """There is not enough memory, and the usual advice does not apply."""

    exit_code = 6


class Stopped(LdmError):
    """A signal stopped the run; it can be resumed from where it stopped."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out.

    On CPUs and Apple's GPUs torch raises a plain RuntimeError, and other libraries errors of their own, which
    only their texts identify.
    """
    if isinstance(error, (MemoryError, OutOfMemory)) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, LdmError) or (isinstance(error, OSError) and error.errno is not None):
        return getattr(error, "errno", None) == errno.ENOMEM
    text = str(error).lower()
    return any(words in text for words in _NO_MEMORY)


_NO_MEMORY = (
    "allocate memory", "failed to allocate", "not enough memory", "insufficient memory", "out of memory",
    "bad_alloc", "bad allocation", "failed to map segment",
)  # fmt: skip


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known word, or "" if none is close."""
    import difflib  # only needed for error messages

    near = difflib.get_close_matches(str(word), [str(each) for each in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
