"""What is shown while a job or a study runs and when it is over. All of it on standard error."""

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence

import click

from hpcdist import datasets
from hpcdist.cli.output import format_cause, format_efficiency, format_joined, print_json, write_boards
from hpcdist.config.secrets import find_exposed
from hpcdist.datasets import find_dataset, is_folder
from hpcdist.errors import HpcdistError, NotReadyError
from hpcdist.jobs.job import Job
from hpcdist.jobs.status import pause_s
from hpcdist.records.job import JobRecord, JobStatus, Progress
from hpcdist.slurm import sbatch
from hpcdist.studies.batches import Batch
from hpcdist.studies.run import Watch
from hpcdist.studies.state import StudyState
from hpcdist.studies.study import NOT_SUBMITTED, Trial
from hpcdist.studies.trials import query_trials
from hpcdist.submission.prepare import PreparedJob
from hpcdist.text import printable_line

LINE_INTERVAL_S = 10.0


def warn_of_missing_data(prepared: PreparedJob) -> None:
    """Says before the job is sent that its dataset is missing.

    Here that is an error; on a cluster the nodes may have it where this machine does not.

    Raises:
        NotReadyError: The job would run here, and its data is not.
    """
    folder, name = prepared.spec.training.data_dir, prepared.spec.training.data_name
    if prepared.spec.command or folder is None or name is None or datasets.is_present(name, folder):
        return
    if is_folder(name):
        missing, hint = f"{name} has no train/<class>/ and val/<class>/", "name another folder with --data"
    else:
        missing, hint = f"there is no {find_dataset(name).title} in {folder}", datasets.fetch_hint(name, folder)
    if prepared.backend == "local":
        raise NotReadyError(missing, hint)
    click.echo(f"warning: {missing}; unless the nodes have it: {hint}", err=True)


def warn_of_exposed_secret(prepared: PreparedJob) -> None:
    """Says that a secret among the user's words is written down; they are the user's own and stay."""
    if found := find_exposed(prepared.spec):
        click.echo(f"warning: {found} is written into the script and job.json; try --env NAME=VALUE", err=True)


def show_dry_run(prepared: PreparedJob) -> None:
    """The script on standard output, Slurm's estimate on standard error."""
    click.echo(prepared.script, nl=False)
    if prepared.backend == "slurm":
        words = sbatch.test_only(prepared.script)
        sbatch.check_srun(prepared.spec.srun)
        click.echo(words, err=True)


def announce(job: Job, *, as_json: bool) -> None:
    """The job id on standard output, what to do with it on standard error."""
    if as_json:
        print_json(job.run.record())
    else:
        click.echo(job.id)
    click.echo(f"run {job.run.name}; follow it with: hpcdist wait {job.id}", err=True)


