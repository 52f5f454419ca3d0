"""Ranks and their ends in words. Pure."""

import signal
from collections.abc import Sequence

from hpcdist.records.ranks import RankUsage


def name_rank(rank: RankUsage) -> str:
    """`rank 2 on n1`."""
    return f"rank {rank.rank} on {rank.host}"


def format_ranks(ranks: Sequence[int]) -> str:
    """`0-2, 5`: ascending numbers, those that follow each other as a range."""
    spans: list[list[int]] = []
    for number in ranks:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ", ".join("-".join(str(number) for number in span) for span in spans)


def describe_exit(exit_code: int | None, number: int | None) -> str | None:
    """`exit code 7` or `signal 9 (SIGKILL)`; None while there is no end."""
    if number:
        try:
            return f"signal {number} ({signal.Signals(number).name})"
        except ValueError:
            return f"signal {number}"
    return None if exit_code is None else f"exit code {exit_code}"
