"""Rejection sampling and distillation: a model's own right solutions teach the next model.

What this teaches. A teacher answers training questions many times. Wrong answers are dropped; what
is left is cleaned, freed of duplicates, chosen from and written as JSONL. With --collect-only that
is stage 4 of DeepSeek-R1 (2501.12948, section 2.3.3: rejection sampling), and `train_sft.py --stage
final` starts again from the base with it. Otherwise a student learns from the traces by plain
next-token training, without any RL (section 2.4), and is measured beside its teacher. `--traces
full` keeps the whole chain of thought, `compressed` only the steps that the answer needs.

The path, and where to read each move (without a file: below):

    problems  = training questions, each once              ask
    responses = `--samples` per problem, from the teacher  nanoreason/pool.py: draw_pool
    for each response: finished? right? sound?             nanoreason/traces.py: examine
        only the steps that the answer needs               nanoreason/traces.py: compress
    near-duplicates of a question are dropped              nanoreason/traces.py: drop_near
    at most `--keep` per question: the most diverse, ...   nanoreason/traces.py: choose
    traces.jsonl, and what became of each sample           collect_traces
    student   = next-token training on the traces          train_student, by train_sft.py
    accuracy and tokens of student and teacher             distill

The idea is older. STaR (Zelikman et al. 2203.14465) fine-tunes a model on its own rationales that
ended in the right answer, and starts again from the base each time. RFT (Yuan et al. 2308.01825)
samples 100 per question and finds that different ways of reasoning help: `--select diverse`.

Where it departs from the papers. R1 has part of its answers judged by a model, and throws away what
is hard to read; here an exact checker decides about all answers, and with `--clean steps` about
every line. RFT tells ways of reasoning apart by their equations; here the share of common tokens
does. STaR shows the answer to a model that fails; here a question that nobody solves is lost.

    laptop     python distill.py --teacher runs/speedrun/rl --student nano --traces compressed
    stage 4    python distill.py --teacher runs/speedrun/rl --collect-only --out runs/rejection
    8 GPUs     torchrun --nproc-per-node 8 distill.py --teacher runs/rl --student base
"""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

import train_sft
from nanoreason import checkpoint
from nanoreason.evaluate import greedy_figures
from nanoreason.flags import RATE_LIMIT, UserError, check_output, flag, parse_config
from nanoreason.generate import make_sampler
from nanoreason.machine import choose_bf16, run_script, start_machine
from nanoreason.model import PRESETS as MODELS
from nanoreason.pool import draw_pool, fingerprint, processes
from nanoreason.questions import Questions
from nanoreason.reward_model import AGGREGATES, load_reward_model
from nanoreason.run import RunFolder, StepBar, check_provenance, read_json, say, write_json
from nanoreason.run import write_text
from nanoreason.traces import account, fates, filter_pool
from nanoreason.workers import spread

CHUNK = 64  # questions sampled together and kept in one file: what a kill can cost


