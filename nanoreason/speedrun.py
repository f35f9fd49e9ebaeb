"""The whole line as one command: base -> cold start -> GRPO -> rejection sampling -> final SFT,
with reward models, best-of-N and a distilled student, and a report of what each stage bought.

    python -m nanoreason.speedrun --out runs/speedrun     minutes
    python -m nanoreason.speedrun --size full --out runs/full
                                                          hours: what the shipped models come from
    python -m nanoreason.speedrun --race                  how fast can a model learn to reason here?

Every stage is one of the scripts, called as a user would call it; its command is printed and kept
in the report. On CPUs, stages that do not need one another share the cores. Killed at any moment,
the same command picks up where it stopped. Leaves report.json, report.md and figures in --out.
"""

from dataclasses import dataclass
from pathlib import Path

from nanoreason.flags import UserError, flag, parse_config
from nanoreason.machine import run_script
from nanoreason.race import race
from nanoreason.run import read_json, say, write_json, write_text
from nanoreason.speedrun_report import STAGES, TAUGHT, build_report, draw_figures, markdown
from nanoreason.stages import Stage, command, estimate, finished, run_stages
from nanoreason.tasks import CONTROLS, GENERAL, REASONING, SAFETY, demo_problems

ALL = ",".join(REASONING)  # what the models read about
RL_FAMILIES = "multiplication,chain,percent,word,equation"


@dataclass
class Config:
    out: str = flag("runs/speedrun", "folder for everything that the run leaves")
    size: str = flag("minutes", "minutes: levels 1 and 2 above all; full, hours: all families and "
                                "levels alike, as the shipped models were made",
                     choices=("minutes", "full"))
    seed: int = flag(0, "seed of data, weights and samples", low=0)
    quick: bool = flag(False, "a rehearsal of about a minute: the same stages, far too short to "
                              "learn much")
    race: bool = flag(False, "instead: minutes from random weights until R1-Zero solves 80% of "
                             "1,000 validation problems, over three seeds, in --out/race")


def demo_questions(config):
    """The questions that the final model is asked; a rehearsal asks the first."""
    return demo_problems()[: 1 if config.quick else None]


# A rehearsal differs in these flags, by stage. Nobody solves anything in it, but its base sometimes
# guesses right whether a number is prime: what learns from right answers asks that.
GUESS = dict(families="primality", level="1", questions=40, samples=8)
QUICK_GRPO = dict(steps=3, batch_size=64, eval_problems=4)
QUICK_REWARD_MODEL = GUESS | dict(
    temperature=1.0, val_questions=2, epochs=1, batch_size=8, eval_every=1
)
QUICK_BEST_OF_N = dict(problems=2, ns="1,2,4", max_reasoning_tokens=160)
QUICK = {
    "base": dict(tokens=30_000),
    "zero": QUICK_GRPO,
    "cold": dict(demos=200),
    "rl": QUICK_GRPO,
    "orm": QUICK_REWARD_MODEL,
    "rejection": GUESS,
    "final": dict(epochs=1, batch_tokens=256),
    "prm": QUICK_REWARD_MODEL,
    "student": GUESS | dict(traces="full", epochs=1, eval_problems=4, batch_tokens=256),
    "test": dict(problems=8, max_reasoning_tokens=160),
    "general": dict(problems=5, max_reasoning_tokens=160),
    "best_of_n": QUICK_BEST_OF_N,
}
# The full run differs in these: hours instead of minutes, all families and levels alike, and rows
# and responses with room for the worked solutions of each (of 5,000 of primality at level 5 they
# leave out some 80, whose second way is longer).
LONGEST = 700  # tokens of a response
ROWS = dict(row_tokens=704, batch_tokens=2816)
FULL_SFT = dict(shares="even", styles="steps", **ROWS)
FULL_GRPO = dict(families=ALL, level="auto", batch_size=256, max_reasoning_tokens=LONGEST,
                 row_tokens=704, eval_problems=25)
