"""`hpcdist lint --sarif`: the fields that SARIF 2.1.0 requires, and those that a code host shows, checked by hand."""

import json
from pathlib import Path

from hpcdist import __version__
from hpcdist.lint.linter import RULES, lint
from hpcdist.lint.sarif import build_sarif
from tests.conftest import run_hpcdist

SCRIPT = """#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
note='é'; export MASTER_PORT=29500
python train.py
"""


def test_findings_are_where_they_are_in_the_file(project):
    Path("my job.sbatch").write_text(SCRIPT)
    done = run_hpcdist("lint", "--sarif", "my job.sbatch")
    assert done.code == 1
    log = json.loads(done.out)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("hpcdist lint", __version__)
    found = []
    for result in run["results"]:
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert place["artifactLocation"] == {"uri": "my%20job.sbatch"}
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        found.append((result["ruleId"], result["level"], place["region"]["startLine"], place["region"]["startColumn"]))
    # Counted in the script above: line, and column in characters (é is one).
    assert found == [
        ("exclusive-memory", "note", 4, 9),
        ("port", "warning", 5, 18),
        ("python-without-srun", "error", 6, 1),
    ]
    assert run["columnKind"] == "unicodeCodePoints"
    assert run["results"][1]["message"]["text"].startswith("MASTER_PORT is always 29500. ")


def test_every_rule_is_described_once():
    (run,) = build_sarif([], "1")["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.code for rule in RULES]
    assert {rule["defaultConfiguration"]["level"] for rule in rules} == {"error", "warning", "note"}
    assert all(rule["shortDescription"]["text"] and rule["help"]["text"] for rule in rules)
    assert run["results"] == []


def test_a_file_s_name_is_a_uri():
    (finding,) = lint(b"#!/bin/bash\nexport MASTER_PORT=29500\n")
    names = ("/a b/c.sh", "jobs/t.sbatch", "a:b.sh", "caf\udce9.sh")
    (run,) = build_sarif([(name, finding) for name in names], "1")["runs"]
    uris = [one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in run["results"]]
    # RFC 3986: blanks and bytes that are no text as %XX; a first part with a colon would be taken for a scheme.
    assert uris == ["file:///a%20b/c.sh", "jobs/t.sbatch", "a%3Ab.sh", "caf%E9.sh"]


def test_two_forms_at_once_are_refused(project):
    Path("a.sbatch").write_text(SCRIPT)
    done = run_hpcdist("lint", "--sarif", "--json", "a.sbatch")
    assert (done.code, "exclude each other" in done.err) == (2, True)
