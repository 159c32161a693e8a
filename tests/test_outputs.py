"""File names, the manifest, and what a second run still has to make."""

import hashlib
import json
import multiprocessing
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from demo_t2v.core.atomic_io import PathError
from demo_t2v.data.video import VideoError, read_video
from demo_t2v.inference.jobs import Job
from demo_t2v.inference.outputs import (
    MANIFEST,
    OutputError,
    OutputFolder,
    file_name,
    read_manifest,
    slug,
)

SETTINGS = {
    "fps": 8,
    "format": "mp4",
    "height": 32,
    "width": 32,
    "guidance_scale": 7.5,
    "dtype": "auto",
}
FRAMES: NDArray[np.uint8] = np.full((3, 32, 32, 3), 90, dtype=np.uint8)
ROCKET = Job("7", "A rocket moves up, quickly!", 0, 123)
FISH = Job("8", "A fish", 1, 456)


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    made = OutputFolder(tmp_path / "out", "sprites", SETTINGS, "12ab")
    made.prepare()
    return made


def test_names_are_the_readable_ones() -> None:
    assert file_name(ROCKET, "mp4") == "7-a-rocket-moves-up-quickly-0.mp4"
    assert file_name(ROCKET, "png") == "7-a-rocket-moves-up-quickly-0"
    assert slug("Café à la crème", 60) == "cafe-a-la-creme"
    assert re.fullmatch(r"[0-9a-f]{8}", slug("猫が走る", 60))
    assert re.fullmatch(r"a-in-kyoto-[0-9a-f]{8}", slug("a 猫 in Kyoto", 60))


@given(text=st.text(), length=st.integers(20, 80))
def test_slugs_are_safe(text: str, length: int) -> None:
    made = slug(text, length)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", made)
    assert len(made) <= length


@given(st.sampled_from(["con", "NUL", "../../x", "/etc/passwd", "C:\\x", "a\0b", ".", "x" * 999]))
def test_names_stay_in_the_folder_and_in_its_limits(text: str) -> None:
    name = file_name(Job(text, text, 999, 0), "webm")
    assert re.fullmatch(r"[a-z0-9-]+\.webm", name)
    assert len(name) < 120
    assert name.partition(".")[0] not in {"con", "nul", "prn", "aux"}


@given(st.text(alphabet="ab猫犬é ", max_size=100), st.text(alphabet="ab猫犬é ", max_size=100))
def test_texts_that_differ_in_letters_have_different_names(one: str, other: str) -> None:
    def letters(text: str) -> list[str]:
        return text.replace("é", "e").split()

    if letters(one) != letters(other):
        assert slug(one, 40) != slug(other, 40)


def test_a_saved_video_is_finished(folder: OutputFolder) -> None:
    assert folder.missing([ROCKET, FISH]) == [ROCKET, FISH]
    entry = folder.save(ROCKET, FRAMES, 1.25, "cuda")
    file = folder.file(ROCKET)
    assert read_video(file)[0].shape == FRAMES.shape
    assert folder.missing([ROCKET, FISH]) == [FISH]
    assert folder.missing([ROCKET, FISH], overwrite=True) == [ROCKET, FISH]
    (line,) = (folder.path / MANIFEST).read_text().splitlines()
    assert json.loads(line) == entry
    assert entry == {
        "id": "7",
        "prompt": "A rocket moves up, quickly!",
        "repeat": 0,
        "seed": 123,
        "file": "7-a-rocket-moves-up-quickly-0.mp4",
        "seconds": 1.25,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "device": "cuda",
        "model": "sprites",
        "model_hash": "12ab",
        "settings": SETTINGS,
        "settings_hash": entry["settings_hash"],
    }
    assert sorted(os.listdir(folder.path)) == [file.name, MANIFEST]


def test_what_is_deleted_is_missing(folder: OutputFolder) -> None:
    folder.save(ROCKET, FRAMES, 1.0)
    folder.save(FISH, FRAMES, 1.0)
    folder.file(FISH).unlink()
    assert folder.missing([ROCKET, FISH]) == [FISH]