class OneLine:
    """One line that is rewritten on a terminal; elsewhere a new line when its key changed or time passed."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.key = ""
        self.text = ""
        self.shown_at = 0.0

    def show(self, text: str, key: str) -> None:
        """Shows a text; `key` says whether it is news."""
        text = printable_line(text)
        now = time.monotonic()
        if self.is_terminal:
            sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()
        elif text != self.text and (key != self.key or now - self.shown_at >= LINE_INTERVAL_S):
            click.echo(text, err=True)
            self.shown_at = now
        self.key, self.text = key, text

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.is_terminal and self.text:
            sys.stderr.write("\r\x1b[K")
        click.echo(printable_line(text), err=True)

    def close(self) -> None:
        """Leaves the last line standing."""
        if self.is_terminal and self.text:
            sys.stderr.write("\n")
        self.text = ""


class ProgressLine(OneLine):
    """Where a job is, on one line."""

    def __call__(self, status: JobStatus, progress: Progress | None) -> None:
        """Shows where the job is."""
        self.show(describe(status, progress), f"{status.state} {status.reason} {progress.epoch if progress else 0}")


def describe(status: JobStatus, progress: Progress | None) -> str:
    """A job's state in one line: the queue's reason, or epoch, step, throughput and accuracy."""
    parts = [f"{status.job_id} {status.state}"]
    if status.state == "PENDING" and status.reason:
        parts.append(f"({status.reason})")
    if status.elapsed_s is not None and status.state != "PENDING":
        parts.append(f"{status.elapsed_s:.0f} s")
    if progress and status.state != "PENDING":
        parts.append(f"epoch {progress.epoch}/{progress.epochs} step {progress.step}/{progress.steps}")
        if progress.images_per_s is not None:
            parts.append(f"{progress.images_per_s:,.0f} images/s")
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.3f}")
        if progress.accuracy is not None:
            parts.append(f"accuracy {progress.accuracy:.2%}")
    return "  ".join(parts)


def follow(job: Job, *, as_json: bool, timeout_s: float | None = None) -> int:
    """Follows a job to its end; returns the exit status: 0 completed, 1 not, 3 not over yet."""
    line = ProgressLine()
    try:
        status = job.wait(line, timeout_s)
    except KeyboardInterrupt:
        line.close()
        click.echo(f"detached; the job goes on. hpcdist wait {job.id} | logs -f {job.id} | cancel {job.id}", err=True)
        return 130
    line.close()
    if not status.is_over:
        click.echo(f"{job.id} is {status.state} still; hpcdist wait {job.id}", err=True)
        return 3
    record = job.record()
    if record.failure:
        click.echo(format_cause(f"{status.job_id} {status.state}", record.failure), err=True)
    if as_json:
        print_json(record)
    else:
        show_result(job, record)
    return 0 if status.state == "COMPLETED" else 1


def show_result(job: Job, record: JobRecord) -> None:
    """The efficiency table, the accuracy, where the time went and the line to open TensorBoard."""
    if record.efficiency is None:
        try:
            job.efficiency()  # for its error: the record only knows that there was one
        except (NotReadyError, HpcdistError) as error:
            click.echo(f"no efficiency: {error.message}", err=True)
    else:
        click.echo(format_efficiency(record.efficiency, record.ranks), err=True)
    if block := format_joined(record):
        click.echo(block, err=True)
    write_boards(job, record.efficiency, record)
    click.echo(f"tensorboard --logdir {job.run.root / 'tb_logs'}", err=True)


POLL_INTERVAL_S = 2.0
# Sending that is over sooner needs no line.
QUICK_S = 2.0


class RunWatch(Watch):
    """Progress of `study run`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.line = OneLine()
        self.began_at = time.monotonic()
        self.done: dict[tuple[str, int], str] = {}

    def prepared(self, prepared: Sequence[PreparedJob]) -> None:
        """Says before anything is sent what is amiss with it, each thing once."""
        seen: set[object] = set()
        for one in prepared:
            data = (one.spec.training.data_dir, one.spec.training.data_name)
            if data not in seen:
                seen.add(data)
                warn_of_missing_data(one)
            if one.spec.command not in seen:
                seen.add(one.spec.command)
                warn_of_exposed_secret(one)
            if one.note and one.note not in seen:
                seen.add(one.note)
                click.echo(one.note, err=True)

    def sent(self, batch: Batch, done: int, total: int, refusal: str | None) -> None:
        """Counts what was sent."""
        if refusal:
            first = batch.trials[0].variant
            self.line.say(f"error: {first}{' and others' if len(batch.trials) > 1 else ''} was refused: {refusal}")
        elif time.monotonic() - self.began_at > QUICK_S:
            self.line.show(f"{self.name}: sent {done} of {total} jobs", "sending")

    def running(self, trial: Trial, done: int, total: int, status: JobStatus, progress: Progress | None) -> None:
        """Shows the trial that runs here."""
        what = f"{trial.variant}, repeat {trial.repeat} ({done + 1} of {total})"
        self.line.show(f"{what}: {describe(status, progress)}", f"{what} {status.state}")

    def close(self) -> None:
        """Leaves the last line standing."""
        self.line.close()


def count_states(statuses: Sequence[tuple[Trial, JobStatus]]) -> dict[str, int]:
    """How many trials are done, running, pending, failed and not submitted."""
    counts = dict.fromkeys(("trials", "done", "running", "pending", "failed", "not_submitted"), 0)
    for _, status in statuses:
        counts["trials"] += 1
        counts[_word(status)] += 1
    return counts


def _word(status: JobStatus) -> str:
    if status.is_over:
        return "done" if status.state == "COMPLETED" else "failed"
    if status.state in (NOT_SUBMITTED, "UNKNOWN"):
        return "not_submitted" if status.state == NOT_SUBMITTED else "pending"
    return "pending" if status.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD") else "running"


def describe_counts(counts: Mapping[str, int]) -> str:
    """`12 trials: 3 done, 1 running, 8 pending`."""
    told = [f"{count} {word.replace('_', ' ')}" for word, count in counts.items() if count and word != "trials"]
    return f"{counts['trials']} trials: {', '.join(told)}"


def wait_for(state: StudyState) -> list[tuple[Trial, JobStatus]]:
    """Follows a study's jobs to their end, in accounting too; Ctrl-C leaves them running."""
    began, line, over = time.monotonic(), OneLine(), False
    try:
        while True:
            statuses = query_trials(state, settled=over)
            counts = count_states(statuses)
            text = f"{state.study.name}: {describe_counts(counts)}"
            line.show(text, text)
            seemed_over, over = over, not counts["running"] and not counts["pending"]
            if over and seemed_over:
                return statuses
            if not over:
                time.sleep(pause_s(time.monotonic() - began, POLL_INTERVAL_S))
    except KeyboardInterrupt:
        line.close()
        name = state.study.name
        click.echo(f"detached; the jobs go on. hpcdist study status {name} | cancel {name}", err=True)
        raise click.exceptions.Exit(130) from None
    finally:
        line.close()
