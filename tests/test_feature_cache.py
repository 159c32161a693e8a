"""The feature cache: what is computed again, and what is refused."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from demo_t2v.config import ConfigError
from demo_t2v.training.data.feature_cache import encode_clips, open_cache, prepare
from helpers.datasets import CLIPS, PARTS, configure

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture(scope="module")
def kept(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoded clips of the plain configuration, not to be changed."""
    folder = tmp_path_factory.mktemp("kept")
    encode_clips(configure(world, folder))
    return folder / "latents"


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_clips_are_encoded_once_and_only_what_is_missing(world: Path, tmp_path: Path) -> None:
    encoded: list[str] = []
    base = configure(world, tmp_path, "sprites", "model.motion=false", "encode_text=false")
    folder = tmp_path / "latents"
    assert len(encode_clips(base, lambda clip: encoded.append(clip.key))) == CLIPS
    assert len(encoded) == 15  # whole chunks, of use for more clips
    names = [f"0000{n}.{part}.safetensors" for n in range(3) for part in ("latents", "tokens")]
    before = times(folder)
    assert sorted(before) == names
    # DEMO needs more of the same clips; nothing that is there is made again.
    demo = configure(world, tmp_path, "sprites", "train_dataset.clips=14")
    clips = encode_clips(demo)
    assert (len(clips), sorted(clips[13][1])) == (14, PARTS)
    after = times(folder)
    assert len(after) == 15
    assert {name: after[name] for name in names} == before
    # A file that an interrupted run left behind is no obstacle, and a lost one is made again.
    lost = folder / "00001.flow.safetensors"
    flows = load_file(lost)["flow"]
    lost.unlink()
    (folder / ".00001.flow.safetensors.1.partial").write_bytes(b"cut short")
    encoded.clear()
    encode_clips(demo, lambda clip: encoded.append(clip.key))
    assert encoded == [f"sprite {number}" for number in range(5, 10)]
    assert torch.equal(load_file(lost)["flow"], flows)
    again = times(folder)
    assert {name for name in after if after[name] != again[name]} == {lost.name}


@pytest.mark.parametrize(
    "change",
    ["train_dataset.data_seed=1", "num_frames=3", "vae", "clip", "content_encoder", "tokenizer"],
)
def test_what_other_clips_or_networks_made_is_refused(
    world: Path, kept: Path, tmp_path: Path, change: str
) -> None:
    overrides = [change] if "=" in change else []
    if not overrides:
        other = tmp_path / "other"
        other.mkdir()
        for name in ("vae", "clip", "content_encoder", "tokenizer"):
            (other / name).symlink_to(world / name)
        (other / change).unlink()
        (other / change).mkdir()
        for file in (world / change).iterdir():
            content = file.read_bytes()
            if file.suffix == ".safetensors":
                content = content[:-1] + bytes([content[-1] ^ 1])
            elif file.name == "tokenizer.json":
                content = json.dumps(json.loads(content) | {"more": 1}).encode()
            (other / change / file.name).write_bytes(content)
        overrides = [f"autoencoder={other}", f"clip={other}"]
    changed = configure(world, tmp_path, "sprites", f"latents={kept}", *overrides)
    with pytest.raises(ConfigError, match=r"made from other .*; delete .*latents, or name"):
        encode_clips(changed)


def test_saving_a_network_again_changes_nothing(world: Path, kept: Path, tmp_path: Path) -> None:
    AutoencoderKL.from_pretrained(world / "vae").save_pretrained(tmp_path / "vae")
    before = times(kept)
    again = (f"latents={kept}", f"autoencoder={tmp_path}")
    assert len(encode_clips(configure(world, tmp_path, "sprites", *again))) == CLIPS
    assert times(kept) == before


def test_damaged_files_and_missing_networks(world: Path, kept: Path, tmp_path: Path) -> None:
    config = configure(world, tmp_path)
    shutil.copytree(kept, tmp_path / "latents")
    (tmp_path / "latents/00001.flow.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"00001\.flow\.safetensors: is damaged; delete it"):
        encode_clips(config)
    with pytest.raises(ConfigError, match=r"autoencoder: .*nowhere: holds no vae"):
        encode_clips(config.model_copy(update={"autoencoder": tmp_path / "nowhere"}))
    with pytest.raises(ConfigError, match="latents: is missing"):
        encode_clips(config.model_copy(update={"latents": None}))


def test_an_incomplete_cache_is_refused_where_it_is_read(world: Path, tmp_path: Path) -> None:
    config = configure(world, tmp_path)
    with pytest.raises(ConfigError, match=r"00000\..*: is missing; encode .* demo-t2v data encode"):
        open_cache(config)
    prepare(config)
    assert len(open_cache(config)) == CLIPS


def test_other_processes_of_a_machine_wait_for_the_first(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(world, tmp_path)
    encoded: list[str] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(prepare, config, lambda clip: encoded.append(clip.key))
        time.sleep(0.2)
        assert not waiting.done()
        encode_clips(config)
        waiting.result(timeout=60)
    assert encoded == []
    assert len(open_cache(config)) == CLIPS
