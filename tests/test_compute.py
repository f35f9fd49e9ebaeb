"""The arithmetic of the studies of test-time compute: plans, FLOPs, crossings, Gao's laws, and their tables and figures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_stopping
from test_verifier import make_reward_model

from nanoreason import plots
from nanoreason.studies import compute, reward_models
from nanoreason.studies.compute import crossing, flops_of, make_plan, sizes_markdown
from nanoreason.evaluate import held_out_problems
from nanoreason.studies.reward_models import gao_fit, kl_of_best, step_auc
from nanoreason.search import SearchConfig


def curve(params, ns, vote, orm=None, per_token=2.0):
    cell = lambda acc: dict(acc=acc, ci=[[a, a] for a in acc])
    bins = {title: dict(problems=10, tokens=30.0, prompt=20.0, greedy=dict(acc=vote[0], ci=[vote[0]] * 2, n=10), vote=cell(vote), coverage=cell(vote), **({"orm": cell(orm)} if orm else {})) for title in compute.BINS}
    return dict(params=params, flops_per_token=per_token, ns=ns, training_flops=params * 1e3, bins=bins)


def test_a_question_costs_its_prompt_once_every_sample_and_what_the_judge_reads():
    small = curve(1, [1, 4], [0.2, 0.5], [0.2, 0.6])
    assert flops_of(small, "easy", 1, False) == 2 * (20 + 30) and flops_of(small, "easy", 4, False) == 2 * (20 + 120) and flops_of(small, "easy", 4, True) == 2 * (20 + 120 + 4 * 50)


def test_crossings_and_the_table_of_sizes():
    small, large = curve(1, [1, 2, 4, 8], [0.2, 0.2, 0.4, 0.5], [0.2, 0.4, 0.6, 0.7]), curve(10, [1], [0.5], per_token=20.0)
    assert crossing(small, 0.5, "hard", "vote") == (8, 2 * (20 + 240)) and crossing(small, 0.5, "hard", "orm") == (4, 2 * (20 + 120 + 200))
    assert crossing(small, 0.9, "hard", "orm") is None
    report = dict(curves=dict(small=small, large=large), lines={"small": ["large"]})
    row = sizes_markdown(report).splitlines()[2]
    # the large one's answer costs 1000: a vote of all 8 (520) fits, of ORM choices 4 (680) fit and 8 (1320) do not
    assert "(10.0x) | easy | 50.0 [50.0, 50.0] | 20.0 [20.0, 20.0] | 50.0 (N = 8) | 60.0 (N = 4) | 8 (0.5x) | 4 (0.7x) | never: the vote is cheaper |" in row
    dear = dict(curves=dict(small=small, large=curve(10, [1], [0.5], per_token=2.0)), lines={"small": ["large"]})
    assert sizes_markdown(dear).splitlines()[2].endswith(f"| {9e3 / (520 - 100):,.0f} |")  # training saved, by what each question costs more
    best = dict(curves=dict(small=small, large=curve(10, [1], [0.9])), lines={"small": ["large"]})
    assert sizes_markdown(best).splitlines()[2].endswith("| never | never | at once: no vote reaches it |")


@pytest.mark.parametrize("form, bend", [("bon", lambda d: d), ("rl", np.log)])
def test_gaos_laws_are_found_in_what_they_made(form, bend):
    d = np.array([0.0, 0.3, 0.8, 1.5, 2.1])
    gain = np.where(d > 0, d * (0.6 - 0.2 * bend(np.maximum(d, 1e-9))), 0.0)
    assert gao_fit(d, gain, form) == dict(a=0.6, b=0.2, r2=1.0)


def test_the_kl_of_the_best_of_n_is_that_of_the_maximum_of_uniform_numbers():
    """The largest of n uniform numbers has density n x^(n-1): its KL to the uniform is the integral of that times its logarithm."""
    x = (np.arange(400_000) + 0.5) / 400_000
    for n in (1, 2, 7, 64):
        density = n * x ** (n - 1)
        assert kl_of_best(n) == pytest.approx((density * np.log(np.maximum(density, 1e-300))).mean(), abs=1e-3)


def test_a_plan_spends_where_it_pays_and_keeps_within_its_budget():
    """Of ten questions the greedy answer is right for the eight that the judge likes; the two others need 16 samples: on equal spending nobody could afford them."""
    guess, hard = np.linspace(0.05, 0.95, 10), np.arange(10) < 2
    easy = np.where(hard, 0.0, 1.0)
    runs = {("greedy", 1): (easy, np.full(10, 10.0)), ("vote", 4): (easy, np.full(10, 40.0)), ("vote", 16): (np.where(hard, 0.8, 1.0), np.full(10, 160.0)),
            ("beam", 4): (np.where(hard, 0.9, 1.0), np.full(10, 400.0)), ("budget", 80): (np.ones(10), np.full(10, 1.0))}  # budget is no part of any plan
    plan = lambda allowed: [row[1:] for row in make_plan(guess, runs, allowed)]
    assert plan(40.0) == [("vote", 16)] + [("greedy", 1)] * 4  # 10 for all, and 150 more for one in five
    assert plan(39.0) == [("greedy", 1)] * 5 and plan(90.0) == [("beam", 4)] + [("greedy", 1)] * 4 and make_plan(guess, runs, 9.0) is None
    edges = [row[0] for row in make_plan(guess, runs, 40.0)]
    assert edges == sorted(edges) and edges[-1] > 1 and (guess < edges[0]).sum() == 2


def test_auto_is_held_against_the_fixed_method_that_validation_chose():
    of = lambda acc, tokens: (np.full(4, acc), np.full(4, tokens), np.ones(4))
    runs = dict(val={("vote", 8): of(0.6, 80.0), ("vote", 2): of(0.3, 20.0), ("greedy", 1): of(0.5, 10.0), ("beam", 4): of(0.9, 81.0)},
                test={("auto", 8): of(0.7, 75.0), ("vote", 8): of(0.65, 82.0), ("greedy", 1): of(0.8, 10.0)})
    found = compute.beside(runs, 8)  # beam is too dear, greedy better on test problems only
    assert found == dict(budget=8, auto=0.7, tokens=75.0, fixed=["vote", 8], fixed_acc=0.65, fixed_tokens=82.0, more=0.05, ci=[0.05, 0.05])


def test_methods_are_solved_in_parts_and_put_together_in_order(monkeypatch):
    """Answers and bills of a greedy method are the same in parts of two questions and at once; what samples is as long as its questions."""
    monkeypatch.setattr(compute, "processes", lambda *_: 1)  # test_workers has the others
    model, prm, problems = make_stopping(bias=2.0, max_len=256), make_reward_model("prm", max_len=256), held_out_problems(["chain", "percent"], [1], 3)
    bench = SimpleNamespace(config=SimpleNamespace(seed=0), bf16=False, machine=SimpleNamespace(device=torch.device("cpu")))
    asked, found = {("beam", 4): SearchConfig(4, width=2, max_new_tokens=20), ("greedy", 1): SearchConfig(1, max_new_tokens=20)}, {}
    for together in (2, 6):
        monkeypatch.setattr(compute, "TOGETHER", together)
        found[together] = compute.solved(bench, model, prm, problems, asked, "min")
        assert list(found[together]) == list(asked) and all(len(x) == 6 for x in found[together]["beam", 4])
    np.testing.assert_allclose(found[2]["greedy", 1], found[6]["greedy", 1])
    assert len(set(found[2]["greedy", 1][1])) > 1 and (found[2]["beam", 4][1] > found[2]["greedy", 1][1]).all()


def reward_model_report(kind, auc=0.8):
    where = ("step 1", "step 2", "last") if kind == "prm" else ("1/4 read", "last")
    positions = {w: dict(auc=auc + i / 100, brier=0.1, n=10, right=0.4) for i, w in enumerate(where)}
    return dict(test=dict(positions=positions, reliability=[dict(chance=0.1, right=0.2, n=5), dict(chance=0.9, right=0.8, n=5)]), cost=dict(train=dict(sampled=1000, rolled=50)),
                responses=20, step_labels=60, label_quality=dict(right=40, right_but_called_wrong=4, wrong=20, wrong_but_called_right=2), balanced=12)


def test_every_study_has_a_table_and_a_figure(tmp_path):
    """Drawn from reports of the shape that the studies leave; the tables state their numbers."""
    rules = ("coverage", "vote", "likelihood", "orm", "weighted-orm", "prm-last", "prm-min", "prm-prod", "weighted-prm-last", "weighted-prm-min", "weighted-prm-prod")
    curves = lambda: {rule: [0.2, 0.3, 0.4, 0.45 + i / 100] for i, rule in enumerate(rules)}
    ns, ci = [1, 4, 16, 64], [[0.1, 0.5]] * 4
    fit = {rule: dict(a=0.1, b=0.2, r2=0.97) for rule in rules}
    cells = {f"{f}, {b}": dict(problems=30, tokens=20.0, ns=ns, rules={r: dict(acc=acc, ci=ci) for r, acc in curves().items()}) for f in compute.FAMILIES for b in compute.BINS}
    table = dict(chosen_on_validation="prm-min", cells=cells, fits=dict.fromkeys(cells, fit), mean=curves(), mean_fit=fit)
    temperature = dict(problems=30, ns=ns, rows={t: {r: curves()[r] for r in compute.RULES} for t in ("0.5", "1.0")}, greedy=dict(acc=0.6, ci=[0.5, 0.7], n=30))
    budget = dict(problems=30, plans={4: [[0.5, "beam", 4]]}, against=[dict(budget=4, auto=0.7, tokens=75.0, fixed=["vote", 8], fixed_acc=0.65, fixed_tokens=82.0, more=0.05, ci=[0.01, 0.09])], methods={name: [dict(n=n, acc=0.1 * n**0.2, ci=[0.05, 0.5], tokens=40.0 * n, gflops=0.1 * n) for n in (4, 16)]
                                                                       for name in ("vote", "beam", "auto")})
    sizes = dict(curves=dict(nano=curve(1, [1, 4], [0.2, 0.5], [0.2, 0.6]), mini=curve(10, [1], [0.5])), lines={"nano": ["mini"]})
    kinds = dict(ns=ns, problems=30, runs={f"{kind}-{s}": dict(report=reward_model_report(kind), curves=curves()) for kind in ("orm", "prm") for s in (0, 1)})
    labels = dict(ns=ns[:-1], problems=30, runs={f"{row}-{s}": dict(row=row, report=reward_model_report("prm"), curves=curves()) for row in ("exact", "mc1-soft", "mc4-soft", "mc4-hard")
                                                 for s in (0, 1)})
    rl = [dict(step=s, kl=0.1 * s, gold=0.3 + s / 100, orm=0.4, prm=0.5, length=30.0, ci=[0.2, 0.4]) for s in (0, 1, 2, 4)]
    best = dict(ns=ns, d=[0.0, 0.8, 1.35, 1.8], gold=[0.3, 0.4, 0.45, 0.44], proxy=[0.3, 0.6, 0.8, 0.9])
    law = dict(a=0.2, b=0.05, r2=0.9)
    trust = dict(best_of_n=dict(orm=best, prm=best), rl=dict(orm=rl, prm=rl), fits=dict(orm=dict(bon=law, rl=law), prm=dict(bon=law, rl=law)))
    reports = dict(temperature=temperature, table=table, budget=budget, sizes=sizes, kinds=kinds, labels=labels, trust=trust)
    said = {}
    for name, (_, markdown, draw) in {**compute.STUDIES, **reward_models.STUDIES}.items():
        said[name] = markdown(json.loads(json.dumps(reports[name])))
        assert draw(json.loads(json.dumps(reports[name])), tmp_path / f"{name}.png") == tmp_path / f"{name}.png"
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "| chain, easy | PRM (min) | 20.0 [10.0, 50.0] |" in said["table"] and "(+100%)" in said["table"] and "| auto | 16 |" in said["budget"]
    assert "| 4 | 70.0 | 75 | vote 8 | 65.0 | 82 | +5.0 [1.0, 9.0] |" in said["budget"] and "| 0.5 | 20.0 | 30.0 | 40.0 | 45.0 |" in said["temperature"]
    assert "| mc4-hard | 50 | 12 | 4 of 40 (10.0%) | 2 of 20 (10.0%) | 0.805 ± 0.000 |" in said["labels"] and "| orm | 0.810 ± 0.000 | 0.100 ± 0.000 | 20.0 ± 0.0 |" in said["kinds"]
    assert "| 4 | 0.63 | 34.0 [20.0, 40.0] | 0.400 | 30 |" in said["trust"] and step_auc(reward_model_report("prm")) == pytest.approx(0.805)
    assert plots.reward_model({"orm": reward_model_report("orm")}, tmp_path / "verifier.png").exists()
