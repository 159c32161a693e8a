"""Published layouts to this project's folders and back: the published files, diffusers' folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import CLIPModel

from demo_t2v.checkpoints.original.exporter import export
from demo_t2v.checkpoints.original.files import read_torch_file
from demo_t2v.checkpoints.original.importer import convert
from demo_t2v.checkpoints.original.key_maps import autoencoder_from_original, denoiser_to_original
from demo_t2v.checkpoints.original.openclip import to_openclip
from demo_t2v.checkpoints.resolve import load_pipeline, read_defaults, resolve
from demo_t2v.model_folder import ModelError
from demo_t2v.models.text import penultimate_states
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process, stages
from helpers.diffusers_folder import write_text_to_video_folder
from helpers.golden import relative_error
from helpers.published_layout import NEGATIVE_PROMPT, write_published
from helpers.tiny_networks import tiny_unet

Files = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Files]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, write_published(folder, motion=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Files]:
    folder = tmp_path_factory.mktemp("base")
    return folder, write_published(folder, motion=False)


@pytest.fixture(scope="module")
def converted(demo: tuple[Path, Files], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "model"
    convert(demo[0], out)
    return out


@pytest.fixture(scope="module")
def started(base: tuple[Path, Files], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("started") / "model"
    convert(base[0], out, start_motion=True)
    return out


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_every_tensor_of_the_published_files_arrives(
    demo: tuple[Path, Files], converted: Path
) -> None:
    """So no parameter keeps the value that it began with."""
    _, files = demo
    loaded = DemoPipeline.from_pretrained(converted, dtype=torch.float16)
    unet, vae = loaded.unet, loaded.vae
    assert same(denoiser_to_original(unet.state_dict(), unet), files["demo.pth"])
    assert same(vae.state_dict(), autoencoder_from_original(files["VQGAN_autoencoder.pth"], vae))
    clip = files["open_clip_pytorch_model.bin"]
    for encoder, theirs in (
        (loaded.content_encoder, clip),
        (loaded.motion_encoder, files["motion_encoder.pth"]),
    ):
        ours = to_openclip(encoder.state_dict())
        assert same(ours, {name: theirs[name] for name in ours})
        left = {name for name in theirs if not name.startswith("visual.")} - ours.keys()
        assert left == {"text_projection", "logit_scale"}
    assert not (converted / "clip").exists()


def test_it_is_a_pipeline_of_the_published_sampler(converted: Path) -> None:
    defaults = read_defaults(converted)
    assert (defaults.steps, defaults.guidance) == (50, 9.0)
    assert defaults.negative_prompt == NEGATIVE_PROMPT
    assert (defaults.frames, defaults.side) == (16, 256)
    pipeline = load_pipeline(str(converted), "cpu", "float32")
    video = pipeline(
        "a dog runs", num_frames=2, height=64, width=64, num_inference_steps=1,
        generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    assert video.shape == (1, 2, 64, 64, 3)
    assert video.std() > 0
    pipeline.scheduler.set_timesteps(50)
    assert pipeline.scheduler.timesteps.tolist() == list(range(981, 0, -20))
    pipeline.scheduler.set_timesteps(30)
    assert pipeline.scheduler.timesteps.tolist() == list(range(991, 0, -33))
    assert 49407 not in pipeline.tokenizer("<|endoftext|>").input_ids[1:-1]


def test_a_base_model_becomes_a_demo_to_be_trained(base: tuple[Path, Files], started: Path) -> None:
    assert read_defaults(started).negative_prompt == ""
    loaded = DemoPipeline.from_pretrained(started, dtype=torch.float16)
    state = loaded.unet.state_dict()
    copies = [name for name in state if "motion_attentions." in name]
    assert len(copies) == 16 * len([n for n in copies if "down_blocks.0.motion_attentions.0" in n])
    for name in copies:
        assert torch.equal(state[name], state[name.replace("motion_attentions", "attentions")])
    assert same(loaded.motion_encoder.state_dict(), loaded.content_encoder.state_dict())
    towers = CLIPModel.from_pretrained(started / "clip", dtype=torch.float16)
    assert same(to_openclip(towers.state_dict()), base[1]["open_clip_pytorch_model.bin"])
    prepared = json.loads((started / "clip/preprocessor_config.json").read_text())
    assert prepared["crop_size"] == {"height": 28, "width": 28}


def test_the_base_model_alone(base: tuple[Path, Files], tmp_path: Path) -> None:
    convert(base[0] / "text2video_pytorch_model.pth", tmp_path / "model", "float32")
    loaded = DemoPipeline.from_pretrained(tmp_path / "model")
    assert loaded.motion_encoder is None
    assert loaded.unet.dtype == torch.float32
    back = denoiser_to_original(loaded.unet.half().state_dict(), loaded.unet)
    assert same(back, base[1]["text2video_pytorch_model.pth"])


def test_a_folder_goes_back_to_the_published_files(
    demo: tuple[Path, Files], converted: Path, tmp_path: Path
) -> None:
    folder, files = demo
    export(converted, tmp_path / "back", folder / "open_clip_pytorch_model.bin")
    assert set(os.listdir(tmp_path / "back")) == {"demo.pth", "motion_encoder.pth"}
    assert torch.load(tmp_path / "back/demo.pth", weights_only=True).keys() == {"unet_state_dict"}
    assert same(read_torch_file(tmp_path / "back/demo.pth"), files["demo.pth"])
    # The head behind the tower is the base's: training does not touch it.
    head = files["open_clip_pytorch_model.bin"]
    wanted = files["motion_encoder.pth"] | {n: head[n] for n in ("text_projection", "logit_scale")}
    assert same(read_torch_file(tmp_path / "back/motion_encoder.pth"), wanted)
    with pytest.raises(ModelError, match=r"motion_encoder\.pth: holds logit_scale and text_proj"):
        export(converted, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_goes_back_as_the_finished_run_does(
    base: tuple[Path, Files], started: Path, tmp_path: Path
) -> None:
    """It holds the averaged weights of what was trained; the rest is where the run began."""
    clip = base[0] / "open_clip_pytorch_model.bin"
    stage = {**stages.DENOISER, "num_steps": 2, "batch_size": 1, "resolution": 64, "model": {}}
    stage |= {"save_ckp_interval": 1, "freeze_unet": True, "ema_decay": 0.5}
    stage |= {"num_frames": 2, "train_dataset": {"type": "sprites", "clips": 2}}
    stage |= {"text_motion_weight": 0, "regularization_weight": 0}
    places = [f"{part}={started}" for part in ("base", "clip", "autoencoder")]
    stages.run(stages.load(tmp_path, stage, "run", *places, "latents=null"))
    checkpoint = tmp_path / "run/checkpoints/00000002"
    export(tmp_path / "run", tmp_path / "finished", clip)
    export(checkpoint, tmp_path / "back", clip, started)
    for name in ("demo.pth", "motion_encoder.pth"):
        finished = read_torch_file(tmp_path / "finished" / name)
        assert same(read_torch_file(tmp_path / "back" / name), finished)
    export(started, tmp_path / "before", clip)
    changed = read_torch_file(tmp_path / "before/motion_encoder.pth")
    assert not same({n: w.float() for n, w in changed.items()}, finished)
    with pytest.raises(ModelError, match=r"not have the published layout .* see --base$"):
        export(checkpoint, tmp_path / "other", clip)
    with pytest.raises(ModelError, match="--base is the model that the training started from"):
        export(checkpoint, tmp_path / "other", clip, tmp_path)
    shutil.copytree(started / "unet", tmp_path / "other-noise/unet")
    shutil.copytree(started / "scheduler", tmp_path / "other-noise/scheduler")
    settings = tmp_path / "other-noise/scheduler/scheduler_config.json"
    settings.write_text(settings.read_text().replace("0.012", "0.04"))
    with pytest.raises(ModelError, match=r"beta_end is 0\.04, and the published code .* 0\.012"):
        export(checkpoint, tmp_path / "other", clip, tmp_path / "other-noise")
    with pytest.raises(ModelError, match="no pipeline's folder, no training run with a `final`"):
        export(tmp_path, tmp_path / "other", clip)
    assert not (tmp_path / "other").exists()


@torch.no_grad()
def test_a_folder_of_diffusers(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    unet, text, vae = write_text_to_video_folder(theirs)
    convert(theirs, tmp_path / "ours")
    loaded = DemoPipeline.from_pretrained(tmp_path / "ours")
    noisy, states = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 77, 24)
    expected = unet(noisy, torch.tensor([3, 700]), states).sample
    answer = loaded.unet(noisy, torch.tensor([3, 700]), states).sample
    assert relative_error(answer, expected) < 1e-4
    # Their encoder ends at the states that we read: after the last but one of our layers.
    ids = loaded.tokenizer(["a dog runs"], padding="max_length", return_tensors="pt").input_ids
    states = penultimate_states(loaded.content_encoder, ids)
    assert relative_error(states, text(input_ids=ids).last_hidden_state) < 1e-5
    assert same(loaded.vae.state_dict(), vae.state_dict())


@torch.no_grad()
def test_motion_transformers_with_zero_output_change_nothing() -> None:
    silent, base = tiny_unet(), tiny_unet(motion=False)
    base.load_state_dict({name: silent.state_dict()[name] for name in base.state_dict()})
    for name, weight in silent.named_parameters():
        if "motion_attentions." in name and ".proj_out." in name:
            weight.zero_()
    noisy, states = torch.randn(2, 4, 4, 4, 4), torch.randn(2, 16, 24)
    time = torch.tensor([5, 800])
    assert torch.equal(silent(noisy, time, states, states).sample, base(noisy, time, states).sample)


def copied(demo: tuple[Path, Files], tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    shutil.copytree(demo[0], folder)
    return folder


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        ("truncate", r"demo\.pth: is damaged or cut short .*; download it again"),
        ("missing file", r"demo\.pth: needs motion_encoder\.pth beside it"),
        ("base as demo", r"demo\.pth: holds the base denoiser, which has no motion transformers"),
        ("demo as base", r"text2video_pytorch_model\.pth: holds DEMO's denoiser, not the base one"),
        ("nan", r"demo\.pth: \S+ has numbers that are not finite"),
        ("missing tensor", r"motion_encoder\.pth: .*1 missing: ln_final\.bias"),
        ("misshapen", r"demo\.pth: .*1 misshapen: out\.2\.bias \(3,\) should be \(4,\)"),
        ("other file", r"VQGAN_autoencoder\.pth: is no published autoencoder"),
        ("clip", r"open_clip_pytorch_model\.bin: is no file of OpenCLIP's"),
    ],
)
def test_bad_files_stop_the_conversion_and_leave_nothing(
    demo: tuple[Path, Files], base: tuple[Path, Files], tmp_path: Path, spoil: str, line: str
) -> None:
    folder, (_, files) = copied(demo, tmp_path), demo
    state = dict(files["demo.pth"])
    if spoil == "truncate":
        os.truncate(folder / "demo.pth", 1_000_000)
    elif spoil == "missing file":
        (folder / "motion_encoder.pth").unlink()
    elif spoil == "base as demo":
        shutil.copy(base[0] / "text2video_pytorch_model.pth", folder / "demo.pth")
    elif spoil == "demo as base":
        (folder / "demo.pth").rename(folder / "text2video_pytorch_model.pth")
    elif spoil == "nan":
        state["out.2.bias"] = torch.tensor([1.0, float("inf"), 0, 0]).half()
        torch.save({"unet_state_dict": state}, folder / "demo.pth")
    elif spoil == "missing tensor":
        text = {n: w for n, w in files["motion_encoder.pth"].items() if n != "ln_final.bias"}
        torch.save(text, folder / "motion_encoder.pth")
    elif spoil == "misshapen":
        state["out.2.bias"] = torch.zeros(3)
        torch.save({"unet_state_dict": state}, folder / "demo.pth")
    else:
        name = "VQGAN_autoencoder.pth" if spoil == "other file" else "open_clip_pytorch_model.bin"
        torch.save({"a": torch.zeros(2)}, folder / name)
    before = set(tmp_path.iterdir())
    with pytest.raises(ModelError, match=line) as caught:
        convert(folder, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


def test_what_float16_cannot_hold(demo: tuple[Path, Files], tmp_path: Path) -> None:
    folder = copied(demo, tmp_path)
    state = {**demo[1]["demo.pth"], "out.2.bias": torch.tensor([1.0, 1e5, 0, 0])}
    torch.save({"unet_state_dict": state}, folder / "demo.pth")
    with pytest.raises(ModelError, match=r"conv_out\.bias does not fit into float16; give --dtype"):
        convert(folder, tmp_path / "model", "float16")


def run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf")}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "demo_t2v", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_published_file_is_a_model(
    demo: tuple[Path, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ThreadPoolExecutor() as pool:  # as several processes of one launcher do
        one, two = pool.map(resolve, [str(demo[0] / "demo.pth")] * 2)
    assert one == two
    first = one.folder
    made = (first / "model_index.json").stat().st_mtime_ns
    assert resolve(str(demo[0])).folder == first
    assert (first / "model_index.json").stat().st_mtime_ns == made
    options = ["--model", str(demo[0]), "--frames", "1", "--height", "64", "--width", "64"]
    options += ["--steps", "1", "--format", "png", "--out", str(tmp_path / "out")]
    ended = in_process.run(tmp_path, "generate", "a dog runs", *options)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 1
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ModelError, match="no denoiser among them"):
        resolve(str(tmp_path))


def test_the_commands(demo: tuple[Path, Files], started: Path, tmp_path: Path) -> None:
    ended = run(tmp_path, "convert", str(demo[0]), str(tmp_path / "a"), "--dtype", "float16")
    assert (ended.returncode, ended.stdout) == (0, f"{tmp_path / 'a'}\n"), ended.stderr
    clip = str(demo[0] / "open_clip_pytorch_model.bin")
    ended = in_process.run(tmp_path, "convert", started, "b", "--published", "--clip", clip)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "b/demo.pth").is_file()
    ended = in_process.run(tmp_path, "convert", demo[0], "a")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "a: already exists" in ended.stderr


def test_what_cannot_be_converted(demo: tuple[Path, Files], tmp_path: Path) -> None:
    for attempt, line in (
        (lambda out: convert(demo[0], out, start_motion=True), "is a DEMO already"),
        (lambda out: convert(tmp_path, out), "holds neither published .pth files nor"),
        (lambda out: export(tmp_path, out), "is no pipeline's folder"),
    ):
        with pytest.raises(ModelError, match=line):
            attempt(tmp_path / "c")
        assert not (tmp_path / "c").exists()


@pytest.mark.slow  # the client tries many times
def test_without_a_network_the_download_says_what_to_do(tmp_path: Path) -> None:
    ended = run(tmp_path, "download")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    for name in ("demo.pth", "motion_encoder.pth", "VQGAN_autoencoder.pth", "open_clip_pytorch"):
        assert name in last
    assert "https://huggingface.co/Ryan-PR/DEMO" in last
    assert "into one folder, and give that folder to --model" in last
    assert "CC BY-NC 4.0" in ended.stderr
    ended = run(tmp_path, "generate", "a dog runs", "--model", "Ryan-PR/DEMO")
    assert ended.returncode == 2
    assert "VQGAN_autoencoder.pth is not downloaded; run `demo-t2v download demo`" in ended.stderr


def test_a_class_that_diffusers_users_know(converted: Path) -> None:
    loaded = DemoPipeline.from_pretrained(converted, dtype=torch.float16)
    assert isinstance(loaded, DiffusionPipeline)
    assert isinstance(loaded.unet, DemoUNet)
