"""Samplers: one file each, and one loop for all; a sampler calls `denoise(x_t, t) -> Prediction`.

To add a sampler, write a file with a subclass of `base.Sampler`, or of `base.GridSampler` if it works with
any spacing of the times, and add a row to `SAMPLERS`.
"""

import difflib
import re
from typing import Any, NamedTuple

from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError
from ldm.samplers.base import GridSampler, Sampler
from ldm.samplers.ddim import DDIM, DDIMInversion
from ldm.samplers.ddpm import DDPM
from ldm.samplers.deis import DEIS
from ldm.samplers.dpm_solver import DPMSolver
from ldm.samplers.dpmpp_2m import DPMpp2M
from ldm.samplers.dpmpp_2m_sde import DPMpp2MSDE
from ldm.samplers.dpmpp_3m_sde import DPMpp3MSDE
from ldm.samplers.euler import Euler
from ldm.samplers.euler_ancestral import EulerAncestral
from ldm.samplers.heun import Heun
from ldm.samplers.lcm import LCM
from ldm.samplers.lms import LMS
from ldm.samplers.loop import Step, sample_loop
from ldm.samplers.plms import PLMS
from ldm.samplers.unipc import UniPC

__all__ = ["DDIMInversion", "GridSampler", "Step", "sample_loop"]  # beside what stands here


class SamplerRow(NamedTuple):
    """A sampler in the table that users choose from."""

    name: str
    cls: type
    aliases: tuple[str, ...]
    help: str


SAMPLERS: dict[str, SamplerRow] = {
    row.name: row
    for row in (
        SamplerRow("ddim", DDIM, (), "the default of the reference; eta adds noise"),
        SamplerRow("plms", PLMS, ("pndm",), "DDIM steps with a fourth-order average of the predicted noise"),
        SamplerRow(
            "dpm",
            DPMSolver,
            ("dpm++", "dpmpp", "dpm-solver", "dpm-solver++"),
            "DPM-Solver++ (2M) at the reference times: good images from about 15 steps",
        ),
        SamplerRow(
            "dpmpp_2m",
            DPMpp2M,
            ("dpm++2m", "dpmsolver-multistep"),
            "DPM++ 2M as in other tools, to the clean latents",
        ),
        SamplerRow("dpmpp_2m_sde", DPMpp2MSDE, ("dpm++2msde",), "second-order multistep; eta adds noise"),
        SamplerRow("dpmpp_3m_sde", DPMpp3MSDE, ("dpm++3msde",), "multistep of three steps; eta adds noise"),
        SamplerRow(
            "unipc",
            UniPC,
            ("uni_pc", "unipc-multistep"),
            "third-order predictor-corrector: good images from about 10 steps",
        ),
        SamplerRow("euler", Euler, (), "first order: DDIM's formula, to the clean latents"),
        SamplerRow("euler_a", EulerAncestral, ("euler-ancestral",), "first order; eta adds noise"),
        SamplerRow("heun", Heun, (), "second order, two evaluations per step"),
        SamplerRow("lms", LMS, (), "fourth-order linear multistep"),
        SamplerRow("deis", DEIS, ("deis-multistep",), "third-order linear multistep in log sigma"),
        SamplerRow("ddpm", DDPM, (), "ancestral sampling of the training chain; needs many steps"),
        SamplerRow("lcm", LCM, (), "1 to 8 steps, for models distilled for it (LCM, LCM-LoRA)"),
    )
}


def sampler_table() -> str:
    """Return a text table of all samplers, one per line."""
    lines = [("name", "eta", "schedule", "")]
    for row in SAMPLERS.values():
        eta = "-" if row.cls.default_eta is None else f"{row.cls.default_eta:g}"
        lines.append((row.name, eta, row.cls.default_spacing or "reference", row.help))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _folded(name: str) -> str:
    """Return a name without what other tools add: k_euler, sample_heun, EulerDiscreteScheduler."""
    bare = re.sub(r"^(k_|sample_)|(Discrete)?Scheduler$", "", name.strip(), flags=re.IGNORECASE)
    return re.sub(r"[-_ ]", "", bare.lower())


def find_sampler(name: str) -> SamplerRow:
    """Return the row of a name or alias, ignoring case, spaces, hyphens and underscores.

    The names of A1111's web UI, k-diffusion and diffusers are aliases.

    Raises:
        InputError: there is no such sampler; the text lists all names.
    """
    rows = {_folded(alias): row for row in SAMPLERS.values() for alias in (row.name, *row.aliases)}
    wanted = _folded(name)
    if wanted in rows:
        return rows[wanted]
    for schedule in ("karras", "exponential"):
        if (row := rows.get(wanted.removesuffix(schedule))) and row.cls.default_spacing:
            raise InputError(f"sampler {name!r} is --sampler {row.name} --schedule {schedule} here")
    near = difflib.get_close_matches(wanted, rows, n=1)
    hint = f"; did you mean {rows[near[0]].name!r}?" if near else ""
    raise InputError(f"unknown sampler {name!r}: expected one of {', '.join(SAMPLERS)}{hint}")


def make_sampler(
    name: str,
    schedule: Schedule,
    num_steps: int,
    *,
    eta: float | None = None,
    spacing: str | None = None,
    **options: Any,
) -> Sampler:
    """Build a sampler by name; `options` go to its class (`temperature`, `correct_x_0`, ...).

    With a `spacing` (ldm.diffusion.spacing.SPACINGS) a run takes exactly `num_steps` UNet evaluations.
    Without one, the samplers of the reference use its times, which may take more (30 steps give 31, and PLMS
    evaluates once more in its first step).

    Raises:
        InputError: the name is unknown, or the sampler does not support `eta`, `spacing` or `num_steps`.
    """
    return find_sampler(name).cls(schedule, num_steps, eta=eta, spacing=spacing, **options)
