"""Distillation of a few-step student: targets, training, the saved model."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from demo_t2v.checkpoints.resolve import BUILT_IN, ModelError, load_pipeline, resolve
from demo_t2v.config import ConfigError
from demo_t2v.diffusion.distillation import (
    clean_target,
    distillation_loss,
    next_alpha_bar,
    solve,
    student_scheduler,
)
from demo_t2v.diffusion.schedulers import check_scheduler, make_scheduler
from demo_t2v.inference.outputs import read_manifest
from demo_t2v.lora import WEIGHT_NAME, LoraError, add_lora, merge_lora
from demo_t2v.pipeline import DemoPipeline
from demo_t2v.training.trainer import train
from helpers import in_process
from helpers.pipelines import latents_of, load_saved
from helpers.program import ENVIRONMENT, ROOT, assert_one_line, run
from helpers.stages import (
    DENOISER,
    assert_resumes,
    load,
    prepared_task,
)

NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.04,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
STUDENT = {"num_inference_steps": 2, "guidance_scale": 1, "distillation": {"solver_steps": 2}}


def test_the_student_steps_evenly_through_the_first_part_of_the_teachers_noise() -> None:
    scheduler = student_scheduler(NOISE, 0.8)
    check_scheduler(scheduler)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [799, 599, 399, 199]
    whole = DDIMScheduler(**NOISE)
    torch.testing.assert_close(scheduler.alphas_cumprod, whole.alphas_cumprod[:800])
    assert [next_alpha_bar(scheduler, step).item() for step in range(4)] == [
        *(scheduler.alphas_cumprod[t].item() for t in (599, 399, 199)),
        1,
    ]
    with pytest.raises(ValueError, match="squaredcos_cap_v2: must be linear or scaled_linear"):
        student_scheduler({**NOISE, "beta_schedule": "squaredcos_cap_v2"}, 0.8)


def test_the_target_is_the_clean_value_whose_step_ends_at_the_solution() -> None:
    """By hand: a, s = 0.6, 0.8 and a', s' = 0.8, 0.6; from x = 1 to x' = 2."""
    alpha_bar, following = torch.tensor(0.36), torch.tensor(0.64)
    target = clean_target(torch.tensor([1.0]), torch.tensor([2.0]), alpha_bar, following)
    # The ratio of both s is 0.75: the numerator is 2 - 0.75, the denominator 0.8 - 0.75 * 0.6.
    assert target.item() == pytest.approx(1.25 / 0.35)
    noise = (1 - 0.6 * target.item()) / 0.8
    assert 0.8 * target.item() + 0.6 * noise == pytest.approx(2)
    # The last step ends at the clean latents.
    last = clean_target(torch.tensor([1.0]), torch.tensor([2.0]), alpha_bar, torch.tensor(1.0))
    assert last.item() == 2
    # The squared error is 4, and s^2 is 0.64.
    loss = distillation_loss(torch.tensor([3.0]), torch.tensor([1.0]), alpha_bar)
    assert loss.item() == pytest.approx(4 / 0.64)


def gaussian_velocity(scheduler: Any, deviation: float) -> Any:
    """The exact denoiser of data from N(0, deviation^2): E[x0 | x] = a d^2 / (a^2 d^2 + s^2) x."""

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        alpha_bar = scheduler.alphas_cumprod[timestep]
        a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        clean = a * deviation**2 / (alpha_bar * deviation**2 + 1 - alpha_bar) * latents
        return (a * latents - clean) / s  # from x0 = a x - s v

    return predict


@pytest.mark.parametrize("step", range(4))
def test_for_gaussian_data_the_target_is_the_solution_of_the_ode(step: int) -> None:
    """The flow of N(0, d^2) scales x by the ratio of the standard deviations at both ends."""
    deviation, solver_steps = 0.7, 50
    scheduler = student_scheduler(NOISE, 0.8)
    scheduler.set_timesteps(4)
    solver = make_scheduler("dpm++", scheduler.config)
    solver.set_timesteps(4 * solver_steps)
    latents = torch.linspace(-2, 2, 5)
    predict = gaussian_velocity(scheduler, deviation)
    solution = solve(predict, latents, solver, step * solver_steps, solver_steps)
    timestep = scheduler.timesteps[step]
    alpha_bar, following = scheduler.alphas_cumprod[timestep], next_alpha_bar(scheduler, step)
    spread = [math.sqrt(a * deviation**2 + 1 - a) for a in (alpha_bar.item(), following.item())]
    torch.testing.assert_close(solution, latents * spread[1] / spread[0], rtol=0.01, atol=0)
    # A student that predicts the target steps to where the teacher's solution ends.
    target = clean_target(latents, solution, alpha_bar, following)
    velocity = (alpha_bar.sqrt() * latents - target) / (1 - alpha_bar).sqrt()
    after = scheduler.step(velocity, timestep, latents).prev_sample
    torch.testing.assert_close(after, solution, rtol=1e-4, atol=1e-5)


