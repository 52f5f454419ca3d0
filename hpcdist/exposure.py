"""What of a job gives a secret away: the words that a script and `job.json` hold as they are."""

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise

from hpcdist.privacy import is_secret
from hpcdist.spec import JobSpec
from hpcdist.text import underscored

# How well-known keys begin: Hugging Face, GitHub, OpenAI and Anthropic, AWS, Slack, GitLab, Google.
KEY = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{12,}"
    r"|xox[abpr]-[A-Za-z0-9-]{10,}|glpat-[\w-]{16,}|AIza[\w-]{30,})"
)
# What stands for a value that a person is to fill in, and what is a file and no key.
_NO_VALUE = re.compile(
    r"(?i)(<.*>|x{3,}|\*+|\.{3,}|your[-_ ].*|.*(_here|changeme)|todo|none|null|true|false|0|1|)|[~/.].*"
)
# A part of a text, and where a secret is kept.
_NO_SECRET = re.compile(
    r"(?i)(^|_)(max|num|n|pad|eos|bos|mask|special|image|per|new|min)_([a-z]+_)*tokens?(_|$)|tokenizer|_(file|path)$"
)
WANDB_KEY = re.compile("[0-9a-f]{20,}")
_NAME = re.compile(r"[\w.+-]+")
_SHELL = re.compile(r"(.*/)?(ba|da|k|z)?sh")


def is_value(text: str) -> bool:
    """Whether a text may be a secret: it is no placeholder, switch or path, and not taken from elsewhere (`$NAME`)."""
    return _NO_VALUE.fullmatch(text) is None and not text.startswith(("$", "`"))


def names_secret(name: str) -> bool:
    """Whether an option or variable such as `--api-key` is for a secret; `--eos-token` and `--token-file` are not."""
    plain = underscored(name.lstrip("-")).replace(".", "_")
    return _NAME.fullmatch(name) is not None and is_secret(plain) and _NO_SECRET.search(plain) is None


def find_exposed(job: JobSpec) -> str | None:
    """The first thing in a job that gives away a secret, such as `the value of --token`, never the value itself."""
    return next(_exposures(job), None)


def _exposures(job: JobSpec) -> Iterator[str]:
    for words in (job.command, *job.tasks):
        yield from _in_words(words)
    for line in job.setup:
        yield from _in_words(_split(line))
    for table in (job.sbatch, job.srun):
        for option, value in table.items():
            yield from _in_words((f"--{option}", *value.split(",")))


def _in_words(words: Sequence[str]) -> Iterator[str]:
    for before, word in pairwise(("", *words)):
        name, equals, value = word.partition("=")
        if equals and names_secret(name) and is_value(value):
            yield f"the value of {name}"
        elif before.startswith("--") and names_secret(before) and not word.startswith("-") and is_value(word):
            yield f"the value of {before}"
        elif found := KEY.search(word):
            yield f"what looks like a key ({found[0][:3]}…)"
    for program, option, word in zip(words, words[1:], words[2:], strict=False):
        if _SHELL.fullmatch(program) and re.fullmatch("-[a-z]*c", option):
            yield from _in_words(_split(word))
        elif (program, option) == ("wandb", "login") and WANDB_KEY.fullmatch(word):
            yield "the key of wandb login"


def _split(line: str) -> list[str]:
    """The words of a shell line; of one that is none, what its blanks part."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()
