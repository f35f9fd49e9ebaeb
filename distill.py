"""Rejection sampling and distillation: a teacher's own right solutions become the next model's textbook.

What this teaches. A teacher answers training questions many times; wrong answers are dropped, and what is left is cleaned, freed of duplicates, chosen from
and written down as JSONL. With --collect-only that is stage 4 of DeepSeek-R1 (2501.12948, section 2.3.3: rejection sampling); `train_sft.py --stage final` then starts
again from the base with it. Otherwise a student learns from the traces by plain next-token training, without any RL (section 2.4), and is measured beside its teacher.
`--traces full` keeps the whole chain of thought, `compressed` only the steps that the answer needs: fewer tokens to pay for at every question.

The idea is older. STaR (Zelikman et al. 2203.14465) fine-tunes a model on those of its own rationales that ended in the right answer, and starts again from the base
each time; RFT (Yuan et al. 2308.01825) samples 100 a question and finds that it is different ways of reasoning that help: `--select diverse`.

Where it departs from the papers. R1 has part of its answers judged by a model, and throws away what is hard to read; here an exact judge decides about all answers, and
with `--clean steps` about every line. RFT tells ways of reasoning apart by their equations; here the share of common tokens does. STaR shows the answer to a
model that fails; here a question that nobody solves is lost.

    laptop          python distill.py --teacher runs/speedrun/rl --student nano --out runs/distill
                    python distill.py --teacher runs/speedrun/rl --student nano --traces compressed --out runs/distill-short
    stage 4 and 5   python distill.py --teacher runs/speedrun/rl --collect-only --out runs/rejection
                    python train_sft.py --stage final --init runs/speedrun/base --data runs/rejection/traces.jsonl --epochs 2 --out runs/final
    8 GPUs          torchrun --nproc-per-node 8 distill.py --teacher runs/rl --student base --questions 100000 --out runs/distill     --out on a disk that all ranks share
"""

import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import torch.distributed as dist

import train_sft
from nanoreason import checkpoint
from nanoreason.flags import flag, parse_config, UserError
from nanoreason.machine import choose_bf16, run_script, start_machine
from nanoreason.run import prepare_out, say, StepBar, write_json
from nanoreason.corpus import parse_response_text
from nanoreason.evaluate import greedy_figures
from nanoreason.generate import sampler
from nanoreason.model import PRESETS as MODELS
from nanoreason.pool import draw_pool, fingerprint, processes
from nanoreason.questions import Questions
from nanoreason.rewards import outcome_reward
from nanoreason.tasks import FAMILIES, REASONING, Verdict, audit, strip_cue
from nanoreason.tasks.core import NUMBER, parse_number
from nanoreason.tokenizer import parse_response, render_prompt, render_response
from nanoreason.reward_model import AGGREGATES, load_reward_model
from nanoreason.workers import spread

CHUNK = 64  # questions sampled together and kept in one file: what a kill can cost
CAUSES = ("wrong", "unfinished", "low score", "unsound step", "duplicate", "near-duplicate", "not selected")  # why a sample is dropped; the rest is kept


