"""What is particular about a cluster, as `hpcdist.toml` has it. Pure values, checked when they are made."""

import re
from typing import Literal

import msgspec

from hpcdist.errors import UsageError

# The releases that scripts are rendered for; see `releases`.
_RELEASE = re.compile(r"[0-9]{2}\.(02|05|08|11)(\.[0-9A-Za-z.-]+)?")


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """What a cluster charges; what is not given costs nothing that is known.

    Attributes:
        per_gpu_hour: For each GPU allocated, per hour.
        per_node_hour: For each node allocated, per hour.
        node_types: Per hour for a node of a named type: what a layout's `constraint` says.
        currency: Printed behind every price.
    """

    per_gpu_hour: float | None = None
    per_node_hour: float | None = None
    node_types: dict[str, float] = {}
    currency: str = "USD"

    def per_hour(self, *, nodes: int, gpus: int, node_type: str | None = None) -> float | None:
        """Return what a job costs per hour; None where no price is known of anything it has.

        Args:
            gpus: Its GPUs, of all nodes.
            node_type: Its `constraint`: the price of a named type goes before that of any node.
        """
        per_node = self.node_types.get(node_type or "", self.per_node_hour)
        parts = [] if per_node is None else [per_node * nodes]
        if self.per_gpu_hour is not None and gpus:
            parts.append(self.per_gpu_hour * gpus)
        return sum(parts) if parts else None


class Partitions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where jobs that name no partition go, by what they need; None leaves it to the cluster's default.

    Attributes:
        gpu: Partition of layouts with GPUs.
        cpu: Partition of CPU layouts.
    """

    gpu: str | None = None
    cpu: str | None = None


class Container(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The container that every rank runs in; hpcdist has to be installed in its image.

    Attributes:
        runtime: What starts it: apptainer (or its older name singularity) in each task, or srun itself with the
            pyxis plugin.
        image: A file the nodes see, or for pyxis also a name in a registry.
        binds: Further folders of the host to have inside, `/path` or `/host:/inside`; the project, the folder
            that the program starts in and its data are there anyway.
        nv: Whether apptainer brings the host's NVIDIA driver in (`--nv`); None does so for layouts with GPUs.
        python: Interpreter with hpcdist, inside.
        options: Further words for apptainer, or further options of srun for pyxis.
    """

    runtime: Literal["apptainer", "singularity", "pyxis"] = "apptainer"
    image: str
    binds: tuple[str, ...] = ()
    nv: bool | None = None
    python: str = "python3"
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for bind in self.binds:
            if not bind.startswith("/") or "," in bind or bind.count(":") > 2:
                raise UsageError(
                    f"container.binds: {bind!r} is no folder of the host", "write /path or /host/path:/inside"
                )


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is particular about a cluster; from `hpcdist.toml`. What jobs are asked for stands beside it there.

    Attributes:
        cluster: The cluster's name, or a pattern of it (`alpha*`), by which a profile under `[sites]` is chosen.
        slurm_version: Slurm's release (`23.02`); None renders what all releases take.
        partitions: Partitions by purpose.
        gpu_flag: How this cluster wants GPUs asked for; the two exclude each other.
        gpu_type: GPU type to name in the request ("a100"); None takes any.
        network_interface: Interface for NCCL and gloo (`NCCL_SOCKET_IFNAME`); None lets them choose.
        modules: Modules to load before anything else.
        conda: Conda environment to activate, by its name or folder.
        venv: Virtual environment to activate: its folder.
        uv: Folder of a uv project, whose `.venv` is activated; uv then neither downloads nor syncs.
        teardown: Shell lines run after the tasks ended; they do not change the job's status.
        container: What the ranks run in; None is the host itself.
        scratch: Node-local folder for `--stage-data`, in shell words (`$TMPDIR`, `/scratch/$USER`); None is `/tmp`.
        auto_resume: Whether srun gets `--auto-resume=1`, with which SageMaker HyperPod replaces a bad node.
        prices: What the cluster charges, for studies that say nothing themselves.
        templates: Folder with templates that override the packaged ones.
        python: Interpreter to start in the job; None is the one that runs hpcdist.
        secrets: Environment variables whose values are secret although their names do not say so.
    """

    cluster: str | None = None
    slurm_version: str | None = None
    partitions: Partitions = Partitions()
    gpu_flag: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    gpu_type: str | None = None
    network_interface: str | None = None
    modules: tuple[str, ...] = ()
    conda: str | None = None
    venv: str | None = None
    uv: str | None = None
    teardown: tuple[str, ...] = ()
    container: Container | None = None
    scratch: str | None = None
    auto_resume: bool = False
    prices: Prices = Prices()
    templates: str | None = None
    python: str | None = None
    secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        chosen = [name for name in ("conda", "venv", "uv") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(chosen)} exclude each other", "keep the one that your program needs")
        if self.slurm_version is not None and not _RELEASE.fullmatch(self.slurm_version):
            raise UsageError(
                f"slurm_version: {self.slurm_version!r} is no release of Slurm", 'write for example "23.02"; sbatch -V'
            )
        if self.scratch is not None and not re.fullmatch(r"(/|\$)[A-Za-z0-9_./${}:-]*", self.scratch):
            raise UsageError(
                f"scratch: {self.scratch!r} is no folder of a node", 'write for example "/scratch/$USER" or "$TMPDIR"'
            )

    @property
    def env_folder(self) -> str | None:
        """The virtual environment to activate, if there is one."""
        return f"{self.uv.rstrip('/')}/.venv" if self.uv else self.venv
