"""`hpcdist lint`: whole scripts, the command, what it mends, what it leaves out, and that nothing makes it fail."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpcdist.errors import UsageError
from hpcdist.lint.linter import RULES, find_rule, fix, lint
from hpcdist.lint.rule import LintContext
from tests.conftest import REPOSITORY, run_hpcdist

SCRIPTS = sorted((REPOSITORY / "tests/data/lint").glob("*.sbatch"))
GOLDEN = sorted((REPOSITORY / "tests/golden").glob("*.sbatch"))
PITFALLS = (REPOSITORY / "docs/pitfalls.md").read_text()
NOTHING_THERE = LintContext(folder_exists=lambda folder: False)

BAD = b"""#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
export MASTER_PORT=29500
srun python train.py
"""


def rows(findings):
    return [f"{finding.line}:{finding.column} {finding.code}" for finding in findings]


# Written after the patterns of public scripts; each script's findings were read and judged by a person, one by one.
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_as_people_write_it_has_exactly_these_findings(path):
    assert rows(lint(path.read_bytes())) == json.loads(path.with_suffix(".json").read_text())


def test_there_are_enough_such_scripts():
    assert len(SCRIPTS) >= 40
    found = {row.partition(" ")[2] for path in SCRIPTS for row in json.loads(path.with_suffix(".json").read_text())}
    # The others need a cluster, a file system or bytes that no editor keeps; test_lint_rules.py has them.
    assert {rule.code for rule in RULES} - found <= {
        *("crlf", "nul-byte", "unread"),
        *("partition", "time-limit", "no-such-node"),
    }


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_our_own_scripts_are_clean(path):
    notes = {"2x4-command": ["conda-init"], "4x2-exclusive": ["exclusive-memory"]}
    findings = lint(path.read_bytes(), NOTHING_THERE)
    # What the two users asked for themselves: conda without its set-up, whole nodes without their memory.
    assert [finding.code for finding in findings] == notes.get(path.stem, [])
    assert all(finding.severity == "info" for finding in findings)


@pytest.mark.parametrize("path", [*SCRIPTS, *GOLDEN], ids=lambda path: path.stem)
def test_mending_twice_is_mending_once_and_only_removes_findings(path):
    data = path.read_bytes()
    once = fix(data)
    assert fix(once) == once
    before, after = ([finding.code for finding in lint(one)] for one in (data, once))
    assert all(after.count(code) <= before.count(code) for code in after)
    assert not any(finding.edits for finding in lint(once))
    if data != once:
        assert subprocess.run(["bash", "-n"], input=once, capture_output=True).returncode == 0


def test_what_is_mended():
    fixed = fix(b"#!/bin/bash\r\n#SBATCH -N1 --ntasks-per-node=2\r\nsrun python t.py | tee log\r\n")
    assert fixed.decode() == (
        "#!/bin/bash\n#SBATCH -N1 --ntasks-per-node=2\n"
        "set -o pipefail\nsrun --kill-on-bad-exit=1 python t.py | tee log\n"
    )
    # A script whose line ends are to stay is left alone.
    assert fix(b"#!/bin/bash\r\nexport MASTER_PORT=29500\r\n", ignore=["crlf"]).endswith(b"=29500\r\n")


@pytest.mark.parametrize(
    ("comment", "above", "found"),
    [
        ("# hpcdist: ignore[port]", True, False),
        ("# hpcdist: ignore[port, secret]", False, False),
        ("# hpcdist: ignore", True, False),
        ("# hpcdist: ignore[secret]", True, True),
        ("echo '# hpcdist: ignore[port]'", True, True),
    ],
)
def test_a_comment_on_the_line_or_above_it_leaves_out(comment, above, found):
    line = "export MASTER_PORT=29500"
    text = f"{comment}\n{line}\n" if above else f"{line}  {comment}\n"
    codes = [finding.code for finding in lint(f"#!/bin/bash\n{text}".encode())]
    assert ("port" in codes) is found


def test_a_comment_covers_the_whole_command_and_no_other():
    script = "#!/bin/bash\n{}torchrun \\\n  --master_port=29500 t.py\nexport MASTER_PORT=1234\n"
    assert len(lint(script.format("").encode(), select=["port"])) == 1  # the variable is the port of both
    kept = lint(script.format("# hpcdist: ignore[port]\n").encode(), select=["port"])
    assert rows(kept) == ["5:8 port"]


def test_a_comment_at_the_top_is_for_the_file():
    line = "export MASTER_PORT=29500\n"
    assert not lint(f"#!/bin/bash\n# hpcdist: ignore-file[port]\n#SBATCH -N1\n\n\n{line}".encode())
    assert lint(f"#!/bin/bash\n{line}# hpcdist: ignore-file[port]\n".encode())


def test_select_and_ignore():
    assert {finding.code for finding in lint(BAD, select=["port"])} == {"port"}
    assert "port" not in {finding.code for finding in lint(BAD, ignore=["port"])}
    with pytest.raises(UsageError, match="no rule 'prot'"):
        find_rule("prot")


def test_a_secret_is_never_repeated():
    findings = lint(b"#!/bin/bash\nexport HF_TOKEN=hf_abcdefghijklmnopqrstuv\npython t.py --api-key geheim123\n")
    assert len(findings) == 2
    assert not any("abcdefgh" in str(finding) or "geheim123" in str(finding) for finding in findings)


def test_the_command_prints_places_and_ends_with_1(project):
    Path("bad.sbatch").write_bytes(BAD)
    done = run_hpcdist("lint", "bad.sbatch")
    assert done.code == 1
    assert "bad.sbatch:5:8: port [*] MASTER_PORT is always 29500\n    why: " in done.out
    assert "\x1b" not in done.out
    assert "3 warning(s) found in 1 file(s); 3 marked [*] can be mended with --fix" in done.err
    brief = run_hpcdist("lint", "--brief", "--select", "port", "bad.sbatch")
    assert brief.out == "bad.sbatch:5:8: port [*] MASTER_PORT is always 29500\n"


def test_the_command_ends_with_0_and_2(project):
    Path("good.sbatch").write_text("#!/bin/bash\n#SBATCH --exclusive\npython train.py\n")
    assert run_hpcdist("lint", "good.sbatch").code == 0  # a note only
    for arguments in (["gone.sbatch"], [], ["--select", "prot", "good.sbatch"], ["--explain", "prot"], ["."]):
        done = run_hpcdist("lint", *arguments)
        assert done.code == 2
        assert done.err.startswith("error: ")
        assert "Traceback" not in done.err


def test_fix_rewrites_the_file_and_shows_the_difference(project):
    path = Path("bad.sbatch")
    path.write_bytes(BAD)
    done = run_hpcdist("lint", "--fix", "bad.sbatch")
    assert done.code == 0
    assert "-srun python train.py" in done.out
    assert '+srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" python train.py' in done.out
    assert path.read_bytes() == fix(BAD)
    assert run_hpcdist("lint", "--fix", "bad.sbatch").out == ""


def test_json_and_standard_input():
    done = subprocess.run(
        [sys.executable, "-m", "hpcdist.cli.main", "lint", "--json", "-"], input=BAD, capture_output=True
    )
    findings = json.loads(done.stdout)
    assert done.returncode == 1
    assert findings[-1]["file"] == "-"
    assert {"code", "severity", "line", "column", "message", "why", "fix", "edits"} < set(findings[0])
    mended = subprocess.run(
        [sys.executable, "-m", "hpcdist.cli.main", "lint", "--fix", "-"], input=BAD, capture_output=True
    )
    assert mended.stdout == fix(BAD)
    assert b"+export MASTER_PORT=$((" in mended.stderr


def test_explain_says_why_and_where_from():
    done = run_hpcdist("lint", "--explain", "rank-death")
    assert done.code == 0
    assert "torchx#479" in done.out
    listed = run_hpcdist("lint", "--explain", "all").out
    assert [line.split()[0] for line in listed.splitlines()] == [rule.code for rule in RULES]


def test_the_pre_commit_hook_runs_the_command_on_batch_scripts():
    hook = (REPOSITORY / ".pre-commit-hooks.yaml").read_text()
    assert "entry: hpcdist lint\n" in hook
    (pattern,) = re.findall(r"files: (.+)", hook)
    assert re.search(pattern, "jobs/train.sbatch")
    assert not re.search(pattern, "train.py")


def test_missing_log_folders_and_the_site_are_looked_at(project, stand_in):
    Path("a.sbatch").write_text("#!/bin/bash\n#SBATCH -o logs/%j.out --mem=3G -p gpu\npython t.py\n")
    Path("site.txt").write_text("gpu*|1:00:00|2|4|2000|gpu:1\n")
    found = run_hpcdist("lint", "--brief", "--site-file", "site.txt", "a.sbatch").out
    assert re.findall(r": (\S+) ", found) == ["log-dir", "no-such-node"]
    Path("logs").mkdir()
    stand_in("sinfo", "echo 'cpu|1:00:00|2|4|8000|(null)'")
    found = run_hpcdist("lint", "--brief", "--cluster", "a.sbatch").out
    assert re.findall(r": (\S+) ", found) == ["partition"]


@pytest.mark.parametrize(("release", "found"), [("22.05.8", ["log-dir"]), ("23.02.1", [])])
def test_a_cluster_whose_slurm_makes_log_folders_is_believed(project, stand_in, monkeypatch, release, found):
    Path("a.sbatch").write_text("#!/bin/bash\n#SBATCH -o logs/%j.out\npython t.py\n")
    stand_in("sinfo", "echo 'cpu*|1:00:00|2|4|8000|(null)'")
    stand_in("sbatch", f"echo slurm {release}")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    told = run_hpcdist("lint", "--brief", "--cluster", "a.sbatch").out
    assert re.findall(r": (\S+) ", told) == found


@settings(max_examples=300, deadline=5_000)
@given(st.binary(max_size=400))
@example(b"")
@example(b"\0")
@example(b"#!/bin/bash\r\n\r")
@example(b"#SBATCH " + b"\\" * 99)
@example(b"#SBATCH " + b"-" * 5_000)
@example(b"#!/bin/bash\n" + b"x" * 2_000_000)
@example(b"#SBATCH --" + b"x" * 200_000)
@example(b"srun " * 5_000)
@example(b"$(" * 1_900)
@example(b"a=(" * 900)
@example(b"a|" * 900)
@example(b"A=$A$A\nsrun $A\n" * 50)
@example(b"bash -c 'bash -c \"bash -c x\"'\n" * 20)
def test_no_bytes_make_it_fail(data):
    findings = lint(data)
    json.dumps([finding.message for finding in findings])
    assert fix(fix(data)) == fix(data)


FRAGMENTS = """srun torchrun python -m bash -c " ' $( ) ` | && || & ; { } if then fi for do done case esac in <<EOF EOF
$SLURM_NODEID ${A%%,*} $((1+2)) A=1 A=(-c4 A+=( "${A[@]}" export MASTER_ADDR= MASTER_PORT=29500 $(hostname)
--nodes=2 -n 4 #SBATCH # set -e"""
WORDS = [*FRAGMENTS.split(), "\n", "\\\n", "\n#SBATCH --nodes=2\n", "\r\n", "é"]


@settings(max_examples=300, deadline=5_000)
@given(st.lists(st.sampled_from(WORDS), max_size=60))
def test_no_script_makes_it_fail(parts):
    data = ("#!/bin/bash\n" + " ".join(parts)).encode()
    lint(data)
    assert fix(fix(data)) == fix(data)


def test_a_thousand_scripts_are_quick():
    scripts = [path.read_bytes() for path in [*SCRIPTS, *GOLDEN]]
    lint(scripts[0])
    # In CPU time, which other programs on the machine do not add to; 2 s is the promise, the rest is for slow machines.
    started = time.process_time()
    count = 0
    while count < 1_000:
        for data in scripts:
            lint(data)
            count += 1
    assert time.process_time() - started < 2 * slowness()


def slowness():
    """How much slower this machine is than the one of the measurement, which takes 0.125 s for this."""
    started = time.process_time()
    sum(number * number for number in range(2_000_000))
    return max(1.0, (time.process_time() - started) / 0.125) * 1.5


def test_nothing_of_the_parser_is_loaded_before_it_is_needed(project):
    program = "import sys, hpcdist.cli.main, hpcdist.cli.lint; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"tree_sitter", "tree_sitter_bash", "hpcdist.lint.linter"} & set(done.stdout.split())


def test_every_rule_has_its_section_in_the_pitfalls_and_no_other():
    assert re.findall(r"^### (\S+)$", PITFALLS, re.MULTILINE) == sorted(rule.code for rule in RULES)
    for section in PITFALLS.split("\n### ")[1:]:
        assert all(f"**{part}**" in section for part in ("Symptom.", "Cause.", "Cure.")), section[:40]
