"""What the flags mean together: sampler, dtype, folder, prompts, the picture to start from.

Everything that can be refused is refused here, before the model is loaded.
"""

import argparse
import errno
import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ldm.cli.latents import Start
    from ldm.imaging.fit import Fit
    from ldm.tasks.hires import Hires
    from ldm.tasks.unclip import Mix

log = logging.getLogger(__name__)


def chosen_sampler(args: argparse.Namespace) -> str:
    """Return the sampler asked for: --sampler, else --plms, else --dpm, else ddim.

    Raises: InputError when --sampler contradicts a flag or is unknown, or cannot honour --eta or --schedule.
    """
    from ldm.samplers import find_sampler

    flag = "plms" if getattr(args, "plms", False) else "dpm" if getattr(args, "dpm", False) else None
    name = find_sampler(args.sampler).name if args.sampler is not None else None
    if flag and name and flag != name:
        raise InputError(
            f"--{flag} and --sampler {args.sampler} ask for different samplers; give one of them"
        )
    row = find_sampler(name or flag or "ddim")
    if (eta := chosen_eta(args)) and row.cls.default_eta is None:
        raise InputError(f"eta {eta:g}: {row.name} adds no noise; leave it out, or use ddim or euler_a")
    chosen_spacing(args, row.name)
    return row.name


def chosen_eta(args: argparse.Namespace) -> float | None:
    """Return --eta, else --ddim_eta; None is the sampler's own.

    What a script has as its --ddim_eta if nobody says (`usual_eta`) is for DDIM alone.

    Raises: InputError when both are given and differ.
    """
    from ldm.samplers import find_sampler

    eta, usual = getattr(args, "eta", None), getattr(args, "usual_eta", 0.0)
    if eta is None:
        other = args.sampler is not None and find_sampler(args.sampler).name != "ddim"
        return None if other and args.ddim_eta == usual else args.ddim_eta or None
    if args.ddim_eta not in (0, usual, eta):
        raise InputError(f"--eta {eta:g} and --ddim_eta {args.ddim_eta:g} contradict each other; give one")
    return eta


def chosen_spacing(args: argparse.Namespace, sampler: str) -> str | None:
    """Return --schedule, else the sampler's own; None stands for the published times.

    Those are what the published flags ask for; with --sampler, their exact counterpart takes their place.
    """
    from ldm.diffusion.spacing import check_spacing
    from ldm.samplers import find_sampler

    if args.schedule is not None:
        check_spacing(args.schedule)
        return args.schedule
    cls = find_sampler(sampler).cls
    return (cls.exact_spacing if args.sampler is not None else None) or cls.default_spacing


def check_seeds(args: argparse.Namespace, prompts: list[str]) -> None:
    """Raise InputError where the pictures of the run, each with its own seed, go beyond the last seed."""
    from ldm.tasks.draws import RNGS, check_seeds

    check_seeds(args.rng, args.seed, args.n_iter * len(prompts), args.fixed_code)
    if args.fixed_code and RNGS[args.rng].own_seeds and args.n_iter * len(prompts) > len(set(prompts)):
        log.warning("--fixed_code with --rng %s: all pictures of one prompt will be the same", args.rng)


def chosen_dtype(args: argparse.Namespace) -> str:
    """Return auto, float32, float16 or bfloat16 from --dtype, --precision and --bf16."""
    if getattr(args, "bf16", False):
        if args.dtype not in ("auto", "bfloat16"):
            raise InputError(f"--bf16 and --dtype {args.dtype} contradict each other; give one of them")
        return "bfloat16"
    if args.precision == "full":
        if args.dtype not in ("auto", "float32"):
            raise InputError(
                f"--precision full and --dtype {args.dtype} contradict each other; give one of them"
            )
        return "float32"
    return args.dtype


