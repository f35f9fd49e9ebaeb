"""Many samples per problem, drawn once: kept in a cache, scored by every reward model, and used to
estimate what any smaller number of samples would give.

    pool = draw_pool(model, problems, 256, 1.0, 240, seed, Path("runs/cache"))
    pool.add_reward_model("orm", reward_model)
    scaling(pool, [1, 4, 16, 64, 256])     accuracy at each N by every rule: coverage, vote, and
                                           best of N and weighted vote, by likelihood and by orm

The samples of a problem come from random numbers of its own. So they do not depend on the order of
the problems or on which of them share a batch, except through the rounding of matrix products of
another size, and through the limit that the longest prompt of a batch leaves.

Letters: P problems, N samples of each.
"""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cache
from math import comb
from pathlib import Path

import numpy as np
import torch

from nanoreason.machine import generator
from nanoreason.run import say, whole_file
from nanoreason.evaluate import interval_of_mean, pass_at_k
from nanoreason.generate import generate, uniform_numbers
from nanoreason.rewards import outcome_reward
from nanoreason.tasks import answer_key
from nanoreason.tokenizer import Tokenizer
from nanoreason.reward_model import AGGREGATES, aggregate, scores
from nanoreason.workers import spread

ROWS = 2048  # rows decoded at once; more than elsewhere, because samples of a prompt share branches
WORTH_IT = 20_000  # samples from which on it pays to start further processes
DRAWS = 64  # random subsets per problem that estimate a vote over n < N samples


@dataclass
class Pool:
    """N samples of each of P problems, checked, with scores.

    problems   P Problems
    ids        P lists of N responses, lists of ids
    tokens     (P, N) int, tokens per response, the stop token included
    right      (P, N) bool, whether the exact checker accepts the answer
    answer     (P, N) int, number of the answer among the different ones to its problem; -1: none
    tokenizer  what the ids mean
    key        name that the samples are kept under in the cache
    cache      folder, or None
    scores     {rule: (P, N) floats in [0, 1]}
    """

    problems: list
    ids: list
    tokens: np.ndarray
    right: np.ndarray
    answer: np.ndarray
    tokenizer: Tokenizer
    key: str
    cache: Path | None
    scores: dict = field(default_factory=dict)

    @property
    def samples(self):
        """N."""
        return self.right.shape[1]

    def select(self, which, samples=None):
        """The pool of some of the problems, a list of indices, and of their first `samples`
        samples."""
        n = samples or self.samples
        return Pool(
            problems=[self.problems[p] for p in which],
            ids=[self.ids[p][:n] for p in which],
            tokens=self.tokens[which, :n],
            right=self.right[which, :n],
            answer=self.answer[which, :n],
            tokenizer=self.tokenizer,
            key="",
            cache=None,
            scores={rule: score[which, :n] for rule, score in self.scores.items()},
        )

    def add_reward_model(self, name, reward_model, bf16=False):
        """Score every sample with a reward model. The rule is called `name` for an ORM; a PRM gives
        three rules, `name`-last, `name`-min and `name`-prod. The scores are kept in the cache, by
        the reward model's weights. Returns the pool."""
        path = self.cache and self.cache / f"{self.key}-{fingerprint(reward_model)}.npz"
        is_orm = reward_model.kind == "orm"
        kept = read_arrays(path)
        if kept is None:
            kept = self._scores_by(reward_model, ("last",) if is_orm else tuple(AGGREGATES), bf16)
            write_arrays(path, kept)
        for how, values in kept.items():
            self.scores[name if is_orm else f"{name}-{how}"] = values
        return self

    def _scores_by(self, reward_model, aggregates, bf16):
        """{aggregate: (P, N) float32} of a reward model."""
        prompts = [self.tokenizer.render_prompt(problem.question) for problem in self.problems]
        jobs = [(prompt, own, aggregates, bf16) for prompt, own in zip(prompts, self.ids)]
        workers = processes(reward_model.score.weight.device, self.right.size)
        rows = list(spread(_score_responses, reward_model, jobs, workers))  # P rows of lists
        return {
            how: np.array([row[i] for row in rows], np.float32) for i, how in enumerate(aggregates)
        }


