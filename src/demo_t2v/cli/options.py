"""Flags of commands, derived from the options of `InferenceConfig`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from demo_t2v.config import Option
from demo_t2v.config.inference import inference_options

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "--cfg", metavar="FILE", help="YAML file.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make all of them anew.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout, events on stderr.")
]
OPTIONS: Final = "options"
"""The parameter of a command that gets the flags' values by dotted key."""
Command = Callable[..., None]


def takes_options(
    *keys: str, more: Mapping[str, tuple[FieldInfo, Option]] | None = None, **defaults: Any
) -> Callable[[Command], Command]:
    """Replace a command's parameter `options` by the flags of these options (default: all).

    The command gets the given values in `options`, by dotted key. `defaults` are further options,
    whose default differs from the schema's. `more` are options of another schema.
    """

    def decorate(command: Command) -> Command:
        other = more or {}
        available = {**inference_options(), **other}
        named = (*other, *keys, *defaults) or available
        flags = {_name(available[key][1].flag or key): key for key in named}

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            values = {key: arguments.pop(name) for name, key in flags.items()}
            given = {key: value for key, value in values.items() if value not in (None, [])}
            command(**arguments, **{OPTIONS: defaults | given})

        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            if parameter.name == OPTIONS:
                parameters += [
                    _parameter(name, *available[key], defaults.get(key))
                    for name, key in flags.items()
                ]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameter(name: str, field: FieldInfo, option: Option, default: Any) -> inspect.Parameter:
    """A command's parameter that becomes a flag of Typer's; its default is None."""
    scalar = _without_none(field.annotation)
    metavar = option.metavar
    if get_origin(scalar) is Literal:
        metavar = "|".join(get_args(scalar))
    kind: Any = scalar if scalar in (bool, int, float) and metavar is None else str
    if get_origin(scalar) is tuple:
        kind = list[str]
    default = field.get_default() if default is None else default
    description = option.help
    if default is not None and default is not False and "(default" not in description:
        description = f"{description.removesuffix('.')} (default: {default})."
    typer_option = typer.Option(f"--{name.replace('_', '-')}", metavar=metavar, help=description)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, typer_option],
    )


def _without_none(annotation: Any) -> Any:
    """The type of an annotation, without None and constraints."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (kind for kind in get_args(annotation) if kind is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _name(flag: str) -> str:
    """The parameter's name for a flag without its dashes: `num_frames` for `num-frames`."""
    return flag.replace("-", "_")
