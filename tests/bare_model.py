"""A bare UNet with a noise schedule: what the sampler classes need of a model, and no more."""

from typing import Any

import torch
from torch import Tensor

from golden_cases import Case
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.models.unet import UNetModel


def schedule_of(config: dict[str, Any]) -> Schedule:
    """Return the noise schedule that a golden case names."""
    return Schedule(
        make_betas(
            config.get("beta_schedule", "linear"),
            config.get("timesteps", 1000),
            config["linear_start"],
            config["linear_end"],
        )
    )


class BareModel:
    """`apply_model` over a UNet; third-party samplers ask a model for nothing else than these names."""

    def __init__(self, unet: torch.nn.Module, schedule: Schedule, parameterization: str):
        buffers = schedule.published_buffers()
        self.unet = unet
        self.parameterization = parameterization
        self.betas, self.alphas_cumprod = buffers["betas"], buffers["alphas_cumprod"]
        self.num_timesteps = schedule.num_timesteps
        self.device = torch.device("cpu")
        self.calls: list[tuple[Tensor, Tensor]] = []  # (x, t) that the network was asked at

    def apply_model(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.calls.append((x, t))
        if isinstance(cond, dict):
            x = torch.cat([x, *cond.get("c_concat", [])], dim=1)
            return self.unet(x, t, context=torch.cat(cond["c_crossattn"], dim=1), y=cond.get("c_adm"))
        return self.unet(x, t, context=torch.cat(cond, dim=1) if isinstance(cond, list) else cond)


def bare_model(case: Case) -> BareModel:
    """Build the model of a golden case with its weights."""
    unet = UNetModel(**case.config["unet"])
    unet.load_state_dict(case.weights())
    return BareModel(unet.eval(), schedule_of(case.config), case.config["parameterization"])


def conditionings(case: Case) -> tuple[Any, Any]:
    """Return (cond, uncond) of a case in the form that its conditioning key asks for."""
    given = case.inputs
    if case.config.get("conditioning_key", "crossattn") == "crossattn":
        return given["c"], given.get("uc")
    cond: dict[str, Any] = {"c_crossattn": [given["c"]]}
    uncond: dict[str, Any] = {"c_crossattn": [given["uc"]]}
    if "c_concat" in given:
        cond["c_concat"] = [given["c_concat"]]
        uncond["c_concat"] = [given.get("uc_concat", given["c_concat"])]
    if "c_adm" in given:
        cond["c_adm"] = given["c_adm"]
        uncond["c_adm"] = given.get("uc_adm", given["c_adm"])
    return cond, uncond
