"""Items of every kind of data set: kept, computed as they are seen, or streamed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from demo_t2v.config import ConfigError
from demo_t2v.training.data.samples import Item, ItemSource, open_items
from demo_t2v.training.tasks import make_task
from demo_t2v.training.trainer import train
from helpers.datasets import CLIPS, PARTS, configure

pytestmark = pytest.mark.usefixtures("small_chunks")


def tensors(item: Item) -> dict[str, Tensor]:
    return {name: getattr(item, name) for name in PARTS}


def assert_same(one: Item, other: Item) -> None:
    assert one.caption == other.caption
    for name, tensor in tensors(one).items():
        assert torch.equal(tensor, getattr(other, name)), name


def epoch(items: ItemSource, number: int = 0) -> list[Item]:
    return [items.item(place) for place in range(number * CLIPS, (number + 1) * CLIPS)]


@pytest.mark.parametrize("kind", ["sprites", "webvid", "custom"])
def test_kept_items_are_the_computed_ones(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.syspath_prepend(world)
    kept = open_items(configure(world, tmp_path, kind))
    now = open_items(configure(world, tmp_path, kind, "latents=null"))
    for one, other in zip(epoch(kept), epoch(now), strict=True):
        assert_same(one, other)
    assert_same(kept.item(17), open_items(configure(world, tmp_path, kind)).item(17))
    assert_same(now.item(17), open_items(configure(world, tmp_path, kind, "latents=null")).item(17))
    captions = [[item.caption for item in epoch(kept, number)] for number in (0, 1)]
    assert captions[0] != captions[1]
    assert sorted(captions[0]) == sorted(captions[1])
    other = open_items(configure(world, tmp_path, kind, "seed=1"))
    assert [item.caption for item in epoch(other)] != captions[0]


def test_each_epoch_cuts_videos_anew_where_nothing_is_kept(world: Path, tmp_path: Path) -> None:
    items = open_items(configure(world, tmp_path, "webvid", "latents=null"))
    first, second = ({i.caption: i.latents for i in epoch(items, n)} for n in (0, 1))
    assert first.keys() == second.keys()
    assert sum(not torch.equal(first[key], second[key]) for key in first) > len(first) / 2


def test_shards_are_streamed_and_kept_alike(world: Path, tmp_path: Path) -> None:
    kept = open_items(configure(world, tmp_path, "shards"))
    assert len(list((tmp_path / "latents").glob("*.tokens.*"))) > 2
    stream = open_items(configure(world, tmp_path, "shards", "latents=null"))
    streamed = epoch(stream) + epoch(stream, 1)
    known = {item.latents.numpy().tobytes(): item for item in epoch(kept)}
    assert len(known) == CLIPS
    for item in streamed[:CLIPS]:
        assert_same(item, known[item.latents.numpy().tobytes()])
    # The same place is the same item: asked again, from the middle, or with a state.
    assert_same(stream.item(2 * CLIPS - 1), streamed[-1])
    assert_same(stream.item(3), streamed[3])
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = open_items(configure(world, tmp_path, "shards", "latents=null"))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert_same(resumed.item(4), streamed[4])
    late = open_items(configure(world, tmp_path, "shards", "latents=null"))
    assert_same(late.item(CLIPS + 2), streamed[CLIPS + 2])


def test_each_process_has_a_stream_of_its_own(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(world, tmp_path, "shards", "latents=null", "regularization_weight=0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        items = open_items(config)
        seen += [items.item(place).latents.numpy().tobytes() for place in range(rank, 8, 2)]
    assert len(set(seen)) == 8
    with pytest.raises(ConfigError, match="batch_size: 3 is no multiple of 2 processes"):
        open_items(config.model_copy(update={"batch_size": 3}))


@pytest.mark.parametrize("kind", ["webvid", "custom", "shards"])
@pytest.mark.parametrize("kept", [True, False])
def test_every_kind_of_data_can_be_trained_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, kept: bool
) -> None:
    monkeypatch.syspath_prepend(world)
    config = configure(world, tmp_path, kind, *([] if kept else ["latents=null"]))
    lines = list(train(make_task(config), config))
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert (tmp_path / "latents").exists() is kept
