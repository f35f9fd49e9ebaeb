"""Rejection sampling, distillation and the final stage: what becomes of each sample, what a student
reads, and runs that are killed, shared or wrong."""

import json
import os
import random
import signal
from collections import Counter
from itertools import combinations

import pytest
import torch
from conftest import (
    END, END_THINK, THINK, decode, encode, make_tiny, render_prompt, render_response, tokenizer,
    toy_tokenizer,
)
from test_distributed import torchrun
from test_reward_model import make_reward_model
from test_scripts import call
from test_search import READ, Scripted

import distill
import train_sft
from distill import Config
from nanoreason import checkpoint
from nanoreason.corpus import (
    Conversation, final_mix, general_data, read_documents, read_rows, safety_data, tokenize,
)
from nanoreason.evaluate import greedy_figures, held_out_problems
from nanoreason.machine import generator
from nanoreason.model import GPT, GPTConfig
from nanoreason.pool import draw_pool
from nanoreason.reward_model import RewardModel, save_reward_model
from nanoreason.run import read_metrics
from nanoreason.tasks import REASONING, draw_problem, make_problem, solve, split_of, user_problem
from nanoreason.tasks.general import (
    HARMFUL, HARMLESS, INSTRUCTIONS, PHRASINGS, WORDS, held_out,
)
from nanoreason.traces import (
    CAUSES, Trace, choose, compress, derived, drop_near, examine, feeds, filter_pool, in_order,
    select_traces, similarity, sound,
)

SUM = make_problem("chain", 1, (8, ("+", 5), ("*", 3)), None, "What is (8 + 5) * 3?")
PRODUCT = make_problem("multiplication", 1, (45, 8), None, "What is 45 × 8?")
SEARCH = make_problem(
    "countdown", 2, ((4, 5, 10), 35, ((10, "*", 4), (40, "-", 5))), None,
    "Make 35 from 4, 5 and 10, each used once.",
)
FACT = make_problem("fact", 1, (1, "France", 0), random.Random(0))
OWN = user_problem("Add 8 and 5, thrice.", "39")
TRUE = "8 + 5 = 13\n13 * 3 = 39"


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
    return json.loads(path.read_text())


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# The steps that an answer needs

SHORT = "8 + 5 = 13 | 13 * 3 = 39"
BY_PARTS = "8 * 3 = 24 | 5 * 3 = 15 | 24 + 15 = 39"
PLACES = "40 * 8 = 320 | 5 * 8 = 40 | 320 + 40 = 360"
DEAD_ENDS = (
    "5 * 4 = 20, left 10 20 | 20 + 10 = 30, not 35 | Back to 4 5 10 | 10 * 4 = 40, left 5 40 | "
    "40 + 5 = 45, not 35 | Back to 5 40 | 40 - 5 = 35"
)

TRIES = "Try 4 + 5 + 10 = 19 | Try 5 * 4 = 20 | Wait, Try 10 * 4 = 40, 40 - 5 = 35"


@pytest.mark.parametrize("problem, lines, short", [
    (SUM, "8 + 5 = 12 | Wait, 8 + 5 = 13 | 13 * 3 = 39 | Check: 39 / 3 = 13", SHORT),
    (SUM, f"{SHORT} | Another way: {BY_PARTS}", SHORT),
    (SUM, f"8 + 5 = 14 | 14 * 3 = 39 | Another way: {BY_PARTS}", BY_PARTS),
    (SUM, "8 + 5 = 13 | 5 + 8 = 13 | hm | 8 * 5 = 40 | Wait, 13 * 3 = 39", SHORT),
    (SUM, "8 + 5 = 12 | 12 * 3 = 39", None),
    (SUM, "8 + 5 = 13", None),
    (SUM, "", None),
    (PRODUCT, PLACES, PLACES),  # though 45 has a 40 of its own
    (SEARCH, DEAD_ENDS, "10 * 4 = 40, left 5 40 | 40 - 5 = 35"),
    (SEARCH, f"{TRIES} | 10 * 4 = 40, left 5 40 | 40 - 5 = 35",
     "10 * 4 = 40, left 5 40 | 40 - 5 = 35"),
    (FACT, "", ""),
    (FACT, "it is a city", ""),
    # who knows what the last is for
    (OWN, "8 + 5 = 13 | well | 13 * 3 = 39 | 1 + 1 = 2", f"{SHORT} | 1 + 1 = 2"),
    (OWN, "8 + 5 = 13 | 13 * 2 = 39", None),
    (OWN, "", ""),
])
def test_compressed_traces_hold_the_steps_that_are_needed(problem, lines, short):
    def cut(text):
        return text.split(" | ") if text else []

    assert compress(problem, cut(lines)) == (None if short is None else cut(short))