def student_stage(stages: Path, name: str, *overrides: str, **more: Any) -> Any:
    """Four steps of a student of the DEMO in `stages`, a checkpoint after two."""
    times = {"num_steps": 4, "save_ckp_interval": 2, "ema_decay": 0.5, "log_interval": 1}
    weights = {"p_zero": 0, "text_motion_weight": 0, "regularization_weight": 0}
    base = {"base": str(stages / "demo/final"), "model": {"motion": True}}
    return load(
        stages, {**DENOISER, **times, **weights, **base, **STUDENT, **more}, name, *overrides
    )


@pytest.mark.usefixtures("small_chunks")
def test_only_the_denoiser_learns_and_a_run_resumes_bit_exactly(stages: Path) -> None:
    whole = student_stage(stages, "student")
    task = prepared_task(whole)
    start = {name: weight.clone() for name, weight in task.model.state_dict().items()}
    teacher = {name: weight.clone() for name, weight in task.teacher.unet.state_dict().items()}
    lines = list(train(task, whole))
    assert {"step_1", "step_2", "distillation", "video_motion"} <= lines[0].keys()
    moved = {name for name, w in task.model.state_dict().items() if not torch.equal(start[name], w)}
    assert {name.partition(".")[0] for name in moved} == {"unet"}
    assert all(torch.equal(w, teacher[n]) for n, w in task.teacher.unet.state_dict().items())

    assert_resumes(student_stage(stages, "student-in-parts"), whole)

    saved = load_pipeline(str(whole.log_dir / "final"), dtype="float32")
    assert (saved.config.num_inference_steps, saved.config.guidance_scale) == (2, 1)
    saved.scheduler.set_timesteps(2)
    assert saved.scheduler.timesteps.tolist() == [799, 399]
    still = latents_of(saved, motion_strength=0.0)
    assert not torch.equal(latents_of(saved), still)


@pytest.mark.usefixtures("small_chunks")
def test_the_loss_falls_on_one_batch(stages: Path) -> None:
    options = {"solver_steps": 2, "p_real": 0, "p_other_motion": 0, "p_motion_strength": 0}
    config = student_stage(stages, "falls", distillation=options)
    task = prepared_task(config)
    optimizer = torch.optim.Adam(task.unet.parameters(), lr=3e-3)
    batch, losses = task.batch(range(2)), []
    for _ in range(12):
        loss, _ = task.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.usefixtures("small_chunks")
def test_an_untrained_student_of_a_teacher_without_guidance_agrees_on_single_steps(
    stages: Path,
) -> None:
    """One step of the solver, which is DDIM's, from the same weights: the loss is zero."""
    options = {"solver_steps": 1, "guidance_scale": 1, "p_real": 0.5, "p_other_motion": 0.5}
    sizes = "model={motion: true, dropout: 0}"
    config = student_stage(stages, "agrees", sizes, distillation=options)
    task = prepared_task(config)
    _, figures = task.loss(task.batch(range(2)))
    assert figures["distillation"] < 1e-8


@pytest.mark.usefixtures("small_chunks")
def test_an_adapter_is_saved_alone_and_is_a_model(
    stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lora = {"target": "network", "rank": 3, "alpha": 6}
    config = student_stage(stages, "student-adapter", lora=lora)
    task = prepared_task(config)
    trained = {name for name, weight in task.model.named_parameters() if weight.requires_grad}
    layers = {name.partition(".lora_")[0] for name in trained}
    assert {"unet.conv_in", "unet.conv_out", "unet.down_blocks.0.temp_convs.0.conv1.2"} <= layers
    list(train(task, config))
    folder = config.log_dir / "final"
    assert {file.name for file in folder.rglob("*") if file.is_file()} == {
        "model_index.json", "scheduler_config.json", WEIGHT_NAME,
    }  # fmt: skip
    model = resolve(str(folder))
    assert model.defaults.steps == 2
    complete = model.load(dtype="float32")
    torch.testing.assert_close(
        latents_of(complete), latents_of(task.pipeline()), rtol=1e-3, atol=1e-3
    )
    assert resolve(str(folder)).folder == model.folder
    assert torch.equal(latents_of(load_saved(folder)), latents_of(load_saved(model.folder)))
    # What the caller gives stays as it is.
    network, scheduler = load_saved(config.base).unet, DDIMScheduler()
    before = network.conv_in.weight.clone()
    given = {"unet": network, "scheduler": scheduler, "num_inference_steps": 9}
    own = DemoPipeline.from_pretrained(folder, **given)
    assert own.unet is network
    assert torch.equal(network.conv_in.weight, before)
    assert own.scheduler is scheduler
    assert own.config.num_inference_steps == 9
    # Shipped, it is half as large, and its base is the built-in model.
    monkeypatch.syspath_prepend(ROOT / "scripts")
    importlib.import_module("ship_sprites").ship_adapter(folder, tmp_path / "shipped")
    shipped = json.loads((tmp_path / "shipped/model_index.json").read_text())
    assert (tmp_path / "shipped" / shipped["base_model"]).samefile(BUILT_IN["sprites"])
    tensors = load_file(tmp_path / "shipped/unet" / WEIGHT_NAME)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    # A base that is nowhere is an error.
    index = json.loads((folder / "model_index.json").read_text())
    index["base_model"] = "nowhere"
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="base_model nowhere is no folder of a complete model"):
        resolve(str(folder))


