"""The verdict on a job that was broken on purpose, and what a drill refuses to try."""

import msgspec
import pytest

from hpcdist.config.project import find_project
from hpcdist.doctor import drill
from hpcdist.doctor.drill import DRILLS, Means, Seen, choose_options, find_obstacle, judge, prepare_drill
from hpcdist.errors import HpcdistError, UsageError
from hpcdist.records.job import Cause
from hpcdist.records.ranks import RankUsage
from tests.conftest import run_hpcdist

COMPLETED = Cause(kind="completed", sentence="it ended well")
KILLED = Cause(kind="killed", sentence="rank 1 on n2 ended with signal 9")
HUNG = Cause(kind="hang", sentence="rank 0 on n1 made no step for 10 s")
SURVIVED = Seen(
    states=("PREEMPTED", "COMPLETED"), restarts=1, cause=COMPLETED, went_on_after=120, lost_s=0.84, took_s=60.0
)
FAILED = Seen(states=("FAILED",), restarts=0, cause=KILLED, ended_s=4.0, took_s=20.0)


def but(seen, **changes):
    return msgspec.structs.replace(seen, **changes)


@pytest.mark.parametrize(
    ("kind", "seen", "passed", "words"),
    [
        ("preempt", SURVIVED, True, "went on after step 120, 0.8 s of work done again"),
        ("time-limit", but(SURVIVED, lost_s=None), True, "unknown work"),
        ("preempt", but(SURVIVED, went_on_after=None), False, "began anew"),
        ("preempt", but(SURVIVED, states=("COMPLETED",), restarts=0), None, "never interrupted"),
        ("kill-node", but(SURVIVED, states=("NODE_FAIL", "FAILED"), cause=KILLED), False, "it ended FAILED: rank 1"),
        ("corrupt-checkpoint", SURVIVED, False, "nobody noticed the damaged checkpoint"),
        ("corrupt-checkpoint", but(SURVIVED, is_damage_noticed=True), True, "survived"),
        ("kill-rank", FAILED, True, "failed within 4 s, as it should: rank 1 on n2"),
        ("kill-rank", but(FAILED, cause=HUNG), False, "as hang, not as killed"),
        ("kill-rank", but(FAILED, states=("COMPLETED",), cause=COMPLETED), False, "as completed, not as killed"),
        ("kill-rank", but(FAILED, states=("REQUEUED", "FAILED"), restarts=1), False, "started again 1 time(s)"),
        ("kill-rank", but(FAILED, ended_s=60.0), True, "within 60 s"),
        ("kill-rank", but(FAILED, ended_s=61.0), False, "took 61 s to fail"),
        # The 10 s of --hang-timeout are its own.
        ("hang", but(FAILED, cause=HUNG, ended_s=70.0), True, "no step for 10 s"),
        ("hang", but(FAILED, cause=HUNG, ended_s=71.0), False, "took 71 s to fail"),
        ("hang", but(FAILED, is_over=False, ended_s=900.0), False, "not over 900 s after it was broken"),
        ("hang", but(FAILED, is_broken=False, cause=COMPLETED), None, "more --epochs"),
        ("hang", but(FAILED, is_broken=False), None, "could not be broken: rank 1"),
    ],
)
def test_verdict(kind, seen, passed, words):
    verdict, sentence = judge(kind, seen, hang_timeout_s=10.0)
    assert verdict is passed
    assert words in sentence


@pytest.mark.parametrize(
    ("kind", "means", "ranks", "words"),
    [
        ("preempt", Means(), 2, "--preempt-with"),
        ("preempt", Means(preempt_with="high"), 2, None),
        ("kill-node", Means(), 2, "--allow-kill-node"),
        ("kill-node", Means(kill_node="cut n1"), 2, "kills the node {node}"),
        ("kill-node", Means(kill_node="cut {node}"), 2, None),
        ("hang", Means(), 1, "two ranks"),
        ("hang", Means(), 2, None),
        ("kill-rank", Means(), 1, None),
    ],
)
def test_what_can_not_be_tried(kind, means, ranks, words):
    obstacle = find_obstacle(kind, means, ranks)
    assert obstacle is None if words is None else words in obstacle


def test_only_a_job_that_is_preempted_asks_for_whole_nodes():
    assert [kind for kind in DRILLS if choose_options(kind, 2).get("exclusive")] == ["preempt"]


def test_no_rank_is_left_without_samples():
    assert choose_options("hang", 48)["batch_size"] == 48


def test_the_users_options_win_over_the_drills_and_those_over_the_sites(project):
    (project / "hpcdist.toml").write_text("epochs = 90\nbatch_size = 4096\npartition = 'main'\n")
    given = {"nodes": 2, "batch_size_per_rank": 8, "hang_timeout": "3s"}
    spec = prepare_drill("hang", given, find_project(project)).spec
    assert (spec.partition, spec.name, spec.training.epochs) == ("main", "drill-hang", 2)
    assert (spec.training.batch_size, spec.training.batch_size_per_rank) == (None, 8)
    assert (spec.training.hang_timeout, spec.training.checkpoint_every) == ("3s", "1s")


@pytest.mark.parametrize("given", [{"array": "0-3"}, {"command": ["true"]}])
def test_a_drill_is_one_job_of_the_built_in_training(project, given):
    with pytest.raises(UsageError, match="one job of the built-in training"):
        prepare_drill("hang", given, find_project(project))


def test_what_can_not_be_tried_is_said_and_nothing_is_submitted(project, stand_in):
    stand_in("sbatch", "touch submitted; exit 1")
    done = run_hpcdist("drill", "preempt", "kill-node", "--nodes", 2)
    assert done.code == 3
    assert "preempt    not tried" in done.out
    assert "kill-node  not tried" in done.out
    assert not (project / "submitted").exists()


def test_without_slurm_it_says_where_to_go(project):
    done = run_hpcdist("drill", "hang", env={"PATH": "/nowhere"})
    assert done.code == 3
    assert "a drill needs Slurm" in done.err


def test_one_rank_is_signalled_on_its_own_node_through_the_job(project, stand_in):
    stand_in("srun", 'echo "$@" > srun-words')
    rank = RankUsage(rank=3, local_rank=1, node_rank=1, world_size=4, host="n2.example", pid=4711, started_at_s=0.0)
    drill.signal_rank("12", rank, "STOP")
    words = "--jobid=12 --overlap --nodes=1 --ntasks=1 --relative=1 kill -STOP 4711"
    assert (project / "srun-words").read_text().split() == words.split()


def test_what_preempts_wants_the_jobs_nodes_whole_and_is_charged_to_the_same_account(project, stand_in):
    stand_in("scontrol", 'echo "JobId=12 JobState=RUNNING Account=ab12 NumNodes=2 NodeList=n[1-2] Restarts=0"')
    stand_in("sbatch", 'echo "$@" > sbatch-words; echo "13;cluster"')
    assert drill.preempt("12", "urgent") == "13"
    words = set((project / "sbatch-words").read_text().split())
    assert {"--exclusive", "--partition=urgent", "--nodes=2", "--nodelist=n[1-2]", "--account=ab12"} <= words


def test_a_node_is_killed_by_the_words_of_the_command_without_a_shell(project):
    drill.kill_node("touch 'power off' {node};x", "n2")
    assert {path.name for path in project.iterdir()} == {"power off", "n2;x"}
    with pytest.raises(HpcdistError, match="cp: missing"):
        drill.kill_node("cp {node}", "n2")
