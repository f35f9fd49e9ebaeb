"""What distillation is worth: students.md, cleaning.md and rejection_against_grpo.md of
notebooks/results.

    python -m nanoreason.studies.students --study sizes
        students of three sizes, on full and on compressed traces, beside plain SFT and beside RL
        of their own
    python -m nanoreason.studies.students --study cleaning
        what becomes of a student when its traces are cleaned, deduplicated, shortened
    python -m nanoreason.studies.students --study rejection
        rejection sampling against GRPO at equal sampled tokens, from one cold start

Models that are missing are trained first, by the scripts, as a user would, as many at once as there
are cores. Each study leaves STUDY.json, STUDY.md and STUDY.png in --out; one that was killed
continues where it stopped.
"""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoreason import checkpoint
from nanoreason.corpus import STYLE_RATES, pick
from nanoreason.evaluate import greedy_figures, held_out_problems, over_seeds
from nanoreason.flags import UserError, flag, listed, parse_config, whole_numbers
from nanoreason.generate import make_sampler
from nanoreason.machine import choose_bf16, generator, run_script, start_machine
from nanoreason.model import PRESETS
from nanoreason.plots import log_x, new_axes, save, seed_spread, styled
from nanoreason.questions import Questions
from nanoreason.run import write_json
from nanoreason.studies.reports import (
    grouped, legend_beside, make_study, seeds_and_means, table_and_note)
from nanoreason.studies.runs import (
    RATES, all_of, check_made, ensure, ensure_all, read_if_made, train, train_base,
    train_cold_start)
from nanoreason.studies.samples import sample_and_check
from nanoreason.tasks import solve
from nanoreason.tokenizer import shipped_tokenizer
from nanoreason.workers import cores, spread

FAMILIES = ("multiplication", "chain", "percent", "word", "equation")
# Traces and RL come from levels 1 and 2; of the bases' worked solutions 16% are of levels 3 to 5.
LEVELS = (1, 2, 3)
LIMIT = 160  # longest response, in tokens
RL = dict(steps=40, batch_size=512, learning_rate=3e-4, kl="none")  # as in the speedrun
TOKENS = (50_000, 100_000, 200_000, 400_000)  # sampled, of --study rejection


@dataclass
class Config:
    study: str = flag(
        "sizes", "which study to make", choices=("sizes", "cleaning", "rejection"))
    teacher: str = flag(
        "mini",
        "size of the teacher, which goes through base, cold start and GRPO",
        choices=tuple(PRESETS))
    students: str = flag(
        "micro,mini-10th,mini-30th",
        "sizes of the students, separated by commas; the last but one is that of --study cleaning")
    speedrun: str = flag(
        "runs/speedrun",
        "folder of a speedrun, whose base serves the students of its size, and whose cold start "
        "--study rejection starts from")
    out: str = flag("runs/students", "folder for models, traces, tables and figures")
    questions: int = flag(5000, "training questions that the teacher answers", low=1)
    samples: int = flag(8, "the teacher's responses per question", low=1)
    keep: int = flag(2, "most traces per question that students read", low=1)
    problems: int = flag(40, "test problems of each family and level", low=1)
    seeds: str = flag("0,1,2", "seeds of the students' training, separated by commas")

    def path(self, *parts):
        """A path in --out."""
        return Path(self.out, *map(str, parts))

    @property
    def all_seeds(self):
        """Seeds as whole numbers. Raises UserError for anything else."""
        return whole_numbers(self.seeds, "seeds")

    @property
    def sizes(self):
        """Names of the students' sizes. Raises UserError for one that does not exist."""
        return listed(self.students, "students", PRESETS, "size")


# Models and traces


def student_base(config, size):
    """Folder of the base of a size, trained as in the speedrun where it is missing.

    That of micro is the speedrun's own.
    """
    out = config.path(f"{size}-base")
    if size == "micro":
        out = Path(config.speedrun) / "base"
    train_base(out, size, threads=1)
    return out


