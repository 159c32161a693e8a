"""The components of the page, in reading order."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any, Final

import gradio as gr

from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.config import InferenceConfig
from demo_t2v.config.inference import inference_options, label
from demo_t2v.data.sprites import BACKGROUNDS, MOTIONS, SPEEDS, THINGS
from demo_t2v.web.examples import Example, example_prompts, example_videos
from demo_t2v.web.fields import Bound, Choice, NoiseLevels
from demo_t2v.web.history import HISTORY_LENGTH, History, VideoFiles
from demo_t2v.web.request import (
    ADVANCED,
    GRID_SIDE,
    PROMPT_LENGTH,
    SAMPLING,
    Limits,
    Tab,
    option_key,
)
from demo_t2v.web.results_panel import ResultsPanel
from demo_t2v.web.timeline_editor import TimelineEditor

_RANDOM_SEED: Final = "() => Math.floor(Math.random() * 2 ** 32)"
_COMPARE_TEXT: Final = (
    "The same seed without the motion branch and with it. Arrows below the videos show the optical "
    "flow, without the motion branch above and with it below."
)
_DECOMPOSE_TEXT: Final = (
    "The content encoder reads the prompt, the motion encoder the motion prompt. On a timeline, "
    "each motion begins at its frame."
)
_GRID_TEXT: Final = (
    "Each content prompt, in a column with one seed, with each motion prompt or timeline, in a row."
)
_ATTENTION_TEXT: Final = (
    "Attention of the motion transformers to the end-of-text token of the motion prompt, which "
    "summarizes the prompt; bright is high. Rows: after a quarter, a half and three quarters of "
    "the steps, and before the last step."
)


class PageLayout:
    """Creates the components of the page for one model; build it inside a `gr.Blocks`.

    `inputs` are the form's components in the order of `Limits.form`. `starts` are the buttons that
    start the generation of a tab.
    """

    def __init__(self, config: InferenceConfig, limits: Limits, has_motion: bool) -> None:
        self.history = gr.State(History(), delete_callback=History.delete_files)
        self.example_videos: list[tuple[Example, gr.HTML]] = []
        self.example_prompts: list[tuple[str, gr.Button]] = []
        examples = example_videos(config)
        first = examples[0] if examples else None
        _header(config.model)
        with gr.Row(elem_id="columns"):
            with gr.Column(elem_id="form", min_width=0):
                placeholder = example_prompts(config)[0]
                self.prompt, self.motion_prompt = _prompts(placeholder, first)
                self._tabs(limits, has_motion)
                self.preset = _preset(limits)
                self.settings = _settings(limits, first)
            with gr.Column(elem_id="result", min_width=0):
                command = first.request(limits).command(config) if first else ""
                self.results = ResultsPanel(VideoFiles(first.file) if first else None, command)
            with gr.Column(elem_id="examples", min_width=0):
                if examples:
                    self.example_videos = _example_videos(examples)
                else:
                    self.example_prompts = _example_prompts(example_prompts(config))
                if config.model in BUILT_IN:
                    _vocabulary()

    @property
    def inputs(self) -> list[gr.blocks.Block]:
        """The form's components in the order of `Limits.form`."""
        return [self.prompt, self.motion_prompt, *self.settings.values(), *self.handles.values()]

    @property
    def sampling(self) -> list[Any]:
        """The form's components that a preset sets, in the order of `SAMPLING`."""
        return [self.settings[name] for name in SAMPLING]

    @property
    def grid_inputs(self) -> list[gr.blocks.Block]:
        """The form's components of the tab `grid`, in the order of `Limits.form`."""
        return [*self.grid_prompts, *self.inputs[2:]]

    def _tabs(self, limits: Limits, has_motion: bool) -> None:
        """The tabs, each with what is its own, and a button that starts it."""
        self.starts: dict[Tab, gr.Button] = {}
        with gr.Tabs(selected="generate") as self.tabs:
            with gr.Tab("Generate", id="generate") as generate:
                self.starts["generate"] = _start("Generate")
            with gr.Tab("Compare", id="compare", visible=has_motion) as compare:
                gr.Markdown(_COMPARE_TEXT)
                self.starts["compare"] = _start("Compare")
            with gr.Tab("Take apart", id="decompose", visible=has_motion) as decompose:
                gr.Markdown(_DECOMPOSE_TEXT)
                self.timeline = TimelineEditor()
                with gr.Row():
                    self.handles = {name: _field(name, limits) for name in limits.handles}
                self.starts["decompose"] = _start("Take apart")
            with gr.Tab("Grid", id="grid", visible=has_motion) as grid:
                gr.Markdown(_GRID_TEXT)
                with gr.Row():
                    self.grid_prompts = [
                        _text_box(name, f"one a line, at most {GRID_SIDE}", "", lines=GRID_SIDE)
                        for name in ("Content prompts", "Motion prompts")
                    ]
                self.starts["grid"] = _start("Make the grid")
            with gr.Tab("Look inside", id="attention", visible=has_motion) as attention:
                gr.Markdown(_ATTENTION_TEXT)
                self.starts["attention"] = _start("Look inside")
            with gr.Tab("History", id="history") as self.history_tab:
                self.gallery = _gallery()
        self.tab_items = [generate, compare, decompose, grid, attention, self.history_tab]