FULL_ANSWERS = dict(families=ALL, level="1,2,3,4,5", max_reasoning_tokens=LONGEST)
# many questions once instead of few twice
FULL_SAMPLES = dict(questions=16_000, samples=1, **FULL_ANSWERS)
FULL_TEST = dict(level="1,2,3,4,5", problems=250, max_reasoning_tokens=LONGEST)
FULL = {
    "base": dict(tokens=24_000_000, textbook=0.5, tables=0.12, **FULL_SFT),
    "zero": dict(steps=40, **FULL_GRPO),
    "cold": dict(demos=30_000, **FULL_SFT),
    # The cold start solves most questions: only the others teach, and large steps do harm.
    "rl": FULL_GRPO | dict(steps=80, learning_rate=1e-4, dynamic_sampling=True, eval_problems=50),
    "orm": FULL_ANSWERS,
    "prm": FULL_ANSWERS,
    "rejection": FULL_SAMPLES,
    "final": dict(epochs=3, general=0.2, **ROWS),
    "student": FULL_SAMPLES,
    "test": FULL_TEST,
    "best_of_n": dict(max_reasoning_tokens=LONGEST),
}
FULL_TIMES = 10  # as long as the run of minutes: 80 minutes where that one was said to take 8
FROM_BASE = {"orm": "init", "prm": "init", "rejection": "teacher", "student": "teacher"}


def training_stages(out):
    """[(name, script, flags, note)] of everything that trains. Sizes and rates are those of the run
    of minutes; FULL has what differs in the other."""
    # No KL to the reference: scoring every response under it would cost half as much again.
    # Validation is flat from the twentieth step on: 30 steps are enough.
    grpo = dict(steps=30, batch_size=512, learning_rate=3e-4, kl="none")
    answers = dict(init=out / "cold", temperature=0.7, questions=1000, val_questions=40,
                   epochs=3, eval_every=30)
    samples = dict(teacher=out / "rl", cache=out / "samples", families=ALL, level="1,2",
                   questions=8000, samples=2, keep=2)
    return [
        ("base", "train_sft.py", dict(stage="base", tokens=3_300_000),
         "a base model from random weights; most of its text answers at once"),
        ("zero", "train_grpo.py", dict(init=out / "base", **grpo),
         "R1-Zero: reinforcement learning straight on the base"),
        ("cold", "train_sft.py",
         dict(stage="cold-start", init=out / "base", demos=5000, muon_lr=0.002, adamw_lr=0.0015),
         "the cold start: demonstrations that reason"),
        ("rl", "train_grpo.py", dict(init=out / "cold", **grpo),
         "R1: reinforcement learning on the cold start"),
        ("orm", "train_prm.py", dict(kind="orm", **answers),
         "an outcome reward model of the cold start's answers"),
        ("rejection", "distill.py", dict(collect_only=True, select="diverse", **samples),
         "rejection sampling: the right solutions of R1"),
        ("final", "train_sft.py",
         dict(stage="final", init=out / "base", data=out / "rejection" / "traces.jsonl",
              general=0.35, epochs=2, muon_lr=0.003, adamw_lr=0.002),
         "the final SFT: from the base again, on R1's right solutions, general and safety data"),
        ("prm", "train_prm.py", dict(kind="prm", reuse=out / "orm", **answers),
         "a process reward model of its steps"),
        ("student", "distill.py",
         dict(student="nano", traces="compressed", epochs=6, muon_lr=0.004, adamw_lr=0.003,
              eval_problems=100, **samples),
         "a student of a sixth of the size, from random weights, on compressed traces of R1"),
    ]


