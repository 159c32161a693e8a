"""Generations of the page on a small pipeline of random weights: results, events, history."""

from __future__ import annotations

import shlex
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from demo_t2v.checkpoints.resolve import load_pipeline
from demo_t2v.cli import app
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.data.video import read_video, write_video
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.outputs import file_name
from demo_t2v.inference.runner import Runner
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.web.attention_maps import recorded_steps
from demo_t2v.web.generation import StepUpdate
from demo_t2v.web.history import HISTORY_LENGTH, GenerationResult, History
from demo_t2v.web.page import Page
from demo_t2v.web.request import GenerationRequest
from demo_t2v.web.server import open_session
from demo_t2v.web.session import GenerateFunction, GenerationSession

REQUEST = GenerationRequest("generate", "a car falls", "", 7, 2, 3, 4, 32, 32, 8, 2.5)
GRID = replace(
    REQUEST,
    tab="grid",
    prompt="a car in the sky\na frog",
    motion_prompt="a fish moves up\n0: it falls; 0.25s: it grows",
    repeat_times=1,
)


@pytest.fixture
def pipeline(tiny_folder: Path) -> DemoPipeline:
    """The pipeline of the session."""
    return load_pipeline(str(tiny_folder), "cpu")


@pytest.fixture
def session(pipeline: DemoPipeline, tiny_folder: Path, tmp_path: Path) -> GenerationSession:
    config = InferenceConfig(model=str(tiny_folder), device="cpu")
    return GenerationSession(pipeline, config, tmp_path)


def generate_all(
    session: GenerationSession, request: GenerationRequest
) -> tuple[list[StepUpdate], GenerationResult]:
    *updates, result = session.generate(request)
    assert isinstance(result, GenerationResult)
    return updates, result  # type: ignore[return-value]


def frames(result: GenerationResult, number: int = 0) -> np.ndarray:
    return read_video(result.videos[number].mp4)[0]


def test_updates_count_steps_and_have_previews(session: GenerationSession) -> None:
    updates, result = generate_all(session, replace(REQUEST, num_inference_steps=18))
    assert [(update.step, update.total) for update in updates] == [(n, 18) for n in range(1, 19)]
    shown = [update.step for update in updates if update.previews]
    assert shown == [6, 12]
    assert all(len(update.previews) == 2 for update in updates if update.previews)
    assert updates[5].previews[0].startswith("data:image/gif;base64,")
    assert len(result.videos) == 2
    assert result.picture is None
    for number, files in enumerate(result.videos):
        assert frames(result, number).shape == (4, 32, 32, 3)
        assert len(read_video(files.gif)[0]) == 4
        assert files.mp4.parent == result.folder


def test_the_same_request_gives_the_same_video(session: GenerationSession) -> None:
    first, second = (generate_all(session, REQUEST)[1] for _ in range(2))
    assert first.folder != second.folder
    for one, other in zip(first.videos, second.videos, strict=True):
        assert one.mp4.read_bytes() == other.mp4.read_bytes()
    assert (frames(first, 0) != frames(first, 1)).any()
    other_seed = generate_all(session, replace(REQUEST, seed=8))[1]
    assert (frames(first) != frames(other_seed)).any()


