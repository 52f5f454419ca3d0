"""Runs without a scheduler: started by a person on each machine, or by torchrun. They leave what any run leaves.

`python -m hpcdist.submission.by_hand JOB -- ARGUMENTS` is one rank that torchrun started: the training calls it to
have itself recorded. JOB is the `JobSpec` as JSON.
"""

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from hpcdist.config.job import LAYOUT_KEYS, TRAINING_KEYS, JobSpec
from hpcdist.config.project import find_project
from hpcdist.errors import UsageError
from hpcdist.gpu import count_gpus
from hpcdist.launcher import local, rank
from hpcdist.launcher.local import NodeShare, Supervisor, board_folder, read_boot_id, read_start_ticks
from hpcdist.records.store import LocalState, Run, RunRecord, Store, read_json, state_file
from hpcdist.submission.prepare import PreparedJob, prepare
from hpcdist.submission.rerun import find_differences
from hpcdist.submission.send import describe_run
from hpcdist.text import underscored

ECHO_INTERVAL_S = 0.2
# The options that say what ranks do; the others are for a scheduler. A longer time limit is no other training.
_OF_THE_RANKS = (LAYOUT_KEYS | TRAINING_KEYS | {"command", "setup", "env", "secret_env"}) - {"time"}


def parse_master(text: str) -> tuple[str, int]:
    """Host and port of `10.10.1.1:9955` or `[fd00::1]:9955`.

    Raises:
        UsageError: It is of another form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"master: {text!r} is not HOST:PORT", "write for example --master 10.10.1.1:9955")
    return host, int(port)


def claim_run(prepared: PreparedJob) -> Run:
    """The run's folder; the first to come fills it, also where machines share it.

    Raises:
        UsageError: There is such a run already, of another job.
        HpcdistError: It can't be written.
    """
    store = Store(Path(prepared.paths.root))
    run = store.claim(prepared.run)
    with run.locked():
        if not (run.path / "job.json").is_file():
            record = describe_run(prepared, {})
            store.create(msgspec.structs.replace(record, job_id=store.next_local_id()), prepared.script)
        else:
            _require_same(run.record(), prepared.spec)
    return run


def _require_same(record: RunRecord, job: JobSpec) -> None:
    """Refuses to go on with a run under other options: its script is the one it began with.

    Raises:
        UsageError: They differ in what the ranks do, or it is Slurm's.
    """
    if record.backend != "local":
        raise UsageError(f"run {record.run} exists and was sent to Slurm", "choose another --run")
    told = [
        f"{name} {then or 'unset'}, not {now or 'unset'}"
        for name, (then, now) in find_differences(record.job, job).items()
        if underscored(name) in _OF_THE_RANKS
    ]
    if told:
        hint = "give the same options, or another name: --run, with torchrun HPCDIST_RUN"
        raise UsageError(f"run {record.run} exists with other options: {'; '.join(told)}", hint)


def run_share(prepared: PreparedJob, share: NodeShare, echo: Callable[[str], None]) -> tuple[Run, int]:
    """Run this machine's share of the ranks to their end; return the run and its exit status.

    `echo` is called with what the first of its ranks writes, as it writes it.

    Raises:
        UsageError: This part runs already, or the run is another job's.
        HpcdistError: The run's folder can't be written.
    """
    run = claim_run(prepared)
    state = read_json(run.path / state_file(share.node_rank), LocalState)
    if state is not None and state.state == "RUNNING" and local.is_alive(state):
        raise UsageError(f"node {share.node_rank} of {run.name} runs already, as process {state.pid}", "end it first")
    gpus = prepared.spec.layout.gpus if prepared.spec.training.accelerator != "cpu" else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(gpus)]
    os.environ["HPCDIST_LOCAL_GPUS"] = ",".join(names[:gpus])
    supervisor = Supervisor(run, share)
    first = share.node_rank * prepared.spec.layout.ranks_per_node
    over = threading.Event()
    path = run.logs / f"{run.record().job_id}_{first}_log.out"
    show = threading.Thread(target=_show, args=(path, echo, over), daemon=True)
    show.start()
    status = supervisor.supervise()
    over.set()
    show.join()
    return run, status


def _show(path: Path, echo: Callable[[str], None], over: threading.Event) -> None:
    """Passes on what is added to a log, until it is over."""
    at = path.stat().st_size if path.exists() else 0
    is_last = False
    while not is_last:
        is_last = over.wait(ECHO_INTERVAL_S)  # and then reads the rest
        if path.exists():
            with path.open("rb") as log:
                log.seek(at)
                text = log.read()
            at += len(text)
            if text:
                echo(text.decode(errors="replace"))


def choose_gpus(procs: int, accelerator: str | None) -> int:
    """GPUs of a node with so many ranks: one each where this machine has them, else none."""
    if accelerator == "cpu":
        return 0
    return procs if count_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) >= procs else 0


def main(arguments: list[str]) -> int:
    """Records a rank that torchrun started; returns its exit status."""
    text, _, *words = arguments
    spec = msgspec.json.decode(text, type=JobSpec)
    name = os.environ.get("HPCDIST_RUN") or _name_after_torchrun(spec)
    project = find_project(Path.cwd())
    run = claim_run(prepare(spec, project, backend="local", run=name, python=sys.executable, nodes_here=1))
    record = run.record()
    os.environ |= {"HPCDIST_LAUNCHER": "local", "HPCDIST_JOB_ID": record.job_id or ""}
    os.environ |= {"HPCDIST_RUN": name, "HPCDIST_RUN_DIR": str(run.path)}
    os.environ.setdefault("HPCDIST_TB_DIR", str(board_folder(record, run.path)))
    speaks = os.environ.get("LOCAL_RANK") == "0"  # one rank for each machine, which may have a run of its own
    file = state_file(int(os.environ.get("GROUP_RANK", "0")))
    state = LocalState(
        host=socket.gethostname(),
        boot_id=read_boot_id(),
        pid=os.getpid(),
        pid_started=read_start_ticks(os.getpid()) or 0,
        state="RUNNING",
        started_at_s=time.time(),
        gpus=spec.layout.nodes * spec.layout.gpus,
    )
    if speaks:
        print(f"run {name}", file=sys.stderr, flush=True)
        run.write(file, state)
    status = rank.main(["--", sys.executable, "-m", "hpcdist.train", *words])
    if speaks:
        word = "FAILED" if status else "COMPLETED"
        run.write(file, msgspec.structs.replace(state, state=word, exit_code=status, ended_at_s=time.time()))
    return status


def _name_after_torchrun(spec: JobSpec) -> str:
    """The same on all ranks of one torchrun, and never again."""
    parent = f"{read_boot_id()} {os.getppid()} {read_start_ticks(os.getppid())}"
    return f"{spec.slug}-{spec.layout.name}-{hashlib.sha256(parent.encode()).hexdigest()[:6]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
