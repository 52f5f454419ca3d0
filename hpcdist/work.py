"""Which of a script's commands do the job's own work, and which look around, copy or prepare. Pure."""

import re

from hpcdist.launches import Launch, Program, is_python
from hpcdist.wrappers import TORCH_LAUNCHERS

# Python programs that prepare or finish: nobody wants them on every node.
_HELPERS = re.compile(r"prepro|prepare|download|convert|plot|post|summar|collect|merge|report|tokeni|setup\.py|check")
_HELPER_MODULES = (
    "venv",
    "pip",
    "json.tool",
    "http.server",
    "compileall",
    "ensurepip",
    "hpcdist.records.network",
    "hpcdist.stage",
)
_TRIVIAL = """
hostname nvidia-smi rocm-smi scontrol sinfo squeue echo printf date mkdir cp mv rm rsync tar unzip cat ls env printenv
true false sleep uname lscpu free df du id whoami which module ulimit wget curl git pip pip3 conda touch chmod source .
cd export set test [ sbcast ray unset declare local typeset readonly unsetenv trap kill if exit wait eval return read
huggingface-cli hf wandb ln head tail grep sed awk find pwd sync
"""
_TRIVIAL_NAMES = frozenset(_TRIVIAL.split())


def is_work(launch: Launch) -> bool:
    """Whether a launch is the job's own work: Python or a launcher, no preparation."""
    last = launch.last
    if last.name in (*TORCH_LAUNCHERS, "hpcdist-torchrun"):
        return last.name != "accelerate" or any(word.text == "launch" for word in last.words)
    if last.name != "python":
        return False
    return bool(program_word(last))


def is_step_work(launch: Launch) -> bool:
    """Whether what srun starts is the job's work: anything but a look around, a copy or a preparation."""
    last = launch.last
    if last.name == "python":
        return is_work(launch)
    if last.name in ("$@", "$*") and launch.command.function:
        return False  # the function's callers say what, and with which options
    return not last.name.startswith(("srun", "$(")) and last.name not in _TRIVIAL_NAMES


def program_word(python: Program) -> str:
    """The script or module that Python runs; empty for a helper, `-c`, `--version` and such."""
    words = python.texts
    for at, text in enumerate(words):
        if text == "-m":
            name = words[at + 1] if at + 1 < len(words) else ""
            return "" if name.startswith(_HELPER_MODULES) or _HELPERS.search(name.lower()) else name
        if text in ("-c", "-V", "--version", "-"):
            return ""
        if not text.startswith("-"):
            return "" if _HELPERS.search(text.rpartition("/")[2].lower()) else text
    return ""


def is_python_launch(launch: Launch) -> bool:
    """Whether plain Python does the work, one rank in each process."""
    return is_python(launch.last.name) and is_work(launch)
