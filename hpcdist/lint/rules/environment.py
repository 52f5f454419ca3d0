"""Rules about what surrounds the ranks: threads, conda, downloads, an inherited environment."""

import re
from collections.abc import Iterator

from hpcdist.lint.launches import Launch, is_python_launch, is_work
from hpcdist.lint.rule import Edit, LintContext, Match, rule
from hpcdist.lint.script import Script

_FETCHERS = ("wget", "curl", "pip", "pip3", "git", "gdown", "aria2c", "huggingface-cli", "hf", "conda", "mamba")
_WORKERS = ("--num_workers", "--num-workers", "--workers", "--dataloader_num_workers", "data.num_workers", "-j")
# What defines conda's function in a shell: its own script or hook, a start-up file, a module, a script of the site's.
_CONDA_READY = re.compile(
    r"__conda_setup|conda\.sh|shell\.(bash|posix|zsh) hook|shell hook|bashrc|bash_profile|\.profile\b"
    r"|(module|ml)\s[^\n]*conda|(source|\.)\s+\S*(activate|mamba\.sh|conda\S*|env\S*|init\S*|setup\S*)\b",
    re.IGNORECASE,
)


@rule(
    "threads",
    "info",
    why="Each rank starts a thread or worker for each core it believes to have: too many slow all of them down.",
    fix="export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK; no more DataLoader workers than CPUs per task.",
    source="torchrun's documentation, OMP_NUM_THREADS; PyTorch's performance tuning guide",
)
def threads(script: Script, _: LintContext) -> Iterator[Match]:
    """More threads or workers than CPUs, or threads that nobody limits."""
    cpus = script.request.cpus_per_task
    for assignment in script.shell.assignments:
        text = assignment.text
        if assignment.name == "OMP_NUM_THREADS" and re.fullmatch("[0-9]{1,4}", text) and int(text) > (cpus or 10_000):
            yield Match(assignment.start, f"{text} threads on {cpus} CPU(s) per task")
    if cpus is not None:
        for launch in script.launches:
            count = _workers(launch) if is_work(launch) else None
            if count is not None and count > cpus:
                yield Match(launch.start, f"{count} workers on {cpus} CPU(s) per task")
    if script.exports("OMP_NUM_THREADS"):
        return
    for launch, srun, request in script.steps:
        if any(is_python_launch(one) for one in script.launches_of(launch)) and (request.node_tasks or 1) > 1:
            yield Match(srun.name_word.start, f"{request.node_tasks} ranks on a node and no OMP_NUM_THREADS")


def _workers(launch: Launch) -> int | None:
    counts = (value for name, value in launch.last.arguments() if name in _WORKERS)
    return next((int(value) for value in counts if re.fullmatch("[0-9]{1,4}", value)), None)


@rule(
    "conda-set-u",
    "warning",
    why="conda's own scripts use variables that are not set, and set -u ends the job there: 'unbound variable'.",
    fix="Put set -u after conda activate.",
    source="conda#8186; bash(1), set -u",
)
def conda_set_u(script: Script, _: LintContext) -> Iterator[Match]:
    """Activation under `set -u`."""
    for launch in script.launches:
        command = launch.command
        if _activates(launch) and script.is_set(command.start, "u", "nounset") and not command.depth:
            start, end = script.line_start(command.start), script.line_end(command.start)
            whole = script.data[start:end].strip() == script.data[command.start : command.end]
            edits: tuple[Edit, ...] = ()
            if whole and script.data[end - 1 : end] == b"\n":
                edits = (Edit(start=start, end=start, text="set +u\n"), Edit(start=end, end=end, text="set -u\n"))
            yield Match(command.start, "conda activate under set -u", edits)


def _activates(launch: Launch) -> bool:
    words = [word.text for word in launch.command.words[:2]]
    return not launch.inside and words in [[name, "activate"] for name in ("conda", "mamba", "source", ".")]


