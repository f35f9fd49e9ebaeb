"""What every study leaves: a report, its table for people, and a figure."""

import numpy as np

from nanoreason.evaluate import interval_of_mean
from nanoreason.run import say, write_json


def rounded(values):
    """Numbers as floats of four digits, for a report."""
    return [round(float(value), 4) for value in values]


def with_intervals(values):
    """{"acc": means over P problems, "ci": their 95% intervals}, one per n; values (P, ns)."""
    return dict(acc=rounded(values.mean(0)), ci=[interval_of_mean(column) for column in values.T])


def mean_tokens(tokens):
    """Mean number of tokens, to one digit."""
    return round(float(np.mean(tokens)), 1)


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


def step_auc(report):
    """Mean AUC over the positions of steps. report: of train_prm.py."""
    aucs = []
    for where, figures in report["test"]["positions"].items():
        if where.startswith("step") and figures["auc"] is not None:
            aucs.append(figures["auc"])
    return float(np.mean(aucs))


def publish(name, report, markdown, draw, out):
    """Write NAME.json, NAME.md and NAME.png into the folder `out`, and print the table.

    markdown: report -> text; draw: (report, path) -> path.
    """
    write_json(out / f"{name}.json", report)
    text = markdown(report)
    (out / f"{name}.md").write_text(text + "\n")
    draw(report, out / f"{name}.png")
    say(text)
