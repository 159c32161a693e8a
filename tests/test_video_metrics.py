"""Metrics of single videos against known answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from demo_t2v.checkpoints.original.openclip import clip_from_openclip, clip_tokenizer
from demo_t2v.core.atomic_io import digest
from demo_t2v.data.video import write_video
from demo_t2v.evaluation.metrics.clip_consistency import ClipConsistency
from demo_t2v.evaluation.metrics.clip_embeddings import ClipEmbedder
from demo_t2v.evaluation.metrics.clipsim import ClipSim
from demo_t2v.evaluation.metrics.dynamic_degree import DynamicDegree
from demo_t2v.evaluation.metrics.flow import VideoFlow, visible_pixels
from demo_t2v.evaluation.metrics.flow_score import FlowScore
from demo_t2v.evaluation.metrics.metric import TooFewVideosError, VideoClip
from demo_t2v.evaluation.metrics.warp_error import WarpError
from demo_t2v.losses.optical_flow import FlowEstimator
from helpers.in_process import run
from helpers.tiny_clip import SIDE, save_clip, tiny_clip, write_tiny_clip

PACKAGES = Path(__file__).parent.parent / ".venv/openclip"


def moving_texture(step: int, frames: int = 4, side: int = 64, seed: int = 0) -> np.ndarray:
    """Frames (F, side, side, 3) of a random texture that moves right by `step` pixels a frame."""
    rng = np.random.default_rng(seed)
    width = side + step * (frames - 1)
    wide = np.zeros((side, width))
    for cell in (4, 8, 16):  # coarse structures have more contrast, as in photographs
        noise = torch.tensor(rng.normal(size=(1, 1, side // cell + 1, width // cell + 1)))
        size = (side + cell, (width // cell + 1) * cell)
        wide += F.interpolate(noise, size, mode="bicubic")[0, 0, :side, :width].numpy() * cell
    wide = ((wide - wide.min()) / np.ptp(wide) * 255).astype(np.uint8)
    starts = [width - side - step * index for index in range(frames)]
    return np.stack([wide[:, start : start + side] for start in starts])[..., None].repeat(3, -1)


def uniform_flow(x: float) -> FlowEstimator:
    """An estimator by which every pixel moves right by `x` pixels."""

    def estimator(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        flow = torch.zeros(len(second), 2, *first.shape[2:])
        flow[:, 0] = x
        return flow

    return estimator


def clip(frames: np.ndarray, fps: float = 8, prompt: str = "") -> VideoClip:
    return VideoClip("clip", frames, fps, prompt)


@pytest.fixture(scope="module")
def flow() -> VideoFlow:
    return VideoFlow.lucas_kanade()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clips") / "tiny-clip")


@pytest.fixture(scope="module")
def embedder(clip_folder: Path) -> ClipEmbedder:
    return ClipEmbedder(str(clip_folder))


@pytest.mark.parametrize("step", [1, 2, 3])
def test_the_flow_score_of_a_translation_is_its_step(flow: VideoFlow, step: int) -> None:
    metric = FlowScore(flow)
    value = metric.update(clip(moving_texture(step)))
    assert value == pytest.approx(step, rel=0.05)
    assert metric.compute().extra["sides a second"] == pytest.approx(step * 8 / 64, rel=0.05)


def test_a_still_video_has_no_flow_no_motion_and_no_warp_error(flow: VideoFlow) -> None:
    still = clip(moving_texture(0))
    assert FlowScore(flow).update(still) == 0
    assert DynamicDegree(flow).update(still) == 0
    assert WarpError(flow).update(still) == 0


def test_flow_is_estimated_once_for_all_metrics_and_in_parts() -> None:
    pairs = []

    def estimator(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        pairs.append(len(first))
        return uniform_flow(1)(first, second)

    flow = VideoFlow("uniform", estimator)
    video = clip(np.zeros((5, 512, 256, 3), np.uint8))
    for metric in (FlowScore(flow), DynamicDegree(flow), WarpError(flow)):
        metric.update(video)
        assert metric.name == f"{metric.title} (uniform)"
    assert pairs == [2, 2, 2, 2]  # forward and backward, two pairs of 2^17 pixels at once


@pytest.mark.parametrize(
    ("pixels", "fps", "value"),
    [
        (1.4, 8, 0),  # the threshold of 6 pixels at 256 is 1.5 at 64
        (1.6, 8, 100),
        (1.6, 4, 0),  # twice the time between frames, twice the threshold
        (3.1, 4, 100),
        (1.6, 24, 100),  # each third frame is compared
    ],
)
def test_the_threshold_of_the_dynamic_degree(pixels: float, fps: float, value: float) -> None:
    video = clip(np.zeros((16, 64, 64, 3), np.uint8), fps)
    assert DynamicDegree(VideoFlow("uniform", uniform_flow(pixels))).update(video) == value


@pytest.mark.parametrize(("pixels", "value"), [(1.2, 0), (1.3, 100)])
def test_a_video_shorter_than_an_eighth_of_a_second(pixels: float, value: float) -> None:
    """Its first and last frame are 5 of the usual 6 frames apart: 1.25 pixels of 64."""
    video = clip(np.zeros((6, 64, 64, 3), np.uint8), 50)
    assert DynamicDegree(VideoFlow("uniform", uniform_flow(pixels))).update(video) == value


def test_a_video_moves_if_a_quarter_of_its_pairs_do() -> None:
    def estimator(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The flow is the difference in grey levels."""
        step = (second - first).mean(dim=(1, 2, 3)) * 127.5
        return step.view(-1, 1, 1, 1).expand(-1, 2, *first.shape[2:])

    def video(moving_pairs: int) -> VideoClip:
        levels = np.minimum(np.arange(16), moving_pairs) * 10
        return clip(levels.astype(np.uint8)[:, None, None, None].repeat(64, 1).repeat(64, 2)
                    .repeat(3, 3))  # fmt: skip

    metric = DynamicDegree(VideoFlow("levels", estimator))
    assert [metric.update(video(pairs)) for pairs in (3, 4)] == [0, 100]
    assert metric.compute().value == 50


