"""Ask a trained model, or measure it.

What this teaches. The same weights give better answers when they may spend more compute: one
greedy response, many samples and a vote, a reward model's choice, a search over steps, longer
thinking (nanoreason/search.py has them all). With --eval, accuracy is measured on problems that
training never saw, unless --split says otherwise: greedy, sampled, and for every N of --ns the
coverage (some sample is right: unbiased pass@k), the vote and the choice of each reward model. All
of them are estimated from the same max(N) samples per problem, which --cache keeps. --no-think
makes the same model answer at once.

    one question     python sample.py "What is 847 × 293?"      the final model that ships
                     python sample.py "What is 15% of 80?" --ckpt pretrained:r1-zero
    a chat           python sample.py                           on a terminal
    many questions   python sample.py < questions.txt           one a line; writes JSON lines
    a vote of 64     python sample.py "What is 847 × 293?" --ckpt runs/speedrun/rl
                         --method vote --n 64
    a search         python sample.py "What is 47 × 6?" --ckpt runs/speedrun/cold
                         --method beam --n 16 --reward-model runs/reward-models/prm-0
    longer thinking  python sample.py "What is 15% of 80?" --ckpt runs/speedrun/cold
                         --method budget --n 2 --min-thinking 60
    measure          python sample.py --eval --ckpt runs/speedrun/cold
                         --families multiplication,percent --level 2 --problems 250
                         --ns 1,4,16,64,256 --json eval.json
                         --reward-model runs/reward-models/orm-0,runs/reward-models/prm-0

JSON of a question, as --json and each line of a pipe have it: question, thinking, answer, tokens,
method, think, n, answers, flops (`answer_figures`); in a pipe {"question", "error"} for a line that
cannot be answered. `measure` says what --eval leaves.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from nanoreason import checkpoint, pretrained
from nanoreason.chat import command_flags, converse, GREY, in_words, make_ready, Screen, Stream
from nanoreason.flags import check_output, flag, listed, parse_config, UserError, whole_numbers
from nanoreason.machine import choose_bf16, complain, generator, run_script, seed_for
from nanoreason.machine import start_machine
from nanoreason.run import progress, say, write_json
from nanoreason.corpus import read_problems, Room
from nanoreason.evaluate import accuracy, accuracy_of, behaviours, by_family, collect
from nanoreason.evaluate import held_out_problems, interval_of_mean, reward_model_scorer, soundness
from nanoreason.generate import generate, make_sampler
from nanoreason.pool import draw_pool, scaling
from nanoreason.search import CHOICES, METHODS, SEARCHES, SearchConfig
from nanoreason.tasks import FAMILIES, HELD_OUT_LEVEL, LEVELS, SAFETY
from nanoreason.tasks.general import is_refusal
from nanoreason.reward_model import AGGREGATES, load_reward_model


@dataclass
class Config:
    """The flags of this script."""

    question: str = flag(
        "", "the question to answer; without one a chat, or in a pipe a question per line"
    )
    ckpt: str = flag(
        "",
        "checkpoint, run folder, or a model that ships: pretrained:NAME; empty: pretrained:final",
    )
    think: bool = flag(
        True, "let the model think; --no-think forces an empty think block: it answers at once"
    )
    method: str = flag(
        "greedy", "how to spend compute on one question", choices=tuple(METHODS)
    )
    n: int = flag(
        16,
        "samples or beams of --method; of budget, the most times that it writes Wait",
        low=1,
    )
    reward_model: str = flag(
        "",
        "checkpoint of the reward model that chooses or guides, or pretrained:NAME; without one "
        "the likelihood does. With --eval several, separated by commas",
    )
    aggregate: str = flag(
        "last",
        "how the scores of a response's steps become one",
        choices=tuple(AGGREGATES),
    )
    width: int = flag(4, "continuations of a step that beam and dvts choose from", low=1)
    passes: int = flag(4, "checks of each response by --method self-verify", low=1)
    min_thinking: int = flag(
        0, "tokens of thinking below which --method budget writes Wait; 0: none", low=0
    )
    max_thinking: int = flag(
        0, "tokens of thinking at which --method budget closes it; 0: no bound", low=0
    )
    plan: str = flag(
        "",
        "JSON file with the plan of --method auto, as "
        "`python -m nanoreason.studies.compute --study budget` leaves it",
    )
    temperature: float = flag(1.0, "sampling temperature", low=0.01)
    max_reasoning_tokens: int = flag(800, "longest response, in tokens", low=1)
    eval: bool = flag(False, "measure accuracy instead of answering a question")
    data: str = flag(
        "",
        "JSONL file of questions and answers to measure on, the rows of --split",
    )
    families: str = flag(
        "multiplication,chain,percent,word,equation",
        "families to measure, separated by commas",
    )
    level: str = flag(
        "1,2", "levels to measure, separated by commas; 6 is held out from all training"
    )
    problems: int = flag(200, "problems of each family, shared out over the levels", low=1)
    ns: str = flag(
        "1",
        "numbers of samples to measure coverage, vote and reward models at, separated by commas; "
        "0 for greedy only",
    )
    cache: str = flag(
        "runs/cache",
        "folder where samples are kept for the next measurement; empty: nowhere",
    )
    split: str = flag(
        "test",
        "split of the problems: training sees neither val, which chooses weights, nor test; all "
        "rows of --data, those for training among them",
        choices=("val", "test", "all"),
    )
    json: str = flag("", "file for the figures")
    precision: str = flag(
        "auto", "bf16 where it is faster, or one of them", choices=("auto", "fp32", "bf16")
    )
    device: str = flag("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = flag(0, "seed of samples and of the choice of problems", low=0)


# One question


def load_sampler(config, machine):
    """The model of --ckpt, ready to sample; with --no-think its responses begin with an empty think
    block."""
    trained = checkpoint.load_model(config.ckpt, machine.device)
    opening = () if config.think else trained.tokenizer.empty_thinking
    return make_sampler(trained, choose_bf16(config.precision, machine), opening)


def read_question(model, question):
    """Ids of the prompt. Raises UserError where they leave no room for an answer."""
    prompt = model.tokenizer.render_prompt(question)
    context = model.config.max_len
    if len(prompt) >= context:
        raise UserError(
            f"the question takes {len(prompt)} tokens; this model's context holds {context}, "
            "answer included"
        )
    return prompt


def one_reward_model(config, model):
    """The reward model that chooses or guides, or None. Raises UserError for several."""
    context = model.config.max_len
    reward_models = load_reward_models(config, model, context, "of the model's context")
    if len(reward_models) > 1:
        raise UserError(
            f"--reward-model {config.reward_model}: one reward model answers a question; "
            "several are for --eval"
        )
    return next(iter(reward_models.values()), None)


def load_models(config, machine):
    """The sampler and the reward model, or None, that answer. Raises UserError, also where --method
    auto has no fitting plan."""
    model = load_sampler(config, machine)
    reward_model = one_reward_model(config, model)
    search_settings(config, reward_model)
    return model, reward_model


def solve(model, reward_model, question, config):
    """Answer one question by --method: the search.Result."""
    prompt = read_question(model, question)
    scorer = None
    if reward_model:
        scorer = reward_model_scorer(reward_model, [prompt], config.aggregate)
    by_method = METHODS[config.method]
    random = generator(config.seed, "sample")
    settings = search_settings(config, reward_model)
    (result,) = by_method(model, [prompt], settings, random, scorer)
    return result


def answer(model, config):
    """Answer the question; prints the reasoning and the answer, returns the search.Result."""
    result = solve(model, one_reward_model(config, model), config.question, config)
    show(config.question, result)
    return result


def answer_figures(question, result, config):
    """A Result as a dictionary for JSON.

    tokens and flops are of all responses that were sampled; n counts the candidates that were left
    to choose from, and answers has one for each, None where it gave none.
    """
    return dict(
        question=question,
        thinking=result.response.thinking,
        answer=result.answer,
        tokens=result.completion_tokens,
        method=config.method,
        think=config.think,
        n=len(result.responses),
        answers=[response.answer for response in result.responses],
        flops=result.flops,
    )


def search_settings(config, reward_model):
    """The SearchConfig that the flags ask for. reward_model: the one that chooses, or None. Raises
    UserError where --method auto has no fitting plan."""
    kind = reward_model.kind if reward_model else ""
    return SearchConfig(
        n=config.n,
        temperature=config.temperature,
        max_new_tokens=config.max_reasoning_tokens,
        width=config.width,
        passes=config.passes,
        min_thinking=config.min_thinking,
        max_thinking=config.max_thinking,
        plan=read_plan(config, kind) if config.method == "auto" else (),
    )


def show(question, result):
    """Print a Result: question, reasoning and answer, agreement of the responses, compute."""
    screen = Screen(sys.stdout)
    screen.say(f"\nQuestion: {question}\n")
    screen.show(result)
    screen.say(f"\n{result.completion_tokens} tokens, {result.flops / 1e9:.2f} GFLOP")


def load_reward_models(config, model, max_len, limit):
    """{name: reward model} of --reward-model, in its order, where `model` is. The name is the kind;
    two of one kind are told apart by their folders. Raises UserError where one has another
    tokenizer than `model` or reads fewer than max_len tokens; limit says in words what sets
    max_len."""
    paths = []
    if config.reward_model:  # a path may hold a comma
        is_one = os.path.exists(config.reward_model)
        paths = [config.reward_model] if is_one else listed(config.reward_model, "reward-model")
    found = {}
    for path in paths:
        reward_model = load_reward_model(path, device=model.embed.weight.device)
        checkpoint.check_tokenizers({
            f"--ckpt {config.ckpt}": model.tokenizer,
            f"--reward-model {path}": reward_model.tokenizer,
        })
        reads = reward_model.config.max_len
        if reads < max_len:
            raise UserError(
                f"--reward-model {path} reads {reads} tokens, fewer than the {max_len} {limit}"
            )
        names = (reward_model.kind, Path(path).name, path)
        free = next(name for name in names if name not in found)
        found[free] = reward_model
    return found


def read_plan(config, kind=""):
    """Rows of --plan for the budget nearest to --n, as SearchConfig.plan has them.

    Raises UserError where the file is no plan, or was made with another kind of reward model or
    another --aggregate: its scores of greedy responses would mean something else.
    """
    try:
        made = json.loads(Path(config.plan).read_text(encoding="utf-8"))
        plans = {int(n): tuple(map(plan_row, rows)) for n, rows in made["plans"].items()}
        rows = plans[min(plans, key=lambda n: abs(n - config.n))]
        allowed = {"greedy", *CHOICES, *SEARCHES}
        if not rows or not {name for _, name, _ in rows} <= allowed:
            raise ValueError
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        raise UserError(
            "--method auto needs a --plan, as "
            "`python -m nanoreason.studies.compute --study budget` leaves it; "
            f"{config.plan or '(none)'} is none"
        ) from None
    if (made["kind"], made["aggregate"]) != (kind, config.aggregate):
        raise UserError(
            f"--plan {config.plan} was made with a reward model of kind {made['kind']} "
            f"and --aggregate {made['aggregate']}, not with {kind or 'none'} "
            f"and {config.aggregate}"
        )
    return rows


def plan_row(row):
    """A row of a plan from JSON: (bound of the score, method, n)."""
    bound, name, n = row
    return float(bound), str(name), int(n)


# Many questions: a chat on a terminal, JSON lines in a pipe


class Session:
    """What a chat has changed so far: the flags, as commands have set them, and who answers."""

    def __init__(self, config, machine, screen):
        self.config = config
        self.machine = machine
        self.screen = screen
        self.model, self.reward_model = load_models(config, machine)
        self.turn = 0  # questions so far

    def obey(self, line):
        """Do what a command says, and say who answers now, and how. Raises UserError, and changes
        nothing, for a bad value, and where flags do not go together."""
        words = ["--preset=now", *command_flags(line)]
        changed = parse_config(Config, words, presets={"now": asdict(self.config)})
        check_think(changed)
        search_settings(changed, self.reward_model)
        if (changed.ckpt, changed.think) != (self.config.ckpt, self.config.think):
            self.model, self.reward_model = load_models(changed, self.machine)
        self.config = changed
        self.screen.say(in_words(changed, self.model), GREY)

    def answer(self, question):
        """Answer one question. A single response is shown as it comes; of several the chosen one,
        once all are there. Asked again, a question gets other samples."""
        self.turn += 1
        screen = self.screen
        config = replace(self.config, seed=seed_for(self.config.seed, "chat", self.turn))
        begun = time.time()
        if config.method in ("greedy", "sample"):
            tokens = stream(self.model, question, config, screen)
        else:
            screen.say(f"  {config.method}, n = {config.n} ...", GREY)
            result = solve(self.model, self.reward_model, question, config)
            screen.show(result)
            tokens = result.completion_tokens
        screen.say(f"{tokens} tokens, {time.time() - begun:.1f} s", GREY)


def chat(config, machine, read, screen):
    """Answer what is typed (chat.converse). read: a function that returns the next line, given a
    prompt to show; screen: a Screen."""
    session = Session(config, machine, screen)
    screen.say(f"{in_words(config, session.model)}\n"
               "Ask a question; /help lists commands, Ctrl-D or /quit ends.")
    converse(read, screen, session.obey, session.answer)


def stream(model, question, config, screen):
    """Show one response to a question token by token; returns its number of tokens."""
    prompt = read_question(model, question)
    temperature = 0.0 if config.method == "greedy" else config.temperature
    shown = Stream(screen, model.tokenizer)
    rollout = generate(
        model, [prompt], 1, config.max_reasoning_tokens, temperature,
        generator(config.seed, "sample"), on_token=shown.add,
    )
    ids = rollout.response(0)
    shown.end(model.tokenizer.parse_response(ids))
    return len(ids)


def answer_line(model, reward_model, line, config):
    """A line of stdin as its row of JSON, None where it is blank. line: bytes in UTF-8."""
    try:
        question = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        question = line.decode("utf-8", "replace").strip()
        return dict(question=question, error="the line is no text in UTF-8")
    if not question:
        return None
    try:
        result = solve(model, reward_model, question, config)
    except UserError as error:
        return dict(question=question, error=str(error))
    return answer_figures(question, result, config)


def answer_lines(config, machine, lines, out):
    """Answer a question per line: a JSON line each, at once.

    lines: bytes; blank ones are skipped. A question that cannot be answered has its "error", and
    the others are answered; then UserError says how many.
    """
    model, reward_model = load_models(config, machine)
    count = 0
    failed = 0
    for line in lines:
        row = answer_line(model, reward_model, line, config)
        if row is None:
            continue
        count += 1
        failed += "error" in row
        out.write(json.dumps(row) + "\n")
        out.flush()
    if failed:
        raise UserError(f"{failed} of {count} questions could not be answered")
    if not count:
        complain("no question: give one, or one per line on stdin")


def answer_stdin(config, machine):
    """A chat where a person types, JSON lines where another program writes."""
    if sys.stdin is None:  # the caller has closed it
        answer_lines(config, machine, [], sys.stdout)
    elif sys.stdin.isatty():
        make_ready(sys.stdin)
        chat(config, machine, input, Screen(sys.stdout))
    else:
        # said aloud, as some terminals (Git Bash, consoles of editors) look like a pipe
        complain("reading questions from stdin, one a line")
        answer_lines(config, machine, sys.stdin.buffer, sys.stdout)


# --eval


def wanted_families(config):
    """Names of --families. Raises UserError for one that does not exist."""
    return listed(config.families, "families", FAMILIES, "family")


def wanted_levels(config):
    """Numbers of --level. Raises UserError for one that does not exist."""
    levels = whole_numbers(config.level, "level")
    if not set(levels) <= {*LEVELS, HELD_OUT_LEVEL}:
        raise UserError(f"--level {config.level}: levels are 1 to {HELD_OUT_LEVEL}")
    return levels


def wanted_ns(config):
    """Numbers of --ns; [0] for greedy only. Raises UserError."""
    ns = whole_numbers(config.ns, "ns")
    if min(ns) < 0 or (0 in ns and len(ns) > 1):
        raise UserError(f"--ns {config.ns}: numbers of samples are positive; "
                        "0 alone measures greedy only")
    return ns


def wanted_problems(config, model):
    """The problems to measure on, each once. Raises UserError for a family or level that does not
    exist, where there are no problems, and for a question longer than the model's context."""
    families = wanted_families(config)
    levels = wanted_levels(config)
    context = model.config.max_len
    if config.data:
        room = Room(
            model.tokenizer, context - 1,
            f"the model's context holds {context}, answer included",
            "A model with a longer context makes room",
        )
        own = read_problems(config.data, room)
        problems = sum(own.values(), []) if config.split == "all" else own[config.split]
        if not problems:
            raise UserError(
                f"--data {config.data} holds no problem of split {config.split}: more rows, or "
                "--split all, which measures training questions too"
            )
        return problems
    problems = held_out_problems(families, levels, config.problems, config.split, config.seed)
    if not problems:
        raise UserError(
            f"no problems to measure on: {config.families} holds none in this split and level"
        )
    longest = max(len(model.tokenizer.render_prompt(p.question)) for p in problems)
    if longest >= context:
        raise UserError(
            f"a question takes {longest} tokens; this model's context holds {context}, "
            "answer included"
        )
    return problems


