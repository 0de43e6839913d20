"""Between one file and a diffusers folder: bit by bit, and the same latents in diffusers' own pipelines."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import TASKS, WIDTH, tiny_config, tiny_model
from torch import Tensor, nn

from ldm.checkpoint import identify
from ldm.checkpoint.conversion import ConvertOptions, _Described, convert
from ldm.checkpoint.convert import CONFIGS, Converted
from ldm.checkpoint.identity import Identity
from ldm.checkpoint.layouts import UNUSED, ldm_to_parts
from ldm.checkpoint.layouts.renaming import below
from ldm.checkpoint.parts import PARTS
from ldm.config import instantiate, load_config
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import add_noise, denoiser
from ldm.errors import BadValuesError, CheckpointError, ConfigError, InputError, WrongModelError
from ldm.loading import load_model
from ldm.samplers import make_sampler, sample_loop

PROMPT, SCALE, STEPS, SIDE = "a red apple, 3d", 4.0, 4, 64
CLOSE = dict(atol=1e-4, rtol=0)
STATISTICS = {"noise_augmentor.data_mean", "noise_augmentor.data_std"}


@dataclass
class Case:
    """A tiny model of a task, its file and what that was converted to."""

    task: str
    config: Path
    model: nn.Module
    file: Path
    folder: Path
    done: Converted

    @cached_property
    def latents(self) -> Tensor:
        """What our model makes of its file."""
        with torch.no_grad():
            return ours(load_model(self.config, self.file, device="cpu", dtype="float32"), self.task)

    @cached_property
    def pipeline(self) -> Any:
        """What diffusers makes of our folder."""
        return pipeline_of(self)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @cache
    def make(task: str) -> Case:
        home = tmp_path_factory.mktemp(task)
        config = tiny_config(task, home)
        model = tiny_model(config)
        file = home / "model.safetensors"
        save_file({name: x.contiguous() for name, x in model.state_dict().items()}, file)
        done = convert(file, home / "folder", ConvertOptions(config=str(config)))
        return Case(task, config, model, file, home / "folder", done)

    return make


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return got.keys() == want.keys() and all(
        got[name].dtype == x.dtype and torch.equal(got[name], x) for name, x in want.items()
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("task", TASKS)
def test_a_file_comes_back_bit_by_bit(case, task: str, tmp_path: Path):
    convert(case(task).folder, tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    if task == "unclip-l":      # its file leaves these to one beside it
        back = {name: x for name, x in back.items() if name not in STATISTICS}
    assert same(back, load_file(case(task).file))


def pipeline_of(case: Case, name: str | None = None) -> Any:
    import diffusers

    name = name or json.loads((case.folder / "model_index.json").read_text())["_class_name"]
    # The tiny model of this task comes without the depth network, which has one size only.
    others = {"depth_estimator": None} if case.task == "depth" else {}
    pipeline = getattr(diffusers, name).from_pretrained(case.folder, local_files_only=True, **others)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def image(channels: int = 3) -> Tensor:
    """Return an image (1, c, side, side) in [0, 1]."""
    return torch.rand(1, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(7))


def context(model: nn.Module) -> tuple[Tensor, Tensor]:
    return model.get_learned_conditioning([PROMPT]), model.get_learned_conditioning([""])


def sampled(model: nn.Module, x_t: Tensor, cond: Any, uncond: Any, start: int = 0) -> Tensor:
    """Sample with our loop, by DDIM on the published steps."""
    sampler = make_sampler("ddim", model.schedule, STEPS)
    denoise = denoiser(model.apply_model, model.schedule, model.parameterization)
    guided = ClassifierFreeGuidance(denoise, model.as_cond(uncond), SCALE)
    *_, last = sample_loop(sampler, guided, x_t, model.as_cond(cond), start=start)
    return last.x_t


def started(model: nn.Module, generator: torch.Generator, start: int) -> Tensor:
    """Return the image's latents, noised to step `start`; drawn in the order of diffusers' pipelines."""
    posterior = model.encode_first_stage(2 * image() - 1)
    noise = torch.randn(posterior.mean.shape, generator=generator)
    latents = model.get_first_stage_encoding(posterior, noise)
    t = make_sampler("ddim", model.schedule, STEPS).timesteps[start]
    return add_noise(
        model.schedule, latents, torch.randn(latents.shape, generator=generator), torch.tensor([int(t)])
    )


def ours(model: nn.Module, task: str) -> Tensor:
    """Return the latents that our model makes."""
    cond, uncond = context(model)
    generator = torch.Generator().manual_seed(3)
    x_t = seeded(1, 4, SIDE // 8, SIDE // 8)
    if task == "img2img":
        return sampled(model, started(model, generator, 1), cond, uncond, start=1)
    if task == "inpaint":
        noise = torch.randn(x_t.shape, generator=generator)
        concat = model.concat_conditioning(2 * image() - 1, image(1), noise)
        return sampled(model, x_t, model.hybrid(cond, concat), model.hybrid(uncond, concat))
    if task == "depth":
        x_t = started(model, generator, 1)
        halves = (model.conditioning(c, image(1), tuple(x_t.shape[-2:])) for c in (cond, uncond))
        return sampled(model, x_t, *halves, start=1)
    if task == "upscale":
        small = 2 * image()[..., :8, :8] - 1
        noise = torch.randn(small.shape, generator=generator)
        return sampled(model, x_t, *(model.conditioning(c, small, 20, noise) for c in (cond, uncond)))
    if task.startswith("unclip"):
        embedding = seeded(1, model.embedder.embed_dim)
        noise = torch.randn(embedding.shape, generator=generator)
        told = model.conditioning(cond, model.embedding_conditioning(embedding, 100, noise))
        return sampled(model, x_t, told, model.unconditional(told, uncond))
    if task == "controlnet":
        return sampled(model, x_t, *(model.conditioning(c, image()) for c in (cond, uncond)))
    return sampled(model, x_t, cond, uncond)


def theirs(pipeline: Any, task: str) -> Tensor:
    """Return the latents that a pipeline of diffusers makes."""
    told: dict[str, Any] = {"latents": seeded(1, 4, SIDE // 8, SIDE // 8)}
    if task in ("img2img", "depth"):
        told = {"image": image(), "strength": (STEPS - 1) / STEPS}
        if task == "depth":
            told["depth_map"] = image(1)[:, 0]
    elif task == "inpaint":
        told |= {"image": image(), "mask_image": image(1), "strength": 1.0}
    elif task == "upscale":
        told |= {"image": image()[..., :8, :8], "noise_level": 20}
    elif task.startswith("unclip"):
        told |= {"image_embeds": seeded(1, WIDTH), "noise_level": 100}
    elif task == "controlnet":
        told |= {"image": image()}
    if task in ("sd1", "sd2", "sd2-v", "inpaint") or task.startswith("unclip"):
        told |= {"height": SIDE, "width": SIDE}
    return pipeline(
        prompt=PROMPT, num_inference_steps=STEPS, guidance_scale=SCALE, output_type="latent",
        generator=torch.Generator().manual_seed(3), **told,
    ).images


@pytest.mark.few(1)
@pytest.mark.parametrize("task", TASKS)
def test_diffusers_gives_the_same_latents(case, task: str):
    made = case(task)
    assert made.latents.std() > 0.1
    torch.testing.assert_close(theirs(made.pipeline, task), made.latents, **CLOSE)


def test_diffusers_gives_the_same_latents_from_an_image(case):
    made = case("sd2")
    with torch.no_grad():
        expected = ours(made.model, "img2img")
    pipeline = pipeline_of(made, "StableDiffusionImg2ImgPipeline")
    torch.testing.assert_close(theirs(pipeline, "img2img"), expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in TASKS if task != "depth"])
def test_what_diffusers_saves_is_loaded(case, task: str, tmp_path: Path):
    """Such a folder lacks what is unused; the model is the same in all else, so its latents are."""
    made = case(task)
    made.pipeline.save_pretrained(tmp_path / "saved")
    loaded = load_model(made.config, tmp_path / "saved", device="cpu", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(ours(loaded, task), made.latents, atol=1e-6, rtol=0)
    done = convert(tmp_path / "saved", tmp_path / "file.safetensors")
    assert done.metadata["sd.prediction"] == made.model.parameterization
    assert any("unused.safetensors" in note for note in done.notes)


def test_the_image_encoder_gives_the_same_embedding(case):
    made, pixels = case("unclip-l"), seeded(1, 3, 28, 28)
    with torch.no_grad():
        expected = made.model.embedder.model.encode_image(pixels)
        got = made.pipeline.image_encoder(pixels).image_embeds
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ["sd1", "sd2"])
def test_the_tokenizer_gives_the_same_tokens(case, task: str):
    made = case(task)
    # "!" is the padding of SD 2.x, so transformers takes that of a prompt for padding too.
    mark = "!" if task == "sd1" else "."
    prompts = ["", f"A red  apple, 3d{mark}", "naïve café — 東京 #42", "it's " * 100]
    settings = dict(padding="max_length", truncation=True, return_tensors="pt")
    got = made.pipeline.tokenizer(prompts, **settings).input_ids
    expected = made.model.cond_stage_model.tokenize(prompts)
    assert got.shape == expected.shape and torch.equal(got, expected)


DISTINCT = ["v1-inference", "v2-inference", "v2-inpainting-inference", "v2-midas-inference", "x4-upscaling"]
DISTINCT += ["v2-1-stable-unclip-h-inference", "v2-1-stable-unclip-l-inference", "cldm_v15", "cldm_v21"]


@pytest.mark.few(1)
@pytest.mark.parametrize("name", DISTINCT)
def test_the_descriptions_fit_at_full_size(name: str):
    """The classes of diffusers and transformers that config.json describes have the tensors of the file."""
    import diffusers
    import transformers

    folder = "controlnet" if name.startswith("cldm") else "stable-diffusion"
    node = OmegaConf.to_container(load_config(f"configs/{folder}/{name}.yaml").model, resolve=True)
    with torch.device("meta"):
        parts = ldm_to_parts(instantiate(node).state_dict())
        parts.pop(UNUSED)
        for part, tensors in parts.items():
            said = CONFIGS[part](node["params"])
            if PARTS[part].of_transformers:
                built = getattr(transformers, said["architectures"][0])
                theirs = built(transformers.AutoConfig.for_model(**said)).state_dict()
            else:
                theirs = getattr(diffusers, said["_class_name"]).from_config(said).state_dict()
            assert shapes(tensors) == shapes(theirs), part


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return shapes by name; transformers 5 leaves out a level that files have, and buffers are computed."""
    return {
        name.removeprefix("text_model.").removeprefix("vision_model."): tuple(x.shape)
        for name, x in tensors.items() if not name.endswith("position_ids")
    }


