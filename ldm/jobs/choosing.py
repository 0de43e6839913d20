"""Find out what the weights are, and which YAML describes them.

What a file is comes from the file: its names and shapes, its metadata, and where these leave eps or v
open, one evaluation of the UNet, whose verdict is cached. A flag or a YAML that contradicts is an error that
names both.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.config import find_config, read_config, yaml_beside
from ldm.errors import CheckpointError, InputError, WrongModelError
from ldm.requests import NAMES, Request, find

if TYPE_CHECKING:
    import torch

    from ldm.checkpoint.identity import Identity
    from ldm.models.latent_diffusion import LatentDiffusion
    from ldm.tasks.probe import Verdict

# sources in the file itself
SAID_BY = {
    "metadata": "its metadata say so",
    "scheduler_config": "its scheduler_config.json says so",
}
CACHED = "prediction"                           # folder of the verdicts in the cache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A YAML file, and what replaces its prediction."""

    identity: "Identity"
    config: Path
    prediction: str | None          # what the UNet predicts; None: as the YAML says, unless a probe finds out
    is_given: bool                  # by --config, rather than chosen here

    def source(self) -> Any:
        """Return what to load: the YAML, or its content with another prediction in it."""
        if self.prediction in (None, asked_for(self.config)):
            return self.config
        return read_config(self.config, [f"model.params.parameterization={self.prediction}"])


def choose_config(request: Request, checkpoint: Path) -> Choice:
    """Identify --ckpt, check --sha256, --prediction and --config against it, and choose the YAML.

    Raises:
        CheckpointError: damaged, unsafe, of another digest, no model, or not of a kind that is asked for.
        InputError: no published YAML describes it, or flags contradict each other.
    """
    from ldm.checkpoint import identify

    identity = identify(checkpoint)
    check_digest(request.sha256, checkpoint)
    check_kind(identity, request.TASKS, whole=request.config is None)
    asked = None if request.prediction == "auto" else request.prediction
    stated = identity.prediction if identity.prediction_source in SAID_BY else None
    found = cached_verdict(checkpoint)
    known = stated or (found.prediction if found else None)
    if asked and known and asked != known:
        raise _contradiction(identity, known, found, stated, f"--prediction asks for {asked}: leave it out")
    if request.config is not None:
        config = find_config(request.config)
        wanted = asked_for(config)
        if asked and asked != wanted:
            raise InputError(
                f"--prediction {asked}, but {request.config} says {wanted}; leave one of them out"
            )
        _check_config(identity, config, known, found, stated)
        return Choice(identity, config, None, is_given=True)
    prediction = asked or known or identity.prediction
    config = _published(identity, prediction)
    return Choice(identity, config, prediction, is_given=False)


def check_digest(expected: str | None, checkpoint: Path) -> None:
    """Refuse a file that has another SHA-256 than --sha256."""
    if expected is None:
        return
    if not checkpoint.is_file():
        raise InputError(f"--sha256: {checkpoint} is a folder; a digest is of one file")
    from ldm.files.digest import sha256

    digest = sha256(checkpoint)
    if digest != expected:
        raise CheckpointError(
            f"{checkpoint}: its SHA-256 is {digest}, expected {expected}; download it again"
        )


def check_kind(identity: "Identity", tasks: tuple[str, ...] | None, whole: bool) -> None:
    """Refuse what makes no images, and a model that the task has no inputs for.

    Args:
        tasks: kinds of model that the task takes; None asks for nothing.
        whole: also refuse a model without VAE or text encoder, which a --config of one's own may do without.
    """
    file, what = identity.path, identity.sentence()
    if identity.kind == "foreign":
        raise WrongModelError(f"{file} is {what}; this program runs Stable Diffusion 1.x and 2.x")
    if not identity.is_model and identity.kind != "unknown":
        advice = ", and this file goes to --vae" if identity.kind == "vae" else ""
        raise WrongModelError(f"{file} is {what}; --ckpt takes a whole model{advice}")
    if whole and (identity.kind == "unet" or identity.lacks):
        raise WrongModelError(f"{file} is {what}; --ckpt takes a whole model: UNet, VAE and text encoder")
    if tasks and identity.task not in (None, *tasks):
        task = next((name for name in NAMES if identity.task in find(name).TASKS), None)
        advice = f"give it to scripts/{task}.py" if task else "no script here makes images with it"
        raise WrongModelError(f"{file} is {what}; {advice}")


def asked_for(config: Path) -> str:
    """Return what a YAML says that the UNet predicts."""
    node = read_config(config)
    return str(node.get("model", node).get("params", {}).get("parameterization", "eps"))


def cached_verdict(checkpoint: Path) -> "Verdict | None":
    """Return what an earlier probe of this file has found."""
    from ldm.files import cache

    note = cache.get(checkpoint, CACHED)
    if note is None:
        return None
    from ldm.tasks.probe import METHOD, Verdict

    if note.get("method") != METHOD or note.get("prediction") not in ("eps", "v", None):
        return None
    try:
        return Verdict(note["prediction"], float(note["agreement_eps"]), float(note["agreement_v"]))
    except (KeyError, TypeError, ValueError):
        return None