@pytest.mark.parametrize("format", ["mp4", "png"])
def test_what_is_damaged_is_missing(tmp_path: Path, format: str) -> None:  # noqa: A002
    folder = OutputFolder(tmp_path, "sprites", {**SETTINGS, "format": format})
    folder.save(ROCKET, FRAMES, 1.0)
    assert folder.missing([ROCKET]) == []
    file = folder.file(ROCKET) if format == "mp4" else folder.file(ROCKET) / "0001.png"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert folder.missing([ROCKET]) == [ROCKET]


def test_settings_have_a_hash_of_their_own(folder: OutputFolder) -> None:
    other = replace(folder, settings={**SETTINGS, "guidance_scale": 3.0})
    turned = replace(folder, settings=dict(reversed(SETTINGS.items())))
    hashes = [f.save(ROCKET, FRAMES, 1.0)["settings_hash"] for f in (folder, other, turned)]
    assert hashes[0] == hashes[2] != hashes[1]
    assert re.fullmatch("[0-9a-f]{16}", hashes[0])


def test_a_manifest_with_the_names_of_the_release(folder: OutputFolder) -> None:
    settings = {"seed": 3, **SETTINGS}
    entry = replace(folder, settings=settings).write(ROCKET, FRAMES, 1.0, "cpu")
    entry["settings"] = {"inference_seed": 3, "guide_scale": 7.5, "resolution": [32, 32]}
    entry["settings"] |= {"fps": 8, "format": "mp4", "dtype": "float32"}
    folder.record(entry)
    assert replace(folder, settings=settings).missing([ROCKET]) == []
    with pytest.raises(OutputError, match="made with seed 3, not 4"):
        replace(folder, settings=settings | {"seed": 4}).missing([ROCKET])


def test_a_manifest_without_guidance_intervals(folder: OutputFolder) -> None:
    """Videos of before were guided at all noise levels."""
    folder.save(ROCKET, FRAMES, 1.0)
    levels = {"content_guidance_interval": [0.0, 1.0], "motion_guidance_interval": [0.0, 1.0]}
    assert replace(folder, settings=SETTINGS | levels).missing([ROCKET]) == []
    levels["motion_guidance_interval"] = [0.3, 1.0]
    with pytest.raises(OutputError, match=r"motion_guidance_interval \[0.0, 1.0\], not \[0.3"):
        replace(folder, settings=SETTINGS | levels).missing([ROCKET])


def test_the_same_model_under_another_name(folder: OutputFolder) -> None:
    folder.save(ROCKET, FRAMES, 1.0)
    assert replace(folder, model="sprites/").missing([ROCKET]) == []
    assert replace(folder, model="/models/link").missing([ROCKET]) == []
    with pytest.raises(OutputError, match="model_hash '12ab', not '34cd'"):
        replace(folder, model_hash="34cd").missing([ROCKET])
    with pytest.raises(OutputError, match="model 'sprites', not 'other'"):
        replace(folder, model="other", model_hash="34cd").missing([ROCKET])


def test_the_same_adapter_under_another_name(folder: OutputFolder) -> None:
    def adapted(name: str | None, digest: str | None) -> OutputFolder:
        known = {"lora": name} | ({} if digest is None else {"lora_hash": digest})
        return replace(folder, settings=SETTINGS | known)

    adapted("a.safetensors", "1").save(ROCKET, FRAMES, 1.0)
    assert adapted("./a.safetensors", "1").missing([ROCKET]) == []
    for other in (adapted("b", "2"), adapted("a.safetensors", "2"), adapted(None, None)):
        with pytest.raises(OutputError, match="made with lora"):
            other.missing([ROCKET])


def append_lines(folder: OutputFolder, name: str) -> None:
    for number in range(100):
        folder.record({"file": f"{name}-{number}", "prompt": name * 500})


@pytest.mark.usefixtures("forks")
def test_several_processes_share_a_manifest(folder: OutputFolder) -> None:
    names = ["a", "b", "c", "d"]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_lines, args=(folder, name)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = (folder.path / MANIFEST).read_text().splitlines()
    assert len(lines) == len(names) * 100
    made = [json.loads(line)["file"] for line in lines]
    assert sorted(made) == sorted(f"{name}-{number}" for name in names for number in range(100))


def test_what_the_manifest_does_not_know_is_missing(folder: OutputFolder) -> None:
    folder.save(ROCKET, FRAMES, 1.0)
    (folder.path / MANIFEST).unlink()
    assert folder.missing([ROCKET]) == [ROCKET]


