"""Studies of test-time compute and reward models: plans, FLOPs, crossings, Gao's laws, tables."""

import json

import numpy as np
import pytest
from conftest import make_stopping
from test_reward_model import make_reward_model

from nanoreason import plots
from nanoreason.evaluate import held_out_problems, interval_of_mean
from nanoreason.studies import budget, compute, reward_models
from nanoreason.studies.budget import make_plan
from nanoreason.studies.reports import percent, table_lines
from nanoreason.studies.reward_models import step_auc
from nanoreason.studies.sizes import crossing, flops_of, sizes_markdown
from nanoreason.studies.trust import gao_fit, kl_of_best
from nanoreason.search import SearchConfig


def exact(accuracies):
    """Accuracies with intervals of no width, as reports hold them."""
    return dict(acc=accuracies, ci=[[acc, acc] for acc in accuracies])


def curve(params, ns, vote, orm=None, per_token=2.0):
    """A size as `compute.sizes` reports it, the same at every difficulty."""
    greedy = dict(acc=vote[0], ci=[vote[0]] * 2, n=10)
    figures = dict(problems=10, tokens=30.0, prompt=20.0, greedy=greedy)
    figures |= dict(vote=exact(vote), coverage=exact(vote))
    if orm:
        figures["orm"] = exact(orm)
    return dict(
        params=params, flops_per_token=per_token, ns=ns, training_flops=params * 1e3,
        bins=dict.fromkeys(compute.BINS, figures))


def test_a_markdown_table_and_a_share_are_as_in_their_docstrings():
    lines = table_lines(["n", "accuracy"], [[1, "50.0"]])
    assert lines == ["| n | accuracy |", "| --- | --- |", "| 1 | 50.0 |"]
    assert percent(0.5, [0.4, 0.6]) == "50.0 [40.0, 60.0]"


def test_a_question_costs_its_prompt_once_every_sample_and_what_the_reward_model_reads():
    small = curve(1, [1, 4], [0.2, 0.5], [0.2, 0.6])
    assert flops_of(small, "easy", 1, False) == 2 * (20 + 30)
    assert flops_of(small, "easy", 4, False) == 2 * (20 + 120)
    assert flops_of(small, "easy", 4, True) == 2 * (20 + 120 + 4 * 50)


def last_cells(small, large):
    """What the table of sizes says at the lowest difficulty."""
    report = dict(curves=dict(small=small, large=large), lines={"small": ["large"]})
    return sizes_markdown(report).splitlines()[2]


def test_crossings_and_the_table_of_sizes():
    small = curve(1, [1, 2, 4, 8], [0.2, 0.2, 0.4, 0.5], [0.2, 0.4, 0.6, 0.7])
    large = curve(10, [1], [0.5], per_token=20.0)
    assert crossing(small, 0.5, "hard", "vote") == (8, 2 * (20 + 240))
    assert crossing(small, 0.5, "hard", "orm") == (4, 2 * (20 + 120 + 200))
    assert crossing(small, 0.9, "hard", "orm") is None
    # the large one's answer costs 1000: a vote of all 8 (520) fits; of ORM choices 4 (680) fit,
    # and 8 (1320) do not
    assert (
        "(10.0x) | easy | 50.0 [50.0, 50.0] | 20.0 [20.0, 20.0] | 50.0 (N = 8) | 60.0 (N = 4) | "
        "8 (0.5x) | 4 (0.7x) | never: the vote is cheaper |" in last_cells(small, large))
    cheap = curve(10, [1], [0.5], per_token=2.0)
    questions = 9e3 / (520 - 100)  # training saved, by what each question costs more
    assert last_cells(small, cheap).endswith(f"| {questions:,.0f} |")
    better = curve(10, [1], [0.9])
    ending = "| never | never | at once: no vote reaches it |"
    assert last_cells(small, better).endswith(ending)


@pytest.mark.parametrize("form, bend", [("bon", lambda d: d), ("rl", np.log)])
def test_gaos_laws_are_found_in_what_they_made(form, bend):
    d = np.array([0.0, 0.3, 0.8, 1.5, 2.1])
    gain = np.where(d > 0, d * (0.6 - 0.2 * bend(np.maximum(d, 1e-9))), 0.0)
    assert gao_fit(d, gain, form) == dict(a=0.6, b=0.2, r2=1.0)


