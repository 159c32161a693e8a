"""`demo-t2v info`, as people and scripts run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demo_t2v.pipeline import DemoPipeline
from helpers import in_process
from helpers.program import assert_one_line, run


def info(start: Any, folder: Path, *words: object) -> dict[str, Any]:
    done = start(folder, "info", "--device", "cpu", "--json", *words)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_the_figures(tmp_path: Path, tiny_folder: Path, tiny_pipeline: DemoPipeline) -> None:
    report = info(run, tmp_path, "--model", tiny_folder, "--dtype", "bfloat16")
    for part in report["parts"]:
        module = getattr(tiny_pipeline, part["name"])
        assert part["class"] == type(module).__name__
        assert part["parameters"] == module.num_parameters()
        assert part["bytes"] == 2 * part["parameters"]
    assert len(report["parts"]) == 4
    assert report["video"] == {"batch_size": 1, "frames": 4, "height": 32, "width": 32}
    assert report["device"]["kind"] == "cpu"
    assert report["device"]["bytes"] > 2**28
    assert all(
        plan["fits"] == (plan["peak"] <= report["device"]["bytes"]) for plan in report["plans"]
    )
    larger = info(
        in_process.run, tmp_path, "--model", tiny_folder, "--frames", "64", "--height", "512"
    )
    assert larger["video"] == {"batch_size": 1, "frames": 64, "height": 512, "width": 32}
    assert larger["plans"][0]["peak"] > report["plans"][0]["peak"]


def test_the_tables(tmp_path: Path) -> None:
    """The built-in model by default."""
    done = in_process.run(tmp_path, "info", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for text in ("DemoUNet", "5.19", "1 x 16 frames, 128x128", "all parts in memory", "yes"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--model", "nowhere"), ["nowhere: is no model"]),
        (("--frames", "0"), ["num_frames", "at least 1, not 0"]),
        (("--height", "0"), ["height", "at least 8, not 0"]),
        (("--dtype", "int8"), ["dtype", "float16, not int8"]),
    ],
)
def test_bad_input(tmp_path: Path, words: tuple[str, ...], parts: list[str]) -> None:
    assert_one_line(in_process.run(tmp_path, "info", *words), 2, *parts)
