"""Read the golden cases: inputs, weights and results that the reference implementations gave.

    for case in cases("unet"):
        model.load_state_dict(case.weights())
        case.check("eps", model(case.inputs["x"], case.inputs["t"], case.inputs["context"]))

A tensor passes when |x - ref| <= atol + rtol * |ref| everywhere; integers must be equal unless an atol
is given. `tests/golden/README.md` says what each kind holds and where the numbers come from.
Set SD_GOLDEN to a folder of the same format to run the same tests on other cases.
"""

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(os.environ.get("SD_GOLDEN") or Path(__file__).parent / "golden")

# A vocabulary of 49,408 rows is most of a tiny text encoder, so only the rows that prompts touch are stored:
# `NAME::rows` and `NAME::ids` stand for the tensor NAME, which is zero in every other row.
ROWS, IDS, VOCABULARY = "::rows", "::ids", 49408


@dataclass
class Case:
    """One entry of index.json; tensors are read from disk when they are first asked for."""

    name: str
    kind: str
    config: dict[str, Any]
    how: str = ""
    seed: int | None = None
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    entry: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(GOLDEN / self.entry["file"])

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Fresh copies, so that a test that writes into its input cannot harm another."""
        return {name: x.clone() for name, x in self._under("in/").items()}

    @property
    def draws(self) -> list[Tensor]:
        """The random numbers in the order in which the reference drew them."""
        return [self.tensors[name].clone() for name in sorted(self.tensors) if name.startswith("draw/")]

    @property
    def draw_names(self) -> list[str]:
        """What drew each of `draws`: `randn`, `randn_like`, `randint`."""
        return [name.split("_", 1)[1] for name in sorted(self.tensors) if name.startswith("draw/")]

    @property
    def expected(self) -> dict[str, Tensor]:
        return self._under("out/")

    @property
    def files(self) -> dict[str, Path]:
        """Paths of the case's YAML (`config`), `checkpoint`, `checkpoint_ckpt` and `text_arch_json`."""
        return {name: _materialised(path) for name, path in self.entry.get("files", {}).items()}

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}

    def weights(self, prefix: str | None = None) -> dict[str, Tensor]:
        """Return the parameters below `prefix` (the case's own by default), scaled, in float32."""
        path = self.entry.get("weights") or self.entry["files"]["checkpoint"]
        prefix = self.entry.get("weights_prefix", "") if prefix is None else prefix
        weights = {
            name.removeprefix(prefix): x.float() if x.is_floating_point() else x
            for name, x in _whole(load_file(GOLDEN / path)).items()
            if name.startswith(prefix)
        }
        for text, factor in self.config.get("weight_scale", []):
            weights = {name: x * factor if text in name else x for name, x in weights.items()}
        return weights

    def tolerance(self, name: str) -> tuple[float, float]:
        """Return (atol, rtol) of one output; integers have (0, 0) unless stated."""
        output = self.outputs[f"out/{name}"]
        return output.get("atol", 0.0), output.get("rtol", 0.0)

    def check(self, name: str, tensor: Any) -> None:
        """Fail with the largest error unless `tensor` equals the output `name` within its tolerance."""
        got = torch.as_tensor(tensor).detach().cpu()
        want = self.tensors[f"out/{name}"]
        atol, rtol = self.tolerance(name)
        if got.shape != want.shape:
            shapes = f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
            raise AssertionError(f"{self.name}/{name}: {shapes}")
        if want.numel() == 0:
            return
        error = (got.double() - want.double()).abs()
        # Equal infinities differ by NaN; where both say the same there is no error.
        error = torch.where(got.double() == want.double(), 0.0, error).nan_to_num(nan=float("inf"))
        allowed = atol + rtol * want.double().abs()
        if not bool((error <= allowed).all()):
            worst = int((error - allowed).argmax())
            raise AssertionError(
                f"{self.name}/{name}: max error {error.max():.3g}, allowed {allowed.flatten()[worst]:.3g} "
                f"(atol {atol:g}, rtol {rtol:g}); worst at flat index {worst}: "
                f"got {got.flatten()[worst]}, expected {want.flatten()[worst]}"
            )

    def check_all(self, results: dict[str, Any]) -> None:
        """Check every given output; an output that was expected and not given is a failure."""
        missing = self.expected.keys() - results.keys()
        if missing:
            raise AssertionError(f"{self.name}: nothing given for {sorted(missing)}")
        for name, tensor in results.items():
            self.check(name, tensor)


def cases(
    kind: str | Iterable[str] | None = None, *, where: Callable[[Case], bool] | None = None
) -> list[Case]:
    """Return the cases of one kind, of several kinds, or all, in the order of index.json.

    Raises:
        LookupError: no such case, because a test over an empty list would pass without having looked.
    """
    kinds = {kind} if isinstance(kind, str) else None if kind is None else set(kind)
    found = [
        Case(
            name=entry["name"],
            kind=entry["kind"],
            config=entry["config"],
            how=entry.get("how", ""),
            seed=entry.get("seed"),
            outputs=entry.get("outputs", {}),
            entry=entry,
        )
        for entry in _index()
        if kinds is None or entry["kind"] in kinds
    ]
    found = [case for case in found if where is None or where(case)]
    if not found:
        raise LookupError(f"no golden case of kind {kind} in {GOLDEN}")
    return found


def case(name: str) -> Case:
    """Return the case of this name."""
    return cases(where=lambda case: case.name == name)[0]


def names(kind: str | Iterable[str] | None = None) -> list[str]:
    """Return the names of `cases(kind)`, for `ids=` of a parametrised test."""
    return [case.name for case in cases(kind)]


def manifest(layout: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return {key: (shape, dtype)} of a published checkpoint layout such as `v2-inference`."""
    import gzip

    with gzip.open(GOLDEN / "manifests" / f"manifest_{layout}.json.gz", "rt") as f:
        return {key: (tuple(shape), dtype) for key, (shape, dtype) in json.load(f).items()}


@functools.cache
def _index() -> list[dict[str, Any]]:
    return json.loads((GOLDEN / "index.json").read_text())["cases"]


def _whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put stored rows back into the tensors that they were taken from."""
    whole = {name: x for name, x in tensors.items() if not name.endswith((ROWS, IDS))}
    for name, rows in tensors.items():
        if name.endswith(ROWS):
            name = name.removesuffix(ROWS)
            whole[name] = torch.zeros(VOCABULARY, rows.shape[1], dtype=rows.dtype)
            whole[name][tensors[name + IDS]] = rows
    return whole


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    """Return a folder that goes away with the process."""
    return tempfile.TemporaryDirectory(prefix="golden-")


@functools.cache
def _materialised(path: str) -> Path:
    """Return a case's file as the reference had it, written out where only its content is stored."""
    stored = GOLDEN / path
    source = stored if stored.exists() else stored.with_suffix(".safetensors")
    if stored.suffix not in (".ckpt", ".safetensors") or (stored.suffix == ".ckpt" and stored.exists()):
        return stored
    tensors = load_file(source)
    if stored.exists() and not any(name.endswith(ROWS) for name in tensors):
        return stored
    written = Path(_scratch().name) / stored.name
    if stored.suffix == ".safetensors":
        save_file(_whole(tensors), written)
    else:  # published .ckpt files hold two keys more than the model has
        steps = torch.tensor(220000, dtype=torch.int32)
        counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": steps}
        torch.save({"global_step": 220000, "state_dict": _whole(tensors) | counters}, written)
    return written
