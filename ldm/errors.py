"""What can go wrong, by whose hand it is mended.

    LdmError                    exit code 2; one line: what, got, expected, what to do
    ├── ConfigError             a YAML file or an override
    ├── CheckpointError         a weights file
    │   └── UnsafeCheckpointError   it asks for code to be run
    ├── InputError              a flag, a prompt, an image
    ├── BackendUnavailable      an optional package or a device that is not there
    └── TrainingError           training cannot go on
"""


class LdmError(Exception):
    """Base of every error that a user can mend; its text is one line without a traceback."""

    exit_code = 2


class ConfigError(LdmError):
    """A configuration that cannot be built."""


class CheckpointError(LdmError):
    """A weights file that cannot be read, or does not fit the model."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that names something outside the allow-list; nothing of it was executed."""


class InputError(LdmError):
    """A flag, prompt or image outside what the task accepts."""


class BackendUnavailable(LdmError):
    """A device or optional package that this machine lacks; the text carries the install line."""


class TrainingError(LdmError):
    """Training that would learn nothing or has left the finite numbers."""