def with_cached_verdict(identity: "Identity") -> "Identity":
    """Add the verdict of an earlier probe, if the file itself does not say what it predicts."""
    if not identity.is_model or identity.prediction_source in SAID_BY:
        return identity
    verdict = cached_verdict(Path(identity.path))
    return identity if verdict is None else with_verdict(verdict, identity)


def with_verdict(verdict: "Verdict", identity: "Identity") -> "Identity":
    """Add the verdict of a probe, if it is decided."""
    if verdict.prediction is None:
        return identity
    from ldm.checkpoint.classify import config_for

    found = replace(identity, prediction=verdict.prediction, prediction_source="probe")
    return replace(found, config=config_for(found))


def probe(model: "LatentDiffusion", checkpoint: Path, dtype: "torch.dtype") -> "Verdict":
    """Return what the UNet predicts, from the cache or by one evaluation."""
    verdict = cached_verdict(checkpoint)
    if verdict is None:
        from ldm.files import cache
        from ldm.tasks.probe import METHOD, probe_prediction

        verdict = probe_prediction(model, dtype)
        note = {"agreement_eps": verdict.agreement_eps, "agreement_v": verdict.agreement_v}
        cache.put(checkpoint, CACHED, note | {"prediction": verdict.prediction, "method": METHOD})
    return verdict


def confirm_prediction(
    choice: Choice, model: "LatentDiffusion", request: Request, dtype: "torch.dtype"
) -> Choice:
    """Compare what the loaded model predicts with what was asked for; log which YAML and prediction it is.

    Raises:
        WrongModelError: the UNet predicts something else than --config or --prediction say.
        InputError: it may be either, and the user has not said which.
    """
    choice, reason = _confirmed(choice, model, request, dtype)
    if not choice.is_given:
        log.info("config: %s (the file is %s)", choice.config.name, choice.identity.sentence())
    if reason:
        log.info("%s-prediction (%s)", model.parameterization, reason)
    return choice


def _confirmed(
    choice: Choice, model: "LatentDiffusion", request: Request, dtype: "torch.dtype"
) -> tuple[Choice, str | None]:
    """Return the choice, and how it is known what the UNet predicts."""
    identity = choice.identity
    if identity.prediction_source in SAID_BY:
        return choice, SAID_BY[identity.prediction_source]
    if model.parameterization not in ("eps", "v"):
        return choice, None
    verdict = probe(model, Path(identity.path), dtype)
    if verdict.prediction is None:
        return choice, _undecided(choice, request)
    if choice.is_given:
        _check_config(identity, choice.config, verdict.prediction, verdict, None)
    elif request.prediction not in ("auto", verdict.prediction):
        advice = f"--prediction asks for {request.prediction}: leave it out"
        raise _contradiction(identity, verdict.prediction, verdict, None, advice)
    else:
        model.parameterization = verdict.prediction
        config = _published(identity, verdict.prediction)
        choice = replace(choice, prediction=verdict.prediction, config=config)
    return choice, _by_step(verdict)


def _undecided(choice: Choice, request: Request) -> str:
    """Return what decides instead: the YAML, the flag, or what all published models of this kind predict."""
    if not choice.is_given and choice.prediction is None:
        raise InputError(
            f"{choice.identity.path} is {choice.identity.sentence()}; the file does not say whether it "
            "predicts eps or v, and one UNet evaluation did not tell: give --prediction eps or --prediction v"
        )
    source = choice.config.name if request.prediction == "auto" else "--prediction"
    return f"{source} says so; one UNet evaluation did not tell"


def _published(identity: "Identity", prediction: str | None) -> Path:
    from ldm.checkpoint.classify import config_for

    name = config_for(identity, prediction or "eps")     # a probe finds out, once it is loaded
    if name is None:
        beside = yaml_beside(identity.path)
        raise InputError(
            f"{identity.path} is {identity.sentence()}, which no published configuration describes; "
            + (f"give --config {beside}, if that is its own" if beside else "give --config YAML")
        )
    return find_config(name)


def _check_config(
    identity: "Identity", config: Path, known: str | None, found: "Verdict | None", stated: str | None
) -> None:
    """Refuse a YAML that asks for another prediction than is known of the file."""
    wanted = asked_for(config)
    if known is None or wanted not in ("eps", "v") or wanted == known:
        return
    from ldm.checkpoint.classify import config_for

    better = config_for(identity, known)
    if better is None or asked_for(find_config(better)) != known:
        better = f"one with parameterization: {known}"
    what = f"{config} asks for {wanted}: give --config {better}"
    raise _contradiction(identity, known, found, stated, what)


def _contradiction(
    identity: "Identity", known: str, found: "Verdict | None", stated: str | None, what: str
) -> WrongModelError:
    file = Path(identity.path).name
    if stated:
        return WrongModelError(f"{file} predicts {known} ({SAID_BY[identity.prediction_source]}), but {what}")
    other = {"eps": "v", "v": "eps"}[known]
    return WrongModelError(
        f"{file} predicts {known} ({_by_step(found)}), but {what}; if the probe is wrong, say so in "
        f"the file: scripts/convert.py {file} OUT --prediction {other}"
    )


def _by_step(verdict: "Verdict") -> str:
    return f"found by one UNet evaluation; agreement {verdict.agreement:.2f}"
