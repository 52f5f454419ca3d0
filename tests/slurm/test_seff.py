"""seff's output, read and printed: 91 outputs of the genuine program, centres' own versions, and pasted text."""

import contextlib
import json
import time
import unicodedata
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdist.errors import ParseError
from hpcdist.records.efficiency import Efficiency, Kind
from hpcdist.slurm.seff import format_seff, iter_seff, parse_seff

DATA = Path(__file__).parents[1] / "data" / "seff"
OUTPUTS = sorted(DATA.glob("*.txt"))
GB, MB, KB = 1024**3, 1024**2, 1024

JOB = """\
Job ID: 9003
Cluster: testcluster
User/Group: alice/root
State: COMPLETED (exit code 0)
Nodes: 2
Cores per node: 64
CPU Utilized: 00:16:07
CPU Efficiency: 10.64% of 02:31:28 core-walltime
Job Wall-clock time: 00:01:11
Memory Utilized: 11.90 GB
Memory Efficiency: 74.37% of 16.00 GB (8.00 GB/node)
The task which had the largest memory consumption differs by 104.20% from the average task max memory consumption
"""


def one(text: str) -> Efficiency:
    (found,) = parse_seff(text)
    return found


def with_lines(**lines: str) -> Efficiency:
    """JOB with lines replaced, or added at its end; the label's spaces are underscores."""
    rows = dict(line.split(": ", 1) for line in JOB.splitlines()[:-1])
    rows.update({label.replace("_", " "): value for label, value in lines.items()})
    return one("\n".join(f"{label}: {value}" for label, value in rows.items() if value))


def test_the_genuine_outputs_are_all_here() -> None:
    assert len(OUTPUTS) == 91


@pytest.mark.parametrize("path", OUTPUTS, ids=lambda path: path.stem)
def test_genuine_output(path: Path) -> None:
    found = msgspec.to_builtins(one(path.read_text()))
    expected = json.loads(path.with_suffix(".json").read_text())
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("path", [p for p in OUTPUTS if p.stem.startswith("24.11")], ids=lambda path: path.stem)
def test_a_genuine_output_of_24_11_is_printed_as_it_was(path: Path) -> None:
    genuine = path.read_text()
    # The only difference: no zero for memory that nobody gathered.
    honest = genuine.replace("Utilized: 0.00 MB", "Utilized: -").replace(
        "Memory Efficiency: 0.00%", "Memory Efficiency: -"
    )
    assert format_seff(one(genuine)) == honest


def test_all_outputs_in_one_text_are_read_in_order() -> None:
    found = parse_seff("".join(path.read_text() for path in OUTPUTS))
    assert [job.job_id for job in found] == [json.loads(p.with_suffix(".json").read_text())["job_id"] for p in OUTPUTS]


def test_jobs_are_given_out_before_the_text_ends() -> None:
    def lines():  # type: ignore[no-untyped-def]
        yield from JOB.splitlines(keepends=True)
        yield "Job ID: 9004\n"
        raise AssertionError("read further than needed")

    assert next(iter_seff(lines())).job_id == "9003"


# Figures that seff prints and nobody measured


def test_kilobytes_printed_as_exabytes_are_restored_where_the_efficiency_proves_them() -> None:
    found = with_lines(Memory_Utilized="1012.00 EB", Memory_Efficiency="0.39% of 256.00 MB")
    assert (found.memory_used_bytes, found.memory_efficiency) == (1012 * KB, 0.0039)


@pytest.mark.parametrize("efficiency", ["429496729600.00% of 4.00 GB", "0.00% of 0.00 MB", "12.00% of 4.00 GB", ""])
def test_exabytes_that_nothing_proves_are_unknown(efficiency: str) -> None:
    found = with_lines(Memory_Utilized="752.00 EB", Memory_Efficiency=efficiency)
    assert (found.memory_used_bytes, found.memory_efficiency) == (None, None)


def test_sixteen_kilobytes_are_told_from_no_data() -> None:
    assert with_lines(Memory_Utilized="16.00 EB", Memory_Efficiency="0.00% of 4.00 GB").memory_used_bytes == 16 * KB


