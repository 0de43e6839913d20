"""Files from strangers: refused with file and line, quickly, and without showing the environment."""

import time

import pytest

from ldm.config import load_config
from ldm.errors import ConfigError

REFUSED = {
    "resolver": ("a: 1\nb: ${oc.env:SECRET}\n", ":2:"),
    "resolver in text": ("a: x${oc.env:SECRET,none}y\n", ":1:"),
    "nested reference": ("a: b\nc: ${d.${a}}\n", ":2:"),
    "python object": ("a: 1\nb: 2\nc: !!python/object/apply:os.system ['touch canary']\n", ":3:"),
    "own tag": ("a: !thing 1\n", ":1:"),
    "repeated key": ("a: 1\nb:\n  c: 1\n  c: 2\n", ":4:"),
    "anchor": ("a: 1\nb: &x {c: 1}\n", ":2: anchors"),
    "alias of nothing": ("a: *b\n", ":1: anchors"),
    "deep nesting": ("a: " + "[" * 100 + "]" * 100, "levels deep"),
    "deeper than the parser": ("a: " + "[" * 3000 + "]" * 3000, ":1:"),
    "large": ("a: " + "x" * 2_000_000, "too large"),
    "many values": ("a: [" + "1," * 200_000 + "]", "more than 10000"),
    "empty": ("", "is empty"),
    "comment only": ("# nothing\n", "is empty"),
    "scalar": ("hello\n", "holds a str"),
    "list": ("- 1\n- 2\n", "holds a list"),
    "null as a key": ("a: 1\nb:\n  ~: 2\n", ":3:"),
    "list as a key": ("a: 1\n? [b]\n: 2\n", ":2:"),
    "unclosed": ("a: [1, 2\nb: 3\n", ":2:"),
    "tab": ("a:\n\tb: 1\n", ":2:"),
    "two documents": ("a: 1\n---\nb: 2\n", ":2:"),
    "control character": ("a: \x07\n", "is not YAML"),
    "impossible date": ("a: !!int x\n", "is not YAML"),
    "reference": ("a: 1\nb: ${a}\n", ":2: references"),
}


@pytest.mark.parametrize("text, expected", REFUSED.values(), ids=REFUSED)
def test_is_refused_in_one_line_naming_the_place(text, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert time.process_time() - started < 10
    message = str(caught.value)
    assert "model.yaml" in message and expected in message and "\n" not in message
    assert "hunter2" not in message
    assert not (tmp_path / "canary").exists()


def test_binary_file_is_refused(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path)


@pytest.mark.parametrize(
    "text, value",
    [
        ("a: 1e-4", 1e-4),
        ("a: 1.0e-4", 1e-4),
        ("a: -2E+3", -2000.0),
        ("a: '1e-4'", "1e-4"),
        ("a: 1e", "1e"),
        ("a: 10", 10),
        ("a: 2024-01-31", "2024-01-31"),
        ("\ufeffa: [1, 2]", [1, 2]),
    ],
)
def test_plain_values_are_read(text, value, tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(text, encoding="utf-8")
    read = load_config(path).a
    assert read == value
    assert isinstance(value, (dict, list)) or type(read) is type(value)
