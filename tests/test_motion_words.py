"""Motion words: their files, what the encoders read of them, how they are learned and refused."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo_t2v.checkpoints.memory import Plan
from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.conditioning.blend import Blend, parse_blend
from demo_t2v.conditioning.motion_words import (
    MAX_BYTES,
    WEIGHT_NAME,
    MotionWord,
    MotionWordError,
    null_state,
)
from demo_t2v.config import InferenceConfig, load
from demo_t2v.data.video import VideoError, write_video
from demo_t2v.data.whole_clips import read_whole_clip
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.outputs import read_manifest
from demo_t2v.inference.runner import Runner
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.config.motion_word import MotionWordTraining
from demo_t2v.training.motion_words import learn_motion_word
from demo_t2v.training.tasks.motion_word import MotionWordTask
from helpers import in_process, program
from helpers.numbered_videos import numbers, picture, write_numbered
from helpers.pipelines import with_effective_motion
from helpers.processes import accept_interrupts, started


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline: DemoPipeline) -> DemoPipeline:
    return with_effective_motion(tiny_pipeline)


@pytest.fixture(autouse=True)
def _without_words(pipeline: DemoPipeline) -> None:
    pipeline.unload_motion_words()


def word_for(pipeline: DemoPipeline, text: str = "falls", name: str = "hop") -> MotionWord:
    """A word whose vectors are those of the tokens of `text`."""
    ids = pipeline.tokenizer(text, add_special_tokens=False).input_ids
    vectors = pipeline.motion_encoder.embeddings.token_embedding.weight.detach()[ids].clone()
    return MotionWord(name, vectors, null_state(pipeline.text_conditioner()))


@pytest.fixture
def file(pipeline: DemoPipeline, tmp_path: Path) -> Path:
    """A word that means "falls"."""
    word_for(pipeline).save(tmp_path / "hop.safetensors")
    return tmp_path / "hop.safetensors"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video of 8 frames."""
    return write_numbered(tmp_path / "clip.mp4", 8, size=(32, 32))


def motion_of(pipeline: DemoPipeline, motion: Any, content: str = "a car") -> torch.Tensor:
    states, _ = pipeline.encode_prompt(content, motion)
    assert states.motion is not None
    return states.motion


def test_a_file_is_small_and_has_its_metadata(file: Path, pipeline: DemoPipeline) -> None:
    word = MotionWord.read(file)
    assert word.name == "hop"
    assert torch.equal(word.vectors, word_for(pipeline).vectors)
    with safe_open(file, "pt") as stored:
        known = stored.metadata()
    count = len(word.vectors)
    assert (known["width"], known["num_vectors"]) == ("24", str(count))
    assert (known["name"], known["motion_word_version"]) == ("hop", "1")
    largest = MotionWord("x" * 64, torch.zeros(16, 2048), torch.ones(2048))
    largest.save(file)
    assert file.stat().st_size < MAX_BYTES


def test_the_motion_encoder_reads_the_vectors_in_place_of_the_word(
    file: Path, pipeline: DemoPipeline
) -> None:
    plain, _ = pipeline.encode_prompt("a car", "a fish falls in the snow", "snow")
    pipeline.load_motion_word(file)
    states, negatives = pipeline.encode_prompt("a car", "a fish <hop> in the snow", "snow")
    assert torch.equal(states.motion, plain.motion)
    assert torch.equal(states.content, plain.content)
    assert torch.equal(states.eot_index, plain.eot_index)
    assert torch.equal(negatives.motion, pipeline.encode_prompt("snow")[0].motion)
    pipeline.motion_words["hop"] = pipeline.motion_words["hop"] + 0.1
    changed, _ = pipeline.encode_prompt("a car", "a fish <hop> in the snow")
    position = len(pipeline.tokenizer("a fish", add_special_tokens=False).input_ids) + 1
    same = (changed.motion == plain.motion).all(dim=-1)[0]
    assert same[:position].all()  # the encoder is causal
    assert not same[position]
    assert torch.equal(changed.content, plain.content)


