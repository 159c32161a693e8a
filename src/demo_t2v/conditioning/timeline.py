"""A motion timeline: motion prompts that follow each other within one clip.

DEMO (arXiv 2410.24219) names actions in sequence as its limit, since one motion prompt conditions
all frames. Here each frame has its own motion states: those of the prompt whose segment it is in,
or a linear mixture of two during a cross-fade. The content prompt stays one text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from demo_t2v.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from demo_t2v.models.text import TextConditioner, TextStates

Entries = Sequence[tuple[int, str]]
"""A timeline in a call: the frame at which each segment begins, and its motion prompt."""

_ENTRY: Final = re.compile(
    r"\s*(?P<start>[^:]*?)\s*(?P<unit>s?)\s*:\s*(?P<prompt>.*?)\s*", re.DOTALL
)
_STARTS_WITH_TIME: Final = re.compile(r"\s*-?[\d.]+\s*s?\s*:")
_EXAMPLE: Final = "write FRAME: PROMPT, as in `8: spins clockwise`, or seconds, as in `0.5s: falls`"


class TimelineError(UserError):
    """A timeline that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Timeline:
    """Motion prompts, and the frames at which their segments begin: 0 first, then rising.

    Raises TimelineError for other frames, and for an empty prompt.
    """

    starts: tuple[int, ...]
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        for start, prompt in zip(self.starts, self.prompts, strict=True):
            if not prompt.strip():
                raise TimelineError(f"timeline: the motion prompt at frame {start} is empty")
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


MotionPrompts = str | Timeline | Entries | Sequence[str | Timeline | Entries]
"""The `motion_prompt` of a call: one motion prompt or timeline, or one for each video."""


def as_motion_prompts(motion_prompt: Any) -> list[str | Timeline]:
    """The motion prompts of a call, one for each video.

    `motion_prompt` is a text, a Timeline or its (frame, prompt) pairs, or a list of these. A
    timeline of one segment becomes its text. Raises TimelineError.
    """
    if isinstance(motion_prompt, str | Timeline) or _is_pairs(motion_prompt):
        motion_prompt = [motion_prompt]
    prompts: list[str | Timeline] = []
    for prompt in motion_prompt:
        if _is_pairs(prompt):
            prompt = Timeline(*map(tuple, zip(*prompt, strict=True)))
        single = isinstance(prompt, Timeline) and len(prompt.prompts) == 1
        prompts.append(prompt.prompts[0] if single else prompt)
    return prompts


def encode_timelines(
    states: TextStates,
    prompts: Sequence[str | Timeline],
    encode: TextConditioner,
    num_frames: int,
    crossfade: float = 0.0,
) -> TextStates:
    """`states` with motion states for each frame, (B, F, L, D), of B motion prompts.

    They are mixtures by `Timeline.frame_weights`. The end-of-text position (B, F) is that of the
    prompt with the largest share. Raises TimelineError.
    """
    import torch

    timelines = [Timeline((0,), (one,)) if isinstance(one, str) else one for one in prompts]
    texts = list(dict.fromkeys(text for timeline in timelines for text in timeline.prompts))
    encoded = encode(texts)
    if encoded.motion is None:
        raise TimelineError("timeline: the model has no motion encoder; give one prompt")
    frames, ends = [], []
    for timeline in timelines:
        rows = torch.tensor([texts.index(text) for text in timeline.prompts])
        weights = timeline.frame_weights(num_frames, crossfade).to(encoded.motion)
        frames.append(torch.einsum("fp,pld->fld", weights, encoded.motion[rows]))
        ends.append(encoded.eot_index[rows][weights.argmax(dim=1).cpu()])
    return replace(states, motion=torch.stack(frames), eot_index=torch.stack(ends))


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
    TimelineError.
    """
    if not _STARTS_WITH_TIME.match(text):
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
