"""Samples of every kind of data set: cached, computed on access, or streamed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from demo_t2v.config import ConfigError
from demo_t2v.training.config import DenoiserTraining
from demo_t2v.training.data.feature_cache import prepare
from demo_t2v.training.data.samples import Sample, SampleSource, open_samples
from demo_t2v.training.trainer import train
from helpers.datasets import CLIPS, PARTS, configure
from helpers.stages import prepared_task

pytestmark = pytest.mark.usefixtures("small_chunks")


def open_prepared(config: DenoiserTraining) -> SampleSource:
    prepare(config)
    return open_samples(config)


def tensors(sample: Sample) -> dict[str, Tensor]:
    return {name: getattr(sample, name) for name in PARTS}


def assert_same(one: Sample, other: Sample) -> None:
    assert one.caption == other.caption
    for name, tensor in tensors(one).items():
        assert torch.equal(tensor, getattr(other, name)), name


def epoch(samples: SampleSource, number: int = 0) -> list[Sample]:
    return [samples.sample(place) for place in range(number * CLIPS, (number + 1) * CLIPS)]


@pytest.mark.parametrize("kind", ["sprites", "webvid", "custom"])
def test_cached_samples_equal_computed_ones(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.syspath_prepend(world)
    cached = open_prepared(configure(world, tmp_path, kind))
    now = open_prepared(configure(world, tmp_path, kind, "latents=null"))
    for one, other in zip(epoch(cached), epoch(now), strict=True):
        assert_same(one, other)
    assert_same(cached.sample(17), open_prepared(configure(world, tmp_path, kind)).sample(17))
    assert_same(
        now.sample(17), open_prepared(configure(world, tmp_path, kind, "latents=null")).sample(17)
    )
    captions = [[sample.caption for sample in epoch(cached, number)] for number in (0, 1)]
    assert captions[0] != captions[1]
    assert sorted(captions[0]) == sorted(captions[1])
    other = open_prepared(configure(world, tmp_path, kind, "seed=1"))
    assert [sample.caption for sample in epoch(other)] != captions[0]


def test_each_epoch_cuts_other_clips_without_a_cache(world: Path, tmp_path: Path) -> None:
    samples = open_prepared(configure(world, tmp_path, "webvid", "latents=null"))
    first, second = ({i.caption: i.latents for i in epoch(samples, n)} for n in (0, 1))
    assert first.keys() == second.keys()
    assert sum(not torch.equal(first[key], second[key]) for key in first) > len(first) / 2


def test_streamed_samples_equal_cached_ones(world: Path, tmp_path: Path) -> None:
    cached = open_prepared(configure(world, tmp_path, "shards"))
    assert len(list((tmp_path / "latents").glob("*.tokens.*"))) > 2
    stream = open_prepared(configure(world, tmp_path, "shards", "latents=null"))
    streamed = epoch(stream) + epoch(stream, 1)
    known = {sample.latents.numpy().tobytes(): sample for sample in epoch(cached)}
    assert len(known) == CLIPS
    for sample in streamed[:CLIPS]:
        assert_same(sample, known[sample.latents.numpy().tobytes()])
    # The same place is the same sample: asked again, from the middle, or with a state.
    assert_same(stream.sample(2 * CLIPS - 1), streamed[-1])
    assert_same(stream.sample(3), streamed[3])
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = open_prepared(configure(world, tmp_path, "shards", "latents=null"))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert_same(resumed.sample(4), streamed[4])
    late = open_prepared(configure(world, tmp_path, "shards", "latents=null"))
    assert_same(late.sample(CLIPS + 2), streamed[CLIPS + 2])


def test_each_process_has_a_stream_of_its_own(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(world, tmp_path, "shards", "latents=null", "regularization_weight=0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        samples = open_prepared(config)
        seen += [samples.sample(place).latents.numpy().tobytes() for place in range(rank, 8, 2)]
    assert len(set(seen)) == 8
    with pytest.raises(ConfigError, match="batch_size: 3 is no multiple of 2 processes"):
        open_prepared(config.model_copy(update={"batch_size": 3}))


@pytest.mark.parametrize("kind", ["webvid", "custom", "shards"])
@pytest.mark.parametrize("cached", [True, False])
def test_every_kind_of_data_can_be_trained_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, cached: bool
) -> None:
    monkeypatch.syspath_prepend(world)
    config = configure(world, tmp_path, kind, *([] if cached else ["latents=null"]))
    lines = list(train(prepared_task(config), config))
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert (tmp_path / "latents").exists() is cached
