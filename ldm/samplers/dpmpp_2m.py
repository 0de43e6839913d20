"""DPM++ 2M as in other tools: `DPMSolver` on any schedule, Karras' by default, to the clean latents."""

from typing import Any

from ldm.diffusion.schedule import Schedule
from ldm.samplers.dpm_solver import DPMSolver


class DPMpp2M(DPMSolver):
    """One evaluation per step; deterministic; second order."""

    default_spacing = "karras"

    def __init__(self, schedule: Schedule, num_steps: int, *, spacing: str | None = None, **options: Any):
        super().__init__(schedule, num_steps, spacing=spacing or self.default_spacing, **options)
