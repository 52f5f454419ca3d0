"""Slurm's times and sizes, against sbatch(1) and what sbatch 22.05.8 took and refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdist.errors import ParseError, UsageError
from hpcdist.units import format_bytes, format_duration, parse_elapsed, parse_size, parse_slurm_memory, parse_slurm_time

MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30 * MINUTE),
        ("5:30", 5 * MINUTE + 30),
        ("1:02:03", HOUR + 2 * MINUTE + 3),
        ("25:00:00", 25 * HOUR),
        ("1-12", DAY + 12 * HOUR),
        ("1-2:3", DAY + 2 * HOUR + 3 * MINUTE),
        ("1-2:3:4", DAY + 2 * HOUR + 3 * MINUTE + 4),
        ("5:99", 5 * MINUTE + 99),
    ],
)
def test_time_limit_in_each_form_of_the_man_page(text: str, seconds: int) -> None:
    assert parse_slurm_time(text) == seconds


@pytest.mark.parametrize("text", ["UNLIMITED", "INFINITE", "unlimited", "0", "0-0", "00:00:00"])
def test_no_time_limit(text: str) -> None:
    assert parse_slurm_time(text) is None


@pytest.mark.parametrize("text", ["", "abc", "1.5", "5 ", "10:", "1-", "-5", "1:2:3:4", "1-2:3:4:5", "2h", "٣", "5\n"])
def test_time_limit_that_sbatch_refuses_or_misreads(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_slurm_time(text)
    assert "minutes" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("16", 16 * 1024**2),
        ("16M", 16 * 1024**2),
        ("16m", 16 * 1024**2),
        ("16GB", 16 * 1024**3),
        ("100K", 100 * 1024),
        ("2T", 2 * 1024**4),
        ("0", 0),
    ],
)
def test_memory_request(text: str, size_bytes: int) -> None:
    assert parse_slurm_memory(text) == size_bytes


@pytest.mark.parametrize("text", ["", "1.5G", "16GiB", "16X", "1P", "-5", "16B", "16 G", "16 ", "5\u212a", "16G\n"])
def test_memory_request_that_sbatch_refuses(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_slurm_memory(text)
    assert "16G" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:13", 13),
        ("00:06.299", 6.299),
        ("01:02:03", HOUR + 2 * MINUTE + 3),
        ("2-18:13:20", 2 * DAY + 18 * HOUR + 13 * MINUTE + 20),
        ("365-00:00:01", 365 * DAY + 1),
        ("86:06:40", 86 * HOUR + 6 * MINUTE + 40),
    ],
)
def test_elapsed(text: str, seconds: float) -> None:
    assert parse_elapsed(text) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize("text", ["", "13", "1-13", "1-02:03", "INVALID", "-1:00", "1:2:3:4", "00:00:0x"])
def test_elapsed_that_is_none(text: str) -> None:
    with pytest.raises(ParseError):
        parse_elapsed(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("62268K", 62268 * 1024),
        ("3284992", 3284992),
        ("8.00 GB", 8 * 1024**3),
        ("1.5GiB", 1.5 * 1024**3),
        ("752.00 KB", 752 * 1024),
        ("12.40 GB", 13314398618),
        ("0", 0),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_size(text: str, size_bytes: float) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "1,5 GB", "1.2.3M", "1e9", "-1K", "16.00 EB", "1 QB", "٣K"])
def test_size_that_is_none(text: str) -> None:
    with pytest.raises(ParseError):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00:00"), (13, "00:00:13"), (93784, "1-02:03:04"), (49.5, "00:00:50"), (49.49, "00:00:49")],
)
def test_duration_as_seff_prints_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    # The first four are what genuine seff printed for these jobs' raw figures.
    [
        (515260 * 1024, "503.18 MB"),
        (62296 * 1024, "60.84 MB"),
        (1600 * 1024**2, "1.56 GB"),
        (0, "0.00 MB"),
        (512, "0.50 KB"),
        (1024**4, "1.00 TB"),
    ],
)
def test_bytes_as_seff_prints_them(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@given(st.integers(0, 10**9))
def test_duration_reads_back(seconds: int) -> None:
    assert parse_elapsed(format_duration(seconds)) == seconds


@given(st.integers(0, 2**60))
def test_bytes_read_back_to_half_a_hundredth_of_the_unit(size_bytes: int) -> None:
    printed = format_bytes(size_bytes)
    unit_bytes = 1024 ** ("KMGTPE".index(printed[-2]) + 1)
    assert abs(parse_size(printed) - size_bytes) <= 0.0051 * unit_bytes


@given(st.text(max_size=60) | st.from_regex(r"[0-9KMGTPEiB.:\- ]{0,30}"))
def test_no_text_breaks_a_parser(text: str) -> None:
    for parse in (parse_slurm_time, parse_slurm_memory):
        with contextlib.suppress(UsageError):
            parse(text)
    for read in (parse_elapsed, parse_size):
        with contextlib.suppress(ParseError):
            read(text)
