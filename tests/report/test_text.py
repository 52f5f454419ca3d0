"""The comparison as text: a table that fits, Markdown and CSV that hold what was measured."""

import csv
import io

import msgspec
import pytest

from hpcdist.config.site import Prices
from hpcdist.jobs.table import measure
from hpcdist.report.model import Comparison, Fit, Prediction
from hpcdist.report.text import (
    format_comparison,
    format_csv,
    format_figures,
    format_fit,
    format_markdown,
    format_prediction,
)
from tests.studies.finished_trials import done, failed, report, split, study, variant

ONE, TWO = variant("1x1"), variant("1x2")


@pytest.fixture
def compared():
    slow = [done(ONE, wall=w, splits=[split(compute=20.0)], memory_efficiency=0.4) for w in (29.0, 30.0, 31.0)]
    fast = [done(TWO, wall=25.0, images=28_000.0, splits=[split(compute=10.0, communication=5.0)] * 2), failed()]
    return report(study(prices=Prices(per_gpu_hour=3.6, currency="EUR")), [(ONE, slow), (TWO, fast)])


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_no_line_is_wider_than_the_terminal(compared, width):
    assert max(measure(line) for line in format_comparison(compared, width)) <= width


def test_the_table_of_a_narrow_terminal_keeps_the_most_important_columns(compared):
    assert format_figures(compared, 80) == [
        "VARIANT  RUNS  RANKS     WALL s  START s   IMAGES/s     SPEEDUP   EFF  COST",
        "1x1 *       3      1  30.0 ±1.0      2.0  20,000 ±0  1.00 ±0.00  100%  0.03",
        "1x2       1/2      2       25.0      2.0     28,000        1.40  70%!  0.05",
        "medians of the completed repeats; ± is half of their spread",
        "! under the 75% line of parallel efficiency",
        "* speedups refer to this one",
        "9 more column(s) in a wider terminal, --csv or --json",
    ]


def test_a_wide_terminal_has_the_step_s_parts(compared):
    heading = format_figures(compared, 160)[0]
    assert "COMM" in heading
    assert "GOODPUT" in heading
    assert "GPU %" not in heading  # nobody measured it


def test_failed_jobs_are_lines_with_their_reason(compared):
    assert "1x2 run 2: FAILED: rank 1 ran out of memory" in format_comparison(compared)


def test_text_from_outside_cannot_move_the_cursor():
    evil = failed(sentence="boom\x1b[31m\nerror: done")
    text = "\n".join(format_comparison(report(study(), [(ONE, [done(ONE), evil])])))
    assert "\x1b" not in text
    assert "1x1 run 2: FAILED: boom error: done" in text


def test_markdown_has_a_row_per_variant_and_escapes_what_would_be_markup():
    one = variant("1x1", settings={"env": "a|b <i>_x_"})
    text = format_markdown(report(study(name="my_study"), [(one, [done(one)])]))
    assert text.startswith("# my\\_study\n")
    assert "| 1x1 env=a\\|b \\<i>\\_x\\_ \\* | 1 | 1 |" in text


def test_csv_has_base_units_a_spread_in_three_columns_and_nothing_where_nothing_is_known(compared):
    rows = list(csv.DictReader(io.StringIO(format_csv(compared))))
    assert [row["variant"] for row in rows] == ["1x1", "1x2"]
    assert (rows[0]["wall_s"], rows[0]["wall_s_low"], rows[0]["wall_s_high"]) == ("30.0", "29.0", "31.0")
    assert rows[0]["memory_efficiency"] == "0.4"
    assert rows[1]["memory_efficiency"] == ""
    assert rows[1]["split_communication_s"] == "0.005"
    assert (rows[1]["runs"], rows[1]["jobs"]) == ("1", "2")


def test_a_label_in_csv_is_no_formula():
    one = msgspec.structs.replace(ONE, label="=1+1")
    rows = list(csv.DictReader(io.StringIO(format_csv(report(study(), [(one, [done(one)])])))))
    assert rows[0]["variant"] == "'=1+1"


def test_json_goes_there_and_back(compared):
    assert msgspec.json.decode(msgspec.json.encode(compared), type=Comparison) == compared


@pytest.mark.parametrize(
    ("fit", "text"),
    [
        (
            Fit(law="amdahl", ranks=(1, 2, 4), parameters={"serial_fraction": 0.125}),
            "Amdahl: serial fraction 0.125 over 1, 2, 4 ranks",
        ),
        (
            Fit(law="karp-flatt", ranks=(1, 2, 4), parameters={"e_2": 0.1, "e_4": 0.3, "rises": 1.0}),
            "Karp-Flatt: 2 ranks 0.1, 4 ranks 0.3 (rises: overhead that grows)",
        ),
        (
            Fit(law="usl", settings={"lr": 1}, note="not enough points: 3 of 4 numbers of ranks"),
            "USL (lr=1): not enough points: 3 of 4 numbers of ranks",
        ),
        (
            Fit(
                law="usl",
                ranks=(1, 2, 4, 8),
                parameters={"alpha": 0.1, "beta": 0.001, "gamma": 1.0, "peak_ranks": 30.0},
                intervals={"alpha": (0.05, 0.15)},
            ),
            "USL: alpha 0.1 (95 %: 0.05 to 0.15), beta 0.001 (no interval), gamma 1 (no interval); "
            "peak at 30 ranks (extrapolated); over 1, 2, 4, 8 ranks",
        ),
    ],
)
def test_a_fit_in_a_line(fit, text):
    assert format_fit(fit) == text


def test_a_prediction_says_how_far_off_it_was():
    one = Prediction(variant="2x1", wall_s=50.0, low_s=40.0, high_s=60.0, basis="1x2", measured_s=40.0)
    assert format_prediction(one) == "predicted 2x1: 50.0 s (40.0 to 60.0 s); measured 40.0 s, 25% off; from 1x2"
    assert "off" not in format_prediction(msgspec.structs.replace(one, measured_s=None))


def test_an_empty_report_has_lines():
    assert format_comparison(report(study(), [(ONE, [None])]), 80)
