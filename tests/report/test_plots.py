"""The plots of a study: what is drawn, what is left out, and that nothing but the figures decides their bytes."""

import functools
import re
import struct
import subprocess
import sys
from xml.etree import ElementTree

import msgspec
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from hpcdist.jobs import tensorboard
from hpcdist.report.model import Fit
from hpcdist.report.plot_figures import (
    choose_time,
    draw_accuracy_over_time,
    draw_cost,
    draw_efficiency,
    draw_speedup,
    draw_step,
    draw_throughput,
    draw_use,
    name_baseline,
    parts_of,
    predict_speedup,
)
from hpcdist.report.plot_style import choose_looks, plot_style, side_by_side
from hpcdist.report.plots import draw_plots
from tests.report import comparisons

KEYS = [
    *("speedup", "efficiency", "throughput", "throughput-per-rank", "step", "accuracy-time", "accuracy-hours"),
    *("cost", "use"),
]


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter("text")]


@functools.cache
def drawn(name):
    """The plots of an example, drawn once."""
    return draw_plots(getattr(comparisons, name)(), png=True)


def svgs(name):
    return {plot.key: plot.svg for plot in drawn(name)}


@pytest.fixture(autouse=True)
def _style():
    with plot_style("test"):
        yield


def line_ends(figure, style):
    """The ends of the lines of that style, as (x, y) pairs."""
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == style and len(line.get_xdata()) > 1]
    return [tuple(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in lines]


@pytest.mark.parametrize("name", ["plain", "sweep"])
def test_everything_measured_is_drawn(name):
    assert list(svgs(name)) == KEYS
    assert None not in svgs(name).values()


def test_nothing_is_drawn_of_what_nobody_measured():
    plots = drawn("sparse")
    assert [plot.svg for plot in plots] == [None] * len(KEYS)
    assert all(plot.missing for plot in plots)


def test_same_comparison_gives_the_same_bytes_in_another_process():
    code = "import sys; from tests.report import comparisons; from hpcdist.report.plots import *\n"
    code += "p = comparisons.plain(); sys.stdout.write(repr(draw_plots(p, png=True)))"
    once = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert once == repr(drawn("plain"))


def test_users_matplotlibrc_changes_nothing(monkeypatch):
    import matplotlib as mpl

    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        assert draw_plots(comparisons.plain(), png=True) == drawn("plain")
        assert mpl.rcParams["font.size"] == 30


def test_ids_are_used_and_no_two_plots_of_a_page_share_one():
    page = "".join(svgs("plain").values())
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0
    assert all(f"#{one}" in page for one in ids)


def test_svg_takes_the_colours_of_the_page_and_holds_its_text_as_text():
    svg = svgs("plain")["throughput"]
    # By hand: 8,200 images/s of one GPU is the example's own figure.
    assert {"1x1", "2x2", "8,200", "images/s"} <= set(texts(svg))
    assert "currentColor" in svg
    assert "var(--plot-1, #0072b2)" in svg
    assert "<style" not in svg
    assert not re.search("https?:|<script|#22262b(?!\\))", svg)


def test_hostile_names_are_text_and_no_formula():
    for svg in svgs("hostile").values():
        assert not re.search("<script|<b>|\x1b|\x00", svg)
        ElementTree.fromstring(svg)
    assert any("<script>" in text for text in texts(svgs("hostile")["throughput"]))
    assert any("$\\frac" in text for text in texts(svgs("hostile")["speedup"]))


def test_layout_keeps_its_colour_and_a_setting_its_shape():
    looks = list(choose_looks(comparisons.sweep().rows).values())
    assert [look.colour for look in looks] == [looks[0].colour, looks[1].colour] * 4
    assert looks[0].colour != looks[1].colour
    assert [look.marker for look in looks[::2]] == [look.marker for look in looks[1::2]]
    assert len({look.marker for look in looks}) == 4


def test_shapes_tell_layouts_apart_where_nothing_is_swept():
    assert len({look.marker for look in choose_looks(comparisons.plain().rows).values()}) == 4


def test_ideal_line_starts_at_the_baseline_and_doubles_with_the_ranks():
    ideal = line_ends(draw_speedup(comparisons.plain()), ":")
    assert ideal == [((1, 1.0), (8, 8.0))]


def test_speedup_axes_are_logarithmic():
    axes = draw_speedup(comparisons.plain()).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_law_is_dashed_beyond_the_last_measured_point_alone():
    dashed = line_ends(draw_speedup(comparisons.plain()), "--")
    assert [(line[0][0], line[-1][0]) for line in dashed] == [(4, pytest.approx(8))]
    # By hand: 1 / (0.1136 + 0.8864 / 8) = 4.456
    assert dashed[0][-1][1] == pytest.approx(4.456, abs=0.001)


def test_no_law_is_drawn_where_there_were_not_enough_points():
    plain = comparisons.plain()
    figure = draw_speedup(msgspec.structs.replace(plain, fits=plain.fits[2:]))
    assert line_ends(figure, "--") == []


def test_laws_are_what_their_authors_wrote():
    # Gunther, Guerrilla Capacity Planning: at N = 1 the law is gamma; here 4 / (1 + 0.3 + 0.12).
    usl = Fit(law="usl", parameters={"alpha": 0.1, "beta": 0.01, "gamma": 1.0})
    assert predict_speedup(usl, 1) == 1
    assert predict_speedup(usl, 4) == pytest.approx(4 / 1.42)
    assert predict_speedup(Fit(law="amdahl", parameters={"serial_fraction": 0.5}), 1e9) == pytest.approx(2)
    assert predict_speedup(Fit(law="amdahl"), 4) is None


def test_speedup_is_left_out_where_all_have_the_same_ranks():
    plain = comparisons.plain()
    assert draw_speedup(msgspec.structs.replace(plain, rows=plain.rows[:1])) is None


def test_studies_of_one_layout_have_no_parallel_efficiency():
    plain = comparisons.plain()
    rows = (plain.rows[1], msgspec.structs.replace(plain.rows[1], label="1x2 lr=1", settings={"lr": 1}))
    assert draw_efficiency(msgspec.structs.replace(plain, rows=rows)) is None


def test_a_legend_calls_settings_as_the_study_does():
    row = comparisons.plain().rows[1]
    slow = msgspec.structs.replace(row, label="1x2 slow rank", settings={"env.HPCDIST_DRILL_SLOW_RANK": "1:0.02"})
    assert [look.setting for look in choose_looks((row, slow)).values()] == ["", "slow rank"]


def test_baseline_is_named_or_its_layout_where_each_setting_has_its_own():
    assert draw_speedup(comparisons.plain()).axes[0].get_title(loc="left") == "speedup over 1x1"
    assert name_baseline(comparisons.sweep().rows) == "1x1 with the same settings"


def test_efficiency_starts_at_zero_and_has_the_75_percent_line():
    axes = draw_efficiency(comparisons.plain()).axes[0]
    assert axes.get_ylim()[0] == 0
    assert any(list(line.get_ydata()) == [75.0, 75.0] for line in axes.lines)


@pytest.mark.parametrize("draw", [draw_throughput, draw_step, draw_use])
def test_bars_start_at_zero(draw):
    axes = draw(comparisons.plain()).axes[0]
    assert axes.get_xlim()[0] == 0
    assert min(patch.get_x() for patch in axes.patches) == 0


def test_variant_without_a_figure_keeps_its_place_and_says_so():
    plain = comparisons.plain()
    rows = (msgspec.structs.replace(plain.rows[0], images_per_s=None), *plain.rows[1:])
    shown = [text.get_text() for text in draw_throughput(msgspec.structs.replace(plain, rows=rows)).axes[0].texts]
    assert "1x1" in shown
    assert "– not measured" in shown


def crowd(count):
    """So many variants, the baseline last."""
    rows = comparisons.plain().rows
    settings = [{"lr": at / 1000} for at in range(count)]
    crowd = [msgspec.structs.replace(rows[1], label=f"1x2 lr={one['lr']}", settings=one) for one in settings[1:]]
    return msgspec.structs.replace(comparisons.plain(), rows=(*crowd, rows[0]))


def test_more_variants_than_a_picture_holds_are_counted_and_the_baseline_stays():
    plots = draw_plots(crowd(100))
    assert all(plot.caption.endswith(" 32 of 100 variants are drawn.") for plot in plots)
    assert "1x1" in texts(plots[2].svg)
    assert "… and 21 more" in texts(plots[1].svg)  # 2 layouts and 31 settings, of which 12 fit


def test_few_variants_are_all_drawn_and_not_counted():
    assert not any("variants are drawn" in plot.caption for plot in drawn("sweep"))


def test_waiting_is_taken_out_of_the_communication():
    # The example's 2x2: 4.3 ms of communication, 2.4 ms of it waiting.
    parts = dict(parts_of(comparisons.plain().rows[3]))
    assert parts["waiting"] == pytest.approx(0.0024)
    assert parts["communication"] == pytest.approx(0.0019)
    assert sum(parts.values()) == pytest.approx(0.0213)


def test_error_bars_are_there_only_for_what_was_repeated():
    def bars(comparison):
        return sum(len(one.get_segments()) for one in draw_efficiency(comparison).axes[0].collections)

    plain = comparisons.plain()
    single = tuple(
        msgspec.structs.replace(row, efficiency=msgspec.structs.replace(row.efficiency, low=1.0, high=1.0, median=1.0))
        for row in plain.rows
    )
    assert bars(plain) == 3  # the baseline over itself is 1
    assert bars(msgspec.structs.replace(plain, rows=single)) == 0


def test_accuracy_has_a_curve_per_trial_and_the_target():
    axes = draw_accuracy_over_time(comparisons.plain()).axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(curves) == 12
    assert any(list(line.get_ydata()) == [98.5, 98.5] for line in axes.lines)


def test_cost_is_in_hours_where_there_are_no_prices():
    assert draw_cost(comparisons.plain()).axes[0].get_title(loc="left") == "cost of a run, EUR"
    assert draw_cost(comparisons.sweep()).axes[0].get_title(loc="left") == "cost of a run, GPU-hours"


def test_time_axes_have_the_unit_that_fits():
    assert [choose_time([longest])[1] for longest in (90, 600, 7200, 200000)] == ["s", "min", "h", "days"]


def test_points_at_the_same_number_of_ranks_stand_side_by_side():
    places = side_by_side([1, 2, 2, 4])
    assert (places[0], places[3]) == (1, 4)
    assert places[1] < 2 < places[2]


def test_images_are_pngs_with_their_size():
    plots = drawn("plain")
    assert [plot.key for plot in plots] == KEYS
    for plot in plots:
        assert plot.png.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", plot.png[16:24])
        assert width > 600
        assert height > 250


def pngs(name):
    return {plot.key: plot.png for plot in drawn(name) if plot.png}


def test_tensorboard_reads_the_plots_as_images(tmp_path):
    folder = tmp_path / "tb_logs" / "mnist-layouts" / "report"
    tensorboard.write_plots(folder, 1.0, pngs("plain"))
    tensorboard.write_plots(folder, 1.0, pngs("plain"))  # replaced, not added to
    files = list(folder.iterdir())
    events = list(EventFileLoader(str(files[0])).Load())
    tags = [value.tag for event in events for value in event.summary.value]
    assert len(files) == 1
    assert tags == [f"report/{key}" for key in KEYS]
    first = events[1].summary.value[0]
    assert first.metadata.plugin_data.plugin_name == "images"


def test_tensorboard_gets_no_file_where_nothing_can_be_drawn(tmp_path):
    tensorboard.write_plots(tmp_path / "report", 1.0, pngs("sparse"))
    assert not (tmp_path / "report").exists()


def test_board_is_imported_without_matplotlib():
    code = "import sys, hpcdist.jobs.tensorboard; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
