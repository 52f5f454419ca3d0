"""What `hpcdist seff` was asked."""

from typing import NamedTuple

from hpcdist.errors import UsageError


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
