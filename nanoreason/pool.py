"""Many samples a problem, drawn once: kept in a cache, judged by everybody, and every smaller N estimated from them.

    pool = draw_pool(model, problems, 256, 1.0, 240, seed, Path("runs/cache"))
    pool.add_reward_model("orm", reward_model)
    scaling(pool, [1, 4, 16, 64, 256])         coverage, vote, mean log-probability, orm: best of N and weighted vote

A problem's samples come from random numbers of its own, so that they are the same (but for the rounding of matrix products of another size) whatever
the order of the problems and whoever shares the batch. P problems, N samples of each.
"""

import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cache
from math import comb
from pathlib import Path

import numpy as np
import torch

from nanoreason.checkpoint import vocabulary
from nanoreason.machine import generator
from nanoreason.run import say
from nanoreason.evaluate import interval_of_mean, pass_at_k
from nanoreason.generate import generate, noise
from nanoreason.rewards import outcome_reward
from nanoreason.search import canonical
from nanoreason.tokenizer import parse_response, render_prompt
from nanoreason.reward_model import AGGREGATES, aggregate, scores
from nanoreason.workers import spread

ROWS = 2048  # rows decoded at once: many samples of a question share their first tokens, and what they share is computed once
WORTH_IT = 20_000  # samples from which on several processes pay for their start
DRAWS = 64  # random subsets a problem that a vote over n < N samples is estimated from


@dataclass
class Pool:
    """ids: P lists of N responses; tokens (P, N): of whole responses; right (P, N) bool; answer (P, N): number of the answer among its
    problem's different ones, -1 for none; scores {rule: (P, N) in [0, 1]}; key: what the samples are kept under."""

    problems: list
    ids: list
    tokens: np.ndarray
    right: np.ndarray
    answer: np.ndarray
    key: str
    cache: Path | None
    scores: dict = field(default_factory=dict)

    @property
    def samples(self):
        return self.right.shape[1]

    def select(self, which, samples=None):
        """The pool of some of the problems, a list of indices, and of their first `samples` samples."""
        n = samples or self.samples
        return Pool([self.problems[p] for p in which], [self.ids[p][:n] for p in which], self.tokens[which, :n], self.right[which, :n],
                    self.answer[which, :n], "", None, {name: s[which, :n] for name, s in self.scores.items()})

    def add_reward_model(self, name, reward_model, bf16=False):
        """Score every sample: rule `name` for an orm, `name`-last, -min and -prod for a prm. Kept in the cache by the reward model's weights."""
        path = self.cache and self.cache / f"{self.key}-{fingerprint(reward_model)}.npz"
        kept = read_arrays(path)
        if kept is None:
            rules = ("last",) if reward_model.kind == "orm" else tuple(AGGREGATES)
            jobs = [(render_prompt(problem.question), ids, rules, bf16) for problem, ids in zip(self.problems, self.ids)]
            rows = list(spread(_judge, reward_model, jobs, processes(reward_model.score.weight.device, self.right.size)))
            kept = {rule: np.array([row[i] for row in rows], np.float32) for i, rule in enumerate(rules)}
            write_arrays(path, kept)
        for rule, values in kept.items():
            self.scores[name if reward_model.kind == "orm" else f"{name}-{rule}"] = values
        return self


def _judge(reward_model, prompt, responses, rules, bf16):
    """One number a rule and response; equal responses are read once."""
    rated = scores(reward_model, [prompt] * len(responses), responses, bf16)
    return [[aggregate(r, rule) for r in rated] for rule in rules]


def processes(device, samples):
    """How many should share the work on so many samples: one on a GPU, and where it is done before another has started."""
    return torch.get_num_threads() if device.type == "cpu" and samples >= WORTH_IT else 1


