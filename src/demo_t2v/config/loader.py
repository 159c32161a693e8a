"""Typed configurations: YAML files, dotted `key=value` overrides, errors that name file and key.

Configuration files of the paper's release are read too.
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
    UnquotedScalar,
    YamlError,
    describe_error,
    parse,
    resolve_scalars,
)
from demo_t2v.core.atomic_io import reason
from demo_t2v.core.errors import UserError
from demo_t2v.core.launch import rank

_log = logging.getLogger(__name__)
_COMMAND: Final = "the command line"


class ConfigError(UserError):
    """A configuration that cannot be used."""


@dataclass(frozen=True)
class Option:
    """How the command line, the page and the documents present a field.

    `flag` is the name of the command line's flag without dashes (default: the field's name), and
    `label` the page's label (default: from the flag). Fields that shape the video are stored in its
    manifest entry.
    """

    help: str
    flag: str = ""
    metavar: str | None = None
    shapes_video: bool = False
    label: str = ""


class Aliases(tuple[str, ...]):
    """Other names of a field, from the release: `Annotated[int, Aliases("max_frames")]`."""

    def __new__(cls, *names: str) -> Aliases:
        return super().__new__(cls, names)


class Strict(BaseModel):
    """A frozen configuration without unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    pairs: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Keys whose value is a list of two, with the fields that get one element each."""

    @model_validator(mode="before")
    @classmethod
    def _with_canonical_keys(cls, data: Any) -> Any:
        return canonical_keys(data, cls)[0] if isinstance(data, dict) else data


def canonical_keys(
    tree: Mapping[str, Any], kind: Any, source: str = ""
) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree with aliases at its top level replaced, and the written key of each field.

    `kind` is a Strict model or a union of them. Raises ConfigError, whose message begins with
    `source`, for a field with two keys, and for a pair that is not a list of two.
    """
    names: dict[str, tuple[str, ...]] = {}
    for model in _models(kind):
        for name, field in model.model_fields.items():
            names |= dict.fromkeys(aliases_of(field), (name,))
        names |= getattr(model, "pairs", {})
    canonical: dict[str, Any] = {}
    written_as: dict[str, str] = {}
    where = f"{source}: " if source else ""
    for key, value in tree.items():
        fields = names.get(key, (key,))
        values = [value]
        if len(fields) == 2:
            values = [None, None] if value is None else value
            if not isinstance(values, (list, tuple)) or len(values) != 2:
                raise ConfigError(
                    f"{where}{key}: should be [{', '.join(fields)}], not {resolve_scalars(value)!r}"
                )
        for name, element in zip(fields, values, strict=True):
            if name in canonical:
                raise ConfigError(
                    f"{where}{written_as[name]} and {key} are two names of one key; keep {name}"
                )
            canonical[name], written_as[name] = element, key
    return canonical, written_as


def aliases_of(field: FieldInfo) -> tuple[str, ...]:
    """The other names of a field."""
    return tuple(
        name for aliases in field.metadata if isinstance(aliases, Aliases) for name in aliases
    )


