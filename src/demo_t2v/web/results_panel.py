"""Where a tab shows its progress and its results: components, and what is done to them."""

from __future__ import annotations

import time
from base64 import b64encode
from html import escape
from typing import Any

import gradio as gr

from demo_t2v.web.history import Made
from demo_t2v.web.request import Tab
from demo_t2v.web.session import Progress

Updates = list[Any]
"""One update for each of a stage's outputs."""


class _Slot:
    """A video and its downloads; shows nothing until there is one."""

    def __init__(self, label: str) -> None:
        with gr.Column(visible=False, min_width=200) as self.box:
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
        return [self.box, self.video, self.mp4, self.gif]


class Stage:
    """The stage of one tab. Build it inside of a gr.Blocks; `labels` names its videos."""

    def __init__(self, tab: Tab, labels: list[str]) -> None:
        self.tab: Tab = tab
        self.status = gr.HTML(elem_classes="status", padding=False)
        self.stop = gr.Button("Stop", variant="stop", visible=False)
        self.preview = gr.HTML(visible=False, padding=False)
        with gr.Row(elem_classes="in-step" if tab == "compare" else None):
            self.slots = [_Slot(label) for label in labels]
        self.picture = gr.HTML(visible=False, padding=False, elem_classes="strip")
        self.command = gr.Textbox(
            label="The same in a terminal",
            visible=False,
            interactive=False,
            lines=2,
            buttons=["copy"],
            elem_classes="command",
        )

    @property
    def news(self) -> list[gr.blocks.Block]:
        """What `waiting` and `stopped` give updates for, in order."""
        return [self.status, self.stop, self.preview]

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        """What `running`, `finished` and `problem` give updates for, in order."""
        slots = [output for slot in self.slots for output in slot.outputs]
        return [*self.news, *slots, self.picture, self.command]

    def waiting(self) -> Updates:
        """The button was pressed."""
        return [_say("Waiting for a turn …"), gr.Button(visible=True), _no_preview()]

    def running(self, progress: Progress) -> Updates:
        """One step more."""
        preview: Any = gr.skip()
        if progress.previews:
            images = (
                f'<img src="{picture}" alt="video {number}, still emerging">'
                for number, picture in enumerate(progress.previews, start=1)
            )
            preview = gr.HTML(f'<div class="emerging">{"".join(images)}</div>', visible=True)
        return [_bar(progress), gr.Button(visible=True), preview, *self._same()]

    def finished(self, made: Made) -> Updates:
        """The result takes the stage."""
        many = f"{len(made.clips)} videos" if len(made.clips) > 1 else "A video"
        updates: Updates = [
            _say(f"{many} in {made.seconds:.1f} s"),
            gr.Button(visible=False),
            _no_preview(),
        ]
        for number in range(len(self.slots)):
            if number < len(made.clips):
                clip = made.clips[number]
                values = (str(clip.mp4), str(clip.mp4), str(clip.gif))
                kinds = (gr.Video, gr.DownloadButton, gr.DownloadButton)
                updates += [gr.Column(visible=True)]
                updates += [kind(value=value) for kind, value in zip(kinds, values, strict=True)]
            else:
                updates += [gr.Column(visible=False), gr.Video(value=None), gr.skip(), gr.skip()]
        updates.append(gr.HTML(_strip(made), visible=made.picture is not None))
        updates.append(gr.Textbox(value=made.command, visible=True))
        return updates

    def stopped(self) -> Updates:
        """The visitor wants no more of it."""
        time.sleep(0.5)  # a step's news that was on its way must not have the last word
        return [_say("Stopped."), gr.Button(visible=False), _no_preview()]

    def problem(self, text: str) -> Updates:
        """What is wrong, in a line of plain text."""
        said = f'<p role="alert">{escape(text)}</p>'
        return [said, gr.Button(visible=False), _no_preview(), *self._same()]

    def _same(self) -> Updates:
        """Results stay as they are."""
        return [gr.skip()] * (len(self.outputs) - len(self.news))


def _no_preview() -> Any:
    return gr.update(visible=False, value="")


def _say(text: str) -> str:
    return f'<p role="status">{escape(text)}</p>'


def _bar(progress: Progress) -> str:
    text = f"Step {progress.step} of {progress.total}"
    bar = (
        f'<progress max="{progress.total}" value="{progress.step}" aria-label="{text}"></progress>'
    )
    return f"{_say(text)}{bar}"


def _strip(made: Made) -> str:
    """The picture of a result, if it has one."""
    if made.picture is None:
        return ""
    about = "optical flow" if made.wish.tab == "compare" else "attention on the motion prompt"
    source = f"data:image/webp;base64,{b64encode(made.picture.read_bytes()).decode()}"
    return f'<img src="{source}" alt="Frames of the result, and over them the {about}">'
