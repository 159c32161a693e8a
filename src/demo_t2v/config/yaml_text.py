"""YAML whose unquoted scalars stay texts, the field types that convert them, and their errors.

YAML 1.1 reads `no` as a boolean and `2026-11-28` as a date. Here an unquoted scalar is a text until
the type of its field converts it.
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
    """Invalid YAML; the message begins with the line, if it is known."""


class UnquotedScalar(str):
    """A YAML scalar without quotes, unconverted."""


def resolve_scalars(value: Any) -> Any:
    """The value with the types of YAML 1.1, for a field of any type: `no` is False, `3` an int."""
    if isinstance(value, UnquotedScalar):
        try:
            return yaml.safe_load(value)
        except ValueError:  # an invalid date
            return str(value)
    if isinstance(value, dict):
        return {resolve_scalars(key): resolve_scalars(inner) for key, inner in value.items()}
    return [resolve_scalars(inner) for inner in value] if isinstance(value, list) else value


def none_if_off(value: Any) -> Any:
    """None for an unquoted `no`, `off`, `false`, `none` or empty value; else the value."""
    off = isinstance(value, UnquotedScalar) and value.lower() in ("", "no", "off", "false", "none")
    return None if off or value is False else value


def expand_home(value: Any) -> Any:
    """The path or name with a leading `~` or `~user` replaced by the home folder."""
    if isinstance(value, (str, Path)) and not str(value).strip():
        raise PydanticCustomError("empty", "should not be empty")
    if "\0" in str(value):
        raise PydanticCustomError("nul", "should be the name of a file")
    if not isinstance(value, (str, Path)):
        return value
    # No `Path`: a name may be a URL, or several files with commas between them.
    return ",".join(map(os.path.expanduser, str(value).split(",")))


AnyKeys = dict[str, Annotated[Any, BeforeValidator(resolve_scalars)]]
ExpandedPath = Annotated[Path, BeforeValidator(expand_home)]
OptionalPath = Annotated[ExpandedPath | None, BeforeValidator(none_if_off)]
PathOrName = Annotated[str, BeforeValidator(expand_home)]
"""A path, a model's name, a repository or a URL."""


class _DuplicateKeyError(Exception):
    """A key that a mapping has twice, with the line of the second."""

    def __init__(self, key: str, line: int) -> None:
        super().__init__(key)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Reads unquoted scalars as `UnquotedScalar`, and empty ones and `null` as None."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the library's attribute)
        letter: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def text(self, node: yaml.ScalarNode) -> str:
        value: str = self.construct_scalar(node)
        return UnquotedScalar(value) if node.style is None else value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise _DuplicateKeyError(key.value, key.start_mark.line + 1)
            seen.add(str(key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.text)


def parse(text: str) -> Any:
    """The content of a YAML text, with `UnquotedScalar`s. Raises YamlError."""
    try:
        return yaml.load(text, _Loader)
    except _DuplicateKeyError as error:
        raise YamlError(f", line {error.line}: has the key {error} twice") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise YamlError(f"{line}: is not valid YAML") from None


_EXPECTED: Final = {
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
"""Expected values by the first words of a pydantic error type; the longest match counts."""


def describe_error(problem: ErrorDetails) -> str:
    """What a value should be, and what it is, from an error of pydantic's."""
    context = problem.get("ctx", {})
    if problem["type"] == "value_error":  # raised by one of our validators
        return str(context["error"])
    right = problem["msg"]
    if names := [name for name in _EXPECTED if f"{problem['type']}_".startswith(f"{name}_")]:
        texts = {k: str(v).replace("'", "").removesuffix(".0") for k, v in context.items()}
        right = "should be " + _EXPECTED[max(names, key=len)].format_map(texts)
    return f"{right}, not {_shorten(context.get('tag', problem['input']))}"


def _shorten(value: Any) -> str:
    """A value for a message, cut to 80 characters."""
    if value is None:
        return "nothing"
    readable = isinstance(value, str) and value.strip() and value.isprintable()
    text = str(value) if readable else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
