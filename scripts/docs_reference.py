"""MkDocs hook: fills the pages of docs/reference from the code when the site is built.

Comments in a page, which GitHub does not show, select the content:

    <!-- options: demo_t2v.config.InferenceConfig -->   a table of the fields of a configuration
    <!-- command: generate -->                          a command's usage and options
    <!-- api: demo_t2v.pipeline.DemoPipeline -->        the docstrings, by mkdocstrings
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import import_module
from itertools import pairwise
from textwrap import dedent
from typing import Any

import typer
from pydantic import BaseModel

from demo_t2v.cli import app
from demo_t2v.config import Option
from demo_t2v.config.loader import aliases_of

MARKER = re.compile(r"<!-- (options|command|api): ([\w. -]+?) -->")
KINDS = {
    "array": "list",
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "object": "keys",
    "string": "text",
}
"""Types of JSON Schema in words."""
LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "gt": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the comments of a page. MkDocs calls this for every page."""
    fill = {"options": options_table, "command": command_help, "api": "::: {}".format}
    return MARKER.sub(lambda found: fill[found[1]](found[2]), markdown)


def options_table(path: str) -> str:
    """A table of a pydantic model's fields, without those of its base classes."""
    module, _, name = path.rpartition(".")
    model: type[BaseModel] = getattr(import_module(module), name)
    schema = model.model_json_schema()
    described = field_docstrings(model)
    rows = []
    for name, field in model.model_fields.items():
        if name not in model.__annotations__:
            continue
        key = field.alias or name
        entry = schema["properties"][key]
        names, meaning = f"`{key}`", described.get(name, "")
        for option in (each for each in field.metadata if isinstance(each, Option)):
            names += f"<br>`--{option.flag or name.replace('_', '-')}`"
            meaning = option.help
        for alias in aliases_of(field):
            meaning += f" Alias: `{alias}`."
        default = "required" if field.is_required() else shown_default(entry)
        rows.append((names, shown_type(entry, schema), default, inline(meaning)))
    return table(("key and flag", "value", "default", "meaning"), rows)


def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The strings below a model's own fields, by the fields' names."""
    found: dict[str, str] = {}
    (definition,) = ast.parse(dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    for statements in pairwise(definition.body):
        match statements:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = text
    return found


def shown_type(entry: dict[str, Any], schema: dict[str, Any]) -> str:
    """The values that a JSON schema accepts, in words."""
    if "anyOf" in entry:
        kinds = [each for each in entry["anyOf"] if each.get("type") != "null"]
        return " or ".join(shown_type(each, schema) for each in kinds)
    if "oneOf" in entry:
        return "keys of one of these: " + ", ".join(
            f"`{name}`" for name in entry["discriminator"]["mapping"]
        )
    if "$ref" in entry:
        return shown_type(schema["$defs"][entry["$ref"].rpartition("/")[2]], schema)
    if values := entry.get("enum", [entry["const"]] if "const" in entry else []):
        return ", ".join(f"`{value}`" for value in values)
    kind = entry["type"]
    if kind == "array" and "prefixItems" in entry:
        return f"list of two: {shown_type(entry['prefixItems'][0], schema)}"
    word = "path" if entry.get("format") == "path" else KINDS[kind]
    limits = (text.format(entry[key]) for key, text in LIMITS.items() if key in entry)
    return ", ".join([word, *limits])


def shown_default(entry: dict[str, Any]) -> str:
    """A field's default in YAML."""
    value = entry.get("default")
    if value is None or value in ("", [], {}) or isinstance(value, dict):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def command_help(name: str) -> str:
    """Usage, explanation and options of a command such as `data sprites`."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("demo-t2v", ["--help"], resilient_parsing=True)
    for word in name.split():
        command = command.commands[word]
        context = type(context)(command, info_name=word, parent=context)
    usage = " ".join(["demo-t2v", name, *command.collect_usage_pieces(context)])
    records = (param.get_help_record(context) for param in command.get_params(context))
    rows = [(f"`{flag}`", inline(text)) for flag, text in filter(None, records)]
    sections = [f"```text\n{usage}\n```", command.help or "", table(("argument", "meaning"), rows)]
    return "\n\n".join(sections)


def inline(text: str) -> str:
    """Text as one cell of a Markdown table, its code spans unchanged."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(piece if piece.startswith("`") else _escaped(piece) for piece in pieces)


def _escaped(text: str) -> str:
    return escape(text, quote=False).replace("|", "&#124;")


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
