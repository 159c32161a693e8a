"""Names of adapters, motion words and models that exist on this machine: the hub is not asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from demo_t2v.checkpoints.resolve import download, resolve
from demo_t2v.conditioning.motion_words import word_file
from demo_t2v.core.errors import UserError
from demo_t2v.core.weight_files import find_weight_file
from demo_t2v.lora import adapter_file
from demo_t2v.pipeline import DemoPipeline


def config_file(source: str) -> Path:
    return find_weight_file(source, "config.json", "model", UserError)


@pytest.mark.parametrize("name", ["org", "org/folder", "org/file", "org/link"])
@pytest.mark.parametrize(
    "find",
    [
        adapter_file,
        word_file,
        config_file,
        resolve,
        lambda name: download(name, ["config.json"]),
        DemoPipeline.from_pretrained,
    ],
)
def test_a_path_that_exists_is_never_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, find: Callable[[str], object], name: str
) -> None:
    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the hub is asked")

    for function in ("huggingface_hub.snapshot_download", "diffusers.DiffusionPipeline.download"):
        monkeypatch.setattr(function, ask)
    (tmp_path / "org" / "folder").mkdir(parents=True)
    (tmp_path / "org" / "link").symlink_to("nowhere")
    (tmp_path / "org" / "file").touch()
    monkeypatch.chdir(tmp_path)
    if name == "org/file" and find in (adapter_file, word_file, config_file):
        assert find(name) == Path(name)  # its content is read later
        return
    with pytest.raises((UserError, OSError)) as error:
        find(name)
    assert name in str(error.value)
