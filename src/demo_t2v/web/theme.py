"""Appearance of the page: theme, style sheet, script and launch options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import gradio as gr

from demo_t2v.web.examples import EXAMPLES_FOLDER

_SYSTEM_FONTS: Final = ("system-ui", "sans-serif")
_SYSTEM_MONO: Final = ("ui-monospace", "monospace")


def launch_options() -> dict[str, Any]:
    """Keyword arguments of `gr.Blocks.launch`: the appearance, and no request to another host."""
    folder = Path(__file__).parent
    script = (folder / "page.js").read_text(encoding="utf-8")
    return {
        "theme": _theme(),
        "css_paths": [folder / "page.css"],
        "head": f"<script>{script}</script>",
        "allowed_paths": [str(EXAMPLES_FOLDER)],
        "footer_links": [],
        "run_history": False,  # it would show the prompts to the browser's next visitor
        "enable_monitoring": False,
        "ssr_mode": False,
    }


def _theme() -> gr.themes.Base:
    """Gradio's Soft theme with system fonts, plain labels and sufficient contrast."""
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
        body_background_fill="*neutral_50",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_padding="0",
        block_shadow="none",
        block_title_padding="0 0 var(--spacing-sm)",
        block_title_text_weight="600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
        input_border_width="1px",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        checkbox_label_background_fill_selected="*primary_600",
    )
