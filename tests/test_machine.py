"""Where a script runs and how it ends: exit status, seeds, devices, sums over ranks, precision."""

import pytest
import torch

from nanoreason.flags import UserError
from nanoreason.machine import (
    autocast,
    choose_bf16,
    generator,
    Machine,
    run_script,
    seed_for,
    start_machine,
)


def test_a_user_error_is_one_line_and_status_2_and_a_bug_is_not_hidden(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py"])

    def fail(error):
        raise error

    for error, status in ((UserError("no\nsuch  thing"), 2), (KeyboardInterrupt(), 130)):
        with pytest.raises(SystemExit) as stop:
            run_script(lambda error=error: fail(error))
        assert stop.value.code == status
    assert capsys.readouterr().err == "train.py: no such thing\n"
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: fail(ZeroDivisionError()))


# Seeds

SEED_OF_WEIGHTS = 5087778715007104936


def test_neighbouring_seeds_and_purposes_share_nothing():
    seeds = {
        seed_for(seed, purpose, step, rank)
        for seed in range(12)
        for purpose in ("rollout", "questions")
        for step in range(12)
        for rank in range(8)
    }
    assert len(seeds) == 12 * 2 * 12 * 8
    assert all(0 <= s < 2**63 for s in seeds)
    differing = [bin(seed_for(s, "a") ^ seed_for(s + 1, "a")).count("1") for s in range(200)]
    assert 28 < sum(differing) / 200 < 35  # of 63 bits, half
    assert seed_for(1, "a", 23) != seed_for(1, "a", 2, 3) != seed_for(12, "a", 3)
    assert seed_for(1, "2") != seed_for(1, 2)
    assert seed_for(0, "weights") == SEED_OF_WEIGHTS  # the same in every process, for ever


def test_generators_of_neighbours_are_uncorrelated_and_repeatable():
    a, b, again = (torch.randn(4000, generator=generator(seed, "x")) for seed in (0, 1, 0))
    assert torch.equal(a, again)
    assert abs((a * b).mean()) < 0.06
    assert abs((a[1:] * b[:-1]).mean()) < 0.06


# Machine


def test_one_machine_sums_nothing_and_unknown_devices_are_user_errors(monkeypatch):
    machine = start_machine("cpu")
    cpu = torch.device("cpu")
    assert machine == Machine(cpu, 0, 1)
    assert machine.main
    assert machine.total(torch.tensor(3)) == 3.0
    if not torch.cuda.is_available():
        with pytest.raises(UserError):
            start_machine("cuda")
    assert choose_bf16("fp32", cpu) is False
    assert choose_bf16("bf16", cpu) is True
    a = torch.ones(2, 2)
    with autocast(cpu, True):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(cpu, False):
        assert (a @ a).dtype == torch.float32


def test_the_sum_over_one_rank_is_the_tensor_itself():
    machine = Machine(torch.device("cpu"))
    for tensor in (torch.tensor([1.5, -2.0, 0.0]), torch.tensor([3, 4]), torch.zeros(0)):
        kept = tensor.clone()
        assert torch.equal(machine.sum(tensor), kept)
        assert machine.sum(tensor).dtype == kept.dtype
        assert torch.equal(tensor, kept)


def test_precision_is_what_was_asked_or_what_the_run_began_with(monkeypatch):
    machine = Machine(torch.device("cpu"))
    for pays in (True, False):
        monkeypatch.setattr("nanoreason.machine.bf16_pays", lambda device: pays)
        assert choose_bf16("auto", machine) == pays
        # a resumed run does not change its mind
        assert choose_bf16("auto", machine, began=not pays) == (not pays)
        assert choose_bf16("bf16", machine, began=False)
        assert not choose_bf16("fp32", machine, began=True)
