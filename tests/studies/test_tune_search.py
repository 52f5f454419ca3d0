"""Which batch size is tried next and which is taken, and how that is written down."""

import tomllib

import pytest

from hpcdist.config.job import JobSpec, Layout
from hpcdist.config.toml import check_writable, set_options
from hpcdist.config.training import Training
from hpcdist.errors import UsageError
from hpcdist.records.job import Cause, JobRecord, JobStatus
from hpcdist.records.ranks import RankUsage, StepSplit, TrainingMetrics
from hpcdist.records.usage_curve import UsageCurve
from hpcdist.studies.tune import (
    Measurement,
    Search,
    begin_search,
    build_attempt,
    choose_batch,
    choose_workers,
    explain,
    find_memory_share,
    next_batches,
    next_workers,
)

GIB = 1024**3
LAYOUT = Layout(nodes=1, gpus=2, cpus_per_task=2)


def tried(*speeds, start=512, **last):
    """Batches from 512 on, doubled, with these speeds; what is given by name is of the last one."""
    attempts = [Measurement(batch_size=start * 2**at, images_per_s=speed) for at, speed in enumerate(speeds)]
    if last:
        attempts[-1] = Measurement(batch_size=attempts[-1].batch_size, **{"images_per_s": speeds[-1]} | last)
    return attempts


def settle(search, speed_of):
    """The batches that are tried until there is nothing to try."""
    attempts, rounds = [], []
    while sizes := next_batches(search, attempts):
        rounds.append(sizes)
        attempts += [Measurement(batch_size=size, **speed_of(size)) for size in sizes]
    return attempts, rounds


def test_batches_are_doubled_until_that_gains_less_than_a_twentieth():
    search = Search(start=512)
    # 30 %, 5 % and 4.9 % more: the last one ends it, and is not worth it.
    speeds = {512: 1000.0, 1024: 1300.0, 2048: 1365.0, 4096: 1431.9}
    attempts, rounds = settle(search, lambda size: {"images_per_s": speeds[size]})
    assert rounds == [(512,), (1024,), (2048,), (4096,)]
    assert choose_batch(search, attempts).batch_size == 2048
    assert "Batch 4096 gains +4.9 %" in " ".join(
        explain(search, attempts, choose_batch(search, attempts), has_workers=False)
    )


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"memory_share": 0.81}, "Batch 1024 took 81 % of the memory, the limit being 80 %."),
        ({"images_per_s": None, "failure": "x", "out_of_memory": True}, "Batch 1024 ran out of memory."),
        ({"images_per_s": None, "failure": "it broke"}, "Batch 1024 failed: it broke."),
        ({"images_per_s": 900.0}, "Batch 1024 is 10.0 % slower."),
    ],
)
def test_what_does_not_fit_ends_the_doubling_and_is_not_taken(last, said):
    attempts = tried(1000.0, 2000.0, **last)
    search = Search(start=512)
    assert next_batches(search, attempts) == ()
    assert choose_batch(search, attempts).batch_size == 512
    assert explain(search, attempts, attempts[0], has_workers=False)[1] == said


def test_memory_up_to_the_limit_is_fine():
    assert next_batches(Search(start=512), tried(1000.0, 2000.0, memory_share=0.8)) == (2048,)


def test_a_batch_that_is_too_large_from_the_start_is_halved_until_it_fits():
    search = Search(start=512, least=4)
    attempts, rounds = settle(
        search, lambda size: {"images_per_s": 10.0} if size <= 64 else {"failure": "memory", "out_of_memory": True}
    )
    assert rounds == [(512,), (256,), (128,), (64,)]
    assert choose_batch(search, attempts).batch_size == 64


def test_halving_ends_at_a_sample_per_rank_and_a_failure_of_another_kind_is_not_halved():
    too_large = {"failure": "memory", "out_of_memory": True}
    assert settle(Search(start=8, least=4), lambda size: too_large)[1] == [(8,), (4,)]
    attempts, rounds = settle(Search(start=8), lambda size: {"failure": "no data"})
    assert (rounds, choose_batch(Search(start=8), attempts)) == ([(8,)], None)
    assert explain(Search(start=8), attempts, None, has_workers=False) == [
        "No batch size ran with memory to spare: no data."
    ]


