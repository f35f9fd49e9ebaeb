"""What a reward model learns from: a policy's responses, and which of their steps are right.

    sample_responses   the policy answers every question several times
    check_response     the exact checker says whether the answer, and each step, is right
    monte_carlo        without a checker of steps: continue from a step, and see how often the
                       answer comes out right (Math-Shepherd 2312.08935)
    label_responses    all of this for training, validation and test, kept as .npz in the run folder

Below stand two measures on such responses: `quality`, of a reward model, and `label_quality`, of
Monte Carlo labels. "Step" means a reasoning step. Letters: S readings of a response, its steps and
its answer; K continuations per step.

The functions that sample take the config of train_prm.py and read samples, temperature,
max_reasoning_tokens, rollouts (K), labels and seed from it. Files and seeds keep older words,
"rollouts" and "verifier", so that old runs can be read and repeated.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from nanoreason.data import Example
from nanoreason.evaluate import auc, brier, reliability
from nanoreason.flags import UserError
from nanoreason.generate import MAX_ROWS, generate, uniform_numbers
from nanoreason.machine import generator
from nanoreason.pool import (
    ROWS, fingerprint, processes, read_arrays, sample_some, split_responses, write_arrays,
)
from nanoreason.questions import Questions, own_share
from nanoreason.reward_model import read_logits, where_to_read
from nanoreason.rewards import exact_step_rewards, outcome_reward
from nanoreason.run import as_typed, check_provenance, file_fingerprint, progress, read_json, say
from nanoreason.run import write_json
from nanoreason.workers import spread


@dataclass
class LabelledResponse:
    """One response to a problem, and what is known about it.

    problem_index: of its problem. example: prompt and response as ids. right: whether the answer
    is. read_at: S indices into the response, the tokens that end its steps and then its last token,
    which stands for the answer. exact: S numbers, 1.0 where the checker finds the step, or the
    answer, right, else 0.0. continuations: (S, K) bool, which of those from there end in the right
    answer; None where none were sampled.
    """

    problem_index: int
    example: Example
    right: bool
    read_at: list
    exact: list
    continuations: np.ndarray | None = None

    @property
    def ids(self):
        """The response alone, without its prompt."""
        return self.example.ids[self.example.prompt_len :]


@dataclass
class LabelledSplit:
    """The labelled responses of a split, and what they cost: tokens sampled for responses and,
    (K,), for the first, second, ... continuation of every step (None without any)."""

    responses: list
    sampled_tokens: int
    continuation_tokens: np.ndarray | None = None

    @property
    def examples(self):
        """One Example per response."""
        return [r.example for r in self.responses]

    @property
    def cost(self):
        """{"sampled", "rolled"}: tokens of responses and of continuations."""
        tokens = self.continuation_tokens
        rolled = 0 if tokens is None else int(tokens.sum())
        return dict(sampled=self.sampled_tokens, rolled=rolled)


# Sampling and labelling


def sample_responses(policy, problems, own, config, split, machine):
    """Responses (lists of ids) to the problems `own`, a list of indices: `samples` to each, those
    to one problem side by side. Each problem draws from random numbers of its own."""
    count = len(own) * config.samples
    at_once = max(1, MAX_ROWS // config.samples)
    jobs = []
    for at in range(0, len(own), at_once):
        part = own[at : at + at_once]
        prompts = [policy.tokenizer.render_prompt(problems[i].question) for i in part]
        seeds = [(config.seed, "verifier", split, i) for i in part]
        limits = (config.samples, config.temperature, config.max_reasoning_tokens)
        jobs.append((prompts, seeds, *limits))
    bar = progress(count, f"{split} responses", machine)
    responses = []
    for ids, tokens, _ in spread(sample_some, policy, jobs, processes(machine.device, count)):
        for group in split_responses(ids, tokens):
            responses += group
        bar.update(tokens.size)
    bar.close()
    return responses


def check_response(problem_index, problem, ids, tokenizer):
    """The LabelledResponse of these ids, without continuations, as the exact checker sees it.

    A step that was not needed counts as right. The checker goes on behind a wrong step, as a model
    may correct itself; the labelers of Lightman et al. stop there.
    """
    prompt = tokenizer.render_prompt(problem.question)
    right = outcome_reward(problem, tokenizer.parse_response(ids)) > 0
    exact = [float(value >= 0) for _, value in exact_step_rewards(problem, ids, tokenizer)]
    return LabelledResponse(
        problem_index, Example(prompt + ids, len(prompt)), right,
        where_to_read("prm", ids, tokenizer), [*exact, float(right)],
    )


def monte_carlo(policy, starts, problems, config, split, bar):
    """Continue K times from each start, by up to max_reasoning_tokens tokens.

    starts: N pairs (index of a problem, ids of a response up to the end of a step). Returns (N, K)
    bool, which continuations end in the right answer, and (K,), the tokens of the first, second,
    ... continuation over all starts. Each start draws from random numbers of its own.
    """
    tokenizer = policy.tokenizer
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
            p, prefix = starts[i]
            prompts.append(tokenizer.render_prompt(problems[p].question) + prefix)
            seeded = generator(config.seed, "rollouts", split, p, prefix)
            uniform.append(uniform_numbers((K, limit), seeded))
        continued = generate(
            policy, prompts, K, limit, config.temperature, uniform=torch.cat(uniform),
            max_rows=ROWS, on_progress=bar.update,
        ).cpu()
        tokens += continued.lengths.view(-1, K).sum(0).numpy()
        for row in range(len(continued.ids)):
            p, prefix = starts[some[row // K]]
            response = tokenizer.parse_response(prefix + continued.response(row))
            found[some[row // K], row % K] = outcome_reward(problems[p], response) > 0
    return found, tokens


def add_continuations(policy, responses, problems, config, split, machine):
    """Set `continuations` of LabelledResponses; returns (K,), the tokens that they took.

    Responses to a problem that begin with the same steps share the continuations from there.
    """
    numbers = {}  # {(problem, ids up to the end of a step): its index among the different ones}
    starts_of = []
    for r in responses:
        begins = [(r.problem_index, tuple(r.ids[: end + 1])) for end in r.read_at[:-1]]
        starts_of.append([numbers.setdefault(begin, len(numbers)) for begin in begins])
    starts = [(p, list(prefix)) for p, prefix in numbers]
    bar = progress(len(starts) * config.rollouts, f"{split} continuations", machine)
    found, tokens = monte_carlo(policy, starts, problems, config, split, bar)
    bar.close()
    for r, rows in zip(responses, starts_of):
        answer = np.full((1, config.rollouts), r.right)  # nothing is left to continue
        r.continuations = np.concatenate([found[rows], answer])  # (S, K)
    return tokens


def collect(policy, problems, config, split, machine):
    """LabelledSplit of this rank's share of the problems: sampled, checked and labelled.

    For training, equal responses to a problem are kept once. For validation and test duplicates
    stay: there responses count as often as the policy gives them.
    """
    own = own_share(len(problems), 1, machine)
    sampled = sample_responses(policy, problems, own, config, split, machine)
    pairs = [(own[row // config.samples], ids) for row, ids in enumerate(sampled)]
    if split == "train":
        pairs = list({(p, tuple(ids)): (p, ids) for p, ids in pairs}.values())
    responses = [check_response(p, problems[p], ids, policy.tokenizer) for p, ids in pairs]
    data = LabelledSplit(responses, sum(map(len, sampled)))
    if config.labels == "mc" and split != "test":
        data.continuation_tokens = add_continuations(
            policy, responses, problems, config, split, machine
        )
    return data


# Files: one array per field, the responses end to end


def to_arrays(data):
    """{name: array} of a LabelledSplit, for a file or for the other ranks.

    R responses with S readings and K continuations each: question, right, tokens, steps (R,), the
    last two the length of each response and its number of readings; ids (all tokens,); places,
    exact (all readings,); rollouts (all readings, K), where there are any; sampled (1,), rolled
    (1, K).
    """
    responses = data.responses
    rolled = [0] if data.continuation_tokens is None else data.continuation_tokens
    integers = dict(
        question=[r.problem_index for r in responses],
        tokens=[len(r.ids) for r in responses],
        ids=[i for r in responses for i in r.ids],
        right=[r.right for r in responses],
        steps=[len(r.read_at) for r in responses],
        places=[index for r in responses for index in r.read_at],
        sampled=[data.sampled_tokens],
        rolled=[rolled],
    )
    arrays = {name: np.array(values, np.int64) for name, values in integers.items()}
    arrays["exact"] = np.array([x for r in responses for x in r.exact], np.float32)
    if data.continuation_tokens is not None:
        none = np.zeros((0, len(rolled)), bool)  # a rank may have no response
        arrays["rollouts"] = np.concatenate([none, *(r.continuations for r in responses)])
    return arrays


def from_arrays(arrays, problems, continuations, tokenizer):
    """LabelledSplit from `to_arrays`, or from a file of an earlier version, with the first
    `continuations` of each step."""
    prompts = [tokenizer.render_prompt(problem.question) for problem in problems]
    outcomes = continuation_outcomes(arrays)
    token_ends = arrays["tokens"].cumsum()[:-1]
    reading_ends = arrays["steps"].cumsum()[:-1]
    ids = np.split(arrays["ids"], token_ends)
    read_at = np.split(arrays["places"], reading_ends)
    exact = np.split(arrays["exact"], reading_ends)
    data = LabelledSplit([], int(arrays["sampled"].sum()))
    for i, problem_index in enumerate(arrays["question"].tolist()):
        prompt = prompts[problem_index]
        example = Example(prompt + ids[i].tolist(), len(prompt))
        right = bool(arrays["right"][i])
        data.responses.append(LabelledResponse(
            problem_index, example, right, read_at[i].tolist(), exact[i].tolist()
        ))
    if outcomes is not None:
        data.continuation_tokens = arrays["rolled"].sum(0)[:continuations]
        parts = np.split(outcomes[:, :continuations], reading_ends)
        for r, part in zip(data.responses, parts):
            r.continuations = part
    return data


def continuation_outcomes(arrays):
    """(all readings, K) bool, or None without continuations. An earlier version packed the outcomes
    of a reading into the bits of an integer, the first into the lowest:  5 of K = 3  ->  1 0 1."""
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


def check_config(config):
    """UserError for what single flags cannot show to be wrong."""
    if not config.init:
        raise UserError("--init is missing: a reward model learns from a policy's responses, "
                        "for instance --init runs/speedrun/cold")
    if config.hard_labels and config.labels != "mc":
        raise UserError("--hard-labels is about Monte Carlo labels: --labels mc")
    if config.kind == "orm" and config.labels == "mc":
        raise UserError("--kind orm learns from final answers, which are always checked exactly; "
                        "--labels mc is for --kind prm")
    if config.reuse and Path(config.reuse).resolve() == Path(config.out).resolve():
        raise UserError("--reuse and --out are the same folder")


SAME = (  # what the run of --reuse must have been asked for as well
    "init", "families", "level", "questions", "samples", "val_questions", "temperature",
    "max_reasoning_tokens",
)


def reused_seed(config):
    """Seed of the run of --reuse. Raises UserError where its samples are not what these flags ask
    for, or its continuations fewer."""
    path = Path(config.reuse) / "config.json"
    old = read_json(path) if path.exists() else {}
    if "rollouts" not in old:
        raise UserError(f"--reuse {config.reuse} is no run of train_prm.py")
    other = [name for name in SAME if old.get(name) != getattr(config, name)]
    if bool(old.get("data")) != bool(config.data):
        other.append("data")
    if other:
        flags = ", ".join(as_typed(name, old.get(name)) for name in other)
        raise UserError(f"--reuse: the samples in {config.reuse} were made with {flags}")
    if config.data and Path(config.data).is_file():
        if old.get("inputs", {}).get("--data") != file_fingerprint(config.data):
            raise UserError(f"--reuse: the samples in {config.reuse} are of another --data, or of "
                            "an earlier version, which split it otherwise")
    there = old["rollouts"] if old["labels"] == "mc" else 0
    if config.labels == "mc" and there < config.rollouts:
        raise UserError(
            f"--reuse: {config.reuse} has {there} --rollouts per step; "
            f"{config.rollouts} were asked for"
        )
    return old["seed"]


def begin_samples(config, machine, policy, folder):
    """Check whose samples are there, and note it in --out, which is made ready for them.

    folder: the RunFolder. Raises UserError, and leaves all as it is, where --resume or --reuse
    finds samples of other weights than --init has.
    """
    weights = fingerprint(policy)
    named = f"--init {config.init}"
    if config.reuse:
        reused_seed(config)  # other flags are told first
        check_provenance(config.reuse, weights, "--reuse", named)
    elif config.resume:
        check_provenance(folder.out, weights, "--resume", named)
    out = folder.prepare(machine)
    if machine.main and not config.reuse:
        write_json(out / "provenance.json", dict(init=config.init, weights=weights))


def label_responses(config, machine, policy, out):
    """{split: LabelledSplit} for train, val and test.

    They are made and kept in --out, or read: from the run of --reuse, or, with --resume, from --out
    where they are whole. Raises UserError for too few questions and unusable flags.
    """
    source = Path(config.reuse) if config.reuse else out
    seed = reused_seed(config) if config.reuse else config.seed
    room = policy.config.max_len - config.max_reasoning_tokens
    questions = Questions(
        config.families, config.level, policy.tokenizer, config.data, seed, room, machine
    )
    asked = dict(
        train=questions.draw(0, 0, config.questions),
        val=questions.held_out(config.val_questions, "val"),
        test=questions.held_out(config.val_questions, "test"),
    )
    if not all(asked.values()):
        raise UserError(
            f"--data {config.data}: too few of its questions fall into its validation or its test "
            "split; more rows are needed"
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
        splits[split] = from_arrays(arrays, problems, config.rollouts, policy.tokenizer)
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

    Every epoch shuffles the prompts and keeps the responses to each side by side, so that a
    training step reads most prompts once. Those left over at the end of an epoch open the next one.
    """
    by_prompt = {}
    for i in kept:
        by_prompt.setdefault(tuple(examples[i].ids[: examples[i].prompt_len]), []).append(i)
    groups = list(by_prompt.values())
    order = []
    for epoch in range(epochs):
        for g in np.random.default_rng((seed, epoch)).permutation(len(groups)):
            order += groups[g]
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


