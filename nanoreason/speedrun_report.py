"""What the speedrun's stages left, as one report: report.json, report.md and figures."""

import shlex
from pathlib import Path

import numpy as np
import torch

from nanoreason import plots
from nanoreason.evaluate import wilson
from nanoreason.pool import log_fit
from nanoreason.run import read_json, read_metrics
from nanoreason.stages import hardware, wall
from nanoreason.tasks import verify

STAGES = ("base", "zero", "cold", "rl", "final")
TAUGHT = ("base", "cold", "rl", "final")  # R1's line, whose general ability is measured
RL_FAMILIES = ("multiplication", "chain", "percent", "word", "equation")
CHANGES = ("solve_rate", "length", "thinks", "verification", "self_correction", "another_way",
           "entropy", "kl")  # metrics of RL whose first and last steps are reported
# titles of the rules of best-of-N that report.md shows
RULES = {"coverage": "coverage", "vote": "vote", "orm": "ORM", "weighted-orm": "vote by ORM",
         "prm-last": "PRM", "weighted-prm-last": "vote by PRM"}


def interval(share, n):
    """{'acc', 'n', 'ci'} of a share of n problems, rounded for reports.

    The share may be one of samples. With several of each problem the interval, which knows their
    mean alone, is wider than it need be, and never narrower.
    """
    low, high = wilson(share * n, n)
    return dict(acc=round(share, 4), n=n, ci=[round(low, 4), round(high, 4)])


def stage_figures(out, name, log):
    """One entry of the report's stages: parameters, seconds, greedy and sampled accuracy, tokens,
    behaviours."""
    report = read_json(out / name / "report.json")
    test = read_json(out / name / "test.json")
    general = dict(families={}, refused={})
    if name in TAUGHT:
        general = read_json(out / name / "general.json")
    rl = [test["families"][family] for family in RL_FAMILIES]
    n = sum(figures["n"] for figures in rl)
    sampled = test["sampled"]
    shares = [sampled["families"][family] for family in RL_FAMILIES]
    # Intervals count problems, as if of one family: the mean over families is the same number here.
    greedy_ci = interval(sum(f["acc"] * f["n"] for f in rl) / n, n)["ci"]
    sampled_ci = interval(sum(s * f["n"] for s, f in zip(shares, rl)) / n, n)["ci"]
    return dict(
        name=name, params=report["params"], seconds=log[name]["seconds"], levels=test["levels"],
        accuracy=test["families"] | general["families"], refused=general["refused"],
        greedy_accuracy=dict(
            acc=round(float(np.mean([f["acc"] for f in rl])), 4), n=n, ci=greedy_ci
        ),
        sampled_accuracy=dict(
            acc=round(float(np.mean(shares)), 4), n=n, ci=sampled_ci, families=sampled["families"]
        ),
        mean_tokens=sampled["mean_tokens"], greedy_tokens=test["mean_tokens"],
        behaviours=sampled["behaviours"],
    )


def ends(rows, key, k=5):
    """Mean of a metric over the first k and the last k steps that have it."""
    values = [row[key] for row in rows if row[key] is not None] or [0.0]
    return [round(float(np.mean(part)), 3) for part in (values[:k], values[-k:])]


def best_of_n(out, name):
    """What N samples of a model buy, with a fit to log N."""
    figures = read_json(out / name / "best_of_n.json")
    best = figures["scaling"] | {"levels": figures["levels"], "model": name}
    best["temperature"] = figures["sampled"]["temperature"]
    best["log_fit"] = {key: log_fit(best["ns"], best[key]) for key in ("coverage", "vote")}
    return best


def demos(out, problems):
    """The final model's answers to the questions of the front page."""
    found = []
    for i, problem in enumerate(problems):
        demo = read_json(out / f"demo{i}.json")
        correct = bool(demo["answer"] and verify(problem, demo["answer"]))
        response = f"{demo['thinking']}\nAnswer: {demo['answer']}".strip()
        found.append(dict(question=problem.question, response=response, correct=correct,
                          method=demo["method"], n=demo["n"]))
    return found


def distillation(out):
    """The student beside its teacher."""
    student = read_json(out / "student" / "report.json")
    learned = student["student_figures"]
    teacher = student["teacher_figures"]
    return dict(
        student=student["student"], params=student["params"], traces=student["traces"],
        accuracy=learned["greedy"], mean_tokens=learned["mean_tokens"],
        mean_flops=learned["mean_flops"], teacher_params=teacher["params"],
        teacher_accuracy=teacher["greedy"], teacher_tokens=teacher["mean_tokens"],
        teacher_flops=teacher["mean_flops"],
    )


