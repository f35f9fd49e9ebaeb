"""Rejection sampling, distillation and the final stage: what becomes of each sample, what a student reads, and runs that are killed, shared or wrong."""

import json
import os
import random
import signal
from collections import Counter
from itertools import combinations

import pytest
import torch
from conftest import make_tiny
from test_distributed import torchrun
from test_scripts import call
from test_search import READ, Scripted
from test_verifier import make_reward_model

import distill
import train_sft
from distill import CAUSES, Config, Trace, choose, compress, derived, drop_near, examine, feeds, filter_pool, in_order, select_traces, similarity, sound
from nanoreason import checkpoint
from nanoreason.machine import generator
from nanoreason.run import read_metrics
from nanoreason.corpus import conversation, final_mix, general_data, read_examples, read_rows, safety_data
from nanoreason.evaluate import greedy_figures, held_out_problems
from nanoreason.model import GPT, GPTConfig
from nanoreason.pool import draw_pool
from nanoreason.tasks import REASONING, draw_problem, make_problem, solve, split_of, user_problem
from nanoreason.tasks.general import HARMFUL, HARMLESS, INSTRUCTIONS, PHRASINGS, WORDS, held_out
from nanoreason.tokenizer import END, END_THINK, THINK, decode, encode, render_prompt, render_response
from nanoreason.reward_model import save_reward_model

SUM = make_problem("chain", 1, (8, ("+", 5), ("*", 3)), None, "What is (8 + 5) * 3?")
PRODUCT = make_problem("multiplication", 1, (45, 8), None, "What is 45 × 8?")
SEARCH = make_problem("countdown", 2, ((4, 5, 10), 35, ((10, "*", 4), (40, "-", 5))), None, "Make 35 from 4, 5 and 10, each used once.")
FACT = make_problem("fact", 1, (1, "France", 0), random.Random(0))
OWN = user_problem("Add 8 and 5, thrice.", "39")
TRUE = "8 + 5 = 13\n13 * 3 = 39"


# The steps that an answer needs


@pytest.mark.parametrize("problem, lines, short", [
    (SUM, "8 + 5 = 12 | Wait, 8 + 5 = 13 | 13 * 3 = 39 | Check: 39 / 3 = 13", "8 + 5 = 13 | 13 * 3 = 39"),
    (SUM, "8 + 5 = 13 | 13 * 3 = 39 | Another way: 8 * 3 = 24 | 5 * 3 = 15 | 24 + 15 = 39", "8 + 5 = 13 | 13 * 3 = 39"),
    (SUM, "8 + 5 = 14 | 14 * 3 = 39 | Another way: 8 * 3 = 24 | 5 * 3 = 15 | 24 + 15 = 39", "8 * 3 = 24 | 5 * 3 = 15 | 24 + 15 = 39"),
    (SUM, "8 + 5 = 13 | 5 + 8 = 13 | hm | 8 * 5 = 40 | Wait, 13 * 3 = 39", "8 + 5 = 13 | 13 * 3 = 39"),
    (SUM, "8 + 5 = 12 | 12 * 3 = 39", None),
    (SUM, "8 + 5 = 13", None),
    (SUM, "", None),
    (PRODUCT, "40 * 8 = 320 | 5 * 8 = 40 | 320 + 40 = 360", "40 * 8 = 320 | 5 * 8 = 40 | 320 + 40 = 360"),  # though 45 has a 40 of its own
    (SEARCH, "5 * 4 = 20, left 10 20 | 20 + 10 = 30, not 35 | Back to 4 5 10 | 10 * 4 = 40, left 5 40 | 40 + 5 = 45, not 35 | Back to 5 40 | 40 - 5 = 35",
     "10 * 4 = 40, left 5 40 | 40 - 5 = 35"),
    (FACT, "", ""),
    (FACT, "it is a city", ""),
    (OWN, "8 + 5 = 13 | well | 13 * 3 = 39 | 1 + 1 = 2", "8 + 5 = 13 | 13 * 3 = 39 | 1 + 1 = 2"),  # who knows what the last is for
    (OWN, "8 + 5 = 13 | 13 * 2 = 39", None),
    (OWN, "", ""),
])
def test_compressed_traces_hold_the_steps_that_are_needed(problem, lines, short):
    cut = lambda text: text.split(" | ") if text else []
    assert compress(problem, cut(lines)) == (None if short is None else cut(short))


