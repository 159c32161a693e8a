"""Names of devices, and errors for devices that are missing or lack an operation.

Where a test needs an accelerator that this machine lacks, it pretends that torch finds one; what
torch then reports is unchanged.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from demo_t2v.checkpoints.memory import plans
from demo_t2v.checkpoints.resolve import load_pipeline, resolve
from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.core import devices
from demo_t2v.core.devices import (
    DeviceError,
    as_device_error,
    check_dtype,
    name_and_memory,
    resolve_device,
    trains_on_cpu,
)
from demo_t2v.inference.backends.ray_data import run_on_ray
from demo_t2v.model_folder import ModelError
from demo_t2v.models.unet import DemoUNet
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process
from helpers.program import assert_one_line

no_gpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU here")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make torch report accelerators of a kind."""

    def with_accelerators(kind: str, count: int) -> None:
        module = torch.get_device_module(kind)
        monkeypatch.setattr(module, "is_available", lambda: True)
        monkeypatch.setattr(module, "device_count", lambda: count)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))

    return with_accelerators


@no_gpu
def test_without_an_accelerator_it_is_the_cpu() -> None:
    assert resolve_device("auto", "auto") == ("cpu", "float32")
    assert resolve_device("cpu", "auto") == ("cpu", "float32")
    assert resolve_device("cpu:0", "bfloat16") == ("cpu", "bfloat16")
    assert trains_on_cpu()


@no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "xpu", "meta", "gpu", "xla", "cpu:1"])
def test_a_missing_device(name: str, tiny_folder: Path) -> None:
    with pytest.raises(DeviceError, match=f"^device {name}: is not available; use cpu$"):
        resolve_device(name, "auto")
    done = in_process.run(tiny_folder, "generate", "a car", "--model", ".", "--device", name)
    assert_one_line(done, 2, f"device {name}: is not available; use cpu")
    assert_one_line(in_process.run(tiny_folder, "info", "--device", name), 2, "is not available")


@no_gpu
@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", "mtia"])
def test_auto_is_the_accelerator_that_torch_finds(pretend: Any, kind: str) -> None:
    pretend(kind, 1)
    assert resolve_device("auto", "auto") == (f"{kind}:0", "float16")
    assert resolve_device(kind, "float32") == (f"{kind}:0", "float32")
    assert resolve_device("cpu", "auto") == ("cpu", "float32")
    assert not trains_on_cpu()


