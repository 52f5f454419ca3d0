"""What a cluster is asked by `hpcdist init`: of itself, of the user, and whether it would take a request."""

import getpass
import re
from collections.abc import Iterable

import msgspec

from hpcdist.errors import HpcdistError
from hpcdist.slurm import commands, sbatch
from hpcdist.submission.render import quote_sbatch

_ROWS = ["--noheader", "--parsable2"]


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster said, in its own words; empty where it said nothing.

    Attributes:
        config: Its settings (`scontrol show config`).
        nodes: `scontrol --oneliner show node`.
        partitions: `scontrol --oneliner show partition`.
        accounts: Rows `Account|Partition|QOS|DefaultQOS` of the user.
        default_account: The account of jobs that name none.
        qos: Rows `Name|MaxWall|MaxTRES|MaxTRESPU|MaxJobsPU`.
        srun_help: `srun --help`, which also lists the options of plugins.
    """

    config: dict[str, str]
    nodes: str = ""
    partitions: str = ""
    accounts: str = ""
    default_account: str = ""
    qos: str = ""
    srun_help: str = ""


def ask() -> Answers:
    """Asks everything there is to ask without a request.

    Raises:
        HpcdistError: The controller does not answer.
    """
    config = commands.read_config()
    user = getpass.getuser()
    return Answers(
        config=config,
        nodes=commands.run_command(["scontrol", "--oneliner", "--all", "show", "node"]),
        partitions=commands.run_command(["scontrol", "--oneliner", "show", "partition"]),
        accounts=_ask(
            ["sacctmgr", *_ROWS, "show", "associations", "where", f"user={user}"],
            "Account,Partition,QOS,DefaultQOS",
        ),
        default_account=_ask(["sacctmgr", *_ROWS, "show", "user", user], "DefaultAccount"),
        qos=_ask(["sacctmgr", *_ROWS, "show", "qos"], "Name,MaxWall,MaxTRES,MaxTRESPU,MaxJobsPU"),
        srun_help=_ask(["srun", "--help"]),
    )


def _ask(command: list[str], fields: str | None = None) -> str:
    """The answer, or nothing: sites without accounting have no sacctmgr that answers."""
    try:
        return commands.run_command([*command, f"format={fields}"] if fields else command)
    except HpcdistError:
        return ""


def try_request(options: Iterable[tuple[str, str]]) -> str | None:
    """Why Slurm would refuse a job with these sbatch options; None when it would take it (`sbatch --test-only`).

    Raises:
        NotReadyError: It did not answer.
    """
    lines = "".join(f"#SBATCH --{key}={quote_sbatch(value)}\n" for key, value in options)
    try:
        sbatch.test_only(f"#!/bin/bash\n#SBATCH --job-name=hpcdist-init\n{lines}srun true\n")
    except HpcdistError as error:
        if error.exit_code != 1:
            raise
        return re.sub(r"^(sbatch: )?(error: )?", "", error.message.splitlines()[-1])
    return None
