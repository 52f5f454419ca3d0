"""`jobs/runs/<run>/`: what each run was asked to be, and what it left."""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, TypeVar

import msgspec

from hpcdist.config.job import RUN_NAME, Backend, JobSpec, check_run_name
from hpcdist.config.site import Site
from hpcdist.errors import HpcdistError, NotFoundError, UsageError
from hpcdist.files import lock_file, write_atomically
from hpcdist.records.job import Progress, split_task
from hpcdist.records.ranks import RankUsage
from hpcdist.records.usage_curve import UsageCurve


class Counter:
    """The last number that was given, in a file. Its methods raise OSError where the disk is full or not writable."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, find_last: Callable[[], int]) -> int:
        """Return the next number, never given twice.

        Args:
            find_last: Tells the last one given where the file is lost or damaged.
        """
        with self._locked() as file:
            last = _parse(file.read())
            number = (find_last() if last is None else last) + 1
            _write(file, number)
        return number

    def last(self) -> int | None:
        """Return the last number given; None where nobody wrote a readable one down."""
        try:
            return _parse(self._path.read_text(errors="replace"))
        except OSError:
            return None

    def raise_to(self, number: int) -> None:
        """Have the next number come after this one."""
        with self._locked() as file:
            _write(file, max(number, _parse(file.read()) or 0))

    @contextmanager
    def _locked(self) -> Iterator[IO[str]]:
        with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+", errors="replace") as file:
            lock_file(file.fileno())
            yield file


def _parse(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def _write(file: IO[str], number: int) -> None:
    file.seek(0)
    file.write(f"{number}\n")
    file.truncate()
    file.flush()
    os.fsync(file.fileno())


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`job.json`: what a run is.

    Unknown fields are ignored when read, so that an older hpcdist reads a newer one's files.

    Attributes:
        run: The run's name.
        job: What was asked for.
        site: The site's settings at that time.
        backend: Where it was sent.
        cluster: Slurm's cluster name; None for a local run, or before it was submitted.
        job_id: Slurm job id or `local-N`; None until the job is known to exist.
        refused: Slurm's words when it refused the job.
        workdir: Folder the command starts in.
        python: Interpreter that starts in the job; None in records of hpcdist before 0.2.
        template: Template file that was given in place of the layout's own; None without one.
        rerun_of: Run that this one repeats; None of a first one.
        study: Study that it is of; None of any other run.
        created_at_s: Seconds since the epoch.
        git_commit: Commit of the working folder, with `+changes` when it had any; None outside a checkout.
        versions: Versions of Python, hpcdist, torch and the like.
        slurm_version: Slurm's release.
    """

    run: str
    job: JobSpec
    site: Site
    backend: Backend
    cluster: str | None = None
    job_id: str | None = None
    refused: str | None = None
    workdir: str
    python: str | None = None
    template: str | None = None
    rerun_of: str | None = None
    study: str | None = None
    created_at_s: float
    git_commit: str | None = None
    versions: dict[str, str] = {}
    slurm_version: str | None = None


def state_file(node_rank: int) -> str:
    """Return the name of the file with the state of a node of a local run: each machine on a shared folder has one."""
    return f"local.{node_rank}.json" if node_rank else "local.json"