def measured(config):
    """What --eval measures on, in words. Training never sees `val` and `test`; it chooses weights
    by `val`."""
    how = "" if config.think else ", answered at once"
    if not config.data:
        levels = ", ".join(map(str, wanted_levels(config)))
        return f"{config.split} split, levels {levels}{how}"
    name = Path(config.data).name
    if config.split == "all":
        return f"all rows of {name}, training rows among them{how}"
    return f"{config.split} split of {name} (10% kept from training){how}"


def measure(model, config, machine):
    """Greedy accuracy by family and level; with --ns also sampled accuracy, and what N samples give
    by every rule. Returns the figures, a dictionary for JSON:

        ckpt, limit, measured, think      which model, its longest response, what was asked, and
                                          whether it may think
        greedy, families, mean_tokens     {"acc", "n", "ci"} of all; by family, and in its "levels"
                                          by level with "mean_tokens"; tokens per response
        split, levels, seed, behaviours   of the problems; shares of the responses
        refused, soundness                of safety families; of the steps and the right answers
        sampled                           the same figures of all samples: "families" {name: acc},
                                          "levels" {family: {level: {"acc", "n", "ci",
                                          "mean_tokens"}}}
        scaling                           what N samples give (pool.scaling)
    """
    ns = wanted_ns(config)
    problems = wanted_problems(config, model)
    longest = max(len(model.tokenizer.render_prompt(p.question)) for p in problems)
    most = min(model.config.max_len, longest + config.max_reasoning_tokens) if max(ns) else 0
    reward_models = load_reward_models(
        config, model, most, "that a question and its response may take"
    )
    bar = progress(len(problems) * (1 + max(ns)), "evaluate")
    figures = dict(ckpt=config.ckpt, limit=config.max_reasoning_tokens,
                   measured=measured(config), think=config.think)
    figures |= greedy_results(model, config, problems, bar)
    if max(ns) > 0:
        pool = draw_pool(
            model, problems, max(ns), config.temperature, config.max_reasoning_tokens,
            config.seed, config.cache or None, bar.update,
        )
        for name, reward_model in reward_models.items():
            pool.add_reward_model(name, reward_model, choose_bf16(config.precision, machine))
        figures["sampled"] = sampled_results(pool, config.temperature)
        figures["scaling"] = scaling(pool, ns, config.seed)
    bar.close()
    return figures


