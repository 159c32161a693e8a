"""Micro-batches made by processes of their own, and clips that the step encodes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demo_t2v.config import ConfigError
from demo_t2v.data.clips import ClipError
from demo_t2v.training.data import samples
from demo_t2v.training.data.feature_cache import encode_clips
from demo_t2v.training.data.prefetch import Prefetcher
from demo_t2v.training.distributed.engines import make_engine
from demo_t2v.training.trainer import train
from helpers.datasets import configure
from helpers.processes import descendants, is_running, needs_proc
from helpers.program import TIMEOUT
from helpers.stages import AUTOENCODER, CLIP, DENOISER, load, metrics, prepared_task
from helpers.tiny_task import TinyTask, run
from helpers.tiny_training import checkpointed

pytestmark = pytest.mark.usefixtures("small_chunks")


def batches(config: Any, step: int = 0) -> list[Any]:
    """The micro-batches of a run from one step on."""
    engine = make_engine(prepared_task(config), config)
    with Prefetcher(engine, step, step * config.batch_size) as batches:
        return [batch for _ in range(step, config.num_steps) for batch, _last in batches.step()]


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, tuple):
        for pair in zip(ours, theirs, strict=True):
            assert_same(*pair)
    elif theirs is not None:
        assert_same(tuple(vars(ours).values()), tuple(vars(theirs).values()))


@pytest.mark.parametrize("stop", [0, 5])
def test_a_run_takes_the_same_steps_with_workers(tmp_path: Path, stop: int) -> None:
    """Also one that was stopped, and one of several micro-batches with bad samples."""
    settings = {"gradient_accumulation": 2, "poison": (9, 23), "optimizer": "muon"}
    alone = checkpointed(tmp_path / "alone", **settings)
    beside = checkpointed(tmp_path / "beside", **settings, num_workers=2)
    for wanted in (alone, beside):
        wanted.log_dir.parent.mkdir()
    run(alone)
    stopped = train(TinyTask(beside), beside)
    list(islice(stopped, stop))
    stopped.close()
    run(beside)
    assert metrics(beside.log_dir) == metrics(alone.log_dir)
    ours, theirs = (load_file(c.log_dir / "final/model.safetensors") for c in (beside, alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("stage", ["autoencoder", "clip", "base", "demo"])
def test_the_samples_of_every_stage_are_the_same_with_workers(stages: Path, stage: str) -> None:
    kinds = {"autoencoder": AUTOENCODER, "clip": CLIP, "base": DENOISER, "demo": DENOISER}
    words = ["num_steps=3", "gradient_accumulation=2"]
    if stage == "base":
        words.append("latents=null")
    if stage == "demo":
        words += [f"base={stages}/base/final", "model={motion: true}", "p_motion_phrase=0.5"]
    alone, beside = (load(stages, kinds[stage], stage, *words, f"num_workers={n}") for n in (0, 2))
    made = batches(beside)
    assert len(made) == 6
    for ours, theirs in zip(made, batches(alone), strict=True):
        assert_same(ours, theirs)
    for ours, theirs in zip(batches(beside, step=2), made[4:], strict=True):
        assert_same(ours, theirs)


class CollectingTask(TinyTask):
    """Its batches collect garbage."""

    def batch(self, numbers: range) -> Any:
        gc.collect()
        return super().batch(numbers)


class Resource:
    """What only the process that opened it may close."""

    def __init__(self) -> None:
        self.owner, self.cycle = os.getpid(), self

    def __del__(self) -> None:
        if os.getpid() != self.owner:
            os._exit(1)


def test_workers_do_not_finalize_the_garbage_of_the_run(tmp_path: Path) -> None:
    config = checkpointed(tmp_path, num_workers=2)
    gc.unfreeze()  # the commands of other tests have frozen what was there
    closed = weakref.ref(resource := Resource())
    gc.disable()
    try:
        del resource
        list(train(CollectingTask(config), config))
        assert closed() is not None
    finally:
        gc.enable()
    gc.collect()
    assert closed() is None


def test_what_is_wrong_with_the_data_is_said_in_one_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(world)
    own = {"type": "custom", "class": "own_clips:Rows", "args": {"videos": 3, "wrong": 1}}
    words = ["latents=null", "encode_text=false", "num_workers=1", "num_steps=3"]
    with pytest.raises(
        ClipError, match=r"^own_clips:Rows: the frames of video 1 are .*$"
    ) as raised:
        batches(configure(world, tmp_path, own, *words))
    assert "\n" not in str(raised.value)


def test_what_workers_cannot_make_is_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = configure(world, tmp_path, "shards", "latents=null", "num_workers=2")
    with pytest.raises(ConfigError, match="num_workers: a stream of shards has one reader"):
        prepared_task(shards)
    monkeypatch.setattr(samples, "process_device", lambda: "cuda:0")
    words = ["latents=null", "encode_text=false", "num_workers=2", "model.motion=false"]
    with pytest.raises(ConfigError, match="cannot use the GPU, which computes latents; write"):
        prepared_task(configure(world, tmp_path, "sprites", *words))
    prepared_task(configure(world, tmp_path, "sprites", *words, "encode_in_step=true"))


@needs_proc
def test_a_signal_to_all_processes_ends_the_run_after_a_checkpoint(tmp_path: Path) -> None:
    wanted = checkpointed(tmp_path, num_steps=100_000, num_workers=2, pause=0.01)
    file = tmp_path / "config.json"
    file.write_text(wanted.model_dump_json())
    program = [sys.executable, str(Path(__file__).parent / "helpers/tiny_task.py"), str(file)]
    process = subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline().startswith("{")
    workers = descendants(process.pid)
    assert len(workers) >= 2
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err.splitlines()[-1].startswith("SIGTERM: stopped after step ")
    assert any((wanted.log_dir / "checkpoints").iterdir())
    until = time.monotonic() + TIMEOUT
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def test_clips_encoded_in_the_step_are_those_encoded_before(stages: Path) -> None:
    """But for rounding; and no network is computed where the samples are made."""
    before = load(stages, DENOISER, "base", "batch_size=6", "latents=null")
    now = before.model_copy(update={"encode_in_step": True})
    ours, theirs = prepared_task(now), prepared_task(before)
    made = ours.batch(range(6))
    assert made.latents.numel() == 0
    assert made.frames.dtype == torch.uint8
    assert made.frames.shape == (6, 4, 32, 32, 3)
    known = theirs.batch(range(6))
    encoded = ours.with_latents(made)
    torch.testing.assert_close(encoded.latents, known.latents, atol=2e-3, rtol=2e-3)
    rest = {name: asdict(each) for name, each in (("ours", made), ("theirs", known))}
    for name in ("noise", "timesteps", "content_ids", "motion_ids", "has_motion_prompt"):
        assert torch.equal(rest["ours"][name], rest["theirs"][name]), name
    losses = []
    for task, batch in ((ours, made), (theirs, known)):
        torch.manual_seed(0)  # of dropout
        losses.append(task.loss(batch)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_still_encoded_in_the_step_is_the_frame_that_was_drawn(stages: Path) -> None:
    words = ["stills=true", "model.temporal=false", "latents=null", "batch_size=6"]
    before = load(stages, DENOISER, "stills-now", *words)
    now = before.model_copy(update={"encode_in_step": True})
    made, known = prepared_task(now), prepared_task(before)
    batch = made.batch(range(6))
    assert batch.frames.shape == (6, 1, 32, 32, 3)
    latents = known.batch(range(6)).latents
    torch.testing.assert_close(made.with_latents(batch).latents, latents, atol=2e-3, rtol=2e-3)


def test_a_run_in_bf16_encodes_in_full_precision_with_workers(stages: Path) -> None:
    words = ["latents=null", "encode_in_step=true", "num_workers=2", "num_steps=4"]
    demo = [f"base={stages}/base/final", "model={motion: true}", "text_motion_weight=0"]
    config = load(stages, DENOISER, "in-step", *words, *demo, "regularization_weight=0")
    lines = list(train(prepared_task(config), config))
    assert [line["step"] for line in lines] == [2, 4]
    half = config.model_copy(update={"mixed_precision": "bf16"})
    engine = make_engine(prepared_task(half), half)
    seen: list[torch.Tensor] = []
    encoded = engine.task.with_latents  # type: ignore[attr-defined]
    engine.task.with_latents = lambda batch: seen.append(encoded(batch).latents) or encoded(batch)  # type: ignore[attr-defined]
    engine.wrap()
    batch = engine.task.batch(range(2))
    engine.loss(batch)
    assert torch.equal(seen[0], encoded(batch).latents)


def test_kept_clips_cannot_be_encoded_in_the_step(stages: Path) -> None:
    config = load(stages, DENOISER, "both", "encode_in_step=true")
    for use in (prepared_task, encode_clips):
        with pytest.raises(ConfigError, match=r"^encode_in_step: the clips in latents"):
            use(config)
