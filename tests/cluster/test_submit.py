"""Submission to a real Slurm: scripts, runs, states, failures."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.submission.test_render import CASES

pytestmark = pytest.mark.slurm
PYTHON = Path(sys.executable)


@pytest.fixture
def submit(testbed, project):
    """Submits and returns the outcome; everything it sent is cancelled at the end."""
    sent = []

    def submit(*arguments, **kwargs):
        outcome = testbed.hpcdist("submit", *arguments, cwd=project, **kwargs)
        sent.extend(outcome.out.split()[:1])
        return outcome

    yield submit
    for job_id in sent:
        if job_id.isdigit():
            subprocess.run(["scancel", job_id], env=testbed.env, check=False)


def only_run(project):
    (run,) = [path for path in (project / "jobs" / "runs").iterdir() if path.is_dir()]
    return run


@pytest.mark.parametrize("name", CASES)
def test_slurm_accepts_every_golden_script(testbed, name, tmp_path):
    options = CASES[name][0]
    if name in ("1x8-exclusive", "odd-nodes", "1x1-limits", "1x2", "1x4-torchrun", "2x4-command", "4x4-array"):
        options = {key: value for key, value in options.items() if key not in NOT_HERE} | {"gpus": 2}
    done = testbed.hpcdist("submit", "--dry-run", *_arguments(options), cwd=tmp_path)
    if options.get("gpus") == 0 and options.get("tasks_per_node", 1) > 4:
        assert "node configuration is not available" in done.err  # eight tasks on nodes of four CPUs
        return
    assert done.code == 0, done.err
    assert re.search(r"Job \d+ to start at", done.err)


# Golden files whose request the testbed can meet; the others ask for partitions, features, GPUs, memory or nodes of
# other clusters.
MET_HERE = {
    "1x1",
    "1x1-replace",
    "1x1cpu",
    "1x2-small",
    "1x2-tasks-command",
    "2x1",
    "2x1-run",
    "2x1-tasks",
    "2x2",
    "2x2-command",
    "2x2-torchrun",
    "2x3cpu",
    "4x1-array",
    "4x2-exclusive",
    "hostile-name",
}


@pytest.mark.parametrize("name", CASES)
def test_slurm_takes_a_golden_file_as_it_is_where_it_can_be_met(testbed, name, tmp_path):
    golden = Path(__file__).parent.parent / "golden" / f"{name}.sbatch"
    done = subprocess.run(
        ["sbatch", "--test-only", golden], env=testbed.env, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (name in MET_HERE), done.stderr
    if name in MET_HERE:
        assert re.search(r"Job \d+ to start at", done.stderr)


# What the testbed has not got: such partitions, accounts, features and nodes, or four GPUs in a node.
NOT_HERE = {
    "mem",
    "mem_per_cpu",
    "cpus_per_task",
    "partition",
    "account",
    "qos",
    "constraint",
    "reservation",
    "nodelist",
    "exclude",
    "gpus",
    "dependency",
}


def _arguments(options):
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        if key in ("command", "tasks", "task_env"):  # the last two have no option
            continue
        if value is True:
            yield flag
        elif isinstance(value, dict):
            for inner, text in value.items():
                yield from (flag, f"{inner}={text}")
        elif isinstance(value, list):
            for text in value:
                yield from (flag, text)
        else:
            yield from (flag, str(value))
    if "command" in options:
        yield from ("--", *options["command"])


def test_what_is_rendered_is_what_is_sent(testbed, submit, project):
    rendered = testbed.hpcdist("render", "--nodes", "2", "--run", "same", "--", "true", cwd=project).out
    job_id = submit("--nodes", "2", "--run", "same", "--", "true").out.strip()
    kept = project / "kept.sbatch"
    testbed.run("scontrol", "write", "batch_script", job_id, kept)
    # scontrol ends the file with a NUL (Slurm 22.05).
    assert kept.read_text().rstrip("\0") == rendered
    assert (project / "jobs/runs/same/script.sbatch").read_text() == rendered


def test_only_the_job_id_is_on_standard_output(submit):
    outcome = submit("--", "true")
    assert re.fullmatch(r"\d+\n", outcome.out)
    assert "hpcdist wait" in outcome.err


def test_the_run_is_whole_and_private(submit, project, testbed):
    job_id = submit("--nodes", "2", "--", "true").out.strip()
    run = only_run(project)
    record = json.loads((run / "job.json").read_text())
    assert run.stat().st_mode & 0o777 == 0o700
    assert (record["job_id"], record["cluster"], record["slurm_version"][:5]) == (job_id, "testbed", "22.05")
    assert record["job"]["layout"]["nodes"] == 2
    comment = testbed.run("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%k").strip()
    assert comment == f"hpcdist:{run.name}"


def test_the_same_run_is_never_sent_twice(submit, testbed, project):
    first = submit("--run", "once", "--", "true")
    second = submit("--run", "once", "--", "true")
    assert (second.code, second.out) == (0, first.out)


def test_a_run_of_that_name_with_another_script_is_refused(submit):
    submit("--run", "taken", "--", "true")
    outcome = submit("--run", "taken", "--", "false")
    assert outcome.code == 2
    assert "exists with another script" in outcome.err


def test_a_job_whose_id_was_never_written_down_is_found_again(submit, project):
    """As after a kill -9 between sbatch and the record."""
    first = submit("--run", "cut-off", "--", "sleep", "5")
    path = project / "jobs/runs/cut-off/job.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"job_id": None, "cluster": None}))
    again = submit("--run", "cut-off", "--", "sleep", "5")
    assert again.out == first.out


def test_two_submissions_of_one_run_at_once_make_one_job(submit):
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: submit("--run", "race", "--", "true"), range(4)))
    assert len({outcome.out for outcome in outcomes}) == 1, [outcome.err for outcome in outcomes]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--partition", "nowhere", "invalid partition"),
        ("--gpus", "9", "node configuration is not available"),
        ("--account", "nobody-has-this", "account"),
    ],
)
def test_slurm_s_own_words_are_shown_when_it_refuses(submit, option, value, words, request):
    outcome = submit(option, value, "--", "true")
    if option == "--account" and outcome.code == 0:
        return  # the testbed does not enforce accounts
    assert outcome.code == 1
    assert re.search(words, outcome.err)
    assert outcome.err.startswith("error: sbatch: ")
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)], ids=["submit", "dry-run"])
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("bogus=1", "unrecognized option '--bogus=1'"),
        ("mem=plenty", "Invalid --mem specification"),
        ("nodes=x; touch hacked", "touch hacked"),
    ],
)
def test_options_that_srun_refuses_are_refused_before_the_job_waits(submit, project, option, words, dry_run):
    outcome = submit("--srun", option, *dry_run, "--", "true")
    assert outcome.code == 1
    assert outcome.err.startswith("error: srun would refuse its options: ")
    assert words in outcome.err
    assert not list(project.rglob("hacked"))


def test_options_that_srun_takes_reach_it(submit, project):
    outcome = submit("--srun", "chdir=/", "--srun", "unbuffered", "--wait", "--", "pwd")
    assert outcome.code == 0, outcome.err
    (log,) = only_run(project).glob("logs/*_0_log.out")
    assert log.read_text() == "/\n"


def test_a_refused_run_says_so(submit, testbed, project):
    submit("--partition", "nowhere", "--", "true")
    outcome = testbed.hpcdist("status", cwd=project)
    assert "REFUSED" in outcome.out


HOSTILE = "a 'b' \"c\" \\d $(touch hacked) `touch hacked` #e ; touch hacked"


def test_a_hostile_name_comes_out_literal_and_stays_in_its_folders(submit, testbed, project):
    outcome = submit("--name", HOSTILE, "--wait", "--", "true")
    assert outcome.code == 0, outcome.err
    job_id = outcome.out.split()[0]
    shown = testbed.run("scontrol", "show", "job", job_id)
    assert f"JobName={HOSTILE}" in shown
    assert not list(project.rglob("hacked"))
    assert {path.name for path in project.iterdir()} <= {"jobs", "tb_logs"}


@pytest.mark.parametrize("name", ["../../escape", "a/b", "..", "naïve ☃"])
def test_no_name_leaves_the_project(submit, project, name):
    outcome = submit("--name", name, "--wait", "--", "true")
    assert outcome.code == 0, outcome.err
    assert only_run(project).parent == project / "jobs" / "runs"
    assert not list(project.parent.glob("escape*"))


def test_a_name_with_a_line_break_is_refused(submit):
    outcome = submit("--name", "a\n#SBATCH --exclusive", "--", "true")
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")


def test_hostile_arguments_reach_the_program_unchanged(submit, project):
    words = ["$(id)", "it's", 'a"b', "new\nline", "*", "ünï", ""]
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    outcome = submit("--wait", "--", str(PYTHON), "-c", program, *words)
    assert outcome.code == 0, outcome.err
    (log,) = (only_run(project) / "logs").glob("*_0_log.out")
    assert json.loads(log.read_text()) == words


def test_the_ranks_know_their_places(submit, project):
    program = "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $NODE_RANK $MASTER_ADDR $(hostname)"
    outcome = submit("--nodes", "2", "--gpus", "2", "--wait", "--", "sh", "-c", program)
    assert outcome.code == 0, outcome.err
    logs = sorted((only_run(project) / "logs").glob("*_log.out"))
    lines = [log.read_text().split() for log in logs]
    assert [line[:5] for line in lines] == [list(f"{rank}4{rank % 2}2{rank // 2}") for rank in range(4)]
    assert len({line[5] for line in lines}) == 1
    assert lines[0][5] == lines[0][6]  # rank 0 is on the head node
    assert len({line[6] for line in lines}) == 2


def test_one_rank_s_failure_ends_the_job_quickly_and_is_shown_first(submit, testbed, project):
    program = 'if [ "$RANK" = 2 ]; then echo rank two gives up; exit 7; fi; sleep 600'
    started = time.monotonic()
    outcome = submit("--nodes", "2", "--gpus", "2", "--wait", "--", "sh", "-c", program)
    assert time.monotonic() - started < 30
    assert outcome.code == 1
    assert re.search(r"FAILED: rank 2 on n\d ended with exit code 7", outcome.err)
    assert "| rank two gives up" in outcome.err
    job_id = outcome.out.split()[0]
    row = testbed.run("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "State,ExitCode,ElapsedRaw").strip().split("|")
    assert row[:2] == ["FAILED", "7:0"]
    assert int(row[2]) <= 20
    assert "2:7" in testbed.hpcdist("status", job_id, cwd=project).out


def test_a_killed_rank_ends_the_job_and_is_named(submit):
    outcome = submit("--nodes", "2", "--wait", "--", "sh", "-c", 'if [ "$RANK" = 1 ]; then kill -9 $$; fi; sleep 600')
    assert outcome.code == 1
    assert re.search(r"FAILED: rank 1 on n\d ended with signal 9", outcome.err)


@pytest.mark.soak
def test_a_rank_that_works_longer_than_the_others_is_waited_for(submit, testbed):
    seconds = "60" if os.environ.get("SOAK") else "15"
    program = f'if [ "$RANK" = 0 ]; then sleep {seconds}; fi'
    outcome = submit("--nodes", "2", "--gpus", "2", "--wait", "--", "sh", "-c", program)
    assert outcome.code == 0, outcome.err


def test_an_array_keeps_a_folder_per_task(submit, testbed, project):
    outcome = submit("--array", "0-2%2", "--run", "many", "--wait", "--", "sh", "-c", "echo task $SLURM_ARRAY_TASK_ID")
    assert outcome.code == 0, outcome.err
    job_id = outcome.out.split()[0]
    for task in "012":
        (log,) = (project / "jobs/runs/many" / task / "logs").glob("*_0_log.out")
        assert log.read_text() == f"task {task}\n"
    listed = json.loads(testbed.hpcdist("status", job_id, "--json", cwd=project).out)
    assert {one["status"]["job_id"] for one in listed} == {f"{job_id}_{task}" for task in "012"}
    assert f"{job_id}_1" in testbed.hpcdist("logs", f"{job_id}_1", cwd=project).out


def test_torchrun_starts_the_ranks_of_a_node(submit, project):
    program = "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ['LOCAL_RANK'])"
    options = ("--nodes", "2", "--gpus", "2", "--launcher", "torchrun", "--wait")
    outcome = submit(*options, "--", str(PYTHON), "-c", program, timeout=180)
    assert outcome.code == 0, outcome.err
    ranks = [json.loads(path.read_text()) for path in (only_run(project) / "ranks").glob("*.json")]
    assert sorted((rank["rank"], rank["node_rank"], rank["exit_code"]) for rank in ranks) == [
        (0, 0, 0),
        (1, 0, 0),
        (2, 1, 0),
        (3, 1, 0),
    ]


def test_a_job_can_be_submitted_from_inside_a_job(submit, testbed, project):
    inner = f"{PYTHON} -m hpcdist.cli.main submit --nodes 2 --cpus-per-task 1 --run inner --wait -- sh -c 'exit 0'"
    outcome = submit("--cpus-per-task", "3", "--wait", "--", "sh", "-c", inner, timeout=180)
    assert outcome.code == 0, outcome.err
    record = json.loads((project / "jobs/runs/inner/record.json").read_text())
    assert record["status"]["state"] == "COMPLETED"
    assert len(record["ranks"]) == 2


def test_a_script_works_by_hand_from_any_folder_and_an_empty_environment(testbed, project, tmp_path_factory):
    script = testbed.hpcdist("render", "--nodes", "2", "--", "sh", "-c", "echo by hand", cwd=project).out
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "job.sbatch").write_text(script)
    bare = {"SLURM_CONF": testbed.env["SLURM_CONF"], "PATH": "/usr/bin:/bin"}
    said = subprocess.run(
        ["/usr/bin/sbatch", "--wait", "job.sbatch"], env=bare, cwd=elsewhere, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    job_id = said.stdout.split()[-1]
    run = only_run(project)
    assert run.name.endswith(f"-{job_id}")
    assert "by hand" in testbed.hpcdist("logs", job_id, cwd=project).out
    assert "COMPLETED" in testbed.hpcdist("status", job_id, cwd=project).out


def test_cancel_and_wait(submit, testbed, project):
    job_id = submit("--", "sleep", "600").out.strip()
    assert testbed.hpcdist("wait", job_id, "--timeout", "2", cwd=project).code == 3
    assert testbed.hpcdist("cancel", job_id, cwd=project).code == 0
    outcome = testbed.hpcdist("wait", job_id, cwd=project)
    assert outcome.code == 1
    assert "CANCELLED" in outcome.err


def test_a_pending_job_says_why_it_waits(submit, testbed, project):
    blocker = submit("--", "sleep", "30").out.strip()
    job_id = submit("--dependency", f"afterok:{blocker}", "--", "true").out.strip()
    outcome = testbed.hpcdist("status", job_id, cwd=project)
    assert re.search(r"PENDING.*Dependency", outcome.out)
    assert testbed.hpcdist("seff", job_id, cwd=project).code == 3


def test_jobs_of_others_have_a_status_too(testbed, project):
    job_id = testbed.run("sbatch", "--wrap", "true", "--output=/dev/null", "--wait").split()[-1]
    assert job_id in testbed.hpcdist("status", job_id, cwd=project).out
    assert testbed.hpcdist("status", "999999", cwd=project).code == 1


def test_the_python_api_submits_and_waits(testbed, project):
    program = (
        "import hpcdist\n"
        "job = hpcdist.submit(hpcdist.Layout(nodes=2, gpus=1), command=['sh', '-c', 'echo from python'])\n"
        "print(job.wait().state, 'from python' in job.logs(0), job.record().status.exit_code)\n"
    )
    done = subprocess.run([PYTHON, "-c", program], env=testbed.env, capture_output=True, text=True, cwd=project)
    assert done.stdout == "COMPLETED True 0\n", done.stderr


def test_a_run_goes_on_from_the_checkpoints_that_it_was_given(testbed, project):
    """As `hpcdist why` says it of a program that stopped and was not requeued; sent again by hand, it begins anew."""
    (project / "hpcdist.toml").write_text("")
    given = project / "jobs" / "runs" / "given" / "checkpoints"
    given.mkdir(parents=True, mode=0o700)
    (given / "step").write_text("41")
    program = ("--", "bash", "-c", 'cat "$HPCDIST_CHECKPOINT_DIR/step" || echo none')
    done = testbed.hpcdist("submit", "--run", "given", "--resumable", "--gpus", 0, "--wait", *program, cwd=project)
    assert done.code == 0, done.err
    (log,) = given.parent.glob("logs/*_0_log.out")
    assert log.read_text() == "41"
    testbed.run("sbatch", "--wait", "--output=/dev/null", given.parent / "script.sbatch")
    (again,) = set(given.parent.glob("logs/*_0_log.out")) - {log}
    assert again.read_text().endswith("none\n")


def test_a_secret_reaches_the_job_and_no_file_of_it(testbed, project):
    (project / "hpcdist.toml").write_text("")
    options = ("--run", "secret", "--env", "HF_TOKEN=hf_not_to_be_seen", "--gpus", 0, "--wait")
    done = testbed.hpcdist("submit", *options, "--", "sh", "-c", "echo ${#HF_TOKEN}", cwd=project)
    assert done.code == 0, done.err
    run = project / "jobs" / "runs" / "secret"
    assert [path.read_text() for path in run.glob("logs/*_0_log.out")] == ["17\n"]
    job = json.loads((run / "job.json").read_text())["job_id"]
    stored = testbed.run("scontrol", "write", "batch_script", job, "-")
    texts = [path.read_text() for path in project.rglob("*") if path.is_file()]
    assert [text for text in (*texts, stored, done.out, done.err) if "hf_not" in text] == []
