"""What the buttons do, on a small pipeline of random weights."""

from __future__ import annotations

import shlex
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import fields, replace
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
from demo_t2v.data.video import read_video
from demo_t2v.inference.batches import generate
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.web import pictures
from demo_t2v.web.attention_maps import moments
from demo_t2v.web.history import KEPT, History, Made
from demo_t2v.web.layout import _Page
from demo_t2v.web.request import Wish
from demo_t2v.web.results_panel import Stage
from demo_t2v.web.session import Maker, Progress, Studio

WISH = Wish("generate", "a car falls", "", 7, 2, 3, 4, 32, 32, 8, 2.5, 1.0)


@pytest.fixture
def studio(tiny_folder: Path, tmp_path: Path) -> Studio:
    config = InferenceConfig(pretrained=str(tiny_folder), device="cpu")
    return Studio(load_pipeline(str(tiny_folder), "cpu"), config, tmp_path)


def make(studio: Studio, wish: Wish) -> tuple[list[Progress], Made]:
    *progress, made = studio.make(wish)
    assert isinstance(made, Made)
    return progress, made  # type: ignore[return-value]


def frames(made: Made, number: int = 0) -> np.ndarray:
    return read_video(made.clips[number].mp4)[0]


def test_progress_counts_the_steps_and_shows_previews(studio: Studio) -> None:
    progress, made = make(studio, replace(WISH, steps=18))
    assert [(news.step, news.total) for news in progress] == [(n, 18) for n in range(1, 19)]
    shown = [news.step for news in progress if news.previews]
    assert shown == [6, 12]
    assert all(len(news.previews) == 2 for news in progress if news.previews)
    assert progress[5].previews[0].startswith("data:image/gif;base64,")
    assert len(made.clips) == 2
    assert made.picture is None
    for number, clip in enumerate(made.clips):
        assert frames(made, number).shape == (4, 32, 32, 3)
        assert len(read_video(clip.gif)[0]) == 4
        assert clip.mp4.parent == made.folder


def test_the_same_wish_gives_the_same_video(studio: Studio) -> None:
    first, second = (make(studio, WISH)[1] for _ in range(2))
    assert first.folder != second.folder
    for one, other in zip(first.clips, second.clips, strict=True):
        assert one.mp4.read_bytes() == other.mp4.read_bytes()
    assert (frames(first, 0) != frames(first, 1)).any()
    other_seed = make(studio, replace(WISH, seed=8))[1]
    assert (frames(first) != frames(other_seed)).any()


