"""What `hpcdist seff` was asked, and sacct started for it. Little is imported here, so that sacct starts at once."""

from typing import NamedTuple

from hpcdist.backends.asking import Answer, ask_jobs, ask_period
from hpcdist.errors import UsageError
from hpcdist.sacct_question import batch_job_ids, check_job_id, expand_job_id
from hpcdist.selection import parse_since, parse_users

DEFAULT_SINCE = "7d"


class Request(NamedTuple):
    """What `hpcdist seff` was asked: its arguments and options as they were typed."""

    jobs: tuple[str, ...] = ()
    study: str | None = None
    since: str | None = None
    user: str | None = None
    state: str | None = None
    text: str | None = None
    sacct_file: str | None = None
    source: str | None = None
    as_table: bool = False
    columns: str | None = None
    sort: str | None = None
    parsable: bool = False
    as_json: bool = False
    jsonl: bool = False
    watch: float | None = None

    @property
    def is_streamed(self) -> bool:
        """Whether each job is printed as it comes and then forgotten."""
        return (self.parsable or self.jsonl) and self.sort is None

    @property
    def is_by_time(self) -> bool:
        """Whether Slurm is asked for the jobs of a time, not for named ones."""
        from_slurm = not (self.jobs or self.study or self.text or self.sacct_file)
        return from_slurm and any(word is not None for word in (self.since, self.user, self.state))

    def check(self) -> None:
        """Finds what contradicts itself before anything is asked.

        Raises:
            UsageError: Options that exclude each other were given.
        """
        places = {"JOB": self.jobs, "--study": self.study, "--text": self.text, "--sacct-file": self.sacct_file}
        given = [name for name, on in places.items() if on]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other", "ask for one of them at a time")
        if given and self.since is not None:
            raise UsageError(f"{given[0]} and --since exclude each other", "leave out one of them")
        if self.jobs and self.user is not None:
            raise UsageError("JOB and --user exclude each other", "leave out one of them")
        if self.study and (self.user is not None or self.source is not None):
            raise UsageError("--study excludes --user and --source", "leave out one of them")
        forms = {"--parsable": self.parsable, "--json": self.as_json, "--jsonl": self.jsonl, "--watch": self.watch}
        chosen = [name for name, on in forms.items() if on]
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(chosen)} exclude each other", "choose one of them")
        if self.watch and (self.text or self.sacct_file):
            raise UsageError(f"{given[0]} and --watch exclude each other", "a file's jobs do not change")


def start(request: Request) -> Answer | None:
    """Starts sacct where the request says all that has to be known for it; None where it does not.

    Raises:
        UsageError: A word of the request can't be used.
        NotReadyError: There is no sacct.
    """
    if (
        not request.is_streamed
        or request.text
        or request.sacct_file
        or request.study
        or request.source in {"seff", "ranks"}
    ):
        return None
    if request.is_by_time:
        return ask(request)
    try:
        ids = [one for token in request.jobs for one in expand_job_id(check_job_id(token))]
    except UsageError:
        return None  # names of runs
    return ask_jobs(next(batch_job_ids(ids))) if ids else None


def ask(request: Request) -> Answer:
    """Asks for the jobs of a time.

    Raises:
        UsageError: The time or the users can't be.
        NotReadyError: There is no sacct.
    """
    users = parse_users(request.user) if request.user is not None else ()
    return ask_period(parse_since(request.since or DEFAULT_SINCE), users)
