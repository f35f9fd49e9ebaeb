"""What distillation is worth: the tables and figures of "Distillation" in the README.

    python -m nanoreason.studies.students --study sizes        students of three sizes, full and compressed traces, beside plain SFT and beside RL of their own
    python -m nanoreason.studies.students --study cleaning     what becomes of a student when its traces are cleaned, deduplicated, shortened
    python -m nanoreason.studies.students --study rejection    rejection sampling against GRPO at equal sampled tokens, from one cold start

Models that are missing are trained first, by the scripts, as a user would, as many at once as there are cores. Each study leaves STUDY.json, STUDY.md and
STUDY.png in --out; one that was killed goes on where it stopped.
"""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoreason import checkpoint, plots
from nanoreason.flags import flag, parse_config, UserError, whole_numbers
from nanoreason.machine import choose_bf16, generator, run_script, start_machine
from nanoreason.run import say, write_json
from nanoreason.corpus import STYLE_RATES, pick
from nanoreason.evaluate import greedy_figures, held_out_problems, over_seeds
from nanoreason.generate import generate, sampler
from nanoreason.model import PRESETS
from nanoreason.questions import Questions
from nanoreason.rewards import outcome_reward
from nanoreason.tasks import solve
from nanoreason.tokenizer import parse_response, render_prompt
from nanoreason.studies.runs import all_of, ensure, ensure_all
from nanoreason.workers import cores, spread

FAMILIES = ("multiplication", "chain", "percent", "word", "equation")
SEVEN = "addition,multiplication,chain,percent,word,equation,primality"  # what the bases read about, as in the speedrun
LEVELS = (1, 2, 3)  # traces and RL come from 1 and 2; of the bases' worked solutions 16% are of 3 to 5
LIMIT = 160
RATES = dict(muon_lr=0.002, adamw_lr=0.0015)  # of all supervised students, as of the speedrun's cold start
RL = dict(steps=40, batch_size=512, learning_rate=3e-4, kl="none")  # as in the speedrun
BASE_TOKENS = 3_300_000
TOKENS = (50_000, 100_000, 200_000, 400_000)  # sampled, of --study rejection


@dataclass
class Config:
    study: str = flag("sizes", "which study to make", choices=("sizes", "cleaning", "rejection"))
    teacher: str = flag("mini", "size of the teacher, which goes through base, cold start and GRPO", choices=tuple(PRESETS))
    students: str = flag("micro,mini-10th,mini-30th", "sizes of the students, separated by commas; the last but one is that of --study cleaning")
    speedrun: str = flag("runs/speedrun", "folder of a speedrun, whose base serves the students of its size, and whose cold start --study rejection starts from")
    out: str = flag("runs/students", "folder for models, traces, tables and figures")
    questions: int = flag(5000, "training questions that the teacher answers", low=1)
    samples: int = flag(8, "its answers to each", low=1)
    keep: int = flag(2, "most traces of a question that students read", low=1)
    problems: int = flag(40, "test problems of each family and level", low=1)
    seeds: str = flag("0,1,2", "seeds of the students' training, separated by commas")

    def path(self, *parts):
        return Path(self.out, *map(str, parts))

    @property
    def all_seeds(self):
        return whole_numbers(self.seeds, "seeds")

    @property
    def sizes(self):
        if unknown := [name for name in self.students.split(",") if name not in PRESETS]:
            raise UserError(f"--students: there is no size {unknown[0]!r}; there are {', '.join(PRESETS)}")
        return self.students.split(",")


def base_run(config, size):
    """(folder, run) of the base of a size, as in the speedrun."""
    out = Path(config.speedrun) / "base" if size == "micro" else config.path(f"{size}-base")
    return out, (out / "report.json", "train_sft.py", dict(stage="base", model=size, families=SEVEN, tokens=BASE_TOKENS, out=out))


