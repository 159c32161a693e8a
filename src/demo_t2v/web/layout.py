"""The page: layout, and which button calls what."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr

from demo_t2v.checkpoints.resolve import BUILT_IN, first_line
from demo_t2v.config import ConfigError
from demo_t2v.core.devices import lacking
from demo_t2v.data.sprites import BACKGROUNDS, MOTIONS, SPEEDS, THINGS
from demo_t2v.inference.runner import out_of_memory
from demo_t2v.web.history import KEPT, History, Made
from demo_t2v.web.request import MOST_VIDEOS, PROMPT_LENGTH, Bound, WishError
from demo_t2v.web.results_panel import Stage
from demo_t2v.web.session import Studio

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
_DICE: Final = "() => Math.floor(Math.random() * 2 ** 32)"
# The last results stand still while the next are made: playing takes time from the steps.
_HOLD: Final = """() => {
    for (const video of document.querySelectorAll('video')) {
        if (!video.paused) { video.pause(); video.dataset.held = ''; }
    }
    return [];
}"""
_GO_ON: Final = """() => {
    for (const video of document.querySelectorAll('video[data-held]')) {
        delete video.dataset.held;
        video.play().catch(() => {});
    }
    return [];
}"""
_OFTEN: Final = 0.5  # seconds between two updates of the progress: each takes time from the steps
_A_DAY: Final = 24 * 3600  # seconds
_GONE: Final = "Its videos are deleted by now; its settings are back, to make it again."
_SYSTEM_FONTS: Final = ("system-ui", "sans-serif")
_SYSTEM_MONO: Final = ("ui-monospace", "monospace")


def looks() -> dict[str, Any]:
    """What `launch` must be told for the page to look as it should, and to call nobody."""
    here = Path(__file__).parent
    script = (here / "page.js").read_text(encoding="utf-8")
    return {
        "theme": _theme(),
        "css_paths": [here / "page.css"],
        "head": f"<script>{script}</script>",
        "footer_links": [],
        "run_history": False,  # a browser's next visitor would find the last one's prompts
        "enable_monitoring": False,
        "ssr_mode": False,
    }


def _theme() -> gr.themes.Base:
    """Soft, with the system's fonts, plain labels, and text that stands out enough."""
    theme = gr.themes.Soft(
        primary_hue="violet", neutral_hue="slate", font=_SYSTEM_FONTS, font_mono=_SYSTEM_MONO
    )
    labels = {
        f"block_{kind}_{part}{mode}": value
        for kind, fill in (("title", "transparent"), ("label", "*background_fill_primary"))
        for mode, text in (("", "*neutral_700"), ("_dark", "*neutral_200"))
        for part, value in (("text_color", text), ("background_fill", fill))
    }
    return theme.set(
        **labels,
        block_title_padding="0",
        block_title_text_weight="600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
    )


def build(studio: Studio, max_queue: int = 20) -> gr.Blocks:
    """The whole page over one model; `max_queue` visitors wait at most, all others are told so."""
    page = gr.Blocks(
        title="DEMO: text to video", analytics_enabled=False, delete_cache=(_A_DAY, _A_DAY)
    )
    with page:
        _Page(studio)
    page.queue(max_size=max_queue, default_concurrency_limit=1)
    return page


