"""Ask a trained model, or measure it.

What this teaches. The same weights give better answers when they may spend more: one greedy response, many samples and a vote, a reward model's choice, a search
over steps, longer thinking. With --eval, accuracy is measured on problems that training never saw: greedy, sampled, and for every N of --ns the
coverage (some sample is right: unbiased pass@k), the vote and the choice of each reward model, all estimated from the same max(N) samples a problem, which --cache keeps.

    one question     python sample.py "What is 15% of 80?" --ckpt runs/speedrun/rl
    a vote of 64     python sample.py "What is 847 × 293?" --ckpt runs/speedrun/rl --method vote --n 64
    a search         python sample.py "What is 47 × 6?" --ckpt runs/speedrun/cold --method beam --n 16 --reward-model runs/reward-models/prm-0
    longer thinking  python sample.py "What is 15% of 80?" --ckpt runs/speedrun/cold --method budget --n 2 --min-thinking 60
    measure          python sample.py --eval --ckpt runs/speedrun/cold --families multiplication,percent --level 2 --problems 250 --ns 1,4,16,64,256
                         --reward-model runs/reward-models/orm-0,runs/reward-models/prm-0 --json eval.json
"""

import json
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from nanoreason import checkpoint
from nanoreason.flags import flag, parse_config, UserError, whole_numbers
from nanoreason.machine import choose_bf16, generator, run_script, start_machine
from nanoreason.run import progress, say, write_json
from nanoreason.corpus import read_problems
from nanoreason.evaluate import accuracy, behaviours, by_family, collect, held_out_problems, interval_of_mean, reward_model_scorer
from nanoreason.generate import sampler
from nanoreason.pool import draw_pool, scaling
from nanoreason.search import CHOICES, METHODS, SEARCHES, SearchConfig, canonical
from nanoreason.tasks import FAMILIES, HELD_OUT_LEVEL, LEVELS, SAFETY
from nanoreason.tasks.general import is_refusal
from nanoreason.tokenizer import parse_response, render_prompt
from nanoreason.reward_model import AGGREGATES, load_reward_model


@dataclass
class Config:
    question: str = flag("", "the question to answer")
    ckpt: str = flag("", "checkpoint or run folder")
    method: str = flag("greedy", "how to spend compute on one question", choices=tuple(METHODS))
    n: int = flag(16, "samples or beams of --method; of budget, the most times that it writes Wait", low=1)
    reward_model: str = flag("", "checkpoint of the reward model that chooses or guides; without one the likelihood does. With --eval several, separated by commas")
    aggregate: str = flag("last", "how the scores of a response's steps become one", choices=tuple(AGGREGATES))
    width: int = flag(4, "continuations of a step that beam and dvts choose from", low=1)
    passes: int = flag(4, "checks of each response by --method self-verify", low=1)
    min_thinking: int = flag(0, "tokens of thinking below which --method budget writes Wait; 0: none", low=0)
    max_thinking: int = flag(0, "tokens of thinking at which --method budget closes it; 0: no bound", low=0)
    plan: str = flag("", "JSON file with the plan of --method auto, as `python -m nanoreason.studies.compute --study budget` leaves it")
    temperature: float = flag(1.0, "sampling temperature", low=0.01)
    max_reasoning_tokens: int = flag(400, "longest response, in tokens", low=1)
    eval: bool = flag(False, "measure accuracy instead of answering a question")
    data: str = flag("", "JSONL file of questions and answers to measure on: all its rows, or, with --split val, those that training keeps for validation")
    families: str = flag("multiplication,chain,percent,word,equation", "families to measure, separated by commas")
    level: str = flag("1,2", "levels to measure, separated by commas; 6 is held out from all training")
    problems: int = flag(200, "problems of each family, shared out over the levels", low=1)
    ns: str = flag("1", "numbers of samples to measure coverage, vote and reward models at, separated by commas; 0 for greedy only")
    cache: str = flag("runs/cache", "folder where samples are kept for the next measurement; empty: nowhere")
    split: str = flag("test", "split of the problems", choices=("val", "test"))
    json: str = flag("", "file for the figures")
    precision: str = flag("auto", "bf16 where it is faster, or one of them", choices=("auto", "fp32", "bf16"))
    device: str = flag("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of samples and of the choice of problems", low=0)


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
    reward_models = load_reward_models(config, model.config.max_len)
    if len(reward_models) > 1:
        raise UserError(f"--reward-model {config.reward_model}: one reward model answers a question; several are for --eval")
    scorer = reward_model_scorer(*reward_models.values(), [prompt], config.aggregate) if reward_models else None
    search_config = SearchConfig(max_new_tokens=config.max_reasoning_tokens, **{f.name: getattr(config, f.name) for f in fields(SearchConfig) if hasattr(config, f.name) and f.name != "plan"})
    if config.method == "auto":
        search_config = replace(search_config, plan=read_plan(config, *(reward_model.kind for reward_model in reward_models.values())))
    (result,) = METHODS[config.method](model, [prompt], search_config, generator(config.seed, "sample"), scorer)
    say(f"\nQuestion: {config.question}\n{pretty(result)}")
    if len(result.candidates) > 1:
        agree = sum(canonical(c.answer) == canonical(result.answer) for c in result.candidates)
        say(f"          {agree} of {len(result.candidates)} samples agree")
    say(f"\n{result.tokens} tokens, {result.flops / 1e9:.2f} GFLOP")
    return result


