"""Sections of a report as tables of text, in Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from demo_t2v.evaluation.comparison.sections import ModelDifference, Section
from demo_t2v.evaluation.metrics.metric import Better, Figure

ARROWS: Final[Mapping[Better, str]] = {
    "higher": "\N{UPWARDS ARROW}",
    "lower": "\N{DOWNWARDS ARROW}",
    "": "",
}
"""Behind a metric's name: whether higher or lower values are better."""
QUOTED: Final = "quoted"
"""Mark of a column that was not measured here."""
LEVEL: Final = 0.05
"""Adjusted p values below this show a difference."""
TEST_CAPTION: Final = (
    "Paired tests, video by video: the mean difference, the first minus the second model, with its "
    "95 % interval. p is adjusted for all tests of this report (Holm). Below 0.05 models differ."
)
_ABSENT: Final = "-"
_LATEX: Final[Mapping[str, str]] = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # behind a line's end it would be an argument
    ARROWS["higher"]: r"$\uparrow$",
    ARROWS["lower"]: r"$\downarrow$",
}


@dataclass(frozen=True)
class TextTable:
    """Rows of cells. A cell is a text and a detail, such as an interval, which may be empty."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[tuple[str, str]]]


def figures_table(section: Section) -> TextTable:
    """A row for each metric: its name, the number of videos, and a figure of each model."""
    names = [f"{c.name} ({QUOTED})" if c.quoted else c.name for c in section.columns]
    rows = []
    for metric, better in section.better.items():
        figures = [column.figures.get(metric) for column in section.columns]
        counts = sorted({figure.count for figure in figures if figure and figure.count})
        rows.append([
            (f"{metric}\N{NO-BREAK SPACE}{ARROWS[better]}".strip(), ""),
            (" or ".join(map(str, counts)), ""),
            *map(_figure, figures),
        ])  # fmt: skip
    caption = f"{section.title}, with 95 % intervals in brackets."
    return TextTable(caption, ["metric", "videos", *names], rows)


def tests_table(differences: Sequence[ModelDifference]) -> TextTable:
    """A row for each test."""
    head = ("metric", "models", "difference", "videos", "test", "p", "differ")
    rows = [
        [
            (each.metric, ""),
            (f"{each.first} minus {each.second}", ""),
            (number(each.test.difference), _interval(each.test.interval)),
            (str(each.test.count), ""),
            (each.test.method, ""),
            (f"{each.p:.2g}" if each.p >= 0.001 else "< 0.001", ""),
            ("yes" if each.p < LEVEL else "not shown", ""),
        ]
        for each in differences
    ]
    return TextTable(TEST_CAPTION, head, rows)


def section_tables(section: Section) -> Iterator[TextTable]:
    """The figures, and the tests if there are any."""
    yield figures_table(section)
    if section.differences:
        yield tests_table(section.differences)


def number(value: float) -> str:
    """A value with four digits."""
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3e}" if 0 < abs(value) < 0.001 else f"{value:.4g}"


def as_markdown(sections: Sequence[Section]) -> str:
    """The tables and notes as Markdown with the tables of GitHub."""
    blocks = []
    for section in sections:
        blocks.append(f"## {escape_markdown(section.title)}")
        for table in section_tables(section):
            lines = [map(escape_markdown, table.head), ["---", *["---:"] * (len(table.head) - 1)]]
            lines += [[escape_markdown(_joined(*cell)) for cell in row] for row in table.rows]
            blocks.append(escape_markdown(table.caption))
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        blocks += ["\n".join(f"- {escape_markdown(note)}" for note in section.notes)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def as_latex(sections: Sequence[Section]) -> str:
    r"""The tables and notes as LaTeX for \input; it takes the package booktabs."""
    blocks = [r"% This takes \usepackage{booktabs} and \usepackage[T1]{fontenc}."]
    for section in sections:
        for table in section_tables(section):
            cells = [[escape_latex(name) for name in table.head]]
            cells += [[_latex_cell(*cell) for cell in row] for row in table.rows]
            head, *rows = (" & ".join(line) + r" \\" for line in cells)
            blocks.append("\n".join([
                r"\begin{table}", r"  \centering", f"  \\caption{{{escape_latex(table.caption)}}}",
                f"  \\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", r"    \toprule",
                f"    {head}", r"    \midrule", *(f"    {row}" for row in rows),
                r"    \bottomrule", r"  \end{tabular}", r"\end{table}",
            ]))  # fmt: skip
        blocks += [f"{escape_latex(note)}\\par" for note in section.notes]
    return "\n\n".join(blocks) + "\n"


def escape_markdown(text: str) -> str:
    """Text on one line that Markdown, and HTML in it, shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|~#&!$])", r"\\\1", " ".join(text.split()))


def escape_latex(text: str) -> str:
    """Text on one line that LaTeX shows as it is."""
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    return re.sub(r"-(?=-)", "-{}", escaped)  # several hyphens would be a dash


def _figure(figure: Figure | None) -> tuple[str, str]:
    return (_ABSENT, "") if figure is None else (number(figure.value), _interval(figure.interval))


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"({number(interval[0])} to {number(interval[1])})"


def _joined(text: str, detail: str) -> str:
    return f"{text} {detail}".strip()


def _latex_cell(text: str, detail: str) -> str:
    small = f"{{\\footnotesize {escape_latex(detail)}}}" if detail else ""
    cell = _joined(escape_latex(text), small)
    return re.sub(r"(?<![\w}])-(?=\d)", "$-$", cell)  # a minus sign, not a hyphen
