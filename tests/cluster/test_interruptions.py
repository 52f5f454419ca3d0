"""Runs that the cluster interrupts, on the real cluster: they end with the weights of the run that nobody touched.

They wait for Slurm most of the while, so they go on side by side: those of a lane one after the other. No lane breaks
or empties a node that another one uses.
"""

import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.cluster.interrupted import LONG, Cluster, Job
from tests.cluster.waiting import eventually
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(600)]

# Preempted in the one, dead (n4) in the other.
FIRST_HALF, SECOND_HALF = ("--nodelist", "n1,n2"), ("--nodelist", "n3,n4")
# Two ranks, beside one of each job of the second half.
ON_N3 = ("--nodes", 1, "--gpus", 0, "--tasks-per-node", 2, "--nodelist", "n3")
AWAY_S = 30 if LONG else 10
# Slurm sends what --signal names in place of TERM (slurm.conf(5)).
SEND_USER_SIGNAL = "SlurmctldParameters=preempt_send_user_signal"


@pytest.fixture(scope="module")
def lanes():
    """Threads, each of which does one thing after the other."""
    threads = [ThreadPoolExecutor(1) for _ in LANES]
    yield threads
    for lane in threads:
        lane.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def cluster(testbed, tmp_path_factory, mnist_dir, lanes):
    cluster = Cluster(testbed, tmp_path_factory.mktemp("interruptions"), mnist_dir)
    cluster.untouched = lanes[1].submit(cluster.train_untouched, *SECOND_HALF)
    yield cluster
    for job in cluster.jobs:
        subprocess.run(["scancel", job.id], env=testbed.env)


def preempt(testbed, job):
    """A job of the high partition takes its nodes for a moment."""
    nodes = job.field("NodeList")
    wrap = ("--partition=high", "--nodes=2", f"--nodelist={nodes}", "--exclusive", "--wrap=sleep 1")
    testbed.run("sbatch", "--parsable", "--output=/dev/null", *wrap)


@contextmanager
def configured(testbed, line):
    """The controller with one line more in its configuration."""
    config = Path(testbed.env["SLURM_CONF"])
    text = config.read_text()
    try:
        config.write_text(f"{text}{line}\n")
        testbed.run("scontrol", "reconfigure")
        yield
    finally:
        config.write_text(text)
        testbed.run("scontrol", "reconfigure")


def preempted_three_times(cluster):
    job = cluster.submit(*FIRST_HALF)
    for attempt, site in enumerate((nullcontext(), configured(cluster.testbed, SEND_USER_SIGNAL), nullcontext())):
        job.wait_for_step(10)
        with job.held(), site:
            preempt(cluster.testbed, job)
            eventually(lambda restarts=attempt + 1: job.asked_or_requeued(restarts))
        eventually(lambda restarts=attempt + 1: job.field("Restarts") == str(restarts), 60)
    cluster.assert_ends_untouched(job)
    assert eventually(lambda: job.rows()[-1] == "COMPLETED" and job.rows()) == ["PREEMPTED"] * 3 + ["COMPLETED"]
    assert job.log().count("goes on after step") == 3


# Python starts slowly: in the first attempt what stages the data, in the second the ranks' watcher.
SLOW_START = """\
import os, pathlib, sys, time
attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
if sys.orig_argv[2:3] == [{"0": "hpcdist.stage", "1": "hpcdist.rank"}.get(attempt)]:
    pathlib.Path(__file__).with_name(f"starts-{attempt}").touch()
    time.sleep(4)
"""


def preempted_before_it_trains(cluster):
    slow = cluster.project()
    (slow / "sitecustomize.py").write_text(SLOW_START)
    job = cluster.submit("--stage-data", "--setup", f"export PYTHONPATH={slow}", *FIRST_HALF)
    for attempt in range(2):
        eventually((slow / f"starts-{attempt}").exists, 60)
        preempt(cluster.testbed, job)
        eventually(lambda restarts=attempt + 1: job.field("Restarts") == str(restarts), 60)
    cluster.assert_ends_untouched(job)
    assert eventually(lambda: job.rows()[-1] == "COMPLETED" and job.rows()) == ["PREEMPTED"] * 2 + ["COMPLETED"]


