"""Work spread over processes: the same results in the same order as in one, and errors that reach the caller."""

import os

import pytest
import torch

from nanoreason.flags import UserError
from nanoreason.studies.runs import ensure, ensure_all
from nanoreason.workers import spread


def place(shared, job):
    """What a job sees: where it runs is told, too."""
    return shared * job, os.getpid(), torch.get_num_threads()


def fail(shared, job):
    raise ValueError(f"job {job} of {shared}")


def test_results_come_in_the_order_of_the_jobs_from_processes_of_one_thread():
    jobs = [(torch.tensor(float(i)),) for i in range(7)]
    here, there = list(spread(place, 3.0, jobs, 1)), list(spread(place, 3.0, jobs, 2))
    assert [float(x) for x, _, _ in here] == [float(x) for x, _, _ in there] == [3.0 * i for i in range(7)]
    assert {pid for _, pid, _ in here} == {os.getpid()} and os.getpid() not in {pid for _, pid, _ in there} and len({pid for _, pid, _ in there}) <= 2
    assert {threads for _, _, threads in there} == {1}
    assert list(spread(place, 3.0, jobs[:1], 2))[0][1] == os.getpid() and list(spread(place, 3.0, [], 2)) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_fails_fails_here(processes):
    with pytest.raises(ValueError, match="job 0 of all"):
        list(spread(fail, "all", [(0,), (1,)], processes))


def test_what_is_there_is_not_made_again_and_what_fails_is_said(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    ensure(tmp_path / "report.json", "no such script.py")
    with pytest.raises(UserError, match="no such script.py failed"):
        ensure(tmp_path / "other.json", "no such script.py", out=tmp_path / "x")
    runs = [(tmp_path / f"{i}.json", "no such script.py", dict(out=tmp_path / "runs" / str(i))) for i in range(2)]
    with pytest.raises(UserError, match="end of .*runs/0.log"):
        ensure_all(runs)
    assert "no such script.py" in (tmp_path / "runs" / "0.log").read_text()
    ensure_all([(tmp_path / "report.json", "no such script.py", {})])