def test_words_stand_in_lists_and_timelines(file: Path, pipeline: DemoPipeline) -> None:
    pipeline.load_motion_word(file)
    pipeline.load_motion_word(file, name="Drop_2")
    motions = ["a pear <hop>", "a car", [(0, "a pear <Drop_2>"), (2, "<hop><hop>")]]
    states, _ = pipeline.encode_prompt(["a", "b", "c"], motions, num_frames=4)
    alone = motion_of(pipeline, ["a pear falls", "a car", "falls falls"], ["a", "b", "c"])
    assert torch.allclose(states.motion[0, 3], alone[0], atol=1e-5)
    assert torch.allclose(states.motion[1, 0], alone[1], atol=1e-5)
    assert torch.allclose(states.motion[2, 0], alone[0], atol=1e-5)
    assert torch.allclose(states.motion[2, 2], alone[2], atol=1e-5)
    blend = Blend(("a pear <hop>", "<hop><hop>"), (0.75, 0.25))
    mixed = motion_of(pipeline, [blend])
    assert torch.allclose(mixed[0], 0.75 * alone[0] + 0.25 * alone[2], atol=1e-5)
    assert parse_blend("<hop>:0.5") == Blend(("<hop>",), (0.5,))


def test_without_words_angle_brackets_are_text(file: Path, pipeline: DemoPipeline) -> None:
    before = motion_of(pipeline, "a <hop> car", "a <hop> car")
    pipeline.load_motion_word(file)
    other = motion_of(pipeline, None, "a <b> car")  # an ordinary prompt
    pipeline.unload_motion_words(["hop"])
    assert torch.equal(motion_of(pipeline, "a <hop> car", "a <hop> car"), before)
    assert torch.equal(motion_of(pipeline, None, "a <b> car"), other)


def test_a_long_prompt_is_cut(
    file: Path, pipeline: DemoPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.load_motion_word(file)
    states = motion_of(pipeline, "<hop> " * 40)
    assert torch.equal(states, motion_of(pipeline, "falls " * 40))
    assert "longer than 14 tokens" in caplog.text


@pytest.mark.parametrize(
    ("content", "motion", "line"),
    [
        ("a car", "it <hopp>", "<hopp> is no loaded motion word; there is <hop>"),
        ("a car", [[(0, "<hop>"), (2, "<x-1>")]], "<x-1> is no loaded motion word"),
        ("a car", [Blend(("<hop>", "<x>"), (1.0, 1.0))], "<x> is no loaded motion word"),
        ("a car <hop>", None, "the content encoder does not read the motion word <hop>"),
    ],
)
def test_prompts_that_are_refused(
    file: Path, pipeline: DemoPipeline, content: str, motion: Any, line: str
) -> None:
    pipeline.load_motion_word(file)
    with pytest.raises(MotionWordError, match=line):
        pipeline.encode_prompt(content, motion, num_frames=4)


NO_VERSION = {"motion_word_version": None}
REFUSED_FILES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"vectors": torch.zeros(2, 8), "null_state": torch.ones(8)}, {}, "width 8"),
    ({"null_state": -torch.arange(24.0)}, {}, "was learned with another model"),
    ({"vectors": torch.zeros(15, 24)}, {}, "15 vectors, more than the 14"),
    ({"vectors": torch.zeros(24)}, {}, "vectors of shape"),
    ({"vectors": torch.zeros(1, 8)}, {}, "differ in width"),
    ({"vectors": torch.full((1, 24), torch.nan)}, {}, "not finite"),
    ({"vectors": None}, {}, "no complete safetensors file of a motion word"),
    ({"surplus": torch.zeros(1)}, {}, "no complete safetensors file of a motion word"),
    ({}, NO_VERSION, "no complete safetensors file of a motion word"),
    ({}, {"motion_word_version": "2"}, "has format 2; this program reads 1"),
    ({}, {"name": "a b"}, "'a b': write a name of 1 to 64 letters"),
    ({}, {"name": None}, "'': write a name of 1 to 64 letters"),
]


@pytest.mark.parametrize(("tensors", "metadata", "line"), REFUSED_FILES)
def test_files_that_are_refused(
    file: Path,
    pipeline: DemoPipeline,
    tensors: dict[str, Any],
    metadata: dict[str, Any],
    line: str,
) -> None:
    with safe_open(file, "pt") as stored:
        known = stored.metadata() | metadata
    changed = load_file(file) | tensors
    save_file(
        {key: value for key, value in changed.items() if value is not None},
        file,
        {key: value for key, value in known.items() if value is not None},
    )
    with pytest.raises(MotionWordError, match=line) as error:
        pipeline.load_motion_word(file)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)
    assert not pipeline.motion_words