def greedy_results(model, config, problems, bar):
    """Figures of one greedy response to each problem."""
    limit = config.max_reasoning_tokens
    checked = collect(model, problems, 1, 0.0, limit, config.seed, on_progress=bar.update)
    samples = [own[0] for own in checked]
    refused = {}
    for family in dict.fromkeys(problem.family for problem in problems):
        if family in SAFETY:
            own = [s.response for p, s in zip(problems, samples) if p.family == family]
            refused[family] = accuracy_of([is_refusal(r.answer or "") for r in own])
    families = by_family(problems, checked)
    for (family, level), which in cells(problems).items():
        tokens = [samples[i].tokens for i in which]
        families[family]["levels"][level]["mean_tokens"] = round(float(np.mean(tokens)), 2)
    return {
        "greedy": accuracy_of([sample.correct for sample in samples]),
        "families": families,
        "split": config.split,
        "levels": sorted({problem.level for problem in problems}),
        "seed": config.seed,
        "mean_tokens": round(float(np.mean([sample.tokens for sample in samples])), 2),
        "behaviours": behaviours([sample.response for sample in samples]),
        "refused": refused,
        "soundness": soundness(problems, samples).figures(),
    }


def cells(problems):
    """{(family, level): indices of its problems}, levels as text, as JSON has them."""
    found = {}
    for i, problem in enumerate(problems):
        found.setdefault((problem.family, str(problem.level)), []).append(i)
    return found


