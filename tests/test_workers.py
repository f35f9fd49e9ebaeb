"""Work spread over processes: the same results in the same order as in one, and errors that reach
the caller."""

import os

import pytest
import torch

from nanoreason.flags import UserError
from nanoreason.studies.runs import ensure, ensure_all
from nanoreason.workers import environment, spread


def place(shared, job):
    """A result, and where the job ran: its process and that one's threads."""
    return shared * job, os.getpid(), torch.get_num_threads()


def fail(shared, job):
    raise ValueError(f"job {job} of {shared}")


def test_results_come_in_the_order_of_the_jobs_from_processes_of_one_thread():
    jobs = [(torch.tensor(float(i)),) for i in range(7)]
    here = list(spread(place, 3.0, jobs, 1))
    there = list(spread(place, 3.0, jobs, 2))
    expected = [3.0 * i for i in range(7)]
    assert [float(x) for x, _, _ in here] == [float(x) for x, _, _ in there] == expected
    assert {pid for _, pid, _ in here} == {os.getpid()}
    workers = {pid for _, pid, _ in there}
    assert os.getpid() not in workers and len(workers) <= 2
    assert {threads for _, _, threads in there} == {1}
    (only,) = spread(place, 3.0, jobs[:1], 2)
    assert only[1] == os.getpid()
    assert list(spread(place, 3.0, [], 2)) == []


def test_what_is_read_from_a_pipe_is_in_utf8_and_a_terminal_keeps_its_encoding(monkeypatch):
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    assert environment()["PYTHONIOENCODING"] == "utf-8"
    assert "PYTHONIOENCODING" not in environment(captured=False)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_fails_fails_here(processes):
    with pytest.raises(ValueError, match="job 0 of all"):
        list(spread(fail, "all", [(0,), (1,)], processes))


def test_what_is_there_is_not_made_again_and_what_fails_is_said(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    ensure(tmp_path / "report.json", "no such script.py")
    with pytest.raises(UserError, match="no such script.py failed"):
        ensure(tmp_path / "other.json", "no such script.py", out=tmp_path / "x")
    runs = []
    for i in range(2):
        flags = dict(out=tmp_path / "runs" / str(i))
        runs.append((tmp_path / f"{i}.json", "no such script.py", flags))
    with pytest.raises(UserError, match="end of .*runs/0.log"):
        ensure_all(runs)
    assert "no such script.py" in (tmp_path / "runs" / "0.log").read_text()
    ensure_all([(tmp_path / "report.json", "no such script.py", {})])