@no_gpu
def test_each_process_has_an_accelerator_of_its_own(
    pretend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("cuda", 3)
    taken: list[int] = []
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", taken.append)
    for rank, number in (("0", 0), ("2", 2), ("4", 1)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert (
            resolve_device("auto", "auto")[0]
            == resolve_device("cuda", "auto")[0]
            == f"cuda:{number}"
        )
        assert devices.process_device() == f"cuda:{number}"
        assert resolve_device("cuda:1", "auto")[0] == "cuda:1"
        devices.use_process_device()
    assert taken == [2, 1]
    with pytest.raises(DeviceError, match=r"use cpu, cuda:0, cuda:1, cuda:2$"):
        resolve_device("cuda:3", "auto")


@no_gpu
def test_several_processes_do_not_train_on_mps(
    pretend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("mps", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert trains_on_cpu()
    pretend("xpu", 2)
    assert not trains_on_cpu()


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda:1", "mps", "xpu:11", "hpu", "privateuseone"])
def test_names_of_devices(name: str) -> None:
    assert load(InferenceConfig, None, [f"device={name}"]).device == name


@pytest.mark.parametrize("name", ["GPU", "cuda:", "cuda:x", "cuda:-1", "cuda 1", "1", "''"])
def test_names_of_no_device(name: str) -> None:
    with pytest.raises(ConfigError, match="device: should be auto, cpu, cuda, cuda:1, mps, xpu"):
        load(InferenceConfig, None, [f"device={name}"])


@no_gpu
def test_a_device_is_tried_before_a_model_is_loaded(
    pretend: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    """This torch has no code for MPS, and says so in three lines of names of backends."""
    pretend("mps", 1)
    with pytest.raises(DeviceError) as error:
        load_pipeline(str(tiny_folder), "mps")
    message = str(error.value)
    assert message.startswith(
        "device mps:0: does not compute in float16 (device mps: has no aten::"
    )
    assert message.endswith("; use another --dtype or --device")
    done = in_process.run(tmp_path, "generate", "a car", "--model", tiny_folder, "--device", "mps")
    assert_one_line(done, 2, "device mps:0: does not compute in float16")
    check_dtype("cpu", "bfloat16")


@no_gpu
def test_what_shares_the_memory_of_the_computer_offloads_nothing(
    pretend: Any, tiny_folder: Path
) -> None:
    assert [plan.offload for plan in plans(16, "mps:0")] == ["none"] * 4
    for device in ("cuda:1", "xpu:0", "cuda"):
        assert [plan.offload for plan in plans(16, device)][-2:] == ["model", "sequential"]
    pretend("mps", 1)
    with pytest.raises(ModelError, match="needs a GPU with memory of its own; on mps use none"):
        resolve(str(tiny_folder)).load("mps", offload="model")


def test_names_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    name, memory = name_and_memory("cpu")
    assert name == "CPU"
    kilobytes = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert kilobytes is not None
    assert memory == int(kilobytes[1]) * 1024
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 << 30)
    assert name_and_memory("mps:0") == ("Apple GPU", 12 << 30)


@pytest.fixture(scope="module")
def elsewhere() -> Any:
    """An operation that torch has for the meta device alone."""
    library = torch.library.Library("demo_t2v_test", "DEF")
    library.define("elsewhere(Tensor x) -> Tensor")
    library.impl("elsewhere", lambda x: x, "Meta")
    yield torch.ops.demo_t2v_test.elsewhere
    library._destroy()


def error_of(call: Any, *arguments: Any) -> Exception:
    with pytest.raises(Exception) as error:  # noqa: PT011 (what torch raises is the question)
        call(*arguments)
    return error.value


def test_what_a_device_lacks_is_named(elsewhere: Any) -> None:
    there = elsewhere(torch.ones(1, device="meta"))
    assert there.device.type == "meta"
    known = str(as_device_error(error_of(elsewhere, torch.ones(1))))
    assert known == "device cpu: has no demo_t2v_test::elsewhere; use another --device"
    half = error_of(torch.linalg.eigh, torch.ones(2, 2, dtype=torch.float16))
    assert str(as_device_error(half)) == (
        "the operation linalg_eigh_cpu does not support float16 on this device; "
        "use --dtype float32, or another --device"
    )
    assert as_device_error(error_of(torch.ones(2).reshape, 3)) is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "The operator 'aten::upsample_nearest3d.out' is not currently implemented for the MPS "
            "device. If you want this op to be considered for addition please comment on https://",
            "has no aten::upsample_nearest3d.out",
        ),
        ("Conv3D is not supported on MPS", "has no Conv3D"),
        (
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
            "float64. Please use float32 instead.",
            "has no float64",
        ),
    ],
)
def test_what_mps_lacks(text: str, what: str) -> None:
    """As torch words it on a Mac."""
    ways = "use another --device, or set PYTORCH_ENABLE_MPS_FALLBACK=1 to compute it on the CPU"
    assert str(as_device_error(RuntimeError(text))) == f"device mps: {what}; {ways}"


@pytest.mark.parametrize(
    ("owner", "step"), [(DemoPipeline, "decode_latents"), (DemoUNet, "forward")]
)
def test_a_run_ends_where_an_operation_is_lacking(
    elsewhere: Any,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    step: str,
) -> None:
    calls: list[str] = []

    def call(*_: Any, **__: Any) -> None:
        calls.append(step)
        elsewhere(torch.ones(1))

    monkeypatch.setattr(owner, step, call)
    (tmp_path / "two.csv").write_text("id,prompt\n1,a car\n2,a fish\n")
    words = ("--prompts", "two.csv", "--model", tiny_folder, "--device", "cpu", "--steps", "1")
    done = in_process.run(tmp_path, "generate", *words)
    assert_one_line(done, 2, "device cpu: has no demo_t2v_test::elsewhere; use another --device")
    assert calls == [step]  # nothing is tried again in halves


def test_ray_numbers_the_devices_itself() -> None:
    config = InferenceConfig(device="cuda:1", engine="ray")
    with pytest.raises(ConfigError, match="device: ray gives each actor a GPU of its own"):
        next(run_on_ray(None, [], config))  # type: ignore[arg-type]
