"""submitit executors whose script is a rendered one.

submitit 1.5.4 sends a command through `_submit_command`: it writes the text of `_make_submission_file_text`, runs
`_make_submission_command` and returns a tracked job. Nothing is pickled and nothing of submitit runs inside the
job. All of this is private API: the version is pinned and tests/cluster/test_submit.py holds it to this use.
"""

import contextlib
import io
import shlex
import sys
from pathlib import Path

from submitit import LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from hpcdist.errors import SubmitError
from hpcdist.slurm.refusal import find_hint

# submitit ends a local job after this; our own supervisor keeps the run's time limit.
_NEVER_MIN = 60 * 24 * 365


class RenderedSlurmExecutor(SlurmExecutor):
    """Submits one rendered script with sbatch."""

    def __init__(self, folder: Path, script: str, sbatch: list[str], tasks: int) -> None:
        super().__init__(folder)
        self._script = script
        self._sbatch = sbatch
        self._tasks = tasks

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._script

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return [*self._sbatch, str(submission_file_path)]

    def _num_tasks(self) -> int:
        return self._tasks


def submit_slurm(folder: Path, script: str, sbatch: list[str], tasks: int) -> str:
    """Send a script's text to Slurm through submitit; return the Slurm job id.

    Args:
        folder: Where submitit keeps its copy and finds the tasks' logs.
        sbatch: The sbatch command with its options, without the script.
        tasks: Ranks in all.

    Raises:
        SubmitError: sbatch refused; the message has its own words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # submitit copies what sbatch says to standard error; it is in the exception as well.
        with contextlib.redirect_stderr(io.StringIO()):
            return str(RenderedSlurmExecutor(folder, script, sbatch, tasks)._submit_command("").job_id)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in str(error).splitlines()]
        words = "; ".join(dict.fromkeys(line for line in lines if line.strip()))
        raise SubmitError(f"sbatch: {words}", find_hint(words)) from None


def start_local(run_dir: Path) -> None:
    """Start a run's supervisor through submitit's local executor. The caller's process should end soon after."""
    executor = LocalExecutor(run_dir / "submitit")
    executor.update_parameters(tasks_per_node=1, timeout_min=_NEVER_MIN, stderr_to_stdout=True)
    executor._submit_command(shlex.join([sys.executable, "-m", "hpcdist.launcher.local", str(run_dir)]))


if __name__ == "__main__":
    start_local(Path(sys.argv[1]))
