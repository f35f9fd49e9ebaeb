"""Which of a teacher's responses become text to learn from: checked, shortened, freed of
duplicates, chosen, and counted.

    examine         one response: is it finished and right, and each step too? what is left of it?
    compress        only the steps that the answer needs
    drop_near       without near-duplicates
    choose          at most so many per question: the shortest, or the most diverse, ...
    select_traces   all of this for the responses to one question
    filter_pool     the rows of traces.jsonl, and what became of every sample

`config` is that of distill.py; clean, traces, min_score, near, select, keep and duplicates are read
from it.
"""

import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher

from nanoreason.corpus import reads_back
from nanoreason.rewards import outcome_reward
from nanoreason.tasks import FAMILIES, REASONING, Verdict, audit, strip_cue
from nanoreason.tasks.core import NUMBER, parse_number

# why a sample is dropped; the rest is kept
CAUSES = (
    "wrong", "unfinished", "low score", "unsound step", "duplicate", "near-duplicate",
    "not selected",
)
RESULT = rf"= *-?({NUMBER.pattern})(?:,.*)?"  # the end of a line that derives a number


@dataclass(frozen=True)
class Trace:
    """A right response, cleaned. ids: tuple of what a student learns to say, from <|think|> to
    <|end|>; text: the same as JSONL has it; score: the reward model's, None without one."""

    ids: tuple
    text: str
    score: float | None


# The steps that an answer needs


def sound(problem, lines):
    """Is every line right, and does the answer follow?

    Where there is nothing to reason about, as with facts, no lines are needed.
    """
    return audit(problem, lines).sound or (not lines and problem.family not in REASONING)


def compress(problem, lines):
    """The steps that the answer needs, by the exact checker: a list of lines, or None where the
    right ones do not lead to the answer.

        What is (8 + 5) * 3?
        8 + 5 = 12 | Wait, 8 + 5 = 13 | 13 * 3 = 39 | Check: 39 / 3 = 13
        ->  8 + 5 = 13 | 13 * 3 = 39

    Lines that are not right go first, then lines that can be missed, then cues. A user's own
    questions come without a reference that could say what is needed: there all right lines stay.
    """
    if not sound(problem, lines):
        checked = zip(lines, audit(problem, lines).judgements)
        lines = [line for line, j in checked if j.verdict is Verdict.RIGHT]
        if not sound(problem, lines):
            return None
    if problem.family in FAMILIES:
        # Pairs and triples too: a sampled search may hold a dead end and the way back.
        for width in (1, 2, 3):
            lines = leave_out(problem, lines, width)
    return without_cues(problem, lines)


def leave_out(problem, lines, width):
    """Leave out `width` lines in a row, wherever what stays is sound.

    From the last to the first, so that a second way goes before the first. A line that feeds a
    later one stays, even where the checker would let it go: it knows numbers by their value, and
    without 5 * 8 = 40 in 45 * 8 the next line would take its 40 from the 40 of 45.
    """
    for at in reversed(range(len(lines))):
        before = lines[:at]
        out = lines[at : at + width]
        after = lines[at + width :]
        if len(out) < width or any(feeds(problem, before, line, after) for line in out):
            continue
        if sound(problem, before + after):
            lines = before + after
    return lines


def without_cues(problem, lines):
    """Without 'Wait, ' and other cues, where what stays is sound: nothing went wrong any more."""
    for i in range(len(lines)):
        plain = [*lines[:i], strip_cue(lines[i])[1], *lines[i + 1 :]]
        if sound(problem, plain):
            lines = plain
    return lines


def derived(problem, line):
    """The number that a line derives, and its parts where the family works place by place.

    A try derives nothing: moves go on from the given numbers.

    '5 * 9 = 45'  ->  {45, 40, 5} in a product
    """
    match = re.fullmatch(".*" + RESULT, line)
    if not match or strip_cue(line)[1].startswith("Try "):
        return set()
    return FAMILIES[problem.family].with_places({parse_number(match[1])} - {None})


def used(line):
    """The numbers in a line, but for what it derives itself."""
    return {parse_number(number) for number in NUMBER.findall(re.sub(RESULT + "$", "", line))}


def feeds(problem, before, line, after):
    """Does a line after this one use what it derives, and none before it?"""
    new = derived(problem, line).difference(*(derived(problem, other) for other in before))
    return any(new & used(other) for other in after)


# One response


def examine(problem, ids, score, config, tokenizer):
    """(Trace, "") of one response, or (None, cause) with the first cause that applies.

    "unfinished": without an answer where it belongs, cut off, or written so that it could not be
    read back from text, such as with a </think> of ordinary characters in its thinking.
    """
    response = tokenizer.parse_response(ids)
    if response.answer is None:
        return None, "unfinished"
    if not outcome_reward(problem, response):
        return None, "wrong"
    if score is not None and score < config.min_score:
        return None, "low score"
    lines = response.steps
    if config.clean == "steps" and not sound(problem, lines):
        return None, "unsound step"
    if config.traces == "compressed":
        lines = compress(problem, lines)
        if lines is None:
            return None, "unsound step"
    thinking = "\n".join(lines).strip()
    text = f"<think>{thinking}</think>{response.answer}"
    if not reads_back(text, thinking, response.answer):
        return None, "unfinished"
    shown = tokenizer.render_response(thinking, response.answer)
    return Trace(tuple(shown), text, score), ""