def test_where_the_program_itself_takes_the_memory_nothing_smaller_is_tried_and_more_is_asked_for():
    share = {512: 0.94, 256: 0.93}  # on a line that is at 0.92 without a batch; 0.93 / 0.8 = 1.16
    attempts, rounds = settle(Search(start=512), lambda size: {"images_per_s": 10.0, "memory_share": share[size]})
    assert rounds == [(512,), (256,)]
    assert explain(Search(start=512), attempts, None, has_workers=False) == [
        "No batch size ran with memory to spare: 93 % of the memory; 94 % of the memory.",
        "Without any batch it would take 92 % of it, the limit being 80 %.",
        "Ask for at least 1.2 times the memory (--mem) and tune again.",
    ]


def test_a_batch_whose_memory_is_its_own_is_halved_until_it_fits():
    # 0.4 without a batch, and 0.4 for each 256 samples.
    attempts, rounds = settle(
        Search(start=1024), lambda size: {"images_per_s": 10.0, "memory_share": 0.4 + 0.4 * size / 256}
    )
    assert rounds == [(1024,), (512,), (256,)]
    assert choose_batch(Search(start=1024), attempts).batch_size == 256


@pytest.mark.parametrize(
    ("training", "most", "rounds"),
    [
        ({"batch_size_per_rank": 3}, None, [(6,), (2,)]),  # not 3, which is no whole number per rank
        ({"batch_size": 6}, None, [(6,), (3,)]),
        ({}, 100, [(100,), (50,), (25,), (12,), (6,), (3,)]),
        ({"batch_size_per_rank": 64}, 101, [(100,), (50,), (24,), (12,), (6,), (2,)]),
    ],
)
def test_the_search_of_two_ranks_keeps_to_what_can_be_written_down(training, most, rounds):
    search = begin_search(JobSpec(name="a", layout=LAYOUT, training=Training(**training)), most)
    assert settle(search, lambda size: {"failure": "memory", "out_of_memory": True})[1] == rounds


def test_fewer_samples_than_ranks_are_refused():
    with pytest.raises(UsageError, match="most is 1, and 2 ranks") as error:
        begin_search(JobSpec(name="a", layout=LAYOUT), 1)
    assert error.value.hint == "use --most 2"


def test_the_target_ends_the_search_at_the_smallest_batch_that_reaches_it():
    search = Search(start=512, target_utilization=0.9)
    busy = {512: 0.6, 1024: 0.9, 2048: 0.99}
    attempts, rounds = settle(search, lambda size: {"images_per_s": float(size), "utilization": busy[size]})
    assert rounds == [(512,), (1024,)]
    chosen = choose_batch(search, attempts)
    assert chosen.batch_size == 1024
    assert explain(search, attempts, chosen, has_workers=False) == [
        "Batch 1024: 1,024 images/s, CPUs 90 % busy.",
        "It is the smallest that keeps the CPUs 90 % busy.",
    ]


def test_a_target_out_of_reach_gives_the_fastest_and_says_so():
    search = Search(start=512, target_utilization=0.95)
    attempts = [
        Measurement(batch_size=512, images_per_s=10.0, utilization=0.5, processor="GPU"),
        Measurement(batch_size=1024, images_per_s=10.1, utilization=0.6, processor="GPU"),
    ]
    assert next_batches(search, attempts) == ()
    chosen = choose_batch(search, attempts)
    assert (chosen.batch_size, explain(search, attempts, chosen, has_workers=False)[1]) == (
        512,
        "None keeps the GPUs 95 % busy; this is the fastest.",
    )


def test_several_are_tried_at_once_where_each_round_waits_and_none_above_the_most():
    search = Search(start=512, at_once=4, most=16_384)
    _, rounds = settle(search, lambda size: {"images_per_s": float(size)})
    assert rounds == [(512, 1024, 2048, 4096), (8192, 16_384)]
    # Of those tried together the ones beyond the end of the doubling count, too.
    assert choose_batch(search, tried(100.0, 101.0, 150.0, 152.0)).batch_size == 2048


