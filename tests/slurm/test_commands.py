"""What is decided around Slurm's commands. The commands here are stand-ins; tests/cluster runs the real ones."""

import re

import pytest

from hpcdist.errors import NotReadyError, SubmitError
from hpcdist.records.job import ENDED_STATES
from hpcdist.slurm import commands, queue, sbatch


def test_inside_a_job_what_slurm_set_is_dropped_and_what_the_user_set_is_kept():
    by_slurm = {"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "3", "SLURM_STEP_ID": "0", "PMIX_RANK": "0"}
    by_slurm |= {"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "0", "HPCDIST_RUN_DIR": "/x"}
    by_user = {"SLURM_CONF": "/c", "SLURM_CLUSTERS": "a", "SLURM_JWT": "t", "SBATCH_ACCOUNT": "ab", "HOME": "/h"}
    assert sbatch.nested_variables(by_slurm | by_user) == sorted(by_slurm)


def test_outside_a_job_nothing_is_dropped():
    assert sbatch.nested_variables({"SLURM_CPUS_PER_TASK": "3", "SLURM_CONF": "/c"}) == []


def test_gpus_a_user_chose_by_hand_are_kept():
    assert "CUDA_VISIBLE_DEVICES" not in sbatch.nested_variables({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "1"})


def test_a_percent_sign_in_the_folder_is_no_pattern(tmp_path):
    command = sbatch.sbatch_command(tmp_path / "50%done", {}, array=False)
    assert command[-1].endswith("/50%%done/logs/%j_batch.out")


def test_signs_of_slurm_without_commands_are_an_error():
    with pytest.raises(NotReadyError, match="SLURM_CONF"):
        commands.is_available({"PATH": "/nowhere", "SLURM_CONF": "/etc/slurm.conf"})


def test_no_sign_of_slurm_is_no_error(monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    assert commands.is_available({"PATH": "/nowhere"}) is False


def test_submitit_sends_the_text_as_it_is_and_pickles_nothing(stand_in, tmp_path):
    """Holds submitit's private API to the use made of it."""
    stand_in(
        "sbatch", f'cp "${{@: -1}}" {tmp_path}/seen; echo "$@" > {tmp_path}/arguments; echo Submitted batch job 4711'
    )
    script = "#!/bin/bash\necho 'as it is'  \n"
    job_id = sbatch.submit("r", tmp_path / "run", "/w", script, tasks=4, array=False)
    assert job_id == "4711"
    assert (tmp_path / "seen").read_text() == script
    assert "--output=" in (tmp_path / "arguments").read_text()
    assert not list((tmp_path / "run").rglob("*.pkl"))


def test_a_refusal_is_told_in_sbatch_s_words(stand_in, tmp_path):
    stand_in("sbatch", "echo 'sbatch: error: invalid partition specified: gpu2' >&2; exit 1")
    with pytest.raises(SubmitError) as caught:
        sbatch.submit("r", tmp_path / "run", "/w", "#!/bin/bash\n", tasks=1, array=False)
    assert caught.value.message == "sbatch: invalid partition specified: gpu2"
    assert caught.value.hint.startswith("sinfo")


def test_a_submission_without_an_answer_is_looked_for_before_it_is_given_up(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(sbatch, "RETRY_DELAYS_S", (0.0,))
    stand_in("sbatch", "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv' >&2; exit 1")
    stand_in("squeue", r"printf '55\x1f/w\x1fhpcdist:r\n'")
    assert sbatch.submit("r", tmp_path / "run", "/w", "#!/bin/bash\n", tasks=1, array=False) == "55"
    stand_in("squeue", r"printf '55\x1f/elsewhere\x1fhpcdist:r\n'")
    with pytest.raises(SubmitError, match="not known whether the job exists") as caught:
        sbatch.submit("r", tmp_path / "run", "/w", "#!/bin/bash\n", tasks=1, array=False)
    assert "--run r" in caught.value.hint


def test_a_job_that_left_the_queue_is_told_by_accounting(stand_in):
    stand_in("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    stand_in("sacct", r"printf '9\x1fCANCELLED by 1000\x1f0:15\x1f12\x1fn1\x1fNone\x1fa|b\n'")
    (status,) = queue.query(["9"])["9"]
    assert (status.state, status.signal, status.exit_code, status.elapsed_s) == ("CANCELLED", 15, None, 12.0)
    assert status.name == "a|b"


def test_an_array_that_accounting_shows_as_one_finished_job_is_not_believed(stand_in):
    """Seen on Slurm 22.05 for a moment after an array's last task began to end."""
    stand_in(
        "squeue", r"printf '9_0\x1fCOMPLETED\x1fNone\x1f0:01\x1fn1\x1fa\n9_1\x1fRUNNING\x1fNone\x1f0:01\x1fn1\x1fa\n'"
    )
    stand_in("sacct", r"printf '9\x1fCOMPLETED\x1f0:0\x1f1\x1fn1\x1fNone\x1fa\n'")
    assert {status.state for status in queue.query(["9"])["9"]} == {"COMPLETED", "RUNNING"}


@pytest.mark.parametrize("last", ["RUNNING", "COMPLETED"])
def test_a_task_that_left_the_queue_before_the_others_still_counts(stand_in, last):
    """Slurm forgets a task MinJobAge after its end (five minutes), while the array's others wait or run."""
    stand_in("squeue", rf"printf '9_10\x1f{last}\x1fNone\x1f9:01\x1fn1\x1fa\n'")
    row = r"\x1f1\x1fn1\x1fNone\x1fa\n"
    stand_in("sacct", rf"printf '9_10\x1f{last}\x1f0:0{row}9_[2-3]\x1fCANCELLED\x1f0:0{row}9_1\x1fFAILED\x1f3:0{row}'")
    states = {"9_1": "FAILED", "9_2": "CANCELLED", "9_3": "CANCELLED", "9_10": last}
    assert {status.job_id: status.state for status in queue.query(["9"])["9"]} == states
    assert [status.job_id for status in queue.query(["9"])["9"]] == list(states)
    assert [status.job_id for status in queue.query(["9_[1-3]"])["9_[1-3]"]] == ["9_1", "9_2", "9_3"]
    assert queue.query(["9_1"])["9_1"][0].exit_code == 3


def test_accounting_is_not_asked_about_a_job_that_lives(stand_in, tmp_path):
    stand_in("squeue", r"printf '9\x1fRUNNING\x1fNone\x1f9:01\x1fn1\x1fa\n'")
    stand_in("sacct", f"touch {tmp_path}/asked")
    stand_in("scontrol", f"touch {tmp_path}/asked")
    assert [status.state for status in queue.query(["9"])["9"]] == ["RUNNING"]
    assert not (tmp_path / "asked").exists()


FORGOTTEN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"


def test_a_job_that_the_controller_forgot_and_accounting_has_for_ever_is_lost(stand_in):
    """Seen on Slurm 22.05: a controller that is killed within seconds of the submission comes back without the job."""
    stand_in("squeue", FORGOTTEN)
    stand_in("scontrol", FORGOTTEN)
    stand_in("sacct", r"printf '9\x1fPENDING\x1f0:0\x1f364\x1fNone assigned\x1fNone\x1fa\n'")
    (status,) = queue.query(["9"])["9"]
    assert (status.state, status.is_over) == ("LOST", True)
    assert "accounting has it as PENDING" in status.reason


def test_a_job_that_a_silent_controller_may_know_is_not_lost(stand_in):
    stand_in("squeue", FORGOTTEN)
    stand_in("scontrol", "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
    stand_in("sacct", r"printf '9\x1fRUNNING\x1f0:0\x1f12\x1fn1\x1fNone\x1fa\n'")
    assert [status.state for status in queue.query(["9"])["9"]] == ["RUNNING"]


def test_tasks_that_the_controller_forgot_are_lost_and_the_others_keep_their_end(stand_in):
    stand_in("squeue", FORGOTTEN)
    stand_in("scontrol", FORGOTTEN)
    row = r"\x1f0:0\x1f12\x1fn1\x1fNone\x1fa\n"
    stand_in("sacct", rf"printf '9_0\x1fCOMPLETED{row}9_1\x1fRUNNING{row}'")
    assert [status.state for status in queue.query(["9"])["9"]] == ["COMPLETED", "LOST"]
    told = queue.query(["9_0", "9_1", "9_2"])
    states = {name: status.state for name, (status,) in told.items()}
    assert states == {"9_0": "COMPLETED", "9_1": "LOST", "9_2": "UNKNOWN"}


def test_a_job_nobody_knows_is_unknown(stand_in):
    stand_in("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    stand_in("sacct", "exit 0")
    (status,) = queue.query(["9"])["9"]
    assert status.state == "UNKNOWN"


def test_the_states_that_end_a_job_are_words_of_slurm():
    assert all(re.fullmatch("[A-Z_]+", state) for state in ENDED_STATES)
    assert not ENDED_STATES & {"PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "CONFIGURING"}


@pytest.mark.parametrize(
    "name",
    ["two\\nlines", "a\\x1eb", "a\\x1cb", "a\\x1fb", "\\n9\\x1fFAKE", "\\n", "\\n\\x1f\\x1f\\x1f\\x1f\\x1f\\x1f"],
)
def test_no_name_confuses_the_queue_or_accounting(stand_in, name):
    stand_in("squeue", rf"printf '9\x1fRUNNING\x1fNone\x1f1-02:03:04\x1fn1\x1f{name}\n'")
    (status,) = queue.query(["9"])["9"]
    assert (status.state, status.elapsed_s, status.nodes) == ("RUNNING", 93784.0, "n1")
    stand_in("squeue", "exit 0")
    stand_in("sacct", rf"printf '9\x1fFAILED\x1f3:0\x1f12\x1fn1\x1fNone\x1f{name}\n'")
    (status,) = queue.query(["9"])["9"]
    assert (status.state, status.exit_code, status.elapsed_s) == ("FAILED", 3, 12.0)


@pytest.mark.parametrize("elapsed", ["", "INVALID", "1-2", "0:00"])
def test_an_elapsed_time_that_is_none_is_unknown(stand_in, elapsed):
    stand_in("squeue", rf"printf '9\x1fPENDING\x1fPriority\x1f{elapsed}\x1f\x1fa\n'")
    (status,) = queue.query(["9"])["9"]
    assert status.elapsed_s == (0 if elapsed == "0:00" else None)
    stand_in("squeue", "exit 0")
    stand_in("scontrol", f"echo 'JobId=9 JobName=a JobState=COMPLETED Reason=None RunTime={elapsed} ExitCode=0:0'")
    (status,) = queue.query(["9"])["9"]
    assert (status.state, status.exit_code) == ("COMPLETED", 0)


def test_a_name_with_line_breaks_does_not_split_what_the_controller_says(stand_in):
    stand_in("squeue", "exit 0")
    stand_in("scontrol", r"printf 'JobId=9 JobName=a\nb\x1cc JobState=FAILED Reason=x RunTime=00:01:00 ExitCode=2:0\n'")
    (status,) = queue.query(["9"])["9"]
    assert (status.job_id, status.state, status.exit_code, status.elapsed_s) == ("9", "FAILED", 2, 60.0)


def test_a_comment_or_folder_with_line_breaks_hides_no_run(stand_in):
    stand_in("squeue", r"printf '54\x1f/v\nx\x1fother\n55\x1f/w\x1f\x1chpcdist:r two\nlines\n'")
    assert sbatch.find_by_run("r", "/w") == "55"
    stand_in("squeue", r"printf 'x\x1f/w\x1fhpcdist:r\n'")
    stand_in("sacct", r"printf '56_3\x1f/w\x1fhpcdist:r\n'")
    assert sbatch.find_by_run("r", "/w") == "56"


def test_usage_of_running_steps_is_read_as_far_as_it_is_allowed(stand_in):
    stand_in("sstat", "echo '7.0|1|5|00:00:01|'; echo 'sstat: error: problem getting step_layout' >&2; exit 1")
    assert commands.read_live(["--jobs=7"]) == "7.0|1|5|00:00:01|\n"


def test_without_sstat_nothing_is_known(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert commands.read_live(["--jobs=7"]) == ""


def test_where_srun_itself_fails_nothing_is_known_of_its_options(stand_in):
    stand_in("srun", "echo 'srun: fatal: Could not establish a configuration source' >&2; exit 1")
    sbatch.check_srun({"label": ""})


def test_where_there_is_no_srun_nothing_is_known_of_its_options(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sbatch.check_srun({"label": ""})
