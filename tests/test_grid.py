"""Grids: each content prompt with each motion prompt, and the contact sheet of all videos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo_t2v.config import InferenceConfig
from demo_t2v.data.video import read_video
from demo_t2v.evaluation.video_grid import MAX_SIDE, cell_height, video_grid
from demo_t2v.inference.grid import Grid, GridError, read_grid
from demo_t2v.inference.jobs import Job, make_jobs
from demo_t2v.inference.outputs import read_manifest
from demo_t2v.inference.runner import Runner
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process
from helpers.pipelines import with_effective_motion

CONTENTS = [("frog", "a frog in the sky"), ("car", "a car on the sand")]
MOTIONS = [("up", "a pear moves up"), ("both", "0: a pear falls; 2: a pear grows")]


@pytest.fixture(scope="module")
def runner(tiny_pipeline: DemoPipeline) -> Runner:
    pipeline = with_effective_motion(tiny_pipeline)
    return Runner(pipeline, InferenceConfig(device="cpu", num_inference_steps=2))


def test_a_column_has_one_seed_and_content_and_a_row_one_motion() -> None:
    jobs = Grid(CONTENTS, MOTIONS).jobs(seed=3)
    assert [job.id for job in jobs] == [
        "row up, column frog",
        "row up, column car",
        "row both, column frog",
        "row both, column car",
    ]
    assert [job.motion for job in jobs] == [MOTIONS[0][1]] * 2 + [MOTIONS[1][1]] * 2
    for first, second in zip(jobs[:2], jobs[2:], strict=True):
        assert (first.seed, first.prompt) == (second.seed, second.prompt)
    assert [job.seed for job in jobs[:2]] == [job.seed for job in make_jobs(CONTENTS, 1, 3)]


def test_a_cell_equals_a_run_of_its_own(runner: Runner) -> None:
    jobs = Grid(CONTENTS, MOTIONS).jobs(seed=3)
    together = runner.denoise(jobs).latents
    assert together is not None
    seeds = {job.prompt: job.seed for job in make_jobs(CONTENTS, 1, 3)}
    alone = [
        runner.denoise([Job("x", prompt, 0, seeds[prompt], motion)]).latents
        for _, motion in MOTIONS
        for _, prompt in CONTENTS
    ]
    assert (together - torch.cat(alone)).abs().max() <= 1e-5
    assert (together[0] - together[2]).abs().max() > 1e-3


def test_rows_take_the_column_motion(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("id,motion,prompt\na,0: rises; 8: falls,a car\nb,,a fish falls\n")
    grid = read_grid([str(file)], [str(file)])
    assert grid.columns == [("a", "a car"), ("b", "a fish falls")]
    assert grid.rows == [("a", "0: rises; 8: falls"), ("b", "a fish falls")]
    assert read_grid(["a car", "a hat"], ["rises"]).columns == [("1", "a car"), ("2", "a hat")]


@pytest.mark.parametrize(("columns", "rows"), [(33, 1), (1, 33), (100, 100)])
def test_grids_of_thousands_are_refused(columns: int, rows: int) -> None:
    line = f"grid: {rows} motion prompts by {columns} content prompts; at most 32 of each"
    with pytest.raises(GridError, match=line):
        read_grid(["a car"] * columns, ["rises"] * rows)


def test_cells_are_where_their_labels_say() -> None:
    colours = [(red, 10, 200) for red in (40, 80, 120, 160, 200, 240)]
    videos = [np.full((2, 32, 48, 3), colour, np.uint8) for colour in colours]
    videos[0][1] = 0  # its second frame
    sheet = video_grid([videos[:3], videos[3:]], ["moves up", "falls"], ["a car", "a hat", "a key"])
    assert sheet.shape[1] % 2 == sheet.shape[2] % 2 == 0
    cell = cell_height(32, 3)
    assert cell % 32 == 0
    places = [np.nonzero((sheet[0] == colour).all(axis=-1)) for colour in colours]
    corners = [(int(rows.min()), int(columns.min())) for rows, columns in places]
    assert corners == sorted(corners)
    assert len({top for top, _ in corners}) == 2
    assert {len(rows) for rows, _ in places} == {cell * cell * 48 // 32}
    first = (sheet[0] == colours[0]).all(axis=-1)
    assert (sheet[1][first] == 0).all()
    assert (sheet[0][~first] == sheet[1][~first]).all()
    left, top = sheet[0, :, :150], sheet[0, :20]
    assert (left < 100).any()
    assert (top < 100).any()


def test_large_sheets_have_small_cells() -> None:
    assert cell_height(128, 2) == 256
    assert cell_height(256, 2) == 256
    assert cell_height(256, 32) == MAX_SIDE // 32


def test_a_long_label_ends_in_an_ellipsis_and_stays_in_its_place() -> None:
    videos = [[np.zeros((1, 64, 64, 3), np.uint8)] * 2]
    long = video_grid(videos, ["word " * 99], ["word " * 99, ""])
    short = video_grid(videos, [""], ["", ""])
    assert long.shape[1] - short.shape[1] < 200
    blank = long[:, : long.shape[1] - short.shape[1], -180:]
    assert (blank == 255).all()


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Path:
    (tmp_path / "model").symlink_to(tiny_folder)
    (tmp_path / "contents.csv").write_text(
        "id,prompt\n" + "".join(f"{name},{text}\n" for name, text in CONTENTS)
    )
    (tmp_path / "motions.csv").write_text(
        "id,prompt\n" + "".join(f"{name},{text}\n" for name, text in MOTIONS)
    )
    (tmp_path / "empty.csv").write_text("id,prompt\n")
    return tmp_path


WORDS = ("grid", "--model", "model", "--steps", "1")
FILES = ("--content", "contents.csv", "--motion", "motions.csv")


def test_the_command_line(place: Path) -> None:
    done = in_process.run(place, *WORDS, *FILES, "--format", "png", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["videos"]) == 4
    assert (report["failed"], report["grid"]) == (0, "outputs/grid")
    assert len(list((place / "outputs" / "grid").iterdir())) == 4
    name = "row-both-column-car-a-car-on-the-sand-0"
    entry = read_manifest(place / "outputs")[name]
    assert (entry["prompt"], entry["motion"]) == (CONTENTS[1][1], MOTIONS[1][1])

    again = in_process.run(place, *WORDS, *FILES, "--format", "png")
    assert (again.returncode, again.stdout) == (0, "outputs/grid\n")
    assert "0 made, 4 were there already" in again.stderr

    words = ("generate", "--model", "model", "--steps", "1", "--prompts", "contents.csv")
    words += ("--motion-prompt", MOTIONS[0][1], "--out", "alone", "--format", "png")
    assert in_process.run(place, *words).returncode == 0
    for own, cell in (
        ("frog-a-frog-in-the-sky-0", "row-up-column-frog-a-frog-in-the-sky-0"),
        ("car-a-car-on-the-sand-0", "row-up-column-car-a-car-on-the-sand-0"),
    ):
        frames = [
            np.asarray(Image.open(place / folder / "0003.png"), int)
            for folder in (f"alone/{own}", f"outputs/{cell}")
        ]
        assert np.abs(frames[0] - frames[1]).max() <= 1


def test_a_sheet_is_a_video(place: Path) -> None:
    texts = ("--content", "a car", "--motion", "a car falls", "--motion", "a car moves up")
    done = in_process.run(place, *WORDS, *texts, "fps=5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "outputs/grid.mp4"
    frames, fps = read_video(place / "outputs" / "grid.mp4")
    assert (len(frames), fps) == (4, 5)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--content", "empty.csv", "--motion", "falls"), "empty.csv: has no prompts"),
        (("--content", "a car", "--motion", "empty.csv"), "empty.csv: has no prompts"),
        (("--content", "none.csv", "--motion", "falls"), "none.csv: cannot be read"),
        (("--content", " ", "--motion", "falls"), "--content 1 is empty"),
        (("--content", "a car", "--motion", "falls", "--motion", ""), "--motion 2 is empty"),
        (("--content", "a car"), "--motion is missing"),
        (
            ("--content", "a car", "--motion", "0: falls; 9: rises"),
            "id 'row 1, column 1': timeline: frame 9 is beyond the clip",
        ),
        ((*FILES, "motion_prompt=falls"), "motion, motion_prompt: the rows of a grid have them"),
        ((*FILES, "--out", "memory://grid"), "out: memory://grid: a grid needs a folder"),
        (
            ("--content", "a car", *("--motion", "falls") * 33),
            "grid: 33 motion prompts by 1 content prompts; at most 32 of each",
        ),
    ],
)
def test_bad_input(place: Path, words: tuple[str, ...], line: str) -> None:
    in_process.assert_refused(place, line, *WORDS, *words)


def test_a_model_without_a_motion_branch(place: Path) -> None:
    in_process.assert_refused(
        place, "sprites-base: has no motion branch", "grid", "--model", "sprites-base", *FILES
    )
