"""The command of scripts/identify.py: it prints a table for one file, one line each for several, or JSON."""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import app
from ldm.cli.parser import Parser, add_messages
from ldm.errors import CheckpointError, LdmError

if TYPE_CHECKING:
    from ldm.checkpoint.identity import Identity

Result = tuple[str, "Identity | LdmError"]

SOURCES = {
    "metadata": "its metadata say so",
    "scheduler_config": "its scheduler_config.json says so",
    "family": "as all reference models of this kind do",
    "probe": "found by evaluating the UNet once",
}
PREDICTIONS = {"eps": "eps, the noise", "v": "v, the velocity"}
WEIGHTS = {
    "raw": "one set",
    "ema": "one set, the EMA weights",
    "raw+ema": "two sets, raw and EMA weights",
}
LAYOUTS = {"published": "the reference's tensor names", "diffusers": "the tensor names of diffusers"}


def make_parser(description: str | None) -> Parser:
    parser = Parser(description=description)
    parser.add_argument("files", nargs="+", metavar="FILE", help="weights, or a diffusers folder")
    parser.add_argument("--json", action="store_true", help="print an object, or a list for several files")
    parser.add_argument("--hash", action="store_true", help="compute the SHA-256, which reads the whole file")
    parser.add_argument(
        "--probe", action="store_true",
        help="if the file does not say whether it predicts eps or v, load it and evaluate the UNet once",
    )  # fmt: skip
    add_messages(parser)
    return parser


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run scripts/identify.py: parse the command line, carry it out, and return the exit code."""
    return app.exit_code(make_parser(description), _identify, argv)


def _identify(args: argparse.Namespace) -> None:
    show(args.json, identify_all(args.files, args.probe, args.hash))


def identify_all(files: Sequence[str], probe: bool, compute_digest: bool) -> list[Result]:
    """Identify every file; the failure of one does not affect the others."""
    from ldm.checkpoint.identification import described, open_headers
    from ldm.jobs.choosing import check_loads

    results: list[Result] = []
    for file in files:
        try:
            headers = open_headers(file)
            identity = described(headers)
            check_loads(headers, identity)
            if probe:
                identity = _probed(identity)
            results.append((file, replace(identity, sha256=_digest(file, compute_digest))))
        except LdmError as error:
            results.append((file, error))
        except OSError as error:
            results.append((file, CheckpointError(f"{file}: cannot be read ({app.describe(error)[0]})")))
    return results


def show(as_json: bool, results: list[Result]) -> None:
    """Print the results.

    Raises:
        LdmError: a file failed; it is raised after all results are printed.
    """
    failed = [(file, found) for file, found in results if isinstance(found, LdmError)]
    if as_json:
        records = [_record(file, found) for file, found in results]
        print(json.dumps(records if len(results) > 1 else records[0], indent=2))
    elif len(results) == 1:
        if not failed:
            print(table(results[0][1]))
    else:
        print("\n".join(_lines(results)))
    if failed:
        if len(results) == 1:
            raise failed[0][1]
        raise CheckpointError(f"{len(failed)} of {len(results)} files cannot be used")


def table(identity: "Identity") -> str:
    """Return an aligned table of everything that is known."""
    rows = [
        ("is", _headline(identity)),
        ("predicts", _prediction(identity)),
        ("weights", WEIGHTS.get(identity.weights or "") if identity.is_model else None),
        ("rank", identity.rank),
        ("vectors", _vectors(identity)),
        ("parameters", _parameters(identity)),
        ("stored as", _dtypes(identity)),
        ("container", ", ".join(filter(None, (identity.container, _layout(identity))))),
        ("size", _bytes(identity.bytes)),
        ("sha256", identity.sha256 or "not computed; --hash computes it"),
        ("config", _config(identity)),
        *(("note", note) for note in identity.notes),
    ]
    shown = [(label, value) for label, value in rows if value]
    return "\n".join([str(identity.path), *(f"  {label:<10}  {value}" for label, value in shown)])


def _headline(identity: "Identity") -> str:
    names_variant = identity.variant and identity.kind != "controlnet"
    return identity.sentence() + (f" [{identity.variant}]" if names_variant else "")


def _prediction(identity: "Identity") -> str | None:
    if identity.prediction:
        return f"{PREDICTIONS[identity.prediction]} ({SOURCES[identity.prediction_source]})"
    if not identity.is_model:
        return None
    ways = "--probe or loading it" if identity.config or identity.family else "loading it"
    return f"eps or v: the file does not say which, but {ways} finds out"


def _vectors(identity: "Identity") -> str | None:
    return f"{identity.vectors} of width {identity.context_width}" if identity.vectors else None


def _parameters(identity: "Identity") -> str:
    parts = {part: count for part, count in identity.parameters.items() if part}
    total = sum(identity.parameters.values())
    each = ", ".join(f"{part} {_millions(count)}" for part, count in parts.items())
    return f"{each} ({_millions(total)} in total)" if len(parts) > 1 else each or _millions(total)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 50_000 else f"{count:,}"


def _dtypes(identity: "Identity") -> str:
    by_size = sorted(identity.dtypes.items(), key=lambda item: -item[1])
    return ", ".join(f"{dtype} {_bytes(size)}" for dtype, size in by_size)


def _layout(identity: "Identity") -> str | None:
    return LAYOUTS.get(identity.layout, f"{identity.layout} tensor names") if identity.layout else None


def _config(identity: "Identity") -> str | None:
    from ldm.jobs.choosing import own_yaml

    if not identity.is_model:
        return identity.config
    own = own_yaml(identity)
    if own or identity.config:
        return f"{own}, which is next to it" if own else identity.config
    if identity.family == "2.x" and identity.prediction is None:
        from ldm.checkpoint.classify import TEXT_TO_IMAGE_2

        return " or ".join(Path(name).name for name in TEXT_TO_IMAGE_2.values()) + ", by what it predicts"
    return "none of the included ones fits: load it with --config FILE.yaml"


def _bytes(count: int | None) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count is not None and count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


def _lines(results: Iterable[Result]) -> list[str]:
    """Return a line for each file: name, size, dtype, prediction, and what it is."""
    rows = []
    for file, found in results:
        name = Path(file).name or file
        if isinstance(found, LdmError):
            rows.append((name, "-", "-", "-", str(found).removeprefix(f"{file}: ")))
            continue
        dtype = max(found.dtypes, key=lambda dtype: found.dtypes[dtype], default="-")
        rows.append((name, _bytes(found.bytes), dtype, found.prediction or "-", found.sentence()))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(f"{row[i]:<{widths[i]}}" for i in range(4)), row[4]]) for row in rows]


def _record(file: str, found: "Identity | LdmError") -> dict[str, Any]:
    if isinstance(found, LdmError):
        return {"path": file, "error": str(found), "error_kind": type(found).__name__}
    return found.record()


def _digest(file: str, compute: bool) -> str | None:
    """Return the SHA-256 of a file: computed if asked for, else one that is known already."""
    from ldm.config import find_weights

    path = find_weights(file)
    if not path.is_file():
        return None
    from ldm.files.digest import known_sha256, sha256

    return sha256(path, afresh=True) if compute else known_sha256(path)


def _probed(identity: "Identity") -> "Identity":
    """Load a model whose file does not say what it predicts, and find out by one evaluation of the UNet."""
    from ldm.checkpoint.classify import config_for
    from ldm.jobs.choosing import SAID_BY, cached_verdict, check_kind, probe, with_verdict

    if not identity.is_model or identity.prediction_source in SAID_BY:
        return identity
    verdict = cached_verdict(Path(identity.path))
    if verdict is None:
        from ldm.config import find_config
        from ldm.loading import load_model

        check_kind(identity, None, whole=True)
        config = config_for(identity, identity.prediction or "eps")
        if config is None:
            note = "it was not probed: no included configuration describes it"
            return replace(identity, notes=[*identity.notes, note])
        model = load_model(find_config(config), identity.path, dtype="float32")
        verdict = probe(model, Path(identity.path))
    if verdict.prediction is None:
        agreements = f"{verdict.agreement_eps:.2f} with eps, {verdict.agreement_v:.2f} with v"
        note = f"one UNet evaluation did not tell eps from v ({agreements})"
        return replace(identity, notes=[*identity.notes, note])
    return with_verdict(verdict, identity)
