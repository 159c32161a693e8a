"""Serves the page until SIGINT or SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradio import Blocks

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.inference.runner import Runner, set_sampler
from demo_t2v.web.page import build_page
from demo_t2v.web.proxies import without_proxies
from demo_t2v.web.session import GenerateFunction, GenerationSession
from demo_t2v.web.theme import launch_options


def open_session(
    config: InferenceConfig,
    folder: Path,
    decorate: Callable[[GenerateFunction], GenerateFunction] | None = None,
) -> GenerationSession:
    """A session with its model loaded, whose files are written to `folder`, which must exist.

    Raises the errors of loading a model, and ConfigError for a cache that does not fit.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # Gradio serves files in it without a copy
    own = config.model_copy(update={"scheduler": None, "cache": None})
    pipeline = Runner.load(resolve(config.model), own).pipeline
    session = GenerationSession(pipeline, config, folder, decorate)
    set_sampler(pipeline, config)
    Runner(pipeline, config)  # refuses a cache that does not fit
    return session


def serve(
    config: InferenceConfig,
    on_ready: Callable[[str], None],
    *,
    host: str,
    port: int,
    max_queue: int,
    share: bool,
    **options: Any,
) -> None:
    """Load the model, serve the page and call `on_ready` with its address; ends with Ctrl-C.

    Port 0 is any free one, `max_queue` is that of `build_page`; `share` and `options` are passed to
    Gradio's `launch`. All files of visitors are deleted at the end. Raises ConfigError for a port
    in use, and the errors of loading a model.
    """
    port = _free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="demo-t2v-web-") as folder:
        session = open_session(config, Path(folder))
        page = build_page(session, max_queue)
        address = _launch(page, server_name=host, server_port=port, share=share, **options)
        on_ready(address)
        # SIGTERM ends the program like Ctrl-C, so that the folder is deleted.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            threading.Event().wait()
        finally:
            session.close()
            page.close(verbose=False)


def _launch(page: Blocks, server_name: str, share: bool, **options: Any) -> str:
    """Launch the page; returns its public address with `share`, else the local one.

    Gradio waits for its server without a proxy; the public address may need one. `_frontend` False
    leaves out a second check, of the whole page, which gives up after 3 s on a busy machine.
    """
    hosts = ("localhost", "127.0.0.1", server_name) if share else ("*",)
    try:
        with without_proxies(*hosts):
            _, local, public = page.launch(
                server_name=server_name,
                share=share,
                max_file_size="1mb",
                quiet=True,
                prevent_thread_lock=True,
                _frontend=False,
                **options,
                **launch_options(),
            )
    except ImportError as error:
        if "socksio" not in str(error):
            raise
        raise ConfigError(
            "share: the environment names a SOCKS proxy, which needs `pip install 'httpx[socks]'`"
        ) from None
    return str(public or local)


def _free_port(host: str, port: int) -> int:
    """`port`, or a free port for 0. Raises ConfigError for a port in use."""
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # without the address
        raise ConfigError(
            f"host {host}, port {port}: cannot be served ({reason}); give another --port"
        ) from None