def fingerprint(model):
    """Of a model's weights and kind."""
    digest = hashlib.sha256(getattr(model, "kind", "").encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def read_arrays(path):
    """{name: array} of a cache file; None where there is none. One that is damaged is said and made again."""
    if path is None or not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        say(f"{path} is damaged; its samples are drawn again")
        return None


def write_arrays(path, arrays):
    """Keep arrays, so that a reader never sees half a file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(path.name + f".{os.getpid()}.tmp")
        with open(scratch, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(scratch, path)


def draw_pool(model, problems, samples, temperature, max_new_tokens, seed, cache=None, on_progress=None):
    """`samples` judged responses to each problem, from the cache folder where they have been drawn before with the same weights, problems and seed.
    Raises ValueError for a question that does not fit the model."""
    prompts = [render_prompt(p.question) for p in problems]
    about = repr((fingerprint(model), vocabulary(), model.embed.weight.dtype, prompts, samples, temperature, max_new_tokens, seed))
    key = hashlib.sha256(about.encode()).hexdigest()[:16]
    path = Path(cache) / f"{key}.npz" if cache else None
    kept = read_arrays(path)
    if kept is None:
        kept = _sample(model, problems, prompts, samples, temperature, max_new_tokens, seed, on_progress)
        write_arrays(path, kept)
    tokens = kept["tokens"].astype(np.int64)  # (P, N)
    ends = tokens.ravel().cumsum()
    flat = kept["ids"].tolist()
    ids = [flat[end - n : end] for end, n in zip(ends.tolist(), tokens.ravel().tolist())]
    ids = [ids[p * samples : (p + 1) * samples] for p in range(len(problems))]
    right, answer = np.zeros(tokens.shape, bool), np.full(tokens.shape, -1)
    for p, problem in enumerate(problems):
        right[p], answer[p] = check_samples(problem, ids[p])
    pool = Pool(problems, ids, tokens, right, answer, key, path and path.parent)
    pool.scores["likelihood"] = np.exp(kept["logprob"] / np.maximum(tokens, 1))
    return pool


def _sample(model, problems, prompts, samples, temperature, max_new_tokens, seed, on_progress):
    """The arrays of a pool: all ids end to end, and tokens and log-probability (P, N) of the responses."""
    at_once = max(1, ROWS // samples)
    seeds = [(seed, "pool", repr(p.key), p.question) for p in problems]
    jobs = [(prompts[at : at + at_once], seeds[at : at + at_once], samples, temperature, max_new_tokens) for at in range(0, len(problems), at_once)]
    parts = []
    for part in spread(sample_some, model, jobs, processes(model.embed.weight.device, len(problems) * samples)):
        parts.append(part)
        if on_progress:
            on_progress(part[1].size)
    ids, tokens, logprob = (np.concatenate(arrays) for arrays in zip(*parts))
    return dict(ids=ids, tokens=tokens.astype(np.int32), logprob=logprob.astype(np.float32))


def sample_some(model, prompts, seeds, samples, temperature, max_new_tokens):
    """ids end to end, and tokens and log-probability (P, samples), of responses to a few prompts; seeds: what each prompt's random numbers come from."""
    uniform = torch.cat([noise((samples, max_new_tokens), generator(*own)) for own in seeds])
    rollout = generate(model, prompts, samples, max_new_tokens, temperature, uniform, max_rows=ROWS).cpu()
    return rollout.ids[rollout.mask].short().numpy(), rollout.lengths.view(-1, samples).numpy(), rollout.logprobs.sum(1).view(-1, samples).numpy()


def check_samples(problem, responses):
    """right (N,) and the answers' numbers (N,), -1 for none; equal responses are judged once."""
    verdicts, numbers, out = {}, {}, []
    for ids in responses:
        if tuple(ids) not in verdicts:
            response = parse_response(ids)
            word = canonical(response.answer)
            number = -1 if word is None else numbers.setdefault(word, len(numbers))
            verdicts[tuple(ids)] = bool(outcome_reward(problem, response)), number
        out.append(verdicts[tuple(ids)])
    return zip(*out)


@cache
def reach(N, n):
    """(N + 1,) chance that none of n drawn without replacement from N is among the first r, r = 0 ... N: C(N - r, n) / C(N, n)."""
    return np.array([comb(N - r, n) / comb(N, n) for r in range(N + 1)])


def best_at(score, value, ns):
    """Expected `value` of the sample with the highest score among n drawn without replacement, exact and unbiased, for every n of ns; among equal
    scores each is as likely. score, value (N,).

    Sorted by falling score, the best of n stands at rank r or later with chance C(N - r, n) / C(N, n).

        score [0.9, 0.5, 0.1], value [0, 1, 1], n = 2   ->   1/3 (the pair without the first)
    """
    N = len(score)
    _, group, counts = np.unique(-score, return_inverse=True, return_counts=True)
    mean = np.bincount(group, value) / counts
    edges = np.concatenate(([0], counts.cumsum()))
    later = np.array([reach(N, n)[edges] for n in ns])  # (ns, groups + 1)
    return (later[:, :-1] - later[:, 1:]) @ mean


def votes_at(answer, right, weights, ns, rng, draws=DRAWS):
    """Expected accuracy of votes over n samples drawn without replacement: {rule: one for every n of ns}. Exact for n = N and, by rule, where a single
    sample decides; else a mean over `draws` random subsets, the same for all rules. answer, right (N,); weights {rule: (N,)}.

    Answers with equal sums share the verdict; where nothing was answered it is wrong.
    """
    N, A = len(answer), int(answer.max()) + 2
    truth = np.bincount(answer + 1, right, A) / np.maximum(np.bincount(answer + 1, minlength=A), 1)  # (A,) of each answer; the first stands for none
    order, out = rng.permuted(np.tile(np.arange(N), (draws, 1)), axis=1), {rule: [] for rule in weights}
    for n in ns:
        some = order[: 1 if n == N else draws, :n]
        cell = np.arange(len(some))[:, None] * A + answer[some] + 1  # (draws, n)
        for rule, weight in weights.items():
            if n == 1:
                out[rule].append(right.mean())
                continue
            total = np.bincount(cell.ravel(), weight[some].ravel(), len(some) * A).reshape(len(some), A)
            total[:, 0] = 0.0
            top = (total >= total.max(1, keepdims=True) * (1 - 1e-9)) & (total > 0)
            out[rule].append(((top * truth).sum(1) / np.maximum(top.sum(1), 1)).mean())
    return {rule: np.array(values) for rule, values in out.items()}


def estimates(pool, ns, seed=0):
    """Expected accuracy at every n of ns, problem by problem: {rule: (P, len(ns))}. Rules: coverage, vote, and for every score its best of n, under
    its own name, and its weighted vote, "weighted-" before it. Raises ValueError where an n exceeds the samples."""
    if max(ns) > pool.samples:
        raise ValueError(f"{max(ns)} samples cannot be estimated from {pool.samples}")
    out = {}
    for p in range(len(pool.problems)):
        answered, rng = pool.answer[p] >= 0, np.random.default_rng((seed, p))
        rules = {"coverage": np.array([pass_at_k(pool.samples, int(pool.right[p].sum()), n) for n in ns])}
        weights = {"vote": np.ones(pool.samples)} | {f"weighted-{name}": s[p] for name, s in pool.scores.items()}
        rules |= votes_at(pool.answer[p], pool.right[p], weights, ns, rng)
        rules |= {name: best_at(np.where(answered, s[p], -1.0), pool.right[p], ns) for name, s in pool.scores.items()}
        for rule, values in rules.items():
            out.setdefault(rule, []).append(values)
    return {rule: np.array(values) for rule, values in out.items()}


def log_fit(ns, values):
    """Least squares of values = a + b ln N: {'a', 'b', 'r2'}."""
    x, y = np.log(ns), np.asarray(values)
    b, a = np.polyfit(x, y, 1)
    residual, spread = ((y - a - b * x) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return {"a": round(float(a), 4), "b": round(float(b), 4), "r2": round(float(1 - residual / spread), 4) if spread else 1.0}


def scaling(pool, ns, seed=0, made=None):
    """What N samples buy, by every rule: {"ns", "problems", "tokens", rule: accuracies, rule_ci: 95% intervals over problems}, lists in the order of
    ns; "rules" names them. made: `estimates` of this pool, if they are at hand."""
    made = estimates(pool, ns, seed) if made is None else made
    out = {"ns": list(ns), "problems": len(pool.problems), "tokens": [round(n * float(pool.tokens.mean()), 1) for n in ns], "rules": list(made)}
    for rule, values in made.items():
        out[rule] = [round(float(v), 4) for v in values.mean(0)]
        out[rule + "_ci"] = [interval_of_mean(v, seed) for v in values.T]
    return out