@dataclass
class Config:
    teacher: str = flag("", "checkpoint or run folder of the model that samples the solutions")
    student: str = flag("", f"who learns from them: a size that starts from random weights ({', '.join(MODELS)}), or a checkpoint or run folder to start from")
    out: str = flag("runs/distill", "folder for samples, traces.jsonl, provenance.json, the student and the report; all ranks must see it")
    resume: bool = flag(False, "continue the run in --out")
    data: str = flag("", "JSONL file of questions and answers to ask instead of generated ones; a tenth is kept for the evaluation")
    families: str = flag("multiplication,chain,percent,word,equation", "families of the questions, separated by commas")
    level: str = flag("1,2", "levels of the questions, separated by commas")
    questions: int = flag(4000, "questions to draw from the training split; those drawn twice are asked once", low=1)
    samples: int = flag(16, "solutions to each question", low=1)
    temperature: float = flag(1.0, "sampling temperature", low=0.01)
    max_reasoning_tokens: int = flag(160, "longest response, in tokens", low=1)
    clean: str = flag("answer", "what must be right: the answer, or also every step, with the answer following from them", choices=("answer", "steps"))
    reward_model: str = flag("", "checkpoint of a reward model that scores the traces, for --min-score and --select prm")
    aggregate: str = flag("last", "how its scores of a trace's steps become one", choices=tuple(AGGREGATES))
    min_score: float = flag(0.0, "drop traces that the reward model scores lower", low=0, high=1)
    near: float = flag(0.9, "drop a trace that shares this much of its tokens, in order, with one kept of the same question; 1 keeps all that are not equal", low=0, high=1)
    select: str = flag("diverse", "which to keep: the shortest, all, those least like one another, or those with the highest score", choices=("shortest", "all", "diverse", "prm"))
    duplicates: bool = flag(False, "with --select all: keep a trace as often as it was sampled")
    keep: int = flag(4, "most traces to keep of a question; --select all knows no bound", low=1)
    cache: str = flag("", "folder for the samples, which several runs may share; empty: --out/samples")
    traces: str = flag("full", "the whole chain of thought, or only the steps that the answer needs, which brings --select shortest", choices=("full", "compressed"))
    collect_only: bool = flag(False, "leave it at the traces: rejection sampling")
    epochs: int = flag(2, "the student's passes over the traces", low=1)
    batch_tokens: int = flag(1536, "tokens in a step of its training, over all ranks", low=64)
    muon_lr: float = flag(0.002, "peak learning rate of its matrices", low=0)
    adamw_lr: float = flag(0.0015, "peak learning rate of its embeddings and norms", low=0)
    eval_problems: int = flag(100, "test problems of each family to measure student and teacher on; 0: none", low=0)
    precision: str = flag("auto", "bf16 where it is faster, or one of them", choices=("auto", "fp32", "bf16"))
    device: str = flag("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of questions, samples, weights and data order", low=0)
    max_steps: int = flag(0, "stop the student's training after this many steps; 0 trains to the end", low=0)


@dataclass(frozen=True)
class Trace:
    """A right response, cleaned. ids: tuple of what a student learns to say, from <|think|> to <|end|>; text: the same as JSONL has it; score: the
    reward model's, None without one."""

    ids: tuple
    text: str
    score: float | None


def sound(problem, lines):
    """Is every line right, and does the answer follow? Where there is nothing to reason about, as with facts, no lines are needed."""
    return audit(problem, lines).sound or (not lines and problem.family not in REASONING)


def compress(problem, lines):
    """The steps that the answer needs, by the exact judge: a list of lines, or None where the right ones do not lead to the answer.

        What is (8 + 5) * 3?     8 + 5 = 12 | Wait, 8 + 5 = 13 | 13 * 3 = 39 | Check: 39 / 3 = 13     ->     8 + 5 = 13 | 13 * 3 = 39

    Lines that are not right go first. Then lines are left out from the last to the first, as long as what stays is sound: a second way goes before the first.
    Pairs and triples follow, such as a dead end of a search with the way back. A line that feeds a later one stays, also where the judge, who knows numbers by
    their value, would let it go: without 5 * 8 = 40 in 45 * 8 the next line would take its 40 from the 40 of 45. A user's own questions come without a
    reference that could say what is needed: there all right lines stay.
    """
    if not sound(problem, lines):
        lines = [line for line, j in zip(lines, audit(problem, lines).judgements) if j.verdict is Verdict.RIGHT]
        if not sound(problem, lines):
            return None
    for width in (1, 2, 3) if problem.family in FAMILIES else ():
        for at in reversed(range(len(lines))):
            before, out, after = lines[:at], lines[at : at + width], lines[at + width :]
            if len(out) == width and not any(feeds(problem, before, line, after) for line in out) and sound(problem, before + after):
                lines = before + after
    for i, line in enumerate(lines):  # nobody waits or checks where nothing went wrong
        if sound(problem, rest := [*lines[:i], strip_cue(line)[1], *lines[i + 1 :]]):
            lines = rest
    return lines


