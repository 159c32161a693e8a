"""The panel of a tab that starts a generation and shows its progress and results."""

from __future__ import annotations

import time
from base64 import b64encode
from html import escape
from typing import Any

import gradio as gr

from demo_t2v.web.generation import StepUpdate
from demo_t2v.web.history import GenerationResult
from demo_t2v.web.request import Tab

Updates = list[Any]
"""One update for each output of a panel."""


class _VideoOutput:
    """A video and its downloads; hidden without a video."""

    def __init__(self, label: str) -> None:
        with gr.Column(visible=False, min_width=200) as self.column:
            self.video = gr.Video(
                label=label,
                autoplay=True,
                loop=True,
                interactive=False,
                buttons=[],
                elem_classes="result",
            )
            with gr.Row():
                self.mp4 = gr.DownloadButton("Download mp4", size="sm", min_width=80)
                self.gif = gr.DownloadButton("Download gif", size="sm", min_width=80)

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        return [self.column, self.video, self.mp4, self.gif]


class ResultsPanel:
    """The components of one tab's generation; build it inside a `gr.Blocks`.

    `button` is the label of the start button, `labels` are those of the videos.
    """

    def __init__(self, tab: Tab, button: str, labels: list[str]) -> None:
        self.tab: Tab = tab
        self.start = gr.Button(button, variant="primary")
        self.status = gr.HTML(elem_classes="status", padding=False)
        self.stop = gr.Button("Stop", variant="stop", visible=False)
        self.preview = gr.HTML(visible=False, padding=False)
        with gr.Row(elem_classes="synchronized" if tab == "compare" else None):
            self.videos = [_VideoOutput(label) for label in labels]
        self.picture = gr.HTML(visible=False, padding=False, elem_classes="picture")
        self.command = gr.Textbox(
            label="Command line",
            visible=False,
            interactive=False,
            lines=2,
            buttons=["copy"],
            elem_classes="command",
        )

    @property
    def status_outputs(self) -> list[gr.blocks.Block]:
        """Outputs of `queued` and `stopped`, in order."""
        return [self.status, self.stop, self.preview]

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        """Outputs of `running`, `finished` and `failed`, in order."""
        videos = [output for video in self.videos for output in video.outputs]
        return [*self.status_outputs, *videos, self.picture, self.command]

    def queued(self) -> Updates:
        """Updates after the start."""
        return [_status("Waiting in the queue …"), gr.Button(visible=True), _no_preview()]

    def running(self, update: StepUpdate) -> Updates:
        """Updates after a denoising step."""
        preview: Any = gr.skip()
        if update.previews:
            images = (
                f'<img src="{picture}" alt="Preview of video {number}">'
                for number, picture in enumerate(update.previews, start=1)
            )
            preview = gr.HTML(f'<div class="previews">{"".join(images)}</div>', visible=True)
        return [_progress_bar(update), gr.Button(visible=True), preview, *self._unchanged()]

    def finished(self, result: GenerationResult) -> Updates:
        """Updates with the videos of a result."""
        count = len(result.videos)
        text = f"{count} videos" if count > 1 else "1 video"
        updates: Updates = [
            _status(f"{text} in {result.seconds:.1f} s"),
            gr.Button(visible=False),
            _no_preview(),
        ]
        for number in range(len(self.videos)):
            if number < count:
                files = result.videos[number]
                updates += [
                    gr.Column(visible=True),
                    gr.Video(value=str(files.mp4)),
                    gr.DownloadButton(value=str(files.mp4)),
                    gr.DownloadButton(value=str(files.gif)),
                ]
            else:
                updates += [gr.Column(visible=False), gr.Video(value=None), gr.skip(), gr.skip()]
        updates.append(gr.HTML(_picture(result), visible=result.picture is not None))
        updates.append(gr.Textbox(value=result.command, visible=True))
        return updates

    def stopped(self) -> Updates:
        """Updates after a stop by the user."""
        time.sleep(0.5)  # an update of the last step may still be on its way
        return [_status("Stopped."), gr.Button(visible=False), _no_preview()]

    def failed(self, message: str) -> Updates:
        """Updates with an error message, one line of plain text."""
        alert = f'<p role="alert">{escape(message)}</p>'
        return [alert, gr.Button(visible=False), _no_preview(), *self._unchanged()]

    def _unchanged(self) -> Updates:
        """Updates that leave the results as they are."""
        return [gr.skip()] * (len(self.outputs) - len(self.status_outputs))


def _no_preview() -> Any:
    return gr.update(visible=False, value="")


def _status(text: str) -> str:
    return f'<p role="status">{escape(text)}</p>'


def _progress_bar(update: StepUpdate) -> str:
    text = f"Step {update.step} of {update.total}"
    bar = f'<progress max="{update.total}" value="{update.step}" aria-label="{text}"></progress>'
    return f"{_status(text)}{bar}"


def _picture(result: GenerationResult) -> str:
    """The picture of a result as HTML; empty without one."""
    if result.picture is None:
        return ""
    overlay = "optical flow" if result.request.tab == "compare" else "attention"
    source = f"data:image/webp;base64,{b64encode(result.picture.read_bytes()).decode()}"
    return f'<img src="{source}" alt="Frames of the videos with their {overlay}">'
