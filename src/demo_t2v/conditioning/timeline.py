"""A motion timeline: motion prompts that follow each other within one clip.

DEMO (arXiv 2410.24219) names actions in sequence as its limit, since one motion prompt conditions
all frames. Here each frame has its own motion states: those of the prompt whose segment it is in,
or a linear mixture of two during a cross-fade. The content prompt stays one text. The motion
prompt of a segment may be a blend (`conditioning.blend`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from demo_t2v.conditioning.blend import Blend, MotionPromptError, parse_blend

if TYPE_CHECKING:
    from torch import Tensor

    from demo_t2v.models.text import TextConditioner, TextStates

Entries = Sequence[tuple[int, str | Blend]]
"""A timeline in a call: the frame at which each segment begins, and its motion prompt."""

_ENTRY: Final = re.compile(
    r"\s*(?P<start>[^:]*?)\s*(?P<unit>s?)\s*:\s*(?P<prompt>.*?)\s*", re.DOTALL
)
_STARTS_WITH_TIME: Final = re.compile(r"\s*-?[\d.]+\s*s?\s*:")
_EXAMPLE: Final = "write FRAME: PROMPT, as in `8: spins clockwise`, or seconds, as in `0.5s: falls`"


class TimelineError(MotionPromptError):
    """A timeline that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Timeline:
    """Motion prompts, and the frames at which their segments begin: 0 first, then rising.

    Raises TimelineError for other frames, and for an empty prompt, MotionPromptError for a text
    that is a wrong blend.
    """

    starts: tuple[int, ...]
    prompts: tuple[str | Blend, ...]

    def __post_init__(self) -> None:
        for start, prompt in zip(self.starts, self.prompts, strict=True):
            if isinstance(prompt, str) and not prompt.strip():
                raise TimelineError(f"timeline: the motion prompt at frame {start} is empty")
            as_blend(prompt)
        if not self.starts or self.starts[0] != 0:
            begins = f"begins at frame {self.starts[0]}" if self.starts else "is empty"
            raise TimelineError(f"timeline: {begins}; it must begin at frame 0")
        for first, second in pairwise(self.starts):
            if second <= first:
                raise TimelineError(
                    f"timeline: frame {second} follows frame {first}; frames must rise"
                )

    def frame_weights(self, num_frames: int, crossfade: float = 0.0) -> Tensor:
        """The share of each prompt in each frame: (F, P), each row sums to 1.

        A cross-fade is linear, `crossfade` frames wide, and centred between the last frame of one
        segment and the first of the next; 0 and 1 switch from one frame to the next. Raises
        TimelineError for a segment that begins after the clip or is shorter than the cross-fade.
        """
        import torch  # slow to import, and not needed to read a timeline

        if self.starts[-1] >= num_frames:
            raise TimelineError(
                f"timeline: frame {self.starts[-1]} is beyond the clip; its last frame is "
                f"{num_frames - 1}"
            )
        for first, second in pairwise((*self.starts, num_frames)):
            if len(self.starts) > 1 and second - first < crossfade:
                raise TimelineError(
                    f"timeline: the segment at frame {first} has {second - first} frames, fewer "
                    f"than the cross-fade of {crossfade:g}"
                )
        starts = torch.tensor(self.starts, dtype=torch.float32)
        centres = torch.arange(num_frames)[:, None] + 0.5 - starts  # (F, P), in frames
        begun = (centres / max(crossfade, 1.0) + 0.5).clamp(0, 1)
        begun[:, 0] = 1.0
        return begun - torch.cat([begun[:, 1:], torch.zeros(num_frames, 1)], dim=1)

    def text_weights(self, num_frames: int, crossfade: float = 0.0) -> tuple[list[str], Tensor]:
        """The N texts of all segments, and their weights in each frame, (F, N).

        They are the weights of the segments' blends, times those of `frame_weights`. A weight that
        changes does so from the first to the last frame of its segment.
        """
        import torch

        blends = [as_blend(prompt) for prompt in self.prompts]
        starts = torch.tensor(self.starts)
        lengths = torch.tensor((*self.starts[1:], num_frames)) - starts
        times = (torch.arange(num_frames)[:, None] - starts) / (lengths - 1).clamp(min=1)
        weights = [
            share[:, None] * blend.weights_at(time.clamp(0, 1))
            for blend, time, share in zip(
                blends, times.T, self.frame_weights(num_frames, crossfade).T, strict=True
            )
        ]
        return [text for blend in blends for text in blend.prompts], torch.cat(weights, dim=1)


MotionPrompt = str | Blend | Timeline
MotionPrompts = MotionPrompt | Entries | Sequence[MotionPrompt | Entries]
"""The `motion_prompt` of a call: one motion prompt, blend or timeline, or one for each prompt."""


