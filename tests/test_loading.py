"""Model folders: whole or refused, and found by diffusers' own pipeline class."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import demo_t2v
from demo_t2v.checkpoints.original.importer import convert
from demo_t2v.checkpoints.resolve import BUILT_IN, load_pipeline, read_defaults
from demo_t2v.model_folder import OWN_CLASSES, ModelError
from demo_t2v.pipeline import DemoPipeline
from helpers.damage import spoil
from helpers.http_server import serve
from helpers.hub import FolderHub, hub_environment
from helpers.pipelines import seeded
from helpers.published_layout import write_published

CODE = ["pipeline.py", "unet/demo_unet.py"]
TRUSTED = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline
folder, out, options = sys.argv[1], sys.argv[2], dict(word.split("=") for word in sys.argv[3:])
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
pipe.set_progress_bar_config(disable=True)
print(type(pipe).__module__, type(pipe.unet).__module__)
np.save(out, pipe("a car falls", generator=torch.Generator().manual_seed(0)).frames)
"""


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of a saved model, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def frames_of(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a car falls", generator=seeded(0)).frames


def in_python(code: str, *words: str, path: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, where packages are found at `path` too."""
    env = os.environ | {"PYTHONPATH": path, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


SOURCES = str(Path(demo_t2v.__path__[0]).parent)


@pytest.mark.parametrize("words", [[], ["custom_pipeline={folder}"], ["custom_pipeline=pipeline"]])
def test_diffusers_own_class_loads_a_folder(
    words: list[str], tiny_folder: Path, tmp_path: Path
) -> None:
    """Nothing of this package is imported but by the folder's own files."""
    out = tmp_path / "frames.npy"
    given = [word.format(folder=tiny_folder) for word in words]
    done = in_python(TRUSTED, str(tiny_folder), str(out), *given, path=SOURCES, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["demo_t2v.pipeline", "demo_t2v.models.unet"]
    assert np.array_equal(np.load(out), frames_of(DemoPipeline.from_pretrained(tiny_folder)))


def test_without_trust_nothing_is_run(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(tiny_folder)


def test_without_the_package_the_error_says_what_to_install(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """An interpreter in which the package cannot be found, whatever is installed."""
    hidden = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "demo_t2v":
            raise ModuleNotFoundError("No module named 'demo_t2v'", name="demo_t2v")
sys.meta_path.insert(0, Hidden())
"""
    words = (str(tiny_folder), str(tmp_path / "frames.npy"))
    done = in_python(hidden + TRUSTED, *words, path="", home=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "ModuleNotFoundError: this model needs demo-t2v: pip install demo-t2v"


def test_the_pipelines_own_class_runs_no_file_of_the_folder(folder: Path) -> None:
    right = frames_of(DemoPipeline.from_pretrained(folder))
    for file in CODE:
        (folder / file).write_text("raise SystemExit('was run')\n")
    assert np.array_equal(frames_of(DemoPipeline.from_pretrained(folder)), right)
    assert read_defaults(folder).steps == 3


def test_folders_without_these_files_load_too(folder: Path) -> None:
    """As they were saved before."""
    right = frames_of(DemoPipeline.from_pretrained(folder))
    for file in CODE:
        (folder / file).unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "DemoPipeline", "unet": ["demo_t2v.models.unet", "DemoUNet"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert np.array_equal(frames_of(DemoPipeline.from_pretrained(folder)), right)
    assert read_defaults(folder).steps == 3


def test_converted_models_have_the_files(tmp_path: Path) -> None:
    published = tmp_path / "published"
    published.mkdir()
    write_published(published, motion=False)
    convert(published, tmp_path / "made")
    code = {file: (tmp_path / "made" / file).read_text() for file in CODE}
    for model in (BUILT_IN["sprites"], BUILT_IN["sprites-base"]):
        assert {file: (model / file).read_text() for file in CODE} == code
        index = json.loads((model / "model_index.json").read_text())
        assert index["_class_name"] == ["pipeline", "DemoPipeline"]
        assert index["unet"] == ["demo_unet", "DemoUNet"]
    own = {"unet": "DemoUNet", "scheduler": "ModelScopeDDIMScheduler"}
    own["tokenizer"] = "OpenCLIPTokenizer"
    for pipeline in (
        DiffusionPipeline.from_pretrained(tmp_path / "made", trust_remote_code=True),
        DemoPipeline.from_pretrained(tmp_path / "made"),
    ):
        for name, kind in own.items():
            found = type(getattr(pipeline, name))
            assert (found.__name__, found.__module__) == (kind, OWN_CLASSES[kind])
            assert (tmp_path / "made" / name / f"demo_{name}.py").is_file()


def cached_as(repository: str, folder: Path, home: Path) -> None:
    """Put a folder into the hub's cache, as a download of it leaves it there."""
    place = home / "hub" / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))


class Hub(FolderHub):
    """Serves a folder of each test."""


def test_a_download_has_all_files_of_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    Hub.folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    shutil.copy(BUILT_IN["sprites"] / "speed.json", Hub.folder)
    (Hub.folder / "README.md").write_text("The card.")
    not_read = {"README.md", "unet/demo_unet.py"}  # by this package
    files = {
        file.relative_to(Hub.folder).as_posix() for file in Hub.folder.rglob("*") if file.is_file()
    }
    with serve(Hub) as address:
        for code, others in (
            (
                "from demo_t2v.pipeline import DemoPipeline as P; "
                "print(P.from_pretrained('org/name').speed_calibration)",
                not_read,
            ),
            (
                "from demo_t2v.checkpoints.resolve import resolve; "
                "print(resolve('org/name').speed_calibration)",
                not_read | {"pipeline.py"},
            ),
        ):
            Hub.sent = []
            home = tmp_path / str(len(others))
            env = hub_environment(address, home) | {"PYTHONPATH": SOURCES}
            printed = subprocess.check_output(
                [sys.executable, "-c", code], env=env, text=True, timeout=300
            )
            assert printed.startswith("SpeedCalibration(")
            assert sorted(name for name, _ in Hub.sent) == sorted(files - others)


def test_a_hub_id_is_as_good_as_a_folder(tiny_folder: Path, tmp_path: Path) -> None:
    cached_as("org/tiny", tiny_folder, tmp_path)
    code = """
import sys
import numpy as np, torch
from demo_t2v.pipeline import DemoPipeline
pipe = DemoPipeline.from_pretrained("org/tiny", local_files_only=True)
pipe.set_progress_bar_config(disable=True)
np.save(sys.argv[1], pipe("a car falls", generator=torch.Generator().manual_seed(0)).frames)
print(pipe.config._name_or_path)
"""
    out = tmp_path / "frames.npy"
    done = in_python(code, str(out), path=SOURCES, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "org/tiny"
    assert np.array_equal(np.load(out), frames_of(DemoPipeline.from_pretrained(tiny_folder)))


NEEDED = {
    "model_index.json": "model_index.json",
    "content_encoder/config.json": "content_encoder/config.json: is missing",
    "content_encoder/model.safetensors": "model.safetensors",
    "motion_encoder/config.json": "motion_encoder/config.json: is missing",
    "motion_encoder/model.safetensors": "model.safetensors",
    "scheduler/scheduler_config.json": "scheduler/scheduler_config.json: is missing",
    "tokenizer/tokenizer.json": "tokenizer: has no tokenizer.json",
    "unet/config.json": "unet/config.json: is missing",
    "unet/diffusion_pytorch_model.safetensors": "diffusion_pytorch_model",
    "vae/config.json": "vae/config.json: is missing",
    "vae/diffusion_pytorch_model.safetensors": "diffusion_pytorch_model",
}
PARTS = ["content_encoder", "motion_encoder", "scheduler", "tokenizer", "unet", "vae"]


def test_every_file_is_needed_or_changes_nothing(folder: Path) -> None:
    right = frames_of(load_pipeline(str(folder), "cpu"))
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert set(NEEDED) <= set(files)
    for name in files:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        if name in NEEDED:
            with pytest.raises(ModelError) as error:
                load_pipeline(str(folder), "cpu")
            assert NEEDED[name] in str(error.value)
            assert str(folder) in str(error.value)
            assert "\n" not in str(error.value)
        else:
            assert np.array_equal(frames_of(load_pipeline(str(folder), "cpu")), right), name
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_component(part: str, folder: Path) -> None:
    shutil.rmtree(folder / part)
    for load in (DemoPipeline.from_pretrained, lambda it: load_pipeline(str(it), "cpu")):
        with pytest.raises(ModelError, match=rf"{part}\S*: is missing"):
            load(folder)


def test_a_tokenizer_without_its_files_is_refused_by_diffusers_class_too(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer: has 2 tokens, and the content encoder"):
        DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)


def test_a_denoiser_without_its_motion_encoder(tiny_pipeline: DemoPipeline) -> None:
    with pytest.raises(ModelError, match="motion_encoder: is missing; the denoiser has motion"):
        DemoPipeline(**{**tiny_pipeline.components, "motion_encoder": None})


def test_weights_are_not_filled_in_from_python_either(folder: Path) -> None:
    spoil(folder, "vae", lambda tensors: tensors.popitem())
    with pytest.raises(ModelError, match="vae: 1 tensors are missing"):
        DemoPipeline.from_pretrained(folder)


def test_a_variant_is_taken_where_it_is_alone(tiny_pipeline: DemoPipeline, tmp_path: Path) -> None:
    tiny_pipeline.save_pretrained(tmp_path / "m", variant="fp16")
    assert (tmp_path / "m/unet/diffusion_pytorch_model.fp16.safetensors").exists()
    right = frames_of(tiny_pipeline)
    assert np.array_equal(frames_of(load_pipeline(str(tmp_path / "m"), "cpu")), right)
    loaded = DemoPipeline.from_pretrained(tmp_path / "m", variant="fp16", dtype=torch.float32)
    assert np.array_equal(frames_of(loaded), right)
    assert np.array_equal(frames_of(DemoPipeline.from_pretrained(tmp_path / "m")), right)


def test_pickled_weights(tiny_pipeline: DemoPipeline, tmp_path: Path) -> None:
    """diffusers reads them, as tensors alone; the command line refuses them in one line."""
    tiny_pipeline.save_pretrained(tmp_path / "model")
    for part in ("unet", "vae"):
        (file,) = (tmp_path / "model" / part).glob("*.safetensors")
        torch.save(getattr(tiny_pipeline, part).state_dict(), file.with_suffix(".bin"))
        file.unlink()
    loaded = DemoPipeline.from_pretrained(tmp_path / "model")
    assert np.array_equal(frames_of(loaded), frames_of(tiny_pipeline))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: only safetensors are read; Demo"):
        load_pipeline(str(tmp_path / "model"), "cpu")
