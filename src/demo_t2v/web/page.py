"""Connects the components of the page to a session."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import gradio as gr

from demo_t2v.config import ConfigError
from demo_t2v.core.devices import as_device_error
from demo_t2v.inference.runner import out_of_memory
from demo_t2v.model_folder import first_line
from demo_t2v.web.history import GenerationResult, History
from demo_t2v.web.layout import PageLayout
from demo_t2v.web.request import RequestError
from demo_t2v.web.results_panel import ResultsPanel
from demo_t2v.web.session import GenerationSession

# Videos pause during a generation, since playing them slows it down.
_PAUSE_VIDEOS: Final = """() => {
    for (const video of document.querySelectorAll('video')) {
        if (!video.paused) { video.pause(); video.dataset.resume = ''; }
    }
    return [];
}"""
_RESUME_VIDEOS: Final = """() => {
    for (const video of document.querySelectorAll('video[data-resume]')) {
        delete video.dataset.resume;
        video.play().catch(() => {});
    }
    return [];
}"""
_UPDATE_INTERVAL: Final = 0.5
"""Seconds between two updates of the progress; each update slows the generation down."""
_FILE_LIFETIME: Final = 24 * 3600
"""Seconds until the page's server deletes a file."""
_FILES_DELETED: Final = "Its videos are deleted. Its settings are loaded, to make them again."
_UNQUEUED: Final[dict[str, Any]] = {"queue": False, "api_visibility": "private"}


def build_page(session: GenerationSession, max_queue: int = 20) -> gr.Blocks:
    """The page of a session; `max_queue` requests wait at most, further ones are refused."""
    blocks = gr.Blocks(
        title="DEMO: text to video",
        analytics_enabled=False,
        delete_cache=(_FILE_LIFETIME, _FILE_LIFETIME),
    )
    with blocks:
        Page(session)
    blocks.queue(max_size=max_queue, default_concurrency_limit=1)
    return blocks


class Page:
    """The components of the page, connected to a session; build it inside a `gr.Blocks`."""

    def __init__(self, session: GenerationSession) -> None:
        self.session = session
        self.layout = PageLayout(session.config.model, session.limits, session.has_motion)
        for panel in self.layout.panels.values():
            self._connect(panel)
        self.layout.gallery.select(
            self.load_result,
            self.layout.history,
            [self.layout.tabs, *self.layout.inputs, *self.layout.panel_outputs],
        )
        self._update_gallery(self.layout.history_tab.select)

    def run(self, panel: ResultsPanel, history: History, *form: Any) -> Iterator[list[Any]]:
        """Updates of the history and the panel's outputs while a form's request is generated."""
        last_update = 0.0
        try:
            request = self.session.limits.read_form(
                panel.tab, *form, motion_words=self.session.motion_words
            )
            for update in self.session.generate(request):
                if isinstance(update, GenerationResult):
                    yield [history.add(update), *panel.finished(update)]
                elif update.previews or time.monotonic() - last_update > _UPDATE_INTERVAL:
                    last_update = time.monotonic()
                    yield [gr.skip(), *panel.running(update)]
        except (RequestError, ConfigError, ArithmeticError) as error:
            yield [gr.skip(), *panel.failed(str(error))]
        except Exception as error:
            if out_of_memory(error):
                message = "Not enough memory: choose fewer videos, frames or pixels."
            else:
                reason = first_line(as_device_error(error) or error).rstrip(".")
                message = f"The generation failed: {reason}."
            yield [gr.skip(), *panel.failed(message)]

    def load_result(self, history: History, selected: gr.SelectData) -> list[Any]:
        """Updates that load an entry of the history: its tab, its form and its videos."""
        result = history.results[selected.index]
        updates: list[Any] = [gr.Tabs(selected=result.request.tab), *result.request.form]
        for tab, panel in self.layout.panels.items():
            if tab != result.request.tab:
                updates += [gr.skip()] * len(panel.outputs)
            elif result.files_exist:
                updates += panel.finished(result)
            else:
                updates += panel.failed(_FILES_DELETED)
        return updates

    def _connect(self, panel: ResultsPanel) -> None:
        """Start the panel's generation on its events, and stop it."""
        triggers: list[Any] = [panel.start.click]
        if panel.tab == "generate":
            triggers.append(self.layout.prompt.submit)
            triggers += [
                button.click(None, None, self.layout.prompt, js=f"() => {json.dumps(text)}").then
                for text, button in self.layout.examples.items()
            ]
        runs = []
        for trigger in triggers:
            started = trigger(
                lambda: [gr.Tabs(selected=panel.tab), *panel.queued()],
                None,
                [self.layout.tabs, *panel.status_outputs],
                js=_PAUSE_VIDEOS,
                show_progress="hidden",
                **_UNQUEUED,
            )
            run = started.then(
                partial(self.run, panel),
                [self.layout.history, *self.layout.inputs],
                [self.layout.history, *panel.outputs],
                concurrency_id="pipeline",
                concurrency_limit=1,
                show_progress="hidden",
                api_visibility="private",
            )
            run.then(None, js=_RESUME_VIDEOS)
            # The gallery may be open; a selection is an index into the current history.
            self._update_gallery(run.then)
            runs.append(run)
        stopped = panel.stop.click(None, cancels=runs, show_progress="hidden", **_UNQUEUED)
        stopped.then(
            panel.stopped,
            None,
            panel.status_outputs,
            js=_RESUME_VIDEOS,
            show_progress="hidden",
            **_UNQUEUED,
        )

    def _update_gallery(self, event: Any) -> None:
        event(History.gallery, self.layout.history, self.layout.gallery, **_UNQUEUED)