def trained_teacher(config):
    """Folder of the teacher, after base, cold start and GRPO by the speedrun's recipe."""
    base = config.path(f"{config.teacher}-base")
    cold = config.path(f"{config.teacher}-cold")
    rl = config.path(f"{config.teacher}-rl")
    train_base(base, config.teacher)
    train_cold_start(cold, base)
    train("train_grpo.py", rl, init=cold, **RL)
    return rl


def student_run(config, name, init, folder, seed, **flags):
    """The run of a student, as `ensure_all` takes it: SFT of a model on the traces in a folder."""
    out = config.path(name)
    flags = dict(
        stage="cold-start", init=init, data=folder / "traces.jsonl", **flags,
        seed=seed, **RATES, out=out)
    return out / "report.json", "train_sft.py", flags


def traces(config, teacher, name, **flags):
    """Folder of the teacher's traces, selected by these flags of distill.py.

    All select from the same samples.
    """
    out = config.path(f"traces-{name}")
    ensure(
        out / "traces.jsonl", "distill.py",
        teacher=teacher, collect_only=True, questions=config.questions, samples=config.samples,
        cache=config.path("samples"), out=out, **flags)
    return out


def provenance(folder):
    """What distill.py says about its traces."""
    return read_if_made(folder / "provenance.json")


def sampled_tokens(folder):
    """Tokens that a GRPO run has sampled; 0 where it has not begun."""
    report = read_if_made(folder / "report.json")
    return report["sampled_tokens"] if report else 0


def references(config, traces):
    """Folder with reference solutions to the very questions of these traces, as many of each.

    Their styles are those of the cold start.
    """
    out = config.path("traces-reference")
    rng = random.Random("students/references")
    questions = Questions(",".join(FAMILIES), "1,2", shipped_tokenizer())  # as in distill.py
    drawn = questions.draw(0, 0, config.questions)
    problems = {problem.question: problem for problem in drawn}
    rows = []
    for line in (traces / "traces.jsonl").read_text(encoding="utf-8").splitlines():
        problem = problems[json.loads(line)["prompt"]]
        thinking = "\n".join(solve(problem, pick(STYLE_RATES["mixed"], rng), rng))
        response = f"<think>{thinking}</think>{problem.answer}"
        rows.append(dict(prompt=problem.question, response=response))
    out.mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (out / "traces.jsonl").write_text(lines, encoding="utf-8")
    return out


def _measure(shared, path):
    """Greedy figures of one checkpoint; with samples, two figures: "sampled" and "greedy".

    sampled: the share of right ones of so many samples at temperature 1.
    """
    problems, bf16, samples = shared
    policy = make_sampler(checkpoint.load_model(path), bf16)
    figures = greedy_figures(policy, problems, LIMIT)
    if not samples:
        return figures
    noise = generator(0, "students")
    experience, _ = sample_and_check(policy, problems, samples, LIMIT, 1.0, noise)
    right = experience.rewards["total"].double().mean().item()
    return dict(sampled=round(right, 4), greedy=figures["greedy"])


def measured_rows(machine, problems, trained, samples=0):
    """Rows of a report: [about | figures] of [(about, checkpoint)]. samples: see `_measure`."""
    shared = (problems, choose_bf16("auto", machine), samples)
    found = spread(_measure, shared, [(path,) for _, path in trained], cores())
    return [about | figures for (about, _), figures in zip(trained, found)]


def student_rows(config, machine, runs, trained=()):
    """`measured_rows` of runs, made where they are missing, on problems nothing was chosen by.

    runs: [(about, run)]; trained: [(about, folder)] of what is measured besides.
    """
    ensure_all([run for _, run in runs])
    folders = [(about, flags["out"]) for about, (_, _, flags) in runs]
    problems = held_out_problems(FAMILIES, LEVELS, config.problems * len(LEVELS), "test")
    return measured_rows(machine, problems, [*trained, *folders])


# Figures of a row, one student or teacher, and the columns that tables share


