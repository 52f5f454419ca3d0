"""A report's figures once more, from its trials as `recompute` has them, without hpcdist's own code.

The formulas are written out here again; docs/studies.md and the docstrings of `hpcdist.report.scaling` and
`hpcdist.report.predict` name their sources.
"""

import statistics
from itertools import pairwise

from tests.cluster.recompute import PARTS

SPREADS = (
    "wall_s",
    "starting_s",
    "images_per_s",
    "time_to_target_s",
    "accuracy",
    "cpu_efficiency",
    "memory_efficiency",
    "gpu_efficiency",
    "gpu_hours",
    "cost",
    "cost_to_target",
    "ettr",
    "loader_cpu_share",
)
MEDIANS = ("waiting_s", "bytes_per_step", "latency_s", "bandwidth_bytes_per_s", "global_batch_size")


def median(values):
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def spread(values):
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"median": statistics.median(known), "low": min(known), "high": max(known), "count": len(known)}


def recompute_rows(trials_by_label, baseline):
    """Each variant's figures, by label, from those of its trials; all of them completed."""
    rows = {label: recompute_row(trials) for label, trials in trials_by_label.items()}
    for label, row in rows.items():
        row["is_baseline"] = label == baseline
        row["speedup"] = over(row, rows[baseline])
        share = rows[baseline]["ranks_worked"] / row["ranks_worked"]
        row["efficiency"] = {key: value if key == "count" else value * share for key, value in row["speedup"].items()}
        row["same_as"] = [other for other in rows if other != label and overlap(row["wall_s"], rows[other]["wall_s"])]
    return rows


def recompute_row(trials):
    stragglers = [trial["straggler"] for trial in trials if trial["straggler"]]
    row = {name: spread(trial[name] for trial in trials) for name in SPREADS}
    row |= {name: median(trial[name] for trial in trials) for name in MEDIANS}
    return row | {
        "ranks_worked": min(trial["ranks_worked"] for trial in trials),
        "split": {name: statistics.median(trial["split"][name] for trial in trials) for name in PARTS},
        "straggler": max(stragglers, key=lambda one: one["slowdown"], default=None),
        "_cores_busy": statistics.median(trial["cpu_busy"] * trial["_cpus"] for trial in trials),
        "_per_node": trials[0]["_per_node"],
        "_steps": statistics.median(trial["_steps"] for trial in trials),
        "_probes": [trial["_probe"] for trial in trials if trial["_probe"]],
        "_stragglers": stragglers,
    }


def over(row, base):
    """The speedup: the ratio of the medians; its ends are the worst and the best pairing of repeats."""
    own, others = row["images_per_s"], base["images_per_s"]
    if row is base:
        return {"median": 1, "low": 1, "high": 1, "count": own["count"]}
    return {
        "median": own["median"] / others["median"],
        "low": own["low"] / others["high"],
        "high": own["high"] / others["low"],
        "count": min(own["count"], others["count"]),
    }


def overlap(one, other):
    """Whether two spreads of repeats overlap; of a figure measured once nobody can tell."""
    repeated = min(one["count"], other["count"]) > 1
    return repeated and one["low"] <= other["high"] and other["low"] <= one["high"]


def recompute_fits(rows):
    """Amdahl's fraction over all points, by least squares, and Karp and Flatt's of each number of ranks."""
    points = [(row["ranks_worked"], row["speedup"]["median"]) for row in rows.values()]
    above = [(1 / speedup - 1 / ranks, 1 - 1 / ranks) for ranks, speedup in points if ranks > 1]
    fraction = sum(top * bottom for top, bottom in above) / sum(bottom**2 for _, bottom in above)
    counts = sorted({ranks for ranks, _ in points if ranks > 1})
    fractions = {
        f"e_{count}": statistics.mean(
            (1 / speedup - 1 / count) / (1 - 1 / count) for ranks, speedup in points if ranks == count
        )
        for count in counts
    }
    return {"amdahl": {"serial_fraction": min(1, max(0, fraction))}, "karp-flatt": fractions}


def recompute_prediction(rows, label, base, along=None):
    """A variant's wall-clock as predicted from another one's steps and both probes.

    Where the batch per rank changes, the work of a step is carried on along the line from `base` through `along`.
    """
    target, base = rows[label], rows[base]
    size, split = base["bytes_per_step"], base["split"]
    # One bucket: its all-reduce starts after the backward pass, which hides none of it.
    assert size <= 1024**2
    work = {name: split[name] for name in ("data_s", "compute_s", "other_s")}
    if along:
        share = (batch(target) - batch(base)) / (batch(rows[along]) - batch(base))
        work = {name: max(0, own + share * (rows[along]["split"][name] - own)) for name, own in work.items()}
    slower_s = {of: probed_s(target, of) - probed_s(base, of) for of in (size, *dict(target["_probes"][0]))}
    exposed_s = max(0, max(0, split["communication_s"] - base["waiting_s"]) + slower_s[size])
    unexplained_s = split["step_s"] - sum(split[name] for name in PARTS[:-1])
    step_s = sum(work.values()) + base["waiting_s"] + exposed_s + unexplained_s
    rest_s = base["wall_s"]["median"] - base["_steps"] * split["step_s"]
    # The parameters are copied once, and the preflight tries each size three times.
    rest_s += slower_s[size] + 3 * sum(slower_s[of] for of, _ in target["_probes"][0])
    return max(0, rest_s) + base["_steps"] * step_s


def batch(row):
    return row["global_batch_size"] / row["ranks_worked"]


def probed_s(row, size):
    return statistics.median(all_reduce_s(probe, size) for probe in row["_probes"])