@dataclass
class Config:
    teacher: str = flag("", "checkpoint, run folder or pretrained:NAME that samples the solutions")
    student: str = flag("", "who learns from them: a size that starts from random weights "
                        f"({', '.join(MODELS)}), or checkpoint, run folder, pretrained:NAME")
    out: str = flag("runs/distill", "folder for samples, traces, student and report; all ranks "
                    "must see it")
    resume: bool = flag(False, "continue the run in --out")
    data: str = flag("", "JSONL file of questions and answers to ask instead of generated ones; a "
                     "tenth is kept for validation and a tenth for the test")
    families: str = flag("multiplication,chain,percent,word,equation", "families of the questions")
    level: str = flag("1,2", "levels of the questions; like families separated by commas")
    questions: int = flag(4000, "questions to draw from the training split; those drawn twice are "
                          "asked once", low=1)
    samples: int = flag(16, "solutions per question", low=1)
    temperature: float = flag(1.0, "sampling temperature", low=0.01)
    max_reasoning_tokens: int = flag(160, "longest response, in tokens", low=1)
    clean: str = flag("answer", "what must be right: the answer, or also every step, with the "
                      "answer following from them", ("answer", "steps"))
    reward_model: str = flag("", "reward model, or pretrained:NAME, that scores the traces, for "
                             "--min-score and --select prm")
    aggregate: str = flag("last", "how its scores of a trace's steps become one", tuple(AGGREGATES))
    min_score: float = flag(0.0, "drop traces that the reward model scores lower", low=0, high=1)
    near: float = flag(0.9, "drop a trace that shares this much of its tokens, in order, with one "
                       "kept of the same question; 1 keeps all that are not equal", low=0, high=1)
    select: str = flag("diverse", "which to keep: the shortest, all, those least like one another, "
                       "or those with the highest score", ("shortest", "all", "diverse", "prm"))
    duplicates: bool = flag(False, "with --select all: keep a trace as often as it was sampled")
    keep: int = flag(4, "most traces to keep per question; --select all keeps all", low=1)
    cache: str = flag("", "folder for the samples, which several runs may share; empty: in --out")
    traces: str = flag("full", "the whole chain of thought, or only the steps that the answer "
                       "needs, which brings --select shortest", ("full", "compressed"))
    collect_only: bool = flag(False, "end with the traces: rejection sampling")
    epochs: int = flag(2, "the student's passes over the traces", low=1)
    batch_tokens: int = flag(1536, "tokens per step of its training, over all ranks", low=64)
    muon_lr: float = flag(0.002, "peak learning rate of its matrices", low=0, high=RATE_LIMIT)
    adamw_lr: float = flag(0.0015, "peak learning rate of its embeddings and norms", low=0,
                           high=RATE_LIMIT)
    eval_problems: int = flag(100, "test problems per family for both models; 0: none", low=0)
    precision: str = flag("auto", "bf16 where it is faster, or one", ("auto", "fp32", "bf16"))
    device: str = flag("auto", "where to run", ("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of questions, samples, weights and data order", low=0)
    max_steps: int = flag(0, "end the student's training after this many steps; 0: not", low=0)


BRINGS = {"traces": {"full": {}, "compressed": dict(select="shortest")}}  # for parse_config


def distinct(problems):
    """Of problems that ask the same, in whatever words, only the first."""
    found = {}
    for problem in problems:
        found.setdefault(problem.key, problem)
    return list(found.values())


def ask(questions, config):
    """The questions, each once: drawn from the training split, or the first of a user's own that
    are not kept for the evaluation."""
    own = questions.own
    drawn = own["train"] if own else questions.draw(0, 0, config.questions)
    return distinct(drawn)[: config.questions]


def sample_chunk(shared, problems):
    """Rows of traces and counts, as `filter_pool` gives them, of a few problems."""
    teacher, reward_model, config, bf16 = shared
    cache = config.cache or Path(config.out) / "samples"
    pool = draw_pool(teacher, problems, config.samples, config.temperature,
                     config.max_reasoning_tokens, config.seed, cache)
    rule = None
    if reward_model:
        pool.add_reward_model("score", reward_model, bf16)
        rule = "score" if reward_model.kind == "orm" else f"score-{config.aggregate}"
    return filter_pool(pool, rule, config)


def sample_traces(teacher, reward_model, problems, config, machine, bf16):
    """The same of all problems, on every rank.

    Ranks take turns with chunks. The samples of a chunk, and a reward model's scores, are kept in
    --out/samples, and are the same whichever rank draws them: a killed run goes on behind its last
    whole chunk.
    """
    chunks = [problems[at : at + CHUNK] for at in range(0, len(problems), CHUNK)]
    mine = range(machine.rank, len(chunks), machine.world)
    bar = StepBar(len(mine), "samples", machine)
    shared = (teacher, reward_model, config, bf16)
    at_once = processes(machine.device, len(mine) * CHUNK * config.samples)
    parts = spread(sample_chunk, shared, [(chunks[i],) for i in mine], at_once)
    done = {}  # {chunk: (rows, sums)}
    kept = 0
    for step, (i, part) in enumerate(zip(mine, parts)):
        done[i] = part
        kept += len(part[0])
        bar.show(step, f"{kept} traces kept")
    bar.close()
    if machine.world > 1:
        shares = [None] * machine.world
        dist.all_gather_object(shares, done)
        done = {i: part for share in shares for i, part in share.items()}
    rows, sums = zip(*(done[i] for i in sorted(done)))
    return [row for part in rows for row in part], sum(sums, Counter())


def collect_traces(teacher, reward_model, problems, config, machine):
    """Stage 4: traces.jsonl and provenance.json in --out, unless they are there; returns the
    figures of the latter. Raises UserError where nothing was kept."""
    path = Path(config.out) / "traces.jsonl"
    about = Path(config.out) / "provenance.json"
    provenance = read_json(about) if config.resume and (about.exists() or path.exists()) else {}
    if config.resume and path.exists():
        return provenance
    bf16 = choose_bf16(config.precision, machine, provenance.get("bf16"))
    figures = dict(teacher=config.teacher, weights=fingerprint(teacher), bf16=bf16)
    if machine.main:
        write_json(about, figures)
    say(f"distill: {len(problems)} questions x {config.samples} samples of "
        f"{teacher.num_params / 1e6:.2f}M parameters, {'bf16' if bf16 else 'fp32'} on "
        f"{machine.device}", machine)
    policy = make_sampler(teacher, bf16)
    rows, sums = sample_traces(policy, reward_model, problems, config, machine, bf16)
    figures |= dict(seed=config.seed, temperature=config.temperature)
    figures |= account(rows, sums, problems, config.samples)
    if not rows:
        raise UserError(f"of {figures['samples']} samples no trace was kept ({fates(figures)}): a "
                        "better teacher, easier questions (--level 1) or milder rules are needed")
    if machine.main:
        write_json(about, figures)
        # last: where it stands, all is done
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    if machine.world > 1:
        dist.barrier()  # every rank will read it
    return figures


def train_student(student, config, machine):
    """Supervised training on the traces, by train_sft, in --out/student, unless it has ended;
    returns its report. student: as it starts."""
    path = Path(config.out) / "traces.jsonl"
    out = Path(config.out) / "student"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = [student.tokenizer.render_prompt(row["prompt"]) for row in rows]
    longest = max(len(prompt) + row["tokens"] for prompt, row in zip(prompts, rows))
    sft = train_sft.Config(
        stage="cold-start",  # plain next-token training on a file
        data=str(path),
        out=str(out),
        resume=config.resume and (out / "config.json").exists(),
        row_tokens=min(student.config.max_len, max(256, longest)),
        epochs=config.epochs,
        batch_tokens=config.batch_tokens,
        muon_lr=config.muon_lr,
        adamw_lr=config.adamw_lr,
        precision=config.precision,
        device=config.device,
        seed=config.seed,
        max_steps=config.max_steps,
    )
    if config.student in MODELS:
        sft.model = config.student
    else:
        sft.init = config.student
    return train_sft.train(sft, machine)


def table(figures):
    """{name: `greedy_figures`} as text."""
    lines = [f"{'':<10}{'parameters':>12}{'greedy accuracy, 95% interval':>34}{'tokens':>10}"
             f"{'MFLOP per question':>20}"]
    for name, f in figures.items():
        low, high = f["greedy"]["ci"]
        shown = f"{f['greedy']['acc']:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(f"{name:<10}{f['params']:>12,}{shown:>34}{f['mean_tokens']:>10.1f}"
                     f"{f['mean_flops'] / 1e6:>20.1f}")
    return "\n".join(lines)


