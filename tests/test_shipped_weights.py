"""The weights that ship make what the score that ships with them says."""

from __future__ import annotations

import pytest

from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.evaluation.report import accuracies, read_report
from demo_t2v.evaluation.sprites.benchmark import evaluate

TRAINED, HELD_OUT = 36, 18


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "file"), [("sprites", "score.json"), ("sprites-fast", "score-fast.json")]
)
def test_motion_and_content_are_as_the_card_says(model: str, file: str) -> None:
    asked = evaluate(model, num_trained=TRAINED, num_held_out=HELD_OUT)
    now = {video.id: video for video in asked.subjects[0].videos}
    scores = read_report(BUILT_IN[model].parent / file)
    whole = next(subject for subject in scores.subjects if subject.role == "model")
    then = [video for video in whole.videos if video.id in now]
    assert len(then) == TRAINED + HELD_OUT
    assert [(v.id, v.prompt) for v in then] == [(v.id, v.prompt) for v in now.values()]
    before, after = accuracies(then), accuracies(now.values())
    for name in ("motion", "content"):
        lost = before[name].right - after[name].right
        assert lost / len(then) <= 0.05, f"{name}: {after[name]} now, {before[name]} in {file}"
