"""The command `demo-t2v web`: the page in the browser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from demo_t2v.checkpoints.resolve import read_defaults, resolve
from demo_t2v.cli.options import takes_options
from demo_t2v.cli.terminal import one_line_errors
from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.web.proxies import direct


@takes_options("model", "lora", "scheduler", "device", "dtype")
def web(
    *,
    options: Mapping[str, Any],
    host: Annotated[
        str, typer.Option(help="Who may come: 0.0.0.0 for all of the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="A public address, by Gradio.")] = False,
    auth: Annotated[
        str | None, typer.Option(metavar="USER:PASSWORD", help="Only who knows both may come.")
    ] = None,
    root_path: Annotated[
        str | None, typer.Option(metavar="/PATH", help="Where a proxy serves the page.")
    ] = None,
    max_queue: Annotated[int, typer.Option(min=1, help="Visitors who may wait.")] = 20,
) -> None:
    """Generate, compare and take motion apart in the browser."""
    with one_line_errors():
        config: InferenceConfig = load(InferenceConfig, None, (), options)
        login = None if auth is None else _login(auth)
        # What may have to be downloaded comes first: before the slow imports, by any proxy.
        read_defaults(resolve(config.model))
        if config.lora:
            from demo_t2v.lora import adapter_file

            adapter_file(config.lora)
        try:
            with direct("*"):  # Gradio makes clients for all proxies while it is imported
                from demo_t2v.web.server import Place, serve
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ConfigError("web: needs gradio; run `pip install 'demo-t2v[web]'`") from None
        place = Place(host, port, share, login, root_path, max_queue)
        serve(config, place, lambda address: typer.echo(f"{address} (Ctrl-C ends it)"))


def _login(auth: str) -> tuple[str, str]:
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise ConfigError("auth: write it as USER:PASSWORD, as in --auth ada:lovelace")
    return user, password
