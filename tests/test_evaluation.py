"""The sprite score: right on real clips, also blurred ones, and not to be fooled."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from rich.console import Console

from demo_t2v.config import InferenceConfig
from demo_t2v.core.atomic_io import PathError
from demo_t2v.data.sprites import (
    BACKGROUNDS,
    MOTIONS,
    SPEEDS,
    THINGS,
    Trajectory,
    draw_clip,
    held_out,
    render,
    render_background,
    render_sprite,
    trajectory,
)
from demo_t2v.evaluation.report import Judged, Share, Subject, check_writable, save, tables
from demo_t2v.evaluation.sprites.benchmark import EvaluationError, evaluate, list_prompts
from demo_t2v.evaluation.sprites.scene import SceneError, read_scene
from demo_t2v.evaluation.sprites.scoring import score_video


def path(x=0.5, y=0.5, size=0.43, angle=0.0):
    return Trajectory(*(np.broadcast_to(np.asarray(v, float), 16) for v in (x, y, size, angle)))


def clip(thing, motion, speed="", background="in the sky", side=64, seed=1):
    drawn = trajectory(motion, speed, np.random.default_rng(seed))
    return render(thing, background, drawn, side)


def seen(frames):
    finding = score_video(np.clip(np.asarray(frames) + 0.5, 0, 255).astype(np.uint8))
    return finding.thing, finding.motion


def spoil(frames, rng, blur=0.8, noise=0.04, tint=0.0):
    soft = [
        np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(blur)), float)
        for frame in frames
    ]
    shift = rng.uniform(-tint, tint, 3) * 255
    return np.stack(soft) + shift + rng.normal(size=frames.shape) * noise * 255


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_seen_for_what_it_is(motion):
    """Hand-made: at every speed, on both picture sizes, spoiled or not."""
    number = list(MOTIONS).index(motion)
    rng = np.random.default_rng(number)
    for step, speed in enumerate(SPEEDS):
        thing = THINGS[(7 * number + 5 * step) % len(THINGS)]
        background = list(BACKGROUNDS)[(number + step) % len(BACKGROUNDS)]
        frames = clip(thing, motion, speed, background, side=128 if step == 1 else 64, seed=number)
        if step == 2:
            frames = spoil(frames, rng)
        assert seen(frames) == (thing, motion)


def test_the_track_is_where_the_thing_is():
    u = np.linspace(0, 1, 16)
    truth = path(0.4 + 0.2 * u, 0.55 - 0.1 * u, 0.36 + 0.15 * u, 100 * u)
    finding = score_video(render("car", "at night", truth, 64))
    assert finding.background == "at night"
    assert np.abs(finding.track.x - truth.x).max() < 0.01
    assert np.abs(finding.track.y - truth.y).max() < 0.01
    assert np.abs(finding.track.size - truth.size).max() < 0.01
    assert np.abs(finding.track.angle - truth.angle).max() < 3


def test_paths_that_are_no_motion_of_ours_are_none():
    rng = np.random.default_rng(0)
    jump = np.where(np.arange(16) < 8, 0.3, 0.7)
    for odd in (
        path(x=jump),
        path(x=rng.uniform(0.3, 0.7, 16), y=rng.uniform(0.3, 0.7, 16)),
        path(angle=rng.uniform(0, 360, 16)),
        path(angle=180.0),
        path(x=np.linspace(0.3, 0.7, 16), angle=np.linspace(0, 230, 16)),
        path(size=0.4 + 0.12 * np.sin(np.arange(16) * 1.2)),
    ):
        assert seen(render("car", "in the snow", odd, 64)) == ("car", None)


def test_the_order_of_the_frames_matters():
    frames = clip("rocket", "up")
    assert seen(frames[::-1]) == ("rocket", "down")
    shuffled = np.random.default_rng(2).permutation(16)
    assert seen(frames[shuffled]) == ("rocket", None)


def test_what_shows_no_thing_is_nothing():
    rng = np.random.default_rng(0)
    snow = render_background("in the snow", 64)
    assert seen(rng.uniform(0, 255, (16, 64, 64, 3))) == (None, None)
    assert seen(np.repeat(snow[None], 16, 0)) == (None, None)
    assert seen(snow + 20 * rng.normal(size=(16, 64, 64, 3))) == (None, None)


def test_a_blob_of_the_right_colour_is_no_thing():
    at = (np.arange(64) + 0.5) / 64 - 0.5
    inside = ((at[:, None] / 0.22) ** 2 + (at / 0.16) ** 2 < 1)[..., None]
    sky = render_background("in the sky", 64)
    for thing in ("pear", "frog", "bus"):
        sprite = render_sprite(thing, 0.5, 0.5, 0.43, 0, 64).astype(float)
        colour = sprite[..., :3].sum((0, 1)) / (sprite[..., 3].sum() / 255)
        assert seen(np.stack([np.where(inside, colour, sky)] * 16)) == (None, None)


@pytest.mark.parametrize("pair", [("pear", "cactus"), ("strawberry", "balloon"), ("duck", "chick")])
def test_one_thing_that_becomes_another_is_neither(pair):
    first, second = (clip(thing, "right").astype(float) for thing in pair)
    fade = np.linspace(0, 1, 16)[:, None, None, None]
    assert seen(np.concatenate([first[:8], second[8:]])) == (None, None)
    assert seen(first * (1 - fade) + second * fade) == (None, None)
    assert seen((first + second) / 2) == (None, None)


def test_two_things_are_not_one():
    for pair in (("car", "fish"), ("pear", "pear")):
        picture = render_background("on the grass", 64)
        for thing, x in zip(pair, (0.25, 0.75), strict=True):
            sprite = render_sprite(thing, x, 0.5, 0.4, 0, 64).astype(float)
            picture = picture * (1 - sprite[..., 3:] / 255) + sprite[..., :3]
        assert seen(np.stack([picture] * 16)) == (None, None)


def test_a_thing_that_flickers_is_not_there_but_one_lost_frame_does_no_harm():
    frames = clip("key", "left")
    empty = render_background("in the sky", 64)
    flicker = frames.copy()
    flicker[::3] = empty
    assert seen(flicker) == (None, None)
    frames[5] = empty
    assert seen(frames) == ("key", "left")


def test_real_clips_score_nearly_all_right():
    """A small sample of the ceiling, clean, and blurred, tinted and noisy."""
    rng = np.random.default_rng(7)
    right = Counter()
    for _ in range(12):
        real = draw_clip(rng)
        asked = (real.thing, real.motion)
        right["clean"] += seen(real.frames) == asked
        right["spoiled"] += seen(spoil(real.frames, rng, blur=1.0, tint=0.03)) == asked
    assert right["clean"] == 12
    assert right["spoiled"] >= 11


@pytest.mark.parametrize("shape", [(16, 64, 64), (16, 64, 32, 3), (16, 40, 40, 3), (0, 64, 64, 3)])
def test_shapes_that_cannot_be_read_are_refused(shape):
    with pytest.raises(SceneError, match="multiple of 32"):
        read_scene(np.zeros(shape, np.uint8))
    with pytest.raises(SceneError, match="float64"):
        read_scene(np.zeros((16, 64, 64, 3)))


def test_the_prompt_list_is_fixed_balanced_and_says_what_it_asks_for():
    cases = list_prompts()
    assert cases == list_prompts()
    assert [case.held_out for case in cases] == [False] * 216 + [True] * 108
    assert len({(case.thing, case.motion) for case in cases}) == len(cases)
    assert len({case.seed for case in cases}) == len(cases)
    assert len({case.prompt for case in cases}) == len(cases)
    for case in cases:
        assert held_out(case.thing, case.motion) == case.held_out
        for part in (case.thing, MOTIONS[case.motion][0], case.background):
            assert part in case.prompt
    for part, each in ((cases[:216], 12), (cases[216:], 6)):
        assert set(Counter(case.motion for case in part).values()) == {each}
        things = Counter(case.thing for case in part)
        assert set(things) == set(THINGS)
        assert max(things.values()) - min(things.values()) <= 2
        assert {case.speed for case in part} == set(SPEEDS)
        assert {case.background for case in part} == set(BACKGROUNDS)


def test_a_shorter_list_is_the_beginning_of_the_usual_one():
    whole = list_prompts()
    assert list_prompts(36, 18) == whole[:36] + whole[216:234]


def test_more_pairs_than_there_are_are_refused():
    assert len(list_prompts(460, 116)) == 576
    with pytest.raises(EvaluationError, match="117 held-out pairs: there are 116"):
        list_prompts(0, 117)


def test_intervals_are_wilson_s():
    """Against the worked values of 15 of 20, and the ends."""
    assert Share(15, 20).interval == pytest.approx((0.5313, 0.8881), abs=1e-4)
    assert Share(0, 10).interval == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert Share(10, 10).interval == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert Share(0, 0).interval == (0.0, 1.0)


def judged(held, seen_thing, seen_motion):
    return Judged("a", "a car moves up", held, "car", "up", "at night", seen_thing, seen_motion,
                  "at night", 0.9, 0.3)  # fmt: skip


def test_the_confusions_are_counted():
    videos = [judged(False, "car", "up"), judged(False, "car", "down"), judged(True, None, None)]
    found = Subject("model", "m", videos).as_json()
    assert found["trained"]["motion"]["right"] == 1
    assert found["trained"]["content"]["share"] == 1.0
    assert found["held-out"]["both"]["count"] == 1
    assert found["motions"]["up"]["right"] == 1
    assert found["motions"]["up"]["count"] == 3
    assert found["motions"]["up"]["seen instead"] == {"down": 1, "none": 1}


def test_a_model_its_base_and_the_ceiling_are_scored_alike(tiny_folder: Path, tmp_path: Path):
    """A network of random weights scores nothing; the sprite world scores (nearly) all."""
    heard: Counter[str] = Counter()
    report = evaluate(
        str(tiny_folder),
        base=str(tiny_folder),
        trained=3,
        held=2,
        settings=InferenceConfig(batch_size=4, max_frames=4, device="cpu", ddim_timesteps=2),
        on_video=lambda role: heard.update([role]),
    )
    file = tmp_path / "new" / "score.json"
    check_writable(file)
    save(report, file)
    assert [entry.name for entry in file.parent.iterdir()] == ["score.json"]
    subjects = json.loads(file.read_text())["subjects"]
    assert [subject["role"] for subject in subjects] == ["model", "base", "real clips"]
    assert heard == {"model": 5, "base": 5, "real clips": 5}
    assert subjects[0]["trained"]["both"] == {
        "right": 0, "count": 3, "share": 0.0, "95%": pytest.approx([0.0, 0.5615], abs=1e-3)
    }  # fmt: skip
    assert subjects[0]["videos"] == subjects[1]["videos"]
    assert subjects[2]["trained"]["content"]["right"] == 3
    console = Console(record=True, width=120)
    for table in tables(report):
        console.print(table)
    assert "real clips" in console.export_text()


def test_a_folder_in_the_report_s_place_is_refused(tmp_path: Path):
    with pytest.raises(PathError, match="name a file"):
        check_writable(tmp_path)


def test_a_size_that_cannot_be_scored_is_refused_before_any_work(tiny_folder: Path):
    with pytest.raises(EvaluationError, match="32x64 pixels"):
        evaluate(str(tiny_folder), settings=InferenceConfig(resolution=(32, 64)))
