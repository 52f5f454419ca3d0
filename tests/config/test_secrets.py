"""Secrets of the environment reach the job, and nothing that is written or printed."""

import json
import shlex
import subprocess

import pytest

from hpcdist.config import secrets
from hpcdist.config.job import JobSpec
from hpcdist.config.secrets import find_exposed
from tests.conftest import run_hpcdist

VALUE = "hf_3Kq9vXw71"
LOCAL = ("submit", "--backend", "local")


def holders(project, value=VALUE):
    """The files under a project that hold a value."""
    return [path for path in project.rglob("*") if path.is_file() and value.encode() in path.read_bytes()]


SECRETS = "HF_TOKEN WANDB_API_KEY AWS_ACCESS_KEY_ID aws_secret_access_key PASSWORD DB_PASSWD MY_CREDENTIALS PRIVATE_KEY"
SECRETS += " OPENAI_KEY GITHUB_PAT DB_PASS MYSQL_PWD"


@pytest.mark.parametrize("name", SECRETS.split())
def test_names_that_say_secret(name):
    assert secrets.is_secret(name)


PLAIN = "TOKENIZERS_PARALLELISM MAX_TOKENS KEY PRIMARY_KEY SECRETARY NOTE"
PLAIN += " MONKEY image_key PUBLIC_KEY PWD OLDPWD OLD_PWD PASS PATH COMPAT FIRST_PASS KEY_BINDINGS _KEY"


@pytest.mark.parametrize("name", PLAIN.split())
def test_names_that_only_look_so(name):
    assert not secrets.is_secret(name)
    assert secrets.is_secret(name, [name])


def test_a_job_is_parted_from_its_secrets():
    job = JobSpec(name="a", env={"A": "1", "HF_TOKEN": "t", "CODE": "c"}, secret_env=("X_TOKEN",))
    parted, values = secrets.part_secrets(job, ["CODE"])
    assert (parted.env, parted.secret_env) == ({"A": "1"}, ("CODE", "HF_TOKEN", "X_TOKEN"))
    assert values == {"HF_TOKEN": "t", "CODE": "c"}


def test_long_values_of_secrets_are_masked_the_longest_first():
    env = {"A_TOKEN": "abcdefgh", "B_TOKEN": "abcdefghij", "C_TOKEN": "abcdefg", "HOME": "/home/ada"}
    values = secrets.known_secrets(env)
    assert secrets.mask("abcdefghij abcdefgh abcdefg /home/ada", values) == "*** *** abcdefg /home/ada"


KEY = "hf_" + 20 * "k"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("python t.py --token=abc", "the value of --token"),
        ("python t.py --token abc", "the value of --token"),
        ("python t.py --hub-api-key=x", "the value of --hub-api-key"),
        ("python t.py logging.wandb_api_key=abc", "the value of logging.wandb_api_key"),
        ("env HF_TOKEN=abc python t.py", "the value of HF_TOKEN"),
        ("env A=1 OPENAI_KEY=abc python t.py", "the value of OPENAI_KEY"),
        ("bash -lc 'export GITHUB_PAT=abc; python t.py'", "the value of GITHUB_PAT"),
        (f"python t.py --hub {KEY}", "what looks like a key (hf_…)"),
        (f"wandb login {'0123456789abcdef' * 2}", "the key of wandb login"),
    ],
)
def test_a_command_that_gives_a_secret_away_is_seen(words, told):
    assert find_exposed(JobSpec(name="a", command=tuple(shlex.split(words)))) == told


@pytest.mark.parametrize(
    "words",
    [
        "python t.py --token=",
        "python t.py --token --other",
        "python t.py --tokenizer=x --max-new-tokens 512 --eos-token </s> --pad_token_id 7 --image-key jpg",
        "python t.py --key-bindings vim --first-pass 2 --token-file /home/ada/.token --password-file x",
        "env MONKEY=abc PWD=here OLDPWD=there SORT_KEY=date python t.py",
        "python t.py --token ~/.token --api-key <your-key> --secret none",
        "bash -c 'HF_TOKEN=$(cat ~/.secrets/hf) python t.py --token $HF_TOKEN'",
        "python -c 'api_key = 1'",
    ],
)
def test_a_command_without_a_secret_is_left_alone(words):
    assert find_exposed(JobSpec(name="a", command=tuple(shlex.split(words)))) is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"setup": ("module load cuda", "export HF_TOKEN=abc  # mine")}, "the value of HF_TOKEN"),
        ({"setup": ("export HF_TOKEN=$(cat ~/.secrets/hf)", "echo it's fine")}, None),
        ({"sbatch": {"export": "ALL,HF_TOKEN=abc"}}, "the value of HF_TOKEN"),
        ({"sbatch": {"export": "ALL,HF_TOKEN"}, "srun": {"export": "ALL"}}, None),
        ({"srun": {"export": "DB_PASS=abc"}}, "the value of DB_PASS"),
        ({"array": "0-1", "tasks": (("--lr", "1"), ("--api-key", "abc"))}, "the value of --api-key"),
        ({"env": {"A": "1"}, "comment": "about the token"}, None),
    ],
)
def test_a_secret_elsewhere_in_a_job_is_seen(options, told):
    assert find_exposed(JobSpec(name="a", command=("true",), **options)) == told


