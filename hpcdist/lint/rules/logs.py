"""Rules about logs and mail: where they go, and what hides or overwrites them."""

import re
from collections.abc import Iterator

from hpcdist.lint.rule import LintContext, Match, insert, rule
from hpcdist.lint.script import Script


@rule(
    "log-dir",
    "warning",
    why="Slurm does not make the log's folder (before 23.02): the job fails at once, or runs without any log.",
    fix="Make the folder before sbatch, or log into the working folder.",
    source="sbatch(1), --output; Slurm 22.05 [run: a missing folder fails the job, exit code 0:53]",
)
def log_dir(script: Script, context: LintContext) -> Iterator[Match]:
    """A folder that is not there, or can't be."""
    if context.makes_log_folders:
        return
    for directive in script.given("output", "error"):
        folder = (directive.value or "").rpartition("/")[0]
        if not folder or "$" in folder or folder.startswith("~") or folder == "/dev":
            continue
        if "%" in folder:
            yield Match(directive.start, f"{folder}/ can't exist before the job does")
        elif context.folder_exists is not None and not context.folder_exists(folder):
            yield Match(
                directive.start, f"there is no folder {folder}", fix=f"Make it before sbatch: mkdir -p {folder}"
            )
        elif context.folder_exists is None and _makes(script, folder):
            message = f"the script makes {folder}/, but the log is opened before it runs"
            yield Match(directive.start, message, fix=f"Make it before sbatch: mkdir -p {folder}")


def _makes(script: Script, folder: str) -> bool:
    return any(
        launch.last.name == "mkdir" and any(word.text.rstrip("/") == folder for word in launch.last.words)
        for launch in script.launches
    )


@rule(
    "array-output",
    "warning",
    why="Every task of the array writes into the same file, and they overwrite each other.",
    fix="Put %A_%a into the name.",
    source="sbatch(1), filename pattern",
)
def array_output(script: Script, _: LintContext) -> Iterator[Match]:
    """An array with one log."""
    if not script.last("array"):
        return
    for name in ("output", "error"):
        directive = script.last(name)
        value = directive.value or "" if directive else ""
        if directive and value != "/dev/null" and not re.search(r"%[0-9]*[ajJ]", value.replace("%%", "")):
            yield Match(directive.start, f"--{name}={value} is the same for each array task")


@rule(
    "requeue-log",
    "warning",
    why="A requeued job opens its log anew, and what the first attempt wrote is lost.",
    fix="Add #SBATCH --open-mode=append.",
    source="sbatch(1), --open-mode; slurm.conf(5), JobFileAppend",
)
def requeue_log(script: Script, _: LintContext) -> Iterator[Match]:
    """A requeue that wipes the log."""
    directive = script.last("requeue")
    if directive is None or script.last("open-mode") or script.last("no-requeue"):
        return
    at = script.line_end(directive.start)
    broken = script.data[at - 1 : at] == b"\n"
    text = "#SBATCH --open-mode=append\n" if broken else "\n#SBATCH --open-mode=append"
    yield Match(directive.start, "--requeue without --open-mode=append", insert(at, text))


@rule(
    "mail-type",
    "warning",
    why="Without --mail-type no mail is sent.",
    fix="Add #SBATCH --mail-type=END,FAIL.",
    source="sbatch(1), --mail-type",
)
def mail_type(script: Script, _: LintContext) -> Iterator[Match]:
    """An address, and nothing to write to it."""
    directive = script.last("mail-user")
    if directive and not script.last("mail-type"):
        yield Match(directive.start, "--mail-user without --mail-type")
