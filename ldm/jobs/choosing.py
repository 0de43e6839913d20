"""Determine what model the weights are, and choose the YAML that describes it.

The model is identified from the file: from the names and shapes of its tensors and from its metadata. If
these do not determine eps or v, the UNet is evaluated once, and the result is cached. A flag or a YAML that
contradicts the file is an error that names both.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.config import find_config, read_config, yaml_beside
from ldm.errors import CheckpointError, InputError, WrongModelError
from ldm.requests import NAMES, Request, find
from ldm.wording import script

if TYPE_CHECKING:
    from ldm.checkpoint.identity import Identity
    from ldm.checkpoint.one_file import Opened
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
    """The chosen YAML, and the prediction type that overrides it."""

    identity: "Identity"
    config: Path
    prediction: str | None          # what the UNet predicts; None: as in the YAML, unless it is detected
    is_given: bool                  # given by --config or found next to the file, not chosen here
    is_own: bool = False            # found next to the file

    def source(self) -> Any:
        """Return the configuration to load: the YAML, or its content with another prediction type."""
        if self.prediction in (None, prediction_of(self.config)):
            return self.config
        return read_config(self.config, [f"model.params.parameterization={self.prediction}"])


def choose_config(request: Request, checkpoint: Path, any_kind: bool = False) -> Choice:
    """Identify --ckpt, check --sha256, --prediction and --config against it, and choose the YAML.

    Args:
        any_kind: also take models that the request's task has no inputs for.

    Raises:
        CheckpointError: the file is damaged, unsafe, has another digest, or contains no suitable model.
        InputError: no included YAML describes the model, or flags contradict each other.
    """
    from ldm.checkpoint import identify

    identity = identify(checkpoint)
    check_digest(request.sha256, checkpoint)
    own = None if request.config is not None else own_yaml(identity)
    given = own if request.config is None else find_config(request.config)
    check_kind(identity, None if any_kind else request.TASKS, whole=given is None)
    asked = None if request.prediction == "auto" else request.prediction
    stated = identity.prediction if identity.prediction_source in SAID_BY else None
    found = cached_verdict(checkpoint)
    known = stated or (found.prediction if found else None)
    if asked and known and asked != known:
        raise _contradiction(identity, known, found, stated, f"--prediction asks for {asked}: leave it out")
    if given is not None:
        wanted = prediction_of(given)
        if asked and asked != wanted:
            raise InputError(f"--prediction {asked}, but {given} says {wanted}; leave one of them out")
        _check_config(identity, given, known, found, stated)
        return Choice(identity, given, None, is_given=True, is_own=own is not None)
    prediction = asked or known or identity.prediction
    config = _published(identity, prediction)
    return Choice(identity, config, prediction, is_given=False)


def own_yaml(identity: "Identity") -> Path | None:
    """Return the YAML next to a file that is its own: NAME.yaml, or that of the training run it is from.

    The latter counts for weights alone that no included YAML describes.
    """
    from ldm.checkpoint.classify import config_for

    if not (identity.is_model or identity.kind == "unknown"):
        return None
    return yaml_beside(identity.path, by_name=config_for(identity, "eps") is not None)


def check_loads(headers: "Opened", identity: "Identity") -> None:
    """Raise what loading a whole model would raise of its names and shapes.

    Nothing is checked of what is no model, lacks a part, or is described by no YAML.

    Raises: CheckpointError, ConfigError.
    """
    from ldm.checkpoint.classify import config_for
    from ldm.checkpoint.identification import is_reference, names_and_shapes

    own = own_yaml(identity)
    config = own or config_for(identity, identity.prediction or "eps")
    if config is None or (own is None and (identity.kind == "unet" or identity.lacks)):
        return
    if own is None and not headers.configs and is_reference(names_and_shapes(headers), config):
        return
    from ldm.loading import check_fits

    choice = Choice(identity, find_config(config), None if own else identity.prediction, is_given=True)
    check_fits(choice.source(), headers)


def check_digest(expected: str | None, checkpoint: Path) -> None:
    """Raise an error if the SHA-256 of the file is not that of --sha256."""
    if expected is None:
        return
    if not checkpoint.is_file():
        raise InputError(f"--sha256: {checkpoint} is a folder; only a file has a digest")
    from ldm.files.digest import sha256

    digest = sha256(checkpoint, afresh=True)
    if digest != expected:
        raise CheckpointError(
            f"{checkpoint}: its SHA-256 is {digest}, expected {expected}; download it again"
        )


def check_kind(identity: "Identity", tasks: tuple[str, ...] | None, whole: bool) -> None:
    """Raise WrongModelError for files that are not a model, or not a model for the task.

    Args:
        tasks: kinds of model that the task can use; None allows all.
        whole: also reject a model without VAE or text encoder, which only a custom --config may lack.
    """
    file, what = identity.path, identity.sentence()
    if identity.kind == "foreign":
        raise WrongModelError(f"{file} is {what}; this program runs Stable Diffusion 1.x and 2.x")
    if not identity.is_model and identity.kind != "unknown":
        flag = {"vae": "--vae", "controlnet": "--control-ckpt"}.get(identity.kind)
        advice = f"; give this file to {flag}" if flag else ""
        advice = f"; {identity.notes[0]}" if identity.kind == "training" else advice
        raise WrongModelError(f"{file} is {what}; --ckpt takes a whole model{advice}")
    if whole and (identity.kind == "unet" or identity.lacks):
        raise WrongModelError(f"{file} is {what}; --ckpt takes a whole model: UNet, VAE and text encoder")
    if tasks and identity.task not in (None, *tasks):
        task = next((name for name in NAMES if identity.task in find(name).TASKS), None)
        advice = f"use it with {script(task)}" if task else "no script can generate images with it"
        raise WrongModelError(f"{file} is {what}; {advice}")


def prediction_of(config: Path) -> str:
    """Return the prediction type in a YAML, "eps" if it has none."""
    node = read_config(config)
    return str(node.get("model", node).get("params", {}).get("parameterization", "eps"))


def cached_verdict(checkpoint: Path) -> "Verdict | None":
    """Return the cached result of an earlier probe of this file."""
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
    """Add the cached verdict of an earlier probe, unless the file itself states what it predicts."""
    if not identity.is_model or identity.prediction_source in SAID_BY:
        return identity
    verdict = cached_verdict(Path(identity.path))
    return identity if verdict is None else with_verdict(verdict, identity)


def with_verdict(verdict: "Verdict", identity: "Identity") -> "Identity":
    """Add the verdict of a probe, if it is conclusive."""
    if verdict.prediction is None:
        return identity
    from ldm.checkpoint.classify import config_for

    found = replace(identity, prediction=verdict.prediction, prediction_source="probe")
    return replace(found, config=config_for(found))


def probe(model: "LatentDiffusion", checkpoint: Path) -> "Verdict":
    """Return what the UNet predicts, from the cache or by one evaluation."""
    verdict = cached_verdict(checkpoint)
    if verdict is None:
        from ldm.files import cache
        from ldm.tasks.probe import METHOD, probe_prediction

        verdict = probe_prediction(model)
        note = {"agreement_eps": verdict.agreement_eps, "agreement_v": verdict.agreement_v}
        cache.put(checkpoint, CACHED, note | {"prediction": verdict.prediction, "method": METHOD})
    return verdict


def confirm_prediction(choice: Choice, model: "LatentDiffusion", request: Request) -> Choice:
    """Compare what the loaded model predicts with what was asked for; log which YAML and prediction it is.

    Raises:
        WrongModelError: the UNet predicts something else than --config or --prediction say.
        InputError: it may be either, and the user has not said which.
    """
    choice, reason = _confirmed(choice, model, request)
    if choice.is_own:
        log.info("config: %s, which is next to the file", choice.config.name)
    elif not choice.is_given:
        log.info("config: %s (the file is %s)", choice.config.name, choice.identity.sentence())
    if reason:
        log.info("%s-prediction (%s)", model.parameterization, reason)
    return choice


def _confirmed(choice: Choice, model: "LatentDiffusion", request: Request) -> tuple[Choice, str | None]:
    """Return the choice, and the source of its prediction type."""
    identity = choice.identity
    if identity.prediction_source in SAID_BY:
        return choice, SAID_BY[identity.prediction_source]
    if model.parameterization not in ("eps", "v"):
        return choice, None
    verdict = probe(model, Path(identity.path))
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
    """Return the source of the prediction type after an inconclusive probe: the YAML or the flag."""
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
        raise InputError(
            f"{identity.path} is {identity.sentence()}, which no included configuration describes; "
            "give --config YAML"
        )
    return find_config(name)


def _check_config(
    identity: "Identity", config: Path, known: str | None, found: "Verdict | None", stated: str | None
) -> None:
    """Raise WrongModelError if the YAML has another prediction type than is known of the file."""
    wanted = prediction_of(config)
    if known is None or wanted not in ("eps", "v") or wanted == known:
        return
    from ldm.checkpoint.classify import config_for

    better = config_for(identity, known)
    if better is None or prediction_of(find_config(better)) != known:
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
        f"the file: {script('convert')} {file} OUT --prediction {other}"
    )


def _by_step(verdict: "Verdict") -> str:
    return f"found by one UNet evaluation; agreement {verdict.agreement:.2f}"
