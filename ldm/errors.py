"""What can go wrong, by whose hand it is mended.

    LdmError                    exit code 2; one line: what, got, expected, what to do
    ├── ConfigError             a YAML file or an override
    ├── CheckpointError         a weights file
    │   ├── UnsafeCheckpointError   it asks for code to be run
    │   ├── DamagedCheckpointError  it is truncated, corrupt or contradicts itself
    │   ├── NotACheckpointError     it is something else: a web page, a picture, a folder without weights
    │   ├── WrongModelError         it holds another model than the one asked for
    │   └── BadValuesError          it holds NaN or infinite weights
    ├── InputError              a flag, a prompt, an image
    ├── BackendUnavailable      an optional package or a device that is not there
    ├── TrainingError           training cannot go on
    ├── BadPictureError         exit code 4; a picture would be NaN or black
    ├── OutOfMemory             exit code 6; what is needed to go on does not fit
    └── Stopped                 exit code 75; the user asked to stop, and can go on from here
"""

from collections.abc import Iterable


class LdmError(Exception):
    """Base of every error that a user can mend; its text is one line without a traceback."""

    exit_code = 2


class ConfigError(LdmError):
    """A configuration that cannot be built."""


class CheckpointError(LdmError):
    """A weights file that cannot be read, or does not fit the model."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that names something outside the allow-list; nothing of it was executed."""


class DamagedCheckpointError(CheckpointError):
    """A weights file that is truncated, corrupt or claims more than it holds."""


class NotACheckpointError(CheckpointError):
    """A file or folder that is no weights at all, or none of a kind that is read."""


class WrongModelError(CheckpointError):
    """Whole weights, but of another model than the configuration or the flags describe."""


class BadValuesError(CheckpointError):
    """Weights that are NaN or infinite."""


class InputError(LdmError):
    """A flag, prompt or image outside what the task accepts."""


class BackendUnavailable(LdmError):
    """A device or optional package that this machine lacks; the text carries the install line."""


class TrainingError(LdmError):
    """Training that would learn nothing or has left the finite numbers."""


class BadPictureError(LdmError):
    """A picture that came out as NaN, infinity or all black; it is not saved."""

    exit_code = 4


class OutOfMemory(LdmError):
    """More memory than there is, where the way out is another one than usual."""

    exit_code = 6


class Stopped(LdmError):
    """A run that a signal asked to stop: it can go on from where it stands."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


def is_out_of_memory(error: Exception) -> bool:
    """Tell it from the text where torch raises a plain RuntimeError: on CPUs and Apple's GPUs."""
    if isinstance(error, (MemoryError, OutOfMemory)) or type(error).__name__ == "OutOfMemoryError":
        return True
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known word that is nearest, "" where none is near."""
    import difflib  # on the way to an error only

    near = difflib.get_close_matches(str(word), [str(each) for each in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
