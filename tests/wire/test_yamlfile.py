"""YAML, read strictly: numbers as they look, no key twice, every error with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillway.core.errors import ConfigError
from spillway.wire.yamlfile import read_yaml

TEXT = """\
a: 1
b:
  - c: 25e9
  - c: 1.5e-3
    d: "25e9"
e: {f: .5, g: -2E+3, h: 1_000}
"""


def test_numbers_are_what_they_look_like(tmp_path: Path) -> None:
    content, _ = read_yaml(_file(tmp_path, TEXT))
    assert content == {
        "a": 1,
        "b": [{"c": 25e9}, {"c": 1.5e-3, "d": "25e9"}],
        "e": {"f": 0.5, "g": -2000.0, "h": 1000},
    }


def test_words_that_begin_like_numbers_stay_words(tmp_path: Path) -> None:
    content, _ = read_yaml(_file(tmp_path, "[1e, e9, 10.0.0.1, 12:30:00x, -, 1e9x]"))
    assert content == ["1e", "e9", "10.0.0.1", "12:30:00x", "-", "1e9x"]


def test_each_key_has_its_line(tmp_path: Path) -> None:
    path = _file(tmp_path, TEXT)
    _, where = read_yaml(path)
    assert where(("a",)) == f"{path}:1: a"
    assert where(("b", 1, "d")) == f"{path}:5: b[1].d"
    assert where(("b", 1, "missing")) == f"{path}:4: b[1].missing"
    assert where(("b", 9, "d")) == f"{path}:2: b[9].d"
    assert where(()) == f"{path}:1"


def test_an_empty_file_is_an_empty_table(tmp_path: Path) -> None:
    content, where = read_yaml(_file(tmp_path, "# nothing\n"))
    assert content == {}
    assert where(("a",)).endswith(":1: a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", ":2: not valid YAML: the key 'c' is given twice"),
        ("a: [1\n", ":2: not valid YAML: "),
        ("a: 1\nb: .nan\n", ":2: b: must be a finite number"),
        ("a: [1, -.inf]\n", ":1: a[1]: must be a finite number"),
        ("a: !!python/object:os.system x\n", ":1: not valid YAML: could not determine"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML: but found another document"),
        ("a: \x07\n", ": not valid YAML: "),
        ("a: !!set [x]\n", ":1: not valid YAML: "),
        ("a: 1\nb: !!set {x, y}\n", ":2: not valid YAML: a set has no use here; write a list"),
        ("a: 2001-99-99\n", ": not valid YAML: "),
        ("a: " + "[" * 600, ": not valid YAML: "),
    ],
)
def test_bad_yaml_is_one_line_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}{said}")
    assert "\n" not in str(caught.value)


def _file(folder: Path, text: str) -> Path:
    path = folder / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return path
