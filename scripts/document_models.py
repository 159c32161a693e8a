"""Measure the built-in models, and make the tables and pictures of the documents from them.

    python scripts/document_models.py                 everything
    python scripts/document_models.py score-tables    from the scores that ship with the models
    python scripts/document_models.py scores page     these parts

The parts are, in this order:

    speed            the calibration of `--speed`, in the model's folder
    scores           the scores that ship with the models: 324 videos by each
    score-tables     their tables in docs/sprites.md
    examples         the web page's example videos
    animations       docs/motion.webp, timeline.webp and handles.webp
    explanation      docs/explain.webp
    sensitivity      the table in docs/evaluation.md, and its chart
    disentanglement  the table in docs/evaluation.md, its chart and the grids
    page             docs/web.png, by Debian's chromium
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.evaluation.report import Proportion, Report, accuracies, read_report, save_report
from demo_t2v.evaluation.sprites.benchmark import evaluate
from demo_t2v.evaluation.sprites.disentanglement import HANDLES

SCORES = {
    "sprites": "score.json",
    "sprites-fast": "score-fast.json",
    "sprites-base": "score-base.json",
}
"""Files beside the models."""
SCRIPTS = Path(__file__).parent
DOCS = SCRIPTS.parent / "docs"
CRITERIA = ("motion", "content", "both")
VARIANTS = (
    "model=sprites-base",
    "model=sprites-fast",
    "motion_strength=1.5",
    "motion_guidance_scale=4",
    "motion_guidance_scale=4 guidance_order=motion",
    "content_guidance_scale=4",
    "bypass_guidance_scale=0.5",
    "speed=1.4x",
)
"""Options with which the disentanglement is measured, beside the defaults."""


def speed() -> None:
    run(SCRIPTS / "calibrate_speed.py", "sprites", "--across", 8, "--others", 8)


def scores() -> None:
    for model in SCORES:
        save_report(evaluate(model), score_file(model))


def write_score_tables() -> None:
    reports = [read_report(score_file(model)) for model in SCORES]
    replace_block(DOCS / "sprites.md", "score tables", score_tables(reports))


def examples() -> None:
    run(SCRIPTS / "example_videos.py")


def animations() -> None:
    for name, options in (
        ("motion", []),
        ("timeline", ["--timelines"]),
        ("handles", ["--handles"]),
    ):
        run(SCRIPTS / "motion_pictures.py", DOCS / f"{name}.webp", *options)


def explanation() -> None:
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "explanation.png"
        prompts = "a frog moves to the left in the sky", "--against", "a frog falls in the sky"
        run("-m", "demo_t2v", "explain", *prompts, "--out", picture)
        save_webp(picture, DOCS / "explain.webp")


def sensitivity() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sensitivity.json"
        files = "--out", file, "--plot", DOCS / "sensitivity.png"
        run("-m", "demo_t2v", "evaluate", "sensitivity", *files)
        report = json.loads(file.read_text(encoding="utf-8"))
    replace_block(DOCS / "evaluation.md", "sensitivity table", sensitivity_table(report))


def disentanglement() -> None:
    command = "-m", "demo_t2v", "evaluate", "disentanglement"
    with tempfile.TemporaryDirectory() as folder:
        grids, file = Path(folder) / "grids.png", Path(folder) / "disentanglement.json"
        run(*command, "--grid", grids)
        save_webp(grids, DOCS / "disentanglement.webp")
        variants = [word for variant in VARIANTS for word in ("--variant", variant)]
        chart = DOCS / "disentanglement_variants.png"
        run(*command, *variants, "--out", file, "--plot", chart)
        report = json.loads(file.read_text(encoding="utf-8"))
    table = disentanglement_table(report["variants"])
    replace_block(DOCS / "evaluation.md", "disentanglement table", table)


def page() -> None:
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "demo_t2v", "web", "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as playwright,
    ):
        picture = Path(folder) / "page.png"
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        visit = browser.new_page(viewport={"width": 1400, "height": 900})
        visit.goto(address)
        visit.get_by_text("a rocket takes off").click()
        visit.locator("#result video").wait_for()
        visit.evaluate("scrollTo(0, 0)")
        visit.wait_for_timeout(2000)  # scrolled, and the video plays
        visit.screenshot(path=picture)
        browser.close()
        server.terminate()
        Image.open(picture).convert("RGB").quantize(256).save(DOCS / "web.png", optimize=True)


PARTS = {
    "speed": speed,
    "scores": scores,
    "score-tables": write_score_tables,
    "examples": examples,
    "animations": animations,
    "explanation": explanation,
    "sensitivity": sensitivity,
    "disentanglement": disentanglement,
    "page": page,
}


def run(*words: Path | str | int) -> None:
    """Run Python with these words behind it."""
    subprocess.run([sys.executable, *map(str, words)], check=True)


def save_webp(picture: Path, target: Path) -> None:
    """Convert a picture to WebP."""
    Image.open(picture).convert("RGB").save(target, quality=80, method=6)


def score_file(model: str) -> Path:
    """The score that ships with a built-in model."""
    return BUILT_IN[model].parent / SCORES[model]


def block(name: str) -> re.Pattern[str]:
    """What stands in a page between the comments of this name."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)