def test_workers_are_tried_only_where_the_data_are_waited_for():
    slow = Measurement(batch_size=64, images_per_s=100.0, data_share=0.4)
    assert next_workers(slow, [slow], 2, has_workers=True) == (0, 1, 2, 4)
    assert next_workers(slow, [slow], 16, has_workers=True) == (0, 1, 2, 4, 8, 16)
    assert next_workers(slow, [slow], 2, has_workers=False) == ()
    fed = Measurement(batch_size=128, images_per_s=100.0, data_share=0.1)
    assert next_workers(fed, [slow, fed], 2, has_workers=True) == ()
    unknown = Measurement(batch_size=128, images_per_s=100.0)
    assert next_workers(unknown, [unknown], 2, has_workers=True) == ()
    assert next_workers(unknown, [slow, unknown], 2, has_workers=True) == (0, 1, 2, 4)


def test_the_fewest_workers_about_as_fast_as_the_fastest_are_taken():
    batch = Measurement(batch_size=64, images_per_s=100.0, data_share=0.4)
    counts = [
        Measurement(batch_size=64, workers=at, images_per_s=speed) for at, speed in ((0, 60.0), (1, 101.0), (2, 150.0))
    ]
    more = Measurement(batch_size=64, workers=4, images_per_s=154.0)
    assert choose_workers(batch, [*counts, more]).workers == 2
    assert choose_workers(batch, counts[:2]) is batch


def rank(number=0, host="n1", node_rank=0, **figures):
    return RankUsage(
        **{
            "rank": number,
            "local_rank": number,
            "node_rank": node_rank,
            "world_size": 2,
            "host": host,
            "started_at_s": 1000.0,
            "memory_peak_bytes": GIB,
            "node_memory_bytes": 8 * GIB,
        }
        | figures
    )


def record(*ranks, state="COMPLETED", failure=None):
    return JobRecord(status=JobStatus(job_id="1", state=state), ranks=list(ranks), failure=failure)


def test_memory_is_compared_with_what_was_asked_for_else_with_what_there_is():
    two = record(rank(0), rank(1))
    assert find_memory_share(LAYOUT, two) == 0.25  # 2 of 8 GiB
    assert find_memory_share(Layout(nodes=1, gpus=2, mem="4G"), two) == 0.5
    assert find_memory_share(Layout(nodes=1, gpus=2, mem_per_cpu="1G"), two) == 0.5  # 2 ranks x 2 CPUs x 1 GiB
    full = rank(1, gpu_memory_peak_bytes=60 * GIB, gpu_memory_total_bytes=80 * GIB)
    assert find_memory_share(LAYOUT, record(rank(0), full)) == 0.75
    assert find_memory_share(LAYOUT, record(rank(0, memory_peak_bytes=None))) is None
    # Two nodes on one machine: what both ask for is there once for each.
    apart = record(rank(0), rank(1, node_rank=1))
    assert find_memory_share(Layout(nodes=2, gpus=1, mem="4G"), apart) == 0.25


def test_an_attempt_has_the_figures_of_its_steady_state():
    split = StepSplit(steps=50, data_s=0.002, compute_s=0.007, communication_s=0.0, other_s=0.001, step_s=0.010)
    training = TrainingMetrics(images_per_s=5000.0, split=split, steady_at_s=1003.0, phases_s={"steady": 4.0})
    curve = UsageCurve(
        rank=0, host="n1", started_at_s=1000.0, every_s=1.0,
        at_s=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0), cpu_cores=(0.1, 0.1, 0.1, 1.0, 2.0, 1.0, 2.0, 0.1),
    )  # fmt: skip
    found = build_attempt(LAYOUT, record(rank(0, training=training)), [curve], batch_size=64, run="r")
    # From 3 to 7 s: 1.5 CPUs of the rank's two.
    assert (found.utilization, found.processor, found.images_per_s) == (0.75, "CPU", 5000.0)
    assert (found.data_share, found.memory_share, found.failure) == (pytest.approx(0.2), 0.125, None)


