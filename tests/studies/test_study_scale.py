"""`--scale small`: what a study's `[small]` changes, and what is said of its faults."""

import pytest

from hpcdist.errors import UsageError
from hpcdist.studies.study_file import parse_study
from hpcdist.studies.variants import expand
from tests.conftest import REPOSITORY

TEXT = """name = "s"
layouts = ["1x1", "2x4"]
repeat = 3
[options]
epochs = 90
data = "/data/imagenet"
[grid]
lr = [0.1, 0.2]
[limits]
max-concurrent = 1
[small]
repeat = 1
layouts = ["1x1", "2x1"]
[small.options]
epochs = 1
data = "synthetic:3x8x8x10"
batch-size = 64
[small.grid]
precision = ["32"]
"""
STUDIES = sorted(path for path in (REPOSITORY / "jobs").glob("*.toml") if "layouts" in path.read_text())


def test_small_replaces_layouts_and_sweeps_and_merges_options():
    small = parse_study(TEXT, "s.toml", scale="small")
    assert (small.name, small.scale, small.repeat) == ("s-small", "small", 1)
    assert [variant.label for variant in expand(small, {})] == ["1x1 precision=32", "2x1 precision=32"]
    assert small.grid == {"precision": ("32",)}
    assert small.options == {"epochs": 1, "data": "synthetic:3x8x8x10", "batch_size": 64}
    assert small.limits.max_concurrent == 1


def test_without_it_the_study_is_as_if_there_were_no_small():
    full = parse_study(TEXT, "s.toml")
    assert full == parse_study(TEXT.partition("[small]")[0], "s.toml")
    assert full.scale == "full"


FAULTS = [
    (TEXT.replace("epochs = 1\n", "epochs = 0\n"), "small", 15, "epochs is 0, expected 1 or more"),
    (TEXT.replace("epochs = 90", "epochs = 0").replace("epochs = 1\n", ""), "small", 5, "epochs is 0"),
    (TEXT.replace('"2x1"', '"2y1"'), "small", 13, "'2y1' is no layout"),
    (TEXT.replace("[small.grid]", "[small.gird]"), "full", 18, "unknown key 'gird'"),
    (TEXT.replace("repeat = 1\n", "epochs = 1\n"), "full", 12, "epochs is an option of the jobs"),
    (TEXT.partition("[small]")[0], "small", None, "this study has no small scale"),
    ("small = 3\n" + TEXT.partition("[small]")[0], "full", 1, "small is 3, expected a table"),
]


@pytest.mark.parametrize(("text", "scale", "line", "words"), FAULTS)
def test_a_fault_of_small_is_told_with_its_line_and_key(text, scale, line, words):
    with pytest.raises(UsageError) as caught:
        parse_study(text, "s.toml", scale=scale)
    assert caught.value.message.startswith(f"s.toml, line {line}: " if line else "s.toml: ")
    assert words in caught.value.message


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_is_checked_in_has_a_small_scale_and_the_name_of_its_file(path):
    for scale in ("full", "small"):
        study = parse_study(path.read_text(), path.name, scale=scale)
        assert study.name == path.stem + ("-small" if scale == "small" else "")


def test_the_figures_that_the_write_ups_printed_stand_in_the_studies():
    # As docs/studies.md lists them.
    printed = {path.stem: parse_study(path.read_text(), path.name).references for path in STUDIES}
    assert list(printed["mnist-layouts"][0].figures.values()) == [199, 106, 71]
    training, starting, _ = printed["instance-survey"]
    assert list(training.figures.values()) == [6664, 884, 878, 595, 696, 438]
    assert list(starting.figures.values()) == [18.27, 23.07, 21.91, 18.12, 17.43, 18.62]
    times, competition = printed["svhn-allreduce-vs-ps"]
    assert times.unassigned == (9238, 9354, 12143, 7170, 10694, 15170, 16879, 11723)
    assert competition.unassigned == (86,)


def test_a_layout_s_own_options_are_settings_and_its_label_stands_for_them():
    text = 'name = "s"\nlayouts = ["2x1", { nodes = 2, env = { A = "1" }, lr = 0.1, label = "slow" }]\n'
    plain, slow = expand(parse_study(text, "s.toml"), {})
    assert (plain.label, plain.settings) == ("2x1", {})
    assert (slow.label, slow.settings) == ("2x1 slow", {"env.A": "1", "lr": 0.1})
    assert "label" not in slow.options


def test_a_label_is_a_few_words():
    with pytest.raises(UsageError, match="line 2: label is '', expected a few words"):
        parse_study('name = "s"\nlayouts = [{ nodes = 2, label = "" }]\n', "s.toml")
