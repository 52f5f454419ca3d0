"""Many submissions at once: none is lost, none sent twice, no two share an id or a record."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster.waiting import eventually

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(600)]

JOBS = 200 if "SOAK" in os.environ else 40
PROCESSES = 8


def test_submissions_from_eight_processes_at_once(testbed, project):
    (project / "hpcdist.toml").write_text("")
    options = ("--gpus", 0, "--mem", "100M", "--name", "load", "--", "true")
    with ThreadPoolExecutor(PROCESSES) as pool:
        sent = list(pool.map(lambda _: testbed.hpcdist("submit", *options, cwd=project, timeout=240), range(JOBS)))
    assert [one.err for one in sent if one.code != 0] == []
    ids = {one.out.strip() for one in sent}
    assert len(ids) == JOBS
    records = [json.loads(path.read_text()) for path in project.glob("jobs/runs/*/job.json")]
    assert len(records) == JOBS
    assert {record["job_id"] for record in records} == ids
    ask = ("sacct", "-X", "-n", "-P", "-j", ",".join(ids), "--format=JobID,State,Comment")

    def rows():
        found = [line.split("|") for line in testbed.run(*ask).splitlines()]
        return [row for row in found if row[1] not in ("PENDING", "RUNNING")] if len(found) >= JOBS else []

    eventually(lambda: len(rows()) == JOBS, 280, 1)
    assert {(row[0], row[1], row[2]) for row in rows()} == {
        (record["job_id"], "COMPLETED", f"hpcdist:{record['run']}") for record in records
    }
