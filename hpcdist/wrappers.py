"""Programs that start another one, and which of their options take a value: what is needed to see past them. Pure.

Source: the manual pages and `--help` of each.
"""

from collections.abc import Mapping


def _valued(words: str, count: int = 1) -> dict[str, int]:
    return dict.fromkeys(words.split(), count)


WRAPPERS: Mapping[str, Mapping[str, int]] = {
    "env": _valued("-u -C -S"),
    "time": _valued("-f -o"),
    "nohup": {},
    "exec": _valued("-a"),
    "command": {},
    "nice": _valued("-n"),
    "ionice": _valued("-c -n -p"),
    "stdbuf": _valued("-i -o -e"),
    "timeout": _valued("-s -k --signal --kill-after"),
    "setsid": {},
    "unbuffer": {},
    "catchsegv": {},
    "numactl": _valued("-N -m -C -i --cpunodebind --membind --physcpubind --interleave"),
    "taskset": {},
    "nsys": _valued("-o -t -w --output --trace"),
}
# The first word after their options is theirs too: a duration, a mask, a verb.
WITH_WORD = ("timeout", "taskset", "nsys")
CONTAINERS = ("singularity", "apptainer")
CONTAINER_VALUED = _valued(
    "-B --bind --env --env-file -H --home --pwd --cwd --overlay -W --workdir --mount -S --scratch --app --network"
    " --hostname --dns --security --apply-cgroups --add-caps --drop-caps -o --no-mount"
)
RUNNERS = ("conda", "mamba", "micromamba", "uv", "poetry", "pixi", "pipenv", "pdm")
RUNNER_VALUED = _valued("-n --name -p --prefix --cwd --with --python --project --extra --group -e --environment")
SSH_VALUED = _valued("-i -l -o -p -F -J -L -R -D -E")
MPI = ("mpirun", "mpiexec", "mpiexec.hydra", "orterun", "mpirun_rsh", "prterun")
MPI_VALUED = _valued(
    "-n -np --np -c -N -npernode --npernode --map-by -map-by --bind-to -bind-to --rank-by -x -H --host -host -hosts"
    " -hostfile --hostfile -machinefile --machinefile -f -ppn -perhost -wdir --wdir"
) | _valued("-mca --mca -gmca --gmca -genv -env", 2)
SHELLS = ("bash", "sh", "zsh", "dash")
# Python modules that are launchers, by the launcher's name.
MODULES = {
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torchrun",
    "accelerate.commands.launch": "accelerate",
    "deepspeed.launcher.runner": "deepspeed",
    "deepspeed": "deepspeed",
}
TORCH_LAUNCHERS = ("torchrun", "accelerate", "deepspeed")
