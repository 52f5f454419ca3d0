"""Study files: what they say, and what is said of their faults."""

import pytest

from hpcdist.errors import UsageError
from hpcdist.studies.study_file import parse_study
from hpcdist.studies.variants import choose, expand, list_trials, reconcile

PLAIN = 'name = "s"\nlayouts = ["1x1", "2x1"]\n'


def labels(text, defaults=None):
    return [variant.label for variant in expand(parse_study(text, "s.toml", defaults), defaults or {})]


def test_every_key_of_a_study_is_read():
    study = parse_study(
        """
name = "mnist-layouts"
repeat = 3
scaling = "weak"
baseline = "1x1"
target-accuracy = 0.98
layouts = ["1x1", "2x3cpu", { nodes = 2, gpus = 1, mem-per-cpu = "1G" }]
[options]
epochs = 3
batch-size-per-rank = 128
[grid]
precision = ["32", "bf16-mixed"]
[prices]
per-gpu-hour = 1
currency = "EUR"
[prices.node-types]
a100 = 2.5
[limits]
max-concurrent = 2
max-gpu-hours = 1.5
""",
        "s.toml",
    )
    # Where something is swept, a layout's name stands for its first variant.
    assert (study.name, study.baseline) == ("mnist-layouts", "1x1")
    assert study.layouts == (
        {"nodes": 1, "gpus": 1},
        {"nodes": 2, "gpus": 0, "tasks_per_node": 3},
        {"nodes": 2, "gpus": 1, "mem_per_cpu": "1G"},
    )
    assert study.options == {"epochs": 3, "batch_size_per_rank": 128}
    assert study.grid == {"precision": ("32", "bf16-mixed")}
    assert (study.prices.per_gpu_hour, study.prices.node_types, study.prices.currency) == (1.0, {"a100": 2.5}, "EUR")
    assert (study.limits.max_concurrent, study.limits.max_gpu_hours) == (2, 1.5)
    assert (study.target_accuracy, study.repeat, study.scaling) == (0.98, 3, "weak")


