"""Measures the time from click to playing video, and the waits of several simultaneous visitors.

First, generation in this process, with the model loaded and the file written, is compared with the
page in a real browser, from the click until the video plays, alternately and with the same prompt
and settings. Then a browser context for each of PROMPTS requests videos without a pause; each video
must equal the one that its visitor got alone before.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.table import Table

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.data.video import write_video
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.runner import Runner

PROMPTS = (
    "a balloon moves up in the sky",
    "a car moves to the left on the sand",
    "a frog bounces on the grass",
    "a whale grows quickly at night",
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Waits until a new visible video plays; gives its address. Polling would slow down the page.
PLAYS = """before => new Promise(done => {
    const events = ['playing', 'timeupdate'];
    const look = ({target: video}) => {
        if (!video.offsetParent || video.currentSrc === before || video.paused) return;
        events.forEach(event => document.removeEventListener(event, look, true));
        done(video.currentSrc);
    };
    events.forEach(event => document.addEventListener(event, look, true));
})"""


@contextmanager
def served() -> Iterator[tuple[str, psutil.Process]]:
    """The page's address and its process."""
    command = [sys.executable, "-m", "demo_t2v", "web", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0], psutil.Process(process.pid)
        finally:
            process.terminate()


@dataclass
class Visitor:
    """One browser context, always with the same prompt."""

    page: Page
    prompt: str
    alone: str = ""
    source: str = ""
    requested: float = 0.0
    waits: list[float] = field(default_factory=list)
    wrong: int = 0

    def request(self) -> None:
        """Press the button."""
        self.requested = time.perf_counter()
        self.page.get_by_role("button", name="Generate", exact=True).click()

    def receive(self) -> str:
        """Wait until the video plays; returns its digest and records the seconds."""
        self.source = str(self.page.evaluate(PLAYS, self.source))
        self.waits.append(time.perf_counter() - self.requested)
        return hashlib.sha256(self.page.request.get(self.source).body()).hexdigest()


def visit(browser: Browser, address: str, prompt: str) -> Visitor:
    page = browser.new_context().new_page()
    page.goto(address)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    return Visitor(page, prompt)


def in_process(rounds: int) -> Iterator[float]:
    """Seconds of generating and writing a video, after a warm-up."""
    config = InferenceConfig()
    runner = Runner.load(resolve(config.model), config)
    jobs = make_jobs([("1", PROMPTS[0])], 1, 0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            started = time.perf_counter()
            (video,) = runner.videos(jobs)
            write_video(video.frames, Path(folder) / f"{number}.mp4", config.fps, "mp4")
            if number:
                yield time.perf_counter() - started


def latency(console: Console, browser: Browser, address: str, rounds: int) -> None:
    visitor = visit(browser, address, PROMPTS[0])
    visitor.request()
    visitor.receive()
    table = Table(title="from prompt to video, seconds")
    for column in ("round", "generate", "click to playing", "more"):
        table.add_column(column, justify="right")
    rows = []
    quiet = "document.querySelectorAll('video').forEach(video => video.pause())"
    visitor.page.evaluate(quiet)  # so that the browser does not slow down `generate`
    for alone in in_process(rounds):
        visitor.request()
        visitor.receive()
        visitor.page.evaluate(quiet)
        rows.append((alone, visitor.waits[-1]))
        more = rows[-1][1] - rows[-1][0]
        table.add_row(str(len(rows)), f"{alone:.2f}", f"{rows[-1][1]:.2f}", f"{more:+.2f}")
    console.print(table)
    console.print(f"median difference {statistics.median(b - a for a, b in rows):+.2f} s")
    visitor.page.context.close()


def crowd(
    console: Console, browser: Browser, address: str, server: psutil.Process, seconds: float
) -> None:
    visitors = [visit(browser, address, prompt) for prompt in PROMPTS]
    for visitor in visitors:
        visitor.request()
        visitor.alone = visitor.receive()
        visitor.waits.clear()
    memory = [server.memory_info().rss]
    ends = time.perf_counter() + seconds
    for visitor in visitors:
        visitor.request()
    busy = list(visitors)
    while busy:
        visitor = busy.pop(0)  # the page serves in the order of requests
        visitor.wrong += visitor.receive() != visitor.alone
        memory.append(server.memory_info().rss)
        if time.perf_counter() < ends:
            visitor.request()
            busy.append(visitor)
    table = Table(title=f"{len(visitors)} visitors at once for {seconds:.0f} s")
    for column in ("visitor", "videos", "wrong ones", "messages", "median wait, s", "longest, s"):
        table.add_column(column, justify="right")
    for number, visitor in enumerate(visitors, start=1):
        messages = visitor.page.get_by_role("alert").count()
        waits = (statistics.median(visitor.waits), max(visitor.waits))
        made = (number, len(visitor.waits), visitor.wrong, messages)
        table.add_row(*map(str, made), *(f"{wait:.1f}" for wait in waits))
    console.print(table)
    quarters = [memory[quarter * (len(memory) - 1) // 4] for quarter in range(5)]
    sizes = ", ".join(f"{size / 2**20:.0f}" for size in quarters)
    console.print(f"memory of the server, MiB, at each quarter of the time: {sizes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    console = Console()
    path = shutil.which("chromium")
    if path is None:
        console.print("skipped: needs a browser, apt-get install chromium")
        return
    with served() as (address, server), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        console.print(
            f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}, chromium {browser.version}"
        )
        latency(console, browser, address, options.rounds)
        crowd(console, browser, address, server, options.seconds)
        browser.close()


if __name__ == "__main__":
    main()
