"""Time to reason: how fast can a model learn to reason on this machine, from random weights?

    python -m nanoreason.speedrun --race

The clock runs from the start of the base stage until the lower end of the 95% interval of sampled
accuracy (temperature 1, one sample each) on 1,000 validation problems reaches GOAL. It is looked at
after every step whose training questions are solved that often, so it may be reached by luck; the
accuracy on test problems, measured after the clock has stopped, says how much of it was. Rules:
random weights, a base that answers at least half of its questions at once, reinforcement learning
on right answers alone (R1-Zero); families and levels of the speedrun's. All else is free.
"""

import subprocess
from dataclasses import replace
from pathlib import Path

import torch

from nanoreason.flags import UserError
from nanoreason.run import read_json, say, write_json
from nanoreason.stages import ROOT, Stage, hardware, run_stage

GOAL = 0.8
SEEDS = (0, 1, 2)
FAMILIES = "multiplication,chain,percent,word,equation"


def race_plan(out, seed, quick):
    """The stages of one seed, in order: base and R1-Zero on the clock, then a test."""
    base = dict(stage="base", families=FAMILIES, tokens=3_000_000, reasoned=0.3, seed=seed)
    zero = dict(init=out / "base", families=FAMILIES, steps=200, batch_size=512,
                learning_rate=3e-4, eval_every=0, goal=GOAL, seed=seed)
    test = dict(eval=True, ckpt=out / "zero", json=out / "test.json", families=FAMILIES,
                level="1,2", problems=200, ns="1", seed=seed)
    if quick:
        base |= dict(tokens=30_000)
        zero |= dict(steps=2, batch_size=64)
        test |= dict(problems=8)
    return [
        Stage("base", "train_sft.py", base | dict(out=out / "base"), "base/report.json",
              "a base model from random weights", alone=True),
        Stage("zero", "train_grpo.py", zero | dict(out=out / "zero"), "zero/report.json",
              "GRPO until the goal", alone=True),
        Stage("zero: test", "sample.py", test, "test.json",
              "the same accuracy on test problems; the clock has stopped", alone=True),
    ]


def commit():
    """Short hash of the commit that runs, with + where files differ from it; unknown elsewhere."""
    answers = []
    for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno")):
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *words], capture_output=True, encoding="utf-8",
                errors="replace")
        except OSError:
            return "unknown"
        if done.returncode:
            return "unknown"
        answers.append(done.stdout.strip())
    name, changed = answers
    return name + ("+" if changed else "")


def race(config):
    """Run the race once per seed, print a row for each, keep them in race.json; returns the rows.
    config: speedrun.Config. Raises UserError where --out holds a race."""
    folder = Path(config.out, "race")
    if folder.exists():
        raise UserError(f"{folder} holds a race, and a clock cannot be resumed: choose another "
                        "--out")
    rows = []
    for seed in SEEDS[: 1 if config.quick else None]:
        out = folder / str(seed)
        out.mkdir(parents=True)
        log = {}
        stages = race_plan(out, seed, config.quick)
        for number, stage in enumerate(stages, 1):
            position = f"seed {seed}, {number}/{len(stages)}"
            run_stage(replace(config, out=str(out)), stage, position, 0, log)
        report = read_json(out / "zero" / "report.json")
        test = read_json(out / "test.json")["sampled"]
        rows.append(dict(
            seed=seed, minutes=round((log["zero"]["ended"] - log["base"]["began"]) / 60, 2),
            base_seconds=log["base"]["seconds"], rl_seconds=log["zero"]["seconds"],
            rl_steps=report["steps"], reached=report["reached"],
            test={name: test[name] for name in ("acc", "n", "ci")},
        ))
        about = dict(hardware=hardware(), commit=commit(), torch=torch.__version__, goal=GOAL)
        write_json(folder / "race.json", about | dict(rows=rows))
    say(table(about, rows))
    return rows


def table(about, rows):
    """The race for people."""
    lines = [f"\nTime to reason on {about['hardware']}, commit {about['commit']}, "
             f"torch {about['torch']}; goal: lower bound {about['goal']:.0%}"]
    for row in rows:
        test = row["test"]
        reached = "reached" if row["reached"] else "NOT reached"
        lines.append(
            f"seed {row['seed']}: {row['minutes']:.1f} minutes, {reached} "
            f"(base {row['base_seconds']:.0f} s, {row['rl_steps']} steps of RL in "
            f"{row['rl_seconds']:.0f} s); test, sampled {test['acc']:.3f} "
            f"[{test['ci'][0]:.3f}, {test['ci'][1]:.3f}] n={test['n']}"
        )
    return "\n".join(lines)