def build_report(config, log, problems, commands):
    """report.json from what the stages left. problems: those of the demos; commands: {stage: words
    of its command}."""
    out = Path(config.out)
    changes = {}
    for name in ("zero", "rl"):
        rows = read_metrics(out / name / "metrics.jsonl")
        changes[name] = {key: ends(rows, key) for key in CHANGES}
    reward_models = {}
    for name in ("orm", "prm"):
        reward_models[name] = read_json(out / name / "report.json")["test"]["positions"]
    return dict(
        seed=config.seed, hardware=hardware(), torch=torch.__version__,
        seconds=round(wall(log), 1),
        peak_memory_gib=max(entry["peak_memory_gib"] for entry in log.values()),
        quick=config.quick, stages=[stage_figures(out, name, log) for name in STAGES],
        rl_first_and_last_steps=changes, best_of_n=best_of_n(out, "cold"),
        best_of_n_harder=best_of_n(out, "rl"),
        rejection=read_json(out / "rejection" / "provenance.json"), verifiers=reward_models,
        distillation=[distillation(out)], demo=demos(out, problems),
        commands={name: "python " + shlex.join(words) for name, words in commands.items()},
        stage_seconds={name: entry["seconds"] for name, entry in log.items()},
    )


def draw_figures(out, report):
    """The figures beside the report."""
    metrics = {name: read_metrics(out / name / "metrics.jsonl") for name in STAGES}
    sft = {"base model": metrics["base"], "cold start": metrics["cold"],
           "final SFT": metrics["final"]}
    plots.sft_loss(sft, out / "loss.png")
    rl = {"R1-Zero: from the base": metrics["zero"], "R1: from the cold start": metrics["rl"]}
    plots.rl_figures(rl, out)
    plots.stage_bars(report["stages"], out / "stages.png")
    curves = {}
    for best in (report["best_of_n"], report["best_of_n_harder"]):
        curves[f"{best['model']}, {levels_in_words(best['levels'])}"] = best
    plots.scaling(curves, out / "best_of_n.png")


def percent(figures):
    """Accuracy with its interval, in percent: '87.4 [85.2, 89.3]'."""
    low, high = figures["ci"]
    return f"{100 * figures['acc']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def levels_in_words(levels):
    """[3] -> 'level 3', [1, 2, 4] -> 'levels 1, 2 and 4'."""
    *others, last = map(str, levels)
    return f"levels {', '.join(others)} and {last}" if others else f"level {last}"


def table(header, rows):
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def stage_lines(report):
    """Accuracy of every stage, in all and by family."""
    stages = report["stages"]
    rows = []
    for s in stages:
        rows.append([s["name"], percent(s["greedy_accuracy"]), percent(s["sampled_accuracy"]),
                     f"{s['mean_tokens']:.1f}", f"{s['behaviours']['thinks']:.2f}",
                     f"{s['seconds']:.0f}"])
    header = ["stage", "greedy", "sampled at temperature 1", "tokens per response, all families",
              "thinks", "seconds"]
    lines = table(header, rows)
    rows = []
    for family, figures in stages[0]["accuracy"].items():
        accuracies = [s["accuracy"].get(family) for s in stages]
        cells = [percent(accuracy) if accuracy else "" for accuracy in accuracies]
        rows.append([family, str(figures["n"]), *cells])
    lines += ["", "Greedy accuracy by family:", ""]
    return lines + table(["family", "n", *(s["name"] for s in stages)], rows)


def rl_lines(report):
    """What reinforcement learning changed."""
    base, zero, cold, rl, _ = report["stages"]
    steps = report["rl_first_and_last_steps"]["zero"]
    before, after = (100 * s["sampled_accuracy"]["acc"] for s in (base, zero))
    cold_sampled, rl_sampled = (100 * s["sampled_accuracy"]["acc"] for s in (cold, rl))
    cold_greedy, rl_greedy = (100 * s["greedy_accuracy"]["acc"] for s in (cold, rl))
    times = f", {after / before:.1f} times the base's" if before else ""
    return [
        f"R1-Zero: sampled accuracy {before:.1f} -> {after:.1f}{times}. Over the run (mean of the "
        "first 5 steps -> of the last 5, or of as many as there are): response length "
        f"{steps['length'][0]:.1f} -> {steps['length'][1]:.1f} tokens, share that thinks "
        f"{steps['thinks'][0]:.2f} -> {steps['thinks'][1]:.2f}.",
        "",
        f"R1: sampled accuracy {cold_sampled:.1f} -> {rl_sampled:.1f} "
        f"({rl_sampled - cold_sampled:+.1f} points over the cold start), greedy "
        f"{cold_greedy:.1f} -> {rl_greedy:.1f}.",
    ]


