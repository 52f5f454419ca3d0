"""What `hpcdist study` shows while a study is sent, runs here, or is waited for. All of it on standard error."""

import time
from collections.abc import Mapping, Sequence

import click

from hpcdist.cli.following import OneLine, describe, warn_of_exposed_secret, warn_of_missing_data
from hpcdist.jobs.status import pause_s
from hpcdist.records.job import JobStatus, Progress
from hpcdist.studies.batches import Batch
from hpcdist.studies.run import Watch
from hpcdist.studies.state import StudyState
from hpcdist.studies.study import Trial
from hpcdist.studies.trials import NOT_SUBMITTED, query_trials
from hpcdist.submission.prepare import PreparedJob

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
