"""Spreads, speedups and the laws of scaling.

When two layouts are called equal, different or neither is decided here, once for the whole report (`compare_spreads`).
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import msgspec
import numpy as np

from hpcdist.report.model import Fit, Spread

EFFICIENCY_LINE = 0.75
"""Centres ask for this parallel efficiency: 1.5 times as fast per doubling."""
SINGLE_MARGIN = 0.1
"""A figure measured once has no spread; from this difference on it is worth a word, with that said."""
# Serial fractions closer than this are the same: each is a small difference of large numbers.
_RISE = 0.01
_FEWEST = {"amdahl": 3, "karp-flatt": 3, "usl": 4}
_CONFIDENCE = 0.95

Point = tuple[int, float]
"""Ranks, and the speedup they gave."""


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median, least and largest of the repeats that measured it; None where none did."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(median=statistics.median(known), low=min(known), high=max(known), count=len(known))


def scale(one: Spread, factor: float) -> Spread:
    """The spread of a figure times a positive number."""
    return Spread(median=one.median * factor, low=one.low * factor, high=one.high * factor, count=one.count)


def ratio(top: Spread | None, bottom: Spread | None) -> Spread | None:
    """One figure over another: the ratio of the medians, its ends the worst and the best pairing of repeats.

    None where either is unknown, or the lower one is not positive in some repeat.
    """
    if top is None or bottom is None or bottom.low <= 0:
        return None
    return Spread(
        median=top.median / bottom.median,
        low=top.low / bottom.high,
        high=top.high / bottom.low,
        count=min(top.count, bottom.count),
    )


def compare_spreads(one: Spread, other: Spread) -> Literal["equal", "different", "unknown"]:
    """Whether two figures are the same, as far as their repeats can tell.

    Spreads that overlap or touch are equal. Spreads apart are different where both were measured twice or more. A
    figure measured once has no spread: nothing is significant then, and the answer is "unknown".
    """
    if min(one.count, other.count) < 2:
        return "unknown"
    return "equal" if one.low <= other.high and other.low <= one.high else "different"


def is_less(one: Spread, other: Spread) -> bool:
    """Whether the first figure is really the lesser one.

    By spreads where there are any; of figures measured once, by `SINGLE_MARGIN`: the reader is told that it rests on
    one run.
    """
    answer = compare_spreads(one, other)
    if answer == "unknown":
        return one.median < other.median * (1 - SINGLE_MARGIN)
    return answer == "different" and one.median < other.median


def fit_all(points: Sequence[Point], settings: Mapping[str, Any], *, weak: bool = False) -> tuple[Fit, ...]:
    """Fit every law to the speedups of one choice of settings; a number of ranks may come twice (1x2 and 2x1).

    `weak` says that the problem grew with the ranks: Amdahl's law and Karp and Flatt's metric are about one that does
    not.
    """
    fits = (fit_amdahl(points), find_karp_flatt(points), fit_usl(points))
    if weak:
        note = "not for weak scaling: the law is about a problem of fixed size"
        fits = (Fit(law="amdahl", note=note), Fit(law="karp-flatt", note=note), fits[2])
    ranks = tuple(sorted({count for count, _ in points}))
    return tuple(msgspec.structs.replace(fit, settings=dict(settings), ranks=ranks) for fit in fits)


def fit_amdahl(points: Sequence[Point]) -> Fit:
    """The serial fraction f of S(p) = 1 / (f + (1 - f) / p), by least squares.

    1/S - 1/p = f (1 - 1/p) is a line through the origin, so f has a closed form: least squares of the time, relative
    to one rank. It is kept between 0 and 1: speedups above the ideal give 0, slowdowns 1.

    Source: G. M. Amdahl, "Validity of the single processor approach to achieving large scale computing
    capabilities", AFIPS 1967.
    """
    if note := _missing("amdahl", points, on_one=True):
        return Fit(law="amdahl", note=note)
    x = [1 - 1 / ranks for ranks, _ in points]
    y = [1 / speedup - 1 / ranks for ranks, speedup in points]
    fraction = sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
    return Fit(law="amdahl", parameters={"serial_fraction": min(1.0, max(0.0, fraction))})


def karp_flatt(ranks: int, speedup: float) -> float:
    """The experimentally determined serial fraction e = (1/S - 1/p) / (1 - 1/p).

    Source: A. H. Karp and H. P. Flatt, "Measuring parallel processor performance", CACM 33(5), 1990.
    """
    return (1 / speedup - 1 / ranks) / (1 - 1 / ranks)


def find_karp_flatt(points: Sequence[Point]) -> Fit:
    """Karp and Flatt's fraction at each number of ranks (of several layouts with as many, the mean), and if it rises.

    A constant one is serial work. One that rises, by more than a hundredth in all and nowhere falling by as much, is
    overhead that grows with the ranks: communication, waiting, shared memory.
    """
    if note := _missing("karp-flatt", points, on_one=True):
        return Fit(law="karp-flatt", note=note)
    found: dict[int, list[float]] = {}
    for ranks, speedup in sorted(points):
        if ranks > 1:
            found.setdefault(ranks, []).append(karp_flatt(ranks, speedup))
    means = {ranks: statistics.fmean(values) for ranks, values in found.items()}
    in_order = list(means.values())
    steadily = all(later > earlier - _RISE for earlier, later in pairwise(in_order))
    rises = steadily and in_order[-1] - in_order[0] > _RISE
    return Fit(
        law="karp-flatt",
        parameters={f"e_{ranks}": value for ranks, value in means.items()} | {"rises": float(rises)},
    )


def fit_usl(points: Sequence[Point]) -> Fit:
    """The universal scalability law X(N) = gamma N / (1 + alpha (N - 1) + beta N (N - 1)), by least squares of X.

    N/X is a polynomial of N, which gives the values that Gauss-Newton starts from. The intervals come from the
    covariance s^2 (J^T J)^-1 and Student's t. The peak, sqrt((1 - alpha) / beta), exists only where beta is positive
    and alpha below 1; where it lies beyond the largest number of ranks it is an extrapolation.

    Source: N. J. Gunther, "Guerrilla Capacity Planning", Springer 2007, chapters 4 to 6.
    """
    if note := _missing("usl", points, on_one=False):
        return Fit(law="usl", note=note)
    n = np.array([ranks for ranks, _ in points], dtype=float)
    x = np.array([speedup for _, speedup in points], dtype=float)
    terms = np.column_stack([np.ones_like(n), n - 1, n * (n - 1)])
    start, *_ = np.linalg.lstsq(terms, n / x, rcond=None)
    if start[0] <= 0:
        return Fit(law="usl", note="the points do not follow the law")
    theta = _gauss_newton(n, x, np.array([start[1] / start[0], start[2] / start[0], 1 / start[0]]))
    alpha, beta, gamma = (float(value) for value in theta)
    parameters = {"alpha": alpha, "beta": beta, "gamma": gamma}
    if beta > 0 and alpha < 1:
        parameters["peak_ranks"] = math.sqrt((1 - alpha) / beta)
    return Fit(law="usl", parameters=parameters, intervals=_intervals(n, x, theta))


Vector = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _usl(n: Vector, theta: Vector) -> tuple[Vector, Vector]:
    """The law's throughputs and their derivatives by alpha, beta and gamma."""
    alpha, beta, gamma = theta
    bottom = 1 + alpha * (n - 1) + beta * n * (n - 1)
    values = gamma * n / bottom
    slopes = np.column_stack([-values * (n - 1) / bottom, -values * n * (n - 1) / bottom, n / bottom])
    return values, slopes