def as_motion_prompts(motion_prompt: Any) -> list[MotionPrompt]:
    """The motion prompts of a call: one, or one for each prompt.

    `motion_prompt` is a text, a Blend, a Timeline or its (frame, prompt) pairs, or a list of these.
    A text of a blend becomes a Blend, a timeline of one segment its prompt, and a blend of one
    prompt with weight 1 that prompt. Raises MotionPromptError.
    """
    if isinstance(motion_prompt, str | Blend | Timeline) or _is_pairs(motion_prompt):
        motion_prompt = [motion_prompt]
    prompts: list[MotionPrompt] = []
    for prompt in motion_prompt:
        if _is_pairs(prompt):
            prompt = Timeline(*map(tuple, zip(*prompt, strict=True)))
        if isinstance(prompt, Timeline) and len(prompt.prompts) == 1:
            prompt = prompt.prompts[0]
        if not isinstance(prompt, Timeline):
            blend = as_blend(prompt)
            prompt = blend.prompts[0] if blend.is_plain else blend
        prompts.append(prompt)
    return prompts


def as_blend(prompt: str | Blend) -> Blend:
    """A motion prompt as a blend, which its text may be. Raises MotionPromptError."""
    return parse_blend(prompt) if isinstance(prompt, str) else prompt


def encode_timelines(
    states: TextStates,
    prompts: Sequence[MotionPrompt],
    encode: TextConditioner,
    num_frames: int,
    crossfade: float = 0.0,
) -> TextStates:
    """`states` with the motion states of B motion prompts, of which a text is a plain prompt.

    They are sums by `Timeline.text_weights`: (B, L, D) where no weight changes, else (B, F, L, D)
    for each frame. The end-of-text position, (B,) or (B, F), is that of the text with the largest
    weight. Raises TimelineError.
    """
    import torch

    blends = [Blend((one,), (1.0,)) if isinstance(one, str) else one for one in prompts]
    timelines = [one if isinstance(one, Timeline) else Timeline((0,), (one,)) for one in blends]
    weighted = [timeline.text_weights(num_frames, crossfade) for timeline in timelines]
    constant = all(torch.equal(weights, weights[:1].expand_as(weights)) for _, weights in weighted)
    texts = list(dict.fromkeys(text for own, _ in weighted for text in own))
    encoded = encode(texts)
    if encoded.motion is None:
        raise TimelineError("timeline: the model has no motion encoder; give one prompt")
    motions, ends = [], []
    for own, weights in weighted:
        rows = torch.tensor([texts.index(text) for text in own])
        weights = (weights[0] if constant else weights).to(encoded.motion)
        motions.append(torch.tensordot(weights, encoded.motion[rows], dims=1))
        ends.append(encoded.eot_index[rows][weights.argmax(dim=-1).cpu()])
    return replace(states, motion=torch.stack(motions), eot_index=torch.stack(ends))


def _is_pairs(value: Any) -> bool:
    """Whether it is a sequence of (frame, prompt)."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        return False
    first = value[0]
    return isinstance(first, Sequence) and len(first) == 2 and isinstance(first[0], int)


def parse_timeline(entries: Sequence[str], fps: float) -> Timeline:
    """A timeline from texts such as `8: spins clockwise` (a frame) or `0.5s: falls` (a time).

    `fps` are the frames per second of the file that is written. Raises TimelineError.
    """
    starts, prompts = [], []
    for entry in entries:
        found = _ENTRY.fullmatch(entry)
        if found is None:
            raise TimelineError(f"timeline: {entry!r} has no frame; {_EXAMPLE}")
        starts.append(_frame(found["start"], found["unit"], fps, entry))
        prompts.append(found["prompt"])
    return Timeline(tuple(starts), tuple(prompts))


def parse_motion(text: str, fps: float) -> str | Timeline:
    """A motion prompt, or a timeline whose entries semicolons separate.

    A timeline begins with a number and a colon: `0: rises; 8: spins clockwise`. Raises
    TimelineError, and MotionPromptError for a prompt that is a wrong blend.
    """
    if not _STARTS_WITH_TIME.match(text):
        parse_blend(text)
        return text
    return parse_timeline([entry for entry in text.split(";") if entry.strip()], fps)


def _frame(start: str, unit: str, fps: float, entry: str) -> int:
    try:
        number = float(start) * fps if unit else int(start)
        frame = round(number)
    except (ValueError, OverflowError):
        raise TimelineError(f"timeline: {entry!r} has no frame; {_EXAMPLE}") from None
    if frame < 0:
        raise TimelineError(f"timeline: {entry!r} begins before the clip; {_EXAMPLE}")
    return frame