def measurements(out):
    """[(model, name of the measurement, flags, note)]."""
    limit = dict(max_reasoning_tokens=400)
    test = dict(families=",".join([ALL, *CONTROLS]), level="1,2", problems=200, ns="1", **limit)
    general = dict(families=",".join(GENERAL + SAFETY), level="1,2,3,4,5", problems=100, ns="0",
                   **limit)
    best = dict(families=RL_FAMILIES, problems=30, ns="1,4,16,64", temperature=0.7, **limit)
    reward_models = f"{out / 'orm'},{out / 'prm'}"
    return [
        *((name, "test", test, f"test accuracy of {name}") for name in STAGES),
        *((name, "general", general, f"general ability and refusals of {name}") for name in TAUGHT),
        ("cold", "best_of_n", dict(level="1,2", reward_model=reward_models, **best),
         "best-of-N in mid-training, at the training levels"),
        ("rl", "best_of_n", dict(level="3", **best),
         "best-of-N of R1 at level 3"),
    ]


def plan(config):
    """The stages in order."""
    out = Path(config.out)
    stages = []
    differs = FULL if config.size == "full" else {}
    for name, script, flags, note in training_stages(out):
        flags = flags | differs.get(name, {})
        if config.quick:
            flags |= QUICK[name]
            if name in FROM_BASE:
                flags[FROM_BASE[name]] = out / "base"
        flags |= dict(out=out / name, seed=config.seed)
        done = "traces.jsonl" if name == "rejection" else "report.json"
        stages.append(Stage(name, script, flags, f"{name}/{done}", note, alone=name == "base"))
    for model, name, flags, note in measurements(out):
        flags = flags | differs.get(name, {})
        if config.quick:
            flags = flags | QUICK[name]
        flags = dict(eval=True, ckpt=out / model, json=out / model / f"{name}.json",
                     cache=out / "cache", seed=config.seed, **flags)
        stages.append(Stage(f"{model}: {name}", "sample.py", flags, f"{model}/{name}.json", note))
    for i, problem in enumerate(demo_questions(config)):
        flags = dict(ckpt=out / "final", method="vote", n=16, seed=config.seed,
                     json=out / f"demo{i}.json")
        flags[""] = problem.question
        stages.append(Stage(f"demo {i + 1}", "sample.py", flags, f"demo{i}.json",
                            "a question of the front page, by a vote of 16"))
    return stages


def prepare(config):
    """Make --out, or check that it holds this very run: (stages, log). Raises UserError."""
    out = Path(config.out)
    if "," in config.out:
        raise UserError(f"--out {out}: sample.py takes reward models separated by commas; choose a "
                        "folder without one")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out {out}: {error.strerror}") from None
    wanted = dict(seed=config.seed, size=config.size, quick=config.quick)
    if (out / "config.json").exists():
        found = read_json(out / "config.json")
        if found != wanted:
            raise UserError(f"--out {out} holds a run with {found}; choose another folder")
    write_json(out / "config.json", wanted)
    log = {}
    if (out / "stages.json").exists():
        log = read_json(out / "stages.json")
    stages = plan(config)
    for stage in stages:
        if stage.name in log and log[stage.name].get("command") != command(stage):
            raise UserError(f"--out {out} holds a run of another version, whose stage "
                            f"{stage.name} was made otherwise; choose another folder")
    return stages, log


def main():
    """Run what is missing of the stages, or the race, and report."""
    config = parse_config(Config, doc=__doc__)
    if config.race:
        race(config)
        return
    out = Path(config.out)
    stages, log = prepare(config)
    missing = [stage for stage in stages if not finished(config, stage, log)]
    if missing and not config.quick:
        minutes = estimate(missing) * (FULL_TIMES if config.size == "full" else 1)
        say(f"{len(missing)} of {len(stages)} stages to run: about {minutes:.0f} minutes here")
    run_stages(config, stages, log)
    commands = {stage.name: command(stage) for stage in stages}
    report = build_report(config, log, demo_questions(config), commands)
    write_json(out / "report.json", report)
    draw_figures(out, report)
    text = markdown(report)
    write_text(out / "report.md", text)
    summary = text.split("Greedy accuracy by family:")[0].strip()
    say(f"\n{summary}\n\nThe whole report: {out / 'report.md'}")


if __name__ == "__main__":
    run_script(main)