def sample_figures(right, tokens):
    """{"acc", "n", "ci", "mean_tokens"} of samples. right, tokens: (P, N).

    n counts samples. With several per problem the interval is that of a mean over problems, because
    samples of one problem are not independent.
    """
    per_problem = right.mean(1)  # (P,), share of right samples
    if right.shape[1] == 1:
        interval = accuracy(int(right.sum()), right.size)["ci"]
    else:
        interval = interval_of_mean(per_problem)
    return {
        "acc": round(float(per_problem.mean()), 4),
        "n": right.size,
        "ci": interval,
        "mean_tokens": round(float(tokens.mean()), 2),
    }


def sampled_results(pool, temperature):
    """Figures of all samples of a pool."""
    families = {}
    per_problem = pool.right.mean(1)  # (P,)
    for family in dict.fromkeys(problem.family for problem in pool.problems):
        own = [share for share, p in zip(per_problem, pool.problems) if p.family == family]
        families[family] = round(float(np.mean(own)), 4)
    levels = {}
    for (family, level), which in cells(pool.problems).items():
        accuracies = sample_figures(pool.right[which], pool.tokens[which])
        levels.setdefault(family, {})[level] = accuracies
    responses = [pool.tokenizer.parse_response(ids) for own in pool.ids for ids in own]
    return sample_figures(pool.right, pool.tokens) | {
        "temperature": temperature,
        "families": families,
        "levels": levels,
        "behaviours": behaviours(responses),
    }