def test_the_kl_of_the_best_of_n_is_that_of_the_maximum_of_uniform_numbers():
    """The largest of n uniform numbers has density n x^(n-1).

    Its KL to the uniform is the integral of that times its logarithm.
    """
    x = (np.arange(400_000) + 0.5) / 400_000
    for n in (1, 2, 7, 64):
        density = n * x ** (n - 1)
        kl = (density * np.log(np.maximum(density, 1e-300))).mean()
        assert kl_of_best(n) == pytest.approx(kl, abs=1e-3)


def easy_and_hard():
    """(scores, runs) of ten questions.

    The greedy response is right for the eight that the reward model likes. The two others need 16
    samples, which the budget does not allow for all questions.
    """
    scores = np.linspace(0.05, 0.95, 10)
    hard = np.arange(10) < 2
    easy = np.where(hard, 0.0, 1.0)
    runs = {
        ("greedy", 1): (easy, np.full(10, 10.0)),
        ("vote", 4): (easy, np.full(10, 40.0)),
        ("vote", 16): (np.where(hard, 0.8, 1.0), np.full(10, 160.0)),
        ("beam", 4): (np.where(hard, 0.9, 1.0), np.full(10, 400.0)),
        ("budget", 80): (np.ones(10), np.full(10, 1.0)),  # part of no plan
    }
    return scores, runs


def test_a_plan_spends_where_it_pays_and_keeps_within_its_budget():
    scores, runs = easy_and_hard()

    def options(allowed):
        return [row[1:] for row in make_plan(scores, runs, allowed)]

    # 10 for all, and 150 more for one in five
    assert options(40.0) == [("vote", 16)] + [("greedy", 1)] * 4
    assert options(39.0) == [("greedy", 1)] * 5
    assert options(90.0) == [("beam", 4)] + [("greedy", 1)] * 4
    assert make_plan(scores, runs, 9.0) is None
    edges = [row[0] for row in make_plan(scores, runs, 40.0)]
    assert edges == sorted(edges) and edges[-1] > 1 and (scores < edges[0]).sum() == 2


def accuracy_and_tokens(plan, scores, runs):
    """Of a plan, question by question: the first row whose edge lies above the score counts."""
    right = 0.0
    tokens = 0.0
    costs = budget.plan_costs(runs)
    for p, score in enumerate(scores):
        _, method, n = next(row for row in plan if score < row[0])
        right += runs[method, n][0][p]
        tokens += costs[method, n][p]
    return right / len(scores), tokens / len(scores)


def test_a_bisected_plan_is_the_most_accurate_of_all_prices_within_the_budget():
    """Against a search that tries every price."""
    noise = np.random.default_rng(0)
    scores = noise.random(40)
    hard = noise.random(40)
    base = noise.uniform(10, 60, 40)
    runs = {("greedy", 1): (1 - hard, base), ("beam", 4): (1 - hard**6, 7 * base)}
    runs |= {("vote", n): (1 - hard**n, n * base) for n in (2, 4, 8, 16)}
    costs = budget.plan_costs(runs)
    plans = []
    for price in budget.PRICES:
        edges = [*np.quantile(scores, budget.QUANTILES), 2.0]
        bin_of = np.searchsorted(edges, scores, side="right")
        options = budget.best_options(bin_of, runs, costs, price)
        plan = [(edges[b], *option) for b, option in options.items()]
        plans.append(accuracy_and_tokens(plan, scores, runs))
    for allowed in (40.0, 60.0, 100.0, 200.0, 1000.0):
        found = accuracy_and_tokens(make_plan(scores, runs, allowed), scores, runs)
        best = max(accuracy for accuracy, tokens in plans if tokens <= allowed)
        assert found[0] == pytest.approx(best) and found[1] <= allowed


def run_of_four(accuracy, tokens):
    """(right, tokens, flops) of four questions."""
    return np.full(4, accuracy), np.full(4, tokens), np.ones(4)