def test_memory_request_of_zero_gives_no_efficiency() -> None:
    found = with_lines(Memory_Utilized="1.00 GB", Memory_Efficiency="0.00% of 0.00 MB")
    assert (found.memory_used_bytes, found.memory_requested_bytes, found.memory_efficiency) == (GB, None, None)


@pytest.mark.parametrize("size", ["16.00 EB", "16.00 B"])
def test_memory_request_of_infinity_is_unknown(size: str) -> None:
    assert with_lines(Memory_Efficiency=f"0.00% of {size} ({size}/node)").memory_requested_bytes is None


def test_memory_over_the_request_is_kept() -> None:
    assert with_lines(Memory_Efficiency="210.16% of 280.00 GB").memory_efficiency == 2.1016


def test_a_job_of_no_time_has_no_cpu_efficiency_but_a_cpu_time() -> None:
    found = with_lines(
        CPU_Utilized="00:00:00", CPU_Efficiency="0.00% of 00:00:00 core-walltime", **{"Job_Wall-clock_time": "00:00:00"}
    )
    assert (found.cpu_time_s, found.cpu_efficiency, found.wall_time_s) == (0, None, 0)


# Cores


def test_cores_come_from_core_walltime_because_cores_per_node_is_truncated() -> None:
    found = with_lines(
        Nodes="13",
        Cores_per_node="7",
        CPU_Efficiency="50.00% of 02:46:40 core-walltime",  # 100 cores for 100 s
        **{"Job_Wall-clock_time": "00:01:40"},
    )
    assert (found.nodes, found.cores, found.cores_per_node) == (13, 100, 7)


@pytest.mark.parametrize("core_walltime", ["02:46:41", "05:33:20"])
def test_core_walltime_that_does_not_fit_is_not_believed(core_walltime: str) -> None:
    found = with_lines(
        Nodes="13",
        Cores_per_node="7",
        CPU_Efficiency=f"50.00% of {core_walltime} core-walltime",
        **{"Job_Wall-clock_time": "00:01:40"},
    )
    assert found.cores == 91


def test_node_line_left_out_by_a_site() -> None:
    text = JOB.replace("Nodes: 2\n", "").replace("02:31:28", "01:15:44")
    assert (one(text).nodes, one(text).cores) == (1, 64)


# Pasted text


@pytest.mark.parametrize(
    "line",
    ["# {}", "#{}", "- {}", "* {}", "**{}**", "> {}", "    {}", "\t// {}", "• {}", "| {} |", "1. {}", "`{}`", "{}  \r"],
)
def test_decoration_is_seen_through(line: str) -> None:
    pasted = "\n".join(line.format(row) for row in JOB.splitlines())
    assert one(pasted) == one(JOB)


def test_bold_labels() -> None:
    pasted = "\n".join("- **{}:** {}".format(*row.split(": ")) for row in JOB.splitlines()[:-1])
    assert one(pasted).memory_used_bytes == one(JOB).memory_used_bytes


def test_fence_prompt_locale_warnings_and_debug_lines() -> None:
    around = """\
```console
[alice@login ~]$ seff -d 9003
perl: warning: Setting locale failed.
perl: warning: Please check that your locale settings:
\tLANGUAGE = (unset),
\tLC_ALL = (unset),
\tLC_CTYPE = "C.UTF-8",
\tLANG = "en_US.UTF-8"
    are supported and installed on your system.
perl: warning: Falling back to the standard locale ("C").
Slurm data: JobID ArrayJobID User Group State Clustername Ncpus Nnodes Ntasks Reqmem PerNode Cput Walltime Mem
Slurm data: 9003  alice root COMPLETED testcluster 128 2 16777216 1 967 71 12478054 0

{}[alice@login ~]$
```
"""
    assert one(around.format(JOB)) == one(JOB)


def test_perl_warning_in_the_middle() -> None:
    warning = (
        "Use of uninitialized value $user in concatenation (.) or string at /usr/bin/seff line 154, <DATA> line 602.\n"
    )
    found = one(JOB.replace("User/Group: alice/root\n", warning + "User/Group: /users\n"))
    assert (found.user, found.group) == (None, "users")