# The responses to one question


def similarity(a, b, floor=0.0):
    """Share of common tokens, in order: 2 M / (len(a) + len(b)), M the tokens of all matching
    blocks (Ratcliff and Obershelp; difflib). 1.0 for equal ones only.

    0.0 where a cheap upper bound is below `floor` already.

    [1, 2, 3, 4], [1, 2, 4, 5]  ->  2 * 3 / 8 = 0.75
    """
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if matcher.real_quick_ratio() < floor or matcher.quick_ratio() < floor:
        return 0.0
    return matcher.ratio()


def in_order(traces, select):
    """The preferred first: by score for prm, as sampled for all, else by length.

    Of near-duplicates the first stays. Equals stay as sampled.
    """
    if select == "all":
        return list(traces)
    if select == "prm":
        return sorted(traces, key=lambda t: -t.score)
    return sorted(traces, key=lambda t: len(t.ids))


def drop_near(traces, near):
    """Without those of similarity `near` or more to an earlier one that stays.

    near 0.75:  [1, 2, 3, 4], [1, 2, 4, 5], [4, 5]  ->  the first and the last
    """
    apart = []
    for trace in traces:
        if all(similarity(trace.ids, other.ids, near) < near for other in apart):
            apart.append(trace)
    return apart


def choose(traces, select, keep):
    """At most `keep` of the traces, which come in order of preference; all: all.

    diverse: the first, then again and again the one least like those chosen (farthest-first,
    Gonzalez 1985), the earlier of equals.

    [1, 2, 3, 4], [1, 2, 3, 5], [6, 7], keep 2  ->  the first and the last
    """
    if select == "all":
        return list(traces)
    if select != "diverse" or len(traces) <= keep:
        return traces[:keep]
    chosen = traces[:1]
    nearest = {t: 0.0 for t in traces[1:]}  # similarity to the most like of those chosen
    while len(chosen) < keep:
        last = chosen[-1].ids
        nearest = {t: max(s, similarity(t.ids, last)) for t, s in nearest.items()}
        chosen.append(min(nearest, key=nearest.get))
        del nearest[chosen[-1]]
    return chosen


def select_traces(problem, responses, scores, config, tokenizer):
    """Traces to keep of the responses (lists of ids) to one question, and a Counter of what became
    of each: one of CAUSES, or "kept". scores: one per response, or None."""
    examined = {}  # equal responses are examined once
    found = []
    seen = set()
    fate = Counter()
    for ids, score in zip(map(tuple, responses), scores, strict=True):
        if ids not in examined:
            examined[ids] = examine(problem, ids, score, config, tokenizer)
        trace, cause = examined[ids]
        if trace and trace.ids in seen and not config.duplicates:
            cause = "duplicate"
        if cause:
            fate[cause] += 1
        else:
            found.append(trace)
            seen.add(trace.ids)
    apart = found
    if not config.duplicates:
        apart = drop_near(in_order(found, config.select), config.near)
    chosen = choose(apart, config.select, config.keep)
    fate["near-duplicate"] += len(found) - len(apart)
    fate["not selected"] += len(apart) - len(chosen)
    fate["kept"] += len(chosen)
    return chosen, fate


# Rows, and what became of the samples


def filter_pool(pool, rule, config):
    """JSONL rows of what is kept of a Pool, and sums over its samples.

    rule: name of the scores in pool.scores that count, or None. The sums are a Counter by
    (family, cause), and by name: right, right_tokens, sampled_tokens and solved (questions).
    """
    rows = []
    sums = Counter(
        right=int(pool.right.sum()),
        right_tokens=int(pool.tokens[pool.right].sum()),
        sampled_tokens=int(pool.tokens.sum()),
    )
    for p, problem in enumerate(pool.problems):
        scores = pool.scores[rule][p].tolist() if rule else [None] * pool.samples
        chosen, fate = select_traces(problem, pool.ids[p], scores, config, pool.tokenizer)
        sums.update({(problem.family, cause): n for cause, n in fate.items()})
        sums["solved"] += int(pool.right[p].any())
        for trace in chosen:
            row = dict(
                prompt=problem.question,
                response=trace.text,
                family=problem.family,
                level=problem.level,
                tokens=len(trace.ids),
            )
            if rule:
                row["score"] = round(trace.score, 4)
            rows.append(row)
    return rows, sums


def account(rows, sums, problems, samples):
    """What became of the `samples` per problem, from `filter_pool`: for provenance.json."""
    families = list(dict.fromkeys(problem.family for problem in problems))
    by_family = {
        name: {cause: sums[name, cause] for cause in (*CAUSES, "kept")} for name in families
    }
    fate = {cause: sum(of[cause] for of in by_family.values()) for cause in (*CAUSES, "kept")}
    return dict(
        questions=len(problems),
        samples=len(problems) * samples,
        sampled_tokens=sums["sampled_tokens"],
        fate=fate,
        families=by_family,
        traces=len(rows),
        solved=sums["solved"],
        mean_tokens_right=_mean(sums["right_tokens"], sums["right"]),
        mean_tokens_kept=_mean(sum(row["tokens"] for row in rows), len(rows)),
    )


def _mean(total, n):
    return round(total / n, 2) if n else None


def fates(figures):
    """'40 wrong, 3 unfinished, ...': what became of the samples, in words."""
    return ", ".join(f"{n} {cause}" for cause, n in figures["fate"].items() if n)