def test_the_warp_error_of_a_translation_is_small_and_of_shuffled_frames_large(
    flow: VideoFlow,
) -> None:
    frames = moving_texture(2, frames=8)
    moving, shuffled = (
        WarpError(flow).update(clip(video)) for video in (frames, frames[[3, 7, 0, 5, 1, 6, 2, 4]])
    )
    assert moving < 1e-4
    assert shuffled > 20 * moving


def test_the_warp_error_in_numbers() -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    frames[1] = 51  # 0.2
    metric = WarpError(VideoFlow("still", uniform_flow(0)))
    assert metric.update(clip(frames)) == pytest.approx(0.04)
    assert metric.compute().extra == {"visible": 1}
    # Each pixel moves by 20, out of the frame: none is visible, and all count.
    metric = WarpError(VideoFlow("fast", uniform_flow(20)))
    assert metric.update(clip(frames)) == pytest.approx(0.04)
    assert metric.compute().extra == {"visible": 0}


def test_visible_pixels() -> None:
    forward = torch.zeros(1, 2, 8, 8)
    forward[:, 0] = 2
    inside = torch.arange(8).expand(8, 8) <= 5  # the last two columns leave the frame
    assert torch.equal(visible_pixels(forward, -forward)[0], inside)
    assert not visible_pixels(forward, forward).any()  # the flow back does not return
    still = torch.zeros(1, 2, 8, 8)
    half = still.clone()
    half[:, 0, :, :4] = 1  # a boundary between columns 3 and 4
    visible = visible_pixels(half, still)[0]
    assert not visible[:, :4].any()
    assert visible[:, 4:].all()


@torch.no_grad()
def test_clipsim_is_the_mean_cosine_of_frames_and_prompt(
    clip_folder: Path, embedder: ClipEmbedder
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), np.uint8)
    prompt = "a car moves to the left"
    model = CLIPModel.from_pretrained(clip_folder)
    ids = CLIPTokenizer.from_pretrained(clip_folder)(prompt, return_tensors="pt").input_ids
    # The frames have CLIP's size; its mean and deviation of colours are published constants.
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((torch.from_numpy(frames) / 255 - mean) / deviation).movedim(-1, 1)
    output = model(input_ids=ids, pixel_values=pixels)
    expected = F.cosine_similarity(output.image_embeds, output.text_embeds)
    metric = ClipSim(embedder)
    assert metric.update(clip(frames, prompt=prompt)) == pytest.approx(expected.mean().item(), 1e-5)
    assert metric.name == "CLIPSIM (tiny-clip)"
    neighbours = F.cosine_similarity(output.image_embeds[1:], output.image_embeds[:-1])
    consistency = ClipConsistency(embedder)
    assert consistency.update(clip(frames)) == pytest.approx(neighbours.mean().item(), 1e-5)


