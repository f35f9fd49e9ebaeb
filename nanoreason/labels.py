"""What a reward model learns from: a policy's responses, and which of their steps are right.

    sample_responses   the policy answers every question several times
    check_response     the exact checker says whether the answer, and each step, is right
    monte_carlo        without a checker of steps: continue from a step, and see how often the
                       answer comes out right (Math-Shepherd 2312.08935)
    label_responses    all of this for training, validation and test, kept as .npz in the run folder

Below stand two measures on such responses: `quality`, of a reward model, and `label_quality`, of
Monte Carlo labels. Letters: S places of a response, its steps and its answer; K rollouts per step.

The functions that sample take the config of train_prm.py and read samples, temperature,
max_reasoning_tokens, rollouts, labels and seed from it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from nanoreason.corpus import Example
from nanoreason.evaluate import auc, brier, reliability
from nanoreason.flags import UserError
from nanoreason.generate import MAX_ROWS, generate, noise
from nanoreason.machine import generator
from nanoreason.pool import (
    ROWS, processes, read_arrays, sample_some, split_responses, write_arrays,
)
from nanoreason.questions import Questions, own_share
from nanoreason.reward_model import read_logits, reading_places
from nanoreason.rewards import outcome_reward, step_rewards
from nanoreason.run import progress
from nanoreason.tokenizer import parse_response, render_prompt
from nanoreason.workers import spread


@dataclass
class LabelledResponse:
    """One response to a question, and what is known about it.

    question: index of its problem. example: prompt and response as ids. right: whether the answer
    is. places: S indices into the response, the tokens that end its steps and then its last token,
    which stands for the answer. exact: S numbers, 1.0 where the checker finds the step, or the
    answer, right, else 0.0. rollouts: (S, K) bool, which of K continuations from there end in the
    right answer; None where none were sampled.
    """

    question: int
    example: Example
    right: bool
    places: list
    exact: list
    rollouts: np.ndarray | None = None

    @property
    def ids(self):
        """The response alone, without its prompt."""
        return self.example.ids[self.example.prompt_len :]


@dataclass
class LabelledSplit:
    """The labelled responses of a split, and what they cost: tokens sampled for responses and,
    (K,), for the first, second, ... rollout of every step (None without rollouts)."""

    responses: list
    sampled_tokens: int
    rollout_tokens: np.ndarray | None = None

    @property
    def examples(self):
        """One Example per response."""
        return [r.example for r in self.responses]

    @property
    def cost(self):
        """{"sampled", "rolled"}: tokens of responses and of rollouts."""
        rolled = 0 if self.rollout_tokens is None else int(self.rollout_tokens.sum())
        return dict(sampled=self.sampled_tokens, rolled=rolled)


# Sampling and labelling


def sample_responses(policy, problems, own, config, split, machine):
    """Responses (lists of ids) to the problems `own`, a list of indices: `samples` to each, those
    to one problem side by side. Each question draws from random numbers of its own."""
    count = len(own) * config.samples
    at_once = max(1, MAX_ROWS // config.samples)
    jobs = []
    for at in range(0, len(own), at_once):
        part = own[at : at + at_once]
        prompts = [render_prompt(problems[i].question) for i in part]
        seeds = [(config.seed, "verifier", split, i) for i in part]
        limits = (config.samples, config.temperature, config.max_reasoning_tokens)
        jobs.append((prompts, seeds, *limits))
    bar = progress(count, f"{split} responses", machine)
    responses = []
    for ids, tokens, _ in spread(sample_some, policy, jobs, processes(machine.device, count)):
        for own_responses in split_responses(ids, tokens):
            responses += own_responses
        bar.update(tokens.size)
    bar.close()
    return responses


def check_response(question, problem, ids):
    """The LabelledResponse of these ids, without rollouts, as the exact checker sees it.

    A step that was not needed counts as right. The checker goes on behind a wrong step, as a model
    may correct itself; the labelers of Lightman et al. stop there.
    """
    prompt = render_prompt(problem.question)
    right = outcome_reward(problem, parse_response(ids)) > 0
    exact = [float(value >= 0) for _, value in step_rewards(problem, ids)]
    return LabelledResponse(
        question, Example(prompt + ids, len(prompt)), right, reading_places("prm", ids),
        [*exact, float(right)],
    )


def monte_carlo(policy, starts, problems, config, split, bar):
    """Continue from each start `rollouts` times.

    starts: N pairs (index of a problem, ids of a response up to the end of a step). Returns (N, K)
    bool, which continuations end in the right answer, and (K,), the tokens of the first, second,
    ... continuation over all starts. Each start draws from random numbers of its own.
    """
    K = config.rollouts
    limit = config.max_reasoning_tokens
    found = np.zeros((len(starts), K), bool)
    tokens = np.zeros(K, np.int64)
    # starts of about the same length share a batch, as each is padded to its longest
    order = sorted(range(len(starts)), key=lambda i: len(starts[i][1]))
    at_once = max(1, ROWS // K)
    for at in range(0, len(order), at_once):
        some = order[at : at + at_once]
        prompts = []
        uniform = []
        for i in some:
            question, prefix = starts[i]
            prompts.append(render_prompt(problems[question].question) + prefix)
            own = generator(config.seed, "rollouts", split, question, prefix)
            uniform.append(noise((K, limit), own))
        rollout = generate(
            policy, prompts, K, limit, config.temperature, torch.cat(uniform), ROWS,
            on_progress=bar.update,
        ).cpu()
        tokens += rollout.lengths.view(-1, K).sum(0).numpy()
        for row in range(len(rollout.ids)):
            question, prefix = starts[some[row // K]]
            response = parse_response(prefix + rollout.response(row))
            right = outcome_reward(problems[question], response) > 0
            found[some[row // K], row % K] = right
    return found, tokens


def add_rollouts(policy, responses, problems, config, split, machine):
    """Set `rollouts` of LabelledResponses; returns (K,), the tokens that they took.

    Responses to a question that begin with the same steps share the rollouts from there.
    """
    numbers = {}  # {(question, ids up to the end of a step): its index among the different ones}
    starts_of = []
    for r in responses:
        begins = [(r.question, tuple(r.ids[: end + 1])) for end in r.places[:-1]]
        starts_of.append([numbers.setdefault(begin, len(numbers)) for begin in begins])
    starts = [(question, list(prefix)) for question, prefix in numbers]
    bar = progress(len(starts) * config.rollouts, f"{split} rollouts", machine)
    found, tokens = monte_carlo(policy, starts, problems, config, split, bar)
    bar.close()
    for r, rows in zip(responses, starts_of):
        answer = np.full((1, config.rollouts), r.right)  # nothing is left to continue
        r.rollouts = np.concatenate([found[rows], answer])  # (S, K)
    return tokens


def collect(policy, problems, config, split, machine):
    """LabelledSplit of this rank's share of the problems: sampled, checked and labelled.

    For training, equal responses to a question are kept once. For validation and test they are kept
    as they come: scores are calibrated and measured there on what the policy says.
    """
    own = own_share(len(problems), 1, machine)
    sampled = sample_responses(policy, problems, own, config, split, machine)
    pairs = [(own[row // config.samples], ids) for row, ids in enumerate(sampled)]
    if split == "train":
        pairs = list({(question, tuple(ids)): (question, ids) for question, ids in pairs}.values())
    responses = [check_response(question, problems[question], ids) for question, ids in pairs]
    data = LabelledSplit(responses, sum(map(len, sampled)))
    if config.labels == "mc" and split != "test":
        data.rollout_tokens = add_rollouts(policy, responses, problems, config, split, machine)
    return data


# Files: one array per field, the responses end to end


def to_arrays(data):
    """{name: array} of a LabelledSplit, for a file or for the other ranks.

    R responses with S places and K rollouts each: question, right, tokens, steps (R,), the last two
    the length of each response and its number of places; ids (all tokens,); places, exact (all
    places,); rollouts (all places, K), where there are any; sampled (1,), rolled (1, K).
    """
    responses = data.responses
    rolled = [0] if data.rollout_tokens is None else data.rollout_tokens
    integers = dict(
        question=[r.question for r in responses],
        tokens=[len(r.ids) for r in responses],
        ids=[i for r in responses for i in r.ids],
        right=[r.right for r in responses],
        steps=[len(r.places) for r in responses],
        places=[place for r in responses for place in r.places],
        sampled=[data.sampled_tokens],
        rolled=[rolled],
    )
    arrays = {name: np.array(values, np.int64) for name, values in integers.items()}
    arrays["exact"] = np.array([x for r in responses for x in r.exact], np.float32)
    if data.rollout_tokens is not None:
        none = np.zeros((0, len(rolled)), bool)  # a rank may have no response
        arrays["rollouts"] = np.concatenate([none, *(r.rollouts for r in responses)])
    return arrays


def from_arrays(arrays, problems, rollouts):
    """LabelledSplit from `to_arrays`, or from a file of an earlier version, with the first
    `rollouts` rollouts of each step."""
    prompts = [render_prompt(p.question) for p in problems]
    outcomes = rollout_outcomes(arrays)
    tokens = arrays["tokens"].cumsum()[:-1]
    steps = arrays["steps"].cumsum()[:-1]
    ids = np.split(arrays["ids"], tokens)
    places = np.split(arrays["places"], steps)
    exact = np.split(arrays["exact"], steps)
    data = LabelledSplit([], int(arrays["sampled"].sum()))
    for i, question in enumerate(arrays["question"].tolist()):
        prompt = prompts[question]
        example = Example(prompt + ids[i].tolist(), len(prompt))
        right = bool(arrays["right"][i])
        data.responses.append(
            LabelledResponse(question, example, right, places[i].tolist(), exact[i].tolist())
        )
    if outcomes is not None:
        data.rollout_tokens = arrays["rolled"].sum(0)[:rollouts]
        for r, row in zip(data.responses, np.split(outcomes[:, :rollouts], steps)):
            r.rollouts = row
    return data


def rollout_outcomes(arrays):
    """(all places, K) bool, or None without rollouts. An earlier version packed the outcomes of a
    place into the bits of an integer, the first rollout into the lowest:  5 of K = 3  ->  1 0 1."""
    if "mc" not in arrays:
        return arrays.get("rollouts")
    K = arrays["rolled"].shape[1]
    return (arrays["mc"][:, None] >> np.arange(K)) & 1 == 1


def gather(arrays, machine):
    """The shares of all ranks, one after another."""
    if machine.world == 1:
        return arrays
    parts = [None] * machine.world
    dist.all_gather_object(parts, arrays)
    return {name: np.concatenate([part[name] for part in parts]) for name in arrays}


# The three splits of a run


SAME = (  # what the run of --reuse must have been asked for as well
    "init", "data", "families", "level", "questions", "samples", "val_questions", "temperature",
    "max_reasoning_tokens",
)


def reused_seed(config):
    """Seed of the run of --reuse. Raises UserError where its samples are not what these flags ask
    for, or its rollouts fewer."""
    try:
        old = json.loads((Path(config.reuse) / "config.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"--reuse {config.reuse} is no run of train_prm.py") from None
    other = [name for name in SAME if old.get(name) != getattr(config, name)]
    if other:
        flags = ", ".join(f"--{name.replace('_', '-')} {old.get(name)}" for name in other)
        raise UserError(f"--reuse: the samples in {config.reuse} were made with {flags}")
    there = old["rollouts"] if old["labels"] == "mc" else 0
    if config.labels == "mc" and there < config.rollouts:
        raise UserError(
            f"--reuse: {config.reuse} has {there} rollouts per step; "
            f"{config.rollouts} were asked for"
        )
    return old["seed"]


def label_responses(config, machine, policy, out):
    """{split: LabelledSplit} for train, val and test.

    They are made and kept in --out, or read: from the run of --reuse, or, with --resume, from --out
    where they are whole. Raises UserError for too few questions and unusable flags.
    """
    source = Path(config.reuse) if config.reuse else out
    seed = reused_seed(config) if config.reuse else config.seed
    room = policy.config.max_len - config.max_reasoning_tokens
    questions = Questions(config.families, config.level, config.data, seed, room)
    asked = dict(
        train=questions.draw(0, 0, config.questions),
        val=questions.held_out(config.val_questions, "val"),
        test=questions.held_out(config.val_questions, "test"),
    )
    if not all(asked.values()):
        raise UserError(
            f"--data {config.data}: too few of its questions are kept from training for "
            f"--val-questions {config.val_questions}, which are needed twice over"
        )
    splits = {}
    for split, problems in asked.items():
        path = source / f"{split}.npz"
        arrays = read_arrays(path) if config.reuse or config.resume else None
        if arrays is None and config.reuse:
            raise UserError(f"--reuse {config.reuse} holds no whole {path.name}")
        if arrays is None:
            arrays = gather(to_arrays(collect(policy, problems, config, split, machine)), machine)
            if machine.main:
                write_arrays(path, arrays)
        splits[split] = from_arrays(arrays, problems, config.rollouts)
    return splits


# Batches


def balance(labels, seed):
    """Indices of responses, as many with something wrong (a label below one half) as without.

    The surplus of the larger kind is left out at random.
    """
    wrong = np.array([min(label) < 0.5 for label in labels])
    kinds = []
    for i, kind in enumerate((wrong, ~wrong)):
        kinds.append(np.random.default_rng((seed, i)).permutation(kind.nonzero()[0]))
    count = min(map(len, kinds))
    return np.sort(np.concatenate([kind[:count] for kind in kinds]))


def question_batches(kept, examples, size, epochs, seed, rank=0, world=1):
    """Yield this rank's part of every batch: `size` indices from `kept` over all ranks.

    Every epoch shuffles the questions and keeps the responses to each side by side, so that a step
    reads most prompts once. Those left over at the end of an epoch open the next one.
    """
    by_prompt = {}
    for i in kept:
        by_prompt.setdefault(tuple(examples[i].ids[: examples[i].prompt_len]), []).append(i)
    questions = list(by_prompt.values())
    order = []
    for epoch in range(epochs):
        for q in np.random.default_rng((seed, epoch)).permutation(len(questions)):
            order += questions[q]
    for at in range(0, len(order) - size + 1, size):
        yield np.array_split(np.array(order[at : at + size]), world)[rank]


def make_plan(kept, examples, config, machine):
    """`question_batches` of all epochs as a list. Raises UserError where not one batch is full."""
    size = max(machine.world, config.batch_size)
    plan = question_batches(
        kept, examples, size, config.epochs, config.seed, machine.rank, machine.world
    )
    plan = list(plan)
    if not plan:
        raise UserError(
            f"{len(examples)} different responses, {len(kept)} of them balanced, do not fill a "
            f"step of {config.batch_size}: ask more --questions, or easier or harder ones"
        )
    return plan


# Measures


def label_quality(data):
    """Hard Monte Carlo labels of steps against the exact checker's.

    Returns counts: steps that are right, those of them that are called wrong, as no rollout found
    the answer; steps that are wrong, and those of them that are called right, as a rollout
    recovered or was lucky. None without rollouts. The answer is known and does not count.
    """
    if data.rollout_tokens is None:
        return None
    truth = np.concatenate([r.exact[:-1] for r in data.responses]) > 0  # (all steps,)
    called = np.concatenate([r.rollouts[:-1] for r in data.responses]).any(1)
    return dict(
        right=int(truth.sum()),
        right_but_called_wrong=int((truth & ~called).sum()),
        wrong=int((~truth).sum()),
        wrong_but_called_right=int((called & ~truth).sum()),
    )


STEP_NAMES = ("step 1", "step 2", "step 3", "step 4", "step 5 and later")
QUARTERS = ("1/4 read", "2/4 read", "3/4 read")


def positions(kind, r):
    """Where the scores of one LabelledResponse are measured: its places, the name of each position,
    and the truth there. A prm: at each step and at the end. An orm: after each quarter of the
    tokens, as to the answer."""
    if kind == "prm":
        steps = len(r.places) - 1
        names = [STEP_NAMES[min(k, len(STEP_NAMES) - 1)] for k in range(steps)]
        return r.places, [*names, "last"], r.exact
    places = [max(0, len(r.ids) * quarter // 4 - 1) for quarter in (1, 2, 3, 4)]
    return places, [*QUARTERS, "last"], [float(r.right)] * 4


def quality(reward_model, data, bf16=False):
    """How good a reward model's scores of a LabelledSplit are, measured by the exact checker.

    Returns {"positions": {name: AUC, Brier score, n and the share that is right}, "reliability":
    calibration at the last token}. Positions: see `positions`.
    """
    where = [positions(reward_model.kind, r) for r in data.responses]
    logits = read_logits(reward_model, data.examples, [places for places, _, _ in where], bf16)
    names = STEP_NAMES if reward_model.kind == "prm" else QUARTERS
    rated = {name: [] for name in (*names, "last")}  # {position: [(chance, truth)]}
    for row, (_, positions_of, truth) in zip(logits, where):
        for logit, name, label in zip(row, positions_of, truth):
            rated[name].append((1 / (1 + np.exp(-logit)), label))
    figures = {}
    for name, pairs in rated.items():
        chances, labels = np.array(pairs).reshape(-1, 2).T  # (n,) each
        figures[name] = dict(
            auc=auc(chances, labels),
            brier=brier(chances, labels),
            n=len(labels),
            right=round(float(labels.mean()), 4) if len(labels) else None,
        )
    return dict(positions=figures, reliability=reliability(*np.array(rated["last"]).T))
