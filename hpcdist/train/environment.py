"""What a rank finds in its environment: who it is and where its files go. Needs no torch."""

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import msgspec

from hpcdist.config.job import Layout
from hpcdist.errors import NotReadyError, UsageError

SLOW_DATA = "HPCDIST_DRILL_SLOW_DATA_S"
SLOW_RANK = "HPCDIST_DRILL_SLOW_RANK"


class Slowdown(msgspec.Struct, frozen=True, kw_only=True):
    """What is added to each training step.

    Attributes:
        data_s: Seconds for which every rank's loader sleeps before each batch.
        rank: The rank that computes slowly; None slows none.
        compute_s: Seconds for which it sleeps in each forward pass.
    """

    data_s: float = 0.0
    rank: int | None = None
    compute_s: float = 0.0

    def compute_s_of(self, rank: int) -> float:
        """Return what this rank sleeps in each forward pass, in seconds."""
        return self.compute_s if rank == self.rank else 0.0

    def sentences(self) -> list[str]:
        """Return what is slowed down, so that nobody takes it for the machine's speed."""
        slowed = []
        if self.data_s:
            slowed.append(f"drill: each batch comes {1e3 * self.data_s:g} ms late ({SLOW_DATA})")
        if self.rank is not None:
            slowed.append(f"drill: each step of rank {self.rank} takes {1e3 * self.compute_s:g} ms more ({SLOW_RANK})")
        return slowed


def read_slowdown(env: Mapping[str, str]) -> Slowdown:
    """Read `HPCDIST_DRILL_SLOW_DATA_S=0.01` and `HPCDIST_DRILL_SLOW_RANK=1:0.01`.

    Raises:
        UsageError: A value is of another form.
    """
    data, slow = env.get(SLOW_DATA), env.get(SLOW_RANK)
    data_s = _read_seconds(SLOW_DATA, data) if data else 0.0
    if not slow:
        return Slowdown(data_s=data_s)
    rank, _, compute = slow.partition(":")
    if not rank.isdecimal():
        raise UsageError(f"{SLOW_RANK} is {slow!r}, expected RANK:SECONDS", f"write {SLOW_RANK}=1:0.01")
    return Slowdown(data_s=data_s, rank=int(rank), compute_s=_read_seconds(SLOW_RANK, compute))


def _read_seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 60:
        raise UsageError(f"{name} has {text!r} for seconds, expected a number from 0 to 60", f"unset {name}")
    return seconds


_START_HINT = (
    "start it with `hpcdist submit`, or per rank with srun python -m hpcdist.rank -- python -m hpcdist.train ..."
)

# srun starts all ranks at once; where the disk is cold, a node may take minutes longer than another to import torch.
SRUN_ARRIVAL_S = 180.0
BY_HAND_ARRIVAL_S = 600.0  # a person goes from machine to machine


class RankEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's surroundings.

    Attributes:
        rank: Global rank.
        world_size: Ranks in all.
        local_rank: Rank within its node.
        local_world_size: Ranks on its node.
        node_rank: Index of its node.
        main_address: Host of rank 0.
        main_port: Port of the rendezvous there.
        metrics: File for this rank's `TrainingMetrics`; None writes none.
        run_dir: The run's folder; None writes no progress.
        checkpoints: Folder of the checkpoints; None keeps none.
        stop_file: When this file exists the training is to save and stop; None is never asked.
        tensorboard: Exact folder of the TensorBoard events; None writes none.
        started_at_s: Start of this process, seconds since the epoch.
        arrival_s: How long the ranks wait for each other at the start.
        slowdown: What is slowed down on purpose.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    main_address: str = "127.0.0.1"
    main_port: int = 29400
    metrics: Path | None = None
    run_dir: Path | None = None
    checkpoints: Path | None = None
    stop_file: Path | None = None
    tensorboard: Path | None = None
    started_at_s: float
    arrival_s: float = BY_HAND_ARRIVAL_S
    slowdown: Slowdown = Slowdown()