def test_worked_solutions_of_every_family_and_style_are_compressed_to_sound_ones_that_cannot_be_cut_further():
    rng, shorter = random.Random(0), Counter()
    for family in REASONING:
        for i, style in enumerate(("steps", "check", "slip", "another") * 2):
            problem = draw_problem(family, i % 3 + 1, rng, "train")
            lines = solve(problem, style, rng)
            short = compress(problem, lines)
            assert sound(problem, short) and len(short) <= len(lines) and not any(line.startswith(("Check", "Wait", "Another")) for line in short), (problem, lines)
            assert all(feeds(problem, short[:i], line, short[i + 1 :]) or not sound(problem, short[:i] + short[i + 1 :]) for i, line in enumerate(short))
            shorter[family] += len(short) < len(lines)
    assert min(shorter[f] for f in REASONING) >= 4  # six of each eight say more than is needed, where the family has that style


def test_a_line_feeds_those_that_use_what_it_derives():
    assert derived(PRODUCT, "5 * 9 = 45") == {45, 40, 5} and derived(SUM, "5 * 9 = 45") == {45} and derived(SEARCH, "Back to 4 5 10") == set()
    assert feeds(SUM, [], "8 + 5 = 13", ["13 * 3 = 39"]) and not feeds(SUM, ["5 + 8 = 13"], "8 + 5 = 13", ["13 * 3 = 39"])
    assert not feeds(SUM, [], "8 + 5 = 13", ["26 / 2 = 13"]) and feeds(PRODUCT, [], "5 * 9 = 45", ["40 * 2 = 80"]) and not feeds(SUM, [], "5 * 9 = 45", ["40 * 2 = 80"])


# What becomes of a sample


UNSURE = render_response(TRUE + "\nCheck: 39 / 3 = 13", "39")
LUCKY = render_response("8 + 5 = 12\n13 * 3 = 39", "39")
RESPONSES = {  # (ids, score, what becomes of it where every step must be right and the score be 0.5)
    "kept": (render_response(TRUE, "39"), 0.9, "kept"),
    "equal": (render_response(TRUE, "39"), 0.9, "duplicate"),
    "equal once cleaned": ([THINK, *encode("8 + 5 = 13\n\n13 * 3 = 39\n"), END_THINK, *encode("39"), END], 0.9, "duplicate"),
    "near": (render_response(TRUE, "39."), 0.8, "near-duplicate"),
    "other": (render_response("8 * 3 = 24\n5 * 3 = 15\n24 + 15 = 39", "39"), 0.7, "not selected"),
    "wrong": (render_response("8 + 5 = 13\n13 * 3 = 36", "36"), 0.9, "wrong"),
    "wrong again": (render_response("8 + 5 = 13\n13 * 3 = 36", "36"), 0.9, "wrong"),
    "cut": (render_response(TRUE, "39")[:-1], 0.9, "unfinished"),
    "not closed": ([THINK, *encode(TRUE), END], 0.9, "unfinished"),
    "tags in text": (render_response("</think>\n" + TRUE, "39"), 0.1, "low score"),
    "lucky": (LUCKY, 0.9, "unsound step"),
    "unsure": (UNSURE, 0.2, "low score"),
}


def test_every_sample_gets_the_first_cause_that_applies_and_all_are_counted():
    ids, scores, fates = zip(*RESPONSES.values())
    for clean, fates in (("steps", fates), ("answer", ["near-duplicate" if fate == "unsound step" else fate for fate in fates])):  # the lucky one differs in a digit
        chosen, fate = select_traces(SUM, ids, scores, Config(clean=clean, min_score=0.5, select="shortest", keep=1))
        assert [(list(t.ids), t.text, t.score) for t in chosen] == [(ids[0], f"<think>{TRUE}</think>39", 0.9)]
        assert +fate == Counter(fates) and fate.total() == len(RESPONSES) and (clean == "answer" or set(fates) == {*CAUSES, "kept"})
    tags = RESPONSES["tags in text"][0]
    assert [examine(SUM, tags, None, Config(clean=clean))[1] for clean in ("answer", "steps")] == ["unfinished", "unsound step"]