def test_sources_that_are_refused(file: Path, pipeline: DemoPipeline) -> None:
    with pytest.raises(MotionWordError, match="no such motion word; use a file, a folder with"):
        pipeline.load_motion_word("nowhere")
    (file.parent / "text.safetensors").write_text("no tensors")
    with pytest.raises(MotionWordError, match="no complete safetensors"):
        pipeline.load_motion_word(file.parent / "text.safetensors")
    (file.parent / "large").write_bytes(bytes(MAX_BYTES + 1))
    with pytest.raises(MotionWordError, match="larger than 200 kB"):
        pipeline.load_motion_word(file.parent / "large")
    pipeline.load_motion_word(file)
    with pytest.raises(MotionWordError, match="<hop> is loaded already; give another name"):
        pipeline.load_motion_word(file)
    with pytest.raises(MotionWordError, match="write a name"):
        pipeline.load_motion_word(file, name="<b>")


def test_a_folder_has_a_file_of_a_fixed_name(file: Path, pipeline: DemoPipeline) -> None:
    file.rename(file.with_name(WEIGHT_NAME))
    pipeline.load_motion_word(file.parent)
    assert list(pipeline.motion_words) == ["hop"]


def test_a_hub_repository(
    file: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloaded before, as the hub's client stores it."""
    repository, revision = tmp_path / "hub" / "models--mine--hop", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    file.rename(repository / "snapshots" / revision / WEIGHT_NAME)
    monkeypatch.setitem(program.ENVIRONMENT, "HF_HUB_CACHE", str(tmp_path / "hub"))
    words = ("generate", "a car", "--model", tiny_folder, "--steps", 1, "--motion-prompt", "<hop>")
    done = program.run(tmp_path, *words, "--motion-word", "mine/hop", "--out", "videos")
    assert done.returncode == 0, done.stderr
    (entry,) = read_manifest(tmp_path / "videos").values()
    assert entry["settings"]["motion_word"] == ["mine/hop"]


def without_motion_branch(pipeline: DemoPipeline) -> DemoPipeline:
    parts = {**pipeline.components, "motion_encoder": None}
    parts["unet"] = DemoUNet.from_config({**pipeline.unet.config, "motion": False})
    return DemoPipeline(**parts)


def test_a_model_without_a_motion_branch(file: Path, pipeline: DemoPipeline) -> None:
    base = without_motion_branch(pipeline)
    with pytest.raises(MotionWordError, match="has no motion branch to read motion words"):
        base.load_motion_word(file)
    config = MotionWordTraining(log_dir=Path("runs"), name="hop")
    with pytest.raises(MotionWordError, match="has no motion branch to learn"):
        MotionWordTask(config, base, torch.zeros(1, 4, 4, 4, 4))


def test_the_command_reads_words(file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    words = ("generate", "--model", tiny_folder, "--steps", 1, "--device", "cpu", "--format", "png")
    word = ("--motion-word", file)
    timeline = ("--motion", "0: a pear <hop>", "--motion", "2: <hop>")
    done = in_process.run(tmp_path, *words, "a car", *word, *timeline, "--out", "one")
    assert done.returncode == 0, done.stderr
    (entry,) = read_manifest(tmp_path / "one").values()
    assert entry["settings"]["motion_word"] == [str(file)]
    assert len(entry["settings"]["motion_word_hash"]) == 16
    same = ("--motion", "0: a pear falls", "--motion", "2: falls")
    in_process.run(tmp_path, *words, "a car", *same, "--out", "two")
    (plain,) = read_manifest(tmp_path / "two").values()
    assert plain["sha256"] == entry["sha256"]
    (tmp_path / "prompts.csv").write_text("id,prompt,motion\ncat,a car,0: a pear <hop>; 2: <hop>\n")
    rows = ("--prompts", "prompts.csv", "--out", "three")
    assert in_process.run(tmp_path, *words, *word, *rows).returncode == 0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("a car", "--motion-prompt", "<hopp>"), "<hopp> is no loaded motion word"),
        (("a car <hop>",), "the content encoder does not read the motion word <hop>"),
        (("a car", "--motion", "0: <hop>", "--motion", "2: <x>"), "<x> is no loaded motion word"),
        (("a car", "--motion-word", "nothing.safetensors"), "there is no such motion word"),
    ],
)
def test_what_the_command_refuses(
    file: Path, tiny_folder: Path, tmp_path: Path, options: tuple[str, ...], line: str
) -> None:
    words = ("generate", "--model", tiny_folder, "--motion-word", file, "--out", "videos")
    program.assert_one_line(in_process.run(tmp_path, *words, *options), 2, line)
    assert not (tmp_path / "videos").exists()