@pytest.mark.parametrize("width", [20, 47, 60, 80])
def test_wrapped_sentences(width: int) -> None:
    running = (
        "WARNING: Efficiency statistics can only be obtained after the job has ended as seff tool is based on the "
        "accounting database data."
    )
    long_lines = [JOB.splitlines()[-1], running]
    wrapped = [line[at : at + width] for line in long_lines for at in range(0, len(line), width)]
    assert one("\n".join(JOB.splitlines()[:-1] + wrapped)) == one(JOB + running)
    assert one(JOB + running).extra == {
        "The task which had the largest memory consumption": "differs by 104.20% from the average task max memory "
        "consumption",
        "WARNING": running.removeprefix("WARNING: "),
    }


def test_remarks_behind_a_value() -> None:
    text = JOB.replace("node: 64", "node: 64       <===").replace("8.00 GB/node)", "8.00 GB/node)   # far too much")
    assert one(text) == one(JOB)


def test_escape_sequences_are_not_kept() -> None:
    text = "\x1b[1mJob ID: 5\x1b[0m\nState: COMPLETED\nNote: \x1b]0;title\x07a\x9b31mred\u202e\nCluster: c\x00l\n"
    assert one(text).extra == {"Note": "ared"}
    assert one(text).cluster == "cl"


# Centres' own versions


def test_nesi() -> None:
    found = one(
        "#Cluster: mahuika\n#Job ID: 39210448\n#State: COMPLETED\n#Cores: 2\n#Tasks: 1\n#Nodes: 1\n"
        "#Job Wall-time:   76.6%  02:17:53 of 03:00:00 time limit\n"
        "#CPU Efficiency:  50.0%  02:17:49 of 04:35:46 core-walltime *(4 cpus requested)*\n"
        "#Mem Efficiency:   0.1%  11.14 MB of 8.00 GB\n"
    )
    assert found == Efficiency(
        job_id="39210448",
        cluster="mahuika",
        state="COMPLETED",
        nodes=1,
        cores=2,
        cores_per_node=2,
        cpu_time_s=2 * 3600 + 17 * 60 + 49,
        cpu_efficiency=0.5,
        core_walltime_s=4 * 3600 + 35 * 60 + 46,
        wall_time_s=2 * 3600 + 17 * 60 + 53,
        time_limit_s=3 * 3600,
        memory_used_bytes=round(11.14 * MB),
        memory_is_estimate=False,
        memory_efficiency=0.001,
        memory_requested_bytes=8 * GB,
        kinds={"cpu_time_s": Kind(kind="total", source="seff"), "memory_used_bytes": Kind(kind="peak", source="seff")},
        extra={"Tasks": "1"},
    )


def test_two_jobs_of_nesi_where_the_cluster_comes_first() -> None:
    job = "Job ID: {}\nState: COMPLETED\nJob Wall-time: 46.7% 16:49:31 of 1-12:00:00 time limit\n"
    found = parse_seff(job.format(1) + "Cluster: mahuika\n" + job.format(2))
    assert [(one.job_id, one.cluster) for one in found] == [("1", None), ("2", "mahuika")]


def test_array_task_pasted_without_its_job_id() -> None:
    assert one("#Array Job ID: 43223568_2\n#State: COMPLETED\n").job_id == "43223568_2"


def test_csc_billing_and_gpu_tables() -> None:
    found = one(
        JOB + "Job consumed 0.02 CSC billing units based on following used resources\nCPU BU: 0.01\nGPU BU: 0.02\n"
        "GPU load \n     Hostname        GPU Id      Mean (%)    stdDev (%)       Max (%) \n"
        "       r01g07             0         92.00         19.48           100 \n"
        "       r01g07             1         46.00         19.48           100 \n"
        "------------------------------------------------------------------------\n"
        "GPU memory \n     Hostname        GPU Id    Mean (GiB)  stdDev (GiB)     Max (GiB) \n"
        "       r01g07             0         16.72          1.74         16.50 \n"
        "       r01g07             1         16.72          1.74         15.50 \n"
    )
    assert (found.gpus, found.gpu_efficiency, found.gpu_memory_used_bytes) == (2, 0.69, 32 * GB)
    assert found.extra["CPU BU"] == "0.01"
    assert found.extra["Job consumed"].startswith("0.02 CSC billing units")