@pytest.mark.parametrize(
    "wish",
    [
        WISH,
        replace(WISH, tab="apart", videos=1, motion_prompt='"swings" slowly', motion_strength=0.5),
        replace(WISH, tab="compare", videos=1, prompt="-a = 'b' $HOME", width=48),
    ],
    ids=lambda wish: wish.tab,
)
def test_the_command_line_makes_the_same_frames(
    studio: Studio, tmp_path: Path, wish: Wish, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(studio, wish)[1]
    monkeypatch.chdir(tmp_path)
    files = []
    for line in made.command.splitlines():
        program, *words = shlex.split(line)
        assert program == "demo-t2v"
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        files += [tmp_path / name for name in done.stdout.split("\n") if name]
    assert len(files) == len(made.clips)
    for number, file in enumerate(files):
        assert (read_video(file)[0] == frames(made, number)).all()


def test_closing_stops_within_two_steps(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, steps, decoded = studio._pipeline, [], []
    step = pipeline.scheduler.step
    monkeypatch.setattr(
        pipeline.scheduler, "step", lambda *a, **k: (steps.append(1), step(*a, **k))[1]
    )
    decode = pipeline.decode
    monkeypatch.setattr(pipeline, "decode", lambda *a: (decoded.append(1), decode(*a))[1])
    news = studio.make(replace(WISH, steps=100))
    for _ in range(5):
        next(news)
    before = len(steps)
    decoded.clear()  # the previews until now
    news.close()
    deadline = time.monotonic() + 60
    while list(studio._folder.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(steps) <= before + 2
    assert not decoded
    assert make(studio, WISH)[1]  # and the next one is whole


def test_comparing_shows_both_and_their_flow(studio: Studio) -> None:
    progress, made = make(studio, replace(WISH, tab="compare", videos=1))
    assert progress[-1].step == progress[-1].total == 6
    assert len(made.clips) == 2
    assert (frames(made, 0) != frames(made, 1)).any()
    (job,) = make_jobs([("1", WISH.prompt)], 1, WISH.seed)
    for number, strength in enumerate((0.0, 1.0)):
        config = WISH.config(studio.config, strength)
        ((_, alone, _),) = generate(studio._pipeline, [job], config)
        assert np.abs(alone.astype(int) - frames(made, number)).mean() < 12  # but for the codec
    with Image.open(made.picture) as picture:
        assert picture.height > 2 * 150


def test_taking_apart_hears_both_prompts(studio: Studio) -> None:
    apart = replace(WISH, tab="apart", videos=1)
    plain = frames(make(studio, apart)[1])
    other = frames(make(studio, replace(apart, motion_prompt="a fish grows slowly"))[1])
    weak = frames(make(studio, replace(apart, motion_strength=0.0))[1])
    same = frames(make(studio, replace(apart, motion_prompt=apart.prompt))[1])
    assert (plain == same).all()
    assert (plain != other).any()
    assert (plain != weak).any()


@pytest.mark.parametrize("steps", [1, 2, 3, 16])
def test_looking_inside(studio: Studio, steps: int) -> None:
    wish = replace(WISH, tab="inside", videos=1, steps=steps)
    _, made = make(studio, wish)
    with Image.open(made.picture) as picture:
        assert abs(picture.height - 164 * len(moments(steps))) < 10
    plain = make(studio, replace(wish, tab="generate"))[1]
    assert (frames(plain) == frames(made)).all()  # looking changes nothing


def test_what_cannot_be_made_is_said_and_leaves_nothing(studio: Studio) -> None:
    with pytest.raises(ConfigError, match="must be a multiple of"):
        list(studio.make(replace(WISH, width=33)))
    studio._pipeline.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(ArithmeticError):
        list(studio.make(replace(WISH, steps=1)))
    assert list(studio._folder.iterdir()) == []


def test_stop_after_the_last_step_leaves_nothing(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, stopped = threading.Event(), threading.Event()

    def decode(*_: object) -> torch.Tensor:
        last.set()
        assert stopped.wait(60)
        return torch.zeros(2, 4, 32, 32, 3)

    monkeypatch.setattr(studio._pipeline, "decode", decode)
    news = studio.make(WISH)
    next(news)
    assert last.wait(60)
    news.close()
    stopped.set()
    studio.close()  # waits until the work has ended
    assert list(studio._folder.iterdir()) == []


def test_a_closed_studio_ends_quietly(studio: Studio) -> None:
    news = studio.make(replace(WISH, steps=100))
    next(news)
    studio.close()
    assert all(isinstance(item, Progress) for item in news)
    assert list(studio._folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_blocks_nobody(
    studio: Studio, caplog: pytest.LogCaptureFixture
) -> None:
    folder, studio._folder = studio._folder, Path("nowhere")
    assert "No such file or directory" in told(studio)
    (record,) = caplog.records
    assert record.name == "demo_t2v.web.session"
    assert record.exc_info
    studio._folder = folder
    assert make(studio, WISH)[1]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "Not enough memory: fewer"),
        (MemoryError(), "Not enough memory: fewer"),
        (torch.OutOfMemoryError("XPU out of memory"), "Not enough memory: fewer"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "Not enough memory"),
        (NotImplementedError("Conv3D is not supported on MPS\nAsk us"), "made: device mps: has no"),
        (RuntimeError("no kernel.\nMore of it"), "The video could not be made: no kernel.</p>"),
    ],
)
def test_the_page_says_what_went_wrong(studio: Studio, error: Exception, said: str) -> None:
    tensors = list[weakref.ref[torch.Tensor]]()

    def fail(*_: object) -> None:
        held = torch.zeros(9)
        tensors.append(weakref.ref(held))
        raise error

    studio._pipeline.unet.register_forward_pre_hook(fail)
    assert said in told(studio)
    assert list(studio._folder.iterdir()) == []
    if "memory" in said:
        assert tensors[0]() is None


def told(studio: Studio) -> str:
    """What the page says at the end of a run."""
    with gr.Blocks():
        page, stage = _Page(studio), Stage("generate", ["Video"])
    limits = studio.limits
    numbers = [getattr(limits, field.name).start for field in fields(limits)]
    *_, last = page._run(stage, History(), "a car falls", "", *numbers)
    assert not last[2].visible  # Stop
    return str(last[1])


def test_history_keeps_the_newest(studio: Studio, tmp_path: Path) -> None:
    made = make(studio, WISH)[1]
    history = History()
    for number in range(KEPT + 3):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        history = history.add(replace(made, folder=folder, wish=replace(WISH, seed=number)))
    assert [entry.wish.seed for entry in history.made] == list(range(KEPT + 2, 2, -1))
    left = [folder for folder in (tmp_path / f"{n}" for n in range(KEPT + 3)) if folder.exists()]
    assert len(left) == KEPT
    caption = history.gallery()[0][1]
    assert caption == f"a car falls · seed {KEPT + 2} · 3 steps"
    history.forget()
    assert not any((tmp_path / f"{n}").exists() for n in range(KEPT + 3))


def test_a_result_whose_files_are_gone_brings_its_settings_back(studio: Studio) -> None:
    made = make(studio, replace(WISH, tab="compare"))[1]
    with gr.Blocks():
        page = _Page(studio)
    chosen = gr.SelectData(None, {"index": 0, "value": None})
    assert made.picture is not None
    said = str(page._load_back(History((made,)), chosen))
    assert '<p role="status">' in said
    assert "deleted" not in said
    made.picture.unlink()
    tabs, prompt, *updates = page._load_back(History((made,)), chosen)
    assert (tabs.selected, prompt) == ("compare", WISH.prompt)
    assert "deleted by now" in str(updates)
    assert '<p role="status">' not in str(updates)


def test_arrows_follow_what_moves() -> None:
    """A bright square that goes to the right: arrows lie to the right of where it is."""
    video = np.full((2, 64, 64, 3), 30, np.uint8)
    video[0, 20:40, 35:55] = video[1, 20:40, 38:58] = 220
    strip = np.asarray(pictures.flow_strip([video]).convert("RGB"), int)
    plain = np.asarray(Image.fromarray(video[0]).resize((160, 160)), int)
    drawn = np.abs(strip - plain).sum(axis=-1) > 60
    assert drawn.any()
    assert not drawn[:, :20].any()
    still = np.asarray(pictures.flow_strip([np.stack([video[0]] * 2)]).convert("RGB"), int)
    assert np.abs(still - plain).max() == 0


def test_heat_is_where_attention_is() -> None:
    frames = np.full((4, 32, 32, 3), 128, np.uint8)
    attention = np.zeros((4, 4, 4), np.float32)
    attention[:, 0, 0] = 1
    strip = np.asarray(pictures.heat_strip(frames, [attention]).convert("L"), int)
    assert strip[5, 5] > strip[150, 150] + 80
    flat = pictures.heat_strip(frames, [np.ones((4, 4, 4), np.float32)])  # nothing stands out
    assert np.ptp(np.asarray(flat.convert("L"))[:, :160]) == 0


def test_columns_are_spread_and_few() -> None:
    assert pictures.columns(2) == [0, 1]
    assert pictures.columns(16) == [0, 3, 6, 9, 12, 15]


def test_a_decorator_is_round_all_that_computes(tiny_folder: Path, tmp_path: Path) -> None:
    """As ZeroGPU's, which lends its GPU from the first to the last thing that is yielded."""
    seen: list[object] = []

    def lend(maker: Maker) -> Maker:
        def lent(wish: Wish) -> Iterator[Progress | Made]:
            for news in maker(wish):
                seen.append(news)
                yield news

        return lent

    config = InferenceConfig(pretrained=str(tiny_folder), device="cpu")
    studio = Studio(load_pipeline(str(tiny_folder), "cpu"), config, tmp_path, lend)
    assert seen == []
    assert list(studio.make(WISH)) == seen
    assert isinstance(seen[-1], Made)