@pytest.mark.parametrize(
    "wanted",
    [
        REQUEST,
        replace(
            REQUEST,
            tab="decompose",
            repeat_times=1,
            motion_prompt='"swings" slowly',
            handles={"motion_strength": 0.5},
        ),
        replace(
            REQUEST,
            tab="decompose",
            motion_prompt="0: a car grows; 0.5s: a car falls",
            fps=4,
            handles={"motion_crossfade": 2, "motion_guidance_scale": 4.0},
        ),
        replace(REQUEST, tab="compare", repeat_times=1, prompt="-a = 'b' $HOME", width=48),
        GRID,
        replace(
            REQUEST,
            advanced={
                "scheduler": "euler",
                "guidance_interval": (0.5, 1.0),
                "cache": "deep",
                "cache_interval": 3,
            },
        ),
    ],
    ids=["generate", "motion prompt", "timeline", "compare", "grid", "advanced settings"],
)
def test_the_command_line_makes_the_same_frames(
    session: GenerationSession,
    tmp_path: Path,
    wanted: GenerationRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = generate_all(session, wanted)[1]
    monkeypatch.chdir(tmp_path)
    files = []
    for line in result.command.splitlines():
        program, *words = shlex.split(line)
        assert program == "demo-t2v"
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        made = [tmp_path / name for name in done.stdout.split("\n") if name]
        files += made[-1:] if wanted.grid else made  # its cells precede it
    assert len(files) == len(result.videos)
    for number, file in enumerate(files):
        assert (read_video(file)[0] == frames(result, number)).all()


def test_advanced_settings_last_for_one_request(session: GenerationSession) -> None:
    plain = generate_all(session, REQUEST)[1]
    for advanced in ({"scheduler": "euler"}, {"cache": "deep"}, {"guidance_interval": (0.9, 1.0)}):
        changed = generate_all(session, replace(REQUEST, advanced=advanced))[1]
        assert (frames(changed) != frames(plain)).any()
        assert (frames(generate_all(session, REQUEST)[1]) == frames(plain)).all()


def test_a_cache_that_does_not_fit_is_refused(
    session: GenerationSession, tiny_folder: Path, tmp_path: Path
) -> None:
    request = replace(REQUEST, advanced={"scheduler": "heun", "cache": "deep"})
    with pytest.raises(ConfigError, match="HeunDiscreteScheduler calls the network several times"):
        generate_all(session, request)
    config = InferenceConfig(model=str(tiny_folder), scheduler="heun", cache="deep", device="cpu")
    with pytest.raises(ConfigError, match="HeunDiscreteScheduler calls the network several times"):
        open_session(config, tmp_path)


def test_closing_stops_within_two_steps(
    session: GenerationSession,
    pipeline: DemoPipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, decoded = [], []
    step = pipeline.scheduler.step
    monkeypatch.setattr(
        pipeline.scheduler, "step", lambda *a, **k: (steps.append(1), step(*a, **k))[1]
    )
    decode = pipeline.decode_latents
    monkeypatch.setattr(pipeline, "decode_latents", lambda *a: (decoded.append(1), decode(*a))[1])
    updates = session.generate(replace(REQUEST, num_inference_steps=100))
    for _ in range(5):
        next(updates)
    before = len(steps)
    decoded.clear()  # the previews until now
    updates.close()
    deadline = time.monotonic() + 60
    while list(tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(steps) <= before + 2
    assert not decoded
    assert generate_all(session, REQUEST)[1]  # and the next one is whole


def test_comparing_shows_both_and_their_flow(
    session: GenerationSession, pipeline: DemoPipeline
) -> None:
    updates, result = generate_all(session, replace(REQUEST, tab="compare", repeat_times=1))
    assert updates[-1].step == updates[-1].total == 6
    assert len(result.videos) == 2
    assert (frames(result, 0) != frames(result, 1)).any()
    (job,) = make_jobs([("1", REQUEST.prompt)], 1, REQUEST.seed)
    for number, strength in enumerate((0.0, 1.0)):
        config = REQUEST.config(session.config, strength)
        (video,) = Runner(pipeline, config).videos([job])
        alone = video.frames
        assert np.abs(alone.astype(int) - frames(result, number)).mean() < 12  # but for the codec
    with Image.open(result.picture) as picture:
        assert picture.height > 2 * 150


def test_decomposition_uses_both_prompts(session: GenerationSession) -> None:
    request = replace(REQUEST, tab="decompose", repeat_times=1)
    plain = frames(generate_all(session, request)[1])
    other = frames(generate_all(session, replace(request, motion_prompt="a fish grows slowly"))[1])
    weak = frames(generate_all(session, replace(request, handles={"motion_strength": 0.0}))[1])
    same = frames(generate_all(session, replace(request, motion_prompt=request.prompt))[1])
    assert (plain == same).all()
    assert (plain != other).any()
    assert (plain != weak).any()


def test_a_cell_of_a_grid_equals_a_generation_of_its_own(
    session: GenerationSession, pipeline: DemoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, np.ndarray] = {}

    def write(frames: np.ndarray, file: Path, fps: int, kind: str) -> None:
        written[file.name] = frames.astype(int)
        write_video(frames, file, fps, kind)

    monkeypatch.setattr("demo_t2v.web.generation.write_video", write)
    updates, result = generate_all(session, GRID)
    assert [(update.step, update.total) for update in updates] == [(n, 3) for n in (1, 2, 3)]
    (sheet,) = result.videos
    shape = frames(result).shape
    assert read_video(sheet.gif)[0].shape == shape
    assert shape[0] == 4
    assert min(shape[1:3]) > 2 * 160
    assert result.files_exist
    grid = GRID.grid
    assert grid
    config = GRID.config(session.config, 1.0)
    cells = [written[file_name(job, "mp4")] for job in grid.jobs(GRID.seed)]
    for job, cell in zip(grid.jobs(GRID.seed), cells, strict=True):
        (alone,) = Runner(pipeline, config).videos([job])
        assert np.abs(cell - alone.frames).max() <= 1  # in 255; 1e-5 may round to another byte
    assert np.abs(cells[0] - cells[1]).mean() > 1
    first = replace(GRID, tab="decompose", prompt="a car in the sky")
    for cell, motion in zip(cells[::2], GRID.motion_prompt.splitlines(), strict=True):
        alone = generate_all(session, replace(first, motion_prompt=motion))[1]
        assert np.abs(cell - written[alone.videos[0].mp4.name]).max() <= 1


def test_a_grid_is_made_in_batches(session: GenerationSession) -> None:
    request = replace(GRID, prompt="a car\na frog\na fish", num_inference_steps=2)
    updates, result = generate_all(session, request)
    assert [(update.step, update.total) for update in updates] == [(n, 4) for n in (1, 2, 3, 4)]
    caption = History((result,)).gallery()[0][1]
    assert caption.startswith(
        "a car / a frog / a fish · seed 7 · 2 steps · “a fish moves up / 0: it"
    )
    with gr.Blocks():
        page = Page(session)
    selected = gr.SelectData(None, {"index": 0, "value": None})
    tabs, *updates = page.load_result(History((result,)), selected)
    assert tabs.selected == "grid"
    assert request.prompt in updates
    assert request.motion_prompt in updates


@pytest.mark.parametrize("steps", [1, 2, 3, 16])
def test_attention_leaves_the_video_unchanged(session: GenerationSession, steps: int) -> None:
    request = replace(REQUEST, tab="attention", repeat_times=1, num_inference_steps=steps)
    _, result = generate_all(session, request)
    with Image.open(result.picture) as picture:
        assert abs(picture.height - 164 * len(recorded_steps(steps))) < 10
    plain = generate_all(session, replace(request, tab="generate"))[1]
    assert (frames(plain) == frames(result)).all()


def test_failures_leave_no_files(
    session: GenerationSession, pipeline: DemoPipeline, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="must be a multiple of"):
        list(session.generate(replace(REQUEST, width=33)))
    pipeline.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(ArithmeticError):
        list(session.generate(replace(REQUEST, num_inference_steps=1)))
    assert list(tmp_path.iterdir()) == []


def test_a_stop_after_the_last_step_leaves_no_files(
    session: GenerationSession,
    pipeline: DemoPipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last, stopped = threading.Event(), threading.Event()

    def decode(*_: object) -> torch.Tensor:
        last.set()
        assert stopped.wait(60)
        return torch.zeros(2, 4, 32, 32, 3)

    monkeypatch.setattr(pipeline, "decode_latents", decode)
    updates = session.generate(REQUEST)
    next(updates)
    assert last.wait(60)
    updates.close()
    stopped.set()
    session.close()  # waits until the work has ended
    assert list(tmp_path.iterdir()) == []


def test_a_closed_session_ends_quietly(session: GenerationSession, tmp_path: Path) -> None:
    updates = session.generate(replace(REQUEST, num_inference_steps=100))
    next(updates)
    session.close()
    assert all(isinstance(update, StepUpdate) for update in updates)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_does_not_block_later_requests(
    session: GenerationSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = tmp_path.rename(tmp_path.with_name("away"))
    assert "No such file or directory" in final_status(session)
    (record,) = caplog.records
    assert record.name == "demo_t2v.web.session"
    assert record.exc_info
    away.rename(tmp_path)
    assert generate_all(session, REQUEST)[1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "Not enough memory: choose"),
        (MemoryError(), "Not enough memory: choose"),
        (torch.OutOfMemoryError("XPU out of memory"), "Not enough memory: choose"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "Not enough memory"),
        (
            NotImplementedError("Conv3D is not supported on MPS\nAsk us"),
            "failed: device mps: has no",
        ),
        (RuntimeError("no kernel.\nMore of it"), "The generation failed: no kernel.</p>"),
    ],
)
def test_the_page_shows_errors(
    session: GenerationSession,
    pipeline: DemoPipeline,
    tmp_path: Path,
    error: Exception,
    message: str,
) -> None:
    tensors = list[weakref.ref[torch.Tensor]]()

    def fail(*_: object) -> None:
        held = torch.zeros(9)
        tensors.append(weakref.ref(held))
        raise error

    pipeline.unet.register_forward_pre_hook(fail)
    assert message in final_status(session)
    assert list(tmp_path.iterdir()) == []
    if "memory" in message:
        assert tensors[0]() is None


def final_status(session: GenerationSession) -> str:
    """The status line at the end of a run."""
    with gr.Blocks():
        page = Page(session)
    *_, last = page.run("generate", History(), "a car falls", "", *session.limits.values())
    assert not last[2].visible  # Stop
    return str(last[1])


def test_history_has_the_newest_results(session: GenerationSession, tmp_path: Path) -> None:
    result = generate_all(session, REQUEST)[1]
    history = History()
    for number in range(HISTORY_LENGTH + 3):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        history = history.add(replace(result, folder=folder, request=replace(REQUEST, seed=number)))
    assert [entry.request.seed for entry in history.results] == list(
        range(HISTORY_LENGTH + 2, 2, -1)
    )
    left = [
        folder
        for folder in (tmp_path / f"{n}" for n in range(HISTORY_LENGTH + 3))
        if folder.exists()
    ]
    assert len(left) == HISTORY_LENGTH
    caption = history.gallery()[0][1]
    assert caption == f"a car falls · seed {HISTORY_LENGTH + 2} · 3 steps"
    history.delete_files()
    assert not any((tmp_path / f"{n}").exists() for n in range(HISTORY_LENGTH + 3))


def test_a_result_without_files_loads_its_settings(session: GenerationSession) -> None:
    result = generate_all(session, replace(REQUEST, tab="compare"))[1]
    with gr.Blocks():
        page = Page(session)
    selected = gr.SelectData(None, {"index": 0, "value": None})
    assert result.picture is not None
    status = str(page.load_result(History((result,)), selected))
    assert '<p role="status">' in status
    assert "deleted" not in status
    result.picture.unlink()
    tabs, preset, prompt, *updates = page.load_result(History((result,)), selected)
    assert (tabs.selected, preset, prompt.value) == ("compare", "balanced", REQUEST.prompt)
    assert "videos are deleted" in str(updates)
    assert '<p role="status">' not in str(updates)


def test_the_decorator_wraps_the_generation(tiny_folder: Path, tmp_path: Path) -> None:
    """ZeroGPU's decorator has the GPU from the first to the last yield."""
    seen: list[object] = []

    def decorate(function: GenerateFunction) -> GenerateFunction:
        def decorated(request: GenerationRequest) -> Iterator[StepUpdate | GenerationResult]:
            for update in function(request):
                seen.append(update)
                yield update

        return decorated

    config = InferenceConfig(model=str(tiny_folder), device="cpu")
    session = GenerationSession(load_pipeline(str(tiny_folder), "cpu"), config, tmp_path, decorate)
    assert seen == []
    assert list(session.generate(REQUEST)) == seen
    assert isinstance(seen[-1], GenerationResult)
