"""`demo-t2v web` and the Space as processes."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.request import proxy_bypass, urlopen

import pytest
import yaml
from packaging.requirements import Requirement

from demo_t2v.web.proxies import without_proxies
from helpers import in_process
from helpers.processes import accept_interrupts, started
from helpers.program import ENVIRONMENT, ROOT, assert_one_line, free_port, run

TIMEOUT = 120


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model", "nowhere"], ["nowhere: is no model"]),
        (["--device", "gpu"], ["device"]),
        (["--auth", "ada"], ["auth", "USER:PASSWORD"]),
        (["--auth", ":x"], ["auth", "USER:PASSWORD"]),
        (["--lora", "nowhere.safetensors"], ["nowhere.safetensors: there is no such adapter"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input(tmp_path: Path, words: list[str], parts: list[str]) -> None:
    assert_one_line(in_process.run(tmp_path, "web", "--port", 0, *words), 2, *parts)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert_one_line(run(tmp_path, "web", "--port", port), 2, f"port {port}", "--port")


def test_gradio_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('no', name='gradio')\n")
    done = subprocess.run(
        [sys.executable, "-m", "demo_t2v", "web", "--port", "0"],
        cwd=tmp_path,
        env=ENVIRONMENT
        | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert_one_line(done, 2, "pip install 'demo-t2v[web]'")


def get(port: int, path: str, login: str | None = None) -> int:
    """The status of a page, once there is a server."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", path, headers={"Cookie": login} if login else {})
            return connection.getresponse().status
        except OSError:
            assert time.monotonic() < deadline, "no server"
            time.sleep(0.1)


@pytest.mark.parametrize(
    "end", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_it_serves_with_a_login_and_cleans_up(
    tmp_path: Path, tiny_folder: Path, end: signal.Signals
) -> None:
    port, scratch = free_port(), tmp_path / "tmp"
    scratch.mkdir()
    words = ("--model", str(tiny_folder), "--port", str(port), "--auth", "ada:lovelace")
    with started(
        [sys.executable, "-m", "demo_t2v", "web", *words],
        env=ENVIRONMENT | {"TMPDIR": str(scratch)},
        preexec_fn=accept_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == f"http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        assert get(port, "/config") == 401
        process.send_signal(end)
        _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, stderr
    assert stderr == "demo-t2v: stopped\n"
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


UNANSWERED = "127.0.0.1:9"  # a proxy that does not answer


@pytest.mark.parametrize(
    "proxies",
    [
        {"HTTP_PROXY": f"http://{UNANSWERED}", "HTTPS_PROXY": f"http://{UNANSWERED}"},
        {"ALL_PROXY": f"socks5://{UNANSWERED}", "NO_PROXY": "example.org"},
        pytest.param({"http_proxy": f"http://{UNANSWERED}"}, marks=pytest.mark.slow),
        pytest.param({"all_proxy": f"http://{UNANSWERED}"}, marks=pytest.mark.slow),
        pytest.param({"ALL_PROXY": f"socks5h://{UNANSWERED}"}, marks=pytest.mark.slow),
        pytest.param({"HTTPS_PROXY": "nonsense://x"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_proxies_of_the_environment(
    tmp_path: Path, tiny_folder: Path, proxies: dict[str, str]
) -> None:
    port = free_port()
    with started(
        [sys.executable, "-m", "demo_t2v", "web", "--model", tiny_folder, "--port", str(port)],
        env=ENVIRONMENT | {"TMPDIR": str(tmp_path)} | proxies,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        line = process.stdout.readline()
        assert line == f"http://127.0.0.1:{port}/ (Ctrl-C ends it)\n", process.stderr.read()
        assert get(port, "/") == 200


@pytest.mark.slow
def test_a_public_address_by_a_socks_proxy(tmp_path: Path, tiny_folder: Path) -> None:
    if find_spec("socksio"):
        pytest.skip("httpx has what SOCKS needs")
    words = ("web", "--model", tiny_folder, "--port", "0", "--share")
    done = subprocess.run(
        [sys.executable, "-m", "demo_t2v", *words],
        env=ENVIRONMENT | {"ALL_PROXY": f"socks5://{UNANSWERED}", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert_one_line(done, 2, "share: ", "SOCKS", "pip install 'httpx[socks]'")


def test_proxies_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    with without_proxies("localhost", "127.0.0.1"):
        assert os.environ["NO_PROXY"] == "example.org,localhost,127.0.0.1"
        assert proxy_bypass("localhost")
        assert proxy_bypass("example.org")
        assert not proxy_bypass("api.gradio.app")
    assert os.environ["NO_PROXY"] == "example.org"
    assert "no_proxy" not in os.environ


@pytest.mark.slow
def test_behind_a_proxy(tmp_path: Path, tiny_folder: Path) -> None:
    """The proxy cuts the path off; the page must ask for all it needs below it."""
    port = free_port()
    words = ("--model", str(tiny_folder), "--port", str(port), "--root-path", "/demo")
    with started(
        [sys.executable, "-m", "demo_t2v", "web", *words],
        env=ENVIRONMENT | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        with urlopen(f"http://127.0.0.1:{port}/config", timeout=TIMEOUT) as answer:
            assert json.load(answer)["root"] == f"http://127.0.0.1:{port}/demo"


@pytest.mark.slow
def test_the_space_serves_the_page(tmp_path: Path, tiny_folder: Path) -> None:
    port = free_port()
    with started(
        [sys.executable, ROOT / "spaces" / "app.py"],
        cwd=tmp_path,
        env=ENVIRONMENT
        | {
            "DEMO_MODEL": str(tiny_folder),
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "TMPDIR": str(tmp_path),
        },
    ):
        assert get(port, "/config") == 200


def test_the_spaces_front_matter_is_what_the_tests_ran_with() -> None:
    text = (ROOT / "spaces" / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    matter = yaml.safe_load(front)
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert matter["sdk"] == "gradio"
    assert matter["sdk_version"] == pins["gradio"] == version("gradio")
    assert matter["license"] == "mit"
    assert (ROOT / "spaces" / matter["app_file"]).is_file()
    assert len(matter["short_description"]) <= 60  # the hub takes no longer one
    assert matter["models"]
    assert "# DEMO" in body


def test_the_spaces_requirements_are_the_packages_own() -> None:
    """The Space brings the package as a folder, so pip does not see what it needs."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {Requirement(line).name: Requirement(line) for line in project["dependencies"]}
    lines = (ROOT / "spaces" / "requirements.txt").read_text().splitlines()
    assert {Requirement(line).name: Requirement(line) for line in lines} == wanted
