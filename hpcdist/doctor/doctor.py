"""Everything that has to be there before a job runs, looked at one after the other; and what is mended of it."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpcdist.config.job import Backend
from hpcdist.config.project import Project, find_nearest
from hpcdist.doctor import cluster, machine
from hpcdist.doctor.check import SLURM, Check
from hpcdist.doctor.machine import judge_slurm_release
from hpcdist.doctor.probe_job import WAIT_S, ProbeJobResult, Tell, choose_shape, judge_trial, probe_between_nodes
from hpcdist.doctor.runs import Problem, Repair, find_problems, judge_runs, repair
from hpcdist.errors import HpcdistError, UsageError
from hpcdist.records.store import Store
from hpcdist.slurm import cluster as slurm_cluster
from hpcdist.slurm.cluster import Partition
from hpcdist.slurm.queue import RunMarker
from hpcdist.submission.open_project import open_project


class Doctor:
    """One look at a project.

    Args:
        start: The folder it is looked for from.
        backend: Where its jobs run; None is Slurm where it is there. Of "local" Slurm is not asked.
        profile: The profile of hpcdist.toml to take; None chooses by the cluster's name.

    Attributes:
        project: What is looked at; of one whose settings can't be read, the folder alone.
        repairs: What `examine` mended.
        trial: What the job on the nodes left, where one was sent.
    """

    def __init__(self, start: Path, backend: Backend | None = None, *, profile: str | None = None) -> None:
        self._backend = backend
        self.repairs: list[Repair] = []
        self.trial: ProbeJobResult | None = None
        self._fault: Check | None = None
        try:
            self.project = open_project(start, profile=profile)
        except UsageError as error:
            self._fault = Check("settings", "error", error.message, error.hint)
            self.project = Project(root=find_nearest(start) or start)
        self._config: dict[str, str] | None = None
        self._partitions: tuple[Partition, ...] = ()
        self._is_accounted = False
        self._slurm_is_away = False

    def examine(self, *, fix: bool = False) -> Iterator[Check]:
        """Every check that needs no job, as it is made; with `fix` the runs are mended before they are judged."""
        yield self._fault or machine.check_options(self.project)
        yield from self._examine_slurm()
        yield machine.check_python(self.project)
        yield from machine.check_packages()
        yield machine.check_folder(self.project.root)
        if self._config is not None:
            yield machine.check_shared(self.project.root)
        yield from machine.check_disk(self.project.root)
        yield machine.check_data(self.project)
        yield from self._examine_runs(fix=fix)

    def _examine_slurm(self) -> Iterator[Check]:
        if self._backend == "local":
            yield Check(SLURM, "unknown", "not asked: jobs run on this machine (--backend local)")
            return
        check, self._config = cluster.check_slurm(self.project.defaults, is_needed=self._backend == "slurm")
        self._slurm_is_away = check.status == "error"
        yield check
        if self._config is None:
            return
        yield judge_slurm_release(self._config.get("SLURM_VERSION"))
        accounting = cluster.check_accounting(self._config)
        self._is_accounted = accounting.status == "ok"
        yield accounting
        self._partitions = slurm_cluster.list_partitions()
        if self._fault is None:
            yield from cluster.check_request(self.project, self._partitions)
        yield cluster.check_clock()

    def _examine_runs(self, *, fix: bool) -> Iterator[Check]:
        store = Store(self.project.root)
        living = self._list_living()
        problems = self._find_problems(store, living)
        if fix and isinstance(problems, list):
            self.repairs = repair(store, problems, living, self._config, is_accounted=self._is_accounted)
            problems = self._find_problems(store, living)
        if isinstance(problems, Check):
            yield problems
        else:
            yield from judge_runs(sum(1 for _ in store), problems)

    def _find_problems(self, store: Store, living: list[RunMarker] | None) -> list[Problem] | Check:
        try:
            return find_problems(store, living)
        except OSError as error:
            return Check("runs", "error", f"can't read {error.filename}: {error.strerror}", f"ls -ld {store.runs}")

    def _list_living(self) -> list[RunMarker] | None:
        """The user's jobs that wait or run; None where Slurm was not asked."""
        if self._config is not None:
            with contextlib.suppress(HpcdistError):
                return slurm_cluster.list_living_runs()
        return None

    def examine_nodes(
        self,
        *,
        nodes: int | None = None,
        gpus: int | None = None,
        on_change: Tell | None = None,
        timeout_s: float = WAIT_S,
    ) -> list[Check]:
        """Make the checks that take a job on the nodes; here, without Slurm, on emulated ones. After `examine`.

        Without numbers it has two nodes, or as many as there are, and a GPU on each where the partition has any.
        """
        if self._slurm_is_away or self._fault is not None:
            return [Check("job on the nodes", "unknown", "no job was sent: what is wrong above has to be mended first")]
        backend: Backend = "local" if self._config is None else "slurm"
        defaults: Mapping[str, object] = self.project.defaults
        named = defaults.get("partition") or self.project.site.partitions.gpu
        partition = named if isinstance(named, str) else None
        shape = choose_shape(partition, self._partitions, defaults.get("gpus"))
        try:
            self.trial = probe_between_nodes(
                self.project,
                backend=backend,
                nodes=nodes or shape[0],
                gpus=shape[1] if gpus is None else gpus,
                on_change=on_change,
                timeout_s=timeout_s,
            )
        except HpcdistError as error:
            return [Check("job on the nodes", "error", error.message, error.hint)]
        return judge_trial(self.trial)