def _gauss_newton(n: Vector, x: Vector, theta: Vector) -> Vector:
    """Least squares of the throughputs; a step that does not help is halved, and where none helps it ends."""
    error = float(np.sum((x - _usl(n, theta)[0]) ** 2))
    for _ in range(100):
        values, slopes = _usl(n, theta)
        step, *_ = np.linalg.lstsq(slopes, x - values, rcond=None)
        for halving in range(30):
            tried = theta + step / 2**halving
            tried_error = float(np.sum((x - _usl(n, tried)[0]) ** 2))
            if tried_error < error:
                break
        else:
            return theta
        theta, gained, error = tried, error - tried_error, tried_error
        if gained <= 1e-14 * error:
            break
    return theta


def _intervals(n: Vector, x: Vector, theta: Vector) -> dict[str, tuple[float, float]]:
    """95 % intervals; none where no point is left over to tell the error by."""
    freedom = len(n) - len(theta)
    if freedom < 1:
        return {}
    values, slopes = _usl(n, theta)
    variance = float(np.sum((x - values) ** 2)) / freedom
    deviations = np.sqrt(np.diag(variance * np.linalg.pinv(slopes.T @ slopes)))
    reach = student_t(freedom)
    return {
        name: (float(value - reach * deviation), float(value + reach * deviation))
        for name, value, deviation in zip(("alpha", "beta", "gamma"), theta, deviations, strict=True)
    }


def student_t(freedom: int) -> float:
    """The t that 95 % of Student's distribution lie within, for so many degrees of freedom.

    Source: M. Abramowitz and I. A. Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4.
    """
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, freedom) < _CONFIDENCE else (low, middle)
    return (low + high) / 2


def _share_within(t: float, freedom: int) -> float:
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for count in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * count / (count + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def _missing(law: str, points: Sequence[Point], *, on_one: bool) -> str | None:
    """Why there are not enough points; None when there are. Layouts with as many ranks count once."""
    found, needed = len({ranks for ranks, _ in points}), _FEWEST[law]
    if found < needed:
        return f"not enough points: {found} of {needed} numbers of ranks"
    if on_one and not any(ranks == 1 for ranks, _ in points):
        return "not enough points: none of a single rank"
    return None