def test_a_merged_adapter_is_what_peft_computes(tiny_folder: Path, tmp_path: Path) -> None:
    adapted, merged = load_saved(tiny_folder), load_saved(tiny_folder)
    add_lora(adapted.unet, None, "network", rank=3, alpha=6)
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.unet.named_parameters():
        if ".lora_B." in name:
            weight.data = torch.randn(weight.shape, generator=generator) / 10
    adapted.save_lora_weights(tmp_path)
    before = merged.unet.conv_in.weight.clone()
    merge_lora(merged.unet, tmp_path, "unet")
    tensors = load_file(tmp_path / WEIGHT_NAME)
    down, up = (tensors[f"unet.conv_in.lora_{which}.weight"] for which in "AB")
    update = torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    torch.testing.assert_close(merged.unet.conv_in.weight, before + 2 * update)
    torch.testing.assert_close(latents_of(merged), latents_of(adapted), rtol=1e-3, atol=1e-3)
    with pytest.raises(LoraError, match="surplus: unet"):
        merge_lora(merged.motion_encoder, tmp_path, "unet")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["base=null"], "distillation: needs a trained model to learn from: give base"),
        (["freeze_unet=true"], "distillation: .*leave out freeze_unet"),
        (["min_snr_gamma=5"], "distillation: .*leave out min_snr_gamma"),
        (["distillation.solver_steps=0"], "distillation.solver_steps: should be at least 1"),
        (["distillation.highest_noise_level=0"], "highest_noise_level: should be more than 0"),
        (["distillation.p_real=2"], "distillation.p_real: should be at most 1"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        student_stage(tmp_path, "student", *overrides)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("guidance_scale=4", "guidance_scale: a distilled student needs no guidance; write 1"),
        ("guidance_scale=null", "guidance_scale: a distilled student needs no guidance; write 1"),
        ("num_inference_steps=null", "num_inference_steps is missing; write the student's steps"),
        ("guidance_interval=[0.5, 1]", "guidance_interval: a distilled student needs no guidance"),
        ("text_motion_weight=0.1", "text_motion_weight: is for denoisers"),
        ("regularization_weight=0.1", "regularization_weight: is for denoisers"),
        ("lora={target: all}", "lora.target: a distilled student needs network, not all"),
        ("distillation.motion_strength=[2, 1]", "motion_strength: 2.0 should be at most 1.0"),
        ("num_inference_steps=900", "900 steps of 2 solver_steps are more than the 800 timesteps"),
    ],
)
def test_the_command_refuses_it_in_one_line(stages: Path, word: str, message: str) -> None:
    student_stage(stages, "refused")
    done = in_process.run(stages, "train", "--config", "refused.yaml", word)
    assert_one_line(done, 2, message)


@pytest.mark.usefixtures("small_chunks")
def test_the_command_trains_a_student_that_the_command_uses(stages: Path) -> None:
    student_stage(stages, "by-command")
    done = in_process.run(stages, "train", "--config", "by-command.yaml", "num_steps=1")
    assert done.returncode == 0, done.stderr
    model = stages / "by-command/final"
    words = ["a car falls", "--model", model, "--out", "fast", "--motion-prompt", "it rises"]
    done = in_process.run(stages, "generate", *words, "motion_strength=1.2")
    assert done.returncode == 0, done.stderr
    made = json.loads((stages / "fast/manifest.jsonl").read_text())["settings"]
    assert (made["num_inference_steps"], made["guidance_scale"]) == (2, 1)
    assert isinstance(load_saved(model), DemoPipeline)


def test_the_built_in_student_is_quiet_and_takes_four_steps_without_guidance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ("generate", "a frog falls at night", "--model", "sprites-fast", "--frames", "2")
    for name in ("first", "second"):  # the first one writes the complete model into the cache
        done = run(tmp_path, *words, "--out", name)
        assert (done.returncode, done.stderr) == (0, "1 made\n")
        assert len(done.stdout.splitlines()) == 1
        (entry,) = read_manifest(tmp_path / name).values()
        settings = entry["settings"]
        assert (settings["num_inference_steps"], settings["guidance_scale"]) == (4, 1)
