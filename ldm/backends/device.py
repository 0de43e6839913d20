"""`ldm.devices` has it."""

from ldm.devices import *  # noqa: F403
