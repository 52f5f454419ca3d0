"""How a rank gets into its container: the words before its program, or srun's own options. Pure.

Sources: apptainer-exec(1) (`--bind`, `--nv`, `--pwd`), README of pyxis 0.20 (`--container-image`, `--container-mounts`,
`--container-workdir`). Neither was at hand: the words were tested with a stand-in.
"""

import shlex
from collections.abc import Iterable

from hpcdist.config.job import JobSpec
from hpcdist.config.site import Container
from hpcdist.errors import UsageError

# Where the script keeps the node-local folder, which only the job itself can know.
_SCRATCH = '"$scratch"'


def find_mounts(job: JobSpec, container: Container, folders: Iterable[str]) -> list[str]:
    """The host's folders to have inside, `/host:/inside`, each once and none inside another of them.

    Raises:
        UsageError: A path holds a character that separates mounts.
    """
    found: list[str] = []
    for folder in [*folders, *([job.training.data_dir] if job.training.data_dir else [])]:
        if set(":,") & set(folder):
            raise UsageError(f"{folder!r} can't be mounted in a container: it holds ':' or ','", "use another folder")
        if not any(f"{folder}/".startswith(f"{other.rstrip('/')}/") for other in found):
            found.append(folder)
    return [f"{folder}:{folder}" for folder in found] + [
        bind if ":" in bind else f"{bind}:{bind}" for bind in container.binds
    ]


def list_lines(job: JobSpec, container: Container, mounts: Iterable[str], workdir: str) -> list[str]:
    """What stands between srun's own options and the program, one line each, as shell words."""
    if container.runtime == "pyxis":
        staged = f",{_SCRATCH}:{_SCRATCH}" if job.stage_data else ""
        return [
            f"--container-image={shlex.quote(container.image)}",
            f"--container-mounts={shlex.quote(','.join(mounts))}{staged}",
            f"--container-workdir={shlex.quote(workdir)}",
            *map(shlex.quote, container.options),
        ]
    has_nv = bool(job.layout.gpus) if container.nv is None else container.nv
    binds = [f"--bind {_SCRATCH}"] if job.stage_data else []
    return [
        shlex.join([container.runtime, "exec", *(["--nv"] if has_nv else [])]),
        *[shlex.join(["--bind", mount]) for mount in mounts],
        *binds,
        shlex.join(["--pwd", workdir, *container.options, container.image]),
    ]
