"""Figures that others printed: columns of their own, in every form of a report, and never among what was measured."""

import csv
import io
import re

import msgspec
import pytest

from hpcdist.errors import UsageError
from hpcdist.jobs.table import measure
from hpcdist.report.html import render_html
from hpcdist.report.text import format_comparison, format_csv, format_markdown
from hpcdist.studies.study import Reference
from hpcdist.studies.study_file import parse_study
from tests.studies.finished_trials import done, report, study, variant

ONE, TWO = variant("1x1"), variant("1x2")
PRINTED = Reference(
    what="training", unit="s", source="the write-up", figures={"1x2": 1234.5, "4x1": 86}, unassigned=(7170, 9238)
)
FILE = """name = "s"
layouts = ["1x1", "2x1"]
[[reference]]
what = "training"
unit = "s"
source = "a thesis"
[reference.figures]
"1x1" = 199
"""


@pytest.fixture
def compared():
    return report(study(references=(PRINTED,)), [(ONE, [done(ONE)]), (TWO, [done(TWO)])])


def test_a_study_file_has_figures_by_variant():
    (found,) = parse_study(FILE, "s.toml").references
    assert found == Reference(what="training", unit="s", source="a thesis", figures={"1x1": 199})


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (FILE.replace('"1x1" = 199', '"1x1" = 199\n"1x9" = 3'), 9, "no variant is called '1x9'"),
        (FILE.replace("199", '"199"'), 7, "figures"),
        (FILE.replace('source = "a thesis"\n', ""), 3, "source is missing"),
        (FILE.replace("what", "waht"), 4, "unknown key 'waht'"),
        (FILE.replace("[[reference]]", "[reference]"), 3, "reference is no list of tables"),
    ],
)
def test_a_fault_is_told_with_its_line(text, line, words):
    with pytest.raises(UsageError) as caught:
        parse_study(text, "s.toml")
    assert caught.value.message.startswith(f"s.toml, line {line}: ")
    assert words in caught.value.message


def test_the_table_has_them_in_brackets_and_says_whose_they_are(compared):
    lines = format_comparison(compared)
    (heading,) = [line for line in lines if line.startswith("VARIANT")]
    one, two = (next(line for line in lines if line.startswith(label)) for label in ("1x1 *", "1x2"))
    assert heading.endswith("[training, s]")
    assert two.endswith("[1,234.5]")
    assert one.endswith("-")
    assert (
        "[training, s] printed elsewhere, not measured here: the write-up; of variants that this study does not run:"
        " 4x1 86; it is not known here which variants these are of: 7,170, 9,238"
    ) in lines
    assert max(measure(line) for line in format_comparison(compared, 80)) <= 80


def test_markdown_has_a_column_and_its_source(compared):
    text = format_markdown(compared)
    assert r"| \[training, s\] |" in text or "| [training, s] |" in text
    assert "## Printed elsewhere" in text


def test_csv_and_json_have_them_under_their_own_name(compared):
    rows = list(csv.DictReader(io.StringIO(format_csv(compared))))
    assert [row["printed: training, s (the write-up)"] for row in rows] == ["", "1234.5"]
    found = msgspec.json.decode(msgspec.json.encode(compared))
    assert found["study"]["references"][0]["figures"]["1x2"] == 1234.5


def test_html_has_a_table_of_them_beside_what_was_measured(compared):
    page = render_html(compared)
    table = page.partition("Beside what others printed</h3>")[2].partition("</table>")[0]
    assert re.findall(r'class="printed"[^>]*><span>(.*?)</span>', table) == ["–", "1,234.5"]
    assert "printed elsewhere" in table
    assert "7,170, 9,238" in page
    assert "Beside what others printed" not in render_html(report(study(), [(ONE, [done(ONE)])]))


def test_nothing_measured_is_changed_by_them(compared):
    plain = report(study(), [(ONE, [done(ONE)]), (TWO, [done(TWO)])])
    assert (compared.rows, compared.verdict, compared.fits) == (plain.rows, plain.verdict, plain.fits)


def test_a_report_at_small_scale_says_so():
    small = report(study(scale="small"), [(ONE, [done(ONE)])])
    assert any(line.startswith("scale: small") for line in format_comparison(small))
    assert "small scale: cut down" in render_html(small)