# A fault, the line it is on, the words of the error, the words of the hint.
FAULTS = [
    ('layouts = ["1x1"]\n', None, "name is missing", 'name = "mnist-layouts"'),
    ('name = "s"\n', None, "layouts is missing", "layouts = "),
    ('name = "../s"\nlayouts = ["1x1"]\n', 1, "name: '../s'", "letters"),
    ('name = "bash"\nlayouts = ["1x1"]\n', 1, "bash", "another name"),
    (PLAIN + "repet = 3\n", 3, "unknown key 'repet'", "did you mean 'repeat'?"),
    (PLAIN + "target-acuracy = 0.9\n", 3, "target_acuracy", "did you mean 'target-accuracy'?"),
    (PLAIN + "epochs = 3\n", 3, "epochs is an option of the jobs", "[options]"),
    (PLAIN + "[options]\nepoch = 3\n", 4, "unknown key 'epoch'", "did you mean 'epochs'?"),
    (PLAIN + '[options]\nepochs = "3"\n', 4, "epochs is '3': Expected int, got str", "docs"),
    (PLAIN + "[options]\nepochs = 0\n", 4, "epochs is 0, expected 1 or more", "--epochs"),
    (PLAIN + '[options]\ntime = "soon"\n', 4, "time limit 'soon'", "minutes"),
    (PLAIN + '[options]\narray = "0-3"\n', 4, "a study makes job arrays by itself", "repeat"),
    (PLAIN + '[options]\nenv = { HF_TOKEN = "x" }\n', 4, "HF_TOKEN is a secret", "secret-env"),
    (PLAIN + "repeat = 0\n", 3, "repeat is 0, expected 1 or more", ""),
    (PLAIN + "repeat = true\n", 3, "repeat is True: Expected int, got bool", ""),
    (PLAIN + "repeat = 100000\n", 3, "200000 trials", ""),
    (PLAIN + "target-accuracy = 98.0\n", 3, "target_accuracy is 98.0, expected a fraction", ""),
    (PLAIN + 'scaling = "strnog"\n', 3, "scaling is 'strnog': Invalid enum value", ""),
    (PLAIN + 'baseline = "1x2"\n', 3, "no variant is called so", "did you mean '1x1'?"),
    (PLAIN + "[prices]\nper-gpu-hour = -1\n", 4, "per_gpu_hour is -1.0, expected 0 or more", ""),
    (PLAIN + "[prices]\ncurency = 'EUR'\n", 4, "unknown key 'curency'", "did you mean 'currency'?"),
    (PLAIN + "[prices.node-types]\na100 = -1\n", 4, "a100 is -1.0", ""),
    (PLAIN + "[limits]\nmax-concurrent = 0\n", 4, "max_concurrent is 0", ""),
    (PLAIN + "[limits]\nmax-gpu-hours = nan\n", 4, "max_gpu_hours is nan", ""),
    (PLAIN + "[zip]\nlr = [0.1, 0.2]\nseed = [1]\n", 3, "lr has 2, seed has 1", ""),
    (PLAIN + "[grid]\nlr = [0.1]\n[zip]\nlr = [0.1]\n", 6, "lr is swept twice", ""),
    (PLAIN + "[zip]\nlr = [0.1, 0.2, 0.1]\nseed = [1, 1, 1]\n", 4, "zip has [0.1, 1] twice", ""),
    (PLAIN + "[grid]\nlr = 0.1\n", 4, "lr is 0.1, expected a list", ""),
    (PLAIN + "[grid]\nlr = []\n", 4, "expected a list", ""),
    (PLAIN + "[grid]\nbatch-size = [128,\n  512,\n  128]\n", 6, "batch_size has 128 twice", ""),
    (PLAIN + '[grid]\nbatch-size = [128,\n  "512"]\n', 5, "batch_size is '512': Expected int", ""),
    (PLAIN + "[grid]\nbatchsize = [128]\n", 4, "unknown key 'batchsize'", "batch_size"),
    (PLAIN + '[grid]\nargs = [["--lr", "1"]]\n', 4, "args are added to a command", "command = "),
    (PLAIN + '[grid]\n"env.A B" = ["x"]\n', 4, "'A B' is not a variable name", ""),
    (PLAIN + "[options]\nbatch-size-per-rank = 8\n", 4, "weak scaling", "batch-size under [options]"),
    (PLAIN + 'scaling = "weak"\n', 3, "weak scaling needs the batch per rank", "batch-size-per-rank"),
    (PLAIN + 'scaling = "weak"\n[options]\nbatch-size = 8\n', 5, "batch_size is over all ranks", ""),
    ('name = "s"\nlayouts = [\n  "1x1",\n  "1x1",\n]\n', 4, "two variants are '1x1'", ""),
    ('name = "s"\nlayouts = ["1by1"]\n', 2, "'1by1' is no layout", "2x1"),
    ('name = "s"\nlayouts = ["0x1"]\n', 2, "nodes is 0, expected 1 or more", ""),
    ('name = "s"\n[[layouts]]\nnodes = 1\n[[layouts]]\nnodes = 2\nmem = "lots"\n', 6, "memory 'lots'", ""),
    ('name = "s"\n[[layouts]]\nnodes = 1\n[[layouts]]\nnode = 2\n', 5, "unknown key 'node'", "nodes"),
    ('name = "s"\nlayouts = 3\n', 2, "layouts is no list", ""),
    ('name = "s"\nlayouts = ["1x1"\n', None, "Unclosed array", "toml.io"),
    (PLAIN + '[options]\ndependency = "afterok:1"\n[limits]\nmax-concurrent = 1\n', 6, "dependency", "one of them"),
]


@pytest.mark.parametrize(("text", "line", "words", "hint"), FAULTS)
def test_a_fault_is_told_with_its_file_line_and_key(text, line, words, hint):
    with pytest.raises(UsageError) as caught:
        parse_study(text, "jobs/s.toml")
    assert caught.value.message.startswith(f"jobs/s.toml, line {line}: " if line else "jobs/s.toml: ")
    assert words in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint


def test_a_line_is_found_past_text_that_only_looks_like_keys():
    text = (
        'name = "s" # layouts = 1\nlayouts = ["1x1"]\n[options]\nsetup = ["""\nepochs = 1\n[grid]\n"""]\nepochs = 0\n'
    )
    with pytest.raises(UsageError, match="line 8: epochs is 0"):
        parse_study(text, "s.toml")


def test_layouts_without_sweeps_are_labelled_by_their_shape():
    assert labels('name = "s"\nlayouts = ["1x1", "1x2", "2x1", "2x3cpu"]\n') == ["1x1", "1x2", "2x1", "2x3cpu"]


def test_a_grid_is_every_combination_and_zipped_options_go_together():
    text = PLAIN + "[zip]\nbatch-size = [128, 512]\nlr = [1e-3, 0.004]\n[grid]\nprecision = ['32', 'bf16-mixed']\n"
    found = labels(text)
    assert found[:4] == [
        "1x1 batch_size=128 lr=0.001 precision=32",
        "1x1 batch_size=128 lr=0.001 precision=bf16-mixed",
        "1x1 batch_size=512 lr=0.004 precision=32",
        "1x1 batch_size=512 lr=0.004 precision=bf16-mixed",
    ]
    assert len(found) == 8


def test_one_of_the_options_that_go_together_may_have_a_value_twice():
    assert labels(PLAIN + "[zip]\nlr = [0.1, 0.2]\nbatch-size = [64, 64]\n")[:2] == [
        "1x1 lr=0.1 batch_size=64",
        "1x1 lr=0.2 batch_size=64",
    ]


