"""Write the tables of the built-in models' sprite scores into docs/sprites.md.

    python scripts/score_tables.py               from the scores that ship with the models
    python scripts/score_tables.py --evaluate    measure all models before

`--evaluate` makes 324 videos by each model and replaces the scores that ship.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from demo_t2v.checkpoints.resolve import BUILT_IN
from demo_t2v.core.atomic_io import atomic_write
from demo_t2v.evaluation.report import Proportion, Report, accuracies, read_report, save_report
from demo_t2v.evaluation.sprites.benchmark import evaluate

SCORES = {
    "sprites": "score.json",
    "sprites-fast": "score-fast.json",
    "sprites-base": "score-base.json",
}
"""Files beside the models."""
PAGE = Path(__file__).parent.parent / "docs" / "sprites.md"
BLOCK = re.compile(r"(?<=<!-- score tables -->\n).*?(?=<!-- end of score tables -->)", re.DOTALL)
"""What `score_tables` gives, between two comments of the page."""
CRITERIA = ("motion", "content", "both")


def score_file(model: str) -> Path:
    """The score that ships with a built-in model."""
    return BUILT_IN[model].parent / SCORES[model]


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
    parser.add_argument("--evaluate", action="store_true", help="measure both models before")
    if parser.parse_args().evaluate:
        for model in SCORES:
            save_report(evaluate(model), score_file(model))
    block = score_tables(read_report(score_file(model)) for model in SCORES)
    page, count = BLOCK.subn(lambda _: block, PAGE.read_text(encoding="utf-8"))
    if count != 1:
        parser.error(f"{PAGE}: has no comments around the tables")
    with atomic_write(PAGE) as partial:
        partial.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