def test_worked_solutions_of_every_family_and_style_are_compressed_to_sound_ones():
    """They cannot be cut further."""
    rng = random.Random(0)
    shorter = Counter()
    for family in REASONING:
        for i, style in enumerate(("steps", "check", "slip", "another") * 2):
            problem = draw_problem(family, i % 3 + 1, rng, "train")
            lines = solve(problem, style, rng)
            short = compress(problem, lines)
            assert sound(problem, short) and len(short) <= len(lines), (problem, lines)
            assert not any(line.startswith(("Check", "Wait", "Another")) for line in short)
            for k, line in enumerate(short):
                before = short[:k]
                after = short[k + 1 :]
                assert feeds(problem, before, line, after) or not sound(problem, before + after)
            shorter[family] += len(short) < len(lines)
    # six of each eight say more than is needed, where the family has that style
    assert min(shorter[family] for family in REASONING) >= 4


def test_a_line_feeds_those_that_use_what_it_derives():
    assert derived(PRODUCT, "5 * 9 = 45") == {45, 40, 5} and derived(SUM, "5 * 9 = 45") == {45}
    assert derived(SEARCH, "Back to 4 5 10") == set()
    assert feeds(SUM, [], "8 + 5 = 13", ["13 * 3 = 39"])
    assert not feeds(SUM, ["5 + 8 = 13"], "8 + 5 = 13", ["13 * 3 = 39"])
    assert not feeds(SUM, [], "8 + 5 = 13", ["26 / 2 = 13"])
    assert feeds(PRODUCT, [], "5 * 9 = 45", ["40 * 2 = 80"])
    assert not feeds(SUM, [], "5 * 9 = 45", ["40 * 2 = 80"])


def test_the_last_number_is_what_a_line_derives_and_no_use_of_it():
    assert derived(SUM, "8 + 5 = 13, so 13 * 3 = 39") == {39}
    assert not feeds(SUM, [], "8 + 5 = 13", ["26 = 13, or 2 * 6 = 12"])


# What becomes of a sample


UNSURE = render_response(TRUE + "\nCheck: 39 / 3 = 13", "39")
LUCKY = render_response("8 + 5 = 12\n13 * 3 = 39", "39")
UNCLEAN = [THINK, *encode("8 + 5 = 13\n\n13 * 3 = 39\n"), END_THINK, *encode("39"), END]
# (ids, score, what becomes of it where every step must be right and the score be 0.5)
RESPONSES = {
    "kept": (render_response(TRUE, "39"), 0.9, "kept"),
    "equal": (render_response(TRUE, "39"), 0.9, "duplicate"),
    "equal once cleaned": (UNCLEAN, 0.9, "duplicate"),
    "near": (render_response(TRUE, "39."), 0.8, "near-duplicate"),
    "other": (render_response(BY_PARTS.replace(" | ", "\n"), "39"), 0.7, "not selected"),
    "wrong": (render_response("8 + 5 = 13\n13 * 3 = 36", "36"), 0.9, "wrong"),
    "wrong again": (render_response("8 + 5 = 13\n13 * 3 = 36", "36"), 0.9, "wrong"),
    "cut": (render_response(TRUE, "39")[:-1], 0.9, "unfinished"),
    "not closed": ([THINK, *encode(TRUE), END], 0.9, "unfinished"),
    "tags in text": (render_response("</think>\n" + TRUE, "39"), 0.1, "low score"),
    "lucky": (LUCKY, 0.9, "unsound step"),
    "unsure": (UNSURE, 0.2, "low score"),
}


def test_every_sample_gets_the_first_cause_that_applies_and_all_are_counted():
    ids, scores, of_steps = zip(*RESPONSES.values())
    # where steps do not count, the lucky one differs from the first in a digit
    of_answers = ["near-duplicate" if fate == "unsound step" else fate for fate in of_steps]
    for clean, fates in (("steps", of_steps), ("answer", of_answers)):
        config = Config(clean=clean, min_score=0.5, select="shortest", keep=1)
        chosen, fate = select_traces(SUM, ids, scores, config, tokenizer)
        found = [(list(t.ids), t.text, t.score) for t in chosen]
        assert found == [(ids[0], f"<think>{TRUE}</think>39", 0.9)]
        assert +fate == Counter(fates) and fate.total() == len(RESPONSES)
        assert clean == "answer" or set(fates) == {*CAUSES, "kept"}
    tags = RESPONSES["tags in text"][0]
    configs = [Config(clean=clean) for clean in ("answer", "steps")]
    causes = [examine(SUM, tags, None, config, tokenizer)[1] for config in configs]
    assert causes == ["unfinished", "unsound step"]


