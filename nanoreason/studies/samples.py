"""The samples that studies of test-time compute and of reward models have in common."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from nanoreason import checkpoint
from nanoreason.evaluate import held_out_problems
from nanoreason.experience import Experience
from nanoreason.flags import flag
from nanoreason.generate import generate, make_sampler
from nanoreason.machine import choose_bf16, start_machine
from nanoreason.pool import draw_pool, estimates
from nanoreason.reward_model import load_reward_model
from nanoreason.rewards import outcome_reward
from nanoreason.run import progress
from nanoreason.studies.runs import check_made, read_if_made, train

FAMILIES = ("chain", "word", "equation")
LEVELS = (1, 2, 3)
BINS = ("easy", "medium", "hard")  # levels 1, 2 and 3
LIMIT = 200  # longest response, in tokens


@dataclass
class SampleConfig:
    """Flags of every study whose samples are kept in --cache."""

    policy: str = flag("runs/speedrun/cold", "model whose samples are studied")
    reward_models: str = flag(
        "runs/reward-models", "folder of the reward models; trained where they are missing")
    out: str = flag("runs/compute", "folder for tables and figures")
    cache: str = flag("runs/cache", "folder where samples are kept")
    problems: int = flag(300, "test problems of each family and level", low=3)
    samples: int = flag(256, "samples per problem", low=1)
    temperature: float = flag(
        0.7,
        "sampling temperature, of the reward models' training responses as well",
        low=0.01)
    reward_model_questions: int = flag(
        8000, "training questions of reward models that are missing", low=1)
    reward_model_epochs: int = flag(
        3, "most epochs of reward models that are missing", low=1)
    seed: int = flag(0, "seed of problems and samples", low=0)

    def reward_model(self, name):
        """Folder of a reward model."""
        return Path(self.reward_models) / name

    @property
    def recipe(self):
        """Flags of train_prm.py for the reward models of a study."""
        return dict(
            init=str(self.policy), temperature=self.temperature,
            questions=self.reward_model_questions, epochs=self.reward_model_epochs)


def ensure_reward_models(config):
    """Train the first ORM and PRM, on the same samples, unless they exist.

    Raises UserError where one exists and was trained with other flags than these.
    """
    orm = config.reward_model("orm-0")
    prm = config.reward_model("prm-0")
    for out in (orm, prm):
        check_made(out, read_if_made(out / "config.json"), config.recipe)
    train("train_prm.py", orm, kind="orm", **config.recipe)
    train("train_prm.py", prm, kind="prm", reuse=orm, **config.recipe)


def first_reward_models(config):
    """{"orm", "prm": RewardModel}, trained where they are missing."""
    ensure_reward_models(config)
    return {kind: load_reward_model(config.reward_model(f"{kind}-0")) for kind in ("orm", "prm")}


class Setup:
    """What all studies of one model share: flags, machine, precision, and pools of samples."""

    def __init__(self, config):
        self.config = config
        self.machine = start_machine()
        self.bf16 = choose_bf16("auto", self.machine)

    def model(self, path):
        """The policy of a checkpoint, ready to sample."""
        return make_sampler(checkpoint.load_model(path, self.machine.device), self.bf16)

    def pools(
        self, model, count, samples, split="test", reward_models=None, temperature=None
    ):
        """{(family, level): Pool} of `samples` responses to each of `count` problems.

        reward_models: {name: RewardModel} that score them. temperature: None for --temperature.
        """
        config = self.config
        temperature = temperature or config.temperature
        total = count * samples * len(FAMILIES) * len(LEVELS)
        bar = progress(total, f"{split} samples")
        pools = {}
        for family in FAMILIES:
            for level in LEVELS:
                problems = held_out_problems([family], [level], count, split, config.seed)
                pool = draw_pool(
                    model, problems, samples, temperature, LIMIT, config.seed, config.cache,
                    bar.update)
                for name, reward_model in (reward_models or {}).items():
                    pool.add_reward_model(name, reward_model, self.bf16)
                pools[family, level] = pool
        bar.close()
        return pools


def estimates_of(pools, ns, seed):
    """{rule: (P, ns)}: `estimates` of several pools, all their problems one after the other."""
    made = [estimates(pool, ns, seed) for pool in pools]
    return {rule: np.concatenate([by_rule[rule] for by_rule in made]) for rule in made[0]}


def problems_of(pools):
    """The problems of several pools as one list."""
    return [problem for pool in pools for problem in pool.problems]


# Samples that no pool keeps


def prompts_of(problems, tokenizer):
    """The problems' questions as prompts: lists of ids."""
    return [tokenizer.render_prompt(problem.question) for problem in problems]


def prompt_tokens(problems, tokenizer):
    """(P,) int: the tokens of each problem's prompt."""
    return np.array([len(prompt) for prompt in prompts_of(problems, tokenizer)])


def sample_and_check(policy, problems, samples, limit, temperature, generator):
    """`samples` responses to each problem: (Experience, Responses row by row).

    The total reward is the outcome reward. generator: a torch.Generator.
    """
    tokenizer = policy.tokenizer
    prompts = prompts_of(problems, tokenizer)
    rollout = generate(policy, prompts, samples, limit, temperature, generator).cpu()
    responses = []
    rewards = []
    for row in range(len(rollout.ids)):
        response = tokenizer.parse_response(rollout.response(row))
        responses.append(response)
        rewards.append(outcome_reward(problems[row // samples], response))
    right = torch.tensor(rewards).view(-1, samples)  # (P, G)
    return Experience(problems, rollout, dict(total=right), [], [], tokenizer), responses


def packed(experience, device):
    """All responses of an Experience, packed into micro-batches for one forward pass."""
    settings = SimpleNamespace(row_tokens=128, micro_tokens=16_384, gradient_accumulation=1)
    rows = range(len(experience.rollout.ids))
    return experience.micro_batches(rows, {}, settings, device)