def four_ranks_on_two_nodes_are_preempted(cluster):
    shape = ("--gpus", 2, *FIRST_HALF)
    untouched = cluster.submit(*shape)
    assert untouched.wait().code == 0
    job = cluster.submit(*shape)
    job.wait_for_step(10)
    with job.held():
        preempt(cluster.testbed, job)
        eventually(lambda: job.asked_or_requeued(1))
    eventually(lambda: job.field("Restarts") == "1", 60)
    job.assert_ends_as(untouched)
    assert job.log().count("goes on after step") == 1


# Due after eight seconds; Slurm looks at time limits every half minute.
NEAR_LIMIT = ("--time", "2", "--sbatch", "signal=USR2@112")


def its_time_limit_is_near(cluster):
    goes_on = cluster.submit(*NEAR_LIMIT, *SECOND_HALF)
    at_its_cap = cluster.submit(*NEAR_LIMIT, *SECOND_HALF, "--max-requeues", 0)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Job.train_until_asked, (goes_on, at_its_cap)))
    assert at_its_cap.wait().code == 1
    assert "not requeued: it was 0 time(s) before, and --max-requeues is 0" in at_its_cap.log()
    assert at_its_cap.field("ExitCode") == "75:0"
    eventually(lambda: goes_on.field("Restarts") == "1", 60)
    # In the second attempt it may be asked again.
    cluster.assert_ends_untouched(goes_on)
    assert "requeued, time 1 of 10 at most" in goes_on.log()


def a_node_dies(cluster):
    testbed, job = cluster.testbed, cluster.submit("--checkpoint-every", "1s", *SECOND_HALF)
    job.wait_for_step(40)
    try:
        with job.held():
            testbed.run(REPOSITORY / "testbed/kill-node", "n4")
        eventually(lambda: job.field("Restarts") == "1", 90)
    finally:
        testbed.run(REPOSITORY / "testbed/heal-node", "n4")
    cluster.assert_ends_untouched(job)


@contextmanager
def small_disk(testbed, folder, options="size=4m"):
    """A file system of 4 MB over a folder as n1 sees it; yields how to run a command there."""
    pid = testbed.pid_of("slurmd.n1")

    def run(*command):
        inside = ("nsenter", f"--mount=/proc/{pid}/ns/mnt", *command)
        return subprocess.run(inside, capture_output=True, check=True).stdout

    run("mount", "-t", "tmpfs", "-o", options, "tmpfs", folder)
    try:
        yield run
    finally:
        run("umount", folder)


def a_disk_is_full_at_a_save(cluster):
    job = cluster.submit("--checkpoint-every", "1s", *FIRST_HALF)
    folder = job.folder / "checkpoints"
    log = job.folder / "logs" / f"{job.id}_0_log.out"
    job.wait_for_step(10)
    os.makedirs(folder, exist_ok=True)
    with small_disk(cluster.testbed, folder) as run:
        filler = folder / "filler"
        with job.held():
            run("sh", "-c", f"cat /dev/zero > {filler} 2> /dev/null || true")
        eventually(lambda: "No space left on device" in log.read_text(), 60, 0.05)
        run("rm", filler)
        assert job.wait().code == 0
        last = run("sh", "-c", f"ls {folder}/*.ckpt | tail -n 1").decode().strip()
        content = run("cat", last)
    # What was there before the small disk lay over it.
    for path in folder.glob("*.ckpt"):
        path.unlink()
    Path(last).write_bytes(content)
    cluster.assert_ends_untouched(job)
    assert "the training goes on" in log.read_text()


def a_killed_rank_is_not_tried_again(cluster):
    job = cluster.submit(*ON_N3)
    job.wait_for_step(10)
    (usage,) = [json.loads(path.read_text()) for path in (job.folder / "ranks").glob("1.json")]
    os.kill(usage["pid"], 9)
    assert job.wait().code == 1
    assert job.field("Restarts") == "0"
    (verdict,) = json.loads(cluster.testbed.hpcdist("why", job.id, "--json", cwd=job.project).out)
    assert (verdict["cause"]["kind"], verdict["cause"]["rank"], verdict["cause"]["signal"]) == ("killed", 1, 9)