def test_compressed_traces_are_freed_of_duplicates_once_they_are_short():
    responses = [UNSURE, render_response(TRUE, "39"), LUCKY]
    compressed = Config(traces="compressed")
    chosen, fate = select_traces(SUM, responses, [None] * 3, compressed, tokenizer)
    assert [t.text for t in chosen] == [f"<think>{TRUE}</think>39"]
    assert +fate == Counter({"kept": 1, "duplicate": 1, "unsound step": 1})
    direct = render_response("", "39")
    trace = Trace((THINK, END_THINK, *encode("39"), END), "<think></think>39", None)
    assert examine(SUM, direct, None, Config(), tokenizer) == (trace, "")
    assert examine(SUM, direct, None, compressed, tokenizer) == (None, "unsound step")


def make_trace(*ids, score=None):
    return Trace(ids, "", score)


def test_similarity_is_the_share_of_common_tokens_in_order():
    assert similarity([1, 2, 3, 4], [1, 2, 4, 5]) == 0.75
    assert similarity([1, 2], [3]) == 0.0 and similarity([1, 2], [1, 2], 1.0) == 1.0
    rng = random.Random(0)
    pairs = []
    for _ in range(200):
        a, b = ([rng.randrange(4) for _ in range(rng.randrange(1, 9))] for _ in range(2))
        pairs.append((a, b))
    for a, b in pairs:
        exact = similarity(a, b)
        bounded = similarity(a, b, 0.6)
        # the bound drops nothing that counts
        assert bounded <= exact and (exact < 0.6 or bounded == exact)
        assert (exact == 1) == (a == b)
    dropped = [0 < similarity(a, b) < 0.6 and similarity(a, b, 0.6) == 0 for a, b in pairs]
    assert dropped.count(True) > 20


def test_near_duplicates_go_and_what_is_kept_is_chosen_as_asked():
    four = [
        make_trace(1, 2, 3, 4, score=0.1),
        make_trace(1, 2, 4, 5, score=0.3),
        make_trace(4, 5, score=0.2),
        make_trace(1, 2, 3, 5, score=0.3),
    ]
    assert drop_near(four, 0.75) == [four[0], four[2]]
    assert drop_near(four, 1.0) == four and drop_near(four, 0.0) == four[:1]
    by_length = [four[2], four[0], four[1], four[3]]
    assert in_order(four, "shortest") == in_order(four, "diverse") == by_length
    assert in_order(four, "prm") == [four[1], four[3], four[2], four[0]]
    assert in_order(four, "all") == four
    assert choose(four, "all", 1) == four
    assert choose(four, "shortest", 2) == choose(four, "prm", 2) == four[:2]
    three = [make_trace(1, 2, 3, 4), make_trace(1, 2, 3, 5), make_trace(6, 7)]
    assert choose(three, "diverse", 2) == [three[0], three[2]]
    assert choose(three, "diverse", 3) == three and choose(three, "diverse", 1) == three[:1]


def test_diverse_traces_are_chosen_farthest_first():
    """Each is, of those left, the one whose greatest similarity to those before it is the least."""
    rng = random.Random(1)
    traces = []
    for _ in range(12):
        traces.append(make_trace(*(rng.randrange(6) for _ in range(rng.randrange(4, 12)))))
    chosen = choose(traces, "diverse", 5)
    for k in range(1, 5):
        left = [t for t in traces if t not in chosen[:k]]
        greatest = {t: max(similarity(t.ids, c.ids) for c in chosen[:k]) for t in left}
        assert greatest[chosen[k]] == min(greatest.values())

    def closest(some):
        return max(similarity(a.ids, b.ids) for a, b in combinations(some, 2))

    assert chosen[0] == traces[0] and closest(chosen) < closest(traces[:5])


