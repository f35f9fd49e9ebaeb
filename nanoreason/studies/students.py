"""What distillation is worth: the tables and figures of "Distillation" in the README.

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
from nanoreason.flags import flag, parse_config, UserError, whole_numbers
from nanoreason.machine import choose_bf16, generator, run_script, start_machine
from nanoreason.run import write_json
from nanoreason.corpus import STYLE_RATES, pick
from nanoreason.evaluate import greedy_figures, held_out_problems, over_seeds
from nanoreason.generate import generate, sampler
from nanoreason.model import PRESETS
from nanoreason.questions import Questions
from nanoreason.rewards import outcome_reward
from nanoreason.tasks import solve
from nanoreason.tokenizer import parse_response, render_prompt
from nanoreason.studies import charts
from nanoreason.studies.reports import publish, table_lines
from nanoreason.studies.runs import BASE_FAMILIES, BASE_TOKENS, all_of, ensure, ensure_all
from nanoreason.workers import cores, spread

FAMILIES = ("multiplication", "chain", "percent", "word", "equation")
# Traces and RL come from levels 1 and 2; of the bases' worked solutions 16% are of levels 3 to 5.
LEVELS = (1, 2, 3)
LIMIT = 160  # longest response, in tokens
RATES = dict(muon_lr=0.002, adamw_lr=0.0015)  # of all students, as of the speedrun's cold start
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
        names = self.students.split(",")
        for name in names:
            if name not in PRESETS:
                known = ", ".join(PRESETS)
                raise UserError(f"--students: there is no size {name!r}; there are {known}")
        return names


# Models and traces


def ensure_base(config, size):
    """Folder of the base of a size, trained as in the speedrun where it is missing.

    That of micro is the speedrun's own.
    """
    out = config.path(f"{size}-base")
    if size == "micro":
        out = Path(config.speedrun) / "base"
    flags = dict(stage="base", model=size, families=BASE_FAMILIES, tokens=BASE_TOKENS, out=out)
    ensure_all([(out / "report.json", "train_sft.py", flags)])
    return out


def trained_teacher(config):
    """Folder of the teacher, after base, cold start and GRPO by the speedrun's recipe."""
    base = config.path(f"{config.teacher}-base")
    cold = config.path(f"{config.teacher}-cold")
    rl = config.path(f"{config.teacher}-rl")
    ensure(
        base / "report.json", "train_sft.py",
        stage="base", model=config.teacher, families=BASE_FAMILIES, tokens=BASE_TOKENS, out=base)
    ensure(
        cold / "report.json", "train_sft.py",
        stage="cold-start", init=base, families=BASE_FAMILIES, out=cold, **RATES)
    ensure(rl / "report.json", "train_grpo.py", init=cold, out=rl, **RL)
    return rl


def student_run(config, name, init, folder, seed, **flags):
    """(run folder, run) of a student: SFT of a model on the traces in a folder.

    The run is as `ensure_all` takes it.
    """
    out = config.path(name)
    flags = dict(
        stage="cold-start", init=init, data=folder / "traces.jsonl", **flags,
        seed=seed, **RATES, out=out)
    return out, (out / "report.json", "train_sft.py", flags)


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
    return json.loads((folder / "provenance.json").read_text())


def sampled_tokens(folder):
    """Tokens that a GRPO run has sampled; 0 where it has not begun."""
    path = folder / "report.json"
    return json.loads(path.read_text())["sampled_tokens"] if path.exists() else 0


