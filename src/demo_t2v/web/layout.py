"""The components of the page, in reading order."""

from __future__ import annotations

from dataclasses import fields
from html import escape
from typing import Final

import gradio as gr

from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.config.inference import inference_options, label
from demo_t2v.data.sprites import BACKGROUNDS, MOTIONS, SPEEDS, THINGS
from demo_t2v.web.history import HISTORY_LENGTH, History
from demo_t2v.web.request import MAX_VIDEOS, PROMPT_LENGTH, Limits, Tab, option_key
from demo_t2v.web.results_panel import ResultsPanel

_SPRITE_EXAMPLES: Final = (
    "a rocket moves up and to the right in the sky",
    "a frog bounces on the grass",
    "a butterfly circles in the sky",
    "a whale grows quickly at night",
    "a car moves to the left on the sand",
)
_EXAMPLES: Final = (
    "slow motion flower petals fall from a blossom",
    "a horse gallops along a beach at sunset",
    "a paper boat drifts down a stream",
    "clouds roll over a mountain range",
)
_RANDOM_SEED: Final = "() => Math.floor(Math.random() * 2 ** 32)"


class PageLayout:
    """Creates the components of the page for one model; build it inside a `gr.Blocks`.

    `inputs` are the form's components in the order of `GenerationRequest.form`.
    """

    def __init__(self, model: str, limits: Limits, has_motion: bool) -> None:
        self.history = gr.State(History(), delete_callback=History.delete_files)
        _header(model)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.prompt, self.examples = _prompt(
                    _SPRITE_EXAMPLES if model in BUILT_IN else _EXAMPLES
                )
                settings = _settings(limits)
                if model in BUILT_IN:
                    _vocabulary()
            self.motion_prompt, motion_strength = _motion_inputs(limits)
            self.inputs = [self.prompt, self.motion_prompt, *settings, motion_strength]
            with gr.Column(scale=3, min_width=300), gr.Tabs(selected="generate") as self.tabs:
                self.panels: dict[Tab, ResultsPanel] = {
                    "generate": _generate_tab(),
                    "compare": _compare_tab(has_motion),
                    "decompose": _decompose_tab(has_motion, self.motion_prompt, motion_strength),
                    "attention": _attention_tab(has_motion),
                }
                self.history_tab, self.gallery = _history_tab()

    @property
    def panel_outputs(self) -> list[gr.blocks.Block]:
        """The outputs of all panels."""
        return [output for panel in self.panels.values() for output in panel.outputs]


def _header(model: str) -> None:
    gr.HTML(
        "<h1>DEMO: text to video</h1>"
        "<p>Describe what the video shows and how it moves. "
        f"Model: <strong>{escape(model)}</strong>.</p>",
        elem_id="head",
        padding=False,
    )


def _prompt(examples: tuple[str, ...]) -> tuple[gr.Textbox, dict[str, gr.Button]]:
    """The prompt's box, and a button for each example."""
    prompt = gr.Textbox(
        label="Prompt",
        placeholder=examples[0],
        lines=1,  # with one line, Enter submits
        max_lines=4,
        max_length=PROMPT_LENGTH,
    )
    with gr.Row(elem_classes="examples"):
        return prompt, {text: gr.Button(text, size="sm") for text in examples}


def _settings(limits: Limits) -> list[gr.Number | gr.Slider]:
    """The numbers in the order of `Limits`, without the motion strength."""
    with gr.Row():
        seed = gr.Number(
            label="Seed",
            value=int(limits.seed.start),
            minimum=limits.seed.low,
            maximum=limits.seed.high,
            precision=0,
            min_width=140,
            scale=3,
        )
        new_seed = gr.Button("⚄ New seed", size="sm", min_width=110, scale=1, elem_id="new-seed")
    new_seed.click(None, None, seed, js=_RANDOM_SEED)
    with gr.Accordion("Settings", open=False):
        sliders = [
            _slider(field.name, limits)
            for field in fields(limits)
            if field.name not in ("seed", "motion_strength")
        ]
    return [seed, *sliders]


def _motion_inputs(limits: Limits) -> tuple[gr.Textbox, gr.Slider]:
    """Motion prompt and motion strength, not rendered yet."""
    motion_prompt = gr.Textbox(
        label="Motion prompt",
        info="Prompt for the motion encoder, or a timeline of prompts. Empty: the prompt.",
        placeholder="0: a balloon moves up; 8: a balloon moves to the left",
        max_length=PROMPT_LENGTH,
        render=False,
    )
    return motion_prompt, _slider("motion_strength", limits, render=False)


def _slider(name: str, limits: Limits, render: bool = True) -> gr.Slider:
    """The slider of an option, with the label and the help of its declaration."""
    bound, key = getattr(limits, name), option_key(name)
    _, option = inference_options()[key]
    return gr.Slider(
        bound.low,
        bound.high,
        bound.start,
        step=bound.step,
        label=label(key),
        info=option.help,
        render=render,
    )


def _vocabulary() -> None:
    """The words of the built-in models' training data."""
    motions = ", ".join(phrases[0] for phrases in MOTIONS.values())
    with gr.Accordion("Vocabulary of this model", open=False):
        gr.Markdown(
            f"**Things** {', '.join(THINGS)}\n\n**Motions** {motions}\n\n"
            f"**Speeds** {', '.join(filter(None, SPEEDS))}\n\n"
            f"**Backgrounds** {', '.join(BACKGROUNDS)}"
        )


def _generate_tab() -> ResultsPanel:
    with gr.Tab("Generate", id="generate"):
        labels = [f"Video {number}" for number in range(1, MAX_VIDEOS + 1)]
        return ResultsPanel("generate", "Generate", labels)


def _compare_tab(visible: bool) -> ResultsPanel:
    with gr.Tab("Compare", id="compare", visible=visible):
        gr.Markdown(
            "The same seed without the motion branch and with it. Arrows below the videos show "
            "the optical flow, without the motion branch above and with it below."
        )
        return ResultsPanel("compare", "Compare", ["Motion off", "Motion on"])


def _decompose_tab(
    visible: bool, motion_prompt: gr.Textbox, motion_strength: gr.Slider
) -> ResultsPanel:
    with gr.Tab("Take apart", id="decompose", visible=visible):
        gr.Markdown(
            "The content encoder reads the prompt, the motion encoder the motion prompt. On a "
            "timeline, each motion prompt begins at its frame: `0: a frog falls; 8: a frog grows`."
        )
        motion_prompt.render()  # type: ignore[no-untyped-call]
        motion_strength.render()  # type: ignore[no-untyped-call]
        return ResultsPanel("decompose", "Take apart", ["Video"])


def _attention_tab(visible: bool) -> ResultsPanel:
    with gr.Tab("Look inside", id="attention", visible=visible):
        gr.Markdown(
            "Attention of the motion transformers to the end-of-text token of the motion prompt, "
            "which summarizes the prompt; bright is high. Rows: after a quarter, a half and three "
            "quarters of the steps, and before the last step."
        )
        return ResultsPanel("attention", "Look inside", ["Video"])


def _history_tab() -> tuple[gr.Tab, gr.Gallery]:
    with gr.Tab("History", id="history") as tab:
        gr.Markdown(
            f"Your last {HISTORY_LENGTH} results, visible to you only, until you close this page "
            "or a day has passed. Select one to load its videos and settings."
        )
        gallery = gr.Gallery(
            show_label=False,
            columns=3,
            height="auto",
            object_fit="contain",
            elem_classes="history",
            allow_preview=False,
            interactive=False,
            buttons=[],
        )
    return tab, gallery
