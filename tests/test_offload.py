"""Saving memory changes no video: prompts encoded before, parts left out, parts offloaded."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from demo_t2v.checkpoints.memory import DENOISING, TEXT, Plan
from demo_t2v.checkpoints.resolve import load_pipeline, resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.inference.jobs import make_jobs
from demo_t2v.inference.runner import Runner
from demo_t2v.model_folder import ModelError
from demo_t2v.models.text import TextStates
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process
from helpers.program import assert_one_line, messages, run

PROMPTS = ["a car falls", "the fish grows"]


# Where weights are moved to the CPU from the CPU, accelerate loses their class.
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def seeded(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def latents_of(pipeline: DemoPipeline, **options: Any) -> Tensor:
    return pipeline(generator=seeded(), output_type="latent", **options).frames


@pytest.fixture
def fresh(tiny_folder: Path) -> DemoPipeline:
    """A pipeline that a test may change."""
    return load_pipeline(str(tiny_folder), "cpu")


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_encoded_prompts_are_as_good_as_prompts(fresh: DemoPipeline, scale: float) -> None:
    texts = {"prompt": PROMPTS, "motion_prompt": ["a pear", "snow"], "negative_prompt": "snow"}
    whole = latents_of(fresh, guidance_scale=scale, **texts)
    states, negatives = fresh.encode_prompt(*texts.values())
    assert len(states.content) == len(negatives.content) == 2
    if scale == 1:  # without guidance nobody encodes a negative prompt beside them
        states, negatives = fresh.encode_prompt(PROMPTS, texts["motion_prompt"])
        assert negatives is None
    embeds = {"prompt_embeds": states, "negative_prompt_embeds": negatives}
    fresh.content_encoder = fresh.motion_encoder = None
    assert torch.equal(latents_of(fresh, guidance_scale=scale, **embeds), whole)
    with pytest.raises(ValueError, match="has no text encoders; give prompt_embeds"):
        latents_of(fresh, prompt=PROMPTS)


def halved(states: TextStates) -> TextStates:
    return states.map(lambda t: t[:1])


def test_texts_that_do_not_go_together(tiny_pipeline: DemoPipeline) -> None:
    states, negatives = tiny_pipeline.encode_prompt(PROMPTS, negative_prompt="")
    assert negatives is not None
    embeds = {"prompt_embeds": states, "negative_prompt_embeds": negatives}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**embeds, "prompt": PROMPTS}, "must come without prompt"),
        ({**embeds, "motion_prompt": PROMPTS}, "must come without prompt, motion_prompt"),
        ({**embeds, "negative_prompt": "snow"}, "must come without"),
        ({"prompt_embeds": states}, "guidance needs negative_prompt_embeds"),
        ({**embeds, "negative_prompt_embeds": halved(negatives)}, "1 given for 2 prompts"),
        ({"prompt": PROMPTS, "negative_prompt_embeds": negatives}, "must come with prompt_embeds"),
        ({}, "prompt: none given"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message) as error:
            latents_of(tiny_pipeline, **options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_dropped_text_encoders_change_no_bit(tiny_folder: Path, scale: float) -> None:
    config = InferenceConfig(
        model=str(tiny_folder),
        device="cpu",
        num_inference_steps=2,
        guidance_scale=scale,
        batch_size=2,
        negative_prompt="snow",
    )
    jobs = make_jobs([("a", "a car falls"), ("b", "a fish"), ("c", "a pear")], repeat=1, seed=1)
    model = resolve(str(tiny_folder))
    complete = Runner.load(model, config)
    assert complete.prompt_embeds == {}
    lean = Runner.load(model, config, Plan(16, drop_text=True), jobs)
    assert [getattr(lean.pipeline, name) for name in TEXT] == [None, None]
    first, second = list(complete.videos(jobs)), list(lean.videos(jobs))
    assert [video.job for video in second] == jobs
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.frames, other.frames)


def test_parts_are_left_out_and_the_rest_is_in_the_precision(tiny_folder: Path) -> None:
    for without, kept in ((TEXT, DENOISING), (DENOISING, TEXT)):
        pipeline = resolve(str(tiny_folder)).load("cpu", "bfloat16", without=without)
        assert all(getattr(pipeline, name) is None for name in without)
        weights = [w for name in kept for w in getattr(pipeline, name).parameters()]
        assert {weight.dtype for weight in weights} == {torch.bfloat16}


def test_offloading_knows_every_network(tiny_pipeline: DemoPipeline) -> None:
    modules = {k for k, v in tiny_pipeline.components.items() if isinstance(v, nn.Module)}
    order = DemoPipeline.model_cpu_offload_seq.split("->")
    assert set(order) == modules
    assert len(order) == len(modules)


def test_every_network_is_called_for_before_its_weights_are_used(
    tiny_pipeline: DemoPipeline,
) -> None:
    """What offloading hangs on: accelerate's hook comes first, in the order of the sequence."""
    order: list[str] = []

    class Arrival(ModelHook):
        def __init__(self, name: str) -> None:
            self.name = name

        def pre_forward(self, _: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            order.append(self.name)
            return args, kwargs

    projection = tiny_pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    networks = {k: v for k, v in tiny_pipeline.components.items() if isinstance(v, nn.Module)}
    for name, module in networks.items():
        add_hook_to_module(module, Arrival(name))
    listening = projection.register_forward_pre_hook(lambda *_: order.append("keys"))
    try:
        tiny_pipeline("a car", generator=seeded(1))
    finally:
        listening.remove()
        for module in networks.values():
            remove_hook_from_module(module)
    assert list(dict.fromkeys(order)) == [
        "content_encoder",
        "motion_encoder",
        "unet",
        "keys",
        "vae",
    ]


def test_model_offload_changes_no_video(tiny_pipeline: DemoPipeline, fresh: DemoPipeline) -> None:
    """accelerate's hooks as on a GPU; here the device that they move weights to is the CPU."""
    fresh.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # the hooks are set anew after a call
        frames = fresh(PROMPTS, generator=seeded()).frames
        assert np.array_equal(frames, tiny_pipeline(PROMPTS, generator=seeded()).frames)
    assert hasattr(fresh.unet, "_hf_hook")


def test_offloading_every_layer_changes_no_video(
    tiny_pipeline: DemoPipeline, fresh: DemoPipeline
) -> None:
    """What `enable_sequential_cpu_offload` does, which would name the device cpu:0.

    For accelerate that is another one than the weights' cpu.
    """
    modules = [m for m in fresh.components.values() if isinstance(m, nn.Module)]
    for module in modules:
        cpu_offload(module, torch.device("cpu"), offload_buffers=len(module._parameters) > 0)
    frames = fresh(PROMPTS, generator=seeded()).frames
    assert np.array_equal(frames, tiny_pipeline(PROMPTS, generator=seeded()).frames)
    assert {w.device.type for module in modules for w in module.parameters()} == {"meta"}


@needs_gpu
def test_sequential_offload_changes_no_video(
    tiny_pipeline: DemoPipeline, fresh: DemoPipeline
) -> None:
    fresh.enable_sequential_cpu_offload()
    latents = latents_of(fresh, prompt=PROMPTS)
    torch.testing.assert_close(
        latents.cpu(), latents_of(tiny_pipeline, prompt=PROMPTS), rtol=1e-3, atol=1e-3
    )
    modules = [m for m in fresh.components.values() if isinstance(m, nn.Module)]
    assert {w.device.type for module in modules for w in module.parameters()} == {"meta"}


def test_offloaded_prompts_may_be_encoded_before(
    tiny_pipeline: DemoPipeline, fresh: DemoPipeline
) -> None:
    fresh.enable_model_cpu_offload(device="cpu")
    states, negatives = fresh.encode_prompt(PROMPTS, negative_prompt="")
    latents = latents_of(fresh, prompt_embeds=states, negative_prompt_embeds=negatives)
    assert torch.equal(latents, latents_of(tiny_pipeline, prompt=PROMPTS))


def test_diffusers_own_loader_takes_the_file_as_a_custom_pipeline(
    tiny_folder: Path, tiny_pipeline: DemoPipeline
) -> None:
    loaded: Any = DiffusionPipeline.from_pretrained(
        tiny_folder, custom_pipeline=inspect.getfile(DemoPipeline), trust_remote_code=True
    )
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded).__name__ == "DemoPipeline"
    assert torch.equal(
        latents_of(loaded, prompt=PROMPTS), latents_of(tiny_pipeline, prompt=PROMPTS)
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_nothing_is_offloaded_from_the_cpu(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="offload model: needs a GPU with memory of its own"):
        resolve(str(tiny_folder)).load("cpu", offload="model")
    words = ("generate", "a car", "--model", str(tiny_folder), "--device", "cpu", "--offload")
    done = in_process.run(tmp_path, *words, "sequential")
    assert_one_line(done, 2, "offload sequential: needs a GPU")
    assert_one_line(in_process.run(tmp_path, *words, "all"), 2, "offload: ", "sequential")


def test_max_memory_says_what_it_picked(tiny_folder: Path, tmp_path: Path) -> None:
    car = ("generate", "a car", "--model", tiny_folder)
    made = (*car, "--steps", 1, "--device", "cpu", "--json", "--out")
    plain = in_process.run(tmp_path, *made, "plain")
    assert (plain.returncode, messages(plain.stderr)) == (0, [])
    done = run(tmp_path, *made, "ample", "--max-memory", "64GB")
    assert done.returncode == 0, done.stderr
    assert len(messages(done.stderr)) == 1
    assert "all parts in memory, 16 frames decoded at once" in done.stderr
    assert [video["file"] for video in json.loads(done.stdout)["videos"]] == [
        video["file"].replace("plain", "ample") for video in json.loads(plain.stdout)["videos"]
    ]
    done = in_process.run(tmp_path, *car, "--max-memory", "9MB")
    assert_one_line(done, 2, "max_memory 9MiB: the least for this model is", "lower batch_size")
    done = in_process.run(tmp_path, *car, "--max-memory", "9")
    assert_one_line(done, 2, "max_memory: should be a size such as 8GB")
