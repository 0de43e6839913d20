"""One field is an option everywhere: flag, help, job line, form, record, resuming and rerun."""

import json
from pathlib import Path

import pytest

import ldm.requests
from golden_cases import cases
from ldm.cli.flags import parser_of
from ldm.errors import InputError
from ldm.imaging import metadata
from ldm.requests import Txt2Img, build, form, option, record, request
from ldm.requests.resolving import ModelFacts, resolved

FILES = cases("e2e_txt2img")[0].files
RUN = "--config", FILES["config"], "--ckpt", FILES["checkpoint"], "--precision", "full", "--H", 16, "--W", 16
RUN += "--prompt", "a", "--n_samples", 1, "--n_iter", 1, "--steps", 2, "--no-grid", "--outdir", "o"


@pytest.fixture
def extended(monkeypatch) -> type:
    """txt2img with one more option, which is all that has to be written."""

    @request()
    class Extended(Txt2Img):
        SECTION = ("brush", "")
        softness: float | None = option(
            None, "--softness", metavar="X", low=0, high=1, usual=0.25, help="how soft the brush is"
        )

    Extended.__name__ = "Txt2Img"
    monkeypatch.setattr("ldm.requests.txt2img.Txt2Img", Extended)
    monkeypatch.setattr(ldm.requests, "Txt2Img", Extended, raising=False)
    return Extended


def test_it_has_a_flag_a_help_a_job_line_and_a_form(extended):
    parser = parser_of(extended, "")
    assert "--softness X" in parser.format_help() and "brush:" in parser.format_help()
    assert "how soft the brush is (default: 0.25)" in " ".join(parser.format_help().split())
    assert vars(parser.parse_args(["--softness", "0.5"])) == {"softness": 0.5}
    with pytest.raises(InputError, match="argument --softness: got '2', expected a number from 0 to 1"):
        parser.parse_args(["--softness", "2"])
    line = json.loads('{"prompt": "a fox", "softness": 0.5}')
    assert build(extended, line).softness == 0.5 and record(build(extended, line)) == line
    with pytest.raises(InputError, match="has no option 'softnes'; did you mean 'softness'"):
        build(extended, {"softnes": 0.5})
    (row,) = [row for row in form(extended) if row["name"] == "softness"]
    assert (row["component"], row["low"], row["high"], row["default"]) == ("slider", 0, 1, 0.25)
    facts = ModelFacts(512, 512, 4, 8, {"txt2img": {"softness": 0.75}})
    assert [resolved(extended(softness=x), facts).softness for x in (None, 0.1)] == [0.75, 0.1]
    assert extended().scale is None and extended().outdir == Txt2Img().outdir, "the others stay"


def test_it_is_recorded_resumed_and_rerun(run, tmp_path, extended, stop_at):
    assert run("txt2img.py", *RUN, "--softness", 0.5).code == 0
    first = tmp_path / "o/samples/00000.png"
    found = metadata.read_record(first)
    assert found["request"]["softness"] == found["resolved"]["softness"] == 0.5
    files = "--files", Path(FILES["config"]).parent, Path(FILES["checkpoint"]).parent
    outcome = run("rerun.py", first, "--outdir", "again", *files, "--quiet")
    assert (outcome.code, outcome.out) == (0, f"{first}: equal\n"), outcome.err
    assert metadata.read_record(tmp_path / "again/samples/00000.png")["request"]["softness"] == 0.5
    outcome = run("rerun.py", first, "--outdir", "again", *files, "--with", "softness=1")
    assert outcome.code == 0, outcome.err
    assert metadata.read_record(tmp_path / "again/samples/00001.png")["resolved"]["softness"] == 1
    stop_at(1)
    assert run("txt2img.py", *RUN, "--softness", 0.5).code == 75
    stop_at(None)
    stopped = "--latents", "o/interrupted-00000.safetensors"
    outcome = run("txt2img.py", *stopped, "--softness", 0.6)
    assert outcome.code == 2 and "--softness 0.6 contradicts" in outcome.err
    assert run("txt2img.py", *stopped).code == 0
    assert (tmp_path / "o/samples/00001.png").read_bytes() == first.read_bytes()