def test_prompts_encoded_beforehand_have_their_words(file: Path, tiny_folder: Path) -> None:
    config = load(InferenceConfig, None, ["device=cpu", f"motion_word={file}"])
    jobs = make_jobs([("1", "a car", "a fish <hop>"), ("2", "a car", "a fish falls")], 1, 0)
    runner = Runner.load(resolve(str(tiny_folder)), config, Plan(4, drop_text=True), jobs)
    word, plain = (runner.prompt_embeds[job.texts][0].motion for job in jobs)
    assert torch.equal(word, plain)


def test_a_clip_is_read_over_its_whole_length(tmp_path: Path) -> None:
    video = write_numbered(tmp_path / "clip.mp4", 31)
    assert numbers(read_whole_clip(video, 4, 64)) == [0, 10, 20, 30]
    assert numbers(read_whole_clip(video, 31, 64)) == list(range(31))
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(7):
        Image.fromarray(picture(number, 64, 128)).save(folder / f"{number:04}.png")
    (folder / "notes.txt").write_text("none")
    assert numbers(read_whole_clip(folder, 4, 64)) == [0, 2, 4, 6]


def test_clips_that_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    with pytest.raises(VideoError, match="is a folder without pictures"):
        read_whole_clip(folder, 4, 64)
    (folder / "0.png").write_text("none")
    with pytest.raises(VideoError, match="has 1 frames, a clip takes 4"):
        read_whole_clip(folder, 4, 64)
    with pytest.raises(VideoError, match=r"0\.png is no complete picture"):
        read_whole_clip(folder, 1, 64)
    with pytest.raises(VideoError, match="is no video that FFmpeg can read"):
        read_whole_clip(folder / "0.png", 1, 64)
    with pytest.raises(VideoError, match="has 3 frames, a clip takes 4"):
        read_whole_clip(write_numbered(tmp_path / "short.mp4", 3), 4, 64)
    with pytest.raises(VideoError, match=r"nowhere\.mp4: cannot be read"):
        read_whole_clip(tmp_path / "nowhere.mp4", 4, 64)


def test_learning_lowers_the_loss_and_changes_the_vectors_only(
    pipeline: DemoPipeline, tmp_path: Path
) -> None:
    config = MotionWordTraining(log_dir=tmp_path, name="hop", content="a car", lr=0.05)
    rng = torch.Generator().manual_seed(0)
    task = MotionWordTask(config, pipeline, torch.randn(2, 4, 4, 4, 4, generator=rng))
    before = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
    optimizer = torch.optim.AdamW(task.parameter_groups(), config.lr, weight_decay=0)
    losses = []
    for _ in range(12):
        loss, _ = task.loss(task.batch(range(4)))  # the same samples
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[6] < losses[0]
    after = pipeline.unet.state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())
    assert all(weight.grad is None for weight in pipeline.motion_encoder.parameters())
    task.export(tmp_path)
    assert torch.equal(MotionWord.read(tmp_path).vectors, task.model.vectors)


def test_samples_depend_on_their_numbers_only(pipeline: DemoPipeline, tmp_path: Path) -> None:
    config = MotionWordTraining(log_dir=tmp_path, name="hop", batch_size=4)
    task = MotionWordTask(config, pipeline, torch.randn(4, 4, 4, 4, 4))
    whole, half = task.batch(range(4, 8)), task.batch(range(6, 8))
    assert torch.equal(whole.noise[2:], half.noise)
    assert torch.equal(whole.timesteps[2:], half.timesteps)
    uniform = [t / 1000 / (4 - 3 * t / 1000) for t in whole.timesteps.tolist()]  # without the shift
    assert [int(4 * each) for each in uniform] == [0, 1, 2, 3]
    pairs = {
        (int(row), part)
        for start in range(0, 16, 4)
        for part, latents in enumerate(task.batch(range(start, start + 4)).latents)
        for row in range(4)
        if torch.equal(latents, task.clips[row])
    }
    assert len(pairs) == 16  # each clip with each part of the noise levels


