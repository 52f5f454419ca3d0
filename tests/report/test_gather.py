"""hpcdist report on jobs without a study, through the program as a user runs it."""

import json

from hpcdist.config.job import JobSpec, Layout
from hpcdist.config.training import Training
from hpcdist.report.gather import make_study
from tests.conftest import run_hpcdist

ONE, TWO = Layout(nodes=1), Layout(nodes=2)


def job(layout=ONE, command=(), **training):
    return JobSpec(name="mnist", layout=layout, command=command, training=Training(**training))


def test_jobs_of_one_layout_are_repeats():
    study, variants, labels = make_study([job(seed=1), job(TWO), job(seed=2)])
    assert labels == ["1x1", "2x1", "1x1"]
    assert [variant.label for variant in variants] == ["1x1", "2x1"]
    assert study.layouts == ({"nodes": 1, "gpus": 1}, {"nodes": 2, "gpus": 1})
    assert study.scaling == "strong"


def test_what_differs_between_jobs_is_swept():
    _, variants, labels = make_study([job(batch_size=64), job(batch_size=512, epochs=3)])
    assert labels == ["1x1 batch_size=64", "1x1 batch_size=512"]
    assert [variant.settings for variant in variants] == [{"batch_size": 64}, {"batch_size": 512}]


def test_what_only_one_job_says_is_a_dash_in_the_others():
    _, _, labels = make_study([job(), job(precision="bf16-mixed")])
    assert labels == ["1x1 precision=-", "1x1 precision=bf16-mixed"]


def test_cpus_and_memory_that_differ_with_the_layout_are_part_of_it():
    few, many = Layout(cpus_per_task=2), Layout(nodes=2, cpus_per_task=4, mem="8G")
    assert make_study([job(few), job(many)])[2] == ["1x1", "2x1"]
    assert make_study([job(few), job(Layout(cpus_per_task=4))])[2] == ["1x1 cpus_per_task=-", "1x1 cpus_per_task=4"]


def test_a_program_s_training_options_do_not_matter():
    _, _, labels = make_study([job(command=("a",)), job(command=("a",), epochs=9)])
    assert labels == ["1x1", "1x1"]


def test_a_batch_per_rank_is_weak_scaling():
    study, _, _ = make_study([job(batch_size_per_rank=64), job(TWO, batch_size_per_rank=64)])
    assert study.scaling == "weak"


def submit(run, nodes):
    program = 'echo "{\\"images_per_s\\": $((1000 * WORLD_SIZE)), \\"accuracy\\": 0.9}" > "$HPCDIST_METRICS"'
    command = ("--nodes", nodes, "--run", run, "--wait", "--", "sh", "-c", program)
    done = run_hpcdist("submit", "--backend", "local", *command)
    assert done.code == 0, done.err


def test_two_runs_are_compared_and_a_wrong_name_says_what_to_type(project):
    submit("alone", 1)
    submit("both", 2)
    done = run_hpcdist("report", "alone", "both", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [row["label"] for row in found["rows"]] == ["1x1", "2x1"]
    assert [row["ranks_worked"] for row in found["rows"]] == [1, 2]
    assert found["rows"][1]["speedup"]["median"] == 2.0
    assert found["conditions"]["cluster"] == "none, run on this machine"
    assert "run on" in found["conditions"]
    text = run_hpcdist("report", "alone", "both", env={"COLUMNS": "90"})
    assert "For the fastest result use" in text.out
    assert max(map(len, text.out.splitlines())) <= 90
    assert run_hpcdist("report", "alone", "both", "--csv").out.count("\n") == 3
    assert run_hpcdist("report", "alone", "--markdown").out.startswith("# sh\n")
    missing = run_hpcdist("report", "nowhere")
    assert missing.code == 1
    assert missing.err.splitlines()[0] == "error: no study and no run here is called 'nowhere'"
    assert "hpcdist study list" in missing.err.splitlines()[1]
    assert run_hpcdist("report", "alone", "--csv", "--json").code == 2


STUDY = """
name = "tiny"
layouts = ["1x1", "2x1"]
[options]
command = ["sh", "-c", '''echo "{\\"images_per_s\\": $((1000 * WORLD_SIZE))}" > "$HPCDIST_METRICS"''']
"""


def test_a_study_s_report_is_a_page_and_pictures_in_tensorboard(project):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (project / "tiny.toml").write_text(STUDY)
    sent = run_hpcdist("study", "run", "tiny.toml", "--backend", "local", "--wait")
    assert sent.code == 0, sent.err
    done = run_hpcdist("report", "tiny", "--html", "report.html")
    assert done.code == 0, done.err
    page = (project / "report.html").read_text()
    assert "For the fastest result use" in page
    assert page.count("-m hpcdist.rank") == 2  # each job's script is in it
    events = EventAccumulator(str(project / "tb_logs" / "tiny" / "report"), {"images": 0}).Reload()
    assert "report/throughput" in events.Tags()["images"]
