"""The sprite benchmark: its prompts, its classifier on real and spoiled clips, its report."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from rich.console import Console

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
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.report import (
    Proportion,
    Subject,
    VideoScore,
    check_writable,
    save_report,
    tables,
)
from demo_t2v.evaluation.sprites.benchmark import evaluate
from demo_t2v.evaluation.sprites.classification import classify_video
from demo_t2v.evaluation.sprites.prompts import list_prompts
from demo_t2v.evaluation.sprites.scene import read_scene


def path(x=0.5, y=0.5, size=0.43, angle=0.0):
    return Trajectory(*(np.broadcast_to(np.asarray(v, float), 16) for v in (x, y, size, angle)))


def clip(thing, motion, speed="", background="in the sky", side=64, seed=1):
    drawn = trajectory(motion, speed, np.random.default_rng(seed))
    return render(thing, background, drawn, side)


def seen(frames):
    found = classify_video(np.clip(np.asarray(frames) + 0.5, 0, 255).astype(np.uint8))
    return found.thing, found.motion


def spoil(frames, rng, blur=0.8, noise=0.04, tint=0.0):
    soft = [
        np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(blur)), float)
        for frame in frames
    ]
    shift = rng.uniform(-tint, tint, 3) * 255
    return np.stack(soft) + shift + rng.normal(size=frames.shape) * noise * 255


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_recognized(motion):
    """At every speed, at both resolutions, spoiled or not."""
    number = list(MOTIONS).index(motion)
    rng = np.random.default_rng(number)
    for step, speed in enumerate(SPEEDS):
        thing = THINGS[(7 * number + 5 * step) % len(THINGS)]
        background = list(BACKGROUNDS)[(number + step) % len(BACKGROUNDS)]
        frames = clip(thing, motion, speed, background, side=128 if step == 1 else 64, seed=number)
        if step == 2:
            frames = spoil(frames, rng)
        assert seen(frames) == (thing, motion)


def test_the_track_follows_the_thing():
    u = np.linspace(0, 1, 16)
    truth = path(0.4 + 0.2 * u, 0.55 - 0.1 * u, 0.36 + 0.15 * u, 100 * u)
    found = classify_video(render("car", "at night", truth, 64))
    assert found.background == "at night"
    assert np.abs(found.track.x - truth.x).max() < 0.01
    assert np.abs(found.track.y - truth.y).max() < 0.01
    assert np.abs(found.track.size - truth.size).max() < 0.01
    assert np.abs(found.track.angle - truth.angle).max() < 3


def test_other_paths_are_no_motion():
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


def test_videos_without_a_thing():
    rng = np.random.default_rng(0)
    snow = render_background("in the snow", 64)
    assert seen(rng.uniform(0, 255, (16, 64, 64, 3))) == (None, None)
    assert seen(np.repeat(snow[None], 16, 0)) == (None, None)
    assert seen(snow + 20 * rng.normal(size=(16, 64, 64, 3))) == (None, None)


def test_an_ellipse_of_the_right_colour_is_no_thing():
    at = (np.arange(64) + 0.5) / 64 - 0.5
    inside = ((at[:, None] / 0.22) ** 2 + (at / 0.16) ** 2 < 1)[..., None]
    sky = render_background("in the sky", 64)
    for thing in ("pear", "frog", "bus"):
        sprite = render_sprite(thing, 0.5, 0.5, 0.43, 0, 64).astype(float)
        colour = sprite[..., :3].sum((0, 1)) / (sprite[..., 3].sum() / 255)
        assert seen(np.stack([np.where(inside, colour, sky)] * 16)) == (None, None)


@pytest.mark.parametrize("pair", [("pear", "cactus"), ("strawberry", "balloon"), ("duck", "chick")])
def test_a_thing_that_becomes_another_is_none(pair):
    first, second = (clip(thing, "right").astype(float) for thing in pair)
    fade = np.linspace(0, 1, 16)[:, None, None, None]
    assert seen(np.concatenate([first[:8], second[8:]])) == (None, None)
    assert seen(first * (1 - fade) + second * fade) == (None, None)
    assert seen((first + second) / 2) == (None, None)


def test_two_things_are_none():
    for pair in (("car", "fish"), ("pear", "pear")):
        picture = render_background("on the grass", 64)
        for thing, x in zip(pair, (0.25, 0.75), strict=True):
            sprite = render_sprite(thing, x, 0.5, 0.4, 0, 64).astype(float)
            picture = picture * (1 - sprite[..., 3:] / 255) + sprite[..., :3]
        assert seen(np.stack([picture] * 16)) == (None, None)


def test_flicker_is_refused_and_one_lost_frame_tolerated():
    frames = clip("key", "left")
    empty = render_background("in the sky", 64)
    flicker = frames.copy()
    flicker[::3] = empty
    assert seen(flicker) == (None, None)
    frames[5] = empty
    assert seen(frames) == ("key", "left")


def test_real_clips_are_recognized():
    """Clean, and blurred, tinted and noisy."""
    rng = np.random.default_rng(7)
    right = Counter()
    for _ in range(12):
        real = draw_clip(rng)
        truth = (real.thing, real.motion)
        right["clean"] += seen(real.frames) == truth
        right["spoiled"] += seen(spoil(real.frames, rng, blur=1.0, tint=0.03)) == truth
    assert right["clean"] == 12
    assert right["spoiled"] >= 11


@pytest.mark.parametrize("shape", [(16, 64, 64), (16, 64, 31, 3), (16, 64, 64, 4), (0, 64, 64, 3)])
def test_other_shapes_and_types_are_refused(shape):
    with pytest.raises(EvaluationError, match="at least 32"):
        read_scene(np.zeros(shape, np.uint8))
    with pytest.raises(EvaluationError, match="float64"):
        read_scene(np.zeros((16, 64, 64, 3)))


def test_the_prompt_list_is_fixed_and_balanced():
    prompts = list_prompts()
    assert prompts == list_prompts()
    assert [prompt.held_out for prompt in prompts] == [False] * 216 + [True] * 108
    assert len({(prompt.thing, prompt.motion) for prompt in prompts}) == len(prompts)
    assert len({prompt.seed for prompt in prompts}) == len(prompts)
    assert len({prompt.prompt for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert held_out(prompt.thing, prompt.motion) == prompt.held_out
        for words in (prompt.thing, MOTIONS[prompt.motion][0], prompt.background):
            assert words in prompt.prompt
    for subset, each in ((prompts[:216], 12), (prompts[216:], 6)):
        assert set(Counter(prompt.motion for prompt in subset).values()) == {each}
        things = Counter(prompt.thing for prompt in subset)
        assert set(things) == set(THINGS)
        assert max(things.values()) - min(things.values()) <= 2
        assert {prompt.speed for prompt in subset} == set(SPEEDS)
        assert {prompt.background for prompt in subset} == set(BACKGROUNDS)


def test_a_shorter_list_has_the_first_prompts():
    full = list_prompts()
    assert list_prompts(36, 18) == full[:36] + full[216:234]


def test_more_pairs_than_there_are_are_refused():
    assert len(list_prompts(460, 116)) == 576
    with pytest.raises(EvaluationError, match="117 held-out pairs: there are 116"):
        list_prompts(0, 117)


def test_intervals_are_wilson_s():
    """Against the worked values of 15 of 20, and the ends."""
    assert Proportion(15, 20).interval == pytest.approx((0.5313, 0.8881), abs=1e-4)
    assert Proportion(0, 10).interval == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert Proportion(10, 10).interval == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert Proportion(0, 0).interval == (0.0, 1.0)


def scored(is_held_out, seen_thing, seen_motion):
    requested = ("car", "up", "at night")
    seen = (seen_thing, seen_motion, "at night")
    return VideoScore("a", "a car moves up", is_held_out, *requested, *seen, 0.9, 0.3)


def test_the_confusions_are_counted():
    videos = [scored(False, "car", "up"), scored(False, "car", "down"), scored(True, None, None)]
    found = Subject("model", "m", videos).as_json()
    assert found["trained"]["motion"]["right"] == 1
    assert found["trained"]["content"]["share"] == 1.0
    assert found["held-out"]["both"]["count"] == 1
    assert found["motions"]["up"]["right"] == 1
    assert found["motions"]["up"]["count"] == 3
    assert found["motions"]["up"]["seen instead"] == {"down": 1, "none": 1}


def test_a_model_its_base_and_real_clips_are_scored(tiny_folder: Path, tmp_path: Path):
    """Random weights score zero, the sprite world (nearly) all."""
    scored_videos: list[None] = []
    report = evaluate(
        str(tiny_folder),
        base=str(tiny_folder),
        num_trained=3,
        num_held_out=2,
        on_video=lambda: scored_videos.append(None),
    )
    file = tmp_path / "new" / "score.json"
    check_writable(file)
    save_report(report, file)
    assert [entry.name for entry in file.parent.iterdir()] == ["score.json"]
    subjects = json.loads(file.read_text())["subjects"]
    assert [subject["role"] for subject in subjects] == ["model", "base", "real clips"]
    assert len(scored_videos) == 15
    assert subjects[0]["trained"]["both"] == {
        "right": 0, "count": 3, "share": 0.0, "95%": pytest.approx([0.0, 0.5615], abs=1e-3)
    }  # fmt: skip
    assert subjects[0]["videos"] == subjects[1]["videos"]
    assert subjects[2]["trained"]["content"]["right"] == 3
    console = Console(record=True, width=120)
    for table in tables(report):
        console.print(table)
    assert "real clips" in console.export_text()


def test_a_folder_is_no_report(tmp_path: Path):
    with pytest.raises(PathError, match="name a file"):
        check_writable(tmp_path)


def test_a_size_that_cannot_be_scored_is_refused(tiny_folder: Path, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    config = model / "unet" / "config.json"
    sizes = json.loads(config.read_text())
    config.write_text(json.dumps(sizes | {"sample_size": sizes["sample_size"] // 2}))
    with pytest.raises(EvaluationError, match="16x16 pixels"):
        evaluate(str(model))