def test_osc_gpu_lines() -> None:
    found = one(
        JOB.replace("per node", "per Node") + "GPUs per Node: 2\nTotal GPUs: 4\nGPU Memory Utilized: 30.00 GB\n"
        "GPU Memory Efficiency: 75.00% of 40.00 GB\nGPU Utilization: 20:00:00\n"
        "GPU Efficiency: 83.33% of 24:00:00 GPU-walltime\n"
    )
    assert (found.gpus, found.gpu_efficiency, found.gpu_memory_used_bytes) == (4, 0.8333, 30 * GB)
    assert found.extra["GPU Utilization"] == "20:00:00"  # a time, so no efficiency
    assert found.extra["GPU Memory Efficiency"] == "75.00% of 40.00 GB"


def test_line_that_ends_like_a_prompt_is_kept() -> None:
    assert one(JOB + "Cost: 12 $\nuser@login ~$\n").extra["Cost"] == "12 $"


def test_gpus_per_node_alone() -> None:
    assert with_lines(GPUs_per_Node="2").gpus == 4


def test_renamed_lines_and_binary_units() -> None:
    found = one(
        "Job ID: 7\nState: COMPLETED (exit code 0)\nNodes: 1\nCores per node: 4\nCPU Utilisation: 97.50% of 00:06:40 "
        "core-walltime\nJob Wall-time: 00:01:40\nTimelimit: 01:00:00\nMem Utilised: 3.00 GiB\nMem Utilisation: 75.00% "
        "of 4.00 GiB\nGPU utilisation: 12.5 %\n"
    )
    assert (found.cpu_efficiency, found.core_walltime_s, found.wall_time_s) == (0.975, 400, 100)
    assert (found.memory_used_bytes, found.memory_efficiency, found.memory_requested_bytes) == (3 * GB, 0.75, 4 * GB)
    assert (found.gpu_efficiency, found.time_limit_s) == (0.125, 3600)


@pytest.mark.parametrize("line", ["Max GPU Utilization: 99%", "GPU Utilization: 180.00% of 2 GPUs"])
def test_a_peak_or_a_sum_is_no_gpu_efficiency(line: str) -> None:
    found = one(JOB + line)
    assert found.gpu_efficiency is None
    assert line.partition(": ")[0] in found.extra


def test_value_that_says_unknown() -> None:
    assert with_lines(CPU_Utilized="N/A").cpu_time_s is None


@pytest.mark.parametrize(
    ("printed", "user", "group"),
    [("n/a", "n", "a"), ("N/A", None, None), ("-/-", None, None), ("/users", None, "users"), ("a/b/c", "a", "b/c")],
)
def test_users_and_groups(printed: str, user: str | None, group: str | None) -> None:
    found = with_lines(**{"User/Group": printed})
    assert (found.user, found.group) == (user, group)


def test_two_lines_that_disagree_leave_the_first() -> None:
    found = with_lines(Time_limit="01:00:00", Requested_walltime="02:00:00")
    assert (found.time_limit_s, found.extra["Requested walltime"]) == (3600, "02:00:00")


def test_group_with_spaces_and_state_by_whom() -> None:
    found = with_lines(**{"User/Group": "alice/domain users", "State": "CANCELLED by 1000 (exit code 0)"})
    assert (found.user, found.group, found.state) == ("alice", "domain users", "CANCELLED")


def test_days_of_three_digits() -> None:
    assert with_lines(CPU_Utilized="123-00:00:01").cpu_time_s == 123 * 86400 + 1


