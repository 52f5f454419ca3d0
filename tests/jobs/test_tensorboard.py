"""What ranks used over time, in the report and in TensorBoard."""

import msgspec
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from hpcdist.jobs import tensorboard
from hpcdist.records.usage_curve import UsageCurve
from hpcdist.report.html import render_html
from hpcdist.report.model import VariantUsage
from hpcdist.report.plot_figures import MOST_RANKS, draw_usage
from hpcdist.report.plot_style import plot_style
from hpcdist.report.plots import draw_usage_plots
from tests.report import comparisons


def curve(rank=0, **figures):
    measured = {"cpu_cores": (0.5, 2.0, None), "memory_bytes": (2.0**30, 2.0**31, 2.0**31)}
    times = {"started_at_s": 1000.0 + rank, "every_s": 1.0, "at_s": (1.0, 2.0, 3.0)}
    return UsageCurve(rank=rank, host="n1", **{**times, **measured, **figures})


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_there_is_a_panel_for_what_was_measured_and_a_line_per_rank():
    with plot_style("test"):
        figure = draw_usage([curve(0), curve(1)])
        assert titles(figure) == ["CPUs in use", "memory, GiB"]
        lines = figure.axes[1].lines
    # The second rank started a second later.
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 3], [2, 3, 4]]
    assert [list(line.get_ydata()) for line in lines] == [[1, 2, 2], [1, 2, 2]]


def test_gpus_and_both_directions_of_disk_and_network_are_drawn_where_there_are_any():
    both = {"disk_read_bytes_per_s": (1e6,) * 3, "disk_written_bytes_per_s": (0,) * 3}
    with plot_style("test"):
        figure = draw_usage([curve(gpu_utilization=(0.5, 1.0, 1.0), **both)])
        assert titles(figure) == ["CPUs in use", "GPU in use, %", "memory, GiB", "disk, MB/s: read –, written ···"]
        assert list(figure.axes[1].lines[0].get_ydata()) == [50, 100, 100]
        assert [max(line.get_ydata()) for line in figure.axes[3].lines] == [1, 0]


def test_a_job_that_ended_before_the_first_sample_has_no_picture():
    empty = UsageCurve(rank=0, host="n1", started_at_s=0.0, every_s=1.0)
    assert draw_usage([empty]) is None


def with_usage(ranks):
    plain = comparisons.plain()
    usage = {"1x2": VariantUsage(run="mnist-1x2-1a1", repeat=1, curves=tuple(curve(at) for at in range(ranks)))}
    return msgspec.structs.replace(plain, usage=usage)


def test_the_report_has_a_picture_per_variant_with_a_curve_and_says_where_there_is_none():
    (plot,) = draw_usage_plots(with_usage(MOST_RANKS + 1))
    assert plot.title == "1x2: use over time"
    assert plot.caption.endswith(f" {MOST_RANKS} of {MOST_RANKS + 1} ranks are drawn.")
    page = render_html(with_usage(2))
    assert page.count('id="figure-usage-2"') == 1
    assert "Run mnist-1x2-1a1, repeat 1; a point is the mean of 1 s" in page
    assert "No rank of a completed job sampled its use." not in page
    assert "No rank of a completed job sampled its use." in render_html(comparisons.sparse())


def test_tensorboard_has_a_scalar_per_figure_and_rank_and_none_of_what_nobody_measured(tmp_path):
    for _ in range(2):
        tensorboard.write_usage(tmp_path, [curve(0), curve(3)])
    events = [event for event in EventFileLoader(str(tmp_path / tensorboard.USAGE_FILE)).Load() if event.summary.value]
    found = {}
    for event in events:
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, event.wall_time, value.tensor.float_val[0]))
    assert set(found) == {f"usage/{name}/rank-{rank}" for name in ("cpu_cores", "memory_bytes") for rank in (0, 3)}
    assert found["usage/cpu_cores/rank-3"] == [(1, 1004.0, 0.5), (2, 1005.0, 2.0)]
    tensorboard.write_usage(tmp_path / "none", [])
    assert not (tmp_path / "none").exists()
