"""Read the input files of a request, and check everything that does not require the model.

    request = load_inputs(Inpaint(init_img="room.png", mask="sofa.png", prompt="a red armchair"))
    request.init_img.values     # (h, w, 3) uint8
    request.prompts             # one prompt for each image of a pass

Instead of a path, an option may be an array, a PIL image, or the result of an earlier call.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ldm.config import find_weights
from ldm.errors import InputError
from ldm.files.digest import fresh_sha256
from ldm.prompts.files import lines_of
from ldm.requests import Request, fields_of
from ldm.requests.loaded import InputArray
from ldm.requests.resolving import sampler_options
from ldm.wording import script

if TYPE_CHECKING:
    import numpy as np

R = TypeVar("R", bound=Request)

log = logging.getLogger(__name__)


def load_inputs(request: R) -> R:
    """Return the request with its files read; files that are already loaded are not read again.

    Raises:
        InputError: a file cannot be read, or options contradict each other or a file.
    """
    from ldm.tasks.noise import RNGS, check_seeds

    if request.quality is not None and request.format == "png":
        raise InputError(f"--quality {request.quality} is for --format jpg or webp; png keeps every pixel")
    if request.overlap is not None and request.tile is None:
        raise InputError(f"--overlap {request.overlap} requires --tile")
    request = replace(request, prompts=request.prompts or tuple(read_prompts(request)))
    _check_prompts(request)
    sampler_options(request)
    total = request.n_iter * len(request.prompts)
    check_seeds(request.rng, request.seed, total, request.fixed_code)
    if request.fixed_code and RNGS[request.rng].own_seeds and total > len(set(request.prompts)):
        log.warning("--fixed_code with --rng %s: all images of one prompt will be the same", request.rng)
    return _LOADERS.get(type(request).__name__, _noise)(request)


def digests(request: Request) -> dict[str, Any]:
    """Return the file name and SHA-256 of every input of a loaded request, by option."""
    found = {}
    for name in ("init_img", "mask", "depth", "latents"):
        value = getattr(request, name, None)
        if isinstance(value, InputArray):
            found[name] = _digest(value)
        elif isinstance(value, tuple) and value:
            found[name] = [_digest(each) for each in value]
    return found


def _digest(value: InputArray) -> dict[str, Any]:
    return {"file": value.file and Path(value.file).name, "sha256": value.sha256}


def read_prompts(request: Request) -> list[str]:
    """Return one prompt for each image of a pass.

    These are the lines of --from-file, each --repeat times, or --prompt for one whole batch. With
    --combinations a prompt is a template, whose expansions are treated as if they came from a file. Files are
    UTF-8, with or without a byte order mark, and have one prompt per line; an empty line is an empty prompt.

    Raises: InputError with the file and line.
    """
    if not hasattr(request, "prompt"):  # a task without prompts
        return [""] * request.n_samples
    expand, repeat = _expander(request), getattr(request, "repeat", 1)
    if request.from_file is None:
        prompts = expand(_checked_text(request.prompt), 0)
        copies = repeat if request.combinations else request.n_samples
        return [text for text in prompts for _ in range(copies)]
    path = Path(request.from_file)
    if request.prompt != fields_of(type(request))["prompt"].default:
        log.warning("--prompt is not used: the prompts are those of --from-file %s", path)
    try:
        lines = lines_of(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read --from-file {path}: {error.strerror}") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        try:
            prompts += [text for text in expand(line.decode(), number) for _ in range(repeat)]
        except InputError as error:
            raise InputError(f"--from-file {path}, line {number}: {error}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"--from-file {path}, line {number}: not UTF-8; save the file as UTF-8"
            ) from error
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty and len(empty) < len(lines):
        what = f"line {empty[0]} is" if len(empty) == 1 else f"{len(empty)} lines are"
        log.info("--from-file %s: %s empty and used as an empty prompt", path, what)
    if not prompts:
        raise InputError(f"--from-file {path} is empty; expected one prompt per line")
    return prompts


def _expander(request: Request) -> Callable[[str, int], list[str]]:
    """Return a function of (text, line number) that returns its prompts, expanded with --combinations."""
    from ldm.prompts.combinations import Combinations

    if request.wildcards is not None and request.combinations is None:
        raise InputError("--wildcards requires --combinations; add --combinations all, or random N")
    combinations = Combinations(request.wildcards)

    def expand(text: str, line: int) -> list[str]:
        prompts = [text]
        if request.combinations == "all":
            prompts = combinations.all(text)
        elif request.combinations is not None:
            prompts = combinations.random(text, request.combinations[1], seed=line << 32 | request.seed)
        for prompt in prompts:
            _check_syntax(prompt, request)
        return prompts

    return expand


def _check_prompts(request: Request) -> None:
    """Check the syntax of all prompts, and say what in them is taken literally. Raises: InputError."""
    from ldm.prompts.syntaxes import advice

    syntax, expands = getattr(request, "prompt_syntax", "plain"), bool(getattr(request, "combinations", None))
    found = []
    for prompt in dict.fromkeys((*request.prompts, request.negative_prompt)):
        _check_syntax(prompt, request)
        found += filter(None, [advice(prompt, syntax, expands)])
    if found:
        more = f" (the first of {len(found)} such prompts)" if len(found) > 1 else ""
        log.warning("%s%s", found[0], more)


def _check_syntax(text: str, request: Request) -> None:
    from ldm.prompts.syntaxes import parse

    parse(text, getattr(request, "prompt_syntax", "plain"))


def _checked_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("--prompt is not valid UTF-8") from error
    return text


def read_image(value: Any, alpha: bool = False) -> InputArray:
    """Return an upright image (h, w, 3) uint8 in sRGB.

    Args:
        value: a path, a PIL image, or an array (h, w, 3) or, with `alpha`, (h, w, 4) uint8.
        alpha: its bytes are to be kept: (h, w, 4) if it has transparency, and in the colours of its profile.

    Raises: InputError.
    """
    import numpy as np

    from ldm.imaging.files import converted, open_image

    if isinstance(value, InputArray):
        return value
    if isinstance(value, (str, os.PathLike)):
        image = open_image(value, alpha=None if alpha else False, own_colours=alpha)
        profile = image.info.get("icc_profile")
        return InputArray(np.asarray(image), _sha256(value), os.fspath(value), profile)
    if hasattr(value, "has_transparency_data"):  # a PIL image
        image = converted(value, "the image", alpha=None if alpha else False, own_colours=alpha)
        return replace(_of_array(np.asarray(image)), about=image.info.get("icc_profile"))
    channels = (3, 4) if alpha else (3,)
    if getattr(value, "dtype", None) != np.uint8 or value.ndim != 3 or value.shape[2] not in channels:
        expected = " or ".join(map(str, channels))
        got = f"{getattr(value, 'dtype', type(value).__name__)} {getattr(value, 'shape', '')}"
        raise InputError(f"got an image of {got}; expected uint8 (height, width, {expected})")
    return _of_array(value)


def _of_array(values: "np.ndarray") -> InputArray:
    return InputArray(values, hashlib.sha256(values.tobytes()).hexdigest())


def _sha256(path: Any) -> str:
    return fresh_sha256(os.path.expanduser(path))


def _need(value: Any, what: str) -> Any:
    """Return `value`, which must be given."""
    if value is None or (isinstance(value, (str, tuple)) and not value):
        raise InputError(f"--init-img is missing: give {what}")
    return value


def _noise(request: R, finished: bool = False) -> R:
    """Read --latents: noise to start from, or with `finished` also the latents of a finished image."""
    if request.latents is None or isinstance(request.latents, InputArray):
        return request
    import torch

    from ldm.tasks.latents import read_latents

    if isinstance(request.latents, torch.Tensor):
        values = request.latents.float().reshape(-1, *request.latents.shape[-3:])
        return replace(request, latents=InputArray(values, _of_array(values.cpu().numpy()).sha256))
    file = read_latents(request.latents)
    if file.kind == "stopped":
        raise InputError(
            f"{file.path} is an interrupted run, not noise: resume it on its own, with "
            f"{script(file.record.get('task'))} --latents {file.path}"
        )
    if file.kind == "final" and not finished:
        raise InputError(
            f"{file.path} contains the latents of a finished image, but this task starts from noise; use "
            f"{script('img2img')}"
        )
    size = (file.record["height"], file.record["width"]) if "height" in file.record else None
    loaded = InputArray(file.latents, _sha256(file.path), os.fspath(request.latents), size)
    return replace(request, latents=loaded)


def _img2img(request: R) -> R:
    from ldm.imaging.fit import choose_fit

    request = _noise(request, finished=True)
    if request.latents is None:
        image = read_image(_need(request.init_img, "the image to start from"))
        choose_fit(image.values, request.fit, request.height, request.width)
        return replace(request, init_img=image)
    if request.init_img is not None:
        raise InputError("--init-img and --latents both give the image to start from; use one of them")
    for flag, value in (("--fit", request.fit), ("--H", request.height), ("--W", request.width)):
        if value is not None:
            raise InputError(f"{flag} {value} cannot be combined with --latents, which have their own size")
    return request


def _no_latents(request: Request) -> None:
    if request.latents is not None:
        raise InputError(
            f"--latents {request.latents} is not an interrupted run, and this task can only resume one; give "
            "an image with --init-img"
        )


def _inpaint(request: R) -> R:
    from ldm.imaging import masks

    _no_latents(request)
    if request.raw and (request.only_masked is not None or request.mask_blur):
        other = "--mask-blur" if request.only_masked is None else "--only-masked"
        raise InputError(f"--raw outputs the decoded image as it is, so it cannot be combined with {other}")
    if request.only_masked is not None and request.save_latents:
        raise InputError(
            "--save-latents cannot be combined with --only-masked, whose latents cover only the cropped "
            "region"
        )
    image = read_image(_need(request.init_img, "the image to repaint"), alpha=True)
    _check_alpha(image, request, to_paste=not request.raw)
    height, width = image.values.shape[:2]
    mask = _mask(request.mask, image)
    masks.check(mask.values, height, width)
    masks.check_paints(masks.prepared(mask.values, invert=request.invert_mask, grow=request.mask_grow))
    return replace(request, init_img=image, mask=mask)


def _check_alpha(image: InputArray, request: Request, to_paste: bool = True) -> None:
    """Refuse a format that would lose the alpha of an image that is pasted back."""
    if to_paste and request.format == "jpg" and image.values.shape[2] == 4:
        name = image.file or "the image"
        raise InputError(f"--format jpg cannot hold the transparency of {name}; use png or webp")


def _mask(given: Any, image: InputArray) -> InputArray:
    """Return the mask of --mask, or of the transparent part of the image."""
    import numpy as np

    from ldm.imaging import masks
    from ldm.imaging.files import open_image, quietly

    if isinstance(given, InputArray) and given.about in (None, image.sha256):
        return given
    if isinstance(given, (str, os.PathLike)) and given:
        with quietly():  # no colour of a mask is kept or seen
            pixels = np.asarray(open_image(given, alpha=True, own_colours=True))
        try:
            return InputArray(masks.from_image(pixels), _sha256(given), os.fspath(given))
        except InputError as error:
            raise InputError(f"--mask {given}: {error}") from error
    if given is not None and not isinstance(given, (str, InputArray)):
        return _of_array(np.asarray(given, np.float32))
    if image.values.shape[2] == 4 and image.values[:, :, 3].min() < 255:
        return InputArray(masks.from_alpha(image.values), image.sha256, about=image.sha256)
    raise InputError(
        f"nothing selects what to repaint in {image.file or 'the image'}; give --mask FILE, which is "
        "white there, or an image that is transparent there"
    )


def _outpaint(request: R) -> R:
    from ldm.imaging.canvas import Margins

    _no_latents(request)
    image = read_image(_need(request.init_img, "the image to extend"), alpha=True)
    _check_alpha(image, request)
    margins = Margins(request.left, request.right, request.up, request.down)
    if not any(margins):
        raise InputError("nothing to add: give --left, --right, --up or --down PIXELS")
    margins.canvas(*image.values.shape[:2])
    return replace(request, init_img=image)


def _upscale(request: R) -> R:
    request = _noise(request)
    return replace(request, init_img=read_image(_need(request.init_img, "the image to enlarge")))


def _unclip(request: R) -> R:
    from ldm.tasks.unclip import Mix

    request = _noise(request)
    given = _need(request.init_img, "the image to vary, or several")
    if request.mix_noise_level is not None and len(given) == 1:
        raise InputError(f"--mix-noise-level {request.mix_noise_level} needs more than one --init-img")
    Mix.of(len(given), request.image_weights, request.noise_level)
    return replace(request, init_img=tuple(read_image(each) for each in given))


def _depth2img(request: R) -> R:
    from ldm.imaging.files import quietly
    from ldm.tasks.depth2img import check_size, chosen_strength

    _no_latents(request)
    _check_depth_options(request)
    with quietly() if request.depth_from == "alpha" else nullcontext():  # there transparency is the depth
        image = None if request.init_img is None else read_image(request.init_img)
    depth = _depth(request)
    height = width = None
    if depth is not None:
        height, width = image.values.shape[:2] if image else _in_proportion(request, depth.values.shape)
        check_size(depth.values.shape, height, width)
    size = {} if image is not None else {"height": height, "width": width}
    strength = chosen_strength(image is not None, request.strength)
    return replace(request, init_img=image, depth=depth, strength=strength, **size)


def _check_depth_options(request: Request) -> None:
    if any(isinstance(each, str) and not each for each in (request.init_img, request.depth)):
        raise InputError("--init-img and --depth need a file name; got an empty one")
    if request.init_img is None and request.depth is None:
        raise InputError("give an image (--init-img FILE), a depth map (--depth FILE), or both")
    is_file = isinstance(request.depth, (str, os.PathLike))
    if is_file and (request.depth_from or request.depth_ckpt):
        other = "--depth-from" if request.depth_from else "--depth-ckpt"
        raise InputError(f"--depth and {other} are both sources of the depth; give only one of them")
    if request.depth_invert and request.depth is None:
        raise InputError("--depth-invert requires --depth FILE")
    if request.depth_from == "alpha" and request.depth_ckpt:
        raise InputError("--depth-from alpha does not use a depth network; leave --depth-ckpt out")
    if request.depth_ckpt and not find_weights(request.depth_ckpt).exists():
        raise InputError(f"--depth-ckpt {request.depth_ckpt}: there is no such file")
    if request.init_img is not None and (request.height or request.width):
        raise InputError("--H and --W are for runs without --init-img, whose size the result has otherwise")


def _depth(request: Request) -> InputArray | None:
    """Return the depth map (h, w); None if the depth network should estimate it."""
    import numpy as np

    from ldm.imaging.depth import known_depth, read_depth
    from ldm.imaging.files import open_image
    from ldm.tasks.depth2img import alpha_depth

    given = request.depth
    if isinstance(given, InputArray):
        known_depth(given.values, request.depth_invert)
        return given
    if given is not None and not isinstance(given, (str, os.PathLike)):
        values = np.asarray(given, np.float32)
        known_depth(values, request.depth_invert)  # refuses maps without depth
        return _of_array(values)
    if given:
        values = read_depth(Path(given))
        try:
            known_depth(values, request.depth_invert)
        except InputError as error:
            raise InputError(f"--depth {given}: {error}") from error
        return InputArray(values, _sha256(given), os.fspath(given))
    if request.depth_from == "alpha":
        try:
            alpha = np.asarray(open_image(request.init_img, alpha=True))[..., 3]
            return _of_array(alpha_depth(alpha))
        except InputError as error:
            raise InputError(f"--depth-from alpha: {error}") from error
    return None


def _in_proportion(request: Request, shape: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the result without --init-img; one given side scales the other."""
    h, w = shape
    height = request.height or (max(1, round(h * request.width / w)) if request.width else h)
    return height, request.width or max(1, round(w * height / h))


_LOADERS: dict[str, Callable[[Any], Any]] = {
    "Img2Img": _img2img, "Inpaint": _inpaint, "Outpaint": _outpaint, "Depth2Img": _depth2img,
    "Upscale": _upscale, "Unclip": _unclip,
}  # fmt: skip