def test_layouts_of_one_shape_are_told_apart_by_what_differs():
    text = """
name = "s"
[[layouts]]
constraint = "a100"
time = "5"
[[layouts]]
constraint = "v100"
time = "5"
[[layouts]]
nodes = 2
constraint = "v100"
"""
    assert labels(text) == ["1x1 constraint=a100", "1x1 constraint=v100", "2x1"]


def test_a_program_s_arguments_and_variables_can_be_swept():
    text = PLAIN + (
        '[options]\ncommand = ["python", "t.py"]\nenv = { A = 1 }\n'
        '[zip]\nargs = [["--lr", 0.1], []]\n[grid]\nenv.LR = [0.5]\nsbatch.gres-flags = ["x"]\n'
    )
    study = parse_study(text, "s.toml")
    first, second = expand(study, {})[:2]
    assert first.label == "1x1 args=--lr 0.1 env.LR=0.5 sbatch.gres-flags=x"
    assert first.options["command"] == ["python", "t.py", "--lr", "0.1"]
    assert first.options["env"] == {"A": "1", "LR": "0.5"}
    assert first.options["sbatch"] == {"gres-flags": "x"}
    assert second.options["command"] == ["python", "t.py"]


def test_whole_tables_can_be_swept():
    found = labels(PLAIN + '[grid]\nenv = [{ A = "1" }, { A = "2", B = "x" }]\n')
    assert found[:2] == ["1x1 env=A=1", "1x1 env=A=2,B=x"]


def test_the_site_s_defaults_are_below_the_study_s_options():
    study = parse_study(PLAIN + "[options]\nepochs = 5\n", "s.toml")
    (first, _) = expand(study, {"epochs": 9, "partition": "gpu", "gpus": 4})
    assert (first.options["epochs"], first.options["partition"], first.layout.gpus) == (5, "gpu", 1)


def test_a_site_s_batch_per_rank_does_not_slip_into_strong_scaling():
    with pytest.raises(UsageError, match="weak scaling"):
        parse_study(PLAIN, "s.toml", {"batch_size_per_rank": 8})
    parse_study(PLAIN + "[options]\nbatch-size = 64\n", "s.toml", {"batch_size_per_rank": 8})


def test_weak_scaling_takes_a_swept_batch_per_rank():
    assert len(labels(PLAIN + 'scaling = "weak"\n[grid]\nbatch-size-per-rank = [8, 16]\n')) == 4


def test_a_program_of_one_s_own_has_a_batch_of_its_own():
    labels(PLAIN + 'scaling = "weak"\n[options]\ncommand = ["true"]\n')


def trials_of(text, known=(), former=()):
    study = parse_study(text, "s.toml")
    wanted = list_trials(study, expand(study, {}))
    return reconcile(wanted, known, former)


def send(trials):
    from msgspec.structs import replace

    return tuple(replace(trial, run="r", task=str(number)) for number, trial in enumerate(trials))


def test_repeats_go_round_all_variants():
    trials, _ = trials_of(PLAIN + "repeat = 2\n")
    assert [(trial.variant, trial.repeat) for trial in trials] == [("1x1", 1), ("2x1", 1), ("1x1", 2), ("2x1", 2)]


def test_an_edited_file_keeps_what_was_sent():
    sent = send(trials_of(PLAIN)[0])
    trials, former = trials_of('name = "s"\nrepeat = 2\nlayouts = ["1x2", "2x1"]\n', sent)
    assert [(trial.variant, trial.repeat, trial.task) for trial in trials] == [
        ("1x2", 1, None),
        ("2x1", 1, "1"),
        ("1x2", 2, None),
        ("2x1", 2, None),
    ]
    assert [trial.variant for trial in former] == ["1x1"]
    back, former = trials_of(PLAIN, trials, former)  # the layout comes back: so does its trial
    assert (back, former) == (sent, ())


def test_another_time_limit_or_price_makes_no_other_trial_but_another_option_does():
    sent = send(trials_of(PLAIN)[0])
    assert trials_of(PLAIN + '[options]\ntime = "9"\n[prices]\nper-gpu-hour = 1\n', sent)[0] == sent
    changed, former = trials_of(PLAIN + "[options]\nepochs = 9\n", sent)
    assert [trial.run for trial in changed] == [None, None]
    assert former == sent


def test_no_trial_begins_again_by_itself_unless_the_file_says_so():
    assert {choice.options["max_requeues"] for choice in choose(parse_study(PLAIN, "s.toml"))} == {0}
    asked = choose(parse_study(PLAIN + "[options]\nmax-requeues = 2\n", "s.toml"))
    assert {choice.options["max_requeues"] for choice in asked} == {2}
