"""Causes that lie with the program: each is found where it is, and not where it only looks so."""

import msgspec
import pytest

from hpcdist.config.job import Layout
from hpcdist.records.network import Fault
from hpcdist.records.ranks import TrainingMetrics
from tests.jobs.diagnosis.attempts import one_rank, rank, text, usage, verdict

ODD = Fault(sentence="rank 1 on n2 is odd", hint="have it mended", rank=1, host="n2")


def test_a_kill_is_out_of_memory_only_where_the_memory_was_full():
    ranks = [rank(0, signal=15, ended=101), rank(1, signal=9)]
    # Of 4 GB: a training that has nine tenths of its memory in use is an ordinary one.
    assert verdict(ranks=ranks, used=usage(3.9)).kind == "out-of-memory"
    cause = verdict(ranks=ranks, used=usage(3.7))
    assert (cause.kind, cause.rank, cause.signal) == ("killed", 1, 9)
    assert cause.sentence == "rank 1 on n2 ended with signal 9 (SIGKILL)"
    assert verdict(ranks=ranks).kind == "killed"


def test_the_words_out_of_memory_in_a_program_s_output_prove_nothing():
    assert one_rank(["Out Of Memory is the name of this song", "oom-kill"], 7).kind == "unknown"


def test_an_allocation_that_failed_is_out_of_memory():
    assert one_rank("cpu-allocator").kind == "out-of-memory"
    log = ["Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "MemoryError"]
    assert one_rank(log).kind == "out-of-memory"


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


def test_where_slurm_began_no_rank_its_word_is_the_cause():
    """What srun of Slurm 22.05 said seconds after its controller was restarted."""
    said = "srun: error: Unable to create step for job 24: Invalid generic resource (gres) specification"
    cause = verdict(batch=[said, "srun began no rank: it is asked again in 10 s"] * 5 + [said], exit_code=213)
    assert cause.kind == "never-started"
    assert cause.sentence == f"Slurm began no rank of it: {said.removeprefix('srun: error: ')}"
    assert cause.hint.startswith("hpcdist rerun ")


def test_a_user_exception_has_its_place():
    cause = one_rank("user-exception")
    assert cause.kind == "user-exception"
    assert cause.sentence.startswith("rank 0 on n1 raised RuntimeError: The size of tensor a (3) must match")
    assert cause.sentence.endswith(" at /home/ada/study/user.py:4 in loss")
    assert cause.hint == "mend /home/ada/study/user.py:4 in loss"


def test_a_lightning_script_whose_trainer_does_not_fit_the_job_gets_what_fits():
    layout = Layout(nodes=2, gpus=2)
    ranks = [rank(0, 1), rank(1, 1, ended=101)]
    cause = verdict(ranks=ranks, logs={0: "lightning-layout"}, layout=layout, command=("python", "train.py"))
    assert (cause.kind, cause.hint) == ("user-exception", "a Lightning script needs Trainer(devices=2, num_nodes=2)")
    # Another mistake in a Lightning script.
    frame = '  File "/x/site-packages/pytorch_lightning/trainer.py", line 5, in fit'
    log = ["Traceback (most recent call last):", frame, "ValueError: bad batch"]
    assert "Trainer(" not in one_rank(log, command=("python", "train.py")).hint


def test_an_error_of_ours_comes_with_its_hint():
    cause = one_rank(["error: rank 0: 4 GPUs visible, 2 expected", "hint: check gpus"], 2)
    assert (cause.kind, cause.hint) == ("user-exception", "check gpus")
    assert cause.sentence == "rank 0 on n1 ended with an error: rank 0: 4 GPUs visible, 2 expected"


def test_stopped_and_unfinished():
    found = verdict(ranks=[rank(0, 75), rank(1, 75)], exit_code=75)
    assert (found.kind, found.hint) == ("stopped", "hpcdist rerun --resume r")
    cause = verdict(ranks=[rank(0, 75, ended=99), rank(1, 1)], logs={1: "user-exception"})
    assert (cause.kind, cause.rank) == ("user-exception", 1)


def test_a_program_that_can_t_go_on_saved_nothing():
    assert verdict(ranks=[rank(0, 75)], exit_code=75, command=("make",)).kind == "unknown"
    assert verdict(exit_code=75, job=False, run=None).kind == "unknown"


def test_a_hang():
    cause = verdict(ranks=[rank(0, 70), rank(1, signal=15)], logs={0: ["step 7", "hang: no step for 60.0 s"]})
    assert (cause.kind, cause.rank, cause.sentence) == ("hang", 0, "rank 0 on n1 made no step for 60.0 s")


WAITED = "rank 0: no step for 60 s, and it waits for the others"
HUNG = "hang: no step for 60 s"


@pytest.mark.parametrize(
    ("logs", "blamed", "sentence"),
    [
        ({0: [WAITED, HUNG]}, 0, "one of ranks 1-2 made no step for 60 s: rank 0 on n1 waited for it"),
        ({0: [WAITED, HUNG], 2: [WAITED]}, 1, "rank 1 on n2 made no step for 60 s: rank 0 on n1 waited for it"),
        (
            {0: [WAITED, HUNG], 1: [WAITED], 2: [WAITED]},
            0,
            "all ranks waited for each other: rank 0 on n1 made no step for 60 s",
        ),
    ],
)
def test_of_a_hang_the_rank_is_blamed_that_the_others_waited_for(logs, blamed, sentence):
    ranks = [rank(0, 70), rank(1, signal=15), rank(2, signal=15)]
    cause = verdict(ranks=ranks, logs=logs)
    assert (cause.kind, cause.rank, cause.sentence) == ("hang", blamed, sentence)
    assert f"hpcdist logs --rank {blamed} " in cause.hint
    assert one_rank(["step 70"], 7).kind == "unknown"


def test_a_preflight_names_the_node_to_leave_out():
    """All ranks end with the same words; the one to blame need not be the first."""
    told = TrainingMetrics(fault=ODD)
    cause = verdict(ranks=[rank(0, 71, ended=99, training=told), rank(1, 71, training=told)])
    assert (cause.kind, cause.rank, cause.host, cause.exit_code) == ("preflight", 1, "n2", 71)
    assert cause.sentence == "the preflight failed: rank 1 on n2 is odd"
    assert cause.hint == "hpcdist rerun r --set exclude=n2"


def test_a_preflight_that_blames_no_node_says_what_to_do():
    told = TrainingMetrics(fault=msgspec.structs.replace(ODD, host=None))
    assert verdict(ranks=[rank(0, 71, training=told)]).hint == "have it mended"
