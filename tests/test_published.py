"""The published `.pth` files, whole, cut short, and dangerous."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from demo_t2v.checkpoints.original.files import read_torch_file
from demo_t2v.model_folder import ModelError

STATE = {"out.2.weight": torch.arange(6.0).reshape(2, 3), "out.2.bias": torch.ones(2).half()}


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("below", [None, "unet_state_dict", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_file(tmp_path: Path, below: str | None, zipped: bool) -> None:
    content = STATE if below is None else {below: STATE, "epoch": 3}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "a.pth")
    assert found.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_tensors_are_mapped_not_read(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    found = read_torch_file(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in Path("/proc/self/maps").read_text()
    assert found["a"].sum() == 0


def test_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Harmful(tmp_path / "trace")}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"a\.pth: would run code when it is read.*; refused$"):
        read_torch_file(tmp_path / "a.pth")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short(tmp_path: Path, zipped: bool, share: float) -> None:
    file = tmp_path / "a.pth"
    state = {f"layer.{n}": torch.randn(50, 50) for n in range(20)}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=r"a\.pth: is damaged.*; download it again$") as caught:
        read_torch_file(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds no tensors by name"),
        ({}, "holds no tensors by name"),
        ({"a": 3}, "a is no tensor but int"),
        ({"unet_state_dict": {"a": "b"}}, "a is no tensor but str"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=message):
        read_torch_file(tmp_path / "a.pth")


def test_no_file_and_a_file_that_is_no_pickle(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a\.pth: there is no such file"):
        read_torch_file(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\n")
    with pytest.raises(ModelError, match=r"a\.pth: is damaged, or no file of weights"):
        read_torch_file(tmp_path / "a.pth")
