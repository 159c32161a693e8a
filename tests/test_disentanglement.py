"""`demo-t2v evaluate disentanglement`: contents times motions from one seed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from demo_t2v.data.sprites import MOTIONS as WORDINGS
from demo_t2v.data.sprites import Trajectory, render, trajectory
from demo_t2v.evaluation.sprites.disentanglement import (
    CONTENTS,
    HANDLES,
    MOTIONS,
    Distances,
    Variant,
    both_right_chart,
    colour_histogram,
    measure_disentanglement,
    total_variation,
    track_distance,
)
from demo_t2v.evaluation.sprites.disentanglement_picture import draw_grids
from helpers.in_process import run

SMALL = ("--contents", 2, "--motions", 2, "--steps", 1)


class World:
    """A runner that renders: it follows motion prompts, and moves everything left without one."""

    config = SimpleNamespace(seed=5)

    def __init__(self, motion: bool) -> None:
        self.pipeline = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(motion=motion)))
        self.jobs = []

    def videos(self, jobs):
        for job in jobs:
            self.jobs.append(job)
            (content,) = [c for c in CONTENTS if c[0] in job.prompt and c[1] in job.prompt]
            named = [name for name in MOTIONS[:2] if WORDINGS[name][0] in job.motion]
            path = trajectory(named[0] if named else "left", "", np.random.default_rng(job.seed))
            yield SimpleNamespace(frames=render(*content, path, 32))


def track(x):
    return Trajectory(*(np.broadcast_to(np.asarray(v, float), 4) for v in (x, 0.5, 0.4, 0)))


def test_tracks_are_compared_wherever_they_are():
    assert track_distance(track(0.2), track(0.7)) == pytest.approx(0)
    assert track_distance(track([0.1, 0.3, 0.1, 0.3]), track(0.5)) == pytest.approx(0.1)


def test_colours_are_compared_wherever_they_are():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[:, :2] = 255
    half = colour_histogram(frames)
    assert (half[0], half[-1], half.sum()) == (0.5, 0.5, 1)
    assert total_variation(half, colour_histogram(frames[:, ::-1])) == 0
    assert total_variation(half, colour_histogram(frames[:, 2:])) == 0.5
    assert total_variation(*(colour_histogram(frames[:, rows]) for rows in (slice(2), [3]))) == 1


def test_a_motion_prompt_that_works_beside_a_prompt_that_does_not():
    world, done = World(motion=True), list[None]()
    one, two, three = measure_disentanglement(world, 2, 2, lambda: done.append(None))
    assert len(done) == len(world.jobs) == 12
    assert {job.seed for job in world.jobs} == {5}
    assert [(job.prompt, job.motion) for job in world.jobs[3::4]] == [
        ("a frog falls on the grass", ""),
        ("a frog on the grass", "falls"),
        ("a frog on the grass", "a car falls in the sky"),
    ]
    assert (one.handle, two.handle, three.handle) == HANDLES
    counts = [[each.right for each in grid.right.values()] for grid in (one, two, three)]
    assert counts == [[4, 2, 2], [4, 4, 4], [4, 4, 4]]
    assert one.relative_to_product == two.relative_to_product == 1
    # The tracks of a row are the same path, those of a column differ by some tenths of a side.
    assert two.tracks.same < 0.02 < 0.1 < two.tracks.other
    assert two.colours.same < 0.1 < two.colours.other
    assert one.tracks.other < 0.02
    picture = draw_grids([Variant("world", "world", "", {}, [one, two])])
    colours = {colour for _, colour in picture.getcolors(1 << 20)}
    assert {(0x00, 0x9E, 0x73), (0xE6, 0x9F, 0x00)} <= colours
    assert (0xD5, 0x5E, 0x00) not in colours


def test_a_base_network_has_one_prompt():
    (grid,) = measure_disentanglement(World(motion=False), 2, 2)
    assert grid.handle == "one prompt"
    assert Distances(0.1, 0).ratio is None
    variant = Variant("base", "base", "", {}, [grid])
    assert variant.both_right(HANDLES[0]).value == 0.5
    assert variant.both_right(HANDLES[1]) is None


def test_the_chart_has_no_bar_where_there_is_no_grid():
    whole = Variant("demo", "demo", "", {}, measure_disentanglement(World(motion=True), 2, 2))
    base = Variant("base", "base", "", {}, measure_disentanglement(World(motion=False), 2, 2))
    chart = both_right_chart([whole, base])
    first, second = (
        {colour for _, colour in chart.crop((left, 100, left + 100, 400)).getcolors(1 << 20)}
        for left in (95, 225)
    )
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)} <= first
    assert (0x00, 0x72, 0xB2) in second
    assert not {(0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)} & second


def test_from_the_command_line(tiny_folder: Path, tmp_path: Path):
    done = run(
        tmp_path, "evaluate", "disentanglement", "--model", tiny_folder, "--contents", 2,
        "--motions", 2, "--steps", 1, "--guidance", 2, "--seed", 3, "--out", "new/d.json",
        "--grid", "new/d.png", "--plot", "new/p.png",
        "--variant", "motion_strength=0.5 motion_guidance_scale=3",
        "--variant", "model=sprites-base",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "motion words" in done.stdout
    tree = json.loads((tmp_path / "new" / "d.json").read_text())
    first, second, base = tree["variants"]
    assert [grid["handle"] for grid in first["grids"]] == list(HANDLES)
    assert first["grids"][0]["right"]["both"]["count"] == len(first["grids"][0]["cells"]) == 4
    keys = ("seed", "guidance_scale", "motion_guidance_scale", "motion_strength")
    assert [first["settings"][key] for key in keys] == [3, 2, None, 1]
    assert [second["settings"][key] for key in keys] == [3, 2, 3, 0.5]
    names = [each["variant"] for each in (second, base)]
    assert names == ["motion_strength=0.5 motion_guidance_scale=3", "model=sprites-base"]
    assert base["model"] == "sprites-base"
    assert [grid["handle"] for grid in base["grids"]] == list(HANDLES[:1])
    assert first["fingerprint"] == second["fingerprint"] != base["fingerprint"]
    for name in ("d.png", "p.png"):
        assert Image.open(tmp_path / "new" / name).format == "PNG"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--model", "none"], "none: is no model"),
        (["--grid", "d.jpg"], "--grid d.jpg: should be a .png file"),
        (["--plot", "d.svg"], "--plot d.svg: should be a .png file"),
        (["--variant", "motion_strngth=2"], "--variant motion_strngth=2: "),
        (["--variant", "motion_strength=-1"], "motion_strength"),
        (["--variant", "model=none"], "none: is no model"),
        (
            ["--model", "sprites-base", "--variant", "motion_guidance_scale=2", *SMALL],
            "motion_guidance_scale=2: motion_guidance_scale",
        ),
        (["--variant", "speed"], "'speed' is not an override; write key=value"),
        (["--variant", "negative_prompt='a"], "--variant negative_prompt='a: No closing quotation"),
        (["--variant", "motion_prompt=falls"], "the grid sets the motions; remove motion_prompt"),
        (["--out", "."], ".: is a folder; name a file"),
        (["--contents", "1"], "--contents: should be at least 2"),
        (["--steps", "0"], "num_inference_steps"),
    ],
)
def test_bad_input_is_one_line(tmp_path, words, problem):
    done = run(tmp_path, "evaluate", "disentanglement", *words)
    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