def table(figures):
    """The figures of `measure` for people to read."""
    lines = [f"greedy accuracy, {figures['measured']}, 95% intervals"]
    for family, measured in figures["families"].items():
        lines.append(accuracy_line(family, measured))
    lines.append(accuracy_line("all", figures["greedy"]))
    for family, measured in figures["refused"].items():
        lines.append(accuracy_line(f"{family}, refused", measured))
    steps = figures["soundness"]["steps"]
    if steps["n"]:
        lines.append(accuracy_line("sound steps", steps))
    if "sampled" in figures:
        sampled = figures["sampled"]
        scale = figures["scaling"]
        n = scale["problems"]  # what the interval is over
        if sampled["n"] > n:
            n = f"{n}, {sampled['n'] // n} samples of each"
        name = f"sampled at T={sampled['temperature']:g}"
        lines.append(accuracy_line(name, sampled | {"n": n}))
        lines.append(scaling_line("N", scale["ns"], "d"))
        for rule in scale["rules"]:
            lines.append(scaling_line(rule, scale[rule], ".3f"))
        lines.append(scaling_line("tokens per problem", scale["tokens"], ".0f"))
    return "\n".join(lines)


def accuracy_line(name, measured):
    """One line of the table: accuracy, interval, n."""
    low, high = measured["ci"]
    return f"{name:<18}{measured['acc']:6.3f}   [{low:.3f}, {high:.3f}]   n={measured['n']}"


