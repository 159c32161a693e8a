"""Compares the backends' videos, and measures the gain of processes and of overlapping phases.

    python benchmarks/many_prompts.py [--prompts 100] [--repeat 2] [--steps 4] [--rounds 3]

The same jobs run in one process, in two of torchrun, in two of DeepSpeed and in two actors of Ray;
each file must exist once, and its bytes are compared. Then, in the order A B A B, two processes of
one thread are compared with one process of two threads, including their start. Last, one process of
one thread decodes and writes while the next batch is denoised, or does one after the other.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from demo_t2v.checkpoints.resolve import resolve
from demo_t2v.config import InferenceConfig
from demo_t2v.evaluation.sprites.prompts import list_prompts
from demo_t2v.inference.jobs import Failure, Job, Video, make_jobs, read_prompts, split_batches
from demo_t2v.inference.outputs import MANIFEST, OutputFolder
from demo_t2v.inference.runner import PENDING, Runner

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
ONE = [sys.executable, "-m", "demo_t2v", "generate"]
TWO = [str(BIN / "torchrun"), "--nproc-per-node", "2", "--standalone", *ONE[1:]]
DEEPSPEED = ["bash", str(ROOT / "scripts" / "inference_deepspeed.sh"), "--num_accelerators", "2"]
BACKENDS = {
    "one process": (ONE, []),
    "torchrun, two": (TWO, []),
    "DeepSpeed, two": (
        [*DEEPSPEED, "--"],
        [f"deepspeed_config={ROOT / 'configs' / 'deepspeed' / 'inference.json'}"],
    ),
    "Ray, two actors": (ONE, ["--engine", "ray", "workers=2"]),
}


def timed(
    command: list[str], out: Path, file: Path, steps: int, repeat: int, threads: int
) -> float:
    """Seconds of a command."""
    options = ["--prompts", file, "--repeat", repeat, "--steps", steps, "--out", out, "--overwrite"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "RAY_worker_niceness": "0"}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    began = time.monotonic()
    done = subprocess.run(
        [*command, *map(str, options)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return time.monotonic() - began


def made_files(folder: Path) -> dict[str, str]:
    """The hash of each file; each must be in the manifest once."""
    entries = [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]
    times = Counter(entry["file"] for entry in entries)
    if set(times.values()) != {1} or set(times) != {p.name for p in folder.glob("*.mp4")}:
        raise RuntimeError(f"{folder}: not every file exists once")
    return {entry["file"]: entry["sha256"] for entry in entries}


def compare_backends(console: Console, scratch: Path, file: Path, steps: int, repeat: int) -> None:
    table = Table(title=f"{len(read_prompts(file))} prompts x {repeat}, {steps} steps")
    for column in ("backend", "seconds", "files, each once", "same bytes as one process"):
        table.add_column(column, justify="right")
    reference: dict[str, str] = {}
    for number, (name, (command, options)) in enumerate(BACKENDS.items()):
        out = scratch / str(number)
        seconds = timed([*command, *options], out, file, steps, repeat, 1)
        files = made_files(out)
        reference = reference or files
        same = sum(reference.get(name) == content for name, content in files.items())
        table.add_row(name, f"{seconds:.0f}", str(len(files)), f"{same} of {len(reference)}")
    console.print(table)


def compare_processes(
    console: Console, scratch: Path, file: Path, steps: int, repeat: int, rounds: int
) -> None:
    count, ratios = len(read_prompts(file)) * repeat, []
    for _ in range(rounds):
        two = timed(TWO, scratch / "a", file, steps, repeat, 1)
        one = timed(ONE, scratch / "b", file, steps, repeat, 2)
        ratios.append(one / two)
        rates = f"{60 * count / two:.1f} and {60 * count / one:.1f} videos a minute"
        console.print(f"two processes of one thread, one of two: {rates}, {one / two:.2f}")
    console.print(f"two processes against one: {statistics.median(ratios):.2f} (median)")


def compare_overlap(console: Console, scratch: Path, file: Path, steps: int, rounds: int) -> None:
    torch.set_num_threads(1)
    config = InferenceConfig(device="cpu", num_inference_steps=steps)
    jobs = make_jobs(read_prompts(file)[:24], 1, 0)
    settings = {"fps": 8, "format": "mp4", "height": 64, "width": 64}
    folder = OutputFolder(scratch / "overlap", "sprites", settings)
    folder.prepare()
    runner = Runner.load(resolve(config.model), config)

    def save(result: Video | Failure) -> None:
        assert isinstance(result, Video)
        folder.save(result.job, result.frames, result.seconds)

    batches = split_batches(jobs, config.batch_size)
    seconds: dict[int, list[float]] = {PENDING: [], 0: []}
    for _ in range(rounds):
        for pending, times in seconds.items():
            began = time.monotonic()
            deque(replace(runner, max_pending=pending).run(batches, save), maxlen=0)
            times.append(time.monotonic() - began)
    ratios = [b / a for a, b in zip(seconds[PENDING], seconds[0], strict=True)]
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    median = statistics.median(ratios)
    console.print(f"overlapping against sequential, {steps} steps: {shown}; median {median:.2f}")
    console.print(f"upper limit of the gain: {limit_of_overlap(runner, folder, jobs[:8]):.2f}")


def limit_of_overlap(runner: Runner, folder: OutputFolder, jobs: list[Job]) -> float:
    """The time of denoising and decoding over the time of denoising."""
    denoising, decoding = 0.0, 0.0
    for job in jobs:
        began = time.monotonic()
        done = runner.denoise([job])
        denoised = time.monotonic()
        assert done.latents is not None
        (video,) = runner.decode(done.latents)
        assert not isinstance(video, ArithmeticError)
        folder.save(job, video, done.seconds)
        denoising += denoised - began
        decoding += time.monotonic() - denoised
    return (denoising + decoding) / denoising


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="denoising steps of the comparisons")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["backends", "processes", "overlap"])
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        file = scratch / "prompts.csv"
        with file.open("w", newline="") as stream:
            rows = [(case.id, case.prompt) for case in list_prompts(args.prompts, 0)]
            csv.writer(stream).writerows([("id", "prompt"), *rows])
        if args.only in (None, "backends"):
            compare_backends(console, scratch, file, args.steps, args.repeat)
        if args.only in (None, "processes"):
            compare_processes(console, scratch, file, args.steps, 1, args.rounds)
        if args.only in (None, "overlap"):
            compare_overlap(console, scratch, file, args.steps, args.rounds)


if __name__ == "__main__":
    main()