def derived(problem, line):
    """The number that a line derives, and its parts where the family works place by place.     '5 * 9 = 45'  ->  {45, 40, 5} in a product"""
    match = re.fullmatch(rf".*= *-?({NUMBER.pattern})(?:,.*)?", line)
    return FAMILIES[problem.family].with_places({parse_number(match[1])} - {None}) if match else set()


def feeds(problem, before, line, after):
    """Does a line after this one use what it derives, and none before it?"""
    new = derived(problem, line).difference(*(derived(problem, other) for other in before))
    uses = lambda other: {parse_number(n) for n in NUMBER.findall(re.sub(rf"= *-?{NUMBER.pattern}(,.*)?$", "", other))}  # all but what it derives itself
    return any(new & uses(other) for other in after)


def examine(problem, ids, score, config):
    """(Trace, "") of one response, or (None, cause) with the first cause that applies. "unfinished": without an answer in its place, cut off, or
    written so that it could not be read back from text, such as with a </think> of ordinary characters in its thinking."""
    response = parse_response(ids)
    if response.answer is None:
        return None, "unfinished"
    if not outcome_reward(problem, response):
        return None, "wrong"
    if score is not None and score < config.min_score:
        return None, "low score"
    lines = response.steps if config.clean == "answer" or sound(problem, response.steps) else None
    if lines is not None and config.traces == "compressed":
        lines = compress(problem, lines)
    if lines is None:
        return None, "unsound step"
    thinking = "\n".join(lines).strip()
    text = f"<think>{thinking}</think>{response.answer}"
    if parse_response_text(text)[:2] != (thinking, response.answer):
        return None, "unfinished"
    return Trace(tuple(render_response(thinking, response.answer)), text, score), ""


def similarity(a, b, floor=0.0):
    """Share of common tokens, in order: 2 M / (len(a) + len(b)), M the tokens of all matching blocks (Ratcliff and Obershelp; difflib). 1.0 for equal
    ones only. 0.0 where a cheap upper bound is below `floor` already.     [1, 2, 3, 4], [1, 2, 4, 5]  ->  2 * 3 / 8 = 0.75"""
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if matcher.real_quick_ratio() < floor or matcher.quick_ratio() < floor:
        return 0.0
    return matcher.ratio()


def in_order(traces, select):
    """The preferred first: by score for prm, as sampled for all, else by length. Of near-duplicates the first stays."""
    key = {"prm": lambda t: -t.score, "all": lambda t: 0}.get(select, lambda t: len(t.ids))
    return sorted(traces, key=key)  # stable: equals stay as sampled


def drop_near(traces, near):
    """Without those of similarity `near` or more to an earlier one that stays.     near 0.75:  [1, 2, 3, 4], [1, 2, 4, 5], [4, 5]  ->  the first and the last"""
    apart = []
    for trace in traces:
        if all(similarity(trace.ids, other.ids, near) < near for other in apart):
            apart.append(trace)
    return apart


def choose(traces, select, keep):
    """At most `keep` of the traces, which come in order of preference; all: all. diverse: the first, then again and again the one least like those
    chosen (farthest-first, Gonzalez 1985), the earlier of equals.     [1, 2, 3, 4], [1, 2, 3, 5], [6, 7], keep 2  ->  the first and the last"""
    if select == "all":
        return list(traces)
    if select != "diverse" or len(traces) <= keep:
        return traces[:keep]
    chosen, rest = traces[:1], {t: 0.0 for t in traces[1:]}  # trace -> similarity to the most like of those chosen
    while len(chosen) < keep:
        rest = {t: max(s, similarity(t.ids, chosen[-1].ids)) for t, s in rest.items()}
        chosen.append(min(rest, key=rest.get))
        del rest[chosen[-1]]
    return chosen


