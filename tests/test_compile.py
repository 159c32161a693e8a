"""`--compile`: compiled blocks predict what the others do, and a missing compiler is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from demo_t2v.checkpoints.memory import Plan
from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.core.compiler import CompilerError, check_compiler
from demo_t2v.inference.runner import Runner
from demo_t2v.lora import add_lora
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process
from helpers.pipelines import latents_of, load_saved, with_effective_motion
from helpers.program import assert_one_line, messages, run

CALLS: tuple[dict[str, Any], ...] = (
    {"guidance_scale": 3.0, "bypass_guidance_scale": 2.0},
    {"motion_strength": 0.5, "motion_prompt": [[(0, "rises"), (2, "falls")]]},
    {"num_frames": 6, "window_frames": 4},
    {"output_attention": True},
)


@pytest.fixture
def pipeline(tiny_pipeline: DemoPipeline) -> Iterator[DemoPipeline]:
    """A pipeline that a test may compile."""
    yield with_effective_motion(tiny_pipeline)
    torch._dynamo.reset()


def test_compiled_blocks_predict_what_the_others_do(pipeline: DemoPipeline, tmp_path: Path) -> None:
    """Each block is one graph, which this backend runs as it is traced. It is saved as before."""
    compiled = deepcopy(pipeline)
    compiled.unet.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=64):
        for options in CALLS:
            found = latents_of(compiled, num_inference_steps=1, **options)
            wanted = latents_of(pipeline, num_inference_steps=1, **options)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    compiled.save_pretrained(tmp_path)
    found = latents_of(load_saved(tmp_path), num_inference_steps=1, **options)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_without_a_cpp_compiler(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    words = ("generate", "a car", "--model", tiny_folder, "--device", "cpu", "--compile")
    done = in_process.run(tmp_path, *words)
    assert_one_line(done, 2, "compile: needs a C++ compiler", "no-such-compiler", "CXX")
    assert not (tmp_path / "outputs").exists()


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(CompilerError, match="compile: needs triton on cuda"):
        check_compiler("cuda:0")


def test_a_device_without_a_compiler() -> None:
    with pytest.raises(CompilerError, match="compile: has no compiler for mps"):
        check_compiler("mps:0")


def test_not_with_deepspeed(tiny_folder: Path, tmp_path: Path) -> None:
    words = ("--compile", "--deepspeed-config", "some.json")
    done = in_process.run(tmp_path, "generate", "a car", "--model", tiny_folder, *words)
    assert_one_line(done, 2, "compile: cannot be combined with deepspeed_config")


def test_not_with_an_offloaded_denoiser(tiny_folder: Path) -> None:
    config = InferenceConfig(compile=True)
    with pytest.raises(ConfigError, match="compile: needs the denoiser in the device's memory"):
        Runner.load(resolve(str(tiny_folder)), config, Plan(1, offload="model"))


def test_a_value_that_is_no_switch(tmp_path: Path) -> None:
    done = in_process.run(tmp_path, "generate", "a car", "compile=fast")
    assert_one_line(done, 2, "compile", "true or false")


@pytest.mark.slow
def test_videos_of_the_program_are_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    """By the real compiler, with an adapter."""
    pipeline = load_saved(tiny_folder)
    torch.manual_seed(0)
    add_lora(pipeline.unet, pipeline.motion_encoder, "all", rank=2)
    for name, weight in pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    pipeline.save_lora_weights(tmp_path / "adapter")
    words = ["generate", "a car falls", "--model", tiny_folder, "--lora", tmp_path / "adapter"]
    words += ["--steps", "2", "--guidance", "3", "--format", "png", "--device", "cpu"]
    frames = []
    for more in ([], ["--compile"]):
        out = tmp_path / f"out{len(more)}"
        done = run(tmp_path, *words, "--out", out, *more)
        assert done.returncode == 0, done.stderr
        assert messages(done.stderr) == ["1 made"]
        (folder,) = (path for path in out.iterdir() if path.is_dir())
        frames.append(np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())]))
    assert np.ptp(frames[0]) > 0
    assert np.abs(frames[0].astype(int) - frames[1]).max() <= 2