def load(
    kind: Any,
    file: Path | None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Read `file` (YAML; None: only defaults), apply options and overrides, validate.

    `options` has values by dotted key, which replace the file's. `overrides` are `key=value` texts,
    which replace both; a value is YAML, except for fields of text, which take it literally or in
    quotes. `kind` is a Strict model or a union of them. A file of the release is translated, with a
    warning that names keys without a counterpart. Raises ConfigError.
    """
    tree, file_keys = canonical_keys({} if file is None else _read_yaml(file), kind, str(file))
    texts = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{override!r} is not an override; write key=value, as in seed=7")
        texts[key.strip()] = _value(override, text.strip(), _takes_text(kind, key.strip()))
    set_by_override, override_keys = canonical_keys(texts, kind, _COMMAND)
    given = {**(options or {}), **set_by_override}
    written_as = file_keys | override_keys
    if is_release(tree):
        tree = _from_release(resolve_scalars(tree), kind, str(file), given)
    for key, value in given.items():
        _assign(tree, key, value)
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, kind, file, given, written_as)) from None


def _from_release(
    tree: dict[str, Any], kind: Any, file: str, given: dict[str, Any]
) -> dict[str, Any]:
    """A file of the release with the keys of `kind`; removes keys of the release from `given`."""
    fields = {key for model in _models(kind) for key in model.model_fields}
    for key in [key for key in given if is_release_key(key, fields)]:
        _assign(tree, key, resolve_scalars(given.pop(key)))
    try:
        translated, notes = translate(tree, fields, given)
    except ReleaseError as error:
        raise ConfigError(f"{file}: {error}") from None
    if rank() == 0:
        for note in notes:
            _log.warning("%s: %s", file, note)
    return translated


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises ConfigError."""
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
    """The value of an override; `text` has no surrounding space."""
    literal = takes_text and text != "null"
    if literal and not text.startswith(("'", '"')):
        return UnquotedScalar(text)
    try:
        value = parse(text)
    except YamlError:
        if literal:  # begins with a quote that does not end
            return UnquotedScalar(text)
        raise ConfigError(f"{override}: the value is not valid YAML") from None
    return value if isinstance(value, str) or not literal else UnquotedScalar(text)


def _takes_text(kind: Any, dotted: str) -> bool:
    """Whether the key holds one text, path or literal."""
    *parents, last = dotted.split(".")
    models = _models(kind)
    for parent in parents:
        models = [m for field in _fields(models, parent) for m in _models(field.annotation)]
    return any(_is_text(field.annotation) for field in _fields(models, last))


def _fields(models: Iterable[type[BaseModel]], key: str) -> list[FieldInfo]:
    """The models' fields of this key."""
    fields = [pair for model in models for pair in model.model_fields.items()]
    return [field for name, field in fields if key in (field.alias or name, *aliases_of(field))]


def _is_text(annotation: Any) -> bool:
    if annotation in (str, Path):
        return True
    if get_origin(annotation) is Literal:
        return isinstance(get_args(annotation)[0], str)
    is_collection = get_origin(annotation) in (tuple, dict)
    return not is_collection and any(map(_is_text, get_args(annotation)))


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set tree[a][b] = value for the key a.b."""
    *parents, last = dotted.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"{dotted}: {parent} is a value without keys")
    tree[last] = value


def _first_problem(
    error: ValidationError,
    kind: Any,
    file: Path | None,
    given: Mapping[str, Any],
    written_as: Mapping[str, str],
) -> str:
    """One line on the first error: where, which key, what would be right."""
    problem = error.errors()[0]
    models = _models(kind)
    key = ".".join(_keys([step for step in problem["loc"] if isinstance(step, str)], models))
    from_command = file is None or any(f"{name}.".startswith(f"{key}.") for name in given if key)
    source = _COMMAND if from_command else str(file)
    key = written_as.get(key, key)
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
    return f"{source}: {key + ': ' if key else ''}{describe_error(problem)}"


def _has_tag(model: type[BaseModel], tag: str | int) -> bool:
    """Whether a literal field of the model, such as a union's discriminator, allows `tag`."""
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())


def _keys(location: list[str], models: list[type[BaseModel]]) -> list[str]:
    """The keys of an error's location, without pydantic's tags of union members."""
    keys = []
    for step in location:
        tagged = [model for model in models if _has_tag(model, step)]
        if len(models) > 1 and tagged:
            models = tagged
        else:
            keys.append(step)
            nested = [model.model_fields[step] for model in models if step in model.model_fields]
            models = [model for field in nested for model in _models(field.annotation)]
    return keys


def _models(kind: Any) -> list[type[BaseModel]]:
    """The models of `kind`, which is a model or a union of models."""
    if isinstance(kind, type):
        return [kind] if issubclass(kind, BaseModel) else []
    return [model for member in get_args(kind) for model in _models(member)]


def _suggest(key: str, models: list[type[BaseModel]]) -> str:
    """A close key or alias of the models, or all keys."""
    keys: list[str] = []
    aliases: list[str] = []
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    for name, field in fields.items():
        nested = [pair for m in _models(field.annotation) for pair in m.model_fields.items()]
        inner_keys = dict.fromkeys(inner.alias or inner_name for inner_name, inner in nested)
        keys += [f"{name}.{inner}" for inner in inner_keys] or [name]
        aliases += aliases_of(field)
    close = get_close_matches(key, keys + aliases, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(keys)}"