def test_auto_is_compared_with_the_fixed_method_that_validation_chose():
    val = {
        ("vote", 8): run_of_four(0.6, 80.0),
        ("vote", 2): run_of_four(0.3, 20.0),
        ("greedy", 1): run_of_four(0.5, 10.0),  # better on test problems only
        ("beam", 4): run_of_four(0.9, 81.0),  # too dear
    }
    test = {
        ("auto", 8): run_of_four(0.7, 75.0),
        ("vote", 8): run_of_four(0.65, 82.0),
        ("greedy", 1): run_of_four(0.8, 10.0),
    }
    assert budget.auto_against_fixed(dict(val=val, test=test), 8) == dict(
        budget=8, auto=0.7, tokens=75.0, fixed=["vote", 8], fixed_acc=0.65, fixed_tokens=82.0,
        more=0.05, ci=interval_of_mean([0.05] * 4, low=-1.0, high=1.0))


def test_methods_are_run_in_parts_and_put_together_in_order(monkeypatch):
    """Answers and tokens of a greedy method are the same in parts of two questions and at once.

    What samples is as long as its questions.
    """
    monkeypatch.setattr(budget, "processes", lambda *_: 1)  # test_workers has the others
    model = make_stopping(bias=2.0, max_len=256)
    prm = make_reward_model("prm", max_len=256)
    problems = held_out_problems(["chain", "percent"], [1], 3)
    subject = budget.Subject(model, prm, "min", bf16=False, seed=0)
    asked = {
        ("beam", 4): SearchConfig(4, width=2, max_new_tokens=20),
        ("greedy", 1): SearchConfig(1, max_new_tokens=20),
    }
    found = {}
    for together in (2, 6):
        monkeypatch.setattr(budget, "TOGETHER", together)
        found[together] = budget.run_methods(subject, problems, asked)
        assert list(found[together]) == list(asked)
        assert all(len(x) == 6 for x in found[together]["beam", 4])
    np.testing.assert_allclose(found[2]["greedy", 1], found[6]["greedy", 1])
    greedy_tokens = found[2]["greedy", 1][1]
    assert len(set(greedy_tokens)) > 1
    assert (found[2]["beam", 4][1] > greedy_tokens).all()


RULES = (
    "coverage", "vote", "likelihood", "orm", "weighted-orm", "prm-last", "prm-min", "prm-prod",
    "weighted-prm-last", "weighted-prm-min", "weighted-prm-prod")
NS = [1, 4, 16, 64]


def curves():
    """An accuracy per rule and n; rules end a hundredth apart."""
    return {rule: [0.2, 0.3, 0.4, 0.45 + i / 100] for i, rule in enumerate(RULES)}


def reward_model_report(kind, auc=0.8):
    """report.json of train_prm.py, as far as studies read it."""
    where = ("step 1", "step 2", "last") if kind == "prm" else ("1/4 read", "last")
    positions = {}
    for i, position in enumerate(where):
        positions[position] = dict(auc=auc + i / 100, brier=0.1, n=10, right=0.4)
    bins = [dict(chance=0.1, right=0.2, n=5), dict(chance=0.9, right=0.8, n=5)]
    quality = dict(right=40, right_but_called_wrong=4, wrong=20, wrong_but_called_right=2)
    return dict(
        test=dict(positions=positions, reliability=bins),
        cost=dict(train=dict(sampled=1000, rolled=50)),
        responses=20, step_labels=60, label_quality=quality, balanced=12)


def table_report():
    fit = {rule: dict(a=0.1, b=0.2, r2=0.97) for rule in RULES}
    rules = {rule: dict(acc=acc, ci=[[0.1, 0.5]] * 4) for rule, acc in curves().items()}
    names = [f"{family}, {title}" for family in compute.FAMILIES for title in compute.BINS]
    cells = {name: dict(problems=30, tokens=20.0, ns=NS, rules=rules) for name in names}
    return dict(
        chosen_on_validation="prm-min", cells=cells, fits=dict.fromkeys(cells, fit),
        mean=curves(), mean_fit=fit)


def temperature_report():
    row = {rule: curves()[rule] for rule in compute.RULES}
    greedy = dict(acc=0.6, ci=[0.5, 0.7], n=30)
    return dict(problems=30, ns=NS, rows={"0.5": row, "1.0": row}, greedy=greedy)


