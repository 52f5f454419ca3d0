"""What a study would wait, take and cost."""

import json
from pathlib import Path

import pytest

from hpcdist.config.job import build_job
from hpcdist.config.site import Prices
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import JobRecord, JobStatus
from hpcdist.report.model import Prediction, Spread
from hpcdist.report.predict import make_plan, measured_walls, parse_start, price_of
from hpcdist.studies.study_file import parse_study
from hpcdist.studies.variants import expand, list_trials
from tests.conftest import run_hpcdist

STUDY = """
name = "s"
layouts = ["1x1", "2x2"]
repeat = 3
[options]
command = ["true"]
time = "30"
[prices]
per-gpu-hour = 2
per-node-hour = 1
currency = "EUR"
"""


def record(state, wall_s):
    return JobRecord(status=JobStatus(job_id="1", state=state), efficiency=Efficiency(job_id="1", wall_time_s=wall_s))


def rows_of(text=STUDY, **more):
    study = parse_study(text, "s.toml")
    variants = expand(study, {})
    return make_plan(study, variants, list_trials(study, variants), **{"answers": {}, **more})


def test_at_most_is_by_the_time_limit():
    one, four = rows_of()
    # By hand: 3 trials of half an hour on 1 GPU of 1 node, and on 4 GPUs of 2 nodes.
    assert (one.time_limit_s, one.gpu_hours, one.cost) == (1800, 1.5, 1.5 * 2 + 1.5 * 1)
    assert (four.gpu_hours, four.cost) == (6.0, 6.0 * 2 + 3.0 * 1)
    assert (one.trials, one.missing, one.wall_s, one.predicted) == (3, 3, None, None)


def test_without_limit_or_price_nothing_is_known():
    one, _ = rows_of(STUDY.replace('time = "30"\n', ""))
    assert (one.time_limit_s, one.gpu_hours, one.cost) == (None, None, None)
    one, _ = rows_of(STUDY[: STUDY.index("[prices]")])
    assert (one.gpu_hours, one.cost) == (1.5, None)


def test_a_job_that_may_begin_again_may_take_its_limit_again():
    text = STUDY.replace('command = ["true"]', "max-requeues = 1")
    assert rows_of(text)[0].gpu_hours == 3.0


def test_earlier_trials_of_the_variant_say_what_is_likely():
    study = parse_study(STUDY, "s.toml")
    trials = list_trials(study, expand(study, {}))
    walls = {("1x1", 1): 360.0, ("1x1", 2): 720.0, ("1x1", 3): 720.0}
    records = [
        (trial, record("COMPLETED", walls[trial.variant, trial.repeat]) if trial.variant == "1x1" else None)
        for trial in trials
    ]
    one, four = rows_of(records=records, predictions=[guess("1x1"), guess("2x2")])
    assert one.wall_s == Spread(median=720, low=360, high=720, count=3)
    # By hand: three times 0.2 h (0.1 h) at 2 per GPU and 1 per node.
    assert (one.likely_cost.median, one.likely_cost.low) == (pytest.approx(1.8), pytest.approx(0.9))
    assert one.predicted is None  # it was measured
    assert (four.wall_s, four.predicted.wall_s) == (None, 100)
    assert four.predicted_cost.median == pytest.approx(3 * 100 / 3600 * (4 * 2 + 2 * 1))


def guess(label):
    return Prediction(variant=label, wall_s=100, low_s=80, high_s=120, basis="1x1 and the probe")


def test_trials_that_did_not_complete_say_nothing():
    (trial, *_) = list_trials(parse_study(STUDY, "s.toml"), expand(parse_study(STUDY, "s.toml"), {}))
    assert measured_walls([(trial, record("FAILED", 3.0)), (trial, record("COMPLETED", None)), (trial, None)]) == {}
    assert measured_walls([(trial, record("COMPLETED", 3.0))])["1x1"].median == 3.0


def test_a_node_of_a_named_type_has_its_own_price():
    prices = Prices(per_gpu_hour=1, per_node_hour=1, node_types={"a100": 5})
    plain, typed = build_job({"gpus": 2}), build_job({"gpus": 2, "constraint": "a100"})
    assert price_of(prices, plain, 3600) == 2 + 1
    assert price_of(prices, typed, 3600) == 2 + 5
    assert price_of(Prices(), plain, 3600) is None


def test_what_a_layout_without_gpus_costs_is_not_known_from_a_price_of_gpus():
    cpus = build_job({"nodes": 2, "gpus": 0})
    assert price_of(Prices(per_gpu_hour=1), cpus, 3600) is None
    assert price_of(Prices(per_gpu_hour=1, per_node_hour=3), cpus, 1800) == 3  # half an hour on two nodes


def test_the_start_is_read_from_sbatch_s_words():
    # Slurm 22.05, src/sbatch: what --test-only prints.
    words = "sbatch: Job 9 to start at 2026-11-21T10:00:00 using 2 processors on nodes n1 in partition main"
    assert parse_start(words) == "2026-11-21 10:00:00"
    assert parse_start("sbatch: something else") is None


def test_slurm_is_asked_once_per_kind_of_request(project, stand_in):
    calls = project / "calls"
    words = "sbatch: Job 9 to start at 2026-11-21T10:00:00 using 2 processors on nodes n1"
    refused = 'echo "sbatch: error: too many nodes" >&2; exit 1'
    stand_in("sbatch", f'echo x >> {calls}; grep -q nodes=2 "${{@: -1}}" && {{ {refused}; }}; echo "{words}" >&2')
    Path("s.toml").write_text(STUDY.replace("[options]", "[grid]\nenv.A = [1, 2]\n[options]"))
    done = run_hpcdist("plan", "s.toml")
    assert done.code == 0, done.err
    assert calls.read_text() == "x\nx\n"
    assert "1x1 env.A=1  3       3        2026-11-21 10:00:00  00:30:00  1.50          4.50" in done.out
    assert "2x2 env.A=1 would be refused: error: too many nodes" in done.err
    assert "12 trials; at most 15.00 GPU-hours; at most 39.00 EUR" in done.err
    rows = json.loads(run_hpcdist("plan", "s.toml", "--json").out)["rows"]
    assert (rows[2]["refusal"], rows[2]["start"]) == ("error: too many nodes", None)


@pytest.mark.parametrize("name", ["mnist-layouts", "batch-size", "checkpointing", "quick"])
def test_the_studies_checked_in_are_studies(project, name):
    file = Path(__file__).parents[2] / "jobs" / f"{name}.toml"
    done = run_hpcdist("plan", file, "--backend", "local")
    assert done.code == 0, done.err
    assert parse_study(file.read_text(), str(file)).name == name
