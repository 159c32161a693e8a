"""The panel that shows the progress and the results of a generation."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Any, Final

import gradio as gr

from demo_t2v.web.generation import StepUpdate
from demo_t2v.web.history import GenerationResult, VideoFiles
from demo_t2v.web.request import MAX_VIDEOS

_EXAMPLE: Final = "Example"
_EXAMPLE_STATUS: Final = "An example. Its settings are loaded; start to make it again."

Updates = list[Any]
"""One update for each output of a panel."""


class _VideoOutput:
    """A video and its downloads; hidden without a video."""

    def __init__(self, example: VideoFiles | None) -> None:
        file = str(example.mp4) if example else None
        with gr.Column(visible=bool(file), min_width=0, elem_classes="result") as self.column:
            self.video = gr.Video(
                file,
                label=_EXAMPLE,
                autoplay=True,
                loop=True,
                interactive=False,
                buttons=[],
            )
            with gr.Row():
                self.mp4 = gr.DownloadButton("Download mp4", file, size="sm", min_width=80)
                self.gif = gr.DownloadButton(
                    "Download gif", size="sm", min_width=80, visible=not file
                )

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        return [self.column, self.video, self.mp4, self.gif]

    def show(self, files: VideoFiles, label: str) -> Updates:
        """Updates with a video."""
        return [
            gr.Column(visible=True),
            gr.Video(value=str(files.mp4), label=label),
            gr.DownloadButton(value=str(files.mp4)),
            gr.DownloadButton(value=files.gif and str(files.gif), visible=files.gif is not None),
        ]

    def hide(self) -> Updates:
        """Updates without a video."""
        return [gr.Column(visible=False), gr.Video(value=None), gr.skip(), gr.skip()]


class ResultsPanel:
    """The components of a generation; build it inside a `gr.Blocks`.

    It begins with an example and its command line, if there is one.
    """

    def __init__(self, example: VideoFiles | None = None, command: str = "") -> None:
        status = _status(_EXAMPLE_STATUS) if example else ""
        self.status = gr.HTML(status, elem_classes="status", padding=False)
        self.stop = gr.Button("Stop", variant="stop", visible=False)
        self.preview = gr.HTML(visible=False, padding=False)
        with gr.Row(elem_classes="videos"):
            self.videos = [
                _VideoOutput(None if number else example) for number in range(MAX_VIDEOS)
            ]
        self.picture = gr.HTML(visible=False, padding=False, elem_classes="picture")
        self.command = gr.Textbox(
            command,
            label="Command line",
            visible=bool(command),
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
        """Outputs of `running`, `finished`, `example` and `failed`, in order."""
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
        labels = [f"Video {number}" for number in range(1, count + 1)]
        if result.request.tab == "compare":
            labels = [f"Motion {state}" for state in ("off", "on") for _ in range(count // 2)]
        status = f"{text} in {result.seconds:.1f} s"
        return self._shown(status, result.videos, labels, result.command, _picture(result))

    def example(self, files: VideoFiles, command: str) -> Updates:
        """Updates with an example."""
        return self._shown(_EXAMPLE_STATUS, [files], [_EXAMPLE], command)

    def stopped(self) -> Updates:
        """Updates after a stop by the user."""
        time.sleep(0.5)  # an update of the last step may still be on its way
        return [_status("Stopped."), gr.Button(visible=False), _no_preview()]

    def failed(self, message: str) -> Updates:
        """Updates with an error message, one line of plain text."""
        alert = f'<p role="alert">{escape(message)}</p>'
        return [alert, gr.Button(visible=False), _no_preview(), *self._unchanged()]

    def _shown(
        self,
        status: str,
        videos: Sequence[VideoFiles],
        labels: Sequence[str],
        command: str,
        picture: str = "",
    ) -> Updates:
        updates: Updates = [_status(status), gr.Button(visible=False), _no_preview()]
        for number, output in enumerate(self.videos):
            if number < len(videos):
                updates += output.show(videos[number], labels[number])
            else:
                updates += output.hide()
        updates.append(gr.HTML(picture, visible=bool(picture)))
        updates.append(gr.Textbox(value=command, visible=True))
        return updates

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
