"""Which rank of its job a process is, from what its launcher set. Pure."""

from collections.abc import Mapping

import msgspec

from hpcdist.errors import UsageError


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Which rank this process is."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int

    def variables(self) -> dict[str, str]:
        """The identity as torch's environment variables."""
        return {name.upper(): str(getattr(self, name)) for name in self.__struct_fields__}


def read_identity(env: Mapping[str, str]) -> Identity:
    """The rank's identity: from the launcher that set it (torchrun, the local backend), else from Slurm, else 1 of 1.

    Raises:
        UsageError: The variables are there but make no sense together.
    """
    try:
        if "TORCHELASTIC_RUN_ID" in env or env.get("HPCDIST_LAUNCHER") == "local":
            return Identity(
                rank=int(env["RANK"]),
                world_size=int(env["WORLD_SIZE"]),
                local_rank=int(env["LOCAL_RANK"]),
                local_world_size=int(env["LOCAL_WORLD_SIZE"]),
                node_rank=int(env.get("GROUP_RANK", env.get("NODE_RANK", "0"))),
            )
        if "SLURM_PROCID" in env:
            node_rank = int(env["SLURM_NODEID"])
            return Identity(
                rank=int(env["SLURM_PROCID"]),
                world_size=int(env["SLURM_NTASKS"]),
                local_rank=int(env["SLURM_LOCALID"]),
                local_world_size=parse_tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])[node_rank],
                node_rank=node_rank,
            )
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(
            f"can't tell which rank this is: {error!r}", "start it with srun, torchrun or hpcdist"
        ) from None
    return Identity(rank=0, world_size=1, local_rank=0, local_world_size=1, node_rank=0)


def parse_tasks_per_node(text: str) -> list[int]:
    """Tasks on each node from Slurm's short form: `2(x3),1` is `[2, 2, 2, 1]` (man srun, SLURM_TASKS_PER_NODE)."""
    counts: list[int] = []
    for part in text.split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        counts += [int(tasks)] * int(times or 1)
    return counts