def announce(reward_model, data, kept, plan, config, machine, bf16):
    """Say in one line what will be trained on what."""
    rights = [r.right for split in data.values() for r in split.responses]
    say(f"{config.kind}: {reward_model.gpt.num_params / 1e6:.2f}M parameters, "
        f"{len(data['train'].responses)} different responses to {config.questions} questions, "
        f"{len(kept)} balanced, {np.mean(rights):.0%} of all right, at most {len(plan)} steps, "
        f"{'bf16' if bf16 else 'fp32'} on {machine.device}", machine)


# Measures


def label_quality(data):
    """Hard Monte Carlo labels of steps against the exact checker's.

    Returns counts: steps that are right, those of them that are called wrong, as no continuation
    found the answer; steps that are wrong, and those of them that are called right, as one
    recovered or was lucky. None without continuations. The answer is known and does not count.
    """
    if data.continuation_tokens is None:
        return None
    truth = np.concatenate([r.exact[:-1] for r in data.responses]) > 0  # (all steps,)
    called = np.concatenate([r.continuations[:-1] for r in data.responses]).any(1)
    return dict(
        right=int(truth.sum()),
        right_but_called_wrong=int((truth & ~called).sum()),
        wrong=int((~truth).sum()),
        wrong_but_called_right=int((called & ~truth).sum()),
    )


