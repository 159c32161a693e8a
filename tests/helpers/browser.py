"""The web page in a real browser, served by a real process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a browser: apt-get install chromium"
)
WAIT = 60_000  # milliseconds; only a page that hangs takes longer


@contextmanager
def served(*words: str) -> Iterator[str]:
    """The address of a page that `demo-t2v web` serves in the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "demo_t2v", "web", "--port", "0", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), line
            yield line.split()[0]
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """A browser context on the page, with its requests and errors."""

    def __init__(self, browser: Browser, address: str):
        self.context: BrowserContext = browser.new_context(viewport={"width": 1280, "height": 900})
        self.context.set_default_timeout(WAIT)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._old: list[str] = []  # videos before the last request
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))
        self.page.goto(address)
        self.page.get_by_label("Prompt", exact=True).wait_for()

    @property
    def foreign(self) -> list[str]:
        """Requests to other machines."""
        hosts = {url: urlsplit(url) for url in self.requests}
        return [
            url
            for url, parts in hosts.items()
            if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1"
        ]

    @property
    def panel(self) -> Locator:
        """The results."""
        return self.page.locator("#result")

    @property
    def open_tab(self) -> Locator:
        """The open tab."""
        return self.page.get_by_role("tabpanel")

    @property
    def bar(self) -> Locator:
        """The progress bar."""
        return self.panel.locator(".status progress")

    def tab(self, name: str) -> None:
        """Open a tab, from the menu of a narrow page if needed."""
        tab = self.page.get_by_role("tab", name=name, exact=True)
        more = self.page.get_by_role("button", name="More tabs")
        tab.or_(more).locator("visible=true").first.wait_for()
        if tab.is_visible():
            tab.click()
        else:
            more.click()
            self.page.get_by_role("button", name=name, exact=True).last.click()
        self.page.locator("button[role=tab][aria-selected=true]", has_text=name).wait_for(
            state="attached"
        )

    def settings(self, **values: float) -> None:
        """Open the settings and enter numbers by label."""
        steps = self.page.get_by_label("number input for Steps")
        if not steps.is_visible():
            self.page.get_by_role("button", name=re.compile("^Settings")).click()
            steps.wait_for()
        for name, value in values.items():
            box = self.page.get_by_label(f"number input for {name}", exact=True)
            # Gradio may set the value of a slider once more while it appears.
            for _ in range(10):
                box.fill(str(value))
                box.press("Tab")
                self.page.wait_for_timeout(200)
                if box.input_value() == str(value):
                    break

    def advanced_settings(self) -> None:
        """Open the advanced settings."""
        self.page.get_by_role("button", name="Advanced settings").click()
        self.page.get_by_label("Scheduler").wait_for()

    def request(self, prompt: str, button: str = "Generate") -> None:
        self._old = self._sources()
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        self.page.get_by_role("button", name=button, exact=True).click()

    def videos(self, count: int) -> list[bytes]:
        """Wait until `count` videos, new since `request`, play; returns their bytes."""
        self.page.wait_for_function(
            """([count, old]) => {
                const videos = [...document.querySelectorAll('#result video')]
                    .filter(v => v.offsetParent);
                return videos.length === count
                    && videos.every(v => v.videoWidth > 0 && !v.paused && v.currentTime > 0)
                    && !videos.some(v => old.includes(v.currentSrc));
            }""",
            arg=[count, self._old],
        )
        self._old = []
        return [self.context.request.get(source).body() for source in self._sources()]

    def _sources(self) -> list[str]:
        script = "videos => videos.filter(v => v.offsetParent).map(v => v.currentSrc)"
        sources: list[str] = self.page.eval_on_selector_all("#result video", script)
        return sources

    def status(self) -> str:
        return self.panel.locator(".block.status").inner_text()

    def wait_for_status(self, text: str) -> None:
        """Wait until the status line contains `text`."""
        self.panel.locator(".block.status").get_by_text(text).first.wait_for()