def all_reduce_s(probe, size):
    """Along the line between the two probed sizes around it, or of the two largest; never under the smallest's."""
    pairs = [pair for pair in pairwise(probe) if size <= pair[1][0]] or [probe[-2:]]
    (low, low_s), (high, high_s) = pairs[0]
    return max(probe[0][1], low_s + (high_s - low_s) * (size - low) / (high - low))


def recompute_evidence(statement, rows):
    """The figures that a sentence of the verdict rests on, for a study with a target and without prices."""
    row = rows[statement["variant"]]
    return _EVIDENCE[statement["code"]](row, statement["evidence"], rows)


def _fastest(row, evidence, rows):
    figure = row["time_to_target_s"]
    found = {f"seconds{end}": figure[key] for end, key in (("", "median"), ("_low", "low"), ("_high", "high"))}
    return found | {"runs": figure["count"]}


def _equal(row, evidence, rows):
    """The least first, then those whose times overlap its own."""
    times = {label: one["time_to_target_s"] for label, one in rows.items()}
    first = min(times, key=lambda label: times[label]["median"])
    assert rows[first] is row
    equals = [label for label, time in times.items() if label != first and overlap(time, times[first])]
    return {"variants": ", ".join([first, *equals])}


def _cheapest(row, evidence, rows):
    """By what it costs up to the target; without prices by the hours of its GPUs."""
    name = "cost_to_target" if row["cost_to_target"] else "gpu_hours"
    unit = {"GPU-hours": "h", "GPU-minutes": "h", "GPU-seconds": "h"}.get(evidence["unit"], evidence["unit"])
    assert unit == ("USD" if row["cost_to_target"] else "h")
    most = max(one[name]["median"] for one in rows.values())
    return {"least": row[name]["median"], "most": most, "unit": evidence["unit"]}


def _most_ranks(row, evidence, rows):
    found = {"ranks": row["ranks_worked"], "efficiency_line": 0.75}
    return found if row["is_baseline"] else found | {"efficiency": row["efficiency"]["median"]}


def _communication(row, evidence, rows):
    own_s = max(0, row["split"]["communication_s"] - row["waiting_s"])
    names = ("bytes_per_step", "bandwidth_bytes_per_s", "latency_s")
    share = {"communication_s": own_s, "communication_share": own_s / row["split"]["step_s"]}
    faster = next(label for label, one in rows.items() if one["images_per_s"]["low"] > row["images_per_s"]["high"])
    return share | {name: row[name] for name in names} | {"step_s": row["split"]["step_s"], "faster": faster}


def _oversubscribed(row, evidence, rows):
    """Against the first smaller one of which it is true."""
    per_sample_s = row["split"]["compute_s"] / batch(row)
    for other in rows.values():
        growth = per_sample_s / (other["split"]["compute_s"] / batch(other))
        if (
            row["ranks_worked"] >= 2 * other["ranks_worked"]
            and growth >= 1.3
            and row["_cores_busy"] < 1.2 * other["_cores_busy"]
        ):
            return {
                "cores_busy": row["_cores_busy"],
                "cores_busy_before": other["_cores_busy"],
                "compute_growth": growth,
            }
    raise AssertionError("no smaller variant keeps as many cores busy")


def _starting(row, evidence, rows):
    starting_s, wall_s = row["starting_s"]["median"], row["wall_s"]["median"]
    return {"starting_share": starting_s / wall_s, "starting_s": starting_s, "wall_s": wall_s}


def _straggler(row, evidence, rows):
    named = [(one["host"], one["rank"]) for one in row["_stragglers"]]
    host, rank = max(named, key=named.count)
    return {
        "host": host,
        "rank": rank,
        "slowdown": statistics.median(one["slowdown"] for one in row["_stragglers"]),
        "waiting_s": row["waiting_s"],
        "waiting_share": row["waiting_s"] / row["split"]["step_s"],
    }


def _data(row, evidence, rows):
    split = row["split"]
    return {"data_share": split["data_s"] / split["step_s"], "data_s": split["data_s"], "step_s": split["step_s"]}


def _small_batch(row, evidence, rows):
    """A sample's time against the quickest variant of twice the batch or more, on nodes as crowded or more."""
    fixed_s = row["split"]["other_s"] + row["split"]["communication_s"] - (row["waiting_s"] or 0)
    larger = [one for one in rows.values() if batch(one) >= 2 * batch(row) and one["_per_node"] >= row["_per_node"]]
    sample_s = [one["split"]["compute_s"] / batch(one) for one in larger]
    growth = row["split"]["compute_s"] / batch(row) / min(sample_s) if sample_s else 1
    share = fixed_s / row["split"]["step_s"]
    return {"batch_per_rank": batch(row), "fixed_share": share, "fixed_s": fixed_s, "sample_growth": growth}


def _unexplained(row, evidence, rows):
    return {name: row["split"][name] for name in PARTS} | {"efficiency": row["efficiency"]["median"]}


def _wide_spread(row, evidence, rows):
    wall = row["wall_s"]
    share = (wall["high"] - wall["low"]) / wall["median"]
    return {"spread_share": share, "low_s": wall["low"], "high_s": wall["high"]}


def _accuracy(row, evidence, rows):
    before = min(rows.values(), key=lambda one: one["global_batch_size"])["accuracy"]["median"]
    own = row["accuracy"]["median"]
    return {"accuracy": own, "accuracy_before": before, "loss": before - own}


_EVIDENCE = {
    "fastest": _fastest,
    "equal": _equal,
    "cheapest": _cheapest,
    "most-ranks": _most_ranks,
    "communication": _communication,
    "oversubscribed": _oversubscribed,
    "starting": _starting,
    "straggler": _straggler,
    "data": _data,
    "small-batch": _small_batch,
    "unexplained": _unexplained,
    "wide-spread": _wide_spread,
    "accuracy": _accuracy,
}