def test_the_rows_read_back_as_the_very_ids_and_carry_the_scores(tmp_path):
    worked = render_response(TRUE, "39")
    direct = render_response("", "39")
    paris = render_response("", "Paris")
    wrong = RESPONSES["wrong"][0]
    script = {SUM.question: [(worked, 0.5), (direct, 0.3), (wrong, 0.2)],
              FACT.question: [(paris, 1.0)]}
    pool = draw_pool(Scripted(script), [SUM, FACT], 40, 1.0, 60, 0)
    pool.add_reward_model("prm", make_reward_model("prm", max_len=256))
    rows, sums = filter_pool(pool, "prm-min", Config(near=1.0, reward_model="given"))
    keys = ("prompt", "response", "family", "level", "tokens")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        (SUM.question, "<think></think>39", "chain", 1, 5),
        (SUM.question, f"<think>{TRUE}</think>39", "chain", 1, len(worked)),
        (FACT.question, "<think></think>Paris", "fact", 1, len(paris)),
    ]
    kept = ((0, direct), (0, worked), (1, paris))
    where = [(p, pool.ids[p].index(ids)) for p, ids in kept]
    scores = [round(float(pool.scores["prm-min"][index]), 4) for index in where]
    assert [row["score"] for row in rows] == scores and len(set(scores)) == 3
    n_wrong = pool.ids[0].count(wrong)
    assert n_wrong > 0 and sums["chain", "wrong"] == n_wrong
    assert sums["chain", "duplicate"] == 38 - n_wrong and sums["fact", "duplicate"] == 39
    assert sums["solved"] == 2 and sums["right"] == 80 - n_wrong
    tokens = sum(len(ids) for row in pool.ids for ids in row)
    assert sums["right_tokens"] == tokens - n_wrong * len(wrong)
    path = tmp_path / "traces.jsonl"
    write_jsonl(path, rows)
    documents = read_documents(path)
    examples = tokenize(documents["train"] + documents["val"], tokenizer)
    expected = [render_prompt((SUM, FACT)[p].question) + ids for p, ids in kept]
    assert sorted(e.ids for e in examples) == sorted(expected)
    assert [row.thinking for row in read_rows(path)] == ["", TRUE, ""]
    assert all(row.marked for row in read_rows(path))


def test_a_model_is_measured_by_its_answers_steps_tokens_and_arithmetic():
    worked = render_response(TRUE, "39")
    rome = render_response("", "Rome")
    model = Scripted({SUM.question: [(worked, 1.0)], FACT.question: [(rome, 1.0)]})
    model.num_params = 7
    figures = greedy_figures(model, [SUM, FACT], 160)
    tokens = len(worked) + len(rome)
    prompt_tokens = len(render_prompt(SUM.question)) + len(render_prompt(FACT.question))
    assert figures["mean_tokens"] == tokens / 2 and figures["params"] == 7
    assert (figures["greedy"]["acc"], figures["greedy"]["n"]) == (0.5, 2)
    assert figures["mean_flops"] == READ * (tokens + prompt_tokens) / 2
    of_level = [figures["accuracy"][name]["levels"]["1"]["acc"] for name in ("chain", "fact")]
    assert of_level == [1.0, 0.0] and figures["levels"][1]["acc"] == 0.5
    assert (figures["unsound"]["acc"], figures["unsound"]["n"]) == (0.0, 1)
    lucky = Scripted({SUM.question: [(LUCKY, 1.0)]})
    lucky.num_params = 7
    figures = greedy_figures(lucky, [SUM], 160)
    assert figures["unsound"]["acc"] == figures["greedy"]["acc"] == 1.0


def test_duplicates_stay_where_they_are_asked_for():
    right = render_response(TRUE, "39")
    other = render_response("8 + 5 = 13\n3 * 13 = 39", "39")
    wrong = render_response("8 + 5 = 13", "38")
    for flags, kept in (
        (dict(duplicates=True, select="all"), [right, right, other, right]),
        (dict(select="all", near=1.0), [right, other]),
    ):
        responses = [right, right, other, wrong, right]
        config = Config(**flags)
        chosen, fate = select_traces(SUM, responses, [None] * 5, config, tokenizer)
        assert [list(t.ids) for t in chosen] == kept and fate["kept"] == len(kept)
        assert fate["duplicate"] == 4 - len(kept) and sum(fate.values()) == 5


