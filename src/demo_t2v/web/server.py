"""Serves the page until SIGINT or SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradio import Blocks

from demo_t2v.checkpoints.memory import Plan
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.inference.batches import load_for
from demo_t2v.web.page import build_page
from demo_t2v.web.proxies import without_proxies
from demo_t2v.web.session import GenerateFunction, GenerationSession, undecorated
from demo_t2v.web.theme import launch_options


@dataclass(frozen=True)
class ServerOptions:
    """Address and access of the page, under the names of Gradio's `launch`."""

    host: str = "127.0.0.1"
    port: int = 7860
    """0 for any free port."""
    share: bool = False
    auth: tuple[str, str] | None = None
    root_path: str | None = None
    max_queue: int = 20


def open_session(
    config: InferenceConfig,
    folder: Path,
    decorate: Callable[[GenerateFunction], GenerateFunction] = undecorated,
) -> GenerationSession:
    """A session with its model loaded, whose files are written to `folder`, which must exist.

    Raises the errors of loading a model.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # Gradio serves files in it without a copy
    pipeline, _ = load_for([], config, Plan(config.decode_chunk_size))
    return GenerationSession(pipeline, config, folder, decorate)


def serve(config: InferenceConfig, options: ServerOptions, on_ready: Callable[[str], None]) -> None:
    """Load the model, serve the page and call `on_ready` with its address; ends with Ctrl-C.

    All files of visitors are deleted at the end. Raises ConfigError for a port in use, and the
    errors of loading a model.
    """
    port = _free_port(options.host, options.port)
    with tempfile.TemporaryDirectory(prefix="demo-t2v-web-") as folder:
        session = open_session(config, Path(folder))
        page = build_page(session, options.max_queue)
        local, public = _launch(page, options, port)
        on_ready(public or local)
        # SIGTERM ends the program like Ctrl-C, so that the folder is deleted.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            threading.Event().wait()
        finally:
            session.close()
            page.close(verbose=False)


def _launch(page: Blocks, options: ServerOptions, port: int) -> tuple[str, str]:
    """Launch; returns the local address and the public one, which is empty without `share`.

    Gradio requests its own page once, without a proxy; the public address may need one.
    """
    hosts = ("localhost", "127.0.0.1", options.host) if options.share else ("*",)
    try:
        with without_proxies(*hosts):
            _, local, public = page.launch(
                server_name=options.host,
                server_port=port,
                share=options.share,
                auth=options.auth,
                root_path=options.root_path,
                max_file_size="1mb",
                quiet=True,
                prevent_thread_lock=True,
                **launch_options(),
            )
    except ImportError as error:
        if "socksio" not in str(error):
            raise
        raise ConfigError(
            "share: the environment names a SOCKS proxy, which needs `pip install 'httpx[socks]'`"
        ) from None
    return local, public or ""


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