def trained_teacher(config):
    """Folder of the teacher, after base, cold start and GRPO by the speedrun's recipe."""
    base, cold, rl = (config.path(f"{config.teacher}-{stage}") for stage in ("base", "cold", "rl"))
    ensure(base / "report.json", "train_sft.py", stage="base", model=config.teacher, families=SEVEN, tokens=BASE_TOKENS, out=base)
    ensure(cold / "report.json", "train_sft.py", stage="cold-start", init=base, families=SEVEN, out=cold, **RATES)
    ensure(rl / "report.json", "train_grpo.py", init=cold, out=rl, **RL)
    return rl


def traces(config, teacher, name, **flags):
    """Folder of the teacher's traces, chosen by these flags of distill.py; all choose from the same samples."""
    out = config.path(f"traces-{name}")
    ensure(out / "traces.jsonl", "distill.py", teacher=teacher, collect_only=True, questions=config.questions, samples=config.samples, cache=config.path("samples"), out=out, **flags)
    return out


def references(config, traces):
    """Folder with reference solutions, in the cold start's styles, of the very questions of these traces, as many of each."""
    out, rng = config.path("traces-reference"), random.Random("students/references")
    asked = {p.question: p for p in Questions(",".join(FAMILIES), "1,2").draw(0, 0, config.questions)}  # as distill.py draws them
    rows = []
    for row in map(json.loads, (traces / "traces.jsonl").read_text().splitlines()):
        problem = asked[row["prompt"]]
        lines = "\n".join(solve(problem, pick(STYLE_RATES, rng), rng))
        rows.append(dict(prompt=problem.question, response=f"<think>{lines}</think>{problem.answer}"))
    out.mkdir(exist_ok=True)
    (out / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def _figures(shared, path):
    """Greedy figures of one checkpoint."""
    problems, bf16 = shared
    return greedy_figures(sampler(checkpoint.load_model(path), bf16), problems, LIMIT)


def measured(config, machine, paths):
    """{name: greedy figures} of {name: run folder}, on test problems by which nothing was chosen."""
    problems = held_out_problems(FAMILIES, LEVELS, config.problems * len(LEVELS), "test")
    return dict(zip(paths, spread(_figures, (problems, choose_bf16("auto", machine)), [(path,) for path in paths.values()], cores())))


def sizes(config, machine):
    """Every size by every road: full and compressed traces of the teacher, plain SFT on reference solutions of the same questions, GRPO of its own."""
    teacher, bases = trained_teacher(config), {}
    folders = {"full": traces(config, teacher, "full", keep=config.keep), "compressed": traces(config, teacher, "compressed", traces="compressed", keep=config.keep)}
    said = {road: json.loads((folder / "provenance.json").read_text()) for road, folder in folders.items()}
    folders["reference"] = references(config, folders["full"])
    for size in config.sizes:
        bases[size], run = base_run(config, size)
        ensure_all([run])
    runs, paths = [], {("teacher", config.teacher, 0): teacher}
    for seed in config.all_seeds:
        for size, base in bases.items():
            roads = {road: ("train_sft.py", dict(stage="cold-start", init=base, data=folder / "traces.jsonl", epochs=2, seed=seed, **RATES)) for road, folder in folders.items()}
            roads["grpo"] = "train_grpo.py", dict(init=base, seed=seed, **RL)
            for road, (script, flags) in roads.items():
                out = paths[road, size, seed] = config.path(f"{size}-{road}-{seed}")
                runs.append((out / "report.json", script, flags | dict(out=out)))
    ensure_all(runs)
    found = measured(config, machine, paths)
    spent = [json.loads((path / "report.json").read_text())["sampled_tokens"] for (road, *_), path in paths.items() if road == "grpo"]
    return dict(study="sizes", rows=[dict(road=road, size=size, seed=seed, **figures) for (road, size, seed), figures in found.items()], collected=said,
                grpo_tokens=[min(spent), max(spent)])


def mean_of(rows, value):
    """value(row), over the seeds of some rows."""
    return over_seeds([value(row) for row in rows])


COLUMNS = {"all": lambda r: 100 * r["greedy"]["acc"], **{f"level {level}": lambda r, level=level: 100 * r["levels"][str(level)]["acc"] for level in LEVELS}}


def sizes_markdown(report):
    """Teacher and students, road by road."""
    rows, n = json.loads(json.dumps(report["rows"])), report["rows"][0]["greedy"]["n"]
    (teacher,) = [r for r in rows if r["road"] == "teacher"]
    lines = ["| model | parameters | trained by | " + " | ".join(f"{name}, %" for name in COLUMNS) + " | share of the teacher's | right answer, unsound steps, % | tokens | MFLOP a question |", "| --- " * (7 + len(COLUMNS)) + "|"]
    for road, size in dict.fromkeys((r["road"], r["size"]) for r in rows):
        some = [r for r in rows if (r["road"], r["size"]) == (road, size)]
        part = f"1/{teacher['params'] / some[0]['params']:.1f}" if road != "teacher" else "the teacher"
        lines.append(f"| {size}, {part} | {some[0]['params']:,} | {'base, cold start, GRPO' if road == 'teacher' else road} | " + " | ".join(mean_of(some, value) for value in COLUMNS.values())
                     + f" | {mean_of(some, lambda r: 100 * r['greedy']['acc'] / teacher['greedy']['acc'])} | {mean_of(some, lambda r: 100 * r['unsound']['acc'])} | "
                     f"{mean_of(some, lambda r: r['mean_tokens'])} | {mean_of(some, lambda r: r['mean_flops'] / 1e6)} |")
    kept = "; ".join(f"{road}: {c['traces']:,} traces of {c['mean_tokens_kept']} tokens" for road, c in report["collected"].items())
    low, high = teacher["greedy"]["ci"]
    return "\n".join([*lines, "", f"Greedy answers to {n} test problems, mean ± standard deviation over {len({r['seed'] for r in rows if r['road'] != 'teacher'})} seeds of the student's training; the teacher's 95% interval is "
                      f"[{100 * low:.1f}, {100 * high:.1f}]. {kept}; reference: solutions of the questions of the full ones, as many. GRPO: {report['grpo_tokens'][0]:,} to {report['grpo_tokens'][1]:,} sampled tokens."])


CLEANING = {"all right": dict(select="all", duplicates=True), "deduplicated": dict(select="all"), "sound steps only": dict(select="all", clean="steps"), "the shortest": dict(select="shortest", keep=1)}
CLEANING_STEPS = 700  # of every student, however many its traces


def cleaning(config, machine):
    """Students of one size on the same samples, cleaned in four ways, for equally many steps."""
    teacher, size = trained_teacher(config), config.sizes[-2:][0]
    base, run = base_run(config, size)
    ensure_all([run])
    folders, runs, paths = {}, [], {}
    for way, flags in CLEANING.items():
        name = way.replace(" ", "-")
        folders[way] = traces(config, teacher, name, **flags)
        for seed in config.all_seeds:
            out = paths[way, seed] = config.path(f"{size}-cleaned-{name}-{seed}")
            runs.append((out / "report.json", "train_sft.py", dict(stage="cold-start", init=base, total_steps=CLEANING_STEPS, seed=seed, out=out, data=folders[way] / "traces.jsonl", **RATES)))
    ensure_all(runs)
    found = measured(config, machine, paths)
    return dict(study="cleaning", size=size, rows=[dict(way=way, seed=seed, **figures) for (way, seed), figures in found.items()],
                collected={way: json.loads((folder / "provenance.json").read_text()) for way, folder in folders.items()})


def cleaning_markdown(report):
    """What each way of cleaning keeps and what comes of it."""
    rows = json.loads(json.dumps(report["rows"]))
    lines = ["| traces | kept | their mean tokens | " + " | ".join(f"{name}, %" for name in COLUMNS) + " | right answer, unsound steps, % | tokens |", "| --- " * (5 + len(COLUMNS)) + "|"]
    for way, kept in report["collected"].items():
        some = [r for r in rows if r["way"] == way]
        lines.append(f"| {way} | {kept['traces']:,} | {kept['mean_tokens_kept']} | " + " | ".join(mean_of(some, value) for value in COLUMNS.values())
                     + f" | {mean_of(some, lambda r: 100 * r['unsound']['acc'])} | {mean_of(some, lambda r: r['mean_tokens'])} |")
    return "\n".join([*lines, "", f"Students of size {report['size']}, {CLEANING_STEPS} steps each; greedy answers to {rows[0]['greedy']['n']} test problems, mean ± standard deviation over {len({r['seed'] for r in rows})} seeds."])


def _sampled(shared, path):
    """Share of right answers among 4 samples a problem of levels 1 and 2, and greedy accuracy, of one checkpoint."""
    problems, bf16 = shared
    policy = sampler(checkpoint.load_model(path), bf16)
    rollout = generate(policy, [render_prompt(p.question) for p in problems], 4, LIMIT, 1.0, generator(0, "students")).cpu()
    right = [outcome_reward(problems[row // 4], parse_response(rollout.response(row))) for row in range(len(rollout.ids))]
    return dict(sampled=round(float(np.mean(right)), 4), greedy=greedy_figures(policy, problems, LIMIT)["greedy"])


def grow(config, cold, seed):
    """One GRPO run, stopped and kept at each of TOKENS: [(sampled tokens, checkpoint)]."""
    out, points = config.path(f"rejection-grpo-{seed}"), []
    for tokens in TOKENS:
        kept, note = out / f"at-{tokens}.pt", out / f"at-{tokens}.json"
        if not note.exists():
            report = json.loads((out / "report.json").read_text()) if (out / "report.json").exists() else dict(sampled_tokens=0)
            if report["sampled_tokens"] > tokens:
                raise UserError(f"{out} stands at {report['sampled_tokens']} sampled tokens, and {kept.name} is missing; remove the folder to begin again")
            ensure(note, "train_grpo.py", threads=1, init=cold, token_budget=tokens, steps=10_000, eval_every=0, seed=seed, out=out)
            shutil.copy(out / "ckpt.pt", kept)
            write_json(note, dict(tokens=json.loads((out / "report.json").read_text())["sampled_tokens"]))
        points.append((json.loads(note.read_text())["tokens"], kept))
    return points


def reject(config, cold, seed, tokens, budget, length):
    """Rejection sampling of about `tokens` tokens from the same cold start, and SFT of it on what is right: (sampled tokens, run folder). length: tokens of
    a response, on average, which sets the number of questions; budget: what the folders are called by."""
    found, out = config.path(f"rejection-traces-{budget}-{seed}"), config.path(f"rejection-sft-{budget}-{seed}")
    ensure(found / "traces.jsonl", "distill.py", threads=1, teacher=cold, collect_only=True, questions=round(tokens / length / 8), samples=8, select="all", near=1.0, seed=seed,
           cache=config.path("rejection-samples"), out=found)
    ensure(out / "report.json", "train_sft.py", threads=1, stage="cold-start", init=cold, data=found / "traces.jsonl", epochs=2, seed=seed, out=out, **RATES)
    return json.loads((found / "provenance.json").read_text())["sampled_tokens"], out


def both(config, cold, seed, length):
    """One seed: GRPO, and rejection sampling of as many tokens as GRPO really took by each budget: {(way, budget): (sampled tokens, checkpoint)}."""
    points = {("grpo", budget): point for budget, point in zip(TOKENS, grow(config, cold, seed))}
    return points | {("rejection", budget): reject(config, cold, seed, tokens, budget, length) for (_, budget), (tokens, _) in points.items()}


def rejection(config, machine):
    """Both ways to turn a policy's own samples into a better policy, at equal sampled tokens, over seeds."""
    cold, problems = Path(config.speedrun) / "cold", held_out_problems(FAMILIES, (1, 2), 2 * config.problems, "test")
    bf16 = choose_bf16("auto", machine)
    rollout = generate(sampler(checkpoint.load_model(cold), bf16), [render_prompt(p.question) for p in problems], 1, LIMIT, 1.0, generator(0, "length"))
    length = float(rollout.lengths.float().mean())
    points = dict(zip(config.all_seeds, all_of(both, [(config, cold, seed, length) for seed in config.all_seeds])))
    rows = [dict(way="start", seed=0, budget=0, tokens=0)] + [dict(way=way, seed=seed, budget=budget, tokens=tokens) for seed, some in points.items() for (way, budget), (tokens, _) in some.items()]
    paths = [cold] + [path for some in points.values() for _, path in some.values()]
    found = spread(_sampled, (problems, bf16), [(path,) for path in paths], cores())
    return dict(study="rejection", problems=len(problems), rows=[row | figures for row, figures in zip(rows, found)])


def by_budget(report, way):
    """[(mean sampled tokens, rows of all seeds)] of one way, from few to many."""
    rows = [r for r in report["rows"] if r["way"] == way]
    some = [[r for r in rows if r["budget"] == budget] for budget in sorted({r["budget"] for r in rows})]
    return [(float(np.mean([r["tokens"] for r in each])), each) for each in some]


def rejection_markdown(report):
    """Both ways, from few to many sampled tokens."""
    (start,) = by_budget(report, "start")[0][1]
    lines = ["| sampled tokens | rejection: sampled, % | greedy, % | GRPO: sampled, % | greedy, % |", "| --- " * 5 + "|",
             f"| 0 | {100 * start['sampled']:.1f} | {100 * start['greedy']['acc']:.1f} | {100 * start['sampled']:.1f} | {100 * start['greedy']['acc']:.1f} |"]
    sampled, greedy = (lambda r: 100 * r["sampled"]), (lambda r: 100 * r["greedy"]["acc"])
    for (few, rft), (many, rl) in zip(by_budget(report, "rejection"), by_budget(report, "grpo")):
        lines.append(f"| {few:,.0f}, {many:,.0f} | {mean_of(rft, sampled)} | {mean_of(rft, greedy)} | {mean_of(rl, sampled)} | {mean_of(rl, greedy)} |")
    return "\n".join([*lines, "", f"{report['problems']} test problems of levels 1 and 2, 4 samples of each at temperature 1; mean ± standard deviation over {len({r['seed'] for r in report['rows'] if r['way'] != 'start'})} seeds."])


STUDIES = {"sizes": (sizes, sizes_markdown, plots.student_sizes), "cleaning": (cleaning, cleaning_markdown, plots.student_cleaning),
           "rejection": (rejection, rejection_markdown, plots.student_rejection)}


def main():
    config = parse_config(Config, doc=__doc__)
    config.all_seeds, config.sizes  # a mistake in them should be said before hours of work
    config.path().mkdir(parents=True, exist_ok=True)
    study, markdown, draw = STUDIES[config.study]
    about = {name: getattr(config, name) for name in ("teacher", "speedrun", "questions", "samples", "keep")}
    if config.path("about.json").exists() and (made := json.loads(config.path("about.json").read_text())) != about:
        raise UserError(f"--out {config.out} holds studies with {made}; choose another folder")
    write_json(config.path("about.json"), about)
    report = study(config, start_machine("cpu"))  # what measures here; the scripts choose their own devices
    write_json(config.path(f"{config.study}.json"), report)
    text = markdown(report)
    config.path(f"{config.study}.md").write_text(text + "\n")
    draw(report, config.path(f"{config.study}.png"))
    say(text)


if __name__ == "__main__":
    run_script(main)