def test_compressed_traces_are_freed_of_duplicates_once_they_are_short():
    chosen, fate = select_traces(SUM, [UNSURE, render_response(TRUE, "39"), LUCKY], [None] * 3, Config(traces="compressed"))
    assert [t.text for t in chosen] == [f"<think>{TRUE}</think>39"] and +fate == Counter({"kept": 1, "duplicate": 1, "unsound step": 1})
    direct = examine(SUM, render_response("", "39"), None, Config())
    assert direct == (Trace((THINK, END_THINK, *encode("39"), END), "<think></think>39", None), "")
    assert examine(SUM, render_response("", "39"), None, Config(traces="compressed")) == (None, "unsound step")


def trace(*ids, score=None):
    return Trace(ids, "", score)


def test_similarity_is_the_share_of_common_tokens_in_order():
    assert similarity([1, 2, 3, 4], [1, 2, 4, 5]) == 0.75 and similarity([1, 2], [3]) == 0.0 and similarity([1, 2], [1, 2], 1.0) == 1.0
    rng = random.Random(0)
    pairs = [[[rng.randrange(4) for _ in range(rng.randrange(1, 9))] for _ in range(2)] for _ in range(200)]
    for a, b in pairs:
        exact = similarity(a, b)
        assert similarity(a, b, 0.6) == (exact if exact >= 0.6 else similarity(a, b, 0.6)) and similarity(a, b, 0.6) <= exact  # the bound drops nothing that counts
        assert (exact == 1) == (a == b)
    assert sum(0 < similarity(a, b) < 0.6 and similarity(a, b, 0.6) == 0 for a, b in pairs) > 20


def test_near_duplicates_go_and_what_is_kept_is_chosen_as_asked():
    four = [trace(1, 2, 3, 4, score=0.1), trace(1, 2, 4, 5, score=0.3), trace(4, 5, score=0.2), trace(1, 2, 3, 5, score=0.3)]
    assert drop_near(four, 0.75) == [four[0], four[2]] and drop_near(four, 1.0) == four and drop_near(four, 0.0) == four[:1]
    assert in_order(four, "shortest") == in_order(four, "diverse") == [four[2], four[0], four[1], four[3]]
    assert in_order(four, "prm") == [four[1], four[3], four[2], four[0]] and in_order(four, "all") == four
    assert choose(four, "all", 1) == four and choose(four, "shortest", 2) == choose(four, "prm", 2) == four[:2]
    three = [trace(1, 2, 3, 4), trace(1, 2, 3, 5), trace(6, 7)]
    assert choose(three, "diverse", 2) == [three[0], three[2]] and choose(three, "diverse", 3) == three and choose(three, "diverse", 1) == three[:1]


def test_diverse_traces_are_chosen_farthest_first():
    """Each is, of those left, the one whose greatest similarity to those before it is the least."""
    rng = random.Random(1)
    traces = [trace(*(rng.randrange(6) for _ in range(rng.randrange(4, 12)))) for _ in range(12)]
    chosen = choose(traces, "diverse", 5)
    for k in range(1, 5):
        greatest = {t: max(similarity(t.ids, c.ids) for c in chosen[:k]) for t in traces if t not in chosen[:k]}
        assert greatest[chosen[k]] == min(greatest.values())
    closest = lambda some: max(similarity(a.ids, b.ids) for a, b in combinations(some, 2))
    assert chosen[0] == traces[0] and closest(chosen) < closest(traces[:5])