def load_reward_models(config, max_len):
    """{name: reward model} of --reward-model, in its order; two of one kind are told apart by their folders. Raises UserError."""
    found = {}
    for path in dict.fromkeys(filter(None, config.reward_model.split(","))):
        reward_model = load_reward_model(path)
        if reward_model.config.max_len < max_len:
            raise UserError(f"--reward-model {path} reads {reward_model.config.max_len} tokens, fewer than the {max_len} of the model's context")
        found[next(name for name in (reward_model.kind, Path(path).name, path) if name not in found)] = reward_model
    return found


def read_plan(config, kind=""):
    """Rows of --plan for the budget nearest to --n. Raises UserError where it is none, or was made with another kind of reward model: its estimates of
    difficulty would mean something else."""
    try:
        made = json.loads(Path(config.plan).read_text())
        plans = {int(n): tuple((float(edge), str(name), int(m)) for edge, name, m in rows) for n, rows in made["plans"].items()}
        rows = plans[min(plans, key=lambda n: abs(n - config.n))]
        if not rows or not {name for _, name, _ in rows} <= {"greedy", *CHOICES, *SEARCHES}:
            raise ValueError
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        raise UserError(f"--method auto needs a --plan, as `python -m nanoreason.studies.compute --study budget` leaves it; {config.plan or '(none)'} is none") from None
    if (made["kind"], made["aggregate"]) != (kind, config.aggregate):
        raise UserError(f"--plan {config.plan} was made with a reward model of kind {made['kind']} and --aggregate {made['aggregate']}, not with {kind or 'none'} and {config.aggregate}")
    return rows


def wanted_problems(config, max_len):
    """The problems to measure on. Raises UserError for a family or level that does not exist, or a question longer than the context."""
    families, levels = config.families.split(","), whole_numbers(config.level, "level")
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


def measure(model, config, machine):
    """Greedy accuracy by family and level; with --ns also sampled accuracy, and what N samples buy by every rule. Returns the figures."""
    ns = whole_numbers(config.ns, "ns")
    if min(ns) < 0:
        raise UserError(f"--ns {config.ns}: numbers of samples are positive")
    problems = wanted_problems(config, model.config.max_len)
    families, levels = list(dict.fromkeys(p.family for p in problems)), sorted({p.level for p in problems})
    bar = progress(len(problems) * (1 + max(ns)), "evaluate")
    greedy = collect(model, problems, 1, 0.0, config.max_reasoning_tokens, config.seed, on_progress=bar.update)
    right = sum(s[0].correct for s in greedy)
    figures = {"greedy": accuracy(right, len(problems)), "families": by_family(problems, greedy), "split": config.split, "levels": levels, "seed": config.seed,
               "mean_tokens": round(float(np.mean([s[0].tokens for s in greedy])), 2), "behaviours": behaviours([s[0].response for s in greedy])}
    figures["refused"] = {f: accuracy(sum(is_refusal(s[0].response.answer or "") for p, s in zip(problems, greedy) if p.family == f), sum(p.family == f for p in problems))
                          for f in families if f in SAFETY}
    if max(ns) > 0:
        pool = draw_pool(model, problems, max(ns), config.temperature, config.max_reasoning_tokens, config.seed, config.cache or None, bar.update)
        for name, reward_model in load_reward_models(config, 0).items():
            pool.add_reward_model(name, reward_model.to(machine.device), choose_bf16(config.precision, machine))
        shares, n = pool.right.mean(1), pool.right.size
        figures["sampled"] = {"acc": round(float(shares.mean()), 4), "n": n, "temperature": config.temperature,
                              "ci": accuracy(int(pool.right.sum()), n)["ci"] if max(ns) == 1 else interval_of_mean(shares),
                              "families": {f: round(float(np.mean([x for x, p in zip(shares, problems) if p.family == f])), 4) for f in families},
                              "mean_tokens": round(float(pool.tokens.mean()), 2), "behaviours": behaviours([parse_response(ids) for row in pool.ids for ids in row])}
        figures["scaling"] = scaling(pool, ns, config.seed)
    bar.close()
    return figures


def table(figures):
    """The figures as a person would like to read them."""
    line = lambda name, a: f"{name:<18}{a['acc']:6.3f}   [{a['ci'][0]:.3f}, {a['ci'][1]:.3f}]   n={a['n']}"
    rows = [f"greedy accuracy, {figures['split']} split, levels {figures['levels']}, 95% intervals"]
    rows += [line(name, a) for name, a in figures["families"].items()] + [line("all", figures["greedy"])]
    rows += [line(f"{name}, refused", a) for name, a in figures["refused"].items()]
    if "sampled" in figures:
        rows.append(line(f"sampled at T={figures['sampled']['temperature']:g}", figures["sampled"]))
        scale = figures["scaling"]
        rows.append(f"{'N':<24}" + "".join(f"{n:>10}" for n in scale["ns"]))
        rows += [f"{rule:<24}" + "".join(f"{value:>10.3f}" for value in scale[rule]) for rule in scale["rules"]]
        rows.append(f"{'tokens a problem':<24}" + "".join(f"{tokens:>10.0f}" for tokens in scale["tokens"]))
    return "\n".join(rows)


def main():
    config = parse_config(Config, doc=__doc__, positional="question")
    if not config.ckpt:
        raise UserError("--ckpt is missing: which model should answer?")
    if bool(config.question) == config.eval:
        raise UserError('give either a question ("What is 15% of 80?") or --eval')
    if config.json and not Path(config.json).resolve().parent.is_dir():
        raise UserError(f"--json {config.json}: there is no such folder")
    machine = start_machine(config.device)
    model = sampler(checkpoint.load_model(config.ckpt, machine.device), choose_bf16(config.precision, machine))
    start = time.time()
    if config.eval:
        figures = measure(model, config, machine)
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
