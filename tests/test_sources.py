"""What is wrong with the clips that `train_dataset` names is one line, or passed over."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from demo_t2v.config import ConfigError
from demo_t2v.data.clips import ClipError
from demo_t2v.training.config import DenoiserTraining
from demo_t2v.training.data.feature_cache import encode_clips
from demo_t2v.training.data.sources import describe_clips, open_chunks, open_source
from helpers.datasets import configure
from helpers.numbered_videos import damage, write_numbered

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Videos of which one is good, one damaged in the middle, one short, and one is missing."""
    write_numbered(tmp_path / "good.mp4", 60)
    damage(write_numbered(tmp_path / "torn.mp4", 60), 20, 40)
    write_numbered(tmp_path / "short.mp4", 15)
    return tmp_path


def webvid(folder: Path, *rows: str, **more: Any) -> dict[str, Any]:
    lines = ["videoid,name", *(f"{row},caption of {row}" for row in rows)]
    (folder / "a.csv").write_text("\n".join(lines) + "\n")
    named = {"csv_path": str(folder / "a.csv"), "video_dir": str(folder)}
    return {"type": "webvid", **named, "sample_fps": 10, **more}


def test_bad_videos_are_passed_over_and_named(world: Path, bad: Path) -> None:
    source = webvid(bad, "torn", "good", "short", "gone")
    config = configure(world, bad, source, "num_frames=16", "regularization_weight=0")
    skipped: list[str] = []
    clips = encode_clips(config, lambda clip: skipped.extend(clip.skipped))
    assert [clips[index][0] for index in range(4)] == ["caption of good"] * 4
    assert {line.partition(":")[0] for line in skipped} == {"torn", "short", "gone"}
    assert "short: has 15 frames, a clip takes 16" in skipped


@pytest.mark.parametrize("kind", ["webvid", "shards"])
def test_short_videos_repeat_frames_where_that_is_asked_for(
    world: Path, tmp_path: Path, kind: str
) -> None:
    """The world's videos have 30 frames."""
    config = configure(world, tmp_path, kind, "num_frames=40", "regularization_weight=0")
    with pytest.raises(ClipError, match=r"has 30 frames|no clip could be used"):
        encode_clips(config)
    asked = config.train_dataset.model_copy(update={"repeat_frames": True})
    anew = {"train_dataset": asked, "latents": tmp_path / "repeated"}
    _, parts = encode_clips(config.model_copy(update=anew))[0]
    latents = parts["latents"]  # (C, F, h, w)
    assert latents.shape[1] == 40
    same = [bool((a == b).all()) for a, b in pairwise(latents.unbind(dim=1))]
    assert sum(same) == 10  # 40 pictures of 30 frames


def test_a_class_of_one_s_own_is_told_to_repeat_frames(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(world))
    config = configure(world, tmp_path, "custom", "train_dataset.repeat_frames=true")
    source: Any = open_source(config, config.train_dataset)
    assert source.source.sampling.repeat_frames is True


def test_clips_that_were_encoded_before_stay_of_use(world: Path, tmp_path: Path) -> None:
    config = configure(world, tmp_path, "webvid")
    known = json.loads(describe_clips(config, open_chunks(config)))[0]
    assert known.keys() == {
        "data_seed", "type", "video_dir", "path_column", "caption_column", "sample_fps", "captions"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (["good"], {"caption_column": "text"}, "has no column 'text'; the columns are videoid"),
        ([], {}, "names no videos, it has only a header"),
        (["short"], {}, "none of 100 videos .*has 15 frames, a clip takes 16"),
        (["torn"], {}, "none of 100 videos .*torn \\(is no video that FFmpeg"),
        (["gone"] * 150, {}, "none of 100 videos .*No such file"),
        (["good", *["gone"] * 150], {}, "more than the share of 0.1"),
    ],
)
def test_bad_data_ends_with_one_line(
    world: Path, bad: Path, rows: list[str], more: dict[str, Any], message: str
) -> None:
    more |= {"max_bad_share": 0.1} if "good" in rows else {"max_bad_share": 1}
    config = configure(world, bad, webvid(bad, *rows, **more), "num_frames=16")
    with pytest.raises(ClipError, match=message) as caught:
        encode_clips(config)
    assert "\n" not in str(caught.value)


def test_bad_classes_end_with_one_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(world)

    def own(name: str, **args: Any) -> DenoiserTraining:
        return configure(world, tmp_path, {"type": "custom", "class": name, "args": args})

    for name, args, message in (
        ("no_such:Rows", {}, "train_dataset.class: no_such:Rows: there is no module no_such"),
        ("own_clips:Row", {}, "train_dataset.class: own_clips:Row: own_clips has no Row"),
        ("own_clips:Rows", {"n": 1}, "train_dataset.args: own_clips:Rows does not accept them"),
        ("own_clips:Rows", {"videos": 0}, "own_clips:Rows: has no videos"),
        ("own_clips:Rows", {"videos": 4, "wrong": 2}, r"frames of video 2 are uint8 \(4, 16, 16"),
    ):
        with pytest.raises((ConfigError, ClipError), match=message):
            encode_clips(own(name, **args))
    assert "no_such" not in sys.modules
    with pytest.raises(ConfigError, match=r"train_dataset\.class: should be package.module:Name"):
        own("own_clips.Rows")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_dataset.type=frames", "train_dataset.type: should be one of sprites, .*not frames"),
        ("train_dataset.clip=3", "unknown key train_dataset.clip; did you mean train_dataset.clip"),
        ("train_dataset.clips=0", "train_dataset.clips: should be at least 1, not 0"),
        ("train_dataset={type: webvid, csv_path: a}", "train_dataset.video_dir is missing"),
        (
            "train_dataset.emphasis={hops: 2}",
            "train_dataset.emphasis: .*there is no thing or motion 'hops'",
        ),
        ("train_dataset={clips: 3}", "train_dataset.type is missing"),
    ],
)
def test_bad_configurations_name_the_key(
    world: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(world, tmp_path, "sprites", override)
