"""The command `demo-t2v web`: serves the web page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.cli.options import takes_options
from demo_t2v.cli.terminal import one_line_errors
from demo_t2v.conditioning.motion_words import word_file
from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.core.imports import uncollected
from demo_t2v.web.proxies import without_proxies


@takes_options(
    "model", "lora", "motion_word", "scheduler", "cache", "cache_interval", "device", "dtype"
)
def web(
    *,
    options: Mapping[str, Any],
    host: Annotated[
        str, typer.Option(help="Address to serve on; 0.0.0.0 for the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Public address through Gradio.")] = False,
    auth: Annotated[
        str | None, typer.Option(metavar="USER:PASSWORD", help="Login for the page.")
    ] = None,
    root_path: Annotated[
        str | None, typer.Option(metavar="/PATH", help="Path of the page on a proxy.")
    ] = None,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 20,
) -> None:
    """Serve the web page: generate, compare and inspect videos in the browser."""
    with one_line_errors():
        config: InferenceConfig = load(InferenceConfig, None, (), options)
        login = None if auth is None else _login(auth)
        # Downloads come before the slow imports, and use the proxies of the environment.
        _ = resolve(config.model).defaults
        if config.lora:
            from demo_t2v.lora import adapter_file

            adapter_file(config.lora)
        for source in config.motion_word or ():
            word_file(source)
        try:
            # Gradio's import makes a client for each proxy.
            with uncollected(), without_proxies("*"):
                from demo_t2v.web.server import serve
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ConfigError("web: needs gradio; run `pip install 'demo-t2v[web]'`") from None
        serve(
            config,
            lambda address: typer.echo(f"{address} (Ctrl-C ends it)"),
            host=host,
            port=port,
            max_queue=max_queue,
            share=share,
            auth=login,
            root_path=root_path,
        )


def _login(auth: str) -> tuple[str, str]:
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise ConfigError("auth: write it as USER:PASSWORD, as in --auth ada:lovelace")
    return user, password