def _header(model: str) -> None:
    gr.HTML(
        "<h1>DEMO: text to video</h1>"
        "<p>Describe what the video shows and how it moves. "
        f"Model: <strong>{escape(model)}</strong>.</p>",
        elem_id="head",
        padding=False,
    )


def _prompts(placeholder: str, first: Example | None) -> tuple[gr.Textbox, gr.Textbox]:
    """Prompt and motion prompt, side by side.

    The tab `grid` has its own instead, and only the tab `decompose` shows the motion prompt.
    """
    with gr.Row():
        return (
            _text_box("Prompt", placeholder, first.prompt if first else ""),
            _text_box("Motion prompt", "the same as the prompt", "", visible=False),
        )


def _text_box(
    name: str, placeholder: str, text: str, visible: bool = True, lines: int = 1
) -> gr.Textbox:
    return gr.Textbox(
        text,
        label=name,
        placeholder=placeholder,
        lines=lines,  # with one line, Enter submits
        max_lines=4,
        max_length=lines * PROMPT_LENGTH,
        min_width=160,
        visible=visible,
    )


def _start(text: str) -> gr.Button:
    return gr.Button(text, variant="primary", elem_classes="start")


def _preset(limits: Limits) -> gr.Radio:
    """The presets of the fields `SAMPLING`; the one that they have is selected."""
    _, option = inference_options()["preset"]
    fields = limits.fields
    return gr.Radio(
        [(name.capitalize(), name) for name in limits.presets],
        value=limits.preset(*(fields[name].shown(fields[name].start) for name in SAMPLING)),
        label=label("preset"),
        info=option.help,
        visible=bool(limits.presets),
    )


def _settings(limits: Limits, first: Example | None) -> dict[str, Any]:
    """The fields that all tabs have, by name."""
    with gr.Row():
        seed = gr.Number(
            label="Seed",
            value=first.seed if first else int(limits.seed.start),
            minimum=limits.seed.low,
            maximum=limits.seed.high,
            precision=0,
            min_width=140,
            scale=3,
        )
        new_seed = gr.Button("⚄ New seed", size="sm", min_width=110, scale=1, elem_id="new-seed")
    new_seed.click(None, None, seed, js=_RANDOM_SEED)
    with gr.Accordion("Settings", open=False):
        settings = {name: _field(name, limits) for name in limits.settings if name != "seed"}
    with gr.Accordion("Advanced settings", open=False):
        advanced = {name: _field(name, limits) for name in ADVANCED}
    return {"seed": seed, **settings, **advanced}


def _field(name: str, limits: Limits) -> Any:
    """The component of an option, with the label and the help of its declaration."""
    field, key = limits.fields[name], option_key(name)
    _, option = inference_options()[key]
    words: dict[str, Any] = {
        "value": field.shown(field.start),
        "label": label(key),
        "info": "Times the usual speed of the motion." if key == "speed" else option.help,
        "min_width": 220,
    }
    match field:
        case Bound(low, high, step=step):
            return gr.Slider(low, high, step=step, **words)
        case Choice():
            return gr.Dropdown(list(field.choices), **words)
        case NoiseLevels():
            return gr.Textbox(max_lines=1, placeholder="0.3-1", max_length=20, **words)


def _example_videos(examples: Sequence[Example]) -> list[tuple[Example, gr.HTML]]:
    """The example videos, which play; a click on one loads it."""
    gr.HTML("<h2>Examples</h2>", padding=False)
    with gr.Row(elem_classes="example-videos"):
        return [(example, gr.HTML(_example_html(example), padding=False)) for example in examples]


def _example_html(example: Example) -> str:
    source = f"data:video/mp4;base64,{base64.b64encode(example.file.read_bytes()).decode()}"
    return (
        f'<button type="button"><video src="{source}" autoplay loop muted playsinline></video>'
        f"<span>{escape(example.name)}</span></button>"
    )


def _example_prompts(prompts: Sequence[str]) -> list[tuple[str, gr.Button]]:
    """A button for each example prompt."""
    gr.HTML("<h2>Examples</h2>", padding=False)
    with gr.Row(elem_classes="example-prompts"):
        return [(text, gr.Button(text, size="sm")) for text in prompts]


def _vocabulary() -> None:
    """The words of the built-in models' training data."""
    motions = ", ".join(phrases[0] for phrases in MOTIONS.values())
    with gr.Accordion("Vocabulary of this model", open=False):
        gr.Markdown(
            f"**Things** {', '.join(THINGS)}\n\n**Motions** {motions}\n\n"
            f"**Speeds** {', '.join(filter(None, SPEEDS))}\n\n"
            f"**Backgrounds** {', '.join(BACKGROUNDS)}"
        )


def _gallery() -> gr.Gallery:
    """The results of the history."""
    gr.Markdown(
        f"Your last {HISTORY_LENGTH} results, visible to you only, until you close this page "
        "or a day has passed. Select one to load its videos and settings."
    )
    return gr.Gallery(
        show_label=False,
        columns=3,
        height="auto",
        object_fit="contain",
        elem_classes="history",
        allow_preview=False,
        interactive=False,
        buttons=[],
    )