# Runs


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A tiny model that knows capitals, opposites and young animals, and says 'unknown' half of the
    time: its run folder."""
    folder = tmp_path_factory.mktemp("teacher")
    rng = random.Random(0)
    problems = [draw_problem("fact", rng.choice((1, 2, 3)), rng, "train") for _ in range(900)]
    rows = []
    for problem in problems:
        answer = problem.answer if rng.random() < 0.5 else "unknown"
        rows.append({"prompt": problem.question, "response": answer})
    write_jsonl(folder / "data.jsonl", rows)
    shape = GPTConfig(
        n_layer=1, n_head=2, n_kv_head=1, head_dim=16, n_embd=48, d_ff=96, max_len=64
    )
    model = GPT(shape, tokenizer).init_weights(generator(0, "start"))
    checkpoint.save(folder / "ckpt.pt", model)
    flags = (
        "--stage cold-start --epochs 10 --batch-tokens 512 --row-tokens 64 --muon-lr 0.02 "
        "--adamw-lr 0.02 --precision fp32 --device cpu"
    )
    places = ["--init", folder, "--data", folder / "data.jsonl", "--out", folder / "model"]
    call(train_sft, *flags.split(), *places)
    return folder / "model"


def flags(teacher, out):
    common = (
        "--families fact --level 1,2,3,4 --questions 500 --samples 6 --max-reasoning-tokens 12 "
        "--precision fp32 --device cpu"
    )
    return ["--teacher", teacher, *common.split(), "--out", out]


def of_student(start):
    rates = "--epochs 12 --batch-tokens 256 --muon-lr 0.01 --adamw-lr 0.01 --eval-problems 30"
    return ["--student", start, *rates.split()]


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """The folder of a whole run: rejection sampling, then a student that starts from the
    teacher."""
    out = tmp_path_factory.mktemp("whole") / "run"
    call(distill, *flags(teacher, out), *of_student(teacher))
    return out


def test_provenance_says_where_the_traces_come_from_and_what_became_of_each_sample(teacher, whole):
    about = read(whole / "provenance.json")
    rows = read_jsonl(whole / "traces.jsonl")
    fate = about["fate"]
    assert list(fate) == [*CAUSES, "kept"] and about["families"] == {"fact": fate}
    assert sum(fate.values()) == about["samples"] == 6 * about["questions"]
    assert 128 < about["questions"] <= 192 and about["teacher"] == str(teacher)
    assert about["seed"] == 0 and about["temperature"] == 1.0 and len(about["weights"]) == 12
    assert 0.2 < fate["wrong"] / about["samples"] < 0.8
    assert fate["duplicate"] > fate["kept"] == about["traces"] == len(rows)
    assert about["solved"] == len({row["prompt"] for row in rows})
    mean = sum(row["tokens"] for row in rows) / len(rows)
    assert about["mean_tokens_kept"] == pytest.approx(mean, abs=0.01)
    right = about["samples"] - fate["wrong"] - fate["unfinished"]
    assert about["sampled_tokens"] > about["mean_tokens_right"] * right


def test_a_student_gives_the_answers_that_its_teacher_gave_now_and_then(teacher, whole):
    report = read(whole / "report.json")
    rows = read_jsonl(whole / "traces.jsonl")
    held = {p.question for p in held_out_problems(["fact"], [1, 2, 3, 4], 30)}
    assert len({(row["prompt"], row["response"]) for row in rows}) == len(rows)
    assert not held & {row["prompt"] for row in rows} and "unknown" not in str(rows)
    student = report["student_figures"]
    before = report["teacher_figures"]
    assert student["greedy"]["n"] == before["greedy"]["n"] == len(held) > 20
    assert student["greedy"]["acc"] > before["greedy"]["acc"] + 0.15
    assert student["params"] == before["params"]
    read_tokens = student["mean_flops"] / checkpoint.load_model(teacher).flops_per_token()
    assert read_tokens > student["mean_tokens"] + 5  # the prompt's too
    assert report["collected"] == read(whole / "provenance.json")
    assert report["traces"] == "full" and report["training"]["train_loss"] < 0.5


def killed_while_it_samples(out, command, whole_chunks):
    """A forked process runs the command and dies of SIGKILL as it draws the next chunk."""
    pid = os.fork()
    if pid == 0:
        drawn = Counter()
        draw = distill.draw_pool

        def dying(*args):
            drawn["chunks"] += 1
            if drawn["chunks"] > whole_chunks:
                os.kill(os.getpid(), signal.SIGKILL)
            return draw(*args)

        distill.draw_pool = dying
        try:
            call(distill, *command)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert len(list((out / "samples").iterdir())) == whole_chunks


def interrupt_at(step, monkeypatch):
    """Ctrl-C in the `step`th step of a student's training."""
    steps = []
    train_step = train_sft.train_step

    def stepping(*args):
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(*args)

    monkeypatch.setattr(train_sft, "train_step", stepping)


