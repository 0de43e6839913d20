"""`ldm.devices` has it."""

from ldm.devices import on_meta as on_meta