STEP_NAMES = ("step 1", "step 2", "step 3", "step 4", "step 5 and later")
QUARTERS = ("1/4 read", "2/4 read", "3/4 read")


def measured_at(kind, r):
    """Where the scores of one LabelledResponse are measured: indices of its tokens, the name of
    each position, and the truth there. A prm: at each step and at the end. An orm: after each
    quarter of the tokens, as to the answer."""
    if kind == "prm":
        steps = len(r.read_at) - 1
        names = [STEP_NAMES[min(k, len(STEP_NAMES) - 1)] for k in range(steps)]
        return r.read_at, [*names, "last"], r.exact
    quarters = [max(0, len(r.ids) * quarter // 4 - 1) for quarter in (1, 2, 3, 4)]
    return quarters, [*QUARTERS, "last"], [float(r.right)] * 4


def quality(reward_model, data, bf16=False):
    """How good a reward model's scores of a LabelledSplit are, measured by the exact checker.

    Returns {"positions": {name: AUC, Brier score, n and the share that is right}, "reliability":
    calibration at the last token}. Positions: see `measured_at`.
    """
    where = [measured_at(reward_model.kind, r) for r in data.responses]
    read_at = [indices for indices, _, _ in where]
    logits = read_logits(reward_model, data.examples, read_at, bf16)
    names = STEP_NAMES if reward_model.kind == "prm" else QUARTERS
    measured = {name: [] for name in (*names, "last")}  # {position: [(chance, truth)]}
    for own, (_, own_names, truth) in zip(logits, where):
        for logit, name, label in zip(own, own_names, truth):
            # the sigmoid in float64; below -700 exp would overflow
            measured[name].append((1 / (1 + np.exp(min(-logit, 700.0))), label))
    figures = {}
    for name, pairs in measured.items():
        chances, labels = np.array(pairs).reshape(-1, 2).T  # (n,) each
        figures[name] = dict(
            auc=auc(chances, labels),
            brier=brier(chances, labels),
            n=len(labels),
            right=round(float(labels.mean()), 4) if len(labels) else None,
        )
    return dict(positions=figures, reliability=reliability(*np.array(measured["last"]).T))