def budget_report():
    against = dict(
        budget=4, auto=0.7, tokens=75.0, fixed=["vote", 8], fixed_acc=0.65, fixed_tokens=82.0,
        more=0.05, ci=[0.01, 0.09])
    rows = []
    for n in (4, 16):
        rows.append(dict(n=n, acc=0.1 * n**0.2, ci=[0.05, 0.5], tokens=40.0 * n, gflops=0.1 * n))
    methods = {name: rows for name in ("vote", "beam", "auto")}
    return dict(
        problems=30, plans={4: [[0.5, "beam", 4]]}, against=[against], methods=methods)


def sizes_report():
    nano = curve(1, [1, 4], [0.2, 0.5], [0.2, 0.6])
    return dict(curves=dict(nano=nano, mini=curve(10, [1], [0.5])), lines={"nano": ["mini"]})


def kinds_report():
    runs = {}
    for kind in ("orm", "prm"):
        for seed in (0, 1):
            runs[f"{kind}-{seed}"] = dict(report=reward_model_report(kind), curves=curves())
    return dict(ns=NS, problems=30, runs=runs)


def labels_report():
    runs = {}
    for row in ("exact", "mc1-soft", "mc4-soft", "mc4-hard"):
        for seed in (0, 1):
            report = reward_model_report("prm")
            runs[f"{row}-{seed}"] = dict(row=row, report=report, curves=curves())
    return dict(ns=NS[:-1], problems=30, runs=runs)


def trust_report():
    rl = []
    for step in (0, 1, 2, 4):
        rl.append(dict(
            step=step, kl=0.1 * step, gold=0.3 + step / 100, orm=0.4, prm=0.5, length=30.0,
            ci=[0.2, 0.4]))
    best = dict(
        ns=NS, d=[0.0, 0.8, 1.35, 1.8], gold=[0.3, 0.4, 0.45, 0.44], proxy=[0.3, 0.6, 0.8, 0.9])
    law = dict(a=0.2, b=0.05, r2=0.9)
    fits = dict(bon=law, rl=law)
    return dict(
        best_of_n=dict(orm=best, prm=best), rl=dict(orm=rl, prm=rl), fits=dict(orm=fits, prm=fits))


def test_every_study_has_a_table_and_a_figure(tmp_path):
    """Drawn from reports of the shape that the studies leave; the tables state their numbers."""
    reports = dict(
        temperature=temperature_report(), table=table_report(), budget=budget_report(),
        sizes=sizes_report(), kinds=kinds_report(), labels=labels_report(), trust=trust_report())
    said = {}
    for name, (_, markdown, draw) in {**compute.STUDIES, **reward_models.STUDIES}.items():
        path = tmp_path / f"{name}.png"
        said[name] = markdown(json.loads(json.dumps(reports[name])))
        assert draw(json.loads(json.dumps(reports[name])), path) == path
        assert path.read_bytes()[:4] == b"\x89PNG"
    assert "| chain, easy | PRM (min) | 20.0 [10.0, 50.0] |" in said["table"]
    assert "(+100%)" in said["table"] and "| auto | 16 |" in said["budget"]
    compared = "| 4 | 70.0 | 75 | vote 8 | 65.0 | 82 | +5.0 [1.0, 9.0] |"
    assert compared in said["budget"]
    assert "| 0.5 | 20.0 | 30.0 | 40.0 | 45.0 |" in said["temperature"]
    labelled = "| mc4-hard | 50 | 12 | 4 of 40 (10.0%) | 2 of 20 (10.0%) | 0.805 ± 0.000 |"
    assert labelled in said["labels"]
    assert "| orm | 0.810 ± 0.000 | 0.100 ± 0.000 | 20.0 ± 0.0 |" in said["kinds"]
    assert "| 4 | 0.63 | 34.0 [20.0, 40.0] | 0.400 | 30 |" in said["trust"]
    assert step_auc(dict(report=reward_model_report("prm"))) == pytest.approx(0.805)
    path = tmp_path / "verifier.png"
    assert plots.reward_model({"orm": reward_model_report("orm")}, path).exists()
