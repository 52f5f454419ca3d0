"""The HTML report: whole, escaped, alone in its file, and silent about nothing."""

import functools
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import msgspec
import pytest

from hpcdist.config.job import Layout
from hpcdist.config.site import Site
from hpcdist.report.format import format_evidence, spread_cell
from hpcdist.report.html import describe_fit, render_html, tabulate_predictions, tabulate_speed, tabulate_trials
from hpcdist.report.model import Spread, TrialRow, VariantRow
from hpcdist.submission.render import read_templates
from hpcdist.units import format_money, format_number, format_seconds
from tests.report import comparisons

NAMES = ["plain", "sparse", "sweep", "hostile"]
VOID = {"meta", "link", "br", "hr", "img", "input"}


@functools.cache
def page(name):
    return render_html(getattr(comparisons, name)())


class Page(HTMLParser):
    """A page's elements, its text, and whether every element that was opened is closed in its turn."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.wrong = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        # A style sheet is no text, though it is data.
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def tags(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@functools.cache
def parsed(name):
    return Page(page(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_element_is_closed_in_its_turn(name):
    assert (parsed(name).wrong, parsed(name).open) == ([], [])


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_unique_and_links_inside_lead_somewhere(name):
    ids = [attributes["id"] for _, attributes in parsed(name).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in parsed(name).tags("a")} <= {f"#{one}" for one in ids}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_fetched_from_anywhere(name):
    for tag, attributes in parsed(name).elements:
        for key in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert (attributes.get(key) or "#").startswith(("#", "data:,")), (tag, attributes)
        assert not re.search(r"url\((?!#)", attributes.get("style") or "")
    assert not re.search(r"@import|https?://", page(name))


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_script_and_the_policy_would_let_none_run(name):
    tags = {tag for tag, _ in parsed(name).elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert not [key for _, attributes in parsed(name).elements for key in attributes if key.startswith("on")]
    policy = [meta for meta in parsed(name).tags("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert [meta["content"] for meta in policy] == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_hostile_names_stand_there_as_text():
    assert "<script>" not in page("hostile")
    text = parsed("hostile").text
    assert f"{comparisons.HOSTILE} is the fastest" in text
    assert f"run-{comparisons.HOSTILE}" in text
    assert "<b>" in text  # the currency
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\udc80]", page("hostile"))
    page("hostile").encode()


def test_hostile_names_bring_no_element_of_their_own():
    def tags(name):
        return {tag for tag, _ in parsed(name).elements}

    assert tags("hostile") <= tags("plain") | tags("sparse") | {"li"}


@pytest.mark.parametrize("name", ["plain", "sweep", "hostile"])
def test_every_sentence_of_the_verdict_is_there_with_its_advice(name):
    from hpcdist.text import printable

    for one in getattr(comparisons, name)().verdict:
        assert printable(one.sentence) in parsed(name).text
        assert one.advice is None or printable(one.advice) in parsed(name).text


def test_first_sentence_is_the_headline():
    html = page("plain")
    assert html.count('class="headline"') == 1
    headline = html[html.index('class="headline"') :]
    assert headline.index("2x2 is the fastest") < headline.index("</article>")


def test_evidence_is_printed_with_its_units():
    text = parsed("plain").text
    assert "communication 4.30 ms" in text
    assert "share 20.2 %" in text


def test_failed_and_denied_jobs_are_there_with_their_reason():
    text = parsed("sparse").text
    assert "FAILED" in text
    assert "rank 1 on n1 left with exit code 1: CUDA out of memory" in text
    assert "REFUSED" in text
    assert "sbatch: error: Requested node configuration is not available" in text
    assert "Jobs not completed 1 failed, 1 refused" in text


def test_row_of_a_layout_that_never_completed_says_why():
    line = tabulate_speed(comparisons.sparse()).lines[2]
    assert line.remark == "REFUSED: sbatch: error: Requested node configuration is not available"
    assert line.mark == "failed"
    assert tabulate_speed(comparisons.plain()).lines[0].remark is None


def test_job_that_still_waits_did_not_fail():
    waiting = TrialRow(repeat=1, run="r", job_id="1", state="PENDING", reason="Resources")
    row = VariantRow(label="1x1", layout=Layout(), ranks_asked=1, trials=(waiting,))
    comparison = msgspec.structs.replace(comparisons.sparse(), rows=(row,))
    assert tabulate_trials(comparison).lines[0].mark == ""
    assert tabulate_trials(comparison).lines[0].remark == "Resources"


def test_what_nobody_measured_is_a_dash_and_never_none_or_nan():
    assert not re.search(r"\b(None|nan|null)\b", parsed("sparse").text)
    speed = tabulate_speed(comparisons.sparse()).lines[0]
    assert [cell.text for cell in speed.cells[2:]] == [None] * 7
    assert parsed("sparse").texts.count("–") > 40


def test_what_was_not_measured_and_not_drawn_is_said():
    assert "throughput: the program does not report it" in parsed("sparse").text
    assert "energy: no source on this cluster" in parsed("plain").text
    assert "Speedup: no speedup at another number of ranks" in parsed("sparse").text
    assert "Not drawn" not in parsed("plain").text


def test_every_run_has_its_exact_script_once():
    plain = comparisons.plain()
    assert len(parsed("plain").tags("details")) == len(plain.scripts) == 12
    for script in plain.scripts.values():
        assert script in "".join(parsed("plain").texts)
    assert len(parsed("sparse").tags("details")) == 0


def test_script_keeps_its_tabs_and_spaces():
    assert "\n\tindented  twice" in "".join(parsed("hostile").texts)


def test_all_plots_are_inside_the_page():
    assert len(parsed("plain").tags("svg")) == 9
    assert len(parsed("sparse").tags("svg")) == 0


def test_versions_machine_dates_and_repeats_are_there():
    text = parsed("plain").text
    for name, value in comparisons.CONDITIONS.items():
        assert f"{name} {value}" in text
    assert "each run 3 times" in text
    assert "Report made 2026-03-01 12:50 UTC" in text


def test_fits_that_lack_points_say_so_and_the_others_their_parameters():
    assert "not enough points: 3 numbers of ranks, 4 are needed" in parsed("plain").text
    amdahl, karp_flatt, _ = comparisons.plain().fits
    # By hand: 1 / 0.1136 = 8.803
    assert describe_fit(amdahl).startswith("serial fraction 0.1136; so at most 8.8 times as fast")
    assert describe_fit(karp_flatt).endswith("rising with the ranks: overhead")


def test_interval_of_a_fitted_parameter_is_shown():
    usl = msgspec.structs.replace(
        comparisons.plain().fits[2], note=None, parameters={"alpha": 0.05}, intervals={"alpha": (0.04, 0.06)}
    )
    assert describe_fit(usl) == "contention α 0.05 (95 %: 0.04 to 0.06)"


def test_prediction_says_how_far_off_it_was():
    # By hand: (228 - 236) / 236 = -3.39 %
    done, waiting = tabulate_predictions(comparisons.plain()).lines
    assert (done.cells[3].text, done.cells[3].note) == ("-3.4 %", "in the range")
    assert (waiting.cells[2].text, waiting.cells[2].note) == (None, "not run yet")


def test_efficiency_is_marked_by_the_75_percent_line():
    marks = [line.cells[6].mark for line in tabulate_speed(comparisons.plain()).lines]
    # The example's efficiencies: 100, 96, 90 and 74 %.
    assert marks == ["good", "good", "good", "bad"]


def test_baseline_over_itself_has_no_spread():
    first, second = tabulate_speed(comparisons.plain()).lines[:2]
    assert (first.cells[5].text, first.cells[5].note) == ("1.00×", None)
    assert second.cells[5].note == "1.90×–1.96×"


def test_layout_with_fewer_ranks_than_asked_is_marked():
    plain = comparisons.plain()
    rows = (*plain.rows[:3], msgspec.structs.replace(plain.rows[3], ranks_worked=2))
    lines = tabulate_speed(msgspec.structs.replace(plain, rows=rows)).lines
    assert (lines[3].cells[1].text, lines[3].cells[1].note) == ("2 of 4", "fewer than asked")
    assert lines[2].cells[1].note is None


def test_equally_fast_layouts_are_named():
    notes = [line.cells[0].note for line in tabulate_speed(comparisons.plain()).lines]
    assert notes == ["baseline", "as fast as 2x1", "as fast as 1x2", None]


def test_many_equally_fast_layouts_are_counted():
    plain = comparisons.plain()
    rows = (msgspec.structs.replace(plain.rows[1], same_as=("a", "b", "c", "d", "e", "f")),)
    line = tabulate_speed(msgspec.structs.replace(plain, rows=rows)).lines[0]
    assert line.cells[0].note == "as fast as a, b, c, d and 2 more"


def test_spread_is_shown_with_how_many_repeats_measured_it():
    spread = Spread(median=2.0, low=1.5, high=2.5, count=2)
    cell = spread_cell(spread, format_seconds, repeats=3)
    assert (cell.text, cell.note) == ("2.0 s", "1.5–2.5 s (2 of 3)")
    once = Spread(median=2.0, low=2.0, high=2.0, count=1)
    assert spread_cell(once, format_seconds, repeats=1).note is None


def test_figures_have_the_digits_and_units_of_a_table():
    # By hand; the long ones as seff has them.
    assert [format_seconds(s) for s in (0, 0.0043, 12.34, 99.96, 151)] == [
        *("0 s", "4.30 ms", "12.3 s", "00:01:40", "00:02:31")
    ]
    assert [format_number(x) for x in (24300.4, 512, 0.26, 0)] == ["24,300", "512", "0.2600", "0"]
    assert [format_money(x) for x in (1234.5, 0.26, 0)] == ["1,234.50", "0.260", "0.00"]
    # Decimal, as networks and the verdict's sentences have them.
    assert format_evidence("bandwidth_bytes_per_s", 3e6) == ("bandwidth", "3 MB/s")
    assert format_evidence("bytes_per_step", 227_880) == ("bytes per step", "228 kB")
    assert format_evidence("images_per_s", 8200.4) == ("images", "8,200/s")
    assert format_evidence("memory_used_bytes", 1024**3) == ("memory used", "1.00 GB")
    assert format_evidence("target_accuracy", 0.985) == ("target accuracy", "98.5 %")
    assert format_evidence("host", "n2") == ("host", "n2")


def test_same_comparison_gives_the_same_page_in_another_process():
    code = "import sys; from tests.report import comparisons; from hpcdist.report.html import render_html\n"
    code += "sys.stdout.buffer.write(render_html(comparisons.plain()).encode())"
    once = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert once == page("plain").encode()


def test_page_template_is_none_of_the_job_templates():
    texts, _ = read_templates(Site())
    assert not [name for name in texts if "report" in name]


def open_in_chromium(tmp_path, html):
    """What Chromium's console says of a page."""
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    command = [
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,2000", "--virtual-time-budget=1000"),
        # Any request to a host would end in this.
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--screenshot={tmp_path / 'report.png'}"),
        str((tmp_path / "report.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (tmp_path / "report.png").stat().st_size > 50_000
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


needs_chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on PATH to open the page with")


@needs_chromium
@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_chromium_opens_the_page_without_a_word_on_its_console(tmp_path, name):
    assert open_in_chromium(tmp_path, page(name)) == []


@needs_chromium
def test_chromium_would_name_a_script_and_a_request_that_the_policy_stops(tmp_path):
    html = page("plain").replace("</main>", '<script>alert(1)</script><img src="http://192.0.2.1/x.png"></main>')
    said = open_in_chromium(tmp_path, html)
    assert any("script" in line for line in said)
    assert any("192.0.2.1" in line for line in said)