@pytest.mark.parametrize(("node", "own", "crowded"), [(1.0, 0.5, True), (1.0, 1.9, False), (0.6, 0.5, False)])
def test_a_node_without_a_cpu_left_for_the_ranks_is_told(node, own, crowded):
    training = TrainingMetrics(images_per_s=10.0, steady_at_s=1001.0, phases_s={"steady": 2.0})
    curve = UsageCurve(
        rank=0, host="n1", started_at_s=1000.0, every_s=1.0, at_s=(1.0, 2.0, 3.0),
        cpu_cores=(0.0, own, own), node_cpu_utilization=(0.0, node, node),
    )  # fmt: skip
    one = build_attempt(LAYOUT, record(rank(0, training=training)), [curve], batch_size=64)
    said = explain(Search(start=64), [one], one, has_workers=False)
    assert (one.is_crowded, "other programs took the node's CPUs" in said[-1]) == (crowded, crowded)


def test_a_job_that_died_is_an_attempt_that_says_why():
    cause = Cause(kind="cuda-out-of-memory", sentence="rank 0 ran out of GPU memory")
    found = build_attempt(LAYOUT, record(state="FAILED", failure=cause), [], batch_size=64)
    assert (found.out_of_memory, found.failure, found.fits) == (True, "rank 0 ran out of GPU memory", False)
    other = build_attempt(LAYOUT, record(state="TIMEOUT"), [], batch_size=64)
    assert (other.out_of_memory, other.failure) == (False, "its job is TIMEOUT")
    assert build_attempt(LAYOUT, None, [], batch_size=64).failure == "it was not submitted"


JOB = '# a job\nname = "mnist"\nbatch-size = 512   # over all ranks\nepochs = 3\n'
STUDY = 'name = "s"\nlayouts = ["1x1"]\n\n[options]   # of all jobs\nepochs = 3\n\n[prices]\nper-gpu-hour = 1.0\n'


@pytest.mark.parametrize(
    ("before", "settings", "after"),
    [
        (JOB, {"batch_size": 1024}, JOB.replace("512", "1024")),
        (JOB.replace("-", "_"), {"batch_size": 1024}, JOB.replace("-", "_").replace("512", "1024")),
        (JOB, {"workers": 2}, JOB + "workers = 2\n"),
        ('epochs = 3\n# its variables\n[env]\nA = "1"\n', {"workers": 2},
         'epochs = 3\nworkers = 2\n# its variables\n[env]\nA = "1"\n'),
        ("", {"batch_size": 64}, "batch-size = 64\n"),
        (STUDY, {"batch_size": 1024}, STUDY.replace("jobs\n", "jobs\nbatch-size = 1024\n")),
        ('name = "s"\nlayouts = ["1x1"]', {"batch_size": 8},
         'name = "s"\nlayouts = ["1x1"]\n\n[options]\nbatch-size = 8\n'),
        ('name = "s"\nlayouts = ["1x1"]\noptions = { lr = 0.1, batch-size = 8 }\n', {"batch_size": 16},
         'name = "s"\nlayouts = ["1x1"]\noptions = { lr = 0.1, batch-size = 16 }\n'),
        ("batch-size-per-rank = 8\n", {"batch_size_per_rank": 16}, "batch-size-per-rank = 16\n"),
    ],
)  # fmt: skip
def test_what_was_found_is_written_and_everything_else_stays(before, settings, after):
    assert set_options(before, settings, "f.toml") == after


def test_a_file_that_can_t_be_changed_says_what_to_write():
    text = 'name = "s"\nlayouts = ["1x1"]\noptions = { lr = 0.1 }\n'
    with pytest.raises(UsageError, match="can't be changed") as error:
        set_options(text, {"batch_size": 16}, "s.toml")
    assert error.value.hint == "write batch-size = 16 under [options] yourself"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('layouts = ["1x1"]\n[grid]\nbatch-size = [1, 2]', "sweeps batch_size"),
        ('layouts = ["1x1"]\n[zip]\nworkers = [1, 2]', "sweeps workers"),
        ("[[layouts]]\nnodes = 1\nbatch_size_per_rank = 8", "single layout"),
        ('layouts = ["1x1"]\n[options]\ncommand = ["a"]', "has a command"),
        ('command = ["a"]', "has a command"),
    ],
)
def test_a_file_with_no_place_for_it_is_refused_before_anything_is_tried(text, match):
    with pytest.raises(UsageError, match=match):
        check_writable(tomllib.loads(text), "f.toml")


@pytest.mark.parametrize("text", [JOB, STUDY])
def test_other_files_are_fine(text):
    check_writable(tomllib.loads(text), "f.toml")