def read_environment(env: Mapping[str, str], now_s: float) -> RankEnvironment:
    """Return the rank's surroundings; without torch's variables a process of its own.

    Args:
        env: Environment variables.
        now_s: Seconds since the epoch, in place of a missing `HPCDIST_STARTED_AT`.

    Raises:
        UsageError: Some of torch's variables are missing, or no numbers; or what is to be slowed down is not clear.
    """
    names = ("rank", "world_size", "local_rank", "local_world_size", "node_rank")
    values: dict[str, int] = {}
    if "WORLD_SIZE" in env or "RANK" in env:
        # torchrun calls the node's index GROUP_RANK.
        known = dict(env) if "NODE_RANK" in env else dict(env) | {"NODE_RANK": env.get("GROUP_RANK", "0")}
        values = {name: _read_count(known, name.upper()) for name in names}
        values["main_port"] = _read_count(known, "MASTER_PORT") if "MASTER_PORT" in known else 29400
    try:
        started_at_s = float(env.get("HPCDIST_STARTED_AT", now_s))
    except ValueError:
        started_at_s = now_s
    is_srun = "SLURM_PROCID" in env and env.get("HPCDIST_LAUNCHER") != "local" and "TORCHELASTIC_RUN_ID" not in env
    return RankEnvironment(
        **values,
        main_address=env.get("MASTER_ADDR", "127.0.0.1"),
        metrics=_read_path(env, "HPCDIST_METRICS"),
        run_dir=_read_path(env, "HPCDIST_RUN_DIR"),
        checkpoints=_read_path(env, "HPCDIST_CHECKPOINT_DIR"),
        stop_file=_read_path(env, "HPCDIST_STOP_FILE"),
        tensorboard=_read_path(env, "HPCDIST_TB_DIR"),
        started_at_s=started_at_s,
        arrival_s=SRUN_ARRIVAL_S if is_srun else BY_HAND_ARRIVAL_S,
        slowdown=read_slowdown(env),
    )


def check_layout(layout: Layout, rank: RankEnvironment, env: Mapping[str, str]) -> None:
    """Compare what was asked for with what was started.

    Raises:
        UsageError: They differ; the message has both figures.
    """
    pairs = [
        ("ranks", layout.world_size, "WORLD_SIZE", rank.world_size),
        ("ranks on a node", layout.ranks_per_node, "LOCAL_WORLD_SIZE", rank.local_world_size),
    ]
    if "SLURM_NNODES" in env:
        pairs.append(("nodes", layout.nodes, "SLURM_NNODES", _read_count(env, "SLURM_NNODES")))
    if "SLURM_NTASKS_PER_NODE" in env:
        tasks = _read_count(env, "SLURM_NTASKS_PER_NODE")
        pairs.append(("tasks per node", layout.ranks_per_node, "SLURM_NTASKS_PER_NODE", tasks))
    for what, asked, variable, found in pairs:
        if asked != found:
            seen = f"{variable} is {found}" if variable in env else f"{variable} is not set, so there is {found}"
            raise UsageError(f"--nodes, --gpus and --tasks-per-node ask for {asked} {what}, but {seen}", _START_HINT)


def check_logger(name: str | None) -> None:
    """Find out on every rank, before anything is imported, whether what is to log is there.

    Raises:
        NotReadyError: wandb is asked for and not installed.
    """
    # A folder called wandb, as wandb leaves one where it ran, looks like a package without a file.
    if name == "wandb" and getattr(find_spec("wandb"), "origin", None) is None:
        raise NotReadyError(
            f"--logger wandb: the package wandb is not installed in {sys.prefix}", "pip install 'hpcdist[wandb]'"
        )


def _read_count(env: Mapping[str, str], name: str) -> int:
    text = env.get(name)
    if text is None or not text.isdecimal():
        raise UsageError(f"{name} is {'not set' if text is None else repr(text)}, expected a number", _START_HINT)
    return int(text)


def _read_path(env: Mapping[str, str], name: str) -> Path | None:
    text = env.get(name)
    return Path(text) if text else None
