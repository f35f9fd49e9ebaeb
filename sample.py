"""Ask a trained model, or measure it.

What this teaches. The same weights give better answers when they may spend more: one greedy response, or many samples and a vote.
With --eval, accuracy is measured on problems that training never saw: greedy, sampled, and for every N of --ns the coverage (some sample is
right: unbiased pass@k) and the vote, all from one set of samples.

    one question     python sample.py "What is 15% of 80?" --ckpt runs/speedrun/rl
    a vote of 64     python sample.py "What is 847 × 293?" --ckpt runs/speedrun/rl --method vote --n 64
    measure          python sample.py --eval --ckpt runs/speedrun/rl --families multiplication,percent --level 2 --problems 500 --ns 1,4,16 --json eval.json
"""

import time
from dataclasses import dataclass

import numpy as np

from nanoreason import checkpoint
from nanoreason.common import UserError, choose_bf16, flag, generator, parse_config, progress, run_script, say, start_machine, write_json
from nanoreason.corpus import read_problems
from nanoreason.evaluate import accuracy, behaviours, by_family, collect, interval_of_mean, scaling, held_out_problems
from nanoreason.generate import sampler
from nanoreason.search import METHODS, canonical
from nanoreason.tasks import FAMILIES, HELD_OUT_LEVEL, LEVELS
from nanoreason.tokenizer import render_prompt


@dataclass
class Config:
    question: str = flag("", "the question to answer")
    ckpt: str = flag("", "checkpoint or run folder")
    method: str = flag("greedy", "how to spend compute on one question", choices=tuple(METHODS))
    n: int = flag(16, "samples of --method vote", low=1)
    temperature: float = flag(1.0, "sampling temperature", low=0.01)
    max_reasoning_tokens: int = flag(400, "longest response, in tokens", low=1)
    eval: bool = flag(False, "measure accuracy instead of answering a question")
    data: str = flag("", "JSONL file of questions and answers to measure on: all its rows, or, with --split val, those that training keeps for validation")
    families: str = flag("multiplication,chain,percent,word,equation", "families to measure, separated by commas")
    level: str = flag("1,2", "levels to measure, separated by commas; 6 is held out from all training")
    problems: int = flag(200, "problems of each family, shared out over the levels", low=1)
    ns: str = flag("1", "numbers of samples to measure coverage and vote at, separated by commas; 0 for greedy only")
    split: str = flag("test", "split of the problems", choices=("val", "test"))
    json: str = flag("", "file for the figures")
    precision: str = flag("auto", "bf16 where it is faster, or one of them", choices=("auto", "fp32", "bf16"))
    device: str = flag("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of samples and of the choice of problems", low=0)