# Which copy, which precision, which metadata.


def averaged(file: Path, scale: float = 2.0) -> dict[str, Tensor]:
    """Return the tensors of a training file: the EMA weights is the raw one times `scale`."""
    tensors = load_file(file)
    copies = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): scale * x
        for name, x in tensors.items() if name.startswith("model.")
    }
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return {**tensors, **copies, **counters, "first_stage_model.loss.logvar": torch.zeros(())}


@pytest.fixture
def training_file(case, tmp_path: Path) -> Path:
    state = {"global_step": 5, "optimizer_states": [{"state": {}}]}
    torch.save({"state_dict": averaged(case("sd1").file), **state}, tmp_path / "training.ckpt")
    return tmp_path / "training.ckpt"


FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("options", "scale", "copies", "said"),
    [
        (ConvertOptions(), 1, True, "raw+ema"),
        (ConvertOptions(weights="both"), 1, True, "raw+ema"),
        (ConvertOptions(weights="raw"), 1, False, "raw"),
        (ConvertOptions(weights="ema"), 2, False, "ema"),
        (ConvertOptions(prune=True), 1, False, "raw"),
        (ConvertOptions(prune=True, weights="ema"), 2, False, "ema"),
    ],
)
def test_the_copy_asked_for_becomes_the_weights(
    case, training_file: Path, tmp_path: Path, options: ConvertOptions, scale: int, copies: bool, said: str
):
    done = convert(training_file, tmp_path / "out.safetensors", options)
    got, raw = load_file(tmp_path / "out.safetensors"), load_file(case("sd1").file)
    assert torch.equal(got[FIRST], scale * raw[FIRST])
    assert any(name.startswith("model_ema.") for name in got) == copies
    assert ("first_stage_model.loss.logvar" in got) == (not options.prune)
    assert done.metadata["sd.weights"] == said == metadata(tmp_path / "out.safetensors")["sd.weights"]
    untouched = {name for name in raw if not name.startswith("model.")}
    assert all(torch.equal(got[name], raw[name]) for name in untouched)