def cancelled_by_its_owner_it_stays_cancelled(cluster):
    job = cluster.submit(*ON_N3)
    job.wait_for_step(10)
    assert cluster.testbed.hpcdist("cancel", job.id, cwd=job.project).code == 0
    eventually(lambda: job.rows() == ["CANCELLED"])
    time.sleep(8)  # a requeued job would be back by now
    assert job.rows() == ["CANCELLED"]
    assert list((job.folder / "checkpoints").glob("*.ckpt"))


def sent_again_by_hand_it_begins_anew(cluster):
    job = cluster.submit("--max-steps", 30, *ON_N3)
    assert job.wait().code == 0
    by_hand = ("sbatch", "--parsable", "--output=/dev/null", job.folder / "script.sbatch")
    again = cluster.testbed.run(*by_hand).strip()
    log = job.folder / "logs" / f"{again}_0_log.out"
    eventually(lambda: log.exists() and "finished" in log.read_text(), 150)
    assert "goes on" not in log.read_text()


def held_by_slurm_it_is_released(cluster):
    """Where a node can't start it: there slurmd writes the script down."""
    testbed, project = cluster.testbed, cluster.project()
    with small_disk(testbed, testbed.folder / "spool" / "n1", "ro"):
        job = testbed.hpcdist("submit", "--nodelist", "n1", "--gpus", 0, "--", "true", cwd=project).out.strip()
        held = "Reason=launch_failed_requeued_held"
        eventually(lambda: held in testbed.run("scontrol", "show", "job", job), 60)
    done = testbed.hpcdist("wait", job, cwd=project, timeout=120)
    assert done.code == 0, done.err
    assert "(launch failed requeued held: released)" in done.err


def weights_printed(log):
    (line, *others) = {line.partition("] ")[2] for line in log.splitlines() if "weights [" in line}
    assert not others
    return line


def a_plain_script_goes_on(cluster):
    program_of_the_user_s_goes_on(cluster, "resumable_script.py", *FIRST_HALF)


def a_lightning_script_goes_on(cluster):
    # A worker of its own interpreter would die of a USR2 that reached it.
    program_of_the_user_s_goes_on(cluster, "resumable_lightning_script.py", "--env", "WORKERS=spawn", *SECOND_HALF)


def program_of_the_user_s_goes_on(cluster, script, *options):
    """It is run to its end, and interrupted, at the same time."""
    testbed, project, jobs = cluster.testbed, cluster.project(), {}
    for how in ("whole", "interrupted"):
        shape = ("--nodes", 2, "--gpus", 0, "--cpus-per-task", 1, *options)
        program = ("--", "python", Path(__file__).with_name(script))
        done = testbed.hpcdist("submit", *shape, "--resumable", "--run", how, *program, cwd=project)
        jobs[how] = done.out.strip()
    logs = project / "jobs" / "runs" / "interrupted" / "logs"
    eventually(lambda: any(path.read_text() for path in logs.glob("*_0_log.out")), 90)
    time.sleep(2)
    # What Slurm does when the time limit is near: the signal goes to every process of the step.
    testbed.run("scancel", "--signal=USR2", jobs["interrupted"])
    for job in jobs.values():
        done = testbed.hpcdist("wait", job, cwd=project, timeout=240)
        assert done.code == 0, done.err
    whole, interrupted = (testbed.hpcdist("logs", job, cwd=project).out for job in jobs.values())
    assert "the job is requeued, time 1 of 10 at most" in interrupted
    assert weights_printed(interrupted) == weights_printed(whole)