# What is not seff's


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no job"),
        ("\n\n```\n", "no job"),
        ("Job not found.", "line 1"),
        ("<!DOCTYPE html>\n<html>", "line 1"),
        (JOB + "<a href='x: y'>x</a>", "line 13"),
        (JOB + "some prose about the job", "line 13"),
        (JOB.replace("00:16:07", "sixteen minutes"), "line 7"),
        (JOB.replace("9003", "9003; rm"), "line 1"),
        ("Job ID: 5\n", "line 1"),
        ("State: COMPLETED (exit code 0)\nNodes: 1\n", "no 'Job ID'"),
        (JOB + "Note: " + "x" * 3000, "line 13"),
        ("Job ID: " + "9" * 1000 + "\nState: COMPLETED", "line 1"),
        (JOB.replace("16.00 GB", "99999999999999 PB"), "line 11"),
    ],
)
def test_anything_else_is_an_error_that_names_the_line(text: str, named: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_seff(text)
    assert named in caught.value.message
    assert caught.value.message.isascii()
    assert caught.value.hint


LINES = st.sampled_from([line for path in OUTPUTS for line in path.read_text().splitlines()])
MANGLED = st.builds(
    lambda line, at, piece: line[:at] + piece + line[at:], LINES, st.integers(0, 60), st.text(max_size=5)
)


@settings(max_examples=500)
@given(st.text() | st.lists(LINES | MANGLED | st.text(max_size=40), max_size=20).map("\n".join))
def test_no_text_breaks_it_and_nothing_harmful_is_kept(text: str) -> None:
    try:
        found = parse_seff(text)
    except ParseError:
        return
    assert msgspec.json.decode(msgspec.json.encode(found), type=list[Efficiency]) == found
    kept = " ".join(text for job in found for pair in job.extra.items() for text in pair)
    assert not any(unicodedata.category(character) in {"Cc", "Cs"} for character in kept)


@pytest.mark.parametrize(
    "piece", ["# ", "//", "\x1b[", "\x1b]", "9", " ", ": ", "seff ", "- 1. ", "WARNING", "0.", "\u202e", "\\"]
)
def test_parsing_is_linear(piece: str) -> None:
    job = "Job ID: 5\nState: FAILED\n" + ("x: " + piece * 400)[:1900] + "\n"

    def seconds(count: int) -> float:
        times = []
        for _ in range(3):
            started = time.process_time()
            with contextlib.suppress(ParseError):
                parse_seff(job * count)
            times.append(time.process_time() - started)
        return min(times)

    assert seconds(1000) < 40 * max(seconds(100), 0.001)


WORDS = st.from_regex(r"[a-z][a-z0-9]{0,7}", fullmatch=True)
COUNTS = st.integers(1, 200)


@st.composite
def jobs(draw: st.DrawFn) -> Efficiency:
    """A finished job whose figures follow from each other, to seff's own precision."""
    nodes, per_node, wall_s = draw(COUNTS), draw(st.integers(1, 128)), draw(st.integers(1, 10**6))
    cores = nodes * per_node
    cpu_s = draw(st.integers(0, cores * wall_s))
    requested, used = draw(st.integers(MB, 2**50)), draw(st.none() | st.integers(KB, 2**50))
    return Efficiency(
        job_id=str(draw(COUNTS)),
        cluster=draw(WORDS),
        user=draw(WORDS),
        group=draw(WORDS),
        state=draw(st.sampled_from(["COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY"])),
        exit_code=draw(st.integers(0, 255)),
        nodes=nodes,
        cores=cores,
        cores_per_node=per_node,
        cpu_time_s=cpu_s,
        cpu_efficiency=cpu_s / (cores * wall_s),
        core_walltime_s=cores * wall_s,
        wall_time_s=wall_s,
        memory_used_bytes=used,
        memory_is_estimate=used is not None and draw(st.booleans()),
        memory_efficiency=used / requested if used is not None else None,
        memory_requested_bytes=requested,
        memory_per=draw(st.sampled_from(["node", "core", None])),
    )


def close(found: float | None, expected: float | None, **tolerance: float) -> bool:
    return found is None if expected is None else bool(found == pytest.approx(expected, **tolerance))


@given(jobs())
def test_what_is_printed_reads_back(job: Efficiency) -> None:
    expected, found = msgspec.to_builtins(job), msgspec.to_builtins(one(format_seff(job)))
    for name in ("memory_used_bytes", "memory_requested_bytes"):
        # Two decimals of a unit, of which there is at least one.
        assert close(found.pop(name), expected.pop(name), rel=0.0051)
    for name in ("cpu_efficiency", "memory_efficiency"):
        assert close(found.pop(name), expected.pop(name), rel=1e-9, abs=0.000051)
    # Of the figures that are there, each has a kind.
    figures = ("cpu_time_s", "memory_used_bytes", "gpu_efficiency", "gpu_memory_used_bytes")
    assert set(found.pop("kinds")) == {name for name in figures if getattr(job, name) is not None}
    expected.pop("kinds")
    assert found == expected