@pytest.mark.parametrize(
    ("job", "change", "names"),
    [
        (replace(ROCKET, seed=5), {}, "seed 123, not 5"),
        (replace(ROCKET, prompt="a rocket moves up quickly"), {}, "prompt 'A rocket"),
        (ROCKET, {"settings": {**SETTINGS, "guidance_scale": 3.0}}, "guidance_scale 7.5, not 3.0"),
        (ROCKET, {"model": "other", "model_hash": "34cd"}, "model 'sprites', not 'other'"),
        (ROCKET, {"model_hash": "34cd"}, "model_hash '12ab', not '34cd'"),
    ],
)
def test_what_was_made_otherwise_is_not_replaced(
    folder: OutputFolder, job: Job, change: dict[str, object], names: str
) -> None:
    folder.save(ROCKET, FRAMES, 1.0)
    other = replace(folder, **change)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="--overwrite") as error:
        other.missing([FISH, job])
    assert names in str(error.value)
    assert "\n" not in str(error.value)
    assert other.missing([FISH, job], overwrite=True) == [FISH, job]
    other.save(job, FRAMES, 2.0)
    assert other.missing([FISH, job]) == [FISH]


def test_auto_takes_what_is_there(folder: OutputFolder) -> None:
    half = replace(folder, settings={**SETTINGS, "dtype": "float16"})
    half.save(ROCKET, FRAMES, 1.0)
    assert folder.missing([ROCKET]) == []
    with pytest.raises(OutputError, match="dtype 'float16', not 'float32'"):
        replace(folder, settings={**SETTINGS, "dtype": "float32"}).missing([ROCKET])


def test_two_jobs_of_one_file(folder: OutputFolder) -> None:
    with pytest.raises(OutputError, match=r"'1-a' and '1'"):
        folder.missing([Job("1-a", "b", 0, 1), Job("1", "a b", 0, 2)])


def test_a_torn_line_costs_only_itself(folder: OutputFolder) -> None:
    folder.save(ROCKET, FRAMES, 1.0)
    manifest = folder.path / MANIFEST
    manifest.write_bytes(manifest.read_bytes() + b'{"id": "8", "file": "8-a-fi')
    assert folder.missing([ROCKET, FISH]) == [FISH]
    folder.save(FISH, FRAMES, 1.0)
    assert folder.missing([ROCKET, FISH]) == []
    assert set(read_manifest(folder.path)) == {folder.file(ROCKET).name, folder.file(FISH).name}


@given(garbage=st.binary())
def test_a_spoiled_manifest_is_no_reason_to_stop(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes
) -> None:
    folder = tmp_path_factory.mktemp("out")
    (folder / MANIFEST).write_bytes(garbage + b'\n{"file": "a"}\n[]\n3\n{"file": 3}\n')
    assert read_manifest(folder)["a"] == {"file": "a"}


def test_frames_replace_frames(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, "sprites", {**SETTINGS, "format": "png"})
    folder.save(ROCKET, FRAMES, 1.0)
    folder.save(ROCKET, FRAMES[:2], 1.0)
    assert sorted(os.listdir(folder.file(ROCKET))) == ["0000.png", "0001.png"]
    assert folder.missing([ROCKET]) == []


def test_a_failed_write_leaves_the_old_video_and_nothing_else(folder: OutputFolder) -> None:
    folder.save(ROCKET, FRAMES, 1.0)
    file = folder.file(ROCKET)
    whole = file.read_bytes()
    with pytest.raises(VideoError):
        folder.save(ROCKET, FRAMES[:, :31, :31], 1.0)
    assert file.read_bytes() == whole
    assert sorted(os.listdir(folder.path)) == [file.name, MANIFEST]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    for path in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(PathError, match="a file is in the way"):
            OutputFolder(path, "sprites", SETTINGS).prepare()


def test_formats_are_checked_before_anything_is_made(tmp_path: Path) -> None:
    fast = {**SETTINGS, "format": "gif", "fps": 60}
    with pytest.raises(VideoError, match="at most 50"):
        OutputFolder(tmp_path / "out", "sprites", fast).prepare()
    assert not (tmp_path / "out").exists()
