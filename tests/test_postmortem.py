"""The post-mortem: each cause is found where it is, and not where it only looks so."""

import pytest

from hpcdist.ending import Ending, Step
from hpcdist.evidence import Evidence, Log
from hpcdist.observed import Observation
from hpcdist.postmortem import judge
from hpcdist.record import Efficiency, RankUsage
from hpcdist.spec import JobSpec, Layout
from tests.conftest import REPOSITORY

GIB = 1024**3


def text(name):
    return tuple((REPOSITORY / "tests" / "data" / "logs" / f"{name}.txt").read_text().splitlines())


def rank(number=0, exit_code=None, *, signal=None, ended=100.0, **other):
    over = exit_code is not None or signal is not None
    return RankUsage(
        rank=number,
        local_rank=0,
        node_rank=number,
        world_size=2,
        host=f"n{number + 1}",
        started_at_s=0.0,
        ended_at_s=ended if over else None,
        exit_code=exit_code,
        signal=signal,
        **other,
    )


def usage(used_gib=1, asked_gib=4, **other):
    """One node's."""
    return Observation(
        efficiency=Efficiency(
            job_id="7",
            nodes=1,
            memory_used_bytes=int(used_gib * GIB),
            memory_requested_bytes=asked_gib * GIB,
            wall_time_s=1800.0,
            time_limit_s=1800.0,
            **other,
        )
    )


def verdict(state="FAILED", ranks=(), logs=None, batch=(), used=None, layout=None, run="r", job=True, **ending):
    """Logs are given by rank, as the name of a text or as lines."""
    written = {task: text(log) if isinstance(log, str) else tuple(log) for task, log in (logs or {}).items()}
    written = {None: text(batch) if isinstance(batch, str) else tuple(batch)} | written
    layout = layout or Layout(nodes=2)
    return judge(
        Evidence(
            ending=Ending(state=state, **ending),
            job_id="7",
            run=run,
            job=JobSpec(name="mnist", layout=layout) if job else None,
            ranks=tuple(ranks),
            logs=tuple(Log(path=f"{task}.out", task=task, lines=lines) for task, lines in written.items()),
            usage=used,
        )
    )


def one_rank(log, exit_code=1, **other):
    return verdict(ranks=[rank(0, exit_code)], logs={0: log}, layout=Layout(), **other)


def test_a_rank_that_ended_by_itself_is_blamed_and_those_ended_after_it_are_not():
    cause = verdict(ranks=[rank(0, signal=15, ended=101), rank(1, 7, ended=100)], logs={1: ["no more"]})
    assert (cause.kind, cause.rank, cause.host, cause.exit_code) == ("unknown", 1, "n2", 7)
    assert cause.sentence == "rank 1 on n2 ended with exit code 7"
    assert cause.tail == ("no more",)
    assert cause.evidence == ("FAILED", "rank 0: signal 15 (SIGTERM)", "rank 1: exit code 7")


def test_of_two_that_failed_the_first_is_blamed():
    assert verdict(ranks=[rank(0, 1, ended=100.2), rank(1, 1, ended=100.1)]).rank == 1


def test_a_victim_is_not_blamed_even_when_it_ended_first():
    """The rank that lost its peer may be quicker to end than the one that broke."""
    ranks = [rank(0, 1, ended=100.0), rank(1, signal=11, ended=100.4)]
    cause = verdict(ranks=ranks, logs={0: "gloo-lost-peer"})
    assert (cause.kind, cause.rank, cause.signal) == ("killed", 1, 11)
    assert verdict(ranks=[rank(0, 69, ended=99), rank(1, 2)]).rank == 1


def test_a_rank_that_hangs_after_its_exception_is_blamed_not_the_one_that_waited_for_it():
    logs = {0: "gloo-time-out-0", 1: "user-exception"}
    cause = verdict(ranks=[rank(0, 1), rank(1, signal=15, ended=101)], logs=logs)
    assert (cause.kind, cause.rank) == ("user-exception", 1)