def a_program_of_the_user_s_is_preempted_and_loses_a_node(cluster):
    testbed, project = cluster.testbed, cluster.project()

    def submit(name):
        shape = ("--nodes", 2, "--gpus", 0, "--cpus-per-task", 1, *SECOND_HALF, "--resumable", "--run", name)
        done = testbed.hpcdist(
            "submit", *shape, "--", "python", Path(__file__).with_name("resumable_script.py"), cwd=project
        )
        assert done.code == 0, done.err
        return done.out.strip()

    def begun(times):
        paths = project.glob("jobs/runs/interrupted/logs/*_0_log.out")
        return sum(path.read_text().count("begins at step") for path in paths) == times

    job = submit("interrupted")
    eventually(lambda: begun(1), 90)
    time.sleep(2)
    wrap = ("--partition=high", "--nodes=2", "--nodelist=n3,n4", "--exclusive", "--wrap=sleep 1")
    testbed.run("sbatch", "--parsable", "--output=/dev/null", *wrap)
    eventually(lambda: begun(2), 90)
    time.sleep(4)  # past step 100, where it saves
    try:
        testbed.run(REPOSITORY / "testbed/kill-node", "n4")
        eventually(lambda: "Restarts=2" in testbed.run("scontrol", "show", "job", job), 60)
    finally:
        testbed.run(REPOSITORY / "testbed/heal-node", "n4")
    whole = submit("whole")
    for one in (job, whole):
        assert testbed.hpcdist("wait", one, cwd=project, timeout=240).code == 0
    log = {one: testbed.hpcdist("logs", one, cwd=project).out for one in (job, whole)}
    assert log[job].count("begins at step") == 2 * 3
    assert weights_printed(log[job]) == weights_printed(log[whole])


LANES = (
    (
        preempted_three_times,
        a_disk_is_full_at_a_save,
        a_plain_script_goes_on,
        held_by_slurm_it_is_released,
        *((four_ranks_on_two_nodes_are_preempted, preempted_before_it_trains) if LONG else ()),
    ),
    (
        its_time_limit_is_near,
        a_node_dies,
        a_lightning_script_goes_on,
        *((a_program_of_the_user_s_is_preempted_and_loses_a_node,) if LONG else ()),
    ),
    (
        a_killed_rank_is_not_tried_again,
        cancelled_by_its_owner_it_stays_cancelled,
        sent_again_by_hand_it_begins_anew,
    ),
)


@pytest.fixture(scope="module")
def under_way(request, cluster, lanes):
    """What comes of each interruption that is asked for."""
    asked = {item.name for item in request.session.items}
    return {
        scene: lane.submit(scene, cluster)
        for lane, scenes in zip(lanes, LANES, strict=True)
        for scene in scenes
        if f"test_interrupted[{scene.__name__}]" in asked
    }


@pytest.mark.parametrize("scene", [scene for lane in LANES for scene in lane], ids=lambda scene: scene.__name__)
def test_interrupted(under_way, scene):
    under_way[scene].result()


@contextmanager
def controller_and_accounting_away(testbed):
    """Killed outright, and back at the end."""
    for name in ("slurmctld", "slurmdbd"):
        os.kill(testbed.pid_of(name), signal.SIGKILL)
    try:
        yield
    finally:
        testbed.run(REPOSITORY / "testbed/up")


def test_controller_and_accounting_are_away(cluster):
    """The last ones: nothing else can go on without them."""
    job = cluster.submit("--checkpoint-every", "1s", *FIRST_HALF)
    job.wait_for_step(10)
    with ExitStack() as until_they_are_back, controller_and_accounting_away(cluster.testbed):
        known = job.step()
        eventually(lambda: job.step() > known)
        if not LONG:  # of a job that ends meanwhile Slurm learns a minute later
            until_they_are_back.enter_context(job.held())
        time.sleep(AWAY_S)
    cluster.assert_ends_untouched(job)
    assert job.field("Restarts") == "0"


def test_a_job_that_a_crashed_controller_forgot_is_lost(cluster):
    """It comes back with what it wrote down last, which is seconds old."""
    testbed, project = cluster.testbed, cluster.project()
    state = testbed.folder / "state"
    eventually(lambda: not testbed.run("squeue", "-h"))
    time.sleep(8)  # until what it knows is written down
    before = {path: path.read_bytes() for path in state.glob("job_state*")}
    job = testbed.hpcdist("submit", "--gpus", 0, "--run", "forgotten", "--", "sleep", "600", cwd=project).out.strip()
    with controller_and_accounting_away(testbed):
        for path, content in before.items():
            path.write_bytes(content)
    done = testbed.hpcdist("wait", "forgotten", cwd=project)
    assert done.code == 1
    assert f"{job} LOST: Slurm lost the job" in done.err
    assert "hint: hpcdist rerun forgotten" in done.err
    # The next job may get the lost one's number: this one takes it.
    testbed.run("scancel", testbed.run("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").strip())