def overall(row):
    """Greedy accuracy, %."""
    return 100 * row["greedy"]["acc"]


def unsound(row):
    """Share of right answers whose steps are not sound, %."""
    return 100 * row["unsound"]["acc"]


def response_tokens(row):
    """Tokens per response."""
    return row["mean_tokens"]


ACCURACY_HEADS = ["all, %", *(f"level {level}, %" for level in LEVELS)]
UNSOUND_HEAD = "right answer, unsound steps, %"


def mean_of(rows, value):
    """value(row), over the seeds of some rows, as text."""
    return over_seeds([value(row) for row in rows])


def accuracy_cells(rows):
    """Greedy accuracy in all and at each level, over seeds: below ACCURACY_HEADS."""
    cells = [mean_of(rows, overall)]
    for level in LEVELS:
        cells.append(over_seeds([100 * row["levels"][str(level)]["acc"] for row in rows]))
    return cells


def count_seeds(rows):
    """How many different seeds these rows are of."""
    return len({row["seed"] for row in rows})


# --study sizes


def student_runs(config, bases, folders):
    """[(about, run)] of every size by every road, at every seed.

    bases: {size: folder}; folders: {road: folder of traces}.
    """
    runs = []
    for seed in config.all_seeds:
        for size, base in bases.items():
            for road, folder in folders.items():
                run = student_run(config, f"{size}-{road}-{seed}", base, folder, seed, epochs=2)
                runs.append((dict(road=road, size=size, seed=seed), run))
            out = config.path(f"{size}-grpo-{seed}")
            flags = dict(init=base, seed=seed, **RL, out=out)
            run = out / "report.json", "train_grpo.py", flags
            runs.append((dict(road="grpo", size=size, seed=seed), run))
    return runs


def sizes(config, machine):
    """Every size by every road; a road is a way to train a student.

    "full" and "compressed": SFT on traces of the teacher; "reference": SFT on reference solutions
    to the same questions; "grpo": reinforcement learning of its own.
    """
    teacher = trained_teacher(config)
    folders = {
        "full": traces(config, teacher, "full", keep=config.keep),
        "compressed": traces(
            config, teacher, "compressed", traces="compressed", keep=config.keep),
    }
    collected = {road: provenance(folder) for road, folder in folders.items()}
    folders["reference"] = references(config, folders["full"])
    bases = {size: student_base(config, size) for size in config.sizes}

    runs = student_runs(config, bases, folders)
    about = dict(road="teacher", size=config.teacher, seed=0)
    rows = student_rows(config, machine, runs, [(about, teacher)])
    grpo_tokens = []
    for about, (_, _, flags) in runs:
        if about["road"] == "grpo":
            grpo_tokens.append(sampled_tokens(flags["out"]))
    return dict(
        study="sizes", rows=rows, collected=collected,
        grpo_tokens=[min(grpo_tokens), max(grpo_tokens)])


def sizes_row(rows, teacher):
    """One size by one road, over its seeds."""
    road = rows[0]["road"]
    params = rows[0]["params"]
    shares = [100 * overall(row) / overall(teacher) for row in rows]  # of the teacher's accuracy
    megaflops = [row["mean_flops"] / 1e6 for row in rows]
    part = "the teacher" if road == "teacher" else f"1/{teacher['params'] / params:.1f}"
    trained_by = "base, cold start, GRPO" if road == "teacher" else road
    return [
        f"{rows[0]['size']}, {part}", f"{params:,}", trained_by, *accuracy_cells(rows),
        over_seeds(shares), mean_of(rows, unsound), mean_of(rows, response_tokens),
        over_seeds(megaflops)]


