import json
from concurrent.futures import ProcessPoolExecutor

import msgspec
import pytest

from hpcdist.config.job import build_job
from hpcdist.config.site import Site
from hpcdist.errors import HpcdistError, NotFoundError, UsageError
from hpcdist.files import write_atomically
from hpcdist.records.store import RunRecord, Store, new_run_name


def make_run(store, name, job_id, cluster="c"):
    record = RunRecord(
        run=name,
        job=build_job({"nodes": 2}),
        site=Site(),
        backend="slurm",
        cluster=cluster,
        job_id=job_id,
        workdir="/home/ada",
        created_at_s=0.0,
    )
    return store.create(record, "#!/bin/bash\n")


def test_a_run_is_complete_and_private(tmp_path):
    run = make_run(Store(tmp_path), "mnist-2x1-abc", "7")
    assert run.path == tmp_path / "jobs" / "runs" / "mnist-2x1-abc"
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert run.script.read_text() == "#!/bin/bash\n"
    assert run.record().job.layout.nodes == 2


def test_a_run_is_found_by_name_by_job_id_and_by_array_task(tmp_path):
    store = Store(tmp_path)
    make_run(store, "one", "7")
    make_run(store, "two", "8")
    assert store.find("two")[0].name == "two"
    assert store.find("7")[0].name == "one"
    found, task = store.find("8_3")
    assert (found.name, task) == ("two", "3")


def test_a_job_id_that_came_twice_asks_for_the_run(tmp_path):
    store = Store(tmp_path)
    make_run(store, "old", "7", cluster="a")
    make_run(store, "new", "7", cluster="b")
    with pytest.raises(UsageError) as caught:
        store.find("7")
    assert "old" in caught.value.message
    assert "new" in caught.value.message


def test_an_unknown_job_is_not_found(tmp_path):
    with pytest.raises(NotFoundError):
        Store(tmp_path).find("7")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "-rf", "", "a b", "a\nb", "x" * 200])
def test_a_name_that_is_no_folder_s_is_refused(tmp_path, name):
    with pytest.raises(UsageError):
        Store(tmp_path).run(name)


def test_a_newer_version_s_record_is_read(tmp_path):
    run = make_run(Store(tmp_path), "one", "7")
    path = run.path / "job.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"invented_later": [1, 2]}))
    assert run.record().job_id == "7"


def test_a_damaged_record_is_a_clear_error(tmp_path):
    store = Store(tmp_path)
    run = make_run(store, "one", "7")
    (run.path / "job.json").write_text('{"run": "on')
    with pytest.raises(HpcdistError, match=r"job\.json"):
        run.record()
    assert [found.name for found in store] == ["one"]


def test_a_deleted_run_is_simply_gone(tmp_path):
    store = Store(tmp_path)
    make_run(store, "one", "7")
    (store.runs / "stray-file").write_text("")
    assert [run.name for run in store] == ["one"]


def take_ids(root):
    return [Store(root).next_local_id() for _ in range(25)]


def test_local_ids_are_never_given_twice(tmp_path):
    with ProcessPoolExecutor(4) as pool:
        ids = [one for several in pool.map(take_ids, [tmp_path] * 4) for one in several]
    assert sorted(ids, key=lambda one: int(one.removeprefix("local-"))) == [f"local-{n}" for n in range(1, 101)]


def test_run_names_say_what_they_are():
    name = new_run_name(build_job({"name": "my run!", "nodes": 2, "gpus": 4}))
    assert name.startswith("my-run-2x4-")
    assert name != new_run_name(build_job({"name": "my run!", "nodes": 2, "gpus": 4}))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    tmp_path.joinpath("blocked").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "blocked", b"new")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "blocked"}


def test_the_record_goes_to_json_and_back(tmp_path):
    record = make_run(Store(tmp_path), "one", "7").record()
    assert msgspec.json.decode(msgspec.json.encode(record), type=RunRecord) == record