def chosen_outdir(args: argparse.Namespace) -> Path:
    """Return --outdir, which is made with the first picture.

    Raises: InputError when it cannot be a folder or cannot be written to.
    """
    if not args.outdir:
        raise InputError("--outdir needs a folder")
    path = Path(args.outdir)
    exists = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not exists.is_dir():
        raise InputError(f"--outdir {path}: cannot write there, {exists} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=exists):  # where there are rights, there may be no files: /proc
            return path
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(
            f"--outdir {path}: cannot write there, {exists} takes no files; give another folder"
        ) from error


def read_prompts(args: argparse.Namespace) -> list[str]:
    """Return the prompts of --from-file, each --repeat times, or that of --prompt for one whole batch.

    With --combinations --prompt is a template too, and what it stands for is as if it came from a file.
    A file is UTF-8 (a byte order mark is skipped), one prompt a line; an empty line is an empty prompt.
    Raises: InputError naming the file and line.
    """
    prompts_of = _expander(args)
    _read_syntax(args.negative_prompt, args)
    if args.from_file is None:
        if args.prompt is None:
            raise InputError("--prompt needs a text; an empty prompt is --prompt ''")
        prompts = prompts_of(check_text(args.prompt, "--prompt"), 0)
        copies = getattr(args, "repeat", 1) if args.combinations else args.n_samples
        return [text for text in prompts for _ in range(copies)]
    path = Path(args.from_file)
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise InputError(f"cannot read --from-file {path}: {error.strerror}") from error
    prompts = []
    for line_number, line in enumerate(lines, start=1):
        try:
            texts = prompts_of(line.decode(), line_number)
            prompts += [text for text in texts for _ in range(getattr(args, "repeat", 1))]
        except InputError as error:
            raise InputError(f"--from-file {path}, line {line_number}: {error}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"--from-file {path}, line {line_number}: not UTF-8; save the file as UTF-8"
            ) from error
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty and len(empty) < len(lines):
        what = f"line {empty[0]} is" if len(empty) == 1 else f"{len(empty)} lines are"
        log.info("--from-file %s: %s empty, and an empty prompt like any other", path, what)
    if not prompts:
        raise InputError(f"--from-file {path} is empty; expected one prompt a line")
    return prompts


def _expander(args: argparse.Namespace) -> Callable[[str, int], list[str]]:
    """Return what makes prompts of the text in line n: itself, or what it stands for with --combinations.

    All that comes out can be read in --prompt-syntax.
    """
    from ldm.prompts.combinations import Combinations

    if args.wildcards is not None and args.combinations is None:
        raise InputError("--wildcards is used by --combinations; add --combinations all, or random N")
    combinations = Combinations(args.wildcards)

    def prompts_of(text: str, line: int) -> list[str]:
        prompts = [text]
        if args.combinations == "all":
            prompts = combinations.all(text)
        elif args.combinations is not None:
            prompts = combinations.random(text, args.combinations[1], seed=line << 32 | args.seed)
        for prompt in prompts:
            _read_syntax(prompt, args)
        return prompts

    return prompts_of


def _read_syntax(text: str, args: argparse.Namespace) -> None:
    """Refuse what --prompt-syntax does not allow, before the model is loaded."""
    from ldm.prompts.syntaxes import parse

    parse(text, args.prompt_syntax)


def chosen_hires(args: argparse.Namespace) -> "Hires | None":
    """Return the second pass of --hires, None without it. Raises: InputError."""
    from ldm.tasks.hires import Hires

    if args.hires is None:
        return None
    return Hires(args.hires, args.hires_mode, args.hires_strength, args.hires_steps or args.steps)


def read_init(args: argparse.Namespace, start: "Start") -> "tuple[np.ndarray | Tensor, dict[str, Any]]":
    """Return the picture of --init-img, or the latents in its place, and what a picture remembers of it.

    Raises: InputError where both are given, or none, or a run goes on with another picture.
    """
    if start.latents is not None:
        if args.init_img:
            raise InputError("--init-img and --latents both say what to start from; give one of them")
        return start.latents.latents, start.record()
    return read_same_image(args, start)


def read_same_image(args: argparse.Namespace, start: "Start") -> "tuple[np.ndarray, dict[str, Any]]":
    """Return the picture of --init-img, and what a picture made from it remembers.

    Raises: InputError where there is none, or a run goes on with another.
    """
    image, record = read_init_image(args)
    before = {} if start.stopped is None else start.stopped.record.get("init_image")
    if before and before != record:
        path = start.stopped.path
        raise InputError(f"--init-img {args.init_img} is another picture than {path} began with")
    return image, {"init_image": record}


def read_masked(
    args: argparse.Namespace, start: "Start"
) -> "tuple[np.ndarray, np.ndarray, dict[str, Any]]":
    """Return the picture of --init-img, with its alpha if it has one, the mask, and what is remembered.

    The mask is --mask, or what is transparent in the picture, inverted and grown as the flags say.

    Raises: InputError where one is missing, they do not fit, or a run goes on with others.
    """
    import numpy as np

    from ldm.imaging import masks
    from ldm.imaging.files import has_alpha, open_image

    if start.latents is not None:
        raise InputError("--latents goes on with a stopped run here; a picture to change is --init-img")
    if args.raw and (args.only_masked is not None or args.mask_blur):
        other = "--mask-blur" if args.only_masked is None else "--only-masked"
        raise InputError(f"--raw gives the whole picture as the model made it; leave out that or {other}")
    if args.only_masked is not None and args.save_latents:
        raise InputError("--save-latents: with --only-masked they are of a part; leave out one of them")
    if not args.init_img:
        raise InputError("--init-img needs a picture to change")
    image = np.asarray(open_image(args.init_img, alpha=has_alpha(args.init_img)))
    height, width, channels = image.shape
    about = {"init_image": _of_file(args.init_img), "mask": "alpha"}
    if args.mask:
        given = masks.from_picture(np.asarray(open_image(args.mask, alpha=True)))
        about["mask"] = _of_file(args.mask)
    elif channels == 4 and image[:, :, 3].min() < 255:
        given = masks.from_alpha(image)
    else:
        raise InputError(
            f"what to paint in {args.init_img}? Give --mask FILE, white there, or a picture that is "
            "transparent there"
        )
    for name, flag in (("init_image", f"--init-img {args.init_img}"), ("mask", f"--mask {args.mask}")):
        if start.stopped is not None and start.stopped.record.get(name) != about[name]:
            raise InputError(f"{flag} is another picture than {start.stopped.path} began with")
    masks.check(given, height, width)
    mask = masks.prepared(given, invert=args.invert_mask, grow=args.mask_grow)
    masks.check_paints(mask)
    return image, mask, about


def read_growing(
    args: argparse.Namespace, start: "Start"
) -> "tuple[np.ndarray, dict[str, int], dict[str, Any]]":
    """Return the picture of --init-img, with its alpha if it has one, how much it grows at each side, and
    what is remembered.

    Raises: InputError where there is none, it grows by nothing or too much, or a run goes on with another.
    """
    import numpy as np

    from ldm.imaging.canvas import Margins
    from ldm.imaging.files import has_alpha, open_image

    if start.latents is not None:
        raise InputError("--latents goes on with a stopped run here; a picture to enlarge is --init-img")
    if not args.init_img:
        raise InputError("--init-img needs a picture to enlarge")
    image = np.asarray(open_image(args.init_img, alpha=has_alpha(args.init_img)))
    margins = Margins(args.left, args.right, args.up, args.down)
    if not any(margins):
        raise InputError("nothing to add: give --left, --right, --up or --down PIXELS")
    margins.canvas(*image.shape[:2])
    about = {"init_image": _of_file(args.init_img)}
    stopped = start.stopped
    if stopped is not None and stopped.record.get("init_image") != about["init_image"]:
        raise InputError(f"--init-img {args.init_img} is another picture than {stopped.path} began with")
    return image, margins._asdict(), about


def read_init_image(args: argparse.Namespace) -> "tuple[np.ndarray, dict[str, str]]":
    """Return the pixels (h, w, 3) uint8 of --init-img and what a picture made from it remembers."""
    if not args.init_img:
        raise InputError("--init-img needs a picture to start from")
    return _read_picture(args.init_img)


def read_init_images(
    args: argparse.Namespace, start: "Start"
) -> "tuple[list[np.ndarray], Mix, dict[str, Any]]":
    """Return the pictures of --init-img, how they are mixed, and what a picture remembers of both.

    Raises: InputError where there is none, weights or levels do not fit, or a run goes on with others.
    """
    from ldm.tasks.unclip import MIX_NOISE_LEVEL, Mix

    if not args.init_img:
        raise InputError("--init-img needs a picture to vary, or several")
    asked = args.mix_noise_level
    if asked is not None and len(args.init_img) == 1:
        raise InputError(f"--mix-noise-level {asked} is of a mix, and there is one --init-img; leave it out")
    again = {None: MIX_NOISE_LEVEL, "off": None}.get(asked, asked)
    mix = Mix.of(len(args.init_img), args.image_weights, args.noise_level, again)
    images, pictures = zip(*map(_read_picture, args.init_img), strict=True)
    before = [] if start.stopped is None else start.stopped.record.get("init_images")
    told = zip(pictures, mix.weights, mix.noise_level, strict=True)
    record = [picture | {"weight": weight, "noise_level": level} for picture, weight, level in told]
    if before and before != record:
        changed = [file for file, was, now in zip(args.init_img, before, record, strict=True) if was != now]
        raise InputError(f"--init-img {changed[0]} is another picture than {start.stopped.path} began with")
    return list(images), mix, {"init_images": record, "mix_noise_level": mix.mix_noise_level}


def _read_picture(path: str) -> "tuple[np.ndarray, dict[str, str]]":
    """Return the pixels (h, w, 3) uint8 of a picture and what one that is made from it remembers."""
    import numpy as np

    from ldm.imaging.files import open_image

    return np.asarray(open_image(path)), _of_file(path)


def _of_file(path: str) -> dict[str, str]:
    """Return what a picture remembers of a file that it was made from."""
    return {"file": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def chosen_fit(args: argparse.Namespace, image: "np.ndarray | Tensor") -> "Fit | None":
    """Return how --fit, --H and --W bring the picture to its size; None for latents in place of one.

    Raises: InputError where they contradict each other or the picture, or there is no picture to fit.
    """
    import numpy as np

    from ldm.imaging.fit import choose_fit

    if isinstance(image, np.ndarray):
        return choose_fit(image, args.fit, args.H, args.W)
    for flag, value in (("--fit", args.fit), ("--H", args.H), ("--W", args.W)):
        if value is not None:
            raise InputError(f"{flag} {value}: --latents are no picture to fit; leave it out")
    return None


def check_text(text: str, flag: str) -> str:
    """Return the text. Raises: InputError when the shell handed over bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{flag} is not valid UTF-8") from error
    return text


def check_overlap(args: argparse.Namespace) -> None:
    """Refuse --overlap without the tiles that overlap."""
    if args.overlap is not None and args.tile is None:
        raise InputError(f"--overlap {args.overlap} is of tiles; give --tile too")
