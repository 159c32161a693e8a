"""The sprite world: what a clip's truth and caption say is what its pixels show.

The thing's opacity is measured in finished frames: of a clip drawn before a dark and before a
bright background, a covered pixel is the same in both, a free one differs as the backgrounds do.
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from demo_t2v.data.sprites import (
    BACKGROUNDS,
    CELL,
    COLUMNS,
    MOTIONS,
    SHEET,
    SPEEDS,
    THINGS,
    caption,
    draw_clip,
    draw_pose,
    held_out,
    motion_phrase,
    render,
    render_background,
    trajectory,
)

SIDE = 64
things, motions, speeds = (st.sampled_from(sorted(x)) for x in (THINGS, MOTIONS, SPEEDS))
backgrounds, seeds = st.sampled_from(sorted(BACKGROUNDS)), st.integers(0, 2**32 - 1)
few = settings(max_examples=40)
DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up-left": (-1, -1),
    "up-right": (1, -1),
    "down-left": (-1, 1),
    "down-right": (1, 1),
}


def opacity(thing, path, side=SIDE):
    """How much of each pixel is covered, (F, side, side), measured in finished frames."""
    dark, bright = (render(thing, b, path, side).astype(float) for b in ("at night", "in the snow"))
    gap = render_background("in the snow", side) - render_background("at night", side)
    return np.clip(1 - (bright - dark).sum(-1) / gap.sum(-1), 0, 1)


def centres(alpha):
    """Centres of mass (F, 2) as x, y in fractions of the side."""
    grid = (np.arange(alpha.shape[-1]) + 0.5) / alpha.shape[-1]
    mass = alpha.sum((1, 2))
    return np.stack([(alpha.sum(1) @ grid) / mass, (alpha.sum(2) @ grid) / mass], axis=1)


def cell(thing):
    """The thing's own picture in the sheet, (CELL, CELL, 4) in [0, 1]."""
    row, column = divmod(THINGS.index(thing), COLUMNS)
    sheet = np.asarray(Image.open(SHEET).convert("RGBA"))
    tile = sheet[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
    return tile / 255.0


def watch(thing, motion, speed="", seed=0):
    """The centres of mass of a drawn trajectory, and the trajectory."""
    path = trajectory(motion, speed, np.random.default_rng(seed))
    return centres(opacity(thing, path)), path


def test_there_is_enough_to_see():
    assert len(set(THINGS)) == len(THINGS) >= 32
    assert len(MOTIONS) >= 14
    assert len(BACKGROUNDS) >= 3
    assert all(len(set(wordings)) >= 2 for wordings in MOTIONS.values())
    wordings = list(itertools.chain.from_iterable(MOTIONS.values()))
    assert len(set(wordings)) == len(wordings)


def test_every_thing_has_a_picture_of_its_own():
    cells = np.stack([cell(thing) for thing in THINGS])
    assert (cells[..., 3].mean((1, 2)) > 0.15).all()
    seen = cells[..., :3] * cells[..., 3:]
    for one, other in itertools.combinations(range(len(THINGS)), 2):
        difference = np.abs(seen[one] - seen[other]).mean()
        assert difference > 0.05, (THINGS[one], THINGS[other])


def test_one_fifth_of_the_pairs_is_held_out_from_every_thing_and_every_motion():
    table = np.array([[held_out(thing, motion) for motion in MOTIONS] for thing in THINGS])
    assert abs(table.mean() - 0.2) < 0.005
    for axis in (0, 1):
        assert table.any(axis).all()
        assert not table.all(axis).any()


def test_held_out_pairs_are_never_drawn_unasked():
    rng = np.random.default_rng(0)
    drawn = {(c.thing, c.motion) for c in (draw_clip(rng, 8, frames=1) for _ in range(3000))}
    assert not any(held_out(*pair) for pair in drawn)
    trained = [p for p in itertools.product(THINGS, MOTIONS) if not held_out(*p)]
    assert len(drawn) > 0.98 * len(trained)


def test_a_motion_can_be_drawn_more_often():
    rng = np.random.default_rng(0)
    drawn = [draw_clip(rng, 8, 1, emphasis={"shakes": 4}) for _ in range(2000)]
    assert not any(held_out(clip.thing, clip.motion) for clip in drawn)
    count = Counter(clip.motion for clip in drawn)
    assert count.keys() == MOTIONS.keys()
    # 4 in 21: 381 of 2000, give or take five standard deviations.
    assert abs(count["shakes"] - 381) < 88
    assert max(count[motion] for motion in MOTIONS if motion != "shakes") < 160


def test_a_thing_can_be_drawn_more_often():
    rng = np.random.default_rng(0)
    drawn = [draw_clip(rng, 8, 1, emphasis={"pig": 9}) for _ in range(2000)]
    assert not any(held_out(clip.thing, clip.motion) for clip in drawn)
    count = Counter(clip.thing for clip in drawn)
    assert count.keys() == set(THINGS)
    # 9 in 40: 450 of 2000, give or take five standard deviations.
    assert abs(count["pig"] - 450) < 94
    assert max(count[thing] for thing in THINGS if thing != "pig") < 86


@few
@given(seeds)
def test_a_clip_is_its_seed(seed):
    one, same, other = (draw_clip(np.random.default_rng(s)) for s in (seed, seed, seed + 1))
    assert one.frames.dtype == np.uint8
    assert one.frames.shape == (16, 64, 64, 3)
    assert np.array_equal(one.frames, same.frames)
    assert one.caption == same.caption
    assert not np.array_equal(one.frames, other.frames)


@few
@given(seeds)
def test_a_still_is_one_frame_of_the_clip(seed):
    clip, still = (draw_clip(np.random.default_rng(seed), still=s) for s in (False, True))
    assert still.frames.shape == (1, 64, 64, 3)
    same = [i for i, frame in enumerate(clip.frames) if np.array_equal(frame, still.frames[0])]
    assert same
    assert still.truth.x[0] in clip.truth.x[same]
    assert (still.thing, still.motion) == (clip.thing, clip.motion)


@few
@given(things, motions, speeds, seeds)
def test_the_truth_is_where_the_pixels_are(thing, motion, speed, seed):
    path = trajectory(motion, speed, np.random.default_rng(seed))
    alpha = opacity(thing, path)
    own = cell(thing)[..., 3]
    offset = centres(own[None])[0] - 0.5  # from the cell's middle, in cells
    turn = np.radians(path.angle)
    x = path.x + path.size * (offset[0] * np.cos(turn) - offset[1] * np.sin(turn))
    y = path.y + path.size * (offset[0] * np.sin(turn) + offset[1] * np.cos(turn))
    reach = path.size * np.sqrt(0.5)
    inside = (np.minimum(path.x, path.y) > reach) & (np.maximum(path.x, path.y) < 1 - reach)
    distance = np.hypot(*(centres(alpha) - np.stack([x, y], 1)).T) * SIDE  # pixels
    size = np.sqrt(alpha.mean((1, 2)) / own.mean())
    assert (distance[inside] < 0.5).all()
    assert (np.abs(size - path.size)[inside] * SIDE < 0.75).all()
    assert (size > 0.6 * path.size).all()  # it never leaves the frame


@few
@given(things, motions, speeds, backgrounds, seeds)
def test_every_resolution_shows_the_same(thing, motion, speed, background, seed):
    path = trajectory(motion, speed, np.random.default_rng(seed)).frame(7)
    small, large = (render(thing, background, path, side)[0].astype(float) for side in (64, 128))
    shrunk = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(small - shrunk).mean() < 3  # of 255


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize(("motion", "direction"), DIRECTIONS.items())
def test_a_straight_motion_goes_where_it_says(motion, direction, speed):
    seen, _ = watch("pear", motion, speed)
    steps = np.diff(seen, axis=0)
    along = steps @ np.array(direction) / np.hypot(*direction)
    across = steps @ np.array(direction[::-1]) * (1, -1)[motion in ("left", "right")]
    assert (along > 0.1 / SIDE).all()
    if 0 in direction:
        assert (np.abs(across) < 0.25 / SIDE).all()
    else:
        assert seen[-1] - seen[0] == pytest.approx(np.array(direction) * abs(seen[-1] - seen[0]))


@pytest.mark.parametrize("motion", [m for m in MOTIONS if m != "still"])
def test_quickly_is_quicker_than_slowly(motion):
    def fastest(speed):
        path = trajectory(motion, speed, np.random.default_rng(5))
        pose = np.stack([path.x, path.y, path.size, path.angle / 90], 1)
        return np.abs(np.diff(pose, axis=0)).sum(1).max()

    assert fastest("slowly") < fastest("") < fastest("quickly")


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_fall_accelerates_and_ends_on_the_ground(speed):
    seen, path = watch("strawberry", "falls", speed)
    y, pixel = seen[:, 1], 1 / SIDE
    landed = int(np.argmax(path.y >= path.y[-1] - 1e-9))
    fall = np.diff(y[: landed + 1])
    assert y[0] < 0.4
    assert y[-1] > 0.7
    assert (np.diff(fall) > -0.5 * pixel)[:-1].all()
    assert fall[len(fall) // 2 :].sum() > 2 * fall[: len(fall) // 2].sum()
    assert np.abs(np.diff(y[landed:])).sum() < 0.5 * pixel
    assert np.ptp(seen[:, 0]) < 0.5 * pixel


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_bounce_rises_and_comes_back(speed):
    seen, _ = watch("pear", "bounces", speed)
    turns = np.diff(np.sign(np.diff(seen[:, 1])))
    assert np.count_nonzero(turns) >= 2
    assert np.ptp(seen[:, 1]) > 0.3
    assert np.ptp(seen[:, 0]) < 0.5 / SIDE


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize(
    ("motion", "sign"), [("spins clockwise", 1), ("spins counter-clockwise", -1)]
)
def test_spins_turn_the_way_they_say(motion, sign, speed):
    path = trajectory(motion, speed, np.random.default_rng(1))
    alpha = opacity("guitar", path)
    grid = (np.arange(SIDE) + 0.5) / SIDE
    axes = []
    for frame, (cx, cy) in zip(alpha, centres(alpha), strict=True):
        dx, dy = grid[None, :] - cx, grid[:, None] - cy
        xx, yy, xy = ((frame * d).sum() for d in (dx * dx, dy * dy, dx * dy))
        axes.append(np.degrees(np.arctan2(2 * xy, xx - yy)) / 2)  # y down: clockwise is positive
    turned = (np.diff(axes) + 90) % 180 - 90
    assert turned == pytest.approx(np.diff(path.angle), abs=4)
    assert (sign * turned > 2).all()


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize(("motion", "sign"), [("grows", 1), ("shrinks", -1)])
def test_growing_and_shrinking_change_the_area(motion, sign, speed):
    path = trajectory(motion, speed, np.random.default_rng(2))
    area = opacity("pig", path).mean((1, 2))
    assert (sign * np.diff(area) > 0).all()
    assert max(area[0], area[-1]) > 1.5 * min(area[0], area[-1])


@pytest.mark.parametrize("thing", THINGS)
def test_still_things_do_not_move(thing):
    seen = opacity(thing, trajectory("still", "", np.random.default_rng(3)))
    assert (seen == seen[0]).all()


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_circle_is_round_and_goes_clockwise(speed):
    _, path = watch("pear", "circles", speed)
    middle = np.stack([path.x[0], path.y[0] + 0.2])  # it starts at the top
    spokes = np.stack([path.x, path.y], 1) - middle
    assert np.hypot(*spokes.T) == pytest.approx(0.2)
    x, y = spokes.T
    assert (x[:-1] * y[1:] - y[:-1] * x[1:] > 0).all()  # y down: clockwise is positive


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_swing_is_lowest_in_the_middle_and_goes_both_ways(speed):
    seen, path = watch("bell", "swings", speed)
    aside = path.x - path.x[0]
    assert aside.min() < -0.15
    assert aside.max() > 0.15
    assert np.argmin(seen[:, 1]) in np.argsort(np.abs(aside))[-6:]
    assert path.y[0] == path.y.max()


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_shake_is_short_sideways_and_often(speed):
    seen, _ = watch("pear", "shakes", speed)
    assert 0.05 < np.ptp(seen[:, 0]) < 0.2
    assert np.ptp(seen[:, 1]) < 0.5 / SIDE
    assert np.count_nonzero(np.diff(np.sign(np.diff(seen[:, 0])))) >= 4


@few
@given(things, motions, speeds, backgrounds, seeds)
def test_a_caption_names_the_thing_its_motion_its_speed_and_the_place(
    thing, motion, speed, background, seed
):
    text = caption(thing, motion, speed, background, np.random.default_rng(seed))
    assert background in text
    assert thing in text
    assert any(wording in text for wording in MOTIONS[motion])
    assert (speed in text) if motion != "still" else ("slowly" not in text)
    assert "  " not in text
    words = text.split()
    article = words[words.index(thing.split()[0]) - 1]
    assert article in ("the", "an" if thing[0] in "aeiou" else "a")


def test_the_plainest_caption():
    said = caption("octopus", "up", "quickly", "at night")
    assert said == "an octopus moves up quickly at night"
    assert caption("car", "still", "slowly", "on the sand") == "a car stands still on the sand"


def test_captions_of_one_clip_vary():
    rng = np.random.default_rng(0)
    said = {caption("duck", "up", "slowly", "in the sky", rng) for _ in range(200)}
    assert len(said) >= 12


def test_what_does_not_exist_is_an_error():
    rng = np.random.default_rng(0)
    with pytest.raises(KeyError):
        trajectory("explodes", "", rng)
    with pytest.raises(ValueError):  # noqa: PT011 - the tuple's own
        trajectory("falls", "briskly", rng)


def test_poses_show_every_angle_and_name_no_motion() -> None:
    drawn = [draw_pose(np.random.default_rng(n), 16, 3) for n in range(400)]
    angles = np.array([clip.truth.angle[0] for clip in drawn])
    assert 0.25 < (angles == 0).mean() < 0.42
    assert np.histogram(angles[angles != 0], 6, (-180, 180))[0].min() > 20
    for clip in drawn:
        assert (clip.frames == clip.frames[:1]).all()
        article = "an" if clip.thing[0] in "aeiou" else "a"
        assert clip.caption == f"{article} {clip.thing} {clip.background}"


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ("a car moves to the left slowly in the sky", "moves to the left slowly"),
        ("in the snow, the ice cream is swinging quickly", "is swinging quickly"),
        ("an octopus slowly turns clockwise on the sand", "slowly turns clockwise"),
        ("a duck at night", ""),
    ],
)
def test_the_motion_phrase_is_the_caption_without_thing_and_place(words, phrase) -> None:
    assert motion_phrase(words) == phrase


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_every_caption_has_a_motion_phrase_of_its_motion(seed) -> None:
    clip = draw_clip(np.random.default_rng(seed), 8, 2)
    phrase = motion_phrase(clip.caption)
    assert any(wording in phrase for wording in MOTIONS[clip.motion])
    assert clip.thing not in phrase


def test_words_of_another_world_have_no_motion_phrase() -> None:
    with pytest.raises(ValueError, match="is no caption of the sprite world"):
        motion_phrase("a horse runs")