def test_an_interrupted_run_resumes(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    def learn(log_dir: Path, out: Path, stop: int = 0) -> None:
        config = MotionWordTraining(
            log_dir=log_dir, name="hop", num_steps=4, log_interval=1, save_ckp_interval=1
        )
        for line in learn_motion_word(config, resolve(str(tiny_folder)), [clip], out):
            if line["step"] == stop:
                break

    learn(tmp_path / "runs", tmp_path / "whole.safetensors")
    assert list((tmp_path / "runs").iterdir()) == []
    learn(tmp_path / "runs", tmp_path / "halves.safetensors", stop=3)
    assert not (tmp_path / "halves.safetensors").exists()
    assert len(list((tmp_path / "runs").glob("*/checkpoints/*"))) == 1
    learn(tmp_path / "runs", tmp_path / "halves.safetensors")
    whole, halves = (
        MotionWord.read(tmp_path / f"{each}.safetensors") for each in ("whole", "halves")
    )
    assert torch.equal(whole.vectors, halves.vectors)


@pytest.mark.usefixtures("clip")
def test_the_learning_command(tiny_folder: Path, tmp_path: Path) -> None:
    """In a process of its own, from a video and a folder of frames."""
    frames = np.stack([picture(number, 32, 32) for number in range(4)])
    write_video(frames, tmp_path / "frames", 8, "png")
    clips = ("clip.mp4", "frames")
    words = ("learn-motion", *clips, "--name", "hop", "--content", "a car", "--model", tiny_folder)
    done = program.run(tmp_path, *words, "--steps", 2, "--vectors", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hop.safetensors\n"
    assert MotionWord.read(tmp_path / "hop.safetensors").vectors.shape == (3, 24)
    program.assert_one_line(
        in_process.run(tmp_path, *words), 2, "hop.safetensors: already exists; give --overwrite"
    )
    video = ("--motion-word", "hop.safetensors", "--motion-prompt", "<hop>", "--steps", 1)
    made = in_process.run(tmp_path, "generate", "a car", "--model", tiny_folder, *video)
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["clip.mp4", "--name", "a b"], "'a b': write a name of 1 to 64 letters"),
        (["clip.mp4", "--name", "<hop>"], "'<hop>': write a name"),
        (["clip.mp4", "--name", ""], "'': write a name"),
        (["clip.mp4"], "--name is missing"),
        (["--name", "hop"], "is missing"),
        (["clip.mp4"] * 9 + ["--name", "hop"], "9 clips: give 1 to 8"),
        (["none.mp4", "--name", "hop"], "none.mp4: cannot be read"),
        (["text.mp4", "--name", "hop"], "text.mp4: is no video"),
        (["short.mp4", "--name", "hop"], "short.mp4: has 3 frames, a clip takes 4"),
        (
            ["clip.mp4", "--name", "hop", "--content", "a car <hop>"],
            "does not read the motion word <hop>",
        ),
        (["clip.mp4", "--name", "hop", "--out", "x/y/z"], "give the name of a file"),
        (["clip.mp4", "--name", "hop", "--model", "sprites-base"], "has no motion branch"),
    ],
)
def test_what_the_learning_command_refuses(
    clip: Path, tiny_folder: Path, words: list[str], line: str
) -> None:
    folder = clip.parent
    if "sprites-base" in words:
        write_numbered(clip, 16, size=(64, 64))
    write_numbered(folder / "short.mp4", 3)
    (folder / "text.mp4").write_text("no video")
    model = [] if "--model" in words else ["--model", tiny_folder]
    program.assert_one_line(in_process.run(folder, "learn-motion", *words, *model), 2, line)
    assert not (folder / "hop.safetensors").exists()


def test_a_launcher_of_several_processes_is_refused(
    clip: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ("learn-motion", "clip.mp4", "--name", "hop", "--model", tiny_folder)
    done = in_process.run(clip.parent, *words)
    program.assert_one_line(done, 2, "a motion word is learned in one process, not in 2")


def test_ctrl_c_leaves_no_file(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    environment = program.ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = ("learn-motion", clip, "--name", "hop", "--model", tiny_folder, "--steps", 100_000)
    command = [*program.COMMAND, *words]
    options = {"cwd": tmp_path, "env": environment, "preexec_fn": accept_interrupts}
    runs = tmp_path / "cache" / "demo-t2v" / "motion-words"
    with started(command, stderr=subprocess.PIPE, **options) as running:
        deadline = time.monotonic() + program.TIMEOUT
        while not list(runs.glob("*/metrics.jsonl")) and time.monotonic() < deadline:
            assert running.poll() is None, running.communicate()
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=program.TIMEOUT)
    assert running.returncode == 130, errors
    assert "the same command continues from there" in errors
    assert not (tmp_path / "hop.safetensors").exists()
    (state,) = runs.glob("*/checkpoints/*/state.json")
    assert json.loads(state.read_text())["progress"]["step"] > 0