def references(config, traces):
    """Folder with reference solutions to the very questions of these traces, as many of each.

    Their styles are those of the cold start.
    """
    out = config.path("traces-reference")
    rng = random.Random("students/references")
    drawn = Questions(",".join(FAMILIES), "1,2").draw(0, 0, config.questions)  # as in distill.py
    problems = {problem.question: problem for problem in drawn}
    rows = []
    for line in (traces / "traces.jsonl").read_text().splitlines():
        problem = problems[json.loads(line)["prompt"]]
        thinking = "\n".join(solve(problem, pick(STYLE_RATES, rng), rng))
        response = f"<think>{thinking}</think>{problem.answer}"
        rows.append(dict(prompt=problem.question, response=response))
    out.mkdir(exist_ok=True)
    (out / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def _greedy_figures(shared, path):
    """Greedy figures of one checkpoint."""
    problems, bf16 = shared
    return greedy_figures(sampler(checkpoint.load_model(path), bf16), problems, LIMIT)


def measured(config, machine, paths):
    """{key: greedy figures} of {key: run folder}, on test problems that nothing was chosen by."""
    problems = held_out_problems(FAMILIES, LEVELS, config.problems * len(LEVELS), "test")
    shared = (problems, choose_bf16("auto", machine))
    found = spread(_greedy_figures, shared, [(path,) for path in paths.values()], cores())
    return dict(zip(paths, found))


# Columns that the tables of --study sizes and cleaning share


def overall(row):
    """Greedy accuracy, %."""
    return 100 * row["greedy"]["acc"]


def at_level(level):
    """The function of a row that gives its greedy accuracy at a level, %."""

    def accuracy(row):
        return 100 * row["levels"][str(level)]["acc"]

    return accuracy


def unsound(row):
    """Share of right answers whose steps are not sound, %."""
    return 100 * row["unsound"]["acc"]


def response_tokens(row):
    """Tokens per response."""
    return row["mean_tokens"]


COLUMNS = {"all": overall} | {f"level {level}": at_level(level) for level in LEVELS}


def mean_of(rows, value):
    """value(row), over the seeds of some rows, as text."""
    return over_seeds([value(row) for row in rows])


def accuracy_heads():
    """Heads of the columns of `accuracy_cells`."""
    return [f"{name}, %" for name in COLUMNS]


def accuracy_cells(rows):
    """Greedy accuracy in all and at each level, over seeds."""
    return [mean_of(rows, value) for value in COLUMNS.values()]


def as_read(rows):
    """Rows as they come back from JSON, in which every key is text."""
    return json.loads(json.dumps(rows))


def count_seeds(rows):
    """How many different seeds these rows are of."""
    return len({row["seed"] for row in rows})


# --study sizes


def student_runs(config, bases, folders):
    """The training run of every size by every road, at every seed.

    bases: {size: folder}; folders: {road: folder of traces}. Returns ({(road, size, seed): run
    folder}, runs), the runs as `ensure_all` takes them.
    """
    paths = {}
    runs = []
    for seed in config.all_seeds:
        for size, base in bases.items():
            for road, folder in folders.items():
                path, run = student_run(
                    config, f"{size}-{road}-{seed}", base, folder, seed, epochs=2)
                paths[road, size, seed] = path
                runs.append(run)
            path = config.path(f"{size}-grpo-{seed}")
            paths["grpo", size, seed] = path
            flags = dict(init=base, seed=seed, **RL, out=path)
            runs.append((path / "report.json", "train_grpo.py", flags))
    return paths, runs


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
    bases = {size: ensure_base(config, size) for size in config.sizes}

    paths, runs = student_runs(config, bases, folders)
    ensure_all(runs)
    paths = {("teacher", config.teacher, 0): teacher} | paths
    rows = []
    for (road, size, seed), figures in measured(config, machine, paths).items():
        rows.append(dict(road=road, size=size, seed=seed, **figures))
    grpo_tokens = [sampled_tokens(path) for (road, *_), path in paths.items() if road == "grpo"]
    return dict(
        study="sizes", rows=rows, collected=collected,
        grpo_tokens=[min(grpo_tokens), max(grpo_tokens)])


def sizes_row(rows, teacher):
    """One size by one road, over its seeds."""
    road = rows[0]["road"]
    params = rows[0]["params"]

    def teachers_share(row):
        return 100 * row["greedy"]["acc"] / teacher["greedy"]["acc"]

    def megaflops(row):
        return row["mean_flops"] / 1e6

    part = "the teacher" if road == "teacher" else f"1/{teacher['params'] / params:.1f}"
    trained_by = "base, cold start, GRPO" if road == "teacher" else road
    return [
        f"{rows[0]['size']}, {part}", f"{params:,}", trained_by, *accuracy_cells(rows),
        mean_of(rows, teachers_share), mean_of(rows, unsound), mean_of(rows, response_tokens),
        mean_of(rows, megaflops)]


def sizes_markdown(report):
    """Teacher and students, road by road."""
    rows = as_read(report["rows"])
    (teacher,) = [row for row in rows if row["road"] == "teacher"]
    students = [row for row in rows if row["road"] != "teacher"]
    table = []
    for road, size in dict.fromkeys((row["road"], row["size"]) for row in rows):
        some = [row for row in rows if (row["road"], row["size"]) == (road, size)]
        table.append(sizes_row(some, teacher))
    heads = [
        "model", "parameters", "trained by", *accuracy_heads(), "share of the teacher's",
        "right answer, unsound steps, %", "tokens", "MFLOP per question"]
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
    return "\n".join([*table_lines(heads, table), "", note])


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
    base = ensure_base(config, size)
    collected = {}
    paths = {}
    runs = []
    for way, flags in CLEANING.items():
        name = way.replace(" ", "-")
        folder = traces(config, teacher, name, **flags)
        collected[way] = provenance(folder)
        for seed in config.all_seeds:
            path, run = student_run(
                config, f"{size}-cleaned-{name}-{seed}", base, folder, seed,
                total_steps=CLEANING_STEPS)
            paths[way, seed] = path
            runs.append(run)
    ensure_all(runs)
    rows = []
    for (way, seed), figures in measured(config, machine, paths).items():
        rows.append(dict(way=way, seed=seed, **figures))
    return dict(study="cleaning", size=size, rows=rows, collected=collected)


def cleaning_markdown(report):
    """What each way of cleaning keeps, and the students that come of it."""
    rows = as_read(report["rows"])
    table = []
    for way, kept in report["collected"].items():
        some = [row for row in rows if row["way"] == way]
        table.append([
            way, f"{kept['traces']:,}", kept["mean_tokens_kept"], *accuracy_cells(some),
            mean_of(some, unsound), mean_of(some, response_tokens)])
    heads = [
        "traces", "kept", "their mean tokens", *accuracy_heads(),
        "right answer, unsound steps, %", "tokens"]
    note = (
        f"Students of size {report['size']}, {CLEANING_STEPS} steps each; greedy answers to "
        f"{rows[0]['greedy']['n']} test problems, mean ± standard deviation over "
        f"{count_seeds(rows)} seeds.")
    return "\n".join([*table_lines(heads, table), "", note])


# --study rejection


SAMPLES = 4  # responses per test problem


def _sampled(shared, path):
    """Share of right samples at temperature 1, and greedy accuracy, of one checkpoint."""
    problems, bf16 = shared
    policy = sampler(checkpoint.load_model(path), bf16)
    prompts = [render_prompt(problem.question) for problem in problems]
    noise = generator(0, "students")
    rollout = generate(policy, prompts, SAMPLES, LIMIT, 1.0, noise).cpu()
    right = []
    for row in range(len(rollout.ids)):
        response = parse_response(rollout.response(row))
        right.append(outcome_reward(problems[row // SAMPLES], response))
    greedy = greedy_figures(policy, problems, LIMIT)["greedy"]
    return dict(sampled=round(float(np.mean(right)), 4), greedy=greedy)


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
        points.append((json.loads(note.read_text())["tokens"], kept))
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
    out, (done, script, flags) = student_run(config, name, cold, found, seed, epochs=2)
    ensure(done, script, threads=1, **flags)
    return provenance(found)["sampled_tokens"], out


def both(config, cold, seed, length):
    """One seed: GRPO, and rejection sampling of as many tokens as GRPO really took.

    Returns {(way, budget): (sampled tokens, checkpoint)}.
    """
    grown = dict(zip(TOKENS, grow(config, cold, seed)))
    points = {("grpo", budget): point for budget, point in grown.items()}
    for budget, (tokens, _) in grown.items():
        points["rejection", budget] = reject(config, cold, seed, tokens, budget, length)
    return points


def mean_length(path, problems, bf16):
    """Mean tokens per response of a checkpoint, at temperature 1."""
    policy = sampler(checkpoint.load_model(path), bf16)
    prompts = [render_prompt(problem.question) for problem in problems]
    rollout = generate(policy, prompts, 1, LIMIT, 1.0, generator(0, "length"))
    return float(rollout.lengths.float().mean())


def rejection(config, machine):
    """Two ways to make a better policy of a policy's own samples, at equal sampled tokens."""
    cold = Path(config.speedrun) / "cold"
    problems = held_out_problems(FAMILIES, (1, 2), 2 * config.problems, "test")
    bf16 = choose_bf16("auto", machine)
    length = mean_length(cold, problems, bf16)
    jobs = [(config, cold, seed, length) for seed in config.all_seeds]
    rows = [dict(way="start", seed=0, budget=0, tokens=0)]
    paths = [cold]
    for seed, points in zip(config.all_seeds, all_of(both, jobs)):
        for (way, budget), (tokens, path) in points.items():
            rows.append(dict(way=way, seed=seed, budget=budget, tokens=tokens))
            paths.append(path)
    found = spread(_sampled, (problems, bf16), [(path,) for path in paths], cores())
    rows = [row | figures for row, figures in zip(rows, found)]
    return dict(study="rejection", problems=len(problems), rows=rows)


def by_budget(report, way):
    """[(mean sampled tokens, rows of all seeds)] of one way, from few to many."""
    rows = [row for row in report["rows"] if row["way"] == way]
    groups = []
    for budget in sorted({row["budget"] for row in rows}):
        some = [row for row in rows if row["budget"] == budget]
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
    return "\n".join([*table_lines(heads, rows), "", note])


STUDIES = {  # {--study: (makes the report, its table, its figure)}
    "sizes": (sizes, sizes_markdown, charts.student_sizes),
    "cleaning": (cleaning, cleaning_markdown, charts.student_cleaning),
    "rejection": (rejection, rejection_markdown, charts.student_rejection),
}


def check_out(config):
    """Make --out, and note the flags that all its studies share.

    Raises UserError where it holds studies that were made with others.
    """
    config.path().mkdir(parents=True, exist_ok=True)
    names = ("teacher", "speedrun", "questions", "samples", "keep")
    about = {name: getattr(config, name) for name in names}
    path = config.path("about.json")
    made = json.loads(path.read_text()) if path.exists() else about
    if made != about:
        raise UserError(f"--out {config.out} holds studies with {made}; choose another folder")
    write_json(path, about)


def main():
    config = parse_config(Config, doc=__doc__)
    # mistakes in these should be said before hours of work
    config.all_seeds
    config.sizes
    check_out(config)
    study, markdown, draw = STUDIES[config.study]
    machine = start_machine("cpu")  # what measures here; the scripts choose their own devices
    publish(config.study, study(config, machine), markdown, draw, config.path())


if __name__ == "__main__":
    run_script(main)