def test_an_exception_that_was_survived_is_not_blamed():
    """It was printed and the rank worked on until it was ended."""
    log = [*text("user-exception"), *(f"step {number}" for number in range(20))]
    cause = verdict(ranks=[rank(0, 7, ended=100.5), rank(1, signal=15, ended=101)], logs={1: log})
    assert cause.rank == 0


@pytest.mark.parametrize("log", ["oom-kill-21.08", "oom-kill-23.11"])
def test_out_of_memory_in_slurm_s_words(log):
    cause = verdict(ranks=[rank(0, signal=9), rank(1, signal=15)], batch=log, used=usage(3.9))
    assert (cause.kind, cause.rank) == ("out-of-memory", 0)
    assert cause.hint == "hpcdist rerun r --set mem=5G"  # 1.2 x 4 GiB
    assert "3.90 GB per node used of 4.00 GB, the highest seen" in cause.evidence


@pytest.mark.parametrize(
    "ending", [{"state": "OUT_OF_MEMORY"}, {"state": "FAILED", "steps": (Step(name="0", state="OUT_OF_MEMORY"),)}]
)
def test_out_of_memory_in_accounting(ending):
    assert verdict(**ending).kind == "out-of-memory"
    assert "--mem" in verdict(**ending).hint


def test_memory_per_cpu_is_raised_per_cpu():
    """4 GiB asked for on 4 CPUs: 4.8 GiB are 1229 MiB each, 1280 in steps of 128."""
    cause = verdict("OUT_OF_MEMORY", used=Observation(efficiency=usage(cores=4, memory_per="core").efficiency))
    assert cause.hint == "hpcdist rerun r --set mem_per_cpu=1280M"


def test_a_kill_is_out_of_memory_only_where_the_memory_was_full():
    ranks = [rank(0, signal=15, ended=101), rank(1, signal=9)]
    assert verdict(ranks=ranks, used=usage(3.7)).kind == "out-of-memory"
    cause = verdict(ranks=ranks, used=usage(1))
    assert (cause.kind, cause.rank, cause.signal) == ("killed", 1, 9)
    assert cause.sentence == "rank 1 on n2 ended with signal 9 (SIGKILL)"
    assert verdict(ranks=ranks).kind == "killed"


def test_the_words_out_of_memory_in_a_program_s_output_prove_nothing():
    assert one_rank(["Out Of Memory is the name of this song", "oom-kill"], 7).kind == "unknown"


