"""The flags that only the reference scripts have, folded into the options of a request.

    --plms, --dpm            --sampler, at the reference's own times
    --ddim_eta               --eta, of ddim
    --precision, --bf16      --dtype
    --ipex                   --channels-last
    --torchscript            nothing

Nothing behind the command line knows of them.
"""

import argparse
import logging
from typing import Any

from ldm.cli.parser import Parser, argument_type
from ldm.errors import InputError
from ldm.requests import Request, fields_of
from ldm.requests.fields import number

log = logging.getLogger(__name__)


class _ListSamplers(argparse.Action):
    """Prints the table of samplers and exits."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None, **_: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from ldm.samplers import sampler_table

        print(sampler_table())
        parser.exit()


def add(parser: Parser, sections: dict[str, Any], eta: float) -> None:
    """Add the flags of the reference scripts, and --list-samplers; `eta` is ddim's if none is given."""
    sampling, model = sections["sampling"], sections["model"]
    sampling.add_argument("--list-samplers", action=_ListSamplers, help="print all samplers and exit")
    sampling.add_argument(
        "--ddim_eta", type=argument_type(number(0)), metavar="ETA",
        help=f"--eta for the ddim sampler (default: {eta})",
    )  # fmt: skip
    model.add_argument(
        "--precision", choices=("full", "autocast"), help="full is --dtype float32 (default: autocast)"
    )
    sampling.add_argument("--plms", action="store_true", help="--sampler plms --schedule reference")
    sampling.add_argument("--dpm", action="store_true", help="--sampler dpm --schedule reference")
    intel = parser.add_argument_group("reference flags for Intel processors")
    intel.add_argument("--bf16", action="store_true", help="--dtype bfloat16; overrides --precision full")
    intel.add_argument("--torchscript", action="store_true", help="accepted without effect")
    intel.add_argument(
        "--ipex", action="store_true", help="--channels-last; the extension itself is no longer needed"
    )


def folded(cls: type[Request], given: dict[str, Any]) -> dict[str, Any]:
    """Return what flags mean as options of the request. Raises: InputError where they contradict."""
    values = dict(given)
    plms, dpm = values.pop("plms", False), values.pop("dpm", False)
    _fold_sampler(values, "plms" if plms else "dpm" if dpm else None)
    _fold_eta(values, values.pop("ddim_eta", None), fields_of(cls)["eta"].option.usual)
    _fold_dtype(values, values.pop("precision", "autocast"), values.pop("bf16", False))
    if values.pop("torchscript", False):
        log.info("--torchscript has no effect: nothing is traced, and the images are the same without it")
    if values.pop("ipex", False):
        values["channels_last"] = True
        log.info("--ipex only sets channels-last: the extension is discontinued and PyTorch itself is used")
    return values


def _fold_sampler(values: dict[str, Any], flag: str | None) -> None:
    if flag is None:
        return
    if values.get("sampler") is None:
        values["sampler"] = flag
        values.setdefault("schedule", "reference")
        return
    from ldm.samplers import find_sampler

    if find_sampler(values["sampler"]).name != flag:
        raise InputError(
            f"--{flag} and --sampler {values['sampler']} ask for different samplers; give one of them"
        )


def _fold_eta(values: dict[str, Any], ddim_eta: float | None, usual: float) -> None:
    """--ddim_eta is --eta for ddim; with another sampler a value that says nothing is passed over."""
    if ddim_eta is None:
        return
    eta = values.get("eta")
    if eta is not None:
        if ddim_eta not in (0, usual, eta):
            raise InputError(f"--eta {eta:g} and --ddim_eta {ddim_eta:g} contradict each other; give one")
        return
    is_ddim = values.get("sampler") is None
    if not is_ddim:
        from ldm.samplers import find_sampler

        is_ddim = find_sampler(values["sampler"]).name == "ddim"
    if is_ddim or ddim_eta not in (0, usual):
        values["eta"] = ddim_eta


def _fold_dtype(values: dict[str, Any], precision: str, bf16: bool) -> None:
    dtype = values.get("dtype", "auto")
    if bf16:
        if dtype not in ("auto", "bfloat16"):
            raise InputError(f"--bf16 and --dtype {dtype} contradict each other; give one of them")
        values["dtype"] = "bfloat16"
    elif precision == "full":
        if dtype not in ("auto", "float32"):
            raise InputError(f"--precision full and --dtype {dtype} contradict each other; give one of them")
        values["dtype"] = "float32"
