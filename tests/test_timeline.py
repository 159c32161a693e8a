"""Motion timelines: texts to frames, weights of prompts in frames, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from demo_t2v.conditioning.timeline import (
    Timeline,
    TimelineError,
    parse_timeline,
    split_timeline,
)


def test_entries_are_frames_or_seconds() -> None:
    timeline = parse_timeline(["0: rises", "0.5s: spins: fast", " 9 :falls "], fps=8)
    assert timeline == Timeline((0, 4, 9), ("rises", "spins: fast", "falls"))
    assert split_timeline("0: rises; 8: spins;") == ["0: rises", " 8: spins"]


def test_without_a_cross_fade_each_frame_has_one_prompt() -> None:
    weights = Timeline((0, 2, 5), ("a", "b", "c")).frame_weights(6)
    expected = [[1, 0, 0]] * 2 + [[0, 1, 0]] * 3 + [[0, 0, 1]]
    assert weights.tolist() == expected
    assert Timeline((0, 2, 5), ("a", "b", "c")).frame_weights(6, crossfade=1).tolist() == expected


def test_a_cross_fade_is_linear_and_centred() -> None:
    weights = Timeline((0, 4), ("a", "b")).frame_weights(8, crossfade=4)
    second = [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]
    assert weights[:, 1].tolist() == second
    assert weights[:, 0].tolist() == [1 - share for share in second]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0, 9))
def test_weights_are_shares(lengths: list[int], width: float) -> None:
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    crossfade = min(width, *lengths) if len(lengths) > 1 else width
    weights = Timeline(tuple(starts), ("x",) * len(starts)).frame_weights(sum(lengths), crossfade)
    assert weights.shape == (sum(lengths), len(lengths))
    assert torch.allclose(weights.sum(dim=1), torch.ones(sum(lengths)))
    assert weights.min() >= -1e-6


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ([], "is empty"),
        (["rises"], "'rises' has no frame"),
        (["x: rises"], "'x: rises' has no frame"),
        (["1.5: rises"], "'1.5: rises' has no frame"),
        (["infs: rises"], "'infs: rises' has no frame"),
        (["-1: rises"], "'-1: rises' begins before the clip"),
        (["2: rises"], "begins at frame 2; it must begin at frame 0"),
        (["0: rises", "0: falls"], "frame 0 follows frame 0"),
        (["0: rises", "9: falls", "8: spins"], "frame 8 follows frame 9"),
        (["0: rises", "8:  "], "the motion prompt at frame 8 is empty"),
    ],
)
def test_bad_timelines(entries: list[str], line: str) -> None:
    with pytest.raises(TimelineError, match="timeline: ") as error:
        parse_timeline(entries, fps=8)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_timeline_fits_its_clip() -> None:
    timeline = Timeline((0, 16), ("rises", "falls"))
    with pytest.raises(TimelineError, match="frame 16 is beyond the clip; its last frame is 15"):
        timeline.frame_weights(16)
    with pytest.raises(TimelineError, match="the segment at frame 16 has 4 frames, fewer than"):
        timeline.frame_weights(20, crossfade=5)