def sizes_markdown(report):
    """Teacher and students, road by road."""
    rows = report["rows"]
    (teacher,) = [row for row in rows if row["road"] == "teacher"]
    students = [row for row in rows if row["road"] != "teacher"]
    by_size_and_road = {}
    for row in rows:
        by_size_and_road.setdefault((row["road"], row["size"]), []).append(row)
    table = [sizes_row(some, teacher) for some in by_size_and_road.values()]
    heads = [
        "model", "parameters", "trained by", *ACCURACY_HEADS, "share of the teacher's",
        UNSOUND_HEAD, "tokens", "MFLOP per question"]
    kept = []
    for road, made in report["collected"].items():
        kept.append(f"{road}: {made['traces']:,} traces of {made['mean_tokens_kept']} tokens")
    low, high = teacher["greedy"]["ci"]
    few, many = report["grpo_tokens"]
    note = (
        f"Greedy answers to {teacher['greedy']['n']} test problems, mean ± standard deviation over "
        f"{count_seeds(students)} seeds of the student's training; "
        f"the teacher's 95% interval is [{100 * low:.1f}, {100 * high:.1f}]. {'; '.join(kept)}; "
        "reference: solutions of the questions of the full ones, as many. "
        f"GRPO: {few:,} to {many:,} sampled tokens.")
    return table_and_note(heads, table, note)


@styled
def sizes_figure(report, path):
    """Accuracy of students against their parameters, and against the cost of an answer.

    A line per road; dots: seeds.
    """
    roads = grouped(report["rows"], "road")
    (teacher,) = roads.pop("teacher")
    figure, axes = new_axes(1, 2, (10, 3.8), sharey=True)
    for axis, key in zip(axes, ("params", "mean_flops")):
        for color, (road, rows) in enumerate(roads.items()):
            groups = []
            for some in grouped(rows, "size").values():
                groups.append(([row[key] for row in some], [overall(row) / 100 for row in some]))
            seeds_and_means(axis, groups, f"C{color}", road)
        acc = overall(teacher) / 100
        axis.plot(teacher[key], acc, "k*", ms=11, label="teacher")
        log_x(axis)
        axis.axhline(0.9 * acc, color="grey", lw=0.9, ls=":", label="90% of the teacher's")
    axes[0].set(
        xlabel="parameters", ylim=(0, 1.02),
        ylabel=f"greedy accuracy, n = {teacher['greedy']['n']}")
    axes[1].set(xlabel="inference FLOP per question")
    legend_beside(axes[1])
    return save(figure, path)


# --study cleaning


CLEANING = {  # {way to clean traces: flags of distill.py}
    "all right": dict(select="all", duplicates=True),
    "deduplicated": dict(select="all"),
    "sound steps only": dict(select="all", clean="steps"),
    "the shortest": dict(select="shortest", keep=1),
}
CLEANING_STEPS = 700  # of every student, however many its traces


def cleaning(config, machine):
    """Students of one size on the same samples, cleaned in four ways, for equally many steps."""
    teacher = trained_teacher(config)
    size = config.sizes[-2:][0]
    base = student_base(config, size)
    collected = {}
    runs = []
    for way, flags in CLEANING.items():
        name = way.replace(" ", "-")
        folder = traces(config, teacher, name, **flags)
        collected[way] = provenance(folder)
        for seed in config.all_seeds:
            run = student_run(
                config, f"{size}-cleaned-{name}-{seed}", base, folder, seed,
                total_steps=CLEANING_STEPS)
            runs.append((dict(way=way, seed=seed), run))
    rows = student_rows(config, machine, runs)
    return dict(study="cleaning", size=size, rows=rows, collected=collected)


def cleaning_markdown(report):
    """What each way of cleaning keeps, and the students that come of it."""
    by_way = grouped(report["rows"], "way")
    rows = []
    for way, kept in report["collected"].items():
        some = by_way[way]
        rows.append([
            way, f"{kept['traces']:,}", kept["mean_tokens_kept"], *accuracy_cells(some),
            mean_of(some, unsound), mean_of(some, response_tokens)])
    heads = ["traces", "kept", "their mean tokens", *ACCURACY_HEADS, UNSOUND_HEAD, "tokens"]
    n = report["rows"][0]["greedy"]["n"]
    note = (
        f"Students of size {report['size']}, {CLEANING_STEPS} steps each; greedy answers to "
        f"{n} test problems, mean ± standard deviation over {count_seeds(report['rows'])} seeds.")
    return table_and_note(heads, rows, note)