def final_lines(report):
    """What rejection sampling kept, what the final SFT keeps and gains, what the student is
    worth."""
    rl, final = (s for s in report["stages"] if s["name"] in ("rl", "final"))
    kept = report["rejection"]
    fate = [f"{n} {cause}" for cause, n in kept["fate"].items() if n and cause != "kept"]
    rows = [["these five families, greedy", *(percent(s["greedy_accuracy"]) for s in (rl, final))]]
    families = [("small instructions", "instruct"), ("factual recall", "fact"),
                ("harmful requests refused", "harmful"),
                ("harmless look-alikes answered", "harmless")]
    for title, family in families:
        rows.append([title, *(percent(s["accuracy"][family]) for s in (rl, final))])
    rows.append(["harmless look-alikes refused",
                 *(percent(s["refused"]["harmless"]) for s in (rl, final))])
    rows.append(["tokens per greedy response", *(f"{s['greedy_tokens']:.1f}" for s in (rl, final))])
    (student,) = report["distillation"]
    return [
        f"R1 solved {kept['solved']} of {kept['questions']} training questions; of "
        f"{kept['samples']} samples {kept['traces']} different right ones were kept "
        f"({', '.join(fate)}).",
        "",
        *table(["", "R1", "final"], rows),
        "",
        f"A student of {student['params']:,} parameters, trained on {student['traces']} traces "
        f"from random weights: {percent(student['accuracy'])} with {student['mean_tokens']:.1f} "
        f"tokens and {student['mean_flops'] / 1e6:.1f} MFLOP per question; its teacher, on the "
        f"same questions: {percent(student['teacher_accuracy'])} with "
        f"{student['teacher_tokens']:.1f} and {student['teacher_flops'] / 1e6:.1f}.",
    ]


def best_of_n_lines(best):
    """What N samples of one model buy."""
    rules = [rule for rule in RULES if rule in best]
    rows = []
    for i, n in enumerate(best["ns"]):
        cells = [percent(dict(acc=best[rule][i], ci=best[f"{rule}_ci"][i])) for rule in rules]
        rows.append([str(n), *cells, f"{best['tokens'][i]:.0f}"])
    coverage, vote = (best["log_fit"][name] for name in ("coverage", "vote"))
    return [
        f"Model `{best['model']}`, {levels_in_words(best['levels'])}, {best['problems']} problems, "
        f"temperature {best['temperature']:g}:",
        "",
        *table(["N", *(RULES[rule] for rule in rules), "tokens per problem"], rows),
        "",
        f"Fit a + b ln N: coverage b = {coverage['b']:.3f} (R2 {coverage['r2']:.2f}), "
        f"vote b = {vote['b']:.3f} (R2 {vote['r2']:.2f}).",
        "",
    ]


def markdown(report):
    """report.md: the same figures, for reading."""
    base = report["stages"][0]
    gibibytes = report["peak_memory_gib"]
    memory = f"peak memory {gibibytes} GiB" if gibibytes else "peak memory not measured"
    asked = report["demo"][0]
    lines = [
        f"# A reasoning model from nothing, in {report['seconds'] / 60:.1f} minutes",
        "",
        f"{base['params']:,} parameters, seed {report['seed']}, {report['hardware']}, torch "
        f"{report['torch']}, {memory}. Test problems were never trained on. Accuracy in percent "
        "with 95% Wilson intervals.",
        "",
        f"Five families that RL trains ({', '.join(RL_FAMILIES)}), "
        f"{levels_in_words(base['levels'])}, mean over "
        f"families, n = {base['greedy_accuracy']['n']}:",
        "",
        *stage_lines(report),
        "", "![accuracy by stage](stages.png)", "",
        "## What reinforcement learning did", "",
        *rl_lines(report),
        "", "![reinforcement learning](rl.png)", "", "![behaviours](behaviours.png)", "",
        "## Rejection sampling, final SFT, distillation", "",
        *final_lines(report),
        "", "## Best of N", "",
        "Coverage: some sample is right (unbiased pass@N). Vote: the most frequent answer is "
        "right. ORM, PRM: the reward model's favourite is right, or the vote weighted by its "
        "scores. 95% intervals of means over problems: Wilson's, for as many yes-or-no problems "
        "as would vary as much.",
        "",
        *best_of_n_lines(report["best_of_n"]),
        *best_of_n_lines(report["best_of_n_harder"]),
        "![best of N](best_of_n.png)", "",
        f"## {len(report['demo'])} questions, by a {asked['method']} of {asked['n']}", "",
    ]
    for demo in report["demo"]:
        verdict = "right" if demo["correct"] else "wrong"
        lines += [f"**{demo['question']}** {verdict}", "", "```", demo["response"], "```", ""]
    lines += ["## Seconds and commands", ""]
    for name, text in report["commands"].items():
        lines.append(f"- {report['stage_seconds'][name]:.0f} s: `{text}`")
    return "\n".join([*lines, ""])