def numbers(text, name):
    """'1,4,16' -> [1, 4, 16]; UserError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--{name} {text}: whole numbers separated by commas are wanted") from None


def pretty(result):
    """A response as a person would like to read it: the steps, then the answer."""
    lines = ["", *(f"  {step}" for step in result.response.steps)]
    if not result.response.steps:
        lines.append("  (answered at once, without thinking)")
    if result.answer is None:
        return "\n".join([*lines, "", "No answer: the response was cut off or broke the format."])
    return "\n".join([*lines, "", f"Answer: {result.answer}"])


def answer(model, config, machine):
    """Answer one question; prints reasoning and answer, returns the Result."""
    prompt = render_prompt(config.question)
    if len(prompt) >= model.config.max_len:
        raise UserError(f"the question takes {len(prompt)} tokens; this model's context holds {model.config.max_len}, answer included")
    noise = generator(config.seed, "sample")
    result = METHODS[config.method](model, prompt, config.n, config.temperature, config.max_reasoning_tokens, noise)
    say(f"\nQuestion: {config.question}\n{pretty(result)}")
    if len(result.candidates) > 1:
        agree = sum(canonical(c.answer) == canonical(result.answer) for c in result.candidates)
        say(f"          {agree} of {len(result.candidates)} samples agree")
    say(f"\n{result.tokens} tokens, {result.flops / 1e9:.2f} GFLOP")
    return result


def wanted_problems(config, max_len):
    """The problems to measure on. Raises UserError for a family or level that does not exist, or a question longer than the context."""
    families, levels = config.families.split(","), numbers(config.level, "level")
    if unknown := [f for f in families if f not in FAMILIES]:
        raise UserError(f"--families: there is no family {unknown[0]!r}; there are {', '.join(FAMILIES)}")
    if not set(levels) <= {*LEVELS, HELD_OUT_LEVEL}:
        raise UserError(f"--level {config.level}: levels are 1 to {HELD_OUT_LEVEL}")
    if config.data:
        own = read_problems(config.data)
        problems = own["val"] if config.split == "val" else own["train"] + own["val"]
    else:
        problems = held_out_problems(families, levels, config.problems, config.split, config.seed)
    if not problems:
        raise UserError(f"no problems to measure on: {config.data or config.families} holds none in this split and level")
    if (longest := max(len(render_prompt(p.question)) for p in problems)) >= max_len:
        raise UserError(f"a question takes {longest} tokens; this model's context holds {max_len}, answer included")
    return problems


def measure(model, config):
    """Greedy accuracy by family and level; with --ns also sampled accuracy, coverage and vote. Returns the figures."""
    ns = numbers(config.ns, "ns")
    if min(ns) < 0:
        raise UserError(f"--ns {config.ns}: numbers of samples are positive")
    problems = wanted_problems(config, model.config.max_len)
    families, levels = list(dict.fromkeys(p.family for p in problems)), sorted({p.level for p in problems})
    bar = progress(len(problems) * (1 + max(ns)), "evaluate")
    greedy = collect(model, problems, 1, 0.0, config.max_reasoning_tokens, config.seed, on_progress=bar.update)
    right = sum(s[0].correct for s in greedy)
    figures = {"greedy": accuracy(right, len(problems)), "families": by_family(problems, greedy), "split": config.split, "levels": levels, "seed": config.seed,
               "mean_tokens": round(float(np.mean([s[0].tokens for s in greedy])), 2), "behaviours": behaviours([s[0].response for s in greedy])}
    if max(ns) > 0:
        sampled = collect(model, problems, max(ns), config.temperature, config.max_reasoning_tokens, config.seed, on_progress=bar.update)
        every = [s for samples in sampled for s in samples]
        shares = [np.mean([s.correct for s in samples]) for samples in sampled]
        figures["sampled"] = {"acc": round(float(np.mean(shares)), 4), "n": len(every), "temperature": config.temperature,
                              "ci": accuracy(sum(s.correct for s in every), len(every))["ci"] if max(ns) == 1 else interval_of_mean(shares),
                              "families": {f: round(float(np.mean([x for x, p in zip(shares, problems) if p.family == f])), 4) for f in families},
                              "mean_tokens": round(float(np.mean([s.tokens for s in every])), 2), "behaviours": behaviours([s.response for s in every])}
        figures["scaling"] = scaling(sampled, ns, config.seed)
    bar.close()
    return figures


def table(figures):
    """The figures as a person would like to read them."""
    line = lambda name, a: f"{name:<16}{a['acc']:6.3f}   [{a['ci'][0]:.3f}, {a['ci'][1]:.3f}]   n={a['n']}"
    rows = [f"greedy accuracy, {figures['split']} split, levels {figures['levels']}, 95% intervals"]
    rows += [line(name, a) for name, a in figures["families"].items()] + [line("all", figures["greedy"])]
    if "sampled" in figures:
        rows.append(line(f"sampled at T={figures['sampled']['temperature']:g}", figures["sampled"]))
        scale = figures["scaling"]
        rows += [f"N={n:<5d} coverage {c:.3f} {cc}   vote {v:.3f} {vc}   {t:.0f} tokens a problem" for n, c, cc, v, vc, t in zip(
            scale["ns"], scale["coverage"], scale["coverage_ci"], scale["vote"], scale["vote_ci"], scale["tokens"])]
    return "\n".join(rows)


def main():
    config = parse_config(Config, doc=__doc__, positional="question")
    if not config.ckpt:
        raise UserError("--ckpt is missing: which model should answer?")
    if bool(config.question) == config.eval:
        raise UserError('give either a question ("What is 15% of 80?") or --eval')
    machine = start_machine(config.device)
    model = sampler(checkpoint.load_model(config.ckpt, machine.device), choose_bf16(config.precision, machine))
    start = time.time()
    if config.eval:
        figures = measure(model, config)
        figures["seconds"] = round(time.time() - start, 1)
        say(table(figures))
    else:
        result = answer(model, config, machine)
        figures = dict(question=config.question, method=config.method, n=len(result.candidates), answer=result.answer, thinking=result.response.thinking,
                       answers=[c.answer for c in result.candidates], tokens=result.tokens, flops=result.flops)
    if config.json:
        write_json(config.json, figures)


if __name__ == "__main__":
    run_script(main)
