"""Rows of a frame and a motion, which write the timeline of the motion prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any, Final

import gradio as gr

from demo_t2v.conditioning.blend import MotionPromptError
from demo_t2v.conditioning.timeline import Timeline, parse_motion

MAX_ROWS: Final = 6

# The browser writes the text, so that a start right after the last key has it. Without rows the
# motion prompt is no timeline, and stays.
_WRITE_TEXT: Final = """(text, ...cells) => cells.flatMap((frame, i) => {
    const motion = cells[i + 1];
    return i % 2 || (frame === null && !motion) ? [] : [`${frame ?? ''}: ${motion ?? ''}`];
}).join('; ') || text"""
_AT_ONCE: Final[dict[str, Any]] = {
    "queue": False,
    "show_progress": "hidden",
    "api_visibility": "private",
}

Rows = Sequence[tuple[int | None, str]]
"""The frame at which each motion begins, and its motion prompt."""


class TimelineEditor:
    """The rows and their buttons; build it inside a `gr.Blocks`, and `connect` it."""

    def __init__(self) -> None:
        self._rows: list[gr.Row] = []
        self._cells: list[gr.Number | gr.Textbox] = []
        self._removals: list[gr.Button] = []
        self._errors: list[gr.HTML] = []
        for number in range(1, MAX_ROWS + 1):
            with gr.Row(visible=False, elem_classes="timeline-row") as row:
                frame = gr.Number(
                    label=f"Frame {number}", show_label=number == 1, precision=0, min_width=70
                )
                motion = gr.Textbox(
                    label=f"Motion {number}", show_label=number == 1, min_width=120, scale=5
                )
                self._cells += [frame, motion]
                self._removals.append(gr.Button("Remove", size="sm", min_width=70, scale=0))
                self._errors.append(gr.HTML(visible=False, elem_classes="row-error"))
            self._rows.append(row)
        self._add = gr.Button("Add a motion", size="sm")

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        """Outputs of `show`, in order."""
        return [*self._rows, *self._cells]

    def connect(
        self,
        prompt: gr.Textbox,
        motion_prompt: gr.Textbox,
        frames: gr.Number | gr.Slider,
        fps: gr.Number | gr.Slider,
        crossfade: gr.Slider,
    ) -> None:
        """Write the rows to the motion prompt and back, and name what is wrong in its row."""
        cells, edited = self._cells, [*self.outputs, motion_prompt]
        self._add.click(self._add_row, [prompt, motion_prompt, frames, *cells], edited, **_AT_ONCE)
        for number, button in enumerate(self._removals):
            button.click(partial(self._remove_row, number), cells, edited, **_AT_ONCE)
        for cell in cells:  # not `input`, which a pasted or deleted text does not trigger
            cell.change(None, [motion_prompt, *cells], motion_prompt, js=_WRITE_TEXT)
        left = motion_prompt.blur(
            self._follow, [motion_prompt, fps, *cells], self.outputs, **_AT_ONCE
        )
        for event in (motion_prompt.change, frames.change, crossfade.change, left.then):
            event(self._show_errors, [frames, crossfade, *cells], self._errors, **_AT_ONCE)

    def show(self, motion_prompt: str, fps: float) -> list[Any]:
        """Updates with the rows of a timeline, or without rows for another motion prompt."""
        try:
            timeline = parse_motion(motion_prompt, fps)
        except MotionPromptError:
            return _updates(())
        if isinstance(timeline, Timeline) and len(timeline.starts) <= MAX_ROWS:
            prompts = map(str, timeline.prompts)
            return _updates(tuple(zip(timeline.starts, prompts, strict=True)))
        return _updates(())

    def _follow(self, motion_prompt: str, fps: float, *cells: Any) -> list[Any]:
        """Updates with the rows of a motion prompt, unless the rows have written it."""
        if motion_prompt == _text(_read(cells)):
            return [gr.skip()] * len(self.outputs)
        return self.show(motion_prompt, fps)

    def _add_row(self, prompt: str, motion_prompt: str, frames: int, *cells: Any) -> list[Any]:
        """Updates of rows and text with one more row, in the middle of the last segment."""
        rows = _read(cells) or [(0, motion_prompt or prompt)]
        last = rows[-1][0] or 0
        rows = [*rows, ((last + frames + 1) // 2, "")][:MAX_ROWS]
        return [*_updates(rows), _text(rows)]

    def _remove_row(self, number: int, *cells: Any) -> list[Any]:
        """Updates of rows and text without a row."""
        pairs = [*cells[: 2 * number], *cells[2 * number + 2 :]]
        rows = _read(pairs)
        return [*_updates(rows), _text(rows)]

    def _show_errors(self, frames: int, crossfade: float, *cells: Any) -> list[Any]:
        """Updates of the errors, at most one of which is shown."""
        wrong = row_error(_pairs(cells), frames, crossfade)
        return [
            gr.HTML(f'<p role="alert">{escape(wrong[1])}</p>', visible=True)
            if wrong and wrong[0] == number
            else gr.HTML("", visible=False)
            for number in range(MAX_ROWS)
        ]


def row_error(rows: Rows, num_frames: int, crossfade: float) -> tuple[int, str] | None:
    """The number of the first row that is wrong, from 0, and why. Empty rows do not count."""
    starts: tuple[int, ...] = ()
    motions: tuple[str, ...] = ()
    for number, (start, motion) in enumerate(rows):
        if (start, motion) == (None, ""):
            continue
        if start is None:
            return number, "timeline: this motion has no frame"
        if ";" in motion:
            return number, "timeline: a semicolon ends a motion; write this one without it"
        starts, motions = (*starts, start), (*motions, motion)
        try:
            Timeline(starts, motions).frame_weights(num_frames, crossfade)
        except MotionPromptError as error:
            return number, str(error)
    return None


def _pairs(cells: Sequence[Any]) -> list[tuple[int | None, str]]:
    """The rows of the cells' values, with empty ones."""
    return [(cells[i], cells[i + 1] or "") for i in range(0, len(cells), 2)]


def _read(cells: Sequence[Any]) -> list[tuple[int | None, str]]:
    """The rows of the cells' values, without empty ones."""
    return [row for row in _pairs(cells) if row != (None, "")]


def _text(rows: Rows) -> str:
    """The timeline of the rows, as the browser writes it."""
    return "; ".join(f"{'' if start is None else start}: {motion}" for start, motion in rows)


def _updates(rows: Rows) -> list[Any]:
    """Updates of the editor's outputs with these rows."""
    padded = [*rows, *[(None, "")] * (MAX_ROWS - len(rows))]
    shown = [gr.Row(visible=number < len(rows)) for number in range(MAX_ROWS)]
    return [*shown, *(cell for row in padded for cell in row)]
