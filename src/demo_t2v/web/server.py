"""The page on a port of this machine, until it is told to stop."""

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
from demo_t2v.web.layout import build, looks
from demo_t2v.web.proxies import direct
from demo_t2v.web.session import Maker, Studio, unchanged


@dataclass(frozen=True)
class Place:
    """Where the page is served, and for whom; as Gradio's `launch` knows these names."""

    host: str = "127.0.0.1"
    port: int = 7860
    """0: any that is free."""
    share: bool = False
    auth: tuple[str, str] | None = None
    root_path: str | None = None
    max_queue: int = 20


def make_studio(
    config: InferenceConfig, folder: Path, on_gpu: Callable[[Maker], Maker] = unchanged
) -> Studio:
    """A studio with its model loaded; what visitors make goes below `folder`, which must exist.

    Raises what loading a model raises.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # files made there are served without a copy
    pipeline, _ = load_for([], config, Plan(config.decode_chunk_size))
    return Studio(pipeline, config, folder, on_gpu)


def serve(config: InferenceConfig, place: Place, ready: Callable[[str], None]) -> None:
    """Load the model, serve the page, tell `ready` its address; ends with Ctrl-C.

    Whatever visitors make is deleted at the end. Raises ConfigError for a port that is taken, and
    what loading a model raises.
    """
    port = _free_port(place.host, place.port)
    with tempfile.TemporaryDirectory(prefix="demo-t2v-web-") as folder:
        studio = make_studio(config, Path(folder))
        page = build(studio, place.max_queue)
        local, public = _launch(page, place, port)
        ready(public or local)
        # Being told to end is an end like Ctrl-C: the folder goes, too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            threading.Event().wait()
        finally:
            studio.close()
            page.close(verbose=False)


def _launch(page: Blocks, place: Place, port: int) -> tuple[str, str]:
    """The page's address on this machine, and its public one, which is empty without `share`.

    Gradio asks the page whether it is there. That needs no proxy; the public address may.
    """
    hosts = ("localhost", "127.0.0.1", place.host) if place.share else ("*",)
    try:
        with direct(*hosts):
            _, local, public = page.launch(
                server_name=place.host,
                server_port=port,
                share=place.share,
                auth=place.auth,
                root_path=place.root_path,
                max_file_size="1mb",
                quiet=True,
                prevent_thread_lock=True,
                **looks(),
            )
    except ImportError as error:
        if "socksio" not in str(error):
            raise
        raise ConfigError(
            "share: the environment names a SOCKS proxy, which needs `pip install 'httpx[socks]'`"
        ) from None
    return local, public or ""


def _free_port(host: str, port: int) -> int:
    """`port`, or any that is free for 0. Raises ConfigError."""
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # the address again
        raise ConfigError(
            f"host {host}, port {port}: cannot be served ({why}); give another --port"
        ) from None
