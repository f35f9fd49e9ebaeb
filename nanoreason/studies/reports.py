"""What every study leaves: a report, its table for people, and a figure."""

import json
from pathlib import Path

import numpy as np

from nanoreason.evaluate import interval_of_mean
from nanoreason.flags import check_output
from nanoreason.run import say, write_json

# Numbers


def rounded(values):
    """Numbers as floats of four digits, for a report."""
    return [round(float(value), 4) for value in values]


def with_intervals(values):
    """{"acc": means over P problems, "ci": their 95% intervals}, one per n; values (P, ns)."""
    return dict(acc=rounded(values.mean(0)), ci=[interval_of_mean(column) for column in values.T])


def mean_tokens(tokens):
    """Mean number of tokens, to one digit."""
    return round(float(np.mean(tokens)), 1)


def grouped(rows, key):
    """{value of the key: its rows}, in order of appearance. rows: dictionaries."""
    groups = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


# Tables


def percent(value, interval):
    """A share and its interval as text.     0.5, [0.4, 0.6]  ->  "50.0 [40.0, 60.0]" """
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def table_lines(heads, rows):
    """Lines of a Markdown table. heads: texts; rows: lists of as many cells.

    ["n", "accuracy"], [[1, "50.0"]]  ->  ["| n | accuracy |", "| --- | --- |", "| 1 | 50.0 |"]
    """
    rule = ["---"] * len(heads)
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in (heads, rule, *rows)]


def table_and_note(heads, rows, note):
    """A Markdown table and the sentence below it, as one text."""
    return "\n".join([*table_lines(heads, rows), "", note])


# Figures


def band(axis, x, figures, color, label, style="o-"):
    """A curve with its 95% intervals. figures: of `with_intervals`."""
    low, high = np.array(figures["ci"]).T
    axis.plot(x, figures["acc"], style, ms=4, color=color, label=label)
    axis.fill_between(x, low, high, color=color, alpha=0.12, lw=0)


def seeds_and_means(axis, groups, color, label):
    """A dot per seed and a curve through their means. groups: [(x of the seeds, y of them)]."""
    for x, y in groups:
        axis.plot(x, y, ".", ms=5, alpha=0.5, color=color)
    x_means = [np.mean(x) for x, _ in groups]
    y_means = [np.mean(y) for _, y in groups]
    axis.plot(x_means, y_means, "o-", ms=4, color=color, label=label)


def legend_beside(axis):
    """The legend to the right of an axis."""
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))


# All of it


def publish(name, report, markdown, draw, out):
    """Write NAME.json, NAME.md and NAME.png into the folder `out`, and print the table.

    markdown: report -> text; draw: (report, path) -> path. Both get the report as it comes back
    from JSON, in which every key is text.
    """
    out = Path(out)
    write_json(out / f"{name}.json", report)
    report = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    text = markdown(report)
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    draw(report, out / f"{name}.png")
    say(text)


def make_study(studies, config, setup):
    """Make the report of --study, and publish it in --out.

    studies: {--study: (makes a report of config and setup, its table, its figure)}.
    """
    check_output(config.out, "out", folder=True)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    study, markdown, draw = studies[config.study]
    publish(config.study, study(config, setup), markdown, draw, config.out)
