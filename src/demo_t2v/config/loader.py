"""Typed configurations: YAML files, dotted `key=value` overrides, errors that name file and key.

Every default stands here and nowhere else. The YAML keys of inference are the ones of the paper's
release, and its own configuration files are read too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from demo_t2v.config.release import ReleaseError, is_release, is_release_key, translate
from demo_t2v.config.yaml_text import (
    Plain,
    YamlError,
    parse,
    typed,
    wanted,
)
from demo_t2v.core.atomic_io import reason
from demo_t2v.core.errors import UserError
from demo_t2v.core.launch import rank

_log = logging.getLogger(__name__)
_COMMAND: Final = "the command line"


class ConfigError(UserError):
    """A configuration that cannot be used; the message is one line for a person."""


@dataclass(frozen=True)
class Option:
    """How a field is offered: on the command line, on the page and in the documents.

    `flag` is the command line's name without dashes (default: the field's name), and `label` the
    page's (default: the flag's words). `shapes_video`
    fields belong to a video's entry in the manifest, since other values make another video.
    """

    help: str
    flag: str = ""
    metavar: str | None = None
    shapes_video: bool = False
    label: str = ""


class Aliases(tuple[str, ...]):
    """Other names of a field, as the release has them: `Annotated[int, Aliases("max_frames")]`."""

    def __new__(cls, *names: str) -> Aliases:
        return super().__new__(cls, names)


class Strict(BaseModel):
    """A configuration that takes no unknown keys and does not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    pairs: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Keys whose value is a list of two, and the fields that get one each."""

    @model_validator(mode="before")
    @classmethod
    def _with_canonical_keys(cls, data: Any) -> Any:
        return canonical_keys(data, cls)[0] if isinstance(data, dict) else data


def canonical_keys(
    tree: Mapping[str, Any], kind: Any, source: str = ""
) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree with its first keys' aliases replaced, and the keys that fields were given by.

    `kind` is a Strict model or a union of some. Raises ConfigError, whose message begins with
    `source`, for a key that is given by two names, and for a pair that is no list of two.
    """
    models = _models(kind)
    names: dict[str, tuple[str, ...]] = {}
    for model in models:
        for name, field in model.model_fields.items():
            names |= dict.fromkeys(aliases_of(field), (name,))
        names |= getattr(model, "pairs", {})
    canonical: dict[str, Any] = {}
    given_by: dict[str, str] = {}
    where = f"{source}: " if source else ""
    for key, value in tree.items():
        fields = names.get(key, (key,))
        values = [value]
        if len(fields) == 2:
            values = [None, None] if value is None else value
            if not isinstance(values, (list, tuple)) or len(values) != 2:
                raise ConfigError(
                    f"{where}{key}: should be [{', '.join(fields)}], not {typed(value)!r}"
                )
        for name, one in zip(fields, values, strict=True):
            if name in canonical:
                raise ConfigError(
                    f"{where}{given_by[name]} and {key} are two names of one key; keep {name}"
                )
            canonical[name], given_by[name] = one, key
    return canonical, given_by


def aliases_of(field: FieldInfo) -> tuple[str, ...]:
    """The other names of a field."""
    return tuple(name for part in field.metadata if isinstance(part, Aliases) for name in part)