def check_config(config):
    """UserError for what single flags cannot show to be wrong."""
    if not config.teacher:
        raise UserError("--teacher is missing: who solves the questions? "
                        "For instance --teacher runs/speedrun/rl")
    if not config.student and not config.collect_only:
        raise UserError(f"--student is missing: one of {', '.join(MODELS)}, or a checkpoint to "
                        "start from; --collect-only leaves it at the traces")
    check_output(config.cache, "cache", folder=True)
    if config.level == "auto":
        raise UserError("--level auto follows a model that learns; a teacher does not: name levels")
    if config.duplicates and config.select != "all":
        raise UserError(f"--duplicates is for --select all, not for {config.select}")
    if config.select == "prm" and not config.reward_model:
        raise UserError("--select prm keeps the highest scores: whose? Give a --reward-model")
    if config.min_score and not config.reward_model:
        raise UserError(f"--min-score {config.min_score:g} needs a --reward-model that scores")


def distill(config, machine):
    """The whole run; returns the report, which rank 0 completes and writes to --out, or, with
    --collect-only, the figures of provenance.json."""
    check_config(config)
    begun = time.time()
    reads = {"--teacher": config.teacher, "--reward-model": config.reward_model}
    reads = {flag: checkpoint.file_of(path) for flag, path in reads.items()}
    start = "" if config.student in MODELS else checkpoint.file_of(config.student)
    folder = RunFolder(config, reads | {"--data": config.data}, {"--student": start},
                       weights_name="student/ckpt.pt")
    if folder.finished:
        return folder.report(machine)
    teacher = checkpoint.load_model(config.teacher, machine.device)
    readers = {"--teacher": teacher}  # all models that will read the questions
    reward_model = None
    if config.reward_model:
        reward_model = load_reward_model(config.reward_model, device=machine.device)
        readers["--reward-model"] = reward_model
    if not config.collect_only:
        readers["--student"] = train_sft.starting_model(config.student)
    checkpoint.check_tokenizers({flag: model.tokenizer for flag, model in readers.items()})
    room = min(model.config.max_len for model in readers.values()) - config.max_reasoning_tokens
    questions = Questions(
        config.families, config.level, teacher.tokenizer, config.data, config.seed, room, machine)
    problems = ask(questions, config)
    if config.resume:
        named = f"--teacher {config.teacher}"
        check_provenance(config.out, fingerprint(teacher), "--resume", named)
    out = folder.prepare(machine)
    figures = collect_traces(teacher, reward_model, problems, config, machine)
    say(f"distill: {figures['traces']} traces of {figures['mean_tokens_kept']} tokens to "
        f"{figures['solved']} of {figures['questions']} questions; right samples have "
        f"{figures['mean_tokens_right']}. What became of {figures['samples']} samples: "
        f"{fates(figures)}", machine)
    if config.collect_only:
        return figures
    trained = train_student(readers["--student"], config, machine)
    report = dict(
        stage="distill", teacher=config.teacher, student=config.student, traces=config.traces,
        params=trained["params"], training=trained, collected=figures)
    held = distinct(questions.held_out(config.eval_problems, "test"))
    if machine.main:
        if held:
            student = checkpoint.load_model(out / "student", machine.device)
            shown = {}
            for name, model in (("teacher", teacher), ("student", student)):
                policy = make_sampler(model, figures["bf16"])
                shown[name] = greedy_figures(policy, held, config.max_reasoning_tokens)
                report[f"{name}_figures"] = shown[name]
            say(table(shown), machine)
        report["seconds"] = round(time.time() - begun, 1)
        write_json(out / "report.json", report)
    return report


def main():
    config = parse_config(Config, brings=BRINGS, doc=__doc__)
    distill(config, start_machine(config.device))


if __name__ == "__main__":
    run_script(main)
