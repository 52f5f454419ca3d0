"""Secrets of the environment: told by their names, handed to a job in its environment alone, masked where printed."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from hpcdist.errors import UsageError
from hpcdist.spec import JobSpec

_WORDS = (
    "TOKEN",
    "SECRET",
    "SECRETS",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
    "API_KEY",
    "APIKEY",
    "ACCESS_KEY",
    "PRIVATE_KEY",
)
# What ends the name of a secret in capitals alone (OPENAI_KEY, DB_PASS): an option such as --image-key takes none.
_ENDINGS = ("KEY", "PAT", "PASS", "PWD")
_NOT_BEFORE = frozenset(
    {*("PRIMARY", "PUBLIC", "FOREIGN", "SORT", "CACHE", "IMAGE", "LABEL", "FIRST", "SECOND", "LAST", "OLD"), "FILE"}
)
# A shorter value may be part of any word, and masking it would spoil the text.
SHORTEST_MASKED = 8
MASK = "***"


def is_secret(name: str, listed: Collection[str] = ()) -> bool:
    """Whether a variable holds a secret: its name has a word like TOKEN (`HF_TOKEN`), or the site lists it."""
    words = f"_{name.upper()}_"
    if name in listed or any(f"_{word}_" in words for word in _WORDS):
        return True
    before, _, last = name.rpartition("_")
    return bool(before) and last in _ENDINGS and before.rpartition("_")[2] not in _NOT_BEFORE


def part_secrets(job: JobSpec, listed: Collection[str]) -> tuple[JobSpec, dict[str, str]]:
    """The job with its secrets by name only, and their values as far as they were given with it.

    Raises:
        UsageError: An array's task has a secret of its own, which would have to stand in the script.
    """
    for name in (name for env in job.task_env for name in env):
        if is_secret(name, listed):
            raise UsageError(f"task_env: {name} is a secret, and the script would hold its value", "keep it in --env")
    values = {name: value for name, value in job.env.items() if is_secret(name, listed)}
    plain = {name: value for name, value in job.env.items() if name not in values}
    names = tuple(sorted({*job.secret_env, *values}))
    return msgspec.structs.replace(job, env=plain, secret_env=names), values


def require_secrets(names: Iterable[str], values: Mapping[str, str]) -> None:
    """Checks that a job will find its secrets.

    Raises:
        UsageError: One was neither given nor is in the environment.
    """
    for name in names:
        if name not in values and name not in os.environ:
            raise UsageError(
                f"the job needs {name}, a secret, which is kept nowhere",
                f"set it first: read -rs {name} && export {name}",
            )


@contextmanager
def exported(values: Mapping[str, str]) -> Iterator[None]:
    """Has the secrets in this process's environment, which Slurm and the local backend hand on to the job.

    Not on a command line, which every user of the machine can see.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def known_secrets(env: Mapping[str, str], listed: Collection[str] = ()) -> list[str]:
    """The values to mask that an environment knows, the longest first."""
    values = {value for name, value in env.items() if is_secret(name, listed) and len(value) >= SHORTEST_MASKED}
    return sorted(values, key=len, reverse=True)


def mask(text: str, values: Iterable[str]) -> str:
    """The text with `***` in place of each value."""
    for value in values:
        text = text.replace(value, MASK)
    return text
