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
from demo_t2v.web.examples import Example
from demo_t2v.web.fields import RequestError
from demo_t2v.web.history import GenerationResult, History, VideoFiles
from demo_t2v.web.layout import PageLayout
from demo_t2v.web.request import GenerationRequest, Tab
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
_CLICK_START: Final = """() => {
    [...document.querySelectorAll('.start')].find(button => button.offsetParent)?.click();
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
        self.layout = layout = PageLayout(session.config, session.limits, session.has_motion)
        for tab in layout.tab_items:
            shown = partial(_show_prompts, tab.id)
            prompts = [layout.prompt, layout.motion_prompt]
            tab.select(shown, None, prompts, show_progress="hidden", **_UNQUEUED)
        for box in (layout.prompt, layout.motion_prompt):
            box.submit(None, js=_CLICK_START)
        self._connect_preset()
        self._connect_runs()
        if session.has_motion:
            layout.timeline.connect(
                layout.prompt,
                layout.motion_prompt,
                layout.settings["num_frames"],
                layout.settings["fps"],
                layout.handles["motion_crossfade"],
            )
        loaded = [
            layout.tabs,
            layout.preset,
            *layout.inputs,
            *layout.grid_prompts,
            *layout.timeline.outputs,
            *layout.results.outputs,
        ]
        for example, video in layout.example_videos:
            video.click(
                partial(self.load_example, example),
                None,
                loaded,
                show_progress="hidden",
                **_UNQUEUED,
            )
        layout.gallery.select(self.load_result, layout.history, loaded)
        self._update_gallery(layout.history_tab.select)

    def run(self, tab: Tab, history: History, *form: Any) -> Iterator[list[Any]]:
        """Updates of the history and the results while a form's request is generated."""
        panel = self.layout.results
        last_update = 0.0
        try:
            request = self.session.limits.read_form(
                tab, *form, motion_words=self.session.motion_words
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
        panel = self.layout.results
        shown = panel.finished(result) if result.files_exist else panel.failed(_FILES_DELETED)
        return [*self._load_form(result.request), *shown]

    def load_example(self, example: Example) -> list[Any]:
        """Updates that load an example: its tab, its form and its video."""
        request = example.request(self.session.limits)
        command = request.command(self.session.config)
        shown = self.layout.results.example(VideoFiles(example.file), command)
        return [*self._load_form(request), *shown]

    def _load_form(self, request: GenerationRequest) -> list[Any]:
        """Updates of the tabs, the preset, the form and the timeline."""
        prompt, motion_prompt, *values = self.session.limits.form(request)
        settings = [gr.Tabs(selected=request.tab), self.session.limits.preset_of(request)]
        if request.tab == "grid":
            rows = [gr.skip()] * len(self.layout.timeline.outputs)
            return [*settings, *_show_prompts("grid"), *values, prompt, motion_prompt, *rows]
        shown = _show_prompts(request.tab, prompt, motion_prompt)
        rows = self.layout.timeline.show(motion_prompt, request.fps)
        return [*settings, *shown, *values, gr.skip(), gr.skip(), *rows]

    def _connect_preset(self) -> None:
        """Let the preset set its fields, and the fields select the preset that they have."""
        layout, limits = self.layout, self.session.limits
        layout.preset.input(
            limits.preset_values,
            layout.preset,
            layout.sampling,
            show_progress="hidden",
            **_UNQUEUED,
        )
        gr.on(
            # Not `change`: after an update of all fields its events have old values of some.
            [component.input for component in layout.sampling],
            limits.preset,
            layout.sampling,
            layout.preset,
            show_progress="hidden",
            trigger_mode="always_last",
            **_UNQUEUED,
        )

    def _connect_runs(self) -> None:
        """Start each tab's generation on its events, and stop all of them."""
        layout = self.layout
        triggers: list[tuple[Tab, Any]] = [
            (tab, start.click) for tab, start in layout.starts.items()
        ]
        for text, button in layout.example_prompts:
            filled = button.click(None, None, layout.prompt, js=f"() => {json.dumps(text)}")
            triggers.append(("generate", filled.then))
        runs = []
        for tab, trigger in triggers:
            started = trigger(
                partial(self._started, tab),
                None,
                [layout.tabs, layout.prompt, layout.motion_prompt, *layout.results.status_outputs],
                js=_PAUSE_VIDEOS,
                show_progress="hidden",
                **_UNQUEUED,
            )
            run = started.then(
                partial(self.run, tab),
                [layout.history, *(layout.grid_inputs if tab == "grid" else layout.inputs)],
                [layout.history, *layout.results.outputs],
                concurrency_id="pipeline",
                concurrency_limit=1,
                show_progress="hidden",
                api_visibility="private",
            )
            run.then(None, js=_RESUME_VIDEOS)
            # The gallery may be open; a selection is an index into the current history.
            self._update_gallery(run.then)
            runs.append(run)
        stopped = layout.results.stop.click(None, cancels=runs, show_progress="hidden", **_UNQUEUED)
        stopped.then(
            layout.results.stopped,
            None,
            layout.results.status_outputs,
            js=_RESUME_VIDEOS,
            show_progress="hidden",
            **_UNQUEUED,
        )

    def _started(self, tab: Tab) -> list[Any]:
        """Updates after the start of a tab's generation."""
        return [gr.Tabs(selected=tab), *_show_prompts(tab), *self.layout.results.queued()]

    def _update_gallery(self, event: Any) -> None:
        event(History.gallery, self.layout.history, self.layout.gallery, **_UNQUEUED)


def _show_prompts(tab: str, *texts: str) -> list[Any]:
    """Updates of prompt and motion prompt as a tab shows them, with their `texts` if given."""
    shown = (tab != "grid", tab == "decompose")
    values: list[dict[str, Any]] = [{"value": text} for text in texts] or [{}, {}]
    return [gr.Textbox(visible=box, **value) for box, value in zip(shown, values, strict=True)]