def load(
    kind: Any,
    file: Path | None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Read `file` (YAML; None: nothing but defaults), apply overrides, validate.

    `options` sets dotted keys to values and counts more than the file; `overrides` are
    `key=value` texts and count most. Where a text is wanted, the value is what stands there, if
    need be in quotes; elsewhere it is YAML. `kind` is a Strict model or a union of some. A file of
    the published code is translated, with a warning that names what has no counterpart. Raises
    ConfigError.
    """
    tree, in_file = canonical_keys({} if file is None else _read_yaml(file), kind, str(file))
    written = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{override!r} is no override: write key=value, as in seed=7")
        written[key.strip()] = _value(override, text.strip(), _takes_text(kind, key.strip()))
    written, by_override = canonical_keys(written, kind, _COMMAND)
    given = {**(options or {}), **written}
    given_by = in_file | by_override
    if is_release(tree):
        tree = _from_release(typed(tree), kind, str(file), given)
    for key, value in given.items():
        _assign(tree, key, value)
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, kind, file, given, given_by)) from None


def _from_release(
    tree: dict[str, Any], kind: Any, file: str, given: dict[str, Any]
) -> dict[str, Any]:
    """A file of the published code in the keys of `kind`; takes its own keys out of `given`."""
    fields = {key for model in _models(kind) for key in model.model_fields}
    for key in [key for key in given if is_release_key(key, fields)]:
        _assign(tree, key, typed(given.pop(key)))
    try:
        translated, notes = translate(tree, fields, given)
    except ReleaseError as error:
        raise ConfigError(f"{file}: {error}") from None
    if rank() == 0:
        for note in notes:
            _log.warning("%s: %s", file, note)
    return translated


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises ConfigError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({reason(error, file)})") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{file}: is not valid JSON") from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({reason(error, file)})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text") from None
    except YamlError as error:
        raise ConfigError(f"{file}{error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        kind = "list" if isinstance(tree, list) else "text"
        raise ConfigError(f"{file}: should hold `key: value` lines, not a {kind}")
    return tree


def _value(override: str, text: str, takes_text: bool) -> Any:
    """The value of an override, `text` without space round it."""
    as_typed = takes_text and text != "null"
    if as_typed and not text.startswith(("'", '"')):
        return Plain(text)
    try:
        value = parse(text)
    except YamlError:
        if as_typed:  # a text that begins with a quote
            return Plain(text)
        raise ConfigError(f"{override}: the value is not valid YAML") from None
    return value if isinstance(value, str) or not as_typed else Plain(text)


def _takes_text(kind: Any, dotted: str) -> bool:
    """Whether the key holds one text, path or word."""
    *parents, last = dotted.split(".")
    models = _models(kind)
    for parent in parents:
        models = [m for field in _fields(models, parent) for m in _models(field.annotation)]
    return any(_is_text(field.annotation) for field in _fields(models, last))


def _fields(models: Iterable[type[BaseModel]], key: str) -> list[FieldInfo]:
    """The fields that the models have under a key."""
    fields = [pair for model in models for pair in model.model_fields.items()]
    return [field for name, field in fields if key in (field.alias or name, *aliases_of(field))]


def _is_text(annotation: Any) -> bool:
    if annotation in (str, Path):
        return True
    if get_origin(annotation) is Literal:
        return isinstance(get_args(annotation)[0], str)
    several = get_origin(annotation) in (tuple, dict)
    return not several and any(map(_is_text, get_args(annotation)))


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set tree[a][b] = value for the key a.b."""
    *parents, last = dotted.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"{dotted}: {parent} is a value, it has no keys of its own")
    tree[last] = value


def _first_problem(
    error: ValidationError,
    kind: Any,
    file: Path | None,
    given: Mapping[str, Any],
    given_by: Mapping[str, str],
) -> str:
    """One line on the first thing that is wrong: where, which key, what would be right."""
    problem = error.errors()[0]
    models = _models(kind)
    key = ".".join(_keys([part for part in problem["loc"] if isinstance(part, str)], models))
    from_command = file is None or any(f"{name}.".startswith(f"{key}.") for name in given if key)
    source = _COMMAND if from_command else str(file)
    key = given_by.get(key, key)
    if problem["type"] == "extra_forbidden":
        tagged = [model for model in models if _has_tag(model, problem["loc"][0])]
        models = tagged or models
        return f"{source}: unknown key {key}; {_suggest(key, models)}"
    if problem["type"].startswith("union_tag") and isinstance(problem["input"], dict):
        key = f"{key}.{problem['ctx']['discriminator']}".replace("'", "").strip(".")
        if problem["type"] == "union_tag_not_found":
            return f"{source}: {key} is missing"
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], str):
        return f"{source}: {key} is missing"
    return f"{source}: {key + ': ' if key else ''}{wanted(problem)}"


def _has_tag(model: type[BaseModel], tag: str | int) -> bool:
    """Whether a union knows the model by this word."""
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())


def _keys(place: list[str], models: list[type[BaseModel]]) -> list[str]:
    """The keys of a place, without what pydantic says of the members of unions on the way."""
    keys = []
    for part in place:
        fields = [(model, field) for model in models for field in model.model_fields.values()]
        tagged = [model for model, field in fields if part in get_args(field.annotation)]
        if len(models) > 1 and tagged:
            models = tagged
        else:
            keys.append(part)
            nested = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [model for field in nested for model in _models(field.annotation)]
    return keys


def _models(kind: Any) -> list[type[BaseModel]]:
    """The models that `kind`, a model or a union of models, can be."""
    if isinstance(kind, type):
        return [kind] if issubclass(kind, BaseModel) else []
    return [model for part in get_args(kind) for model in _models(part)]


def _suggest(key: str, models: list[type[BaseModel]]) -> str:
    known = []
    others: list[str] = []
    for name, field in {n: f for m in models for n, f in m.model_fields.items()}.items():
        nested = _models(field.annotation)
        inner = dict.fromkeys(
            field.alias or inner for model in nested for inner, field in model.model_fields.items()
        )
        known += [f"{name}.{key}" for key in inner] or [name]
        others += aliases_of(field)
    close = get_close_matches(key, known + others, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