def select_traces(problem, responses, scores, config):
    """Traces to keep of the responses (lists of ids) to one question, and a Counter of what became of each: one of CAUSES, or "kept"."""
    examined, found, fate, seen = {}, [], Counter(), set()
    for ids, score in zip(map(tuple, responses), scores, strict=True):
        if ids not in examined:  # equal responses are examined once
            examined[ids] = examine(problem, ids, score, config)
        trace, cause = examined[ids]
        if trace and trace.ids in seen and not config.duplicates:
            cause = "duplicate"
        if cause:
            fate[cause] += 1
        else:
            found.append(trace)
            seen.add(trace.ids)
    apart = found if config.duplicates else drop_near(in_order(found, config.select), config.near)
    chosen = choose(apart, config.select, config.keep)
    fate.update({"near-duplicate": len(found) - len(apart), "not selected": len(apart) - len(chosen), "kept": len(chosen)})
    return chosen, fate


def filter_pool(pool, rule, config):
    """JSONL rows of what is kept of a Pool, and sums over its samples: a Counter by (family, fate) and by name. rule: of the scores that count, or None."""
    rows, sums = [], Counter(right=int(pool.right.sum()), right_tokens=int(pool.tokens[pool.right].sum()), sampled_tokens=int(pool.tokens.sum()))
    for p, problem in enumerate(pool.problems):
        scores = pool.scores[rule][p].tolist() if rule else [None] * pool.samples
        chosen, fate = select_traces(problem, pool.ids[p], scores, config)
        sums.update({(problem.family, cause): n for cause, n in fate.items()}, solved=int(pool.right[p].any()))
        for trace in chosen:
            rows.append(dict(prompt=problem.question, response=trace.text, family=problem.family, level=problem.level, tokens=len(trace.ids)))
            if rule:
                rows[-1]["score"] = round(trace.score, 4)
    return rows, sums


def ask(questions, config):
    """The questions, each once: drawn from the training split, or the first of a user's own that are not kept for the evaluation."""
    return once(questions.own["train"] if questions.own else questions.draw(0, 0, config.questions))[: config.questions]


def once(problems):
    """Of problems that ask the same, in whatever words, only the first."""
    found = {}
    for problem in problems:
        found.setdefault(problem.key, problem)
    return list(found.values())


def sample_chunk(shared, problems):
    """Rows and sums of a few questions."""
    teacher, reward_model, config, bf16 = shared
    pool = draw_pool(teacher, problems, config.samples, config.temperature, config.max_reasoning_tokens, config.seed, config.cache or Path(config.out) / "samples")
    if reward_model:
        pool.add_reward_model("judge", reward_model, bf16)
    rule = ("judge" if reward_model.kind == "orm" else f"judge-{config.aggregate}") if reward_model else None
    return filter_pool(pool, rule, config)


def sample_traces(teacher, reward_model, problems, config, machine, bf16):
    """Rows and sums of all questions, on every rank. Ranks take turns with chunks; a chunk's samples, and a reward model's scores, are kept in
    --out/samples, and are the same whichever rank draws them: a killed run goes on behind its last whole chunk."""
    chunks, done = [problems[at : at + CHUNK] for at in range(0, len(problems), CHUNK)], {}
    mine, kept = range(machine.rank, len(chunks), machine.world), 0
    bar = StepBar(len(mine), "samples", machine)
    shared, at_once = (teacher, reward_model, config, bf16), processes(machine.device, len(mine) * CHUNK * config.samples)
    for step, (i, part) in enumerate(zip(mine, spread(sample_chunk, shared, [(chunks[i],) for i in mine], at_once))):
        done[i] = part
        kept += len(part[0])
        bar.show(step, f"{kept} traces kept")
    bar.close()
    if machine.world > 1:
        parts = [None] * machine.world
        dist.all_gather_object(parts, done)
        done = {i: part for share in parts for i, part in share.items()}
    rows, sums = zip(*(done[i] for i in sorted(done)))
    return [row for part in rows for row in part], sum(sums, Counter())


