"""The command `demo-t2v web`: the page in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from demo_t2v.checkpoints.resolve import read_defaults, resolve
from demo_t2v.cli.terminal import one_line_errors
from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.web.proxies import direct


def web(
    model: Annotated[
        str | None, typer.Option(metavar="NAME|FOLDER|HUB_ID", help="Default: sprites.")
    ] = None,
    lora: Annotated[
        str | None, typer.Option(metavar="FILE|FOLDER|HUB_ID", help="An adapter for the model.")
    ] = None,
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
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, xpu ...")
    ] = None,
    dtype: Annotated[str | None, typer.Option(metavar="auto|float32|bfloat16|float16")] = None,
    max_queue: Annotated[int, typer.Option(min=1, help="Visitors who may wait.")] = 20,
) -> None:
    """Generate, compare and take motion apart in the browser."""
    options = {"pretrained": model, "lora": lora, "device": device, "dtype": dtype}
    with one_line_errors():
        given = {key: value for key, value in options.items() if value is not None}
        config: InferenceConfig = load(InferenceConfig, None, (), given)
        login = None if auth is None else _login(auth)
        # What may have to be downloaded comes first: before the slow imports, by any proxy.
        read_defaults(resolve(config.pretrained))
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