def _score_responses(reward_model, prompt, responses, aggregates, bf16):
    """Scores of the responses to one prompt: per aggregate a list of N."""
    readings = scores(reward_model, [prompt] * len(responses), responses, bf16)
    return [[aggregate(own, how) for own in readings] for how in aggregates]


def processes(device, samples):
    """How many processes should share the work on so many samples: one on a GPU, and one where the
    work is done before another process has started."""
    return torch.get_num_threads() if device.type == "cpu" and samples >= WORTH_IT else 1


# The cache


def fingerprint(model):
    """12 hex digits of a model's kind, its weights, and the opening of a sampler that has one."""
    digest = hashlib.sha256(getattr(model, "kind", "").encode())
    for name, tensor in model.state_dict().items():
        data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        digest.update(name.encode() + data)
    return digest.hexdigest()[:12]


def read_arrays(path):
    """{name: array} of a cache file; None where there is none. A damaged file is reported and
    counts as none."""
    if path is None or not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        say(f"{path} is damaged; its samples are drawn again")
        return None


def write_arrays(path, arrays):
    """Keep {name: array} in a cache file, in one move: a reader never sees half of it. Nothing
    happens where path is None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as scratch, open(scratch, "wb") as file:
        np.savez_compressed(file, **arrays)


# Drawing and checking samples


def draw_pool(
    model, problems, samples, temperature, max_new_tokens, seed, cache=None, on_progress=None
):
    """The Pool of `samples` responses to each problem. cache: a folder, from which they are read
    where they were drawn before with the same weights, problems and seed; None: nowhere.

    Raises ValueError for a question that does not fit the model.
    """
    tokenizer = model.tokenizer
    prompts = [tokenizer.render_prompt(problem.question) for problem in problems]
    dtype = model.embed.weight.dtype
    about = repr((
        fingerprint(model), tokenizer.fingerprint, dtype, prompts, samples, temperature,
        max_new_tokens, seed,
    ))
    key = hashlib.sha256(about.encode()).hexdigest()[:16]
    path = Path(cache) / f"{key}.npz" if cache else None
    kept = read_arrays(path)
    if kept is None:
        kept = _sample(
            model, problems, prompts, samples, temperature, max_new_tokens, seed, on_progress
        )
        write_arrays(path, kept)
    tokens = kept["tokens"].astype(np.int64)  # (P, N)
    ids = split_responses(kept["ids"], tokens)
    right = np.zeros(tokens.shape, bool)
    answer = np.full(tokens.shape, -1)
    for p, problem in enumerate(problems):
        right[p], answer[p] = check_samples(problem, ids[p], tokenizer)
    pool = Pool(problems, ids, tokens, right, answer, tokenizer, key, path and path.parent)
    pool.scores["likelihood"] = np.exp(kept["logprob"] / np.maximum(tokens, 1))  # per token
    return pool


def split_responses(ids, tokens):
    """P lists of N responses, from their ids end to end and their lengths (P, N).

    [5, 6, 7, 8, 9, 9], [[2, 1], [2, 1]]  ->  [[[5, 6], [7]], [[8, 9], [9]]]
    """
    flat = ids.tolist()
    ends = tokens.cumsum().reshape(tokens.shape)
    return [
        [flat[end - n : end] for end, n in zip(own_ends, own_tokens)]
        for own_ends, own_tokens in zip(ends.tolist(), tokens.tolist())
    ]


def _sample(model, problems, prompts, samples, temperature, max_new_tokens, seed, on_progress):
    """The arrays of a pool: the ids of all responses end to end, int16, or int32 where they need
    it; tokens (P, N) int32 and log-probability (P, N) float32 of each."""
    per_job = max(1, ROWS // samples)
    seeds = [(seed, "pool", repr(problem.key), problem.question) for problem in problems]
    jobs = []
    for first in range(0, len(problems), per_job):
        some = slice(first, first + per_job)
        jobs.append((prompts[some], seeds[some], samples, temperature, max_new_tokens))
    workers = processes(model.embed.weight.device, len(problems) * samples)
    parts = []
    for part in spread(sample_some, model, jobs, workers):
        parts.append(part)
        if on_progress:
            _, tokens, _ = part
            on_progress(tokens.size)
    ids, tokens, logprob = (np.concatenate(arrays) for arrays in zip(*parts))
    return dict(ids=ids, tokens=tokens.astype(np.int32), logprob=logprob.astype(np.float32))


def sample_some(model, prompts, seeds, samples, temperature, max_new_tokens):
    """Responses to a few prompts: ids end to end, and tokens and log-probability (P, samples) of
    each response. seeds: per prompt the tuple that seeds its random numbers."""
    shape = (samples, max_new_tokens)
    longest = model.config.max_len
    uniform = [uniform_numbers(shape, generator(*own), longest) for own in seeds]
    rollout = generate(
        model, prompts, samples, max_new_tokens, temperature, uniform=torch.cat(uniform),
        max_rows=ROWS,
    ).cpu()
    ids = rollout.ids[rollout.mask].numpy()
    ids = ids.astype(np.int16 if ids.max() <= np.iinfo(np.int16).max else np.int32)
    tokens = rollout.lengths.view(-1, samples).numpy()
    logprob = rollout.logprobs.sum(1).view(-1, samples).numpy()
    return ids, tokens, logprob


def check_samples(problem, responses, tokenizer):
    """For each of N responses, whether it is right, (N,), and the number of its answer, (N,), -1
    for none. Answers are numbered as they first appear. Equal responses are read once, and equal
    answers are checked once: all texts of one key are right or none is."""
    keys = {}
    checked = {None: (False, -1)}
    found = []
    for ids in map(tuple, responses):
        if ids not in keys:
            response = tokenizer.parse_response(ids)
            keys[ids] = key = answer_key(response.answer, problem)
            if key not in checked:
                checked[key] = (bool(outcome_reward(problem, response)), len(checked) - 1)
        found.append(checked[keys[ids]])
    return zip(*found)


# Estimators: what n < N samples would give


@cache
def none_of_the_first(N, n):
    """(N + 1,) probability that none of n samples, drawn without replacement from N, is among the
    first r, for r = 0 ... N: C(N - r, n) / C(N, n)."""
    return np.array([comb(N - r, n) / comb(N, n) for r in range(N + 1)])


def best_at(score, value, ns):
    """Expected `value` of the sample with the highest score among n, for every n of ns: (len(ns),).

    The n are drawn without replacement from N, and equal scores are chosen with equal chances; the
    expectation is exact and unbiased. score, value (N,).

    Sorted by falling score, the best of n has rank r or later with probability
    C(N - r, n) / C(N, n).

        score [0.9, 0.5, 0.1], value [0, 1, 1], n = 2   ->   1/3 (the pair without the first)
    """
    N = len(score)
    _, group, counts = np.unique(-score, return_inverse=True, return_counts=True)
    mean = np.bincount(group, value) / counts  # (groups,), of samples with equal scores
    edges = np.concatenate(([0], counts.cumsum()))  # (groups + 1,), first rank of each group
    later = np.array([none_of_the_first(N, n)[edges] for n in ns])  # (ns, groups + 1)
    chosen = later[:, :-1] - later[:, 1:]  # (ns, groups), probability that the best is in a group
    return chosen @ mean


def votes_at(answer, right, weights, ns, rng, draws=DRAWS):
    """Expected accuracy of votes over n samples, drawn without replacement from N: {rule: (ns,)}.

    answer, right (N,) as in Pool; weights {rule: (N,)}. Answers with equal sums of weights share
    the decision; where no sample has an answer it is wrong. Exact for n = N and n = 1, where a
    single sample decides; else a mean over `draws` random subsets, the same for all rules.
    """
    N = len(answer)
    A = int(answer.max()) + 2  # different answers, and number 0 for none
    count = np.bincount(answer + 1, minlength=A)
    truth = np.bincount(answer + 1, right, A) / np.maximum(count, 1)  # (A,), 1 for a right answer
    order = rng.permuted(np.tile(np.arange(N), (draws, 1)), axis=1)  # (draws, N)
    found = {rule: [] for rule in weights}
    for n in ns:
        subsets = order[: 1 if n == N else draws, :n]  # (draws, n)
        for rule, weight in weights.items():
            if n == 1:
                found[rule].append(right.mean())
            else:
                found[rule].append(vote_accuracy(answer[subsets] + 1, weight[subsets], truth))
    return {rule: np.array(values) for rule, values in found.items()}


def vote_accuracy(answer, weight, truth):
    """Mean accuracy of weighted votes in D subsets of n samples.

    answer (D, n) int: number of each sample's answer, 0 for none; weight (D, n); truth (A,): 1.0
    for a right answer, else 0.0.
    """
    D = len(answer)
    A = len(truth)
    cell = np.arange(D)[:, None] * A + answer  # (D, n), index of each sample in a table (D, A)
    total = np.bincount(cell.ravel(), weight.ravel(), D * A).reshape(D, A)
    total[:, 0] = 0.0  # no answer, no vote
    highest = total.max(1, keepdims=True) * (1 - 1e-9)  # sums that differ by rounding are equal
    winners = (total >= highest) & (total > 0)  # (D, A)
    return ((winners * truth).sum(1) / np.maximum(winners.sum(1), 1)).mean()


def estimates(pool, ns, seed=0):
    """Expected accuracy at every n of ns, problem by problem: {rule: (P, len(ns))}.

    Rules: coverage, vote, and for every score of the pool its best of n, under its own name, and
    its weighted vote, as "weighted-" and the name. Raises ValueError where an n exceeds N.
    """
    if max(ns) > pool.samples:
        raise ValueError(f"{max(ns)} samples cannot be estimated from {pool.samples}")
    found = {}
    for p in range(len(pool.problems)):
        rng = np.random.default_rng((seed, p))
        for rule, values in problem_estimates(pool, p, ns, rng).items():
            found.setdefault(rule, []).append(values)
    return {rule: np.array(values) for rule, values in found.items()}


def problem_estimates(pool, p, ns, rng):
    """`estimates` of problem p: {rule: (len(ns),)}."""
    right = pool.right[p]
    answer = pool.answer[p]
    n_right = int(right.sum())
    found = {"coverage": np.array([pass_at_k(pool.samples, n_right, n) for n in ns])}
    weights = {"vote": np.ones(pool.samples)}
    for name, score in pool.scores.items():
        weights[f"weighted-{name}"] = score[p]
    found |= votes_at(answer, right, weights, ns, rng)
    for name, score in pool.scores.items():
        answered = np.where(answer >= 0, score[p], -1.0)  # a response without an answer is last
        found[name] = best_at(answered, right, ns)
    return found


def log_fit(ns, values):
    """Least squares of values = a + b ln N: {'a', 'b', 'r2'}. r2 is 1 for equal values."""
    x = np.log(ns)
    y = np.asarray(values)
    b, a = np.polyfit(x, y, 1)
    residual = ((y - a - b * x) ** 2).sum()
    variation = ((y - y.mean()) ** 2).sum()
    r2 = round(float(1 - residual / variation), 4) if variation else 1.0
    return {"a": round(float(a), 4), "b": round(float(b), 4), "r2": r2}


def scaling(pool, ns, seed=0):
    """What N samples give, by every rule, for reports.

    {"ns", "problems", "tokens": per problem, "rules": names, and per rule its accuracies under its
    name and their 95% intervals over problems under rule_ci}; lists are in the order of ns.
    """
    accuracies = estimates(pool, ns, seed)
    per_sample = float(pool.tokens.mean())
    figures = {
        "ns": list(ns),
        "problems": len(pool.problems),
        "tokens": [round(n * per_sample, 1) for n in ns],
        "rules": list(accuracies),
    }
    for rule, values in accuracies.items():  # values (P, len(ns))
        figures[rule] = [round(float(mean), 4) for mean in values.mean(0)]
        figures[rule + "_ci"] = [interval_of_mean(column) for column in values.T]
    return figures