def account(rows, sums, problems, config):
    """What became of the samples: the figures of provenance.json."""
    families = list(dict.fromkeys(p.family for p in problems))
    of = lambda *names: {cause: sum(sums[name, cause] for name in names) for cause in (*CAUSES, "kept")}
    mean = lambda total, n: round(total / n, 2) if n else None
    return dict(seed=config.seed, temperature=config.temperature, questions=len(problems), samples=len(problems) * config.samples, sampled_tokens=sums["sampled_tokens"],
                fate=of(*families), families={name: of(name) for name in families}, traces=len(rows), solved=sums["solved"],
                mean_tokens_right=mean(sums["right_tokens"], sums["right"]), mean_tokens_kept=mean(sum(row["tokens"] for row in rows), len(rows)))


def fates(figures):
    """'40 wrong, 3 unfinished, ...': what became of the samples, in words."""
    return ", ".join(f"{n} {cause}" for cause, n in figures["fate"].items() if n)


def collect_traces(teacher, reward_model, problems, config, machine):
    """Stage 4: traces.jsonl and provenance.json in --out, unless they are there; returns the figures of the latter. Raises UserError where nothing
    was kept, or another teacher began this run."""
    out = Path(config.out)
    path, about = out / "traces.jsonl", out / "provenance.json"
    began = json.loads(about.read_text()) if config.resume and about.exists() else {}
    weights = fingerprint(teacher)
    if began.get("weights", weights) != weights:
        raise UserError(f"--resume: the weights of --teacher {config.teacher} are not those that began the run in {out}")
    if config.resume and path.exists():
        return began
    bf16 = choose_bf16(config.precision, machine, began.get("bf16"))
    figures = dict(teacher=config.teacher, weights=weights, bf16=bf16)
    if machine.main:
        write_json(about, figures)
    say(f"distill: {len(problems)} questions x {config.samples} samples of {teacher.num_params / 1e6:.2f}M parameters, {'bf16' if bf16 else 'fp32'} on {machine.device}", machine)
    rows, sums = sample_traces(sampler(teacher, bf16), reward_model, problems, config, machine, bf16)
    figures |= account(rows, sums, problems, config)
    if not rows:
        raise UserError(f"of {figures['samples']} samples no trace was kept ({fates(figures)}): a better teacher, easier questions (--level 1) or milder rules are needed")
    if machine.main:
        write_json(about, figures)
        scratch = path.with_name(path.name + ".tmp")
        scratch.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(scratch, path)  # last: where it stands, all is done
    if machine.world > 1:
        dist.barrier()  # every rank will read it
    return figures


def train_student(shape, config, machine):
    """Supervised training on the traces, by train_sft, in --out/student, unless it has ended; returns its report."""
    out, path = Path(config.out) / "student", Path(config.out) / "traces.jsonl"
    if config.resume and (out / "report.json").exists():
        return json.loads((out / "report.json").read_text())
    rows = map(json.loads, path.read_text().splitlines())
    longest = max(len(render_prompt(row["prompt"])) + row["tokens"] for row in rows)
    start = dict(model=config.student) if config.student in MODELS else dict(init=config.student)
    return train_sft.train(train_sft.Config(
        stage="cold-start", data=str(path), out=str(out), resume=config.resume and (out / "ckpt.pt").exists(), row_tokens=min(shape.max_len, max(256, longest)),
        epochs=config.epochs, batch_tokens=config.batch_tokens, muon_lr=config.muon_lr, adamw_lr=config.adamw_lr, precision=config.precision, device=config.device,
        seed=config.seed, max_steps=config.max_steps, **start), machine)


