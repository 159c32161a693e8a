"""What a training takes from DeepSpeed's JSON, and what the JSON is completed by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from demo_t2v.config import ConfigError
from demo_t2v.training.distributed.deepspeed_config import apply_deepspeed_config, complete_settings
from helpers.program import ROOT, assert_one_line
from helpers.program import run as run_program
from helpers.tiny_task import run
from helpers.tiny_training import config, curve, launch, zero

ONE_CYCLE = {
    "type": "OneCycle",
    "params": {
        "cycle_first_step_size": 2000, "cycle_first_stair_count": 1000,
        "cycle_second_step_size": 2000, "cycle_second_stair_count": 1000,
        "decay_step_size": 10000, "cycle_min_lr": 1e-5, "cycle_max_lr": 5e-5,
        "decay_lr_rate": 0.001, "cycle_min_mom": 0.85, "cycle_max_mom": 0.99,
    },
}  # fmt: skip
PUBLISHED: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 0.5,
    "optimizer": {"type": "Adam", "params": {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-7}},
    "scheduler": ONE_CYCLE,
    "fp16": {"enabled": True, "auto_cast": True},
}


def test_the_json_s_settings_are_taken(tmp_path: Path) -> None:
    taken = apply_deepspeed_config(
        config(tmp_path, deepspeed_config=zero(tmp_path, **PUBLISHED)), 2
    )
    assert (taken.batch_size, taken.gradient_accumulation, taken.grad_clip) == (32, 4, 0.5)
    assert (taken.lr, taken.betas, taken.eps) == (5e-5, (0.9, 0.999), 1e-7)
    assert taken.weight_decay == 0  # the default of DeepSpeed's Adam
    assert taken.mixed_precision == ("fp16" if torch.cuda.is_available() else "no")
    assert taken.num_steps == 8
    settings, rates = complete_settings(taken, 2)
    assert settings["train_batch_size"] == 32
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert settings["fp16"]["enabled"] is torch.cuda.is_available()
    assert settings["bf16"] == {"enabled": False}
    assert not {"optimizer", "scheduler"} & settings.keys()
    assert rates is not None


def test_what_the_yaml_says_otherwise_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = zero(tmp_path, **PUBLISHED | {"fp16": {"enabled": False}, "bf16": {"enabled": True}})
    same = {"weight_decay": 0.0, "betas": (0.9, 0.999), "lr_schedule": "one_cycle"}
    apply_deepspeed_config(config(tmp_path, batch_size=16, deepspeed_config=file, **same), 1)
    assert caplog.messages == [
        f"{file} overrides the YAML: lr 5e-05 for 0.01, "
        "OneCycle for lr_schedule one_cycle, OneCycle for warmup_steps 2"
    ]
    caplog.clear()
    auto = {key: "auto" for key in PUBLISHED if key.startswith(("train", "gradient"))}
    wanted = config(tmp_path, deepspeed_config=zero(tmp_path, **auto))
    assert apply_deepspeed_config(wanted, 1) == wanted
    assert apply_deepspeed_config(config(tmp_path), 1) == config(tmp_path)
    assert caplog.messages == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there fp16 is computed")
def test_fp16_without_a_gpu_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = zero(tmp_path, fp16={"enabled": True})
    assert (
        apply_deepspeed_config(config(tmp_path, deepspeed_config=file), 1).mixed_precision == "no"
    )
    assert caplog.messages == [f"{file}: fp16 needs a GPU; this training runs in float32"]


def test_one_cycle_is_deepspeed_s(tmp_path: Path) -> None:
    taken = apply_deepspeed_config(
        config(tmp_path, deepspeed_config=zero(tmp_path, **PUBLISHED)), 1
    )
    _, rates = complete_settings(taken, 1)
    assert rates is not None
    expected = {  # from 1e-5 to 5e-5 and back, then a slow decay
        0: (0.2, 0.99), 1000: (0.6, 0.92), 2000: (1.0, 0.85), 3000: (0.6, 0.92),
        4000: (0.2, 0.99), 14_000: (0.2 / 1.001, 0.99), 1: (0.2, 0.99),
    }  # fmt: skip
    for step, (factor, momentum) in expected.items():  # in any order: a function of the step
        found, betas = rates(step)
        assert found == pytest.approx(factor), step
        assert betas == pytest.approx((momentum, 0.99)), step


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage should be 1, 2 or 3"),
        ({"train_batch_size": "8"}, 'train_batch_size should be a whole number or "auto"'),
        (
            {"train_batch_size": 9, "train_micro_batch_size_per_gpu": 2},
            "train_batch_size is 9, but .* x 2 process.* is 8",
        ),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation: .*greater than or equal to 1"),
        ({"gradient_clipping": 0}, "grad_clip: .*greater than 0"),
        ({"optimizer": []}, "optimizer and its params should be objects"),
        ({"optimizer": {"type": "Lion"}}, "optimizer.type should be Adam or AdamW, not 'Lion'"),
        (
            {"optimizer": {"type": "Adam", "params": {"momentum": 1}}},
            "optimizer.params.momentum is unknown: lr, betas, eps, weight_decay",
        ),
        (
            {"optimizer": {"type": "Adam", "params": {"adam_w_mode": False, "weight_decay": 1}}},
            "optimizer.params.adam_w_mode should be true",
        ),
        ({"optimizer": {"type": "Adam", "params": {"lr": "fast"}}}, "lr: .*valid number"),
    ],
)
def test_settings_that_cannot_be_taken(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    file = zero(tmp_path, **settings)
    wanted = config(tmp_path, gradient_accumulation=2, deepspeed_config=file)
    with pytest.raises(ConfigError, match=f"{file}: {message}"):
        apply_deepspeed_config(wanted, 2)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"type": "Cosine"}, "scheduler.type 'Cosine' should be one of .*OneCycle"),
        ({"type": "OneCycle"}, "scheduler.params: .*cycle_min_lr"),
        ({"type": "WarmupLR", "params": {"warmup_num_steps": 0}}, "scheduler.params: .*positive"),
    ],
)
def test_schedulers_that_cannot_be_taken(
    tmp_path: Path, scheduler: dict[str, Any], message: str
) -> None:
    file = zero(tmp_path, scheduler=scheduler)
    with pytest.raises(ConfigError, match=f"{file}: {message}"):
        complete_settings(config(tmp_path, deepspeed_config=file), 1)


def test_a_configuration_that_took_nothing_is_not_trained(tmp_path: Path) -> None:
    file = zero(tmp_path, **PUBLISHED)
    with pytest.raises(ConfigError, match=f"{file}: .* is .*, but .* in the configuration"):
        complete_settings(config(tmp_path, deepspeed_config=file), 1)


def test_the_shipped_settings_are_completed(tmp_path: Path) -> None:
    for name in ("train_zero1", "train_zero2_offload", "train_zero3"):
        file = ROOT / f"configs/deepspeed/{name}.json"
        wanted = config(tmp_path, batch_size=24, deepspeed_config=file)
        assert apply_deepspeed_config(wanted, 3) == wanted
        settings, rates = complete_settings(wanted, 3)
        assert settings["train_micro_batch_size_per_gpu"] == 8
        assert "auto" not in json.dumps(settings)
        assert rates is None
    for text, message in (("{", "is not valid JSON"), ("[]", "should be 1, 2 or 3")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            apply_deepspeed_config(config(tmp_path, deepspeed_config=tmp_path / "bad.json"), 1)
    with pytest.raises(ConfigError, match="cannot be read"):
        apply_deepspeed_config(config(tmp_path, deepspeed_config=tmp_path / "none.json"), 1)


def test_the_program_takes_them(tmp_path: Path) -> None:
    file = zero(tmp_path, optimizer={"type": "Lion"})
    (tmp_path / "ae.yaml").write_text(
        f"task: autoencoder\nlog_dir: run\nnum_steps: 1\nbatch_size: 1\nlr: 1\n"
        f"deepspeed_config: {file}\n"
    )
    done = run_program(tmp_path, "train", "--config", "ae.yaml")
    assert_one_line(done, 2, f"{file}: optimizer.type should be Adam or AdamW, not 'Lion'")


@pytest.mark.slow
def test_deepspeed_s_one_cycle_takes_the_steps_of_ours(tmp_path: Path) -> None:
    cycle = {"cycle_first_step_size": 3, "cycle_min_lr": 2e-3, "cycle_max_lr": 1e-2}
    scheduler = {"type": "OneCycle", "params": cycle | {"cycle_momentum": False}}
    adam = {"type": "Adam", "params": {"lr": 1e-2}}
    file = zero(tmp_path, optimizer=adam, scheduler=scheduler, train_micro_batch_size_per_gpu=4)
    theirs = apply_deepspeed_config(config(tmp_path / "theirs", deepspeed_config=file), 2)
    (lines,) = launch(theirs)
    ours = config(
        tmp_path / "ours", lr_schedule="one_cycle", warmup_steps=3, lr_floor=0.2, weight_decay=0,
        betas=(0.9, 0.999),
    )  # fmt: skip
    alone = run(ours)
    rates = [0.002, 0.014 / 3, 0.022 / 3, 0.01, 0.022 / 3, 0.014 / 3, 0.002, 0.002]
    for curve_of in (lines, alone):
        assert [line["lr"] for line in curve_of] == pytest.approx(rates, rel=1e-3)
    for step, figures in curve(lines).items():
        assert figures == pytest.approx(curve(alone)[step], rel=1e-3), step