def test_an_allocation_that_failed_is_out_of_memory():
    assert one_rank("cpu-allocator").kind == "out-of-memory"
    log = ["Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "MemoryError"]
    assert one_rank(log).kind == "out-of-memory"


def test_the_time_limit():
    ranks = [rank(0, signal=15), rank(1, signal=15)]
    cause = verdict("TIMEOUT", ranks, {0: ["step 1", "step 2"]}, used=usage())
    assert (cause.kind, cause.sentence) == ("time-limit", "it ran into its time limit of 00:30:00")
    assert cause.hint == "hpcdist rerun r --set time=45"  # half as much again
    assert verdict("DEADLINE").kind == "time-limit"
    # As scontrol and the log have it where accounting is off.
    assert verdict("FAILED", batch="slurm-time-limit").kind == "time-limit"


def test_a_rank_that_failed_long_before_the_limit_is_the_cause_of_it():
    """Without --kill-on-bad-exit the others wait for it until the end."""
    ranks = [rank(0, signal=15, ended=1800), rank(1, 1, ended=200)]
    cause = verdict("TIMEOUT", ranks, {1: "user-exception"}, ended_at_s=1800.0)
    assert (cause.kind, cause.rank) == ("user-exception", 1)
    late = [rank(0, signal=15, ended=1800), rank(1, 1, ended=1799)]
    assert verdict("TIMEOUT", late, {1: "user-exception"}, ended_at_s=1800.0).kind == "time-limit"


def test_preempted():
    assert verdict("PREEMPTED").kind == "preempted"
    assert verdict("FAILED", batch="slurm-preemption").kind == "preempted"
    assert verdict("COMPLETED", batch="slurm-preemption").kind == "completed"


def test_a_node_failure_names_the_node():
    ranks = [rank(0, 69), rank(1)]
    cause = verdict("NODE_FAIL", ranks, nodes="n[1-2]")
    assert (cause.kind, cause.rank, cause.host) == ("node-failure", 1, "n2")
    assert (cause.sentence, cause.hint) == ("node n2 failed", "hpcdist rerun r --set exclude=n2")
    assert verdict("NODE_FAIL", nodes="n7").sentence == "node n7 failed"
    assert verdict("NODE_FAIL", nodes="n[1-2]").sentence == "one of its nodes failed (n[1-2])"
    assert verdict("FAILED", batch="slurm-node-failure").sentence == "node n2 failed"


def test_a_lost_peer_blames_the_rank_that_vanished():
    cause = verdict(ranks=[rank(0, 1), rank(1)], logs={0: "nccl-lost-peer"})
    assert (cause.kind, cause.rank, cause.host) == ("lost-peer", 1, "n2")
    assert cause.sentence.startswith("rank 1 on n2 vanished without a word")
    # Slurm was quicker to end the other than its connection to break.
    cause = verdict(ranks=[rank(0, signal=15), rank(1)], batch=["srun: error: n2: task 1: Killed"])
    assert (cause.kind, cause.rank) == ("lost-peer", 1)
    assert cause.evidence[0] == "srun: error: n2: task 1: Killed"
    assert verdict(ranks=[rank(0, signal=15), rank(1, signal=15)]).kind == "killed"
    # Two ranks that lost each other.
    cause = verdict(ranks=[rank(0, 69, ended=100), rank(1, 69, ended=101)])
    assert (cause.kind, cause.rank) == ("lost-peer", 0)
    assert "no rank says that it failed" in cause.sentence


@pytest.mark.parametrize("log", ["gloo-time-out-0", "nccl-time-out-0"])
def test_a_time_out_names_the_rank_that_was_waited_for(log):
    status = {"exit_code": 1} if log.startswith("gloo") else {"signal": 6}
    ranks = [rank(0, **status), rank(1, signal=15, ended=101)]
    cause = verdict(ranks=ranks, logs={0: log, 1: ["reading the data"]})
    assert (cause.kind, cause.rank, cause.host, cause.tail) == ("time-out", 1, "n2", ("reading the data",))
    assert cause.sentence == "rank 1 on n2 did not join the others: rank 0 on n1 waited for it until its time-out"
    assert cause.hint == "see what it was doing: hpcdist logs --rank 1 r"


def test_a_rank_that_lost_its_peer_to_a_time_out_was_the_silent_one():
    """It came too late, and then found the other gone."""
    logs = {0: "gloo-time-out-0", 1: "gloo-time-out-1"}
    assert verdict(ranks=[rank(0, 1), rank(1, 1, ended=107)], logs=logs).rank == 1


def test_where_all_ranks_timed_out_none_is_blamed():
    cause = verdict(ranks=[rank(0, 1), rank(1, 1)], logs={0: "gloo-time-out-0", 1: "gloo-time-out-0"})
    assert (cause.kind, cause.sentence.partition(" until")[0]) == ("time-out", "all ranks waited for each other")


def test_a_monitored_barrier_names_the_silent_rank_itself():
    logs = {0: "monitored-barrier-0", 1: "monitored-barrier-1"}
    cause = verdict(ranks=[rank(0, 1), rank(1, 1, ended=106)], logs=logs)
    assert (cause.kind, cause.rank) == ("time-out", 1)


@pytest.mark.parametrize(("number", "missing"), [(0, 1), (1, 0)])
def test_a_rank_that_never_came_is_named(number, missing):
    cause = verdict(ranks=[rank(number, 1)], logs={number: f"rendezvous-{number}"})
    assert cause.kind == "time-out"
    assert cause.sentence.startswith(f"rank {missing}, which never started, did not join the others")


def test_cuda_out_of_memory():
    assert one_rank("cuda-out-of-memory").kind == "cuda-out-of-memory"
    # Caught, tried again with a smaller batch, then something else.
    log = [*text("cuda-out-of-memory"), "trying batch 16", *text("user-exception")]
    assert one_rank(log).kind == "user-exception"


def test_a_missing_module():
    cause = one_rank("missing-module")
    assert (cause.kind, cause.sentence) == ("missing-module", "rank 0 on n1 found no module 'transformerz'")
    assert one_rank(["/usr/bin/python: No module named train"]).kind == "missing-module"
    # One that is optional and was reported.
    log = ["ModuleNotFoundError: No module named 'wandb', going on without", *text("user-exception")]
    assert one_rank(log).kind == "user-exception"


def test_missing_data():
    cause = one_rank("missing-data")
    assert cause.kind == "missing-data"
    assert cause.sentence == "rank 0 on n1 did not find its data: 'data/imagenet/train.pt'"
    assert one_rank("torchvision-no-dataset").kind == "missing-data"
    log = ["error: dataset mnist is not in data: x is missing", "hint: hpcdist data fetch mnist --data-dir data"]
    cause = one_rank(log, 3)
    assert (cause.kind, cause.hint) == ("missing-data", "hpcdist data fetch mnist --data-dir data")
    log = ["FileNotFoundError: [Errno 2] No such file or directory: 'last.ckpt'", *text("user-exception")]
    assert one_rank(log).kind == "user-exception"


@pytest.mark.parametrize("log", ["full-disk-torch-save", "full-disk-write", "full-disk-shell"])
def test_a_full_disk(log):
    assert one_rank(log).kind == "full-disk"


def test_a_full_disk_that_was_survived_is_not_the_cause():
    log = ["warning: checkpoint not saved: No space left on device", *text("user-exception")]
    assert one_rank(log).kind == "user-exception"


def test_a_quota():
    cause = one_rank(["cp: error writing 'x': Disk quota exceeded"])
    assert (cause.kind, cause.sentence) == ("full-disk", "rank 0 on n1 could not write: its quota is used up")


@pytest.mark.parametrize(
    ("log", "code", "words"),
    [
        ("command-not-found", 127, "pyhton: command not found"),
        ("script-command-not-found", 127, "slurm_script: line 3: modul: command not found"),
        ("not-executable", 126, "./notexec.sh: Permission denied"),
        ("syntax-error", 2, "syntax error: unexpected end of file"),
    ],
)
def test_a_script_that_fails_before_any_rank_starts(log, code, words):
    cause = verdict(batch=log, exit_code=code)
    assert (cause.kind, cause.rank, cause.exit_code) == ("bad-script", None, code)
    assert words in cause.sentence
    # The same in a rank.
    assert one_rank(log, code).kind == "bad-script"


def test_a_shell_s_complaint_that_it_went_on_after_is_not_the_cause():
    assert one_rank([*text("command-not-found"), *["working"] * 6], 1).kind == "unknown"


def test_a_setup_line_that_says_nothing_is_a_bad_script():
    cause = verdict(exit_code=1)
    assert (cause.kind, cause.sentence) == ("bad-script", "the script ended with exit code 1 before any rank started")
    assert verdict(exit_code=1, run=None, job=False).kind == "unknown"  # somebody else's job starts no ranks of ours


def test_a_job_that_slurm_refused():
    cause = verdict("REFUSED", reason="sbatch: invalid partition specified: gpu2")
    assert (cause.kind, cause.sentence) == (
        "bad-script",
        "Slurm refused the job: sbatch: invalid partition specified: gpu2",
    )


def test_a_user_exception_has_its_place():
    cause = one_rank("user-exception")
    assert cause.kind == "user-exception"
    assert cause.sentence.startswith("rank 0 on n1 raised RuntimeError: The size of tensor a (3) must match")
    assert cause.sentence.endswith(" at /home/ada/study/user.py:4 in loss")
    assert cause.hint == "mend /home/ada/study/user.py:4 in loss"


def test_an_error_of_ours_comes_with_its_hint():
    cause = one_rank(["error: rank 0: 4 GPUs visible, 2 expected", "hint: check gpus"], 2)
    assert (cause.kind, cause.hint) == ("user-exception", "check gpus")
    assert cause.sentence == "rank 0 on n1 ended with an error: rank 0: 4 GPUs visible, 2 expected"


def test_under_torchrun_the_worker_s_exception_counts_and_each_rank_reads_its_own_lines():
    ranks = [rank(0, signal=15), rank(1, 1)]
    ranks = [RankUsage(**{f: getattr(r, f) for f in r.__struct_fields__} | {"node_rank": 0}) for r in ranks]
    log = ("[rank0]: ValueError: not mine", *text("torchrun-child"))
    spec = JobSpec(name="a", layout=Layout(gpus=2), launcher="torchrun", command=("python",))
    cause = judge(
        Evidence(ending=Ending(state="FAILED"), job=spec, ranks=tuple(ranks), logs=(Log(path="0", task=0, lines=log),))
    )
    assert (cause.kind, cause.rank) == ("user-exception", 1)
    assert "raised ValueError: bad batch at /home/ada/study/tr.py:2" in cause.sentence


def test_stopped_and_unfinished():
    assert verdict(ranks=[rank(0, 75), rank(1, 75)], exit_code=75).kind == "stopped"
    cause = verdict(ranks=[rank(0, 75, ended=99), rank(1, 1)], logs={1: "user-exception"})
    assert (cause.kind, cause.rank) == ("user-exception", 1)


def test_a_hang():
    cause = verdict(ranks=[rank(0, 70), rank(1, signal=15)], logs={0: ["step 7", "hang: no step for 60.0 s"]})
    assert (cause.kind, cause.rank, cause.sentence) == ("hang", 0, "rank 0 on n1 made no step for 60.0 s")
    assert one_rank(["step 70"], 7).kind == "unknown"


def test_cancelled_says_by_whom():
    assert verdict("CANCELLED", [rank(0, signal=15)], cancelled_by="ada").sentence == "it was cancelled by ada"
    unstarted = verdict("CANCELLED", cancelled_by="ada", submitted_at_s=1.0)
    assert unstarted.sentence == "it was cancelled by ada before it started"
    ranks = [rank(0, signal=15, ended=900), rank(1, 1, ended=100)]
    assert verdict("CANCELLED", ranks, {1: "user-exception"}, ended_at_s=900.0).kind == "user-exception"


def test_a_job_that_never_started():
    cause = verdict("PENDING", reason="DependencyNeverSatisfied")
    assert (cause.kind, cause.sentence) == ("never-started", "it waits: DependencyNeverSatisfied")
    assert "never start" in cause.hint
    assert "--time" in verdict("PENDING", reason="PartitionTimeLimit").hint
    assert verdict("PENDING").sentence == "it waits"
    reason = {"reason": "DependencyNeverSatisfied", "submitted_at_s": 1.0}
    assert verdict("CANCELLED", **reason).kind == "never-started"
    assert verdict("CANCELLED", [rank(0, signal=15)], **reason).kind == "cancelled"


def test_a_job_that_is_fine_or_runs():
    assert verdict("COMPLETED", [rank(0, 0), rank(1, 0)], exit_code=0).kind == "completed"
    assert verdict("RUNNING", [rank(0), rank(1)]).sentence == "it runs"
    assert verdict("RUNNING", [rank(0), rank(1, 3)]).sentence == "it runs still, but rank 1 on n2 failed"
    assert verdict("REQUEUED").kind == "requeued"


def test_what_nobody_explains_is_unknown_with_all_that_is_known():
    steps = (Step(name="batch", state="FAILED", signal=53), Step(name="extern", state="COMPLETED", exit_code=0))
    cause = verdict(run=None, job=False, signal=53, reason="RaisedSignal:53(Real-time_signal_19)", steps=steps)
    assert cause.kind == "unknown"
    assert cause.sentence == "signal 53, RaisedSignal:53(Real-time_signal_19)"
    assert cause.evidence[1] == "step batch: FAILED, signal 53"
    assert len(cause.evidence) == 2
    assert verdict("UNKNOWN", run=None).sentence == "nobody says why"


def test_a_long_log_is_cut_and_that_of_a_job_no_rank_brought_down_more_so():
    lines = [f"line {number}" for number in range(50)]
    assert one_rank(lines, 7).tail == tuple(lines[-20:])
    cause = verdict("TIMEOUT", [rank(0, signal=15)], {0: lines})
    assert (cause.tail, cause.rank) == (tuple(lines[-5:]), None)
