"""Published files where the published code has them: each is found, and converted once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from demo_t2v.checkpoints.original.files import PublishedFiles
from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig, load
from demo_t2v.inference.backends.ray_data import with_absolute_paths
from demo_t2v.model_folder import ModelError
from demo_t2v.models.unet import DemoUNet
from demo_t2v.training.config import AnyTraining, find_models
from helpers import in_process
from helpers.program import run
from helpers.released_checkout import BASE_FILES, write_models, write_steps

RUN = "workspace/t2v_train_deepspeed11-28_12:30"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    write_models(folder / "models")
    write_steps(folder / "models", folder / RUN / "checkpoints", 2000, 10_000)
    return folder


@pytest.fixture
def here(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("XDG_CACHE_HOME", str(checkout / "cache"))
    return checkout


BASE = tuple(f"models/modelscopet2v/{name}" for name in BASE_FILES)
DEMO = ("models/demo/demo.pth", *BASE, "models/demo/motion_encoder.pth")
LAST = f"{RUN}/checkpoints/non_ema_00010000"


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("models/demo", DEMO),
        ("models/demo/demo.pth", DEMO),
        ("models", DEMO),
        (",".join(DEMO), DEMO),
        ("models/demo/demo.pth,,models/modelscopet2v/open_clip_pytorch_model.bin", DEMO),
        ("models/modelscopet2v", ("models/modelscopet2v/text2video_pytorch_model.pth", *BASE)),
        (f"{LAST}.pth", (f"{LAST}.pth", *BASE, f"{LAST}_motion_encoder.pth")),
        (f"{RUN}/checkpoints", (f"{LAST}.pth", *BASE, f"{LAST}_motion_encoder.pth")),
        (RUN, (f"{LAST}.pth", *BASE, f"{LAST}_motion_encoder.pth")),
        (f"{LAST}.pth,,,{DEMO[3]}", (f"{LAST}.pth", *BASE, DEMO[3])),
    ],
)
def test_the_files_of_a_name(here: Path, name: str, files: tuple[str, ...]) -> None:
    found = PublishedFiles.find(Path(name))
    assert found is not None
    assert [file.absolute() for file in found] == [here / file for file in files]
    config = with_absolute_paths(InferenceConfig(pretrained=name))  # for an actor in another folder
    assert config.model == ",".join(str(here / file) for file in files)


def test_a_clone_from_the_hub_beside_it(here: Path, tmp_path: Path) -> None:
    shutil.copytree(here / "models/demo", tmp_path / "demo", copy_function=os.link)
    clone = tmp_path / "modelscope-damo-text-to-video-synthesis"
    shutil.copytree(here / "models/modelscopet2v", clone, copy_function=os.link)
    found = PublishedFiles.find(tmp_path / "demo")
    assert found is not None
    assert found.clip == clone / "open_clip_pytorch_model.bin"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none.pth", "none.pth: there is no such file"),
        ("none.pth,a.pth,b.bin", "none.pth: there is no such file"),
        ("models/demo/demo.pth,a.pth", "models/demo/demo.pth: needs a.pth beside it"),
        (",".join([*DEMO, "a.pth"]), "lists 5 files; a model has four at most"),
        ("alone", "alone/demo.pth: needs VQGAN_autoencoder.pth, open_clip_pytorch_model.bin, mot"),
        ("step", "non_ema_7.pth: needs non_ema_7_motion_encoder.pth beside it"),
        ("a,b", "a,b: is no model; use sprites"),
        ("other", "other: has .pth files, but no denoiser among them"),
    ],
)
def test_files_that_are_not_there(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str
) -> None:
    for folder, file in (("alone", "demo.pth"), ("step", "non_ema_7.pth")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).hardlink_to(here / "models/demo/demo.pth")
    for file in BASE_FILES:
        (tmp_path / "step" / file).hardlink_to(here / "models/modelscopet2v" / file)
    (tmp_path / "step/motion_encoder.pth").hardlink_to(here / "models/demo/motion_encoder.pth")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/else.pth").write_bytes(b"")
    (tmp_path / "models").symlink_to(here / "models")
    monkeypatch.chdir(tmp_path)
    if name == "alone":
        (tmp_path / "models").unlink()
    with pytest.raises(ModelError) as error:
        resolve(name)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_training_step_makes_videos(here: Path) -> None:
    """In the process that converts it, and in one that finds it converted."""
    words = ("--model", RUN, "--frames", "1", "--height", "64", "--width", "64", "--steps", "1")
    done = in_process.run(here, "generate", "a dog runs", *words, "--format", "png", "--out", "out")
    assert done.returncode == 0, done.stderr
    (first,) = (here / "out/1-a-dog-runs-0").glob("*.png")
    words = ("--model", str(resolve(RUN).folder), *words[2:])
    done = run(here, "generate", "a dog runs", *words, "--format", "png", "--out", "again")
    assert done.returncode == 0, done.stderr
    (second,) = (here / "again/1-a-dog-runs-0").glob("*.png")
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.usefixtures("here")
def test_what_a_training_begins_from() -> None:
    """Both motion parts, and the image tower of the regularization loss."""
    base = resolve("models/modelscopet2v", to_train=True).folder
    assert resolve("models/modelscopet2v", to_train=True).folder == base
    demo = resolve("models/demo", to_train=True).folder
    plain = resolve("models/demo").folder
    assert len({base, demo, plain}) == 3
    for folder in (base, demo):
        assert DemoUNet.load_config(folder / "unet")["motion"] is True
        assert {"motion_encoder", "clip", "tokenizer"} <= set(os.listdir(folder))
    assert not (plain / "clip").exists()


def test_a_training_takes_published_files(here: Path) -> None:
    """As the folders that they become; folders stay as they are."""
    places = {
        "autoencoder": "other",
        "clip": "models/modelscopet2v",
        "base": "models/demo/demo.pth",
    }
    config = load(
        AnyTraining,
        None,
        ["task=denoiser", "log_dir=run", "num_steps=1", "batch_size=1", "lr=1"],
        places | {"train_dataset.type": "sprites"},
    )
    found = find_models(config)
    assert found.autoencoder == Path("other")
    assert (found.clip / "clip/preprocessor_config.json").is_file()
    assert DemoUNet.load_config(found.base / "unet")["motion"] is True
    assert found.base != found.clip
    assert {found.base.parent, found.clip.parent} == {here / "cache/demo-t2v"}
    untouched = config.model_copy(update={"clip": Path("other"), "base": None})
    assert find_models(untouched) == untouched