@styled
def cleaning_figure(report, path):
    """Three figures of students by how their traces were cleaned; dots: seeds."""
    panels = {
        "greedy accuracy, %": overall,
        UNSOUND_HEAD: unsound,
        "tokens per response": response_tokens,
    }
    table = {}
    for way, rows in grouped(report["rows"], "way").items():
        table[way] = {title: [value(row) for row in rows] for title, value in panels.items()}
    return seed_spread(table, {title: title for title in panels}, path)


# --study rejection


SAMPLES = 4  # responses per test problem


def grow(config, cold, seed):
    """One GRPO run, stopped and kept at each of TOKENS: [(sampled tokens, checkpoint)].

    Raises UserError where the run has gone past a budget whose checkpoint is missing.
    """
    out = config.path(f"rejection-grpo-{seed}")
    points = []
    for tokens in TOKENS:
        kept = out / f"at-{tokens}.pt"
        note = out / f"at-{tokens}.json"
        if not note.exists():
            if sampled_tokens(out) > tokens:
                raise UserError(
                    f"{out} stands at {sampled_tokens(out)} sampled tokens, and {kept.name} is "
                    "missing; remove the folder to begin again")
            ensure(
                note, "train_grpo.py", threads=1, init=cold, token_budget=tokens, steps=10_000,
                eval_every=0, seed=seed, out=out)
            shutil.copy(out / "ckpt.pt", kept)
            write_json(note, dict(tokens=sampled_tokens(out)))
        points.append((read_if_made(note)["tokens"], kept))
    return points


def reject(config, cold, seed, tokens, budget, length):
    """Rejection sampling of about `tokens` tokens from the cold start, and SFT on what is right.

    budget: names the folders. length: mean tokens per response, which says how many questions that
    is. Returns (sampled tokens, run folder).
    """
    found = config.path(f"rejection-traces-{budget}-{seed}")
    samples = 8
    ensure(
        found / "traces.jsonl", "distill.py", threads=1, teacher=cold, collect_only=True,
        questions=round(tokens / length / samples), samples=samples, select="all", near=1.0,
        seed=seed, cache=config.path("rejection-samples"), out=found)
    name = f"rejection-sft-{budget}-{seed}"
    done, script, flags = student_run(config, name, cold, found, seed, epochs=2)
    ensure(done, script, threads=1, **flags)
    return provenance(found)["sampled_tokens"], flags["out"]


def both_ways(config, cold, seed, length):
    """One seed: GRPO, and rejection sampling of as many tokens as GRPO really took.

    Returns [(about, checkpoint)].
    """
    grown = dict(zip(TOKENS, grow(config, cold, seed)))
    found = [("grpo", budget, *point) for budget, point in grown.items()]
    for budget, (tokens, _) in grown.items():
        found.append(("rejection", budget, *reject(config, cold, seed, tokens, budget, length)))
    trained = []
    for way, budget, tokens, path in found:
        trained.append((dict(way=way, seed=seed, budget=budget, tokens=tokens), path))
    return trained


def mean_length(path, problems, machine):
    """Mean tokens per response of a checkpoint, at temperature 1."""
    policy = make_sampler(checkpoint.load_model(path), choose_bf16("auto", machine))
    noise = generator(0, "length")
    experience, _ = sample_and_check(policy, problems, 1, LIMIT, 1.0, noise)
    return float(experience.rollout.lengths.float().mean())


def rejection(config, machine):
    """Two ways to make a better policy of a policy's own samples, at equal sampled tokens."""
    cold = Path(config.speedrun) / "cold"
    problems = held_out_problems(FAMILIES, (1, 2), 2 * config.problems, "test")
    length = mean_length(cold, problems, machine)
    jobs = [(config, cold, seed, length) for seed in config.all_seeds]
    trained = [(dict(way="start", seed=0, budget=0, tokens=0), cold)]
    for of_seed in all_of(both_ways, jobs):
        trained += of_seed
    rows = measured_rows(machine, problems, trained, SAMPLES)
    return dict(study="rejection", problems=len(problems), rows=rows)


