"""A notebook for the published code, line by line as such notebooks are, under the published names."""

import torch
from safetensors.torch import load_file

from golden_cases import case
from ldm.config import load_config


def test_a_published_notebook_gives_the_reference_latents():
    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.util import instantiate_from_config

    golden = case("e2e_txt2img_ddim")
    c = golden.config
    model = instantiate_from_config(load_config(golden.files["config"]).model)
    model.load_state_dict(load_file(golden.files["checkpoint"]), strict=False)
    model.eval()
    sampler = DDIMSampler(model, device=torch.device("cpu"))
    torch.manual_seed(golden.seed)
    with torch.no_grad(), model.ema_scope():
        start_code = torch.randn(c["n_samples"], 4, c["H"] // 8, c["W"] // 8)
        samples, _ = sampler.sample(
            S=c["steps"],
            conditioning=model.get_learned_conditioning(c["n_samples"] * [c["prompt"]]),
            batch_size=c["n_samples"],
            shape=[4, c["H"] // 8, c["W"] // 8],
            verbose=False,
            unconditional_guidance_scale=c["scale"],
            unconditional_conditioning=model.get_learned_conditioning(c["n_samples"] * [""]),
            eta=c["eta"],
            x_T=start_code,
        )
        golden.check("latents", samples)
        golden.check("image", model.decode_first_stage(samples))
