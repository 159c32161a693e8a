"""Measures clips read per second on one core, and the memory of the process over many clips.

Clips of 16 frames, three a second, 256x256, from random starts in one 720p H.264 file of moving
texture, 30 frames a second and a keyframe every two seconds. This project (A) is compared with
installed libraries that read frames by index (B), in the order A B A B with the same starts: opencv
seeks to the first frame and grabs the following ones, decord gets all indices at once. Each has one
thread. Then many clips of small videos are read.

    python benchmarks/read_clips.py [--seconds 20] [--clips 8] [--rounds 3] [--memory 10000]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from demo_t2v.data.clips import VideoClips, write_sprite_dataset
from demo_t2v.data.video import Sampling, sample_video

RATE, HEIGHT, WIDTH, SIDE = 30, 720, 1280, 256
SAMPLING = Sampling(16, 3.0, SIDE)
SCALED = round(SIDE * WIDTH / HEIGHT)  # the width when the height is SIDE
Reader = Callable[[Path, int, int], NDArray[np.uint8]]


def write_texture(file: Path, seconds: int) -> None:
    """A grainy texture that moves over the screen."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    texture = np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8))
    texture = texture // 2 + rng.integers(0, 60, texture.shape, dtype=np.uint8)
    with av.open(str(file), "w") as container:
        options = {"preset": "veryfast", "g": str(2 * RATE)}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(seconds * RATE):
            moved = np.roll(texture, (number, 3 * number), axis=(0, 1))
            frame = av.VideoFrame.from_ndarray(moved)
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def ours(file: Path, _total: int, seed: int) -> NDArray[np.uint8]:
    return sample_video(file, SAMPLING, np.random.default_rng(seed))


def indices(total: int, seed: int) -> list[int]:
    return SAMPLING.indices(total, Fraction(RATE), np.random.default_rng(seed))


def with_opencv() -> Reader:
    import cv2

    cv2.setNumThreads(1)

    def read(file: Path, total: int, seed: int) -> NDArray[np.uint8]:
        one_thread = [cv2.CAP_PROP_N_THREADS, 1]
        capture = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG, one_thread)
        selected, frames = indices(total, seed), []
        capture.set(cv2.CAP_PROP_POS_FRAMES, selected[0])
        for number in range(selected[0], selected[-1] + 1):
            capture.grab()
            if number in selected:
                frame = cv2.resize(capture.retrieve()[1], (SCALED, SIDE), cv2.INTER_AREA)
                frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        capture.release()
        return cropped(np.stack(frames))

    return read


def with_decord() -> Reader:
    import decord

    def read(file: Path, total: int, seed: int) -> NDArray[np.uint8]:
        video = decord.VideoReader(str(file), width=SCALED, height=SIDE, num_threads=1)
        return cropped(video.get_batch(indices(total, seed)).asnumpy())

    return read


def cropped(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    left = (frames.shape[2] - SIDE) // 2
    return frames[:, :, left : left + SIDE]


def rate(read: Reader, file: Path, total: int, seeds: range) -> float:
    """Clips a second."""
    started = time.perf_counter()
    for seed in seeds:
        assert read(file, total, seed).shape == (16, SIDE, SIDE, 3)
    return len(seeds) / (time.perf_counter() - started)


def compare(console: Console, file: Path, total: int, clips: int, rounds: int) -> None:
    table = Table(title=f"clips a second on one core, {platform.machine()}, PyAV {av.__version__}")
    for column in ("round", "other", "ours", "the other", "ours / other"):
        table.add_column(column, justify="right")
    for name, make in (("opencv", with_opencv), ("decord", with_decord)):
        try:
            other = make()
        except ImportError:
            console.print(f"{name} is not installed: skipped")
            continue
        difference = np.abs(ours(file, total, 0).astype(float) - other(file, total, 0)).mean()
        ratios = []
        for number in range(rounds):
            seeds = range(number * clips, (number + 1) * clips)
            a, b = rate(ours, file, total, seeds), rate(other, file, total, seeds)
            ratios.append(a / b)
            table.add_row(str(number + 1), name, f"{a:.2f}", f"{b:.2f}", f"{a / b:.2f}")
        median = statistics.median(ratios)
        console.print(f"{name}: median ratio {median:.2f}, mean difference {difference:.1f} of 255")
    if table.rows:
        console.print(table)
    else:
        alone = rate(ours, file, total, range(rounds * clips))
        console.print(f"ours alone: {alone:.2f} clips a second")


def watch_memory(console: Console, folder: Path, count: int) -> None:
    import psutil

    captions = write_sprite_dataset(folder, 8, frames=32, fps=6)
    clips, process = VideoClips(captions, folder / "videos", resolution=64), psutil.Process()
    for number in range(count + 1):
        if number % max(1, count // 10) == 0:
            console.print(f"{number:6d} clips: {process.memory_info().rss / 2**20:.1f} MiB")
        clips.clip(number % len(clips), seed=number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=20, help="of video")
    parser.add_argument("--clips", type=int, default=8, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=10_000, help="clips of the memory check")
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "texture.mp4"
        if args.rounds:
            write_texture(file, args.seconds)
            megabits = file.stat().st_size * 8e-6 / args.seconds
            console.print(f"{args.seconds} s of video, {megabits:.1f} Mbit a second")
            compare(console, file, args.seconds * RATE, args.clips, args.rounds)
        if args.memory:
            watch_memory(console, Path(scratch), args.memory)


if __name__ == "__main__":
    main()
