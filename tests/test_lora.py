"""LoRA: adapters that can be put on, saved, loaded, weighed and taken off."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo_t2v.lora import WEIGHT_NAME, LoraError, add_lora
from demo_t2v.pipeline import DemoPipeline
from helpers import in_process
from helpers.pipelines import differ, latents_of, load_saved
from helpers.program import ENVIRONMENT, TIMEOUT, assert_one_line

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


def shake_adapters(pipeline: DemoPipeline, seed: int) -> None:
    """Give what an adapter adds a random value: as made, it adds nothing."""
    generator = torch.Generator().manual_seed(seed)
    for part in (pipeline.unet, pipeline.motion_encoder):
        for name, weight in part.named_parameters():
            if ".lora_B." in name:
                weight.data = torch.randn(weight.shape, generator=generator)


@pytest.fixture
def adapted(tiny_folder: Path) -> DemoPipeline:
    """A pipeline with a motion adapter that changes the video."""
    pipeline = load_saved(tiny_folder)
    add_lora(pipeline.unet, pipeline.motion_encoder, "motion", rank=2, alpha=3)
    shake_adapters(pipeline, seed=1)
    return pipeline


@pytest.fixture
def saved(adapted: DemoPipeline, tmp_path: Path) -> Path:
    adapted.save_lora_weights(tmp_path / "adapter")
    return tmp_path / "adapter"


def same(first: Tensor, second: Tensor) -> bool:
    """To rounding: weights of a file lie otherwise in memory, and some CPUs add them otherwise."""
    return torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("target", ["motion", "all"])
def test_a_new_adapter_changes_nothing_until_it_has_learned(
    tiny_pipeline: DemoPipeline, tiny_folder: Path, target: str
) -> None:
    pipeline = load_saved(tiny_folder)
    add_lora(pipeline.unet, pipeline.motion_encoder, target)
    base = latents_of(tiny_pipeline)
    assert same(latents_of(pipeline), base)
    shake_adapters(pipeline, seed=1)
    assert differ(latents_of(pipeline), base)


def test_the_motion_adapter_is_on_what_demo_adds_and_nowhere_else(saved: Path) -> None:
    names = list(load_file(saved / WEIGHT_NAME))
    unet = [name for name in names if name.startswith("unet.")]
    assert all(".motion_attentions." in name for name in unet)
    assert [p for p in PROJECTIONS if not any(f".{p}.lora_A." in name for name in unet)] == []
    # Of the encoder's two layers the last is not heard.
    encoder = {
        f"motion_encoder.encoder.layers.0.self_attn.{p}_proj" for p in ("q", "k", "v", "out")
    }
    assert {name.partition(".lora_")[0] for name in set(names) - set(unet)} == encoder


def test_all_is_every_transformer(tiny_folder: Path) -> None:
    pipeline = load_saved(tiny_folder)
    add_lora(pipeline.unet, pipeline.motion_encoder, "all")
    names = get_peft_model_state_dict(pipeline.unet)
    adapted = {name.partition(".lora_")[0] for name in names}
    linear = {
        name.removesuffix(".base_layer")
        for name, layer in pipeline.unet.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and "transformer_blocks" in name
        and "lora" not in name
    }
    assert adapted == linear
    assert any(name.startswith("transformer_in.") for name in adapted)


def test_without_the_motion_branch_a_motion_adapter_is_not_heard(
    adapted: DemoPipeline, tiny_pipeline: DemoPipeline
) -> None:
    base = latents_of(tiny_pipeline, motion_strength=0.0)
    assert same(latents_of(adapted, motion_strength=0.0), base)


def test_saved_and_loaded_it_makes_the_same_videos(
    adapted: DemoPipeline, saved: Path, tiny_folder: Path, tiny_pipeline: DemoPipeline
) -> None:
    wanted = latents_of(adapted)
    assert differ(wanted, latents_of(tiny_pipeline))
    by_folder, by_file, by_tensors = (load_saved(tiny_folder) for _ in range(3))
    by_folder.load_lora_weights(saved)
    assert torch.equal(latents_of(by_folder), wanted)
    by_file.load_lora_weights(str(saved / WEIGHT_NAME), adapter_name="mine")
    assert by_file.get_list_adapters() == {"unet": ["mine"], "motion_encoder": ["mine"]}
    assert torch.equal(latents_of(by_file), wanted)
    by_tensors.load_lora_weights(load_file(saved / WEIGHT_NAME))  # alpha is the rank, 2, not 3
    by_tensors.set_adapters("default_0", 1.5)
    torch.testing.assert_close(latents_of(by_tensors), wanted, rtol=1e-4, atol=1e-4)


def test_the_file_is_diffusers_own(adapted: DemoPipeline, saved: Path, tiny_folder: Path) -> None:
    with safe_open(saved / WEIGHT_NAME, "pt") as stored:
        told = json.loads(stored.metadata()["lora_adapter_metadata"])
    assert (told["unet.r"], told["unet.lora_alpha"]) == (2, 3)
    assert (told["motion_encoder.r"], told["motion_encoder.lora_alpha"]) == (2, 3)
    assert str(tiny_folder) not in json.dumps(told)
    other = load_saved(tiny_folder)
    other.unet.load_lora_adapter(str(saved), prefix="unet", weight_name=WEIGHT_NAME)
    other.motion_encoder = adapted.motion_encoder
    assert torch.equal(latents_of(other), latents_of(adapted))


def test_strength_goes_from_the_base_to_the_adapter(
    adapted: DemoPipeline, tiny_pipeline: DemoPipeline
) -> None:
    base, full = latents_of(tiny_pipeline), latents_of(adapted)
    adapted.set_adapters("default", 0.0)
    assert same(latents_of(adapted), base)
    adapted.set_adapters("default", 0.5)
    half = latents_of(adapted)
    assert differ(half, base)
    assert differ(half, full)
    adapted.set_adapters("default")
    assert same(latents_of(adapted), full)
    adapted.disable_lora()
    assert same(latents_of(adapted), base)
    adapted.enable_lora()
    assert same(latents_of(adapted), full)


def test_the_adapter_that_was_loaded_last_is_used(
    adapted: DemoPipeline, saved: Path, tiny_folder: Path
) -> None:
    first, pipeline = latents_of(adapted), load_saved(tiny_folder)
    shake_adapters(adapted, seed=2)
    adapted.motion_encoder = load_saved(
        tiny_folder
    ).motion_encoder  # the second is on one part only
    pipeline.load_lora_weights(saved, "first")
    adapted.save_lora_weights(saved)
    pipeline.load_lora_weights(saved, "second")
    assert torch.equal(latents_of(pipeline), latents_of(adapted))
    pipeline.set_adapters("first")
    assert torch.equal(latents_of(pipeline), first)
    pipeline.set_adapters(["first", "second"])
    assert differ(latents_of(pipeline), first)
    assert differ(latents_of(pipeline), latents_of(adapted))
    with pytest.raises(LoraError, match="adapter_name None: cannot be saved; there are first, sec"):
        pipeline.save_lora_weights(saved)
    with pytest.raises(LoraError, match="adapter_name 'first': is taken; so are first, second"):
        pipeline.load_lora_weights(saved, "first")


def test_fused_it_is_a_model_like_any_other(adapted: DemoPipeline, tmp_path: Path) -> None:
    wanted = latents_of(adapted)
    with pytest.raises(LoraError, match="save_lora_weights"):
        adapted.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    adapted.fuse_lora()
    assert adapted.fused_loras == {"default"}
    torch.testing.assert_close(latents_of(adapted), wanted, rtol=1e-5, atol=1e-5)
    adapted.unload_lora_weights()
    assert not [name for name, _ in adapted.unet.named_parameters() if "lora" in name]
    torch.testing.assert_close(latents_of(adapted), wanted, rtol=1e-5, atol=1e-5)
    adapted.save_pretrained(tmp_path / "model")
    assert same(latents_of(load_saved(tmp_path / "model")), latents_of(adapted))


def test_unfused_and_unloaded_the_base_is_there_again(
    adapted: DemoPipeline, tiny_pipeline: DemoPipeline
) -> None:
    wanted = latents_of(adapted)
    adapted.fuse_lora(lora_scale=1.0)
    adapted.unfuse_lora()
    torch.testing.assert_close(latents_of(adapted), wanted, rtol=1e-5, atol=1e-5)
    adapted.disable_lora()
    base = latents_of(tiny_pipeline)
    torch.testing.assert_close(latents_of(adapted), base, rtol=1e-5, atol=1e-5)
    adapted.unload_lora_weights()
    assert adapted.get_list_adapters() == {}
    torch.testing.assert_close(latents_of(adapted), base, rtol=1e-5, atol=1e-5)


def test_it_loads_into_half_precision(saved: Path, tiny_folder: Path) -> None:
    pipeline = load_saved(tiny_folder, dtype=torch.bfloat16)
    base = latents_of(pipeline)
    pipeline.load_lora_weights(saved)
    assert pipeline.unet.dtype == pipeline.motion_encoder.dtype == torch.bfloat16
    assert differ(latents_of(pipeline), base)


FIRST = "unet.down_blocks.0.motion_attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight"


def without(tensors: dict[str, Tensor]) -> None:
    del tensors[FIRST]


def with_more(tensors: dict[str, Tensor]) -> None:
    tensors["unet.conv_in.lora_C.weight"] = torch.zeros(2, 2)


def of_another_part(tensors: dict[str, Tensor]) -> None:
    tensors["text_encoder.x.lora_A.weight"] = torch.zeros(2, 2)


def misshapen(tensors: dict[str, Tensor]) -> None:
    tensors[FIRST] = torch.zeros(2, 5)


def foreign(tensors: dict[str, Tensor]) -> None:
    tensors.clear()
    tensors |= {f"unet.mid.{n}.lora_A.weight": torch.zeros(2, 2) for n in range(12)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without, f"1 missing: {FIRST}"),
        (with_more, "1 surplus: unet.conv_in.lora_C.weight"),
        (of_another_part, "1 surplus: text_encoder.x.lora_A.weight"),
        (misshapen, f"1 misshapen: {FIRST} (2, 5) should be (2, 16)"),
        (foreign, "12 surplus: unet.mid.0.lora_A.weight, "),
        (lambda tensors: tensors.clear(), "holds no tensors"),
    ],
)
def test_a_file_of_other_tensors_is_refused_in_one_line(
    saved: Path, tiny_folder: Path, spoil: Any, message: str
) -> None:
    file = saved / WEIGHT_NAME
    with safe_open(file, "pt") as stored:
        settings = stored.metadata()
    tensors = load_file(file)
    spoil(tensors)
    save_file(tensors, file, settings)
    pipeline = load_saved(tiny_folder)
    before = list(pipeline.unet.state_dict())
    with pytest.raises(LoraError) as error:
        pipeline.load_lora_weights(saved)
    text = str(error.value)
    assert text.startswith(f"{file}: ")
    assert message in text
    assert "\n" not in text
    assert text.count("lora_A") <= 10
    assert list(pipeline.unet.state_dict()) == before
    assert pipeline.get_list_adapters() == {}


def test_what_is_no_adapter_is_refused_in_one_line(saved: Path, tiny_folder: Path) -> None:
    pipeline = load_saved(tiny_folder)
    for nothing in (saved.parent / "nowhere", saved.parent, "nothing", "a/b/c", "x/y.safetensors"):
        with pytest.raises(LoraError, match="there is no such adapter; use a file, a folder with"):
            pipeline.load_lora_weights(nothing)
    (saved / "pickle.bin").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(LoraError, match=r"pickle\.bin: is no complete safetensors file"):
        pipeline.load_lora_weights(saved, weight_name="pickle.bin")
    for text, message in (("[1]", "is no JSON object"), ('{"unet.r": "x"}', "'<=' not supported")):
        save_file(load_file(saved / WEIGHT_NAME), saved / "odd", {"lora_adapter_metadata": text})
        with pytest.raises(LoraError, match=message):
            pipeline.load_lora_weights(saved / "odd")
    with pytest.raises(LoraError, match="adapter_name None: cannot be saved; there is no adapter"):
        pipeline.save_lora_weights(saved)


def test_a_model_without_motion_takes_no_motion_adapter(tiny_folder: Path) -> None:
    pipeline = load_saved(tiny_folder)
    with pytest.raises(LoraError, match="has no motion transformers"):
        add_lora(pipeline.unet, None, "motion")
    add_lora(pipeline.unet, None, "all")
    assert list(pipeline.get_list_adapters()) == ["unet"]


def test_the_command_line_puts_an_adapter_on_the_model(
    tiny_folder: Path, saved: Path, tmp_path: Path
) -> None:
    def generate(out: str, *words: str) -> subprocess.CompletedProcess[str]:
        options = ("--model", tiny_folder, "--out", tmp_path / out, "--format", "png")
        return in_process.run(tmp_path, "generate", "a car falls", "--steps", 2, *options, *words)

    lora = ("--lora", str(saved))
    for done in (generate("base"), generate("full", *lora)):
        assert done.returncode == 0, done.stderr
    assert generate("zero", *lora, "lora_strength=0").returncode == 0
    base, full, zero = (
        [file.read_bytes() for file in sorted((tmp_path / out).rglob("*.png"))]
        for out in ("base", "full", "zero")
    )
    assert len(base) == 4
    assert zero == base
    assert full != base
    made = json.loads((tmp_path / "full/manifest.jsonl").read_text())["settings"]
    assert (made["lora"], made["lora_strength"]) == (str(saved), 1)
    for words, message in (
        ((), "made with lora"),
        ((*lora, "lora_strength=0.5"), "made with lora_strength 1.0, not 0.5"),
    ):
        assert_one_line(generate("full", *words), 2, message)
    assert_one_line(generate("none", "--lora", "nowhere"), 2, "nowhere: there is no such adapter")
    (saved / WEIGHT_NAME).write_bytes(b"trained once more")
    assert_one_line(generate("full", *lora), 2, "made with lora_hash")


@pytest.mark.parametrize(
    "network",
    [
        {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"},
        {"ALL_PROXY": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"},
        {"HF_HUB_OFFLINE": "1"},
    ],
    ids=str,
)
def test_a_mistyped_name_without_a_network(tmp_path: Path, network: dict[str, str]) -> None:
    """One line: no attempt is repeated, which would print more and take half a minute."""
    done = subprocess.run(
        [sys.executable, "-m", "demo_t2v", "generate", "a car", "--lora", "mine/adaptr"],
        cwd=tmp_path,
        env=ENVIRONMENT | {"HF_HOME": str(tmp_path)} | network,
        capture_output=True,
        text=True,
        check=False,
    )
    assert_one_line(done, 1, "mine/adaptr: is no local adapter, and the hub does not provide it")


def test_without_peft_there_is_all_but_lora(tiny_folder: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["peft"] = None
from demo_t2v.lora import LoraError, add_lora
from demo_t2v.pipeline import DemoPipeline
pipeline = DemoPipeline.from_pretrained({str(tiny_folder)!r})
pipeline("a car", num_inference_steps=1)
pipeline.save_pretrained({str(tmp_path / "model")!r})
for call in (
    lambda: pipeline.load_lora_weights("adapter"),
    lambda: pipeline.save_lora_weights("adapter"),
    lambda: add_lora(pipeline.unet, pipeline.motion_encoder),
):
    try:
        call()
    except LoraError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "LoRA" in line]  # other packages talk too
    assert said == ["LoRA needs peft: pip install 'demo-t2v[lora]'"] * 3
    assert (tmp_path / "model/unet/diffusion_pytorch_model.safetensors").is_file()