class _Page:
    """Builds the components, in the order in which they are read, and wires them."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.history = gr.State(History(), delete_callback=History.forget)
        _head(studio.config.model)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                examples = self._prompt()
                self._numbers()
                if studio.config.model in BUILT_IN:
                    _vocabulary()
            with gr.Column(scale=3, min_width=300), gr.Tabs(selected="generate") as self.tabs:
                self._tabs()
        self.inputs = [self.prompt, self.motion_prompt, *self.numbers]
        for tab, (stage, button) in self.stages.items():
            starts: list[Any] = [button.click]
            if tab == "generate":
                starts += [self.prompt.submit, *(self._fill(*chip) for chip in examples.items())]
            self._wire(stage, starts)
        self.gallery.select(
            self._load_back, self.history, [self.tabs, *self.inputs, *self._all_outputs()]
        )

    def _prompt(self) -> dict[str, gr.Button]:
        built_in = self.studio.config.model in BUILT_IN
        texts = _SPRITE_EXAMPLES if built_in else _EXAMPLES
        self.prompt = gr.Textbox(
            label="Prompt",
            placeholder=texts[0],
            lines=1,  # so that Enter begins
            max_lines=4,
            max_length=PROMPT_LENGTH,
        )
        with gr.Row(elem_classes="examples"):
            return {text: gr.Button(text, size="sm") for text in texts}

    def _numbers(self) -> None:
        limits = self.studio.limits
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
            dice = gr.Button("⚄ New seed", size="sm", min_width=110, scale=1, elem_id="dice")
        dice.click(None, None, seed, js=_DICE)
        with gr.Accordion("Settings", open=False):
            videos = _slider("Videos", limits.videos, "made from the same prompt")
            steps = _slider("Steps", limits.steps, "denoising steps: more is slower and finer")
            frames = _slider("Frames", limits.frames)
            fps = _slider("Frames a second", limits.fps)
            width = _slider("Width", limits.width, "pixels")
            height = _slider("Height", limits.height, "pixels")
            guidance = _slider("Guidance", limits.guidance, "how closely it follows the prompt")
        self.motion_strength = _slider(
            "Motion strength", limits.motion_strength, "0: the base network, 1: as trained", False
        )
        self.motion_prompt = gr.Textbox(
            label="Motion prompt",
            info="What the motion encoder hears. Empty: the prompt.",
            placeholder="spins clockwise quickly",
            max_length=PROMPT_LENGTH,
            render=False,
        )
        self.numbers = [seed, videos, steps, frames, width, height, fps, guidance]
        self.numbers.append(self.motion_strength)

    def _tabs(self) -> None:
        has_motion = self.studio.has_motion
        self.stages: dict[str, tuple[Stage, gr.Button]] = {}
        with gr.Tab("Generate", id="generate"):
            button = gr.Button("Generate", variant="primary")
            labels = [f"Video {number}" for number in range(1, MOST_VIDEOS + 1)]
            self.stages["generate"] = Stage("generate", labels), button
        with gr.Tab("Compare", id="compare", visible=has_motion):
            gr.Markdown(
                "The same seed twice: without the motion branch, and with it. The strip below "
                "the videos shows where things are going, without it above and with it below."
            )
            button = gr.Button("Compare", variant="primary")
            self.stages["compare"] = Stage("compare", ["Motion off", "Motion on"]), button
        with gr.Tab("Take apart", id="apart", visible=has_motion):
            gr.Markdown("The content encoder hears the prompt; tell the motion encoder otherwise.")
            self.motion_prompt.render()  # type: ignore[no-untyped-call]
            self.motion_strength.render()  # type: ignore[no-untyped-call]
            button = gr.Button("Take apart", variant="primary")
            self.stages["apart"] = Stage("apart", ["Video"]), button
        with gr.Tab("Look inside", id="inside", visible=has_motion):
            gr.Markdown(
                "Where the motion transformers listen to the end of the motion prompt, [eot], "
                "which stands for its whole meaning: bright is much. Rows: after a quarter, a half "
                "and three quarters of the steps, and before the last."
            )
            button = gr.Button("Look inside", variant="primary")
            self.stages["inside"] = Stage("inside", ["Video"]), button
        with gr.Tab("History", id="history") as history:
            gr.Markdown(
                f"The last {KEPT} that you made; only you see them, until you close this page, or "
                "for a day. Choose one to have it and its settings back."
            )
            self.gallery = gr.Gallery(
                show_label=False,
                columns=3,
                height="auto",
                object_fit="contain",
                elem_classes="history",
                allow_preview=False,
                interactive=False,
                buttons=[],
            )
        self._show_history(history.select)

    def _show_history(self, after: Any) -> None:
        after(History.gallery, self.history, self.gallery, queue=False, api_visibility="private")

    def _fill(self, text: str, chip: gr.Button) -> Any:
        """What goes on when an example has become the prompt."""
        return chip.click(None, None, self.prompt, js=f"() => {json.dumps(text)}").then

    def _wire(self, stage: Stage, starts: list[Any]) -> None:
        """Each of `starts` begins the tab's work, its Stop ends it."""
        quick: dict[str, Any] = {
            "queue": False,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        runs = []
        for start in starts:
            begun = start(
                lambda: [gr.Tabs(selected=stage.tab), *stage.waiting()],
                None,
                [self.tabs, *stage.news],
                js=_HOLD,
                **quick,
            )
            run = begun.then(
                partial(self._run, stage),
                [self.history, *self.inputs],
                [self.history, *stage.outputs],
                concurrency_id="pipeline",
                concurrency_limit=1,
                show_progress="hidden",
                api_visibility="private",
            )
            run.then(None, js=_GO_ON)
            self._show_history(run.then)  # it may be open; what is chosen is a place in it
            runs.append(run)
        ended = stage.stop.click(None, cancels=runs, **quick)
        ended.then(stage.stopped, None, stage.news, js=_GO_ON, **quick)

    def _run(self, stage: Stage, history: History, *form: Any) -> Iterator[list[Any]]:
        same = gr.skip()
        told = 0.0
        try:
            wish = self.studio.limits.wish(stage.tab, *form)
            for news in self.studio.make(wish):
                if isinstance(news, Made):
                    yield [history.add(news), *stage.finished(news)]
                elif news.previews or time.monotonic() - told > _OFTEN:
                    told = time.monotonic()
                    yield [same, *stage.running(news)]
        except (WishError, ConfigError, ArithmeticError) as error:
            yield [same, *stage.problem(str(error))]
        except Exception as error:
            problem = lacking(error) or error
            said = f"The video could not be made: {first_line(problem).rstrip('.')}."
            if out_of_memory(error):
                said = "Not enough memory: fewer videos, frames or pixels."
            yield [same, *stage.problem(said)]

    def _all_outputs(self) -> list[gr.blocks.Block]:
        return [output for stage, _ in self.stages.values() for output in stage.outputs]

    def _load_back(self, history: History, chosen: gr.SelectData) -> list[Any]:
        """The form, the tab and, if its files are still there, the results of a history's entry."""
        made = history.made[chosen.index]
        updates: list[Any] = [gr.Tabs(selected=made.wish.tab), *made.wish.form]
        for tab, (stage, _) in self.stages.items():
            if tab != made.wish.tab:
                updates += [gr.skip()] * len(stage.outputs)
            else:
                updates += stage.finished(made) if made.there else stage.problem(_GONE)
        return updates


def _head(model: str) -> None:
    gr.HTML(
        "<h1>DEMO: text to video</h1>"
        "<p>Say what a video shows and how it moves. "
        f"The model is <strong>{escape(model)}</strong>.</p>",
        elem_id="head",
        padding=False,
    )


def _slider(label: str, bound: Bound, info: str | None = None, render: bool = True) -> gr.Slider:
    return gr.Slider(
        bound.low, bound.high, bound.start, step=bound.step, label=label, info=info, render=render
    )


def _vocabulary() -> None:
    """The words that the built-in models were trained on."""
    motions = ", ".join(phrases[0] for phrases in MOTIONS.values())
    with gr.Accordion("Words that this model knows", open=False):
        gr.Markdown(
            f"**Things** {', '.join(THINGS)}\n\n**Motions** {motions}\n\n"
            f"**Speeds** {', '.join(filter(None, SPEEDS))}\n\n"
            f"**Places** {', '.join(BACKGROUNDS)}"
        )