@rule(
    "conda-init",
    "info",
    why="A batch shell does not read .bashrc, where conda's function is defined: 'Your shell has not been properly "
    "configured to use conda activate'.",
    fix='eval "$(conda shell.bash hook)", or source …/etc/profile.d/conda.sh, before it.',
    source="conda's documentation, 'conda init'",
)
def conda_init(script: Script, _: LintContext) -> Iterator[Match]:
    """`conda activate` in a shell that does not know it."""
    first = script.data.partition(b"\n")[0]
    if re.search(rb"\s-\w*[li]\b|--login", first):
        return
    for launch in script.launches:
        command = launch.command
        words = [word.text for word in command.words[:2]]
        if launch.inside or words not in (["conda", "activate"], ["mamba", "activate"]):
            continue
        before = script.data[: command.start].decode(errors="replace")
        if not _CONDA_READY.search(before):
            yield Match(command.start, f"{words[0]} activate, and nothing before it defines it")
        return


@rule(
    "nested-env",
    "info",
    why="The new job inherits this job's SLURM_ variables: 'cpus-per-task set by two different environment variables', "
    "memory options that exclude each other, ranks pinned to one CPU.",
    fix="sbatch --export=NONE, or env -u SLURM_CPUS_PER_TASK -u SLURM_MEM_PER_NODE -u SLURM_MEM_PER_CPU sbatch ….",
    source="submitit#1814; sbatch(1), --export",
)
def nested_env(script: Script, _: LintContext) -> Iterator[Match]:
    """A job that submits another one."""
    shapes = script.last("cpus-per-task", "mem", "mem-per-cpu", "mem-per-gpu", "ntasks-per-node")
    for launch in script.launches:
        if launch.last.name != "sbatch" or shapes is None:
            continue
        texts = launch.last.texts
        own = any("$0" in text or "BASH_SOURCE" in text for text in texts)
        clean = any(text.startswith("--export=") and "ALL" not in text for text in texts)
        cleaner = launch.find("env")
        if not own and not clean and cleaner is None and b"unset SLURM" not in script.data:
            yield Match(launch.start, "sbatch inside of a job")


@rule(
    "data-race",
    "warning",
    why="Every rank downloads and unpacks into the same place: a corrupt dataset, or a watchdog timeout.",
    fix="Fetch it on the login node, before the job.",
    source="tutorials#3065",
)
def data_race(script: Script, _: LintContext) -> Iterator[Match]:
    """A download or an installation by all tasks."""
    for launch in script.launches:
        srun = launch.find("srun")
        if srun is None or script.step_request(srun).task_count <= 1:
            continue
        texts = launch.last.texts
        option = next((text for text in texts if re.fullmatch(r"--?download(=(true|True|1))?", text)), None)
        if _fetches(launch) or option:
            what = launch.last.name + (f" {option}" if option else "")
            yield Match(launch.start, f"{script.step_request(srun).task_count} tasks run {what}")


@rule(
    "download",
    "info",
    why="Compute nodes often have no internet, and the job's GPUs wait while it lasts.",
    fix="Fetch or install on the login node, before the job.",
    source="tutorials#3065",
)
def download(script: Script, _: LintContext) -> Iterator[Match]:
    """A download or an installation inside of the job."""
    if not script.header.directives:
        return
    for launch in script.launches:
        if _fetches(launch) and launch.find("srun") is None:
            yield Match(launch.start, f"{launch.last.name} inside of the job")


def _fetches(launch: Launch) -> bool:
    name, texts = launch.last.name, launch.last.texts
    if name == "python" and texts[:3] == ["-m", "pip", "install"]:
        return "--no-index" not in texts
    if name not in _FETCHERS:
        return False
    if name in ("pip", "pip3", "conda", "mamba"):
        return "install" in texts[:2] and "--no-index" not in texts and "-e" not in texts
    if name in ("git", "huggingface-cli", "hf"):
        return texts[:1] in (["clone"], ["download"]) or texts[:2] == ["lfs", "pull"]
    return any(text.startswith(("http", "ftp")) or "$" in text for text in texts)