if LONG:

    def test_a_job_comes_to_its_srun_without_a_controller(cluster):
        away = cluster.folder / "away"
        setup = f"until [ -e {away} ]; do sleep 0.1; done"
        job = cluster.submit("--max-steps", 5, "--setup", setup, *SECOND_HALF)
        eventually(lambda: job.field("JobState") == "RUNNING")
        time.sleep(8)  # a controller that is killed forgets what it began in its last seconds
        with controller_and_accounting_away(cluster.testbed):
            away.touch()
            time.sleep(AWAY_S)
        assert job.wait().code == 0
        assert job.step() == 5
        assert any("srun began no rank" in path.read_text() for path in job.folder.glob("logs/*"))

    def test_an_array_s_early_failure_counts_when_slurm_has_forgotten_the_task(cluster):
        """Slurm forgets a task MinJobAge after its end, and looks for such ones twice a minute."""
        testbed, project, ends = cluster.testbed, cluster.project(), cluster.folder / "ends"
        program = f'[ $SLURM_ARRAY_TASK_ID = 1 ] || exit 3; until [ -e "{ends}" ]; do sleep 1; done'
        with configured(testbed, "MinJobAge=2"):
            command = ("submit", "--gpus", 0, "--array", "0-1", "--", "sh", "-c", program)
            job = testbed.hpcdist(*command, cwd=project).out.strip()
            known = ("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%i %T")
            eventually(lambda: testbed.run(*known) == f"{job}_1 RUNNING\n", 90)
            states = [
                one["status"]["state"] for one in json.loads(testbed.hpcdist("status", job, "--json", cwd=project).out)
            ]
            ends.touch()
            done = testbed.hpcdist("wait", job, cwd=project)
        assert states == ["FAILED", "RUNNING"]
        assert done.code == 1
        assert f"{job}_0 FAILED: rank 0 on n" in done.err

    def test_a_job_that_slurm_gives_no_gpus_is_requeued(cluster):
        """Slurm 22.05 does so where a job ends on a node, and the next starts, before a restarted controller knows it.

        It then miscounts the node's GPUs until it reads its configuration again.
        """
        try:
            assert any(comes_into_the_gap(cluster, number) for number in range(3))
        finally:
            cluster.testbed.run("scontrol", "reconfigure")


def comes_into_the_gap(cluster, number):
    """Whether the job got no GPUs at first; it ends well all the same."""
    testbed, over = cluster.testbed, cluster.folder / f"over-{number}"
    wrap = ("--nodelist=n1", "--gpus-per-node=1", f"--wrap=srun sh -c 'until [ -e {over} ]; do sleep 0.05; done'")
    before = testbed.run("sbatch", "--parsable", "--output=/dev/null", *wrap).strip()
    project = cluster.project()
    after = ("--dependency", f"afterany:{before}", "--nodelist", "n1", "--gpus", 1)
    command = ("sh", "-c", "echo GPU $CUDA_VISIBLE_DEVICES is here")
    job = testbed.hpcdist("submit", *after, "--", *command, cwd=project)
    assert job.code == 0, job.err
    eventually(lambda: "JobState=RUNNING" in testbed.run("scontrol", "show", "job", before))
    testbed.stop_controller()
    with subprocess.Popen([REPOSITORY / "testbed/up"], stdout=subprocess.DEVNULL, env=testbed.env):
        ping = ["scontrol", "ping"]
        eventually(lambda: subprocess.run(ping, env=testbed.env, capture_output=True).returncode == 0, 30, 0.1)
        over.touch()
    job_id = job.out.strip()
    done = testbed.hpcdist("wait", job_id, cwd=project, timeout=240)
    assert done.code == 0, done.err
    said = testbed.hpcdist("logs", job_id, cwd=project).out
    assert re.search(r"GPU [01] is here", said)
    is_requeued = "Slurm gave the job no GPUs: it is requeued" in said
    assert is_requeued == ("Restarts=1" in testbed.run("scontrol", "show", "job", job_id))
    return is_requeued
