"""A YAML file as plain objects, with the line each key stands on.

Stricter than plain YAML where that hides a mistake: a key given twice is an error, and `25e9` is
the number it looks like (YAML 1.1 takes it for text).
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from spillway.core.errors import ConfigError
from spillway.wire.codec import KeyPath, Where, in_file

_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return SafeLoader's table, by first character, with the rule for floats replaced."""
    tag = "tag:yaml.org,2002:float"
    table = {
        first: [pair for pair in pairs if pair[0] != tag]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+0123456789.":
        table.setdefault(first, []).append((tag, _FLOAT))
    return table


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key and reads `25e9` as a number."""

    yaml_implicit_resolvers = _resolvers()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def no_set(self, node: yaml.Node) -> None:
        """Refuse a set, whose members have no place that an error could name."""
        raise yaml.constructor.ConstructorError(
            problem="a set has no use here; write a list", problem_mark=node.start_mark
        )

    yaml_constructors = yaml.SafeLoader.yaml_constructors | {"tag:yaml.org,2002:set": no_set}


def read_yaml(path: Path) -> tuple[Any, Where]:
    """Return the file's content, and how an error names a key of it: file, line and path.

    Raises ConfigError, one line with the file and the line, when it cannot be read, is not valid
    YAML, repeats a key, or holds a set or a number that is not finite.
    """
    try:
        loader = _StrictLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        content = loader.construct_document(node) if node else {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text, at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        said = error.problem or error.context or "no reason given"
        raise ConfigError(f"{path}{line}: not valid YAML: {said}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        # What PyYAML lets through: a date that is none, a tag on the wrong kind, endless nesting.
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None

    where = in_file(str(path), lambda keys: _line(node, keys) if node else 1)
    for keys in _not_finite(content, ()):
        raise ConfigError(f"{where(keys)}: must be a finite number")
    return content, where


def _line(node: yaml.Node, keys: KeyPath) -> int:
    """Return the line of the deepest key of `keys` that is there."""
    line: int = node.start_mark.line + 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == str(key)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            if key >= len(node.value):
                break
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _not_finite(value: object, keys: KeyPath) -> list[KeyPath]:
    """Return the paths of numbers that are infinite or not a number."""
    if isinstance(value, float) and not isfinite(value):
        return [keys]
    if isinstance(value, dict):
        return [at for key, inner in value.items() for at in _not_finite(inner, (*keys, str(key)))]
    if isinstance(value, list):
        return [at for i, inner in enumerate(value) for at in _not_finite(inner, (*keys, i))]
    return []