def test_the_rows_read_back_as_the_very_ids_and_carry_the_scores(tmp_path):
    script = {SUM.question: [(render_response(TRUE, "39"), 0.5), (render_response("", "39"), 0.3), (RESPONSES["wrong"][0], 0.2)], FACT.question: [(render_response("", "Paris"), 1.0)]}
    pool = draw_pool(Scripted(script), [SUM, FACT], 40, 1.0, 60, 0).add_reward_model("judge", make_reward_model("prm", max_len=256))
    rows, sums = filter_pool(pool, "judge-min", Config(near=1.0, reward_model="given"))
    assert [(r["prompt"], r["response"], r["family"], r["level"], r["tokens"]) for r in rows] == [
        (SUM.question, "<think></think>39", "chain", 1, 5), (SUM.question, f"<think>{TRUE}</think>39", "chain", 1, len(script[SUM.question][0][0])),
        (FACT.question, "<think></think>Paris", "fact", 1, len(render_response("", "Paris")))]
    where = [(p, pool.ids[p].index(ids)) for p, ids in ((0, render_response("", "39")), (0, render_response(TRUE, "39")), (1, render_response("", "Paris")))]
    assert [r["score"] for r in rows] == [round(float(pool.scores["judge-min"][place]), 4) for place in where] and len({r["score"] for r in rows}) == 3
    wrong = pool.ids[0].count(RESPONSES["wrong"][0])
    assert wrong > 0 and sums["chain", "wrong"] == wrong and sums["chain", "duplicate"] == 38 - wrong and sums["fact", "duplicate"] == 39
    assert sums["solved"] == 2 and sums["right"] == 80 - wrong and sums["right_tokens"] == sum(len(ids) for row in pool.ids for ids in row) - wrong * len(RESPONSES["wrong"][0])
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = read_examples(tmp_path / "traces.jsonl")
    expected = [render_prompt(p.question) + pool.ids[p_index][n] for p, (p_index, n) in zip((SUM, SUM, FACT), where)]
    assert sorted(e.ids for e in examples["train"] + examples["val"]) == sorted(expected)
    assert [row.thinking for row in read_rows(tmp_path / "traces.jsonl")] == ["", TRUE, ""] and all(row.marked for row in read_rows(tmp_path / "traces.jsonl"))


def test_a_model_is_measured_by_its_answers_steps_tokens_and_arithmetic():
    model = Scripted({SUM.question: [(render_response(TRUE, "39"), 1.0)], FACT.question: [(render_response("", "Rome"), 1.0)]})
    model.num_params = 7
    figures = greedy_figures(model, [SUM, FACT], 160)
    tokens = len(render_response(TRUE, "39")), len(render_response("", "Rome"))
    assert figures["mean_tokens"] == sum(tokens) / 2 and figures["params"] == 7 and (figures["greedy"]["acc"], figures["greedy"]["n"]) == (0.5, 2)
    assert figures["mean_flops"] == READ * (sum(tokens) + len(render_prompt(SUM.question)) + len(render_prompt(FACT.question))) / 2
    assert [figures["accuracy"][family]["levels"]["1"]["acc"] for family in ("chain", "fact")] == [1.0, 0.0] and figures["levels"][1]["acc"] == 0.5
    assert (figures["unsound"]["acc"], figures["unsound"]["n"]) == (0.0, 1)
    lucky = Scripted({SUM.question: [(LUCKY, 1.0)]})
    lucky.num_params = 7
    assert greedy_figures(lucky, [SUM], 160)["unsound"]["acc"] == greedy_figures(lucky, [SUM], 160)["greedy"]["acc"] == 1.0


def test_duplicates_stay_where_they_are_asked_for():
    right, other = render_response(TRUE, "39"), render_response("8 + 5 = 13\n3 * 13 = 39", "39")
    for flags, kept in ((dict(duplicates=True, select="all"), [right, right, other, right]), (dict(select="all", near=1.0), [right, other])):
        chosen, fate = select_traces(SUM, [right, right, other, render_response("8 + 5 = 13", "38"), right], [None] * 5, Config(**flags))
        assert [list(t.ids) for t in chosen] == kept and fate["kept"] == len(kept) and fate["duplicate"] == 4 - len(kept) and sum(fate.values()) == 5


