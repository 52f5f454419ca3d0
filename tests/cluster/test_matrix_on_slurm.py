"""The scripts of `tests/submission/test_matrix.py` for the testbed's release, shown to a real Slurm; ten of them run.

What the testbed has not got is changed before they are rendered:

- left out: partitions, accounts, QOS, features, reservations and the jobs to wait for, which are other clusters';
- cut: GPUs to 2 in a node, CPUs to 1 for each task, memory to 2 GB in a node or 500 MB for each CPU (0 stays 0);
- named as here: nodes, the type of GPU;
- in the ten that run also: the program, which only says its rank; the folders of environments and of scratch; and
  `srun --auto-resume`, which only HyperPod's Slurm knows, is left out. apptainer, conda and module are stand-ins.
"""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from hpcdist.config.job import merge_options
from hpcdist.config.project import Project
from hpcdist.config.site import Partitions, Site
from hpcdist.submission.prepare import complete_job, prepare
from tests.cluster.waiting import eventually
from tests.submission.test_matrix import LAYOUTS, SITES, open_site

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]
RELEASE = "22.05"
LEFT_OUT = {"partition", "account", "qos", "constraint", "reservation", "dependency"}
HERE = {"nodelist": "n[1-2]", "exclude": "n4", "cpus_per_task": 1, "mem_per_cpu": "500M"}
SAY = ["sh", "-c", 'echo "rank $RANK of $WORLD_SIZE"']


def fit(layout: str, site: str) -> tuple[dict, Site]:
    """The options and the site as the testbed can meet them."""
    project = open_site(site)
    options = merge_options(project.defaults, LAYOUTS[layout])
    options = {key: HERE.get(key, value) for key, value in options.items() if key not in LEFT_OUT}
    options["gpus"] = min(2, options.get("gpus", 1))
    if options.get("mem", "0") != "0":
        options["mem"] = "2G"
    gpu_type = "fake" if project.site.gpu_type else None
    settings = {"slurm_version": RELEASE, "partitions": Partitions(), "gpu_type": gpu_type, "python": sys.executable}
    return options, msgspec.structs.replace(project.site, **settings)


def render_here(options: dict, site: Site, folder: Path) -> str:
    project = Project(root=folder, config=None, site=site, defaults={})
    return prepare(complete_job(options, project), project, backend="slurm", run=None, workdir=folder).script


@pytest.mark.parametrize("site", SITES)
def test_slurm_would_start_every_script(testbed, project, site):
    def try_one(layout):
        path = project / f"{layout}.sbatch"
        path.write_text(render_here(*fit(layout, site), project))
        done = subprocess.run(["sbatch", "--test-only", path], env=testbed.env, capture_output=True, text=True)
        return layout, done.returncode, bool(re.search(r"Job \d+ to start at", done.stderr)), done.stderr

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(try_one, LAYOUTS))
    assert len(answers) >= 30
    assert [one for one in answers if one[1:3] != (0, True)] == []


# Ten that differ in what is around their ranks, and how many ranks say something.
RUNS = {
    ("one-gpu-command", "gres-only"): 1,
    ("passed-on", "gres-only"): 2,
    ("tasks-command", "gres-only"): 6,
    ("hostile-name", "per-cpu-memory"): 2,
    ("staged", "per-cpu-memory"): 4,
    ("two-gpus-command", "typed-gpus"): 2,
    ("placed", "typed-gpus"): 2,
    ("cpu-ranks-command", "container-only"): 6,
    ("resumable", "container-only"): 2,
    ("environment", "hyperpod"): 4,
}

STAND_INS = {
    # Takes its own words off, up to the image, and starts the rest where it is.
    "apptainer": 'echo "in apptainer: $*"\nwhile [[ $1 != *.sif ]]; do shift; done\nshift\nexec "$@"',
    "conda": 'cd "$(dirname "$0")/.." && pwd',
}


@pytest.fixture
def site_programs(project):
    """What the example sites have and this machine has not, and the environment to find it in."""
    for name, text in STAND_INS.items():
        path = project / "site" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    for name, text in (("site/etc/profile.d/conda.sh", "conda() { echo conda $*; }"), ("env/bin/activate", "")):
        (project / name).parent.mkdir(parents=True)
        (project / name).write_text(f"{text}\n")
    (project / "data").mkdir()
    (project / "data" / "figures").write_text("1 2 3\n")
    (project / "scratch").mkdir()
    return {
        "PATH": f"{project}/site/bin:{Path(sys.executable).parent}:/usr/bin:/bin",
        "BASH_FUNC_module%%": "() { echo module $*; }",
        "HF_TOKEN": "hf_not_to_be_seen",
    }


def test_ten_run_to_their_end(testbed, project, site_programs):
    jobs = {}
    for layout, name in RUNS:
        options, site = fit(layout, name)
        if "data_dir" in options:
            options["data_dir"] = str(project / "data")
        folders = {"venv": f"{project}/env" if site.venv else None, "scratch": f"{project}/scratch"}
        site = msgspec.structs.replace(site, auto_resume=False, **folders)
        path = project / f"{layout}-{name}.sbatch"
        path.write_text(render_here({**options, "command": SAY}, site, project))
        environment = {**testbed.env, **site_programs}
        sent = subprocess.run(["sbatch", "--parsable", path], env=environment, capture_output=True, text=True)
        assert sent.returncode == 0, sent.stderr
        jobs[layout, name] = sent.stdout.strip()

    # Accounting may hold the first task of an array as COMPLETED before it has heard of the others.
    elements = len(RUNS) - 1 + len(LAYOUTS["tasks-command"]["tasks"])

    def read_states():
        rows = testbed.run("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(jobs.values())).splitlines()
        states = [row.split("|") for row in rows]
        ended = not {"PENDING", "RUNNING", "COMPLETING"} & {state for _, state in states}
        return ended and len(states) == elements and states

    states = eventually(read_states, timeout_s=120, every_s=1)
    logs = {job: Path(project / f"slurm-{job}.out") for job, _ in states}
    failed = [
        (job, state, logs[job].read_text()) for job, state in states if state != "COMPLETED" and logs[job].exists()
    ]
    assert {state for _, state in states} == {"COMPLETED"}, failed
    for case, job in jobs.items():
        (run,) = (project / "jobs" / "runs").glob(f"*-{job}")
        said = [path.read_text() for path in run.rglob("*_log.out")]
        spoken = [found for text in said for found in re.findall(r"^rank [0-9]+ of [0-9]+$", text, re.MULTILINE)]
        assert len(spoken) == RUNS[case], (case, said)
        assert all("in apptainer: exec" in text for text in said) is (case[1] == "container-only")