def by_budget(report, way):
    """[(mean sampled tokens, rows of all seeds)] of one way, from few to many."""
    rows = grouped(report["rows"], "way")[way]
    groups = []
    for _, some in sorted(grouped(rows, "budget").items()):
        groups.append((float(np.mean([row["tokens"] for row in some])), some))
    return groups


def sampled(row):
    """Share of samples that are right, %."""
    return 100 * row["sampled"]


def rejection_markdown(report):
    """Both ways, from few to many sampled tokens."""
    (start,) = by_budget(report, "start")[0][1]
    before = [f"{sampled(start):.1f}", f"{overall(start):.1f}"]
    rows = [["0", *before, *before]]
    pairs = zip(by_budget(report, "rejection"), by_budget(report, "grpo"))
    for (few, rejected), (many, reinforced) in pairs:
        cells = [f"{few:,.0f}, {many:,.0f}"]
        for some in (rejected, reinforced):
            cells += [mean_of(some, sampled), mean_of(some, overall)]
        rows.append(cells)
    heads = [
        "sampled tokens", "rejection: sampled, %", "greedy, %", "GRPO: sampled, %", "greedy, %"]
    seeds = count_seeds([row for row in report["rows"] if row["way"] != "start"])
    note = (
        f"{report['problems']} test problems of levels 1 and 2, {SAMPLES} samples of each at "
        f"temperature 1; mean ± standard deviation over {seeds} seeds.")
    return table_and_note(heads, rows, note)


@styled
def rejection_figure(report, path):
    """Accuracy against sampled tokens, of rejection sampling and GRPO; dots: seeds."""
    figure, axes = new_axes(1, 2, (9, 3.6), sharey=True)
    (start,) = by_budget(report, "start")[0][1]
    budgets = sorted({row["budget"] for row in report["rows"]} - {0})
    panels = {"sampled at temperature 1": sampled, "greedy": overall}
    for axis, (title, value) in zip(axes, panels.items()):
        for color, way in enumerate(("rejection", "grpo")):
            groups = []
            for _, rows in by_budget(report, way):
                groups.append(([row["tokens"] for row in rows], [value(row) / 100 for row in rows]))
            seeds_and_means(axis, groups, f"C{color}", way)
        axis.axhline(value(start) / 100, color="grey", lw=0.9, ls=":", label="cold start")
        log_x(axis)
        axis.set(title=title, xlabel="sampled tokens", ylim=(0, 1.02))
        axis.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
        axis.set_xticks([], minor=True)
    axes[0].set(ylabel=f"accuracy, {report['problems']} test problems")
    axes[1].legend()
    return save(figure, path)


STUDIES = {  # {--study: (makes the report, its table, its figure)}
    "sizes": (sizes, sizes_markdown, sizes_figure),
    "cleaning": (cleaning, cleaning_markdown, cleaning_figure),
    "rejection": (rejection, rejection_markdown, rejection_figure),
}


def check_out(config):
    """Make --out, and note the flags that all its studies share.

    Raises UserError where it holds studies that were made with others.
    """
    config.path().mkdir(parents=True, exist_ok=True)
    names = ("teacher", "speedrun", "questions", "samples", "keep")
    about = {name: getattr(config, name) for name in names}
    check_made(config.out, read_if_made(config.path("about.json")), about)
    write_json(config.path("about.json"), about)


def main():
    config = parse_config(Config, doc=__doc__)
    # mistakes in these should be said before hours of work
    config.all_seeds
    config.sizes
    check_out(config)
    # what measures here; the scripts choose their own devices
    make_study(STUDIES, config, start_machine("cpu"))


if __name__ == "__main__":
    run_script(main)