# Runs


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A tiny model that knows capitals, opposites and young animals, and says 'unknown' half of the time: its run folder."""
    folder, rng = tmp_path_factory.mktemp("teacher"), random.Random(0)
    problems = [draw_problem("fact", rng.choice((1, 2, 3)), rng, "train") for _ in range(900)]
    (folder / "data.jsonl").write_text("".join(json.dumps({"prompt": p.question, "response": p.answer if rng.random() < 0.5 else "unknown"}) + "\n" for p in problems))
    shape = GPTConfig(n_layer=1, n_head=2, n_kv_head=1, head_dim=16, n_embd=48, d_ff=96, max_len=64)
    checkpoint.save(folder / "ckpt.pt", GPT(shape).init_weights(generator(0, "start")))
    call(train_sft, "--stage", "cold-start", "--init", folder, "--data", folder / "data.jsonl", "--epochs", 10, "--batch-tokens", 512, "--row-tokens", 64,
         "--muon-lr", 0.02, "--adamw-lr", 0.02, "--precision", "fp32", "--device", "cpu", "--out", folder / "model")
    return folder / "model"


def flags(teacher, out):
    return ["--teacher", teacher, "--families", "fact", "--level", "1,2,3,4", "--questions", 500, "--samples", 6, "--max-reasoning-tokens", 12, "--precision", "fp32", "--device", "cpu", "--out", out]


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """The folder of a whole run: rejection sampling, then a student that starts from the teacher."""
    out = tmp_path_factory.mktemp("whole") / "run"
    call(distill, *flags(teacher, out), "--student", teacher, "--epochs", 12, "--batch-tokens", 256, "--muon-lr", 0.01, "--adamw-lr", 0.01, "--eval-problems", 30)
    return out


def read(path):
    return json.loads(path.read_text())


def test_a_student_gives_the_answers_that_its_teacher_gave_now_and_then(teacher, whole):
    about, report = read(whole / "provenance.json"), read(whole / "report.json")
    rows = [json.loads(line) for line in (whole / "traces.jsonl").read_text().splitlines()]
    fate = about["fate"]
    assert list(fate) == [*CAUSES, "kept"] and sum(fate.values()) == about["samples"] == 6 * about["questions"] and about["families"] == {"fact": fate}
    assert 128 < about["questions"] <= 192 and about["teacher"] == str(teacher) and about["seed"] == 0 and about["temperature"] == 1.0 and len(about["weights"]) == 12
    assert 0.2 < fate["wrong"] / about["samples"] < 0.8 and fate["duplicate"] > fate["kept"] == about["traces"] == len(rows)
    assert about["solved"] == len({row["prompt"] for row in rows}) and about["mean_tokens_kept"] == pytest.approx(sum(row["tokens"] for row in rows) / len(rows), abs=0.01)
    assert about["sampled_tokens"] > about["mean_tokens_right"] * (about["samples"] - fate["wrong"] - fate["unfinished"])
    held = {p.question for p in held_out_problems(["fact"], [1, 2, 3, 4], 30)}
    assert len({(row["prompt"], row["response"]) for row in rows}) == len(rows) and not held & {row["prompt"] for row in rows} and "unknown" not in str(rows)
    student, before = report["student_figures"], report["teacher_figures"]
    assert student["greedy"]["n"] == before["greedy"]["n"] == len(held) > 20 and student["greedy"]["acc"] > before["greedy"]["acc"] + 0.15
    assert student["params"] == before["params"] and student["mean_flops"] / checkpoint.load_model(teacher).flops_per_token() > student["mean_tokens"] + 5
    assert report["collected"] == about and report["traces"] == "full" and report["training"]["train_loss"] < 0.5


def killed_while_it_samples(out, command, whole_chunks):
    """A forked process runs the command and dies of SIGKILL as it draws the next chunk."""
    pid = os.fork()
    if pid == 0:
        drawn, write = Counter(), distill.draw_pool

        def dying(*args):
            drawn["chunks"] += 1
            if drawn["chunks"] > whole_chunks:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*args)

        distill.draw_pool = dying
        try:
            call(distill, *command)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL and len(list((out / "samples").iterdir())) == whole_chunks


def test_a_run_stopped_while_it_samples_and_while_it_trains_leaves_the_same_traces_and_student(teacher, whole, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    command = [*flags(teacher, out), "--student", teacher, "--epochs", 12, "--batch-tokens", 256, "--muon-lr", 0.01, "--adamw-lr", 0.01, "--eval-problems", 30]
    killed_while_it_samples(out, command, 1)
    assert not (out / "traces.jsonl").exists()
    steps = []

    def stepping(*args, step=train_sft.train_step):
        steps.append(1)
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(train_sft, "train_step", stepping)
    with pytest.raises(SystemExit) as stop:
        call(distill, *command, "--resume")
    assert stop.value.code == 130 and checkpoint.load(out / "student")["step"] == 7 and not (out / "report.json").exists()
    assert (out / "traces.jsonl").read_bytes() == (whole / "traces.jsonl").read_bytes() and read(out / "provenance.json") == read(whole / "provenance.json")
    monkeypatch.setattr(distill, "draw_pool", lambda *args: pytest.fail("sampled again"))
    call(distill, *command, "--resume")
    one, two = (checkpoint.load(folder / "student")["weights"] for folder in (whole, out))
    assert all(torch.equal(one[name], two[name]) for name in one) and len(read_metrics(out / "student" / "metrics.jsonl")) == len(read_metrics(whole / "student" / "metrics.jsonl"))
    monkeypatch.setattr(train_sft, "train", lambda *args: pytest.fail("trained again"))
    (out / "report.json").unlink()
    call(distill, *command, "--resume")
    untimed = lambda report: {k: v for k, v in report.items() if k not in ("seconds", "training")} | {"losses": [report["training"][k] for k in ("train_loss", "val_loss", "steps")]}
    assert untimed(read(out / "report.json")) == untimed(read(whole / "report.json"))
    for change, complaint in ((["--resume", "--keep", 3], "began with other flags: --keep 4"), ([], "already holds a run")):
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
    assert "are not those that began the run" in capfd.readouterr().err


def test_two_ranks_leave_the_traces_of_one(teacher, whole, tmp_path):
    done = torchrun("distill.py", *flags(teacher, tmp_path / "two"), "--student", "nano", "--epochs", 3, "--batch-tokens", 512, "--max-steps", 2, "--eval-problems", 4)
    assert done.status == 0, done.err
    assert (tmp_path / "two" / "traces.jsonl").read_bytes() == (whole / "traces.jsonl").read_bytes()
    assert read(tmp_path / "two" / "provenance.json") == read(whole / "provenance.json") and len(list((tmp_path / "two" / "samples").iterdir())) == 3  # rank 0 has the first and the last
    report = read(tmp_path / "two" / "report.json")
    assert report["params"] == GPT(distill.MODELS["nano"]).num_params == report["student_figures"]["params"] and report["training"]["steps"] == 2
    assert done.out.count("What became of") == 1


def test_a_users_own_questions_are_asked_once_each_and_a_tenth_is_kept_for_the_evaluation(teacher, tmp_path):
    rng = random.Random(3)
    problems = list({p.question: p for p in (draw_problem("fact", 1, rng) for _ in range(300))}.values())
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in [*problems, *problems[:5]]))
    kept = [p for p in problems if split_of("data", (p.question, p.answer)) == "val"]
    call(distill, *flags(teacher, tmp_path / "own"), "--data", tmp_path / "own.jsonl", "--student", "nano", "--max-steps", 1, "--epochs", 1)
    about, report = read(tmp_path / "own" / "provenance.json"), read(tmp_path / "own" / "report.json")
    rows = read_rows(tmp_path / "own" / "traces.jsonl")
    assert len(kept) >= 3 and about["questions"] == len(problems) - len(kept) and report["student_figures"]["greedy"]["n"] == len(kept)
    assert rows and not {p.question for p in kept} & {row.prompt for row in rows} and report["training"]["val_loss"] is None


def test_a_verifier_drops_and_chooses_and_collecting_only_trains_nobody(teacher, tmp_path):
    save_reward_model(tmp_path / "judge.pt", make_reward_model("prm", max_len=64))
    judged = [*flags(teacher, tmp_path / "judged"), "--collect-only", "--reward-model", tmp_path / "judge.pt", "--aggregate", "prod", "--select", "prm", "--keep", 1, "--questions", 80]
    call(distill, *judged, "--min-score", 0.5)
    rows = [json.loads(line) for line in (tmp_path / "judged" / "traces.jsonl").read_text().splitlines()]
    assert rows and min(row["score"] for row in rows) >= 0.5 and read(tmp_path / "judged" / "provenance.json")["fate"]["low score"] > 0
    assert sorted(p.name for p in (tmp_path / "judged").iterdir()) == ["config.json", "provenance.json", "samples", "traces.jsonl"]


@pytest.mark.parametrize("args, complaint", [
    (["--student", "nano", "--out", "{new}"], "--teacher is missing"),
    (["--teacher", "{teacher}", "--out", "{new}"], "--student is missing: one of"),
    (["--teacher", "{judge}", "--student", "nano", "--out", "{new}"], "holds a reward model (orm), which scores and cannot write"),
    (["--teacher", "{teacher}", "--student", "{judge}", "--out", "{new}"], "holds a reward model (orm), which scores and cannot write"),
    (["--teacher", "{teacher}", "--student", "giant", "--out", "{new}"], "no checkpoint at giant"),
    (["--teacher", "nowhere", "--student", "nano", "--out", "{new}"], "no checkpoint at nowhere"),
    (["--teacher", "{teacher}", "--student", "nano", "--select", "prm", "--out", "{new}"], "--select prm keeps the highest scores: whose?"),
    (["--teacher", "{teacher}", "--student", "nano", "--min-score", "0.5", "--out", "{new}"], "--min-score 0.5 needs a --reward-model"),
    (["--teacher", "{teacher}", "--student", "nano", "--reward-model", "{teacher}", "--out", "{new}"], "is a language model; a reward model is wanted"),
    (["--teacher", "{teacher}", "--student", "nano", "--level", "auto", "--out", "{new}"], "--level auto follows a model that learns"),
    (["--teacher", "{teacher}", "--student", "nano", "--near", "1.5", "--out", "{new}"], "at most 1"),
    (["--teacher", "{teacher}", "--student", "nano", "--out", "{new}"], "--max-reasoning-tokens leaves no room for questions"),
    (["--teacher", "{teacher}", "--student", "{short}", "--max-reasoning-tokens", "20", "--families", "fact", "--out", "{new}"], "--max-reasoning-tokens leaves no room for questions"),
    (["--teacher", "{teacher}", "--student", "nano", "--out", "{used}"], "already holds a run"),
    (["--teacher", "{teacher}", "--student", "nano", "--families", "poetry", "--max-reasoning-tokens", "12", "--out", "{new}"], "there is no family 'poetry'"),
    (["--teacher", "{teacher}", "--families", "fact", "--level", "4", "--questions", "20", "--samples", "2", "--max-reasoning-tokens", "12", "--collect-only", "--out", "{new}"],
     "of 32 samples no trace was kept ("),
])
def test_every_mistake_ends_in_one_line_and_status_2(args, complaint, teacher, tmp_path, capsys):
    save_reward_model(tmp_path / "judge.pt", make_reward_model("orm", max_len=64))
    checkpoint.save(tmp_path / "short.pt", make_tiny(max_len=16))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "traces.jsonl").write_text("precious")
    places = dict(teacher=teacher, judge=tmp_path / "judge.pt", short=tmp_path / "short.pt", used=tmp_path / "used", new=tmp_path / "new")
    with pytest.raises(SystemExit) as stop:
        call(distill, *(a.format(**places) for a in args))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and complaint in error and error.count("\n") == 1
    assert (tmp_path / "used" / "traces.jsonl").read_text() == "precious" and not (tmp_path / "new" / "traces.jsonl").exists()


def test_help_names_every_flag_and_compressed_traces_bring_the_shortest(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        call(distill, "--help")
    shown, seen = capsys.readouterr().out, []
    assert all("--" + name.replace("_", "-") in shown for name in Config.__dataclass_fields__)
    monkeypatch.setattr(distill, "distill", lambda config, machine: seen.append(config.select))
    for args in ([], ["--traces", "full"], ["--traces", "compressed"], ["--traces", "compressed", "--select", "all"]):
        call(distill, *args)
    assert seen == ["diverse", "diverse", "shortest", "all"]


# The final stage


def questions_of(examples):
    return [decode(e.ids[1 : e.prompt_len - 1]) for e in examples]


def test_the_final_mix_has_the_shares_asked_for_and_nothing_of_other_splits():
    rows = [conversation(f"What is {i} + 1?", f"{i} + 1 = {i + 1}", str(i + 1)) for i in range(700)]
    mixed = final_mix(rows, 0.2, 0.1, seed=3)
    assert len(mixed) == 1000 and [e in rows for e in mixed].count(True) == 700 and 50 < sum(e in rows for e in mixed[:100]) < 90  # shuffled
    assert sorted(e.ids for e in mixed) == sorted(e.ids for e in [*rows, *general_data(200, 3), *safety_data(100, 3)])
    assert mixed == final_mix(rows, 0.2, 0.1, seed=3) != final_mix(rows, 0.2, 0.1, seed=4) and [len(final_mix(some, 0.2, 0.1, 0)) for some in (rows[:7], [])] == [10, 0]
    assert sorted(e.ids for e in final_mix(rows, 0, 0, 0)) == sorted(e.ids for e in rows)
    asked = {split: set(questions_of(final_mix(rows, 0.45, 0.45, 0, split))) for split in ("train", "val")}
    for split, found in asked.items():
        for i, phrasing in enumerate(PHRASINGS):
            assert bool(found & {phrasing.format(subject) for subject in (*HARMFUL, *HARMLESS)}) == (held_out(i, len(PHRASINGS)) == split)
        for _, phrasings, _ in (INSTRUCTIONS[level] for level in (1, 2, 3)):  # about one word
            for i, phrasing in enumerate(phrasings):
                assert bool(found & {phrasing.format(word) for word in WORDS}) == (held_out(i, len(phrasings)) == split)


def test_the_final_stage_trains_on_the_mix_and_validates_on_its_own_split(tmp_path, monkeypatch, capsys):
    numbers = [n for n in range(400)]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps({"prompt": f"What is {n}?", "response": f"<think>{n} = {n}</think>{n}"}) + "\n" for n in numbers))
    val = sum(split_of("data", (f"What is {n}?", str(n))) == "val" for n in numbers)
    packed = []
    monkeypatch.setattr(train_sft, "pack", lambda examples, T, pack=train_sft.pack: packed.append(examples) or pack(examples, T))
    call(train_sft, "--stage", "final", "--data", tmp_path / "traces.jsonl", "--model", "nano", "--max-steps", 1, "--general", 0.3, "--safety", 0.2, "--seed", 5, "--out", tmp_path / "final")
    shares = [round(own / 0.5) for own in (400 - val, val)]
    assert [len(some) for some in packed] == shares and 20 < val < 60
    for some, own, split in zip(packed, (400 - val, val), ("train", "val")):
        kinds = Counter("own" if q.startswith("What is ") and q[8:-1].isdecimal() else "other" for q in questions_of(some))
        assert kinds["own"] == own and sorted(e.ids for e in some if e.ids in [s.ids for s in safety_data(round(2 * own * 0.2), 5, split)])
    assert read(tmp_path / "final" / "report.json")["val_loss"] > 3 and read(tmp_path / "final" / "report.json")["stage"] == "final"
    for args, complaint in ((["--out", tmp_path / "a"], "--stage final needs --data"),
                            (["--data", tmp_path / "traces.jsonl", "--general", 0.6, "--safety", 0.4, "--out", tmp_path / "b"], "--general and --safety together are 1; less than 1")):
        with pytest.raises(SystemExit) as stop:
            call(train_sft, "--stage", "final", *args)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and complaint in error and error.count("\n") == 1