class LocalState(msgspec.Struct, frozen=True, kw_only=True):
    """`local.json`: the process that supervises a local run.

    Attributes:
        host: Host name of the machine it runs on.
        boot_id: That machine's boot id, so that a process id of an earlier boot is never taken for it.
        pid: Its process id.
        pid_started: Its start time in clock ticks since boot (proc(5), field 22).
        state: Slurm's word for where it is.
        started_at_s: Start, seconds since the epoch.
        ended_at_s: End, seconds since the epoch.
        exit_code: The run's exit status.
        gpus: GPUs given to it.
    """

    host: str
    boot_id: str
    pid: int
    pid_started: int
    state: Literal["RUNNING", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"]
    started_at_s: float
    ended_at_s: float | None = None
    exit_code: int | None = None
    gpus: int = 0


T = TypeVar("T")

VISIBLE_INTERVAL_S = 0.25
# So long a shared disk may not show what a node wrote.
RANKS_LAG_S = 5.0


class Run:
    """The folder `path` under `jobs/runs/`, which has the run's name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def record(self) -> RunRecord:
        """Return the run's `job.json`.

        Raises:
            NotFoundError: There is none (the script was submitted by hand, or the folder is damaged).
        """
        try:
            return msgspec.json.decode((self.path / "job.json").read_bytes(), type=RunRecord)
        except FileNotFoundError:
            raise NotFoundError(f"{self.path} has no job.json", "it was not submitted through hpcdist") from None
        except msgspec.MsgspecError as error:
            raise HpcdistError(f"{self.path / 'job.json'}: {error}", "move the folder away") from None

    def write_record(self, record: RunRecord) -> None:
        """Replace `job.json`."""
        self.write("job.json", record)

    def write(self, name: str, value: msgspec.Struct) -> None:
        """Write a value as JSON into the run's folder."""
        write_atomically(self.path / name, msgspec.json.format(msgspec.json.encode(value)) + b"\n")

    @property
    def root(self) -> Path:
        """The project's folder, which has the run's in `jobs/runs`."""
        return self.path.parents[2]

    @property
    def script(self) -> Path:
        """The exact bytes sent."""
        return self.path / "script.sbatch"

    @property
    def logs(self) -> Path:
        """Folder of the logs."""
        return self.path / "logs"

    def task(self, array_task: str | None) -> "Run":
        """Return the folder of an array's task, or the run itself."""
        return Run(self.path / array_task) if array_task is not None else self

    @property
    def job_id(self) -> str | None:
        """The job's id, without an array task; of a script submitted by hand it comes from what its ranks wrote."""
        record = read_json(self.path / "job.json", _JobId)
        if record is not None:
            return record.job_id
        ranks = self.ranks() or [usage for path in self.path.glob("[0-9]*/") for usage in Run(path).ranks()]
        return split_task(ranks[0].job_id)[0] or None if ranks else None

    @property
    def is_local(self) -> bool:
        """Whether the run was sent to this machine, not to Slurm."""
        record = read_json(self.path / "job.json", _JobId)
        return record is not None and record.backend == "local"

    def ranks(self) -> list[RankUsage]:
        """Return what each rank wrote, by rank; those that wrote nothing readable are missing."""
        found = [read_json(path, RankUsage) for path in self.path.glob("ranks/*.json") if path.stem.isdigit()]
        return sorted((usage for usage in found if usage is not None), key=lambda usage: usage.rank)

    def curves(self) -> list[UsageCurve]:
        """Return what each rank used over time, by rank; those that wrote nothing readable are missing."""
        found = [read_json(path, UsageCurve) for path in self.path.glob("curves/*.json")]
        return sorted((curve for curve in found if curve is not None), key=lambda curve: curve.rank)

    def progress(self) -> Progress | None:
        """Return how far the training is, as rank 0 last wrote it."""
        return read_json(self.path / "progress.json", Progress)

    def local_state(self) -> LocalState | None:
        """Return the supervising process of a local run: of several machines' that of the first node that is here."""
        state = read_json(self.path / state_file(0), LocalState)
        if state is not None:
            return state
        others = sorted(self.path.glob("local.*.json"), key=lambda path: (len(path.name), path.name))
        return next((state for path in others if (state := read_json(path, LocalState))), None)

    def wait_for_ranks(self, count: int, timeout_s: float | None = None) -> None:
        """Wait until that many ranks have written how they ended: a shared disk may show a node's file late."""
        deadline = time.monotonic() + (RANKS_LAG_S if timeout_s is None else timeout_s)
        while sum(usage.ended_at_s is not None for usage in self.ranks()) < count and time.monotonic() < deadline:
            time.sleep(VISIBLE_INTERVAL_S)

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[bool]:
        """Hold the run against another process that submits or repairs it.

        Args:
            wait: Whether to wait for such a process.

        Yields:
            Whether the run is held; False only where `wait` is off.

        Raises:
            HpcdistError: The folder is not writable, or gone.
        """
        with _writing(self.path):
            descriptor = os.open(self.path / ".lock", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            with _writing(self.path):
                held = lock_file(descriptor, wait=wait) is not False
            yield held
        finally:
            os.close(descriptor)


class Store:
    """The runs of one project. Methods that write raise HpcdistError where the disk is full or not writable.

    Attributes:
        root: The project's folder.
        runs: Its `jobs/runs`.
        last_local: The N of the last `local-N`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / "jobs" / "runs"
        self.last_local = Counter(self.runs / ".last-local-id")

    def run(self, name: str) -> Run:
        """Return the run of that name, whether it exists or not.

        Raises:
            UsageError: The name can't be a folder's.
        """
        return Run(self.runs / check_run_name(name))

    def claim(self, name: str) -> Run:
        """Make a run's folder, empty; one that is there is left as it is.

        Raises:
            UsageError: The name can't be a folder's.
        """
        run = self.run(name)
        with _writing(run.path):
            self.runs.mkdir(parents=True, exist_ok=True)
            run.path.mkdir(mode=0o700, exist_ok=True)
        return run

    def create(self, record: RunRecord, script: str) -> Run:
        """Make a run's folder with everything that is known before submission."""
        run = self.claim(record.run)
        with _writing(run.path):
            for folder in ("logs", "ranks"):
                (run.path / folder).mkdir(exist_ok=True)
            write_atomically(run.script, script.encode())
            run.write_record(record)
        return run

    def __iter__(self) -> Iterator[Run]:
        """Return all runs, newest first."""
        found = []
        for path in self.runs.glob("*"):
            try:
                if path.is_dir() and RUN_NAME.fullmatch(path.name):
                    found.append((path.stat().st_ctime, path))
            except OSError:
                continue
        found.sort(reverse=True)
        return iter([Run(path) for _, path in found])

    def find(self, token: str) -> tuple[Run, str | None]:
        """Find the run a person means, and the array task (`4` of `123_4`) if they named one.

        Args:
            token: A run's name, a Slurm job id, an array task's id, or `local-N`.

        Raises:
            NotFoundError: No run of this project has that name or id.
            UsageError: Several runs had that job id, on different clusters or at different times.
        """
        if RUN_NAME.fullmatch(token) and (self.runs / token).is_dir():
            return self.run(token), None
        job_id, task = split_task(token)
        matches = [run for run in self if run.job_id in (job_id, token)]
        if len(matches) > 1:
            names = ", ".join(run.name for run in matches)
            raise UsageError(f"job id {token} was given to {len(matches)} runs: {names}", "name the run instead")
        if not matches:
            raise NotFoundError(
                f"no run here is called {token!r}, nor had that job id", "hpcdist status lists the runs"
            )
        return matches[0], task

    def next_local_id(self) -> str:
        """Return a new `local-N`, never given twice in this project, also when several processes ask at once."""
        with _writing(self.runs):
            self.runs.mkdir(parents=True, exist_ok=True)
            return f"local-{self.last_local.take(self.highest_local_number)}"

    def highest_local_number(self) -> int:
        """Return the highest N of the runs' `local-N`; 0 without any."""
        ids = [(run.job_id or "").removeprefix("local-") for run in self if run.is_local]
        return max((int(number) for number in ids if number.isdecimal()), default=0)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an OSError into one that a user can read."""
    try:
        yield
    except OSError as error:
        raise HpcdistError(
            f"can't write {error.filename or path}: {error.strerror}", "free some space or change the folder"
        ) from None


def new_run_name(job: JobSpec) -> str:
    """Return `<name>-<layout>-<random>`."""
    return f"{job.slug}-{job.layout.name}-{secrets.token_hex(3)}"


def read_json(path: Path, kind: type[T]) -> T | None:
    """Return a JSON file as a value; None when it is missing or half-written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None


class _JobId(msgspec.Struct):
    """Only what looking a job id up needs of `job.json`."""

    job_id: str | None = None
    backend: str | None = None
