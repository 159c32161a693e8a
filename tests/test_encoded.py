"""Clips of every kind of data set, encoded and kept, computed as they are seen, or streamed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo_t2v import config as configs
from demo_t2v.config import ConfigError
from demo_t2v.data.clips import ClipError, VideoClips, write_sprite_dataset
from demo_t2v.data.shards import write_shards
from demo_t2v.data.sprites import draw_clip
from demo_t2v.models.text import penultimate_states
from demo_t2v.motion.flow import lucas_kanade, resize_flow, video_flow
from demo_t2v.training.config import AnyTraining, DenoiserTraining
from demo_t2v.training.encoded import encode
from demo_t2v.training.items import Item, ItemSource, open_items
from demo_t2v.training.loop import train
from demo_t2v.training.parts import Preprocessing
from demo_t2v.training.tasks import make_task, train_tokenizer
from numbered import damage, write_numbered
from test_cli import assert_one_line
from test_cli import run as command

pytestmark = pytest.mark.usefixtures("small_chunks")
CLIPS = 12
PARTS = ["content", "flow", "image", "latents", "tokens"]
SPRITES = {"type": "sprites", "clips": CLIPS}
OWN = '''
import numpy as np
from demo_t2v.data.clips import CaptionedClip
from demo_t2v.data.sprites import draw_clip


class Rows:
    """Sprites in grey; `wrong` is a clip of another size."""

    def __init__(self, sampling, videos, wrong=-1):
        self.sampling, self.videos, self.wrong = sampling, videos, wrong

    def __len__(self):
        return self.videos

    def clip(self, index, seed):
        side = self.sampling.resolution // (2 if index == self.wrong else 1)
        clip = draw_clip(np.random.default_rng(index), side, self.sampling.frames)
        grey = clip.frames.mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)
        return CaptionedClip(grey, clip.caption, str(index))
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random networks, a data set of real videos, its shards, and a module with a class."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 8],
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=0.7,
    ).save_pretrained(folder / "vae")
    captions = [draw_clip(np.random.default_rng(n), 8, 1).caption for n in range(200)]
    tokenizer = train_tokenizer(captions, 560, 24)
    tokenizer.save_pretrained(folder / "tokenizer")
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    vision = {"image_size": 32, "patch_size": 8}
    sizes = {"text_config": tower | text, "vision_config": tower | vision, "projection_dim": 24}
    CLIPModel(CLIPConfig(**sizes)).save_pretrained(folder / "clip")
    CLIPTextModel.from_pretrained(folder / "clip").save_pretrained(folder / "content_encoder")
    csv = write_sprite_dataset(folder / "data", CLIPS, resolution=32, frames=30, fps=10)
    write_shards(VideoClips(csv, folder / "data/videos"), folder / "shards", megabytes=0.008)
    (folder / "own_clips.py").write_text(OWN)
    return folder


def dataset(place: Path, kind: str) -> dict[str, Any]:
    data = place / "data"
    return {
        "sprites": SPRITES,
        "webvid": {
            "type": "webvid",
            "csv_path": str(data / "captions.csv"),
            "video_dir": str(data / "videos"),
        },
        "shards": {"type": "shards", "folder": str(place / "shards")},
        "custom": {"type": "custom", "class": "own_clips:Rows", "args": {"videos": CLIPS}},
    }[kind]


def settings(place: Path, folder: Path, kind: str | dict[str, Any] = "sprites") -> dict[str, Any]:
    return {
        "task": "denoiser", "log_dir": str(folder / "run"), "autoencoder": str(place),
        "clip": str(place), "latents": str(folder / "latents"), "encode_text": True,
        "num_steps": 2, "batch_size": 2, "lr": 1e-3, "resolution": 32, "max_frames": 4,
        "threads": 1, "log_interval": 1, "warmup_steps": 1,
        "train_dataset": dataset(place, kind) if isinstance(kind, str) else kind,
        "model": {
            "block_out_channels": [8, 16], "attention": [True, True], "layers_per_block": 1,
            "cross_attention_dim": 24, "attention_head_dim": 8, "num_input_heads": 1,
            "norm_num_groups": 4,
        },
    }  # fmt: skip


def configure(
    place: Path, folder: Path, kind: str | dict[str, Any] = "sprites", *overrides: str
) -> DenoiserTraining:
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(settings(place, folder, kind)))
    config: DenoiserTraining = configs.load(AnyTraining, file, overrides)
    return config


def tensors(item: Item) -> dict[str, Tensor]:
    return {name: getattr(item, name) for name in PARTS}


def assert_same(one: Item, other: Item) -> None:
    assert one.caption == other.caption
    for name, tensor in tensors(one).items():
        assert torch.equal(tensor, getattr(other, name)), name


def epoch(items: ItemSource, number: int = 0) -> list[Item]:
    return [items.item(place) for place in range(number * CLIPS, (number + 1) * CLIPS)]


def test_an_item_is_what_its_networks_say(place: Path, tmp_path: Path) -> None:
    config = configure(place, tmp_path)
    caption, parts = encode(config)[7]
    item = Item.of(caption, parts)
    clip = draw_clip(np.random.default_rng([0, 7]), 32, 4)
    assert item.caption == clip.caption
    pixels = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 127.5 - 1  # (F, 3, H, W)
    vae = AutoencoderKL.from_pretrained(place / "vae")
    content = CLIPTextModel.from_pretrained(place / "content_encoder")
    whole = CLIPModel.from_pretrained(place / "clip")
    with torch.no_grad():
        latents = (0.7 * vae.encode(pixels).latent_dist.mean).transpose(0, 1)
        flow = video_flow(lucas_kanade, pixels.transpose(0, 1)[None])[0]
        states = penultimate_states(content, item.tokens[None])[0]
        image = whole.get_image_features(pixel_values=pixels[2:3]).pooler_output[0]
    expected = {"latents": latents, "flow": flow, "content": states, "image": image}
    for name, tensor in expected.items():
        assert getattr(item, name).dtype == torch.float32
        torch.testing.assert_close(getattr(item, name), tensor, rtol=2e-3, atol=2e-3)
    assert flow.abs().max() > 0.2
    assert make_task(config).condition.tokens([caption])[0].tolist() == item.tokens.tolist()


def test_flows_are_kept_small(place: Path, tmp_path: Path) -> None:
    config = configure(place, tmp_path, "sprites", "resolution=64", "regularization_weight=0")
    _, parts = encode(config)[3]
    frames = torch.from_numpy(draw_clip(np.random.default_rng([0, 3]), 64, 4).frames)
    video = frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    flow = resize_flow(video_flow(lucas_kanade, video)[0], (32, 32))
    torch.testing.assert_close(parts["flow"].float(), flow, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["sprites", "webvid", "custom"])
def test_kept_items_are_the_computed_ones(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.syspath_prepend(place)
    kept = open_items(configure(place, tmp_path, kind))
    now = open_items(configure(place, tmp_path, kind, "latents=null"))
    for one, other in zip(epoch(kept), epoch(now), strict=True):
        assert_same(one, other)
    assert_same(kept.item(17), open_items(configure(place, tmp_path, kind)).item(17))
    assert_same(now.item(17), open_items(configure(place, tmp_path, kind, "latents=null")).item(17))
    captions = [[item.caption for item in epoch(kept, number)] for number in (0, 1)]
    assert captions[0] != captions[1]
    assert sorted(captions[0]) == sorted(captions[1])
    other = open_items(configure(place, tmp_path, kind, "seed=1"))
    assert [item.caption for item in epoch(other)] != captions[0]


def test_each_epoch_cuts_videos_anew_where_nothing_is_kept(place: Path, tmp_path: Path) -> None:
    items = open_items(configure(place, tmp_path, "webvid", "latents=null"))
    first, second = ({i.caption: i.latents for i in epoch(items, n)} for n in (0, 1))
    assert first.keys() == second.keys()
    assert sum(not torch.equal(first[key], second[key]) for key in first) > len(first) / 2


def test_shards_are_streamed_and_kept_alike(place: Path, tmp_path: Path) -> None:
    kept = open_items(configure(place, tmp_path, "shards"))
    assert len(list((tmp_path / "latents").glob("*.tokens.*"))) > 2
    stream = open_items(configure(place, tmp_path, "shards", "latents=null"))
    streamed = epoch(stream) + epoch(stream, 1)
    known = {item.latents.numpy().tobytes(): item for item in epoch(kept)}
    assert len(known) == CLIPS
    for item in streamed[:CLIPS]:
        assert_same(item, known[item.latents.numpy().tobytes()])
    # The same place is the same item: asked again, from the middle, or with a state.
    assert_same(stream.item(2 * CLIPS - 1), streamed[-1])
    assert_same(stream.item(3), streamed[3])
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = open_items(configure(place, tmp_path, "shards", "latents=null"))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert_same(resumed.item(4), streamed[4])
    late = open_items(configure(place, tmp_path, "shards", "latents=null"))
    assert_same(late.item(CLIPS + 2), streamed[CLIPS + 2])


def test_each_process_has_a_stream_of_its_own(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(place, tmp_path, "shards", "latents=null", "regularization_weight=0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        items = open_items(config)
        seen += [items.item(place).latents.numpy().tobytes() for place in range(rank, 8, 2)]
    assert len(set(seen)) == 8
    with pytest.raises(ConfigError, match="batch_size: 3 is no multiple of 2 processes"):
        open_items(config.model_copy(update={"batch_size": 3}))


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_clips_are_encoded_once_and_only_what_is_missing(place: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    base = configure(place, tmp_path, "sprites", "model.motion=false", "encode_text=false")
    folder = tmp_path / "latents"
    assert len(encode(base, lambda clip: heard.append(clip.key))) == CLIPS
    assert len(heard) == 15  # whole chunks, of use for more clips
    names = [f"0000{n}.{part}.safetensors" for n in range(3) for part in ("latents", "tokens")]
    before = times(folder)
    assert sorted(before) == names
    # DEMO needs more of the same clips; nothing that is there is made again.
    demo = configure(place, tmp_path, "sprites", "train_dataset.clips=14")
    clips = encode(demo)
    assert (len(clips), sorted(clips[13][1])) == (14, PARTS)
    after = times(folder)
    assert len(after) == 15
    assert {name: after[name] for name in names} == before
    # A file that an interrupted run left behind is no obstacle, and a lost one is made again.
    lost = folder / "00001.flow.safetensors"
    flows = load_file(lost)["flow"]
    lost.unlink()
    (folder / ".00001.flow.safetensors.1.partial").write_bytes(b"cut short")
    heard.clear()
    encode(demo, lambda clip: heard.append(clip.key))
    assert heard == [f"sprite {number}" for number in range(5, 10)]
    assert torch.equal(load_file(lost)["flow"], flows)
    again = times(folder)
    assert {name for name in after if after[name] != again[name]} == {lost.name}


@pytest.mark.parametrize(
    "change",
    ["train_dataset.data_seed=1", "max_frames=3", "vae", "clip", "content_encoder", "tokenizer"],
)
def test_what_other_clips_or_networks_made_is_refused(
    place: Path, tmp_path: Path, change: str
) -> None:
    encode(configure(place, tmp_path))
    overrides = [change] if "=" in change else []
    if not overrides:
        other = tmp_path / "other"
        other.mkdir()
        for name in ("vae", "clip", "content_encoder", "tokenizer"):
            (other / name).symlink_to(place / name)
        (other / change).unlink()
        (other / change).mkdir()
        for file in (place / change).iterdir():
            content = file.read_bytes()
            if file.suffix == ".safetensors":
                content = content[:-1] + bytes([content[-1] ^ 1])
            elif file.name == "tokenizer.json":
                content = json.dumps(json.loads(content) | {"more": 1}).encode()
            (other / change / file.name).write_bytes(content)
        overrides = [f"autoencoder={other}", f"clip={other}"]
    changed = configure(place, tmp_path, "sprites", *overrides)
    with pytest.raises(ConfigError, match=r"made from other .*; delete .*latents, or name"):
        encode(changed)


def test_saving_a_network_again_changes_nothing(place: Path, tmp_path: Path) -> None:
    encode(configure(place, tmp_path))
    (tmp_path / "same").mkdir()
    AutoencoderKL.from_pretrained(place / "vae").save_pretrained(tmp_path / "same/vae")
    before = times(tmp_path / "latents")
    encode(configure(place, tmp_path, "sprites", f"autoencoder={tmp_path}/same"))
    assert times(tmp_path / "latents") == before


def test_damaged_files_and_missing_networks(place: Path, tmp_path: Path) -> None:
    config = configure(place, tmp_path)
    encode(config)
    (tmp_path / "latents/00001.flow.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"00001\.flow\.safetensors: is damaged; delete it"):
        encode(config)
    with pytest.raises(ConfigError, match="nowhere/vae: is no folder of a saved network"):
        encode(config.model_copy(update={"autoencoder": tmp_path / "nowhere"}))
    with pytest.raises(ConfigError, match="latents: is missing"):
        encode(config.model_copy(update={"latents": None}))


def test_images_are_prepared_as_clip_has_it(tmp_path: Path) -> None:
    frame = draw_clip(np.random.default_rng(0), 50, 1).frames[0]
    square = torch.from_numpy(frame).permute(2, 0, 1)[None]
    plain = Preprocessing.read(tmp_path, 50)(square)
    torch.testing.assert_close(plain, square / 127.5 - 1)
    for size, crop in ((32, 32), (64, 60)):
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": crop, "width": crop}
        )
        processor.save_pretrained(tmp_path)
        expected = processor(Image.fromarray(frame), return_tensors="pt").pixel_values
        ours = Preprocessing.read(tmp_path, 1)(square)
        assert ours.shape == expected.shape == (1, 3, crop, crop)
        # Within one of 255 steps of a channel, whose deviation is about a quarter.
        assert (ours - expected).abs().max() < 0.016
        assert (ours - expected).abs().mean() < 0.001


@pytest.mark.parametrize("kind", ["webvid", "custom", "shards"])
@pytest.mark.parametrize("kept", [True, False])
def test_every_kind_of_data_can_be_trained_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, kept: bool
) -> None:
    monkeypatch.syspath_prepend(place)
    config = configure(place, tmp_path, kind, *([] if kept else ["latents=null"]))
    lines = list(train(make_task(config), config))
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert (tmp_path / "latents").exists() is kept


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


def test_bad_videos_are_passed_over_and_named(place: Path, bad: Path) -> None:
    source = webvid(bad, "torn", "good", "short", "gone")
    config = configure(place, bad, source, "max_frames=16", "regularization_weight=0")
    skipped: list[str] = []
    clips = encode(config, lambda clip: skipped.extend(clip.skipped))
    assert [clips[index][0] for index in range(4)] == ["caption of good"] * 4
    assert {line.partition(":")[0] for line in skipped} == {"torn", "short", "gone"}
    assert "short: has 15 frames, a clip takes 16" in skipped


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
    place: Path, bad: Path, rows: list[str], more: dict[str, Any], message: str
) -> None:
    more |= {"max_bad_share": 0.1} if "good" in rows else {"max_bad_share": 1}
    config = configure(place, bad, webvid(bad, *rows, **more), "max_frames=16")
    with pytest.raises(ClipError, match=message) as caught:
        encode(config)
    assert "\n" not in str(caught.value)


def test_bad_classes_end_with_one_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(place)

    def own(name: str, **args: Any) -> DenoiserTraining:
        return configure(place, tmp_path, {"type": "custom", "class": name, "args": args})

    for name, args, message in (
        ("no_such:Rows", {}, "train_dataset.class: no_such:Rows: there is no module no_such"),
        ("own_clips:Row", {}, "train_dataset.class: own_clips:Row: own_clips has no Row"),
        ("own_clips:Rows", {"n": 1}, "train_dataset.args: own_clips:Rows does not take them"),
        ("own_clips:Rows", {"videos": 0}, "own_clips:Rows: has no videos"),
        ("own_clips:Rows", {"videos": 4, "wrong": 2}, r"frames of video 2 are uint8 \(4, 16, 16"),
    ):
        with pytest.raises((ConfigError, ClipError), match=message):
            encode(own(name, **args))
    assert "no_such" not in sys.modules
    with pytest.raises(ConfigError, match=r"train_dataset\.class: string should match pattern"):
        own("own_clips.Rows")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_dataset.type=frames", "train_dataset: input tag 'frames' .*'sprites', 'webvid'"),
        ("train_dataset.clip=3", "unknown key train_dataset.clip; did you mean train_dataset.clip"),
        ("train_dataset.clips=0", "train_dataset.clips: input should be greater than or equal"),
        ("train_dataset={type: webvid, csv_path: a}", "train_dataset.video_dir is missing"),
        ("train_dataset.emphasis={hops: 2}", "train_dataset.emphasis: .*there is no motion 'hops'"),
        ("train_dataset={clips: 3}", "train_dataset: unable to extract tag"),
    ],
)
def test_bad_configurations_name_the_key(
    place: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(place, tmp_path, "sprites", override)


def test_the_commands(place: Path, tmp_path: Path) -> None:
    size = ("--resolution", 32, "--frames", 8, "--fps", 5, "--seed", 3)
    done = command(tmp_path, "data", "sprites", "--clips", 3, "--out", "made", *size)
    assert (done.returncode, done.stdout, done.stderr) == (0, "made/captions.csv\n", "")
    with (tmp_path / "made/captions.csv").open("a") as stream:
        stream.write("gone,a fish\n")
    named = ("--csv", "made/captions.csv", "--videos", "made/videos", "--out", "tars")
    done = command(tmp_path, "data", "shards", *named, "--megabytes", 1)
    assert (done.returncode, done.stdout) == (0, "tars\n")
    assert done.stderr.splitlines() == ["skipped gone: No such file or directory", "3 videos"]
    assert [file.name for file in (tmp_path / "tars").iterdir()] == ["00000.tar"]
    assert_one_line(command(tmp_path, "data", "shards", *named), 2, "tars: is there already")
    source = {"type": "webvid", "csv_path": "made/captions.csv", "video_dir": "made/videos"}
    configure(place, tmp_path, source)
    done = command(tmp_path, "data", "encode", "--config", "train.yaml", "latents=kept")
    assert (done.returncode, done.stdout) == (0, "kept\n"), done.stderr
    skipped, told = done.stderr.splitlines()
    assert skipped == "skipped gone: No such file or directory"
    assert told == "4 clips, 4 of them encoded now"
    assert len(list((tmp_path / "kept").iterdir())) == len(PARTS)
    done = command(tmp_path, "data", "encode", "--config", "train.yaml", "latents=kept")
    assert done.stderr == "4 clips, 0 of them encoded now\n"
    refused = command(
        tmp_path, "data", "encode", "--config", "train.yaml", "latents=kept", "max_frames=3"
    )
    assert_one_line(refused, 2, "made from other clips", "delete kept")
    done = command(tmp_path, "train", "--config", "train.yaml", "latents=kept")
    assert done.returncode == 0, done.stderr
    assert "step 2" in done.stderr


def test_commands_that_cannot_be_done(tmp_path: Path) -> None:
    odd = ("data", "sprites", "--clips", 1, "--out", "odd", "--resolution", 33)
    assert_one_line(command(tmp_path, *odd), 2, "even width and height")
    nothing = ("data", "shards", "--csv", "a.csv", "--videos", ".", "--out", "b")
    assert_one_line(command(tmp_path, *nothing), 2, "a.csv: cannot be read")
    (tmp_path / "clip.yaml").write_text(
        "{task: clip, log_dir: a, num_steps: 1, batch_size: 1, lr: 1}"
    )
    done = command(tmp_path, "data", "encode", "--config", "clip.yaml")
    assert_one_line(done, 2, "clip.yaml: task: only the clips of a denoiser")