def test_a_secret_reaches_the_program_and_no_file(project):
    check = ("sh", "-c", f'test "$HF_TOKEN" = {VALUE[:4]}"{VALUE[4:]}"')
    done = run_hpcdist(
        *LOCAL, "--env", f"HF_TOKEN={VALUE}", "--env", "PLAIN=seen", "--run", "r", "--wait", "--", *check
    )
    assert done.code == 0, done.err
    assert holders(project) == []
    assert VALUE not in done.out + done.err
    run = project / "jobs" / "runs" / "r"
    job = json.loads((run / "job.json").read_text())["job"]
    assert (job["env"], job["secret_env"]) == ({"PLAIN": "seen"}, ["HF_TOKEN"])
    assert run.stat().st_mode & 0o777 == 0o700


def test_a_dry_run_shows_the_name_alone(project):
    done = run_hpcdist(*LOCAL, "--env", f"HF_TOKEN={VALUE}", "--dry-run", "--", "true")
    assert '\n: "${HF_TOKEN:?is a secret' in done.out
    assert VALUE not in done.out + done.err


def test_the_site_lists_names_of_its_own(project):
    (project / "hpcdist.toml").write_text('secrets = ["LICENSE_CODE"]\n')
    script = run_hpcdist("render", "--env", f"LICENSE_CODE={VALUE}", "--", "true").out
    assert '"${LICENSE_CODE:?' in script
    assert VALUE not in script


def test_sbatch_gets_it_in_its_environment_and_not_as_a_word(project, stand_in):
    stand_in("sbatch", 'echo "$HF_TOKEN" > got; echo "$@" > words; echo Submitted batch job 7')
    stand_in("scontrol", "echo 'ClusterName = c'")
    done = run_hpcdist("submit", "--backend", "slurm", "--env", f"HF_TOKEN={VALUE}", "--", "true")
    assert done.out == "7\n", done.err
    assert holders(project) == [project / "got"]


def test_a_script_submitted_by_hand_fails_without_it(project):
    (project / "s.sh").write_text(run_hpcdist("render", "--env", f"HF_TOKEN={VALUE}", "--", "true").out)
    done = subprocess.run(["bash", "s.sh"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "HF_TOKEN: is a secret that is kept nowhere: export it before you submit" in done.stderr


def test_rerun_takes_it_from_the_environment_or_asks_for_it(project):
    (project / "ok.sh").write_text(f'test "$HF_TOKEN" = {VALUE[:4]}"{VALUE[4:]}"\n')
    run_hpcdist(*LOCAL, "--env", f"HF_TOKEN={VALUE}", "--run", "r", "--wait", "--", "sh", "ok.sh")
    done = run_hpcdist("rerun", "r", "--run", "again")
    assert done.code == 2
    assert "error: the job needs HF_TOKEN, a secret, which is kept nowhere\n" in done.err
    assert "hint: set it first: read -rs HF_TOKEN && export HF_TOKEN\n" in done.err
    assert not (project / "jobs" / "runs" / "again").exists()
    assert run_hpcdist("rerun", "r", "--wait", env={"HF_TOKEN": VALUE}).code == 0
    assert run_hpcdist("rerun", "r", "--wait", env={"HF_TOKEN": "another one"}).code == 1


def test_rerun_of_an_old_record_does_not_show_its_values(project):
    run_hpcdist(*LOCAL, "--run", "r", "--wait", "--", "true")
    path = project / "jobs" / "runs" / "r" / "job.json"
    record = json.loads(path.read_text())
    del record["job"]["secret_env"]
    record["job"]["env"] = {"HF_TOKEN": VALUE}
    path.write_text(json.dumps(record))
    done = run_hpcdist("rerun", "r", "--set", "env=HF_TOKEN=new_value_1", "--dry-run")
    assert done.code == 0, done.err
    assert VALUE not in done.out + done.err
    assert "new_value_1" not in done.out + done.err


def test_what_a_program_printed_is_masked_where_its_value_is_known(project):
    say = ("sh", "-c", 'echo "I know $HF_TOKEN"; exit 3')
    done = run_hpcdist(*LOCAL, "--env", f"HF_TOKEN={VALUE}", "--run", "r", "--wait", "--", *say)
    assert done.code == 1
    assert "| I know ***\n" in done.err
    assert VALUE not in done.err
    assert [path.suffix for path in holders(project)] == [".out"]  # what a program prints is its own
    for words in (("logs", "r"), ("why", "r"), ("why", "r", "--json")):
        shown = run_hpcdist(*words, env={"HF_TOKEN": VALUE})
        assert "I know ***" in shown.out
        assert VALUE not in shown.out + shown.err
    assert f"I know {VALUE}" in run_hpcdist("logs", "r").out  # nobody knows here what to mask


def test_an_argument_that_gives_a_secret_away_is_warned_of(project):
    done = run_hpcdist(*LOCAL, "--dry-run", "--", "true", "--token=abc")
    assert "warning: the value of --token is written into the script" in done.err