def test_the_temporal_consistency_of_a_still_video_is_1(embedder: ClipEmbedder) -> None:
    metric = ClipConsistency(embedder)
    assert metric.update(clip(moving_texture(0))) == pytest.approx(1, abs=1e-6)
    assert metric.compute().notes == ("still videos have 1",)


def test_a_video_of_any_shape_is_embedded(embedder: ClipEmbedder) -> None:
    """The short side is scaled and the centre cropped: the sides do not count."""
    middle = moving_texture(1, side=SIDE)
    wide = np.pad(middle, ((0, 0), (0, 0), (30, 30), (0, 0)))
    assert torch.equal(embedder.frames(clip(wide)), embedder.frames(clip(middle)))


def test_the_flow_of_a_network_is_computed_once(tmp_path: Path) -> None:
    calls = []

    def estimator(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        calls.append(len(first))
        return uniform_flow(1.3)(first, second)

    video = clip(moving_texture(1))
    plain = FlowScore(VideoFlow("uniform", estimator)).update(video)
    for weights, forward_and_backward in (("a", 2), ("a", 0), ("b", 2)):
        calls.clear()
        cached = VideoFlow("uniform", estimator, {"sha256": weights}, tmp_path)
        assert FlowScore(cached).update(clip(moving_texture(1))) == plain
        assert len(calls) == forward_and_backward


def test_embeddings_are_computed_once(tmp_path: Path, clip_folder: Path) -> None:
    video = clip(moving_texture(1), prompt="a car falls")
    plain = ClipEmbedder(str(clip_folder)).frames(video)
    assert torch.equal(ClipEmbedder(str(clip_folder), tmp_path).frames(video), plain)
    (file,) = tmp_path.rglob("*.npy")
    np.save(file, 2 * plain.numpy())
    assert torch.equal(ClipEmbedder(str(clip_folder), tmp_path).frames(video), 2 * plain)
    other = clip(moving_texture(2))
    assert not torch.equal(ClipEmbedder(str(clip_folder), tmp_path).frames(other), plain)


def test_clipsim_counts_videos_with_a_prompt(embedder: ClipEmbedder) -> None:
    metric = ClipSim(embedder)
    assert metric.update(clip(moving_texture(1))) is None
    with pytest.raises(TooFewVideosError, match="needs prompts: no video has one"):
        metric.compute()
    metric.update(clip(moving_texture(1), prompt="a key"))
    figure = metric.compute()
    assert (figure.count, figure.notes) == (1, ("1 videos have no prompt",))


def test_the_command_names_variant_and_weights(tmp_path: Path, clip_folder: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(moving_texture(1), tmp_path / "videos" / "one", 8, "png")
    (tmp_path / "prompts.csv").write_text("id,prompt\none,a key moves to the left\n")
    words = ("evaluate", "videos", "videos", "--out", "r.json")
    done = run(tmp_path, *words, "--clip", clip_folder, "--prompts", "prompts.csv")
    assert (done.returncode, done.stderr) == (0, "")
    metrics = {
        each["name"]: each for each in json.loads((tmp_path / "r.json").read_text())["metrics"]
    }
    assert metrics["CLIPSIM (tiny-clip)"]["figure"]["count"] == 1
    assert len(metrics["CLIPSIM (tiny-clip)"]["depends_on"]["sha256"]["model.safetensors"]) == 64
    assert metrics["flow score (Lucas-Kanade)"]["figure"]["value"] == pytest.approx(1, rel=0.05)
    raft = metrics["flow score (RAFT)"]
    assert raft["figure"] is None
    assert "raft_large_C_T_V1-22a6c225.pth by --raft" in raft["not_computed"]
    done = run(tmp_path, *words)
    metrics = {
        each["name"]: each for each in json.loads((tmp_path / "r.json").read_text())["metrics"]
    }
    assert metrics["CLIPSIM"]["figure"] is None
    assert "openai/clip-vit-base-patch32" in metrics["CLIPSIM"]["not_computed"]


def test_a_repository_of_the_hub(monkeypatch: pytest.MonkeyPatch, clip_folder: Path) -> None:
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, "*.safetensors" in allow_patterns))
        if name == "org/other":
            raise OSError("no route")
        return str(clip_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert ClipSim(ClipEmbedder("org/clip")).name == "CLIPSIM (org/clip)"
    assert asked == [("org/clip", True)]
    with pytest.raises(ConnectionError, match=r"--clip org/other: .* \(no route\)"):
        ClipEmbedder("org/other")


@pytest.mark.parametrize(("size", "width"), [("small", 32), ("large", 64)])
def test_raft_s_weights_select_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, width: int
) -> None:
    class Network(nn.Module):
        """In RAFT's place: its first layer has RAFT's name and width, and its flow is 2 pixels."""

        def __init__(self, weights: None) -> None:
            super().__init__()
            assert weights is None  # nothing is downloaded
            self.feature_encoder = nn.Module()
            self.feature_encoder.convnormrelu = nn.Sequential(nn.Conv2d(3, width, 7, bias=False))

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
            return [uniform_flow(2)(first, second)]

    names = ("torchvision", "torchvision.models", "torchvision.models.optical_flow")
    modules = {name: ModuleType(name) for name in names}
    setattr(modules[names[-1]], f"raft_{size}", Network)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    torch.save(Network(None).state_dict(), tmp_path / "raft.pth")
    metric = FlowScore(VideoFlow.raft(tmp_path / "raft.pth"))
    assert metric.name == f"flow score (RAFT {size})"
    assert metric.update(clip(np.zeros((2, 128, 128, 3), np.uint8))) == pytest.approx(2)
    assert metric.depends_on()["sha256"] == digest(tmp_path / "raft.pth")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--clip", "none"], "--clip none: is neither a folder nor a repository as org/name"),
        (["--clip", "empty"], "--clip empty: "),
        (["--clip", "no-tokenizer"], "has no tokenizer.json"),
        (["--clip", "no-preprocessing"], "--clip no-preprocessing: "),
        (["--raft", "none.pth"], "--raft none.pth: cannot be read"),
        (["--raft", "text.pth"], "--raft text.pth: does not hold this RAFT network's weights"),
    ],
)
def test_wrong_weights_are_one_line(
    tmp_path: Path, clip_folder: Path, words: list[str], problem: str
) -> None:
    (tmp_path / "videos").mkdir()
    write_video(moving_texture(1), tmp_path / "videos" / "one", 8, "png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("no weights at all")
    for name, missing in (("no-tokenizer", "tokenizer"), ("no-preprocessing", "preprocessor")):
        (tmp_path / name).mkdir()
        for file in clip_folder.iterdir():
            if not file.name.startswith(missing):
                (tmp_path / name / file.name).symlink_to(file)
    done = run(tmp_path, "evaluate", "videos", "videos", *words)
    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(
    not (PACKAGES / "open_clip").is_dir(),
    reason=f"OpenCLIP's own package is not in {PACKAGES}; `make slow` puts it there",
)
def test_clipsim_is_the_one_of_open_clip(tmp_path: Path) -> None:
    frames, prompt = moving_texture(3, side=96), "A car moves to the left, slowly!"
    np.save(tmp_path / "frames.npy", frames)
    program = Path(__file__).parent / "helpers/openclip_similarity.py"
    done = subprocess.run(
        [sys.executable, program, PACKAGES, tmp_path / "frames.npy", prompt, tmp_path],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tokenizer = clip_tokenizer()
    model = tiny_clip(tokenizer, hidden_act="gelu")
    model.load_state_dict(clip_from_openclip(load_file(tmp_path / "weights.safetensors"), model))
    metric = ClipSim(ClipEmbedder(str(save_clip(tmp_path / "clip", model, tokenizer))))
    expected = json.loads((tmp_path / "similarity.json").read_text())
    assert metric.update(clip(frames, prompt=prompt)) == pytest.approx(np.mean(expected), abs=1e-5)
