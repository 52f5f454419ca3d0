"""Rules about what should not be in a script: secrets, and node-local folders for shared data."""

import re
from collections.abc import Iterator, Sequence

from hpcdist.config.secrets import KEY, WANDB_KEY, is_secret, is_value, names_secret
from hpcdist.lint.bash import Word
from hpcdist.lint.launches import Launch
from hpcdist.lint.rule import LintContext, Match, rule
from hpcdist.lint.script import Script

_LOCAL_FOLDER = re.compile(r"(?:^|[=:,])(?:file://)?(/(?:tmp|var/tmp|dev/shm)(?:/[^:,]*)?)(?=$|[:,])")
_SCRATCH = re.compile(r"tmp|temp|cache|scratch|socket|bind|sock|local|\B-B\b", re.IGNORECASE)
_COPIERS = ("cp", "rsync", "tar", "unzip", "wget", "curl", "mv", "scp")


@rule(
    "secret",
    "error",
    why="Slurm keeps the script, and everybody who sees it or its repository has the key.",
    fix="Take it out and revoke it; read it from a file with mode 600: export NAME=$(cat ~/.secrets/name).",
    source="Slurm's accounting keeps batch scripts (slurm.conf(5), AccountingStoreFlags=job_script)",
)
def secret(script: Script, _: LintContext) -> Iterator[Match]:
    """A key, token or password as it is."""
    seen: set[int] = set()
    for assignment in script.shell.assignments:
        value = assignment.value
        if value and value.is_static and _is_value(value.text) and is_secret(assignment.name):
            seen |= set(range(assignment.start, assignment.end))
            yield Match(assignment.start, f"the value of {assignment.name} stands in the script")
    for launch in script.launches:
        for at, word in enumerate(launch.last.words if not launch.inside else ()):
            name = _secret_option(launch, at, word)
            if name and word.start not in seen:
                seen.add(word.start)
                yield Match(word.start, f"the value of {name} stands in the script")
    for found in re.finditer(KEY, script.data.decode("latin-1")):
        start = found.start()
        line = script.line_start(start)
        if not any(line <= place < script.line_end(start) for place in seen):
            yield Match(start, f"this looks like a key ({found[0][:3]}…)")


def _is_value(text: str) -> bool:
    return len(text) >= 6 and is_value(text)


def _secret_option(launch: Launch, at: int, word: Word) -> str:
    """The option whose value is a secret that the word holds; empty for none."""
    words = launch.last.words
    name, equals, value = word.text.partition("=")
    if launch.last.name == "wandb" and at and words[0].text == "login" and re.fullmatch(WANDB_KEY, word.text):
        return "wandb login"
    if not name.startswith("--") or not names_secret(name):
        return ""
    if equals:
        return name if word.is_static and _is_value(value) else ""
    following = words[at + 1] if at + 1 < len(words) else None
    plain_value = following and following.is_static and not following.text.startswith("-") and _is_value(following.text)
    return name if plain_value else ""


@rule(
    "shared-tmp",
    "warning",
    why="Each node has a /tmp of its own: what one node writes there the others do not see.",
    fix="Use a folder on the shared file system, or let each node fetch its copy: srun --ntasks-per-node=1 cp ….",
    source="sbcast(1); sbatch(1), DESCRIPTION: the script runs on the first node",
)
def shared_tmp(script: Script, _: LintContext) -> Iterator[Match]:
    """A node's own folder in a job of several nodes."""
    if not script.is_multi_node:
        return
    filled: list[str] = []
    for launch in script.launches:
        srun = launch.find("srun")
        in_step = srun is not None
        if srun is not None and _copies(launch):
            on_all = script.step_request(srun).node_count >= script.request.node_count
            filled += [_folder(word) for word in launch.last.words if on_all and _LOCAL_FOLDER.search(word.text)]
        elif not in_step and not launch.inside and launch.last.name in _COPIERS:
            for word in launch.last.words[-2:]:
                if _LOCAL_FOLDER.search(word.text):
                    yield Match(word.start, f"{launch.last.name} fills {_folder(word)} on the first node alone")
        elif in_step and launch.last.name not in ("mkdir", "rm", "ls", "df"):
            yield from _in_step(launch, filled)


def _copies(launch: Launch) -> bool:
    """Whether it puts files somewhere, as each node's own copy where srun starts it."""
    own = [word.text for word in launch.last.words[:3]] == ["-m", "hpcdist.stage", "copy"]
    return own or launch.last.name in _COPIERS


def _in_step(launch: Launch, filled: Sequence[str]) -> Iterator[Match]:
    """Options with a node's own folder that no step before filled on each node."""
    previous = ""
    for word in launch.last.words:
        option = word.text.partition("=")[0] if "=" in word.text else previous
        previous = word.text if word.text.startswith("-") else ""
        is_local = _LOCAL_FOLDER.search(word.text) and option.startswith("-") and not _SCRATCH.search(option)
        if is_local and not any(f"{_folder(word)}/".startswith(f"{one.rstrip('/')}/") for one in filled):
            yield Match(word.start, f"{option} is {_folder(word)}, on each node another")


def _folder(word: Word) -> str:
    found = _LOCAL_FOLDER.search(word.text)
    return found[1] if found else word.text