def scaling_line(name, values, form):
    """One line of the table: a value for every N."""
    return f"{name:<24}" + "".join(f"{format(value, form):>10}" for value in values)


# Flags that go together, and main


WITHOUT_THINKING = ("greedy", "sample", *CHOICES)  # methods that need no thinking to work on


def check_think(config):
    """Raise UserError where --method works on the thinking that --no-think forbids."""
    if not config.think and not config.eval and config.method not in WITHOUT_THINKING:
        raise UserError(
            f"--method {config.method} works on the thinking, and --no-think leaves none; "
            f"{', '.join(WITHOUT_THINKING)} can answer at once"
        )


def check_config(config):
    """Raise UserError for what can be seen to be wrong before any work, outputs included."""
    if not config.ckpt and not pretrained.is_shipped():
        raise UserError("--ckpt is missing: which model should answer? This checkout ships none "
                        "(nanoreason/pretrained holds no weights); python -m nanoreason.speedrun "
                        "trains one, then --ckpt runs/speedrun/final")
    if config.question and (config.eval or not config.question.strip()):
        raise UserError('give either a question ("What is 15% of 80?") or --eval')
    if config.json and not config.question and not config.eval:
        raise UserError("--json is for one question and for --eval; a pipe gets JSON lines on "
                        "stdout")
    check_think(config)
    check_output(config.json, "json")
    if config.eval:
        wanted_families(config)
        wanted_levels(config)
        if max(wanted_ns(config)):
            check_output(config.cache, "cache", folder=True)
        if config.split == "all" and not config.data:
            raise UserError("--split all is for the rows of --data; generated problems have no end")


def main():
    """Answer a question or many, or measure."""
    config = parse_config(Config, doc=__doc__, positional="question")
    check_config(config)
    machine = start_machine(config.device)
    if not config.ckpt:
        config = replace(config, ckpt=pretrained.DEFAULT)
        complain(f"using the shipped final model ({config.ckpt}); --ckpt chooses another")
    if not config.question and not config.eval:
        answer_stdin(config, machine)
        return
    model = load_sampler(config, machine)
    start = time.time()
    if config.eval:
        figures = measure(model, config, machine)
        figures["seconds"] = round(time.time() - start, 1)
        say(table(figures))
    else:
        result = answer(model, config)
        figures = answer_figures(config.question, result, config)
    if config.json:
        write_json(config.json, figures)


if __name__ == "__main__":
    run_script(main)
