"""YAML whose scalars stay as they are typed, the field types that read them, and their refusals.

YAML 1.1 reads `no` as a truth value and `2026-11-28` as a date. Here a scalar without quotes is a
text until a field says what type it has.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BeforeValidator
from pydantic_core import ErrorDetails, PydanticCustomError

from demo_t2v.core.errors import UserError


class YamlError(UserError):
    """A text that is no YAML; the message begins with the line, if there is one."""


class Plain(str):
    """A YAML scalar without quotes, as it is typed: its field decides what type it has."""


def typed(value: Any) -> Any:
    """The value with YAML's own types, for a field that takes any: `no` is False, `3` a number."""
    if isinstance(value, Plain):
        try:
            return yaml.safe_load(value)
        except ValueError:  # a date that is none
            return str(value)
    if isinstance(value, dict):
        return {typed(key): typed(inner) for key, inner in value.items()}
    return [typed(inner) for inner in value] if isinstance(value, list) else value


def switched(value: Any) -> Any:
    """None for `no`, `off`, `false`, `none` and an empty value; in quotes these are texts."""
    off = isinstance(value, Plain) and value.lower() in ("", "no", "off", "false", "none")
    return None if off or value is False else value


def at_home(value: Any) -> Any:
    """A path or name whose leading `~` or `~user` stands for a home folder."""
    if isinstance(value, (str, Path)) and not str(value).strip():
        raise PydanticCustomError("empty", "should not be empty")
    if "\0" in str(value):
        raise PydanticCustomError("nul", "should be the name of a file")
    if not isinstance(value, (str, Path)):
        return value
    # Not by `Path`: a name may be an URL, or several files with commas between them.
    return ",".join(map(os.path.expanduser, str(value).split(",")))


AnyKeys = dict[str, Annotated[Any, BeforeValidator(typed)]]
Place = Annotated[Path, BeforeValidator(at_home)]
PlaceOrNone = Annotated[Place | None, BeforeValidator(switched)]
PlaceName = Annotated[str, BeforeValidator(at_home)]
"""A path, or a name that is none: a model's, a repository's, an URL."""


class _TwiceError(Exception):
    """A key that a mapping has twice, and the line of the second."""

    def __init__(self, key: str, line: int) -> None:
        super().__init__(key)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Reads scalars without quotes as `Plain`, empty ones and `null` as None."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the library's own name and type)
        letter: [(tag, pattern) for tag, pattern in known if tag.endswith((":null", ":merge"))]
        for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def text(self, node: yaml.ScalarNode) -> str:
        value: str = self.construct_scalar(node)
        return Plain(value) if node.style is None else value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise _TwiceError(key.value, key.start_mark.line + 1)
            seen.add(str(key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.text)


def parse(text: str) -> Any:
    """What a YAML text holds, its unquoted scalars as `Plain`. Raises YamlError."""
    try:
        return yaml.load(text, _Loader)
    except _TwiceError as error:
        raise YamlError(f", line {error.line}: has the key {error} twice") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise YamlError(f"{line}: is not valid YAML") from None


_WANTED: Final = {
    "bool": "true or false",
    "dict": "keys of its own, as in {{key: value}}",
    "finite": "a finite number",
    "float": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal": "one of {expected}",
    "missing": "a longer list",
    "model": "keys of its own, as in {{key: value}}",
    "path": "a path",
    "string": "a text",
    "too_long": "a list of at most {max_length}",
    "tuple": "a list, as in [a, b]",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "keys of its own, as in {{key: value}}",
}
"""What pydantic's errors ask for, by the beginnings of their names; the longest that fits."""


def wanted(problem: ErrorDetails) -> str:
    """What a value should be, and what it is."""
    facts = problem.get("ctx", {})
    if problem["type"] == "value_error":  # in a validator's own words
        return str(facts["error"])
    right = problem["msg"]
    if names := [name for name in _WANTED if problem["type"].startswith(name)]:
        texts = {key: str(fact).replace("'", "").removesuffix(".0") for key, fact in facts.items()}
        right = "should be " + _WANTED[max(names, key=len)].format_map(texts)
    return f"{right}, not {_shown(facts.get('tag', problem['input']))}"


def _shown(value: Any) -> str:
    """A value in a message: the beginning of a long one."""
    if value is None:
        return "nothing"
    plain = isinstance(value, str) and value.strip() and value.isprintable()
    text = str(value) if plain else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