def untimed(report):
    """A report without what the clock says."""
    kept = {k: v for k, v in report.items() if k not in ("seconds", "training")}
    return kept | {k: report["training"][k] for k in ("train_loss", "val_loss", "steps")}


def test_a_run_stopped_while_it_samples_and_while_it_trains_leaves_the_same_traces_and_student(
    teacher, whole, tmp_path, monkeypatch, capfd
):
    out = tmp_path / "run"
    command = [*flags(teacher, out), *of_student(teacher)]
    killed_while_it_samples(out, command, 1)
    assert not (out / "traces.jsonl").exists()
    interrupt_at(7, monkeypatch)
    with pytest.raises(SystemExit) as stop:
        call(distill, *command, "--resume")
    assert stop.value.code == 130 and checkpoint.load(out / "student")["step"] == 7
    assert not (out / "report.json").exists()
    assert (out / "traces.jsonl").read_bytes() == (whole / "traces.jsonl").read_bytes()
    assert read(out / "provenance.json") == read(whole / "provenance.json")
    monkeypatch.setattr(distill, "draw_pool", lambda *args: pytest.fail("sampled again"))
    call(distill, *command, "--resume")
    one, two = (checkpoint.load(folder / "student")["weights"] for folder in (whole, out))
    assert all(torch.equal(one[name], two[name]) for name in one)
    logs = [read_metrics(folder / "student" / "metrics.jsonl") for folder in (whole, out)]
    assert len(logs[0]) == len(logs[1])
    monkeypatch.setattr(train_sft, "train_step", lambda *args: pytest.fail("trained again"))
    (out / "report.json").unlink()
    call(distill, *command, "--resume")
    assert untimed(read(out / "report.json")) == untimed(read(whole / "report.json"))
    before = (out / "report.json").read_bytes()
    capfd.readouterr()
    call(distill, *command, "--resume")
    assert "the run is finished" in capfd.readouterr().out
    assert (out / "report.json").read_bytes() == before
    for change, complaint in (
        (["--resume", "--keep", 3], "began with other flags: --keep 4"),
        ([], "already holds a run"),
    ):
        with pytest.raises(SystemExit):
            call(distill, *command, *change)
        assert complaint in capfd.readouterr().err


def test_a_run_goes_on_only_with_the_teacher_that_began_it(teacher, tmp_path, capfd):
    checkpoint.save(tmp_path / "ckpt.pt", checkpoint.load_model(teacher))
    command = [*flags(tmp_path, tmp_path / "run"), "--collect-only"]
    killed_while_it_samples(tmp_path / "run", command, 1)
    checkpoint.save(tmp_path / "ckpt.pt", make_tiny(max_len=64))
    with pytest.raises(SystemExit):
        call(distill, *command, "--resume")
    assert "--resume: the file of --teacher has changed" in capfd.readouterr().err
    config = read(tmp_path / "run" / "config.json")
    del config["inputs"]  # as an earlier version left it
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        call(distill, *command, "--resume")
    assert "are not those of the weights in --teacher" in capfd.readouterr().err


def test_two_ranks_leave_the_traces_of_one(teacher, whole, tmp_path):
    out = tmp_path / "two"
    student = "--student nano --epochs 3 --batch-tokens 512 --max-steps 2 --eval-problems 4"
    done = torchrun("distill.py", *flags(teacher, out), *student.split())
    assert done.status == 0, done.err
    assert (out / "traces.jsonl").read_bytes() == (whole / "traces.jsonl").read_bytes()
    assert read(out / "provenance.json") == read(whole / "provenance.json")
    assert len(list((out / "samples").iterdir())) == 3  # rank 0 has the first and the last
    report = read(out / "report.json")
    params = GPT(distill.MODELS["nano"]).num_params
    assert report["params"] == params == report["student_figures"]["params"]
    assert report["training"]["steps"] == 2
    assert done.out.count("What became of") == 1


def test_a_users_own_questions_are_asked_once_each_and_a_tenth_is_kept_for_the_evaluation(
    teacher, tmp_path
):
    rng = random.Random(3)
    drawn = (draw_problem("fact", 1, rng) for _ in range(300))
    problems = list({p.question: p for p in drawn}.values())
    path = tmp_path / "own.jsonl"
    asked = [*problems, *problems[:5]]
    write_jsonl(path, [{"question": p.question, "answer": p.answer} for p in asked])
    splits = {p.question: split_of("data", (p.question, p.answer)) for p in problems}
    kept = [p for p in problems if splits[p.question] == "test"]
    out = tmp_path / "own"
    student = "--student nano --max-steps 1 --epochs 1"
    call(distill, *flags(teacher, out), "--data", path, *student.split())
    report = read(out / "report.json")
    rows = read_rows(out / "traces.jsonl")
    assert len(kept) >= 3
    assert read(out / "provenance.json")["questions"] == list(splits.values()).count("train")
    assert report["student_figures"]["greedy"]["n"] == len(kept)
    assert rows and not {p.question for p in kept} & {row.question for row in rows}
    assert report["training"]["val_loss"] is None


