"""Rows of a frame and a motion, which write the timeline of the motion prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any, Final

import gradio as gr

from demo_t2v.conditioning.timeline import Timeline, TimelineError, parse_motion

MAX_ROWS: Final = 6

# The browser writes the text, so that a start right after the last key has it.
_WRITE_TEXT: Final = """(...cells) => cells.flatMap((frame, i) => {
    const motion = cells[i + 1];
    return i % 2 || (frame === null && !motion) ? [] : [`${frame ?? ''}: ${motion ?? ''}`];
}).join('; ')"""
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
                named = {"show_label": number == 1}
                frame = gr.Number(label=f"Frame {number}", precision=0, min_width=70, **named)
                motion = gr.Textbox(label=f"Motion {number}", min_width=120, scale=5, **named)
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
        frames: gr.Slider,
        fps: gr.Slider,
        crossfade: gr.Slider,
    ) -> None:
        """Write the rows to the motion prompt and back, and name what is wrong in its row."""
        typed = motion_prompt.input(self.show, [motion_prompt, fps], self.outputs, **_AT_ONCE)
        texts = [prompt, motion_prompt]
        added = self._add.click(
            self._add_row, [*texts, frames, *self._cells], self.outputs, **_AT_ONCE
        )
        edits = [added.then]
        for number, button in enumerate(self._removals):
            removed = partial(self._remove_row, number)
            edits.append(button.click(removed, self._cells, self.outputs, **_AT_ONCE).then)
        for edited in [*edits, *(cell.input for cell in self._cells)]:
            edited(None, self._cells, motion_prompt, js=_WRITE_TEXT)
        for event in (motion_prompt.change, frames.change, crossfade.change, typed.then):
            event(
                self._show_errors, [frames, crossfade, *self._cells], self._errors, **_AT_ONCE
            )

    def show(self, motion_prompt: str, fps: float) -> list[Any]:
        """Updates with the rows of a timeline, or without rows for another motion prompt."""
        try:
            timeline = parse_motion(motion_prompt, fps)
        except TimelineError:
            return _updates(())
        if isinstance(timeline, Timeline) and len(timeline.starts) <= MAX_ROWS:
            return _updates(tuple(zip(timeline.starts, timeline.prompts, strict=True)))
        return _updates(())

    def _add_row(self, prompt: str, motion_prompt: str, frames: int, *cells: Any) -> list[Any]:
        """Updates with one more row, in the middle of the last segment."""
        rows = [row for row in _read(cells) if row != (None, "")] or [(0, motion_prompt or prompt)]
        last = rows[-1][0] or 0
        return _updates([*rows, ((last + frames + 1) // 2, "")][:MAX_ROWS])

    def _remove_row(self, number: int, *cells: Any) -> list[Any]:
        """Updates without a row, and without empty ones."""
        rows = _read(cells)
        return _updates([row for row in (*rows[:number], *rows[number + 1 :]) if row != (None, "")])

    def _show_errors(self, frames: int, crossfade: float, *cells: Any) -> list[Any]:
        """Updates of the errors, at most one of which is shown."""
        wrong = row_error(_read(cells), frames, crossfade)
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
        except TimelineError as error:
            return number, str(error)
    return None


def _read(cells: Sequence[Any]) -> list[tuple[int | None, str]]:
    """The rows of the cells' values."""
    return [(cells[i], cells[i + 1] or "") for i in range(0, len(cells), 2)]


def _updates(rows: Rows) -> list[Any]:
    """Updates of the editor's outputs with these rows."""
    padded = [*rows, *[(None, "")] * (MAX_ROWS - len(rows))]
    shown = [gr.Row(visible=number < len(rows)) for number in range(MAX_ROWS)]
    return [*shown, *(cell for row in padded for cell in row)]