def replace_block(page: Path, name: str, text: str) -> None:
    """Replace what stands in a page between the comments of this name."""
    whole, count = block(name).subn(lambda _: text, page.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(f"{page}: has no comments '{name}'")
    with atomic_write(page) as partial:
        partial.write_text(whole, encoding="utf-8")
    print(f"wrote {page}: {name}", flush=True)


def score_tables(reports: Iterable[Report]) -> str:
    """Tables in Markdown of all models: right videos with 95 % intervals, and by motion."""
    models = [
        subject for report in reports for subject in report.subjects if subject.role == "model"
    ]
    pairs = [
        (f"`{model.name}`", kind, str(len(videos)), *(percent(right[name]) for name in CRITERIA))
        for model in models
        for kind, held_out in (("trained", False), ("held-out", True))
        if (videos := model.subset(held_out))
        for right in [accuracies(videos)]
    ]
    motions = {model.name: model.per_motion() for model in models}
    rows = [
        (
            motion,
            *(
                cell
                for found in motions.values()
                for right, others in [found[motion]]
                for cell in (
                    f"{right.right} of {right.count}",
                    ", ".join(f"{name} {count}" for name, count in others.most_common(3)),
                )
            ),
        )
        for motion in models[0].per_motion()
    ]
    heads = [head for name in motions for head in (f"`{name}`", "seen instead")]
    by_pairs = table(("model", "pairs", "videos", *CRITERIA), pairs)
    return f"\n{by_pairs}\n\n{table(('motion', *heads), rows)}\n\n"


def sensitivity_table(report: Mapping[str, Any]) -> str:
    """Table in Markdown: 1 - cosine of both encoders with 95 % intervals, by part of speech."""
    lists = report["word_lists"]
    rows: dict[str, list[str]] = {}
    for each in report["sensitivities"]:
        kind, part, figure = each["describes"], each["part"], each["cosine"]
        row = rows.setdefault(part, [f"{part} ({kind})", str(len(lists[kind][part]))])
        low, high = figure["interval"]
        row.append(f"{figure['value']:.2g} ({low:.2g} to {high:.2g})")
    heads = "part of speech", "words", "content encoder", "motion encoder"
    return f"\n{table(heads, rows.values())}\n\n"


def disentanglement_table(variants: Iterable[Mapping[str, Any]]) -> str:
    """Table in Markdown: videos with both right in each way, and ratios of one prompt's grid."""
    rows = []
    for variant in variants:
        grids = {grid["handle"]: grid for grid in variant["grids"]}
        counts = [grids[way]["right"]["both"]["right"] if way in grids else "" for way in HANDLES]
        ratios = [grids[HANDLES[0]][f"{name} distance"]["ratio"] for name in ("colour", "track")]
        name = variant["variant"].removeprefix("model=")
        rows.append((f"`{name}`", *map(str, counts), *(f"{ratio:.2g}" for ratio in ratios)))
    return f"\n{table(('', *HANDLES, 'colours', 'tracks'), rows)}\n\n"


def percent(share: Proportion) -> str:
    """The share of right videos with its interval, as `86 % (80 to 90)`."""
    low, high = share.interval
    return f"{share.right / share.count:.0%} ({100 * low:.0f} to {100 * high:.0f})".replace(
        "%", " %"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all of them")
    wanted = parser.parse_args().parts
    if unknown := set(wanted) - PARTS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: must be of {', '.join(PARTS)}")
    for name, part in PARTS.items():
        if name in wanted or not wanted:
            print(f"{name} ...", flush=True)
            part()


if __name__ == "__main__":
    main()
