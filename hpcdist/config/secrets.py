"""Secrets: told by their names, handed to a job in its environment alone, masked where printed."""

import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import msgspec

from hpcdist.config.job import JobSpec
from hpcdist.errors import UsageError
from hpcdist.text import underscored

_WORDS = re.compile(r"_(TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_KEY|APIKEY|ACCESS_KEY|PRIVATE_KEY)_")
# What ends the name of a secret in capitals alone (OPENAI_KEY, DB_PASS): an option such as --image-key takes none.
_ENDINGS = ("KEY", "PAT", "PASS", "PWD")
_NOT_BEFORE = frozenset(
    {*("PRIMARY", "PUBLIC", "FOREIGN", "SORT", "CACHE", "IMAGE", "LABEL", "FIRST", "SECOND", "LAST", "OLD"), "FILE"}
)
# A shorter value may be part of any word, and masking it would spoil the text.
SHORTEST_MASKED = 8
MASK = "***"


def is_secret(name: str, listed: Collection[str] = ()) -> bool:
    """Return whether a variable holds a secret: its name has a word like TOKEN (`HF_TOKEN`), or the site lists it."""
    if name in listed or _WORDS.search(f"_{name.upper()}_"):
        return True
    before, _, last = name.rpartition("_")
    return bool(before) and last in _ENDINGS and before.rpartition("_")[2] not in _NOT_BEFORE


def part_secrets(job: JobSpec, listed: Collection[str]) -> tuple[JobSpec, dict[str, str]]:
    """Return the job with its secrets by name only, and their values as far as they were given with it.

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
    """Check that a job will find its secrets.

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
    """Export the secrets into this process's environment, which Slurm and the local backend hand on to the job.

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
    """Return the values to mask that an environment knows, the longest first."""
    values = {value for name, value in env.items() if is_secret(name, listed) and len(value) >= SHORTEST_MASKED}
    return sorted(values, key=len, reverse=True)


def mask(text: str, values: Iterable[str]) -> str:
    """Return the text with `***` in place of each value."""
    for value in values:
        text = text.replace(value, MASK)
    return text


# How well-known keys begin: Hugging Face, GitHub, OpenAI and Anthropic, AWS, Slack, GitLab, Google. Texts, as the
# others here: a render imports this module and needs none of them, and to compile them takes longer than the import.
KEY = (
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{12,}"
    r"|xox[abpr]-[A-Za-z0-9-]{10,}|glpat-[\w-]{16,}|AIza[\w-]{30,})"
)
# What stands for a value that a person is to fill in, and what is a file and no key.
_NO_VALUE = r"(?i)(<.*>|x{3,}|\*+|\.{3,}|your[-_ ].*|.*(_here|changeme)|todo|none|null|true|false|0|1|)|[~/.].*"
# Names of a part of a text, or of where a secret is kept.
_HARMLESS = (
    r"(?i)(^|_)(max|num|n|pad|eos|bos|mask|special|image|per|new|min)_([a-z]+_)*tokens?(_|$)|tokenizer|_(file|path)$"
)
WANDB_KEY = "[0-9a-f]{20,}"
_NAME = r"[\w.+-]+"
_SHELL = r"(.*/)?(ba|da|k|z)?sh"


def is_value(text: str) -> bool:
    """Return whether a text may be a secret: no placeholder, switch or path, and not from elsewhere (`$NAME`)."""
    return re.fullmatch(_NO_VALUE, text) is None and not text.startswith(("$", "`"))


def names_secret(name: str) -> bool:
    """Return whether an option or variable is for a secret: `--api-key` is; `--eos-token`, `--token-file` are not."""
    plain = underscored(name.lstrip("-")).replace(".", "_")
    return re.fullmatch(_NAME, name) is not None and is_secret(plain) and re.search(_HARMLESS, plain) is None


def find_exposed(job: JobSpec) -> str | None:
    """Return the first thing in a job that gives a secret away, such as `the value of --token`, never the value."""
    lines = (_split(line) for line in job.setup)
    options = (
        (f"--{option}", *value.split(",")) for table in (job.sbatch, job.srun) for option, value in table.items()
    )
    return next((told for words in (job.command, *job.tasks, *lines, *options) for told in _in_words(words)), None)


def _in_words(words: Sequence[str]) -> Iterator[str]:
    for before, word in pairwise(("", *words)):
        name, equals, value = word.partition("=")
        if equals and names_secret(name) and is_value(value):
            yield f"the value of {name}"
        elif before.startswith("--") and names_secret(before) and not word.startswith("-") and is_value(word):
            yield f"the value of {before}"
        elif found := re.search(KEY, word):
            yield f"what looks like a key ({found[0][:3]}…)"
    for program, option, word in zip(words, words[1:], words[2:], strict=False):
        if re.fullmatch(_SHELL, program) and re.fullmatch("-[a-z]*c", option):
            yield from _in_words(_split(word))
        elif (program, option) == ("wandb", "login") and re.fullmatch(WANDB_KEY, word):
            yield "the key of wandb login"


def _split(line: str) -> list[str]:
    """Return the words of a shell line; of one that is none, what its blanks part."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()