@pytest.mark.slow
def test_a_training_file_comes_back_from_its_folder(case, training_file: Path, tmp_path: Path):
    convert(training_file, tmp_path / "folder", ConvertOptions(config=str(case("sd1").config)))
    convert(tmp_path / "folder", tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), averaged(case("sd1").file))
    assert metadata(tmp_path / "back.safetensors")["sd.weights"] == "raw+ema"


def test_a_file_with_the_averaged_copy_alone(case, tmp_path: Path):
    copy = averaged(case("sd1").file)
    alone = {name: x for name, x in copy.items() if not name.startswith("model.")}
    save_file(alone, tmp_path / "in.safetensors")
    with pytest.raises(WrongModelError, match="--weights ema"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", ConvertOptions(weights="raw"))
    options = ConvertOptions(prune=True, config=str(case("sd1").config))
    done = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", options)
    assert done.metadata["sd.weights"] == "ema"
    assert torch.equal(load_file(tmp_path / "out.safetensors")[FIRST], 2 * load_file(case("sd1").file)[FIRST])


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_cast_and_tables_are_not(case, tmp_path: Path, dtype: torch.dtype):
    made = case("unclip-h")
    convert(made.file, tmp_path / "half.safetensors", ConvertOptions(dtype=dtype))
    tables = ("alphas_cumprod", "noise_augmentor.betas", "low_scale_model.sqrt_recipm1_alphas_cumprod")
    before, after = load_file(made.file), load_file(tmp_path / "half.safetensors")
    assert all(after[name].dtype == torch.float32 for name in tables if name in before)
    weights = [name for name in before if name.split(".")[0] in ("model", "first_stage_model", "embedder")]
    assert all(torch.equal(after[name], before[name].to(dtype)) for name in weights)
    options = ConvertOptions(dtype=dtype, variant="fp16", config=str(made.config))
    convert(made.file, tmp_path / "folder", options)
    assert (tmp_path / "folder/unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    assert (tmp_path / "folder/text_encoder/model.fp16.safetensors").is_file()
    convert(tmp_path / "folder", tmp_path / "back.safetensors", ConvertOptions(variant="fp16"))
    assert same(load_file(tmp_path / "back.safetensors"), after)


def test_values_that_do_not_fit_are_refused(case, tmp_path: Path):
    tensors = load_file(case("sd1").file)
    tensors[FIRST][0, 0, 0, 0] = 1e5
    save_file(tensors, tmp_path / "large.safetensors")
    with pytest.raises(BadValuesError, match="input_blocks"):
        half = ConvertOptions(dtype=torch.float16)
        convert(tmp_path / "large.safetensors", tmp_path / "half.safetensors", half)
    assert [path.name for path in tmp_path.iterdir()] == ["large.safetensors"]


def test_the_result_says_what_it_is(case, tmp_path: Path):
    made = case("sd2-v")
    said = {"sd.task": "txt2img", "sd.prediction": "v", "sd.weights": "raw", "format": "pt"}
    assert said.items() <= metadata(made.folder / "unused.safetensors").items()
    convert(made.folder, tmp_path / "back.safetensors")
    assert said.items() <= metadata(tmp_path / "back.safetensors").items()
    assert identify(tmp_path / "back.safetensors").prediction == identify(made.folder).prediction == "v"
    convert(made.file, tmp_path / "stated.safetensors", ConvertOptions(prediction="v"))
    assert identify(tmp_path / "stated.safetensors").prediction_source == "metadata"


def test_only_what_is_known_of_this_file_is_stated(case, tmp_path: Path):
    """What is usual for a kind of model is not the file's word: stated, it would keep a probe from work."""
    made, out = case("sd2-v"), tmp_path / "out.safetensors"
    unet = "model.diffusion_model."
    usual = {FIRST: torch.zeros(320, 4, 3, 3), f"{unet}x.attn2.to_k.weight": torch.zeros(8, 768)}
    save_file(usual, tmp_path / "usual.safetensors")
    assert identify(tmp_path / "usual.safetensors").prediction_source == "family"
    assert "sd.prediction" not in convert(tmp_path / "usual.safetensors", out).metadata
    marked = load_file(made.file) | {"v_pred": torch.zeros(0)}
    save_file(marked, tmp_path / "v.safetensors", {"modelspec.prediction_type": "v", "modelspec.title": "x"})
    done = convert(tmp_path / "v.safetensors", out, ConvertOptions(prediction="eps", overwrite=True))
    assert "modelspec.prediction_type" not in done.metadata and done.metadata["modelspec.title"] == "x"
    assert identify(out).prediction == "eps" and "v_pred" not in load_file(out)


def _sd1(prediction: str, source: str) -> Identity:
    config = "configs/stable-diffusion/v1-inference.yaml"
    return Identity("model", "1.x", "txt2img", prediction, source, config=config)


def test_a_file_that_says_what_it_predicts_is_believed_over_what_is_usual(case, tmp_path: Path):
    """The one published YAML of SD 1.x says eps."""
    described = _Described.by(ConvertOptions(), _sd1("v", "metadata"))
    assert described.prediction == "v"
    assert _Described.by(ConvertOptions(), _sd1("eps", "family")).prediction == "eps"
    made = case("sd2-v")
    save_file(load_file(made.file), tmp_path / "eps.safetensors", {"sd.prediction": "eps"})
    with pytest.raises(WrongModelError, match="predicts eps, but .* says parameterization: v"):
        convert(tmp_path / "eps.safetensors", tmp_path / "folder", ConvertOptions(config=str(made.config)))
    assert not (tmp_path / "folder").exists()


@pytest.mark.few(1)
@pytest.mark.parametrize("part", ["vae", "controlnet", "text_encoder"])
def test_a_part_alone_becomes_the_folder_of_the_part(case, tmp_path: Path, part: str):
    """The text encoder here is one with a block that diffusers has no place for."""
    made = case("sd2" if part == "text_encoder" else "controlnet")
    tensors = below(PARTS[part].prefix, load_file(made.file))
    save_file(tensors, tmp_path / "part.safetensors")
    convert(tmp_path / "part.safetensors", tmp_path / part, ConvertOptions(config=str(made.config)))
    assert identify(tmp_path / part).kind == part
    convert(tmp_path / part, tmp_path / "back.safetensors")
    assert same(below(PARTS[part].prefix, load_file(tmp_path / "back.safetensors")), tensors)
    if part == "controlnet":
        import diffusers

        diffusers.ControlNetModel.from_pretrained(tmp_path / part, local_files_only=True)


# What is refused leaves everything as it was.


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_overwritten_unless_asked(case, tmp_path: Path):
    made = case("sd2")
    options = ConvertOptions(config=str(made.config))
    convert(made.file, tmp_path / "folder", options)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="--overwrite"):
        convert(made.file, tmp_path / "folder", options)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("mine")
    with pytest.raises(InputError, match="no diffusers folder"):
        convert(made.file, tmp_path / "photos", replace(options, overwrite=True))
    (tmp_path / "photos" / "cat.txt").unlink()
    assert contents(tmp_path) == before
    (tmp_path / "folder" / "stray").write_text("of before")
    convert(made.file, tmp_path / "folder", replace(options, overwrite=True))
    assert contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "photos"}


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("source", "target", "options", "error", "text"),
    [
        ("folder", "other", ConvertOptions(), InputError, "ends in .safetensors"),
        ("model.safetensors", "out", ConvertOptions(), ConfigError, "give --config YAML"),
        ("model.safetensors", "out", ConvertOptions(config="sd1.yaml"), WrongModelError, "does not fit"),
        ("model.safetensors", "out", ConvertOptions("sd2.yaml", "v"), ConfigError, "parameterization"),
        ("model.safetensors", "a/b/out", ConvertOptions(config="sd2.yaml"), InputError, "there is no folder"),
        ("model.safetensors", "out.safetensors", ConvertOptions(weights="ema"), WrongModelError, "EMA copy"),
        ("folder", "out.safetensors", ConvertOptions(variant="fp16"), CheckpointError, "variant"),
    ],
)
def test_what_makes_no_sense_is_refused(
    case, tmp_path: Path, source: str, target: str, options: ConvertOptions, error: type, text: str
):
    if options.config:
        options = replace(options, config=str(tiny_config(options.config.removesuffix(".yaml"), tmp_path)))
    before = contents(tmp_path)
    with pytest.raises(error, match=text):
        convert(case("sd2").file.parent / source, tmp_path / target, options)
    assert contents(tmp_path) == before


def test_what_diffusers_cannot_express_is_refused(case, tmp_path: Path):
    made = case("sd2")
    node = json.loads(made.config.read_text())
    node["model"]["params"]["cond_stage_config"]["params"]["layer"] = "last"
    (tmp_path / "last.yaml").write_text(json.dumps(node))
    with pytest.raises(ConfigError, match="layer is 'last', which diffusers cannot express"):
        convert(made.file, tmp_path / "folder", ConvertOptions(config=str(tmp_path / "last.yaml")))
    assert not (tmp_path / "folder").exists()