def table(figures):
    """{name: `greedy_figures`} as a person would like to read them."""
    lines = [f"{'':<10}{'parameters':>12}{'greedy accuracy, 95% interval':>34}{'tokens':>10}{'MFLOP a question':>20}"]
    for name, f in figures.items():
        shown = f"{f['greedy']['acc']:.3f} [{f['greedy']['ci'][0]:.3f}, {f['greedy']['ci'][1]:.3f}]"
        lines.append(f"{name:<10}{f['params']:>12,}{shown:>34}{f['mean_tokens']:>10.1f}{f['mean_flops'] / 1e6:>20.1f}")
    return "\n".join(lines)


def check_config(config):
    """UserError for what single flags cannot show to be wrong."""
    if not config.teacher:
        raise UserError("--teacher is missing: who solves the questions? For instance --teacher runs/speedrun/rl")
    if not config.student and not config.collect_only:
        raise UserError(f"--student is missing: one of {', '.join(MODELS)}, or a checkpoint to start from; --collect-only leaves it at the traces")
    if config.level == "auto":
        raise UserError("--level auto follows a model that learns; a teacher does not: name levels")
    if config.duplicates and config.select != "all":
        raise UserError(f"--duplicates is for --select all, not for {config.select}")
    if config.select == "prm" and not config.reward_model:
        raise UserError("--select prm keeps the highest scores: whose? Give a --reward-model")
    if config.min_score and not config.reward_model:
        raise UserError(f"--min-score {config.min_score:g} needs a --reward-model that scores")
    if (Path(config.out) / "traces.jsonl").exists() and not config.resume:
        raise UserError(f"--out {config.out} already holds a run; continue it with --resume or choose another folder")


def distill(config, machine):
    """The whole run; returns the report that is also written to --out, or, with --collect-only, the figures of provenance.json."""
    check_config(config)
    begun, teacher = time.time(), checkpoint.load_model(config.teacher, machine.device)
    reward_model = load_reward_model(config.reward_model, device=machine.device) if config.reward_model else None
    shapes = [teacher.config] + ([reward_model.config] if reward_model else [])
    if not config.collect_only:
        shapes.append(MODELS[config.student] if config.student in MODELS else checkpoint.load_model(config.student).config)
    questions = Questions(config.families, config.level, config.data, config.seed, min(shape.max_len for shape in shapes) - config.max_reasoning_tokens)
    problems = ask(questions, config)
    out = prepare_out(config.out, config, config.resume, machine)
    figures = collect_traces(teacher, reward_model, problems, config, machine)
    say(f"distill: {figures['traces']} traces of {figures['mean_tokens_kept']} tokens to {figures['solved']} of {figures['questions']} questions; right samples have "
        f"{figures['mean_tokens_right']}. What became of {figures['samples']} samples: {fates(figures)}", machine)
    if config.collect_only:
        return figures
    trained = train_student(shapes[-1], config, machine)
    report = dict(stage="distill", teacher=config.teacher, student=config.student, traces=config.traces, params=trained["params"], training=trained, collected=figures)
    held = once(questions.held_out(config.eval_problems, "val" if questions.own else "test"))  # of the user's own, training has asked none of these either
    if machine.main:
        if held:
            models = dict(teacher=teacher, student=checkpoint.load_model(out / "student", machine.device))
            report |= {f"{name}_figures": greedy_figures(sampler(model, figures["bf16"]), held, config.max_reasoning_tokens) for name, model in models.items()}
            say(table({name: report[f"{name}_figures"] for name in models}), machine)
        write_json(out / "report.json", report | dict(seconds=round(time.time() - begun, 1)))
    return report


def main():
    config = parse_config(Config, brings={"traces": {"full": {}, "compressed": dict(select="shortest")}}, doc=__doc__)
    distill(config, start_machine(config.device))


if __name__ == "__main__":
    run_script(main)
