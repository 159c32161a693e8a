"""`demo-t2v explain`: a picture of a video's motion and of what the motion prompt does to it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.cli.options import takes_options
from demo_t2v.cli.terminal import one_line_errors, progress
from demo_t2v.config import InferenceConfig, load
from demo_t2v.config.inference import inference_options
from demo_t2v.core.imports import uncollected
from demo_t2v.inference.jobs import PromptError, check_prompt, make_jobs

_VIDEOS: Final = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
_FIXED: Final = {"height", "width", "format", "cache"}


@takes_options(
    *("model", "lora_strength", "device", "preset", "guidance_interval"),
    *(
        key
        for key, (_, option) in inference_options().items()
        if option.shapes_video and key not in _FIXED
    ),
)
def explain(
    source: Annotated[
        str, typer.Argument(metavar="PROMPT|VIDEO", help="A prompt in quotes, or a video file.")
    ],
    *,
    prompt: Annotated[str | None, typer.Option(help="Prompt of the video file.")] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Second motion prompt, to compare with (default: the negative prompt)."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="Picture to write.")] = Path(
        "explanation.png"
    ),
    options: Mapping[str, Any],
) -> None:
    """Draw frames, optical flow, motion attention, and what a second motion prompt changes."""
    with one_line_errors():
        video = Path(source) if Path(source).suffix.lower() in _VIDEOS else None
        text = _prompt(source, video, prompt)
        if out.suffix.lower() != ".png":
            raise PromptError(f"--out {out}: should be a .png file")
        given: InferenceConfig = load(InferenceConfig, None, (), options)
        model = resolve(given.model)
        config = model.defaults.complete(given)
        (job,) = make_jobs([("1", text)], 1, config.seed)

        with uncollected():
            from demo_t2v.core.atomic_io import atomic_write
            from demo_t2v.evaluation import explanation
            from demo_t2v.evaluation.explanation_picture import draw_explanation
            from demo_t2v.evaluation.report import check_writable
            from demo_t2v.inference.runner import Runner

        explanation.check_explainable(model, config, job, against, video is not None)
        frames = None if video is None else explanation.read_clip(video, config)
        check_writable(out)
        runner = Runner.load(model, config)
        if frames is None:
            with progress("steps", 2 * (config.num_inference_steps or 1)) as bar:
                found = explanation.explain_prompt(runner, job, against, bar.advance)
        else:
            found = explanation.explain_video(runner, frames, job, against)
        other = config.negative_prompt if against is None else against
        motion = "; ".join(config.motion or ()) or config.motion_prompt
        title = f"{text}, with the motion prompt: {motion}" if motion else text
        with atomic_write(out) as partial:
            draw_explanation(found, title, other or "").save(partial, "PNG")
        typer.echo(out)


def _prompt(source: str, video: Path | None, prompt: str | None) -> str:
    """The prompt. Raises PromptError where it is missing or given twice."""
    if video is None and prompt is not None:
        raise PromptError("a prompt and --prompt are both given: give one of them")
    if video is None:
        return check_prompt(source)
    if prompt is None:
        command = f"demo-t2v explain {shlex.quote(source)} --prompt TEXT"
        raise PromptError(f"{source}: is a video, whose prompt is needed; write `{command}`")
    return check_prompt(prompt, "--prompt")
