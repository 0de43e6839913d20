"""Read the input files of a request, and check everything that does not require the model.

    request = load_inputs(Inpaint(init_img="room.png", mask="sofa.png", prompt="a red armchair"))
    request.init_img.values     # (h, w, 3) uint8
    request.prompts             # one prompt for each image of a pass

Instead of a path, an option may be an array, a PIL image, or the result of an earlier call.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ldm.errors import InputError
from ldm.prompts.files import lines_of
from ldm.requests import Request, fields_of
from ldm.requests.loaded import InputArray
from ldm.requests.resolving import sampler_options

R = TypeVar("R", bound=Request)

log = logging.getLogger(__name__)


def load_inputs(request: R, steered: bool = True) -> R:
    """Return the request with its files read; files that are already loaded are not read again.

    Args:
        steered: also read the images of its controls, which decoding does without.

    Raises:
        InputError: a file cannot be read, or options contradict each other or a file.
    """
    from ldm.tasks.generate import task_of
    from ldm.tasks.noise import RNGS, check_seeds
    from ldm.tasks.steering import read_controls

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
    request = task_of(type(request)).load(request)
    return read_controls(request) if steered else request


def digests(request: Request) -> dict[str, Any]:
    """Return the file name and SHA-256 of every input of a loaded request, by option."""
    found = {}
    for name in fields_of(type(request)):
        value = getattr(request, name)
        if isinstance(value, InputArray):
            found[name] = _digest(value)
        elif name == "controls":
            images = [unit.image for unit in value if isinstance(unit.image, InputArray)]
            found |= {name: [_digest(image) for image in images]} if images else {}
        elif isinstance(value, tuple) and value and isinstance(value[0], InputArray):
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
    added = getattr(request, "added_prompt", "")
    return [f"{prompt}, {added}" if added else prompt for prompt in _given_prompts(request)]


def _given_prompts(request: Request) -> list[str]:
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