def test_a_reward_model_drops_and_chooses_and_collecting_only_trains_nobody(teacher, tmp_path):
    out = tmp_path / "scored"
    save_reward_model(tmp_path / "prm.pt", make_reward_model("prm", max_len=64))
    options = (
        "--collect-only --aggregate prod --select prm --keep 1 --questions 80 --min-score 0.5"
    )
    call(distill, *flags(teacher, out), "--reward-model", tmp_path / "prm.pt", *options.split())
    rows = read_jsonl(out / "traces.jsonl")
    assert rows and min(row["score"] for row in rows) >= 0.5
    assert read(out / "provenance.json")["fate"]["low score"] > 0
    left = ["config.json", "provenance.json", "samples", "traces.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == left


NANO = ["--teacher", "{teacher}", "--student", "nano"]
SCORES_ONLY = "holds a reward model (orm), which scores and cannot write"
NO_ROOM = "--max-reasoning-tokens leaves no room for questions"
FEW = "--families fact --level 4 --questions 20 --samples 2 --max-reasoning-tokens 12".split()


@pytest.mark.parametrize("args, complaint", [
    (["--student", "nano"], "--teacher is missing"),
    (["--teacher", "{teacher}"], "--student is missing: one of"),
    (["--teacher", "{orm}", "--student", "nano"], SCORES_ONLY),
    (["--teacher", "{teacher}", "--student", "{orm}"], SCORES_ONLY),
    (["--teacher", "{teacher}", "--student", "giant"], "no checkpoint at giant"),
    (["--teacher", "nowhere", "--student", "nano"], "no checkpoint at nowhere"),
    ([*NANO, "--select", "prm"], "--select prm keeps the highest scores: whose?"),
    ([*NANO, "--min-score", "0.5"], "--min-score 0.5 needs a --reward-model"),
    ([*NANO, "--reward-model", "{teacher}"], "is a language model; a reward model is wanted"),
    ([*NANO, "--reward-model", "{toy_orm}"],
     "--teacher and --reward-model have different tokenizers"),
    (["--teacher", "{toy}", "--student", "nano"],
     "--teacher and --student have different tokenizers"),
    (["--teacher", "{teacher}", "--student", "{toy}"],
     "--teacher and --student have different tokenizers"),
    ([*NANO, "--level", "auto"], "--level auto follows a model that learns"),
    ([*NANO, "--near", "1.5"], "at most 1"),
    (NANO, NO_ROOM),
    (["--teacher", "{teacher}", "--student", "{short}", "--max-reasoning-tokens", "20",
      "--families", "fact"], NO_ROOM),
    ([*NANO, "--families", "fact", "--max-reasoning-tokens", "12", "--out", "{used}"],
     "already holds a run"),
    ([*NANO, "--families", "poetry", "--max-reasoning-tokens", "12"],
     "there is no family 'poetry'"),
    (["--teacher", "{teacher}", *FEW, "--collect-only"], "of 32 samples no trace was kept ("),
])
def test_every_mistake_ends_in_one_line_and_status_2(args, complaint, teacher, tmp_path, capsys):
    save_reward_model(tmp_path / "orm.pt", make_reward_model("orm", max_len=64))
    checkpoint.save(tmp_path / "short.pt", make_tiny(max_len=16))
    toy = make_tiny(tokenizer=toy_tokenizer(), max_len=64)
    checkpoint.save(tmp_path / "toy.pt", toy)
    toy_orm = RewardModel(toy.config, "orm", toy.tokenizer)
    save_reward_model(tmp_path / "toy_orm.pt", toy_orm)
    used = tmp_path / "used"
    used.mkdir()
    (used / "traces.jsonl").write_text("precious")
    places = dict(teacher=teacher, used=used)
    for name in ("orm", "short", "toy", "toy_orm"):
        places[name] = tmp_path / f"{name}.pt"
    if "--out" not in args:
        args = [*args, "--out", str(tmp_path / "new")]
    with pytest.raises(SystemExit) as stop:
        call(distill, *(a.format(**places) for a in args))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and complaint in error and error.count("\n") == 1
    assert (used / "traces.jsonl").read_text() == "precious"
    assert not (tmp_path / "new" / "traces.jsonl").exists()


def test_help_names_every_flag_and_compressed_traces_bring_the_shortest(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        call(distill, "--help")
    shown = capsys.readouterr().out
    names = Config.__dataclass_fields__
    assert all("--" + name.replace("_", "-") in shown for name in names)
    seen = []
    monkeypatch.setattr(distill, "distill", lambda config, _: seen.append(config.select))
    for words in ("", "--traces full", "--traces compressed", "--traces compressed --select all"):
        call(distill, *words.split())
    assert seen == ["diverse", "diverse", "shortest", "all"]


# The final stage


def questions_of(examples):
    return [decode(e.ids[1 : e.prompt_len - 1]) for e in examples]


def ids_of(documents):
    return sorted(e.ids for e in tokenize(documents, tokenizer))


def test_the_final_mix_has_the_shares_asked_for_and_nothing_of_other_splits():
    rows = []
    for i in range(700):
        rows.append(Conversation(f"What is {i} + 1?", f"{i} + 1 = {i + 1}", str(i + 1)))
    mixed = final_mix(rows, 0.2, 0.1, seed=3)
    own = [e in rows for e in mixed]
    assert len(mixed) == 1000 and own.count(True) == 700
    assert 50 < own[:100].count(True) < 90  # shuffled
    assert ids_of(mixed) == ids_of([*rows, *general_data(200, 3), *safety_data(100, 3)])
    assert mixed == final_mix(rows, 0.2, 0.1, seed=3) != final_mix(rows, 0.2, 0.1, seed=4)
    assert [len(final_mix(some, 0.2, 0.1, 0)) for some in (rows[:7], [])] == [10, 0]
    assert ids_of(final_mix(rows, 0, 0, 0)) == ids_of(rows)
    for split in ("train", "val"):
        found = set(questions_of(tokenize(final_mix(rows, 0.45, 0.45, 0, split), tokenizer)))
        for i, phrasing in enumerate(PHRASINGS):
            asked = {phrasing.format(subject) for subject in (*HARMFUL, *HARMLESS)}
            assert bool(found & asked) == (held_out(i, len(PHRASINGS)) == split)
        for level in (1, 2, 3):  # about one word
            _, phrasings, _ = INSTRUCTIONS[level]
            for i, phrasing in enumerate(phrasings):
                asked = {phrasing.format(word) for word in WORDS}
                assert bool(found & asked) == (held_out(i, len(phrasings)) == split)


def test_the_final_stage_trains_on_the_mix_and_validates_on_its_own_split(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "traces.jsonl"
    out = tmp_path / "final"
    rows = []
    for n in range(400):
        rows.append({"prompt": f"What is {n}?", "response": f"<think>{n} = {n}</think>{n}"})
    write_jsonl(path, rows)
    splits = [split_of("data", (f"What is {n}?", str(n))) for n in range(400)]
    own = (splits.count("train"), splits.count("val"))
    n_val = splits.count("val")
    packed = []
    pack = train_sft.pack

    def packing(examples, T):
        packed.append(examples)
        return pack(examples, T)

    monkeypatch.setattr(train_sft, "pack", packing)
    options = "--model nano --max-steps 1 --general 0.3 --safety 0.2 --seed 5"
    call(train_sft, "--stage", "final", "--data", path, *options.split(), "--out", out)
    assert [len(some) for some in packed] == [round(n / 0.5) for n in own] and 20 < n_val < 60
    for some, n, split in zip(packed, own, ("train", "val")):
        asked = questions_of(some)
        mine = [q for q in asked if q.startswith("What is ") and q[8:-1].isdecimal()]
        assert len(mine) == n
        wanted = tokenize(safety_data(round(2 * n * 0.2), 5, split), tokenizer)
        safe = [e.ids for e in wanted]
        assert any(e.ids in safe for e in some)
    report = read(out / "report.json")
    assert report["val_loss"] > 3 and report["stage"] == "final"
    for words, complaint in (
        (["--out", tmp_path / "a"], "--stage final needs --data"),
        (["--data", path, "--general", 0.6, "--safety", 0.4, "--out", tmp_path / "b"],
         "--general and --safety together are 1; less than 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            call(train_sft, "--stage", "final", *words)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and complaint in error and error.count("\n") == 1
