"""What the linter reads from a script: the `#SBATCH` lines as sbatch reads them, and the shell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdist.errors import ParseError
from hpcdist.lint.bash import MOST_BYTES, parse_shell
from hpcdist.lint.directives import SBATCH, SRUN, complete, find_nearest, parse_header, read_options
from hpcdist.lint.script import Script
from hpcdist.slurm.cluster import Node, Partition, parse_sinfo
from hpcdist.submission.render import quote_sbatch


def words(line):
    return [word.text for word in parse_header(b"#!/bin/bash\n" + line + b"\n").words]


# What `sbatch -vvv` of 22.05.8 printed as found in the script.
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"#SBATCH -N2 --gres gpu:2 --gres=gpu:3 #c", ["-N2", "--gres", "gpu:2", "--gres=gpu:3"]),
        (b"#SBATCH--ntasks=3", ["--ntasks=3"]),
        (b"#SBATCH -J a#b", ["-J", "a"]),
        (b'#SBATCH --job-name="a b" -c4', ["--job-name=a b", "-c4"]),
        (b"#SBATCH --comment=~\\' $", ["--comment=~'", "$"]),
        (rb"#SBATCH --comment=back\slash", ["--comment=backslash"]),
        (b'#SBATCHa=\\:\\"', ['a=:"']),
        # An escaped blank parts words all the same, and an empty word ends the line.
        (b'#SBATCH b -N 2$\t$ "x y" =\\ b "x y"', ["b", "-N", "2$", "$", "x y", "=", "b", "x y"]),
        (b" #SBATCH -N 2", []),
        (b"##SBATCH -N 2", []),
        (b"# SBATCH -N 2", []),
    ],
)
def test_words_are_those_that_sbatch_finds(line, expected):
    assert words(line) == expected


def test_an_empty_word_ends_the_line():
    header = parse_header(b'#SBATCH --comment "" -N 9\n')
    assert [(one.name, one.value) for one in header.directives] == [("comment", None)]


# "Unmatched `"` in […]" and "Unexpected `:` in […]" of 22.05.8.
@pytest.mark.parametrize("line", [b'#SBATCH --job-name="foo', b"#SBATCH '= -N 2b\\", b"#SBATCH : -N 2"])
def test_what_sbatch_refuses_is_a_fault(line):
    assert any(word.fault for word in parse_header(line).words)


@given(st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), min_size=1))
def test_a_value_that_we_quote_is_read_back(value):
    line = f"#SBATCH --comment={quote_sbatch(value)}\n".encode()
    (directive,) = parse_header(line).directives
    assert directive.value == value


@pytest.mark.parametrize(
    "line", ["--cpus-per-task=4", "--cpus-per-task 4", "-c4", "-c 4", "--cpus-per-t=4", "-Hc4", "--hold -c 4"]
)
def test_long_short_and_spaced_forms_are_the_same(line):
    assert Script(f"#!/bin/bash\n#SBATCH {line}\n".encode()).request.cpus_per_task == 4


def test_a_value_may_stand_in_the_next_line():
    # sbatch collects the words of all lines before it reads the options.
    assert Script(b"#!/bin/bash\n#SBATCH --nodes\n#SBATCH 2\n").request.nodes == 2


# "option '--ntask=2' is ambiguous; possibilities: …", "unrecognized option '--cpu-per-task=2'" of 22.05.8.
def test_an_option_that_getopt_refuses_has_a_fault():
    assert "ambiguous" in complete("ntask", SBATCH)[1]
    assert complete("cpu-per-task", SBATCH)[1] == "there is no option --cpu-per-task"
    assert find_nearest("cpu-per-task", SBATCH) == "cpus-per-task"
    assert complete("cpus-per-task", SBATCH) == ("cpus-per-task", "")


def test_sruns_options_end_at_the_program():
    found = list(read_options(["-K", "-n", "4", "--mpi=pmix", "python", "-c", "x"], SRUN, stop=True))
    assert [(one.name, one.value) for one in found] == [("kill-on-bad-exit", None), ("ntasks", "4"), ("mpi", "pmix")]


def test_directives_end_at_the_first_command_and_heredoc_text_is_none():
    data = b"#!/bin/bash\n#SBATCH -N2\n\n# note\n#SBATCH -c3\ncat <<EOF\n#SBATCH -n9\nEOF\n#SBATCH -n8\n"
    script = Script(data)
    assert [one.name for one in script.header.directives] == ["nodes", "cpus-per-task"]
    comments = [text for _, _, text in script.shell.comments]
    assert "#SBATCH -n8" in comments
    assert "#SBATCH -n9" not in comments


@pytest.mark.parametrize("word", ["hetjob", "packjob"])
def test_components_of_a_heterogeneous_job_are_apart(word):
    data = f"#!/bin/bash\n#SBATCH -N1 -n1\n#SBATCH {word}\n#SBATCH -N2 -n8\n#SBATCH -c2\n"
    first, second = Script(data.encode()).requests
    assert (first.nodes, first.tasks, first.cpus_per_task) == (1, 1, None)
    assert (second.nodes, second.tasks, second.cpus_per_task) == (2, 8, 2)


# sbatch(1): --ntasks-per-node is per node, --gpus counts the job's, one task per node where nothing is said.
@pytest.mark.parametrize(
    ("options", "nodes", "tasks", "node_tasks", "node_gpus"),
    [
        ("", 1, 1, 1, None),
        ("-N3", 3, 3, 1, None),
        ("-N2 --ntasks-per-node=4 --gpus-per-node=4", 2, 8, 4, 4),
        ("-N2 -n8 --gpus=8", 2, 8, 4, 4),
        ("-n8 --ntasks-per-node=4 --gres=gpu:a100:4", 2, 8, 4, 4),
        ("-N2 -n3", 2, 3, None, None),
        ("-N2-4 --gpus-per-node=h100:8", 2, 2, 1, 8),
        ("-N1 -n4 --gpus-per-task=2", 1, 4, 4, 8),
        ("-N1 --gres=nvme:1,gpu:2,gpu:v100:1", 1, 1, 1, 3),
        ("-N1 --gres=gpu", 1, 1, 1, 1),
    ],
)
def test_what_is_asked_for(options, nodes, tasks, node_tasks, node_gpus):
    request = Script(f"#!/bin/bash\n#SBATCH {options}\n".encode()).request
    assert (request.node_count, request.task_count) == (nodes, tasks)
    assert (request.node_tasks, request.node_gpus) == (node_tasks, node_gpus)


@pytest.mark.parametrize(
    ("command", "programs"),
    [
        ("python t.py", ["python"]),
        ("/opt/venv/bin/python3.11 -u t.py", ["python"]),
        ('"$PYTHON" t.py', ["python"]),
        ("A=1 time -p nice -n 5 ./a", ["time", "nice", "a"]),
        ("srun -n 4 --label python t.py", ["srun", "python"]),
        ("srun -- ./a -n 4", ["srun", "a"]),
        ("mpirun -np 4 -x A --map-by ppr:4:node ./a", ["mpirun", "a"]),
        ("srun singularity exec --nv -B /a:/b x.sif torchrun t.py", ["srun", "singularity", "torchrun"]),
        ("apptainer run --nv x.sif python t.py", ["apptainer", "python"]),
        ("python -m torch.distributed.run t.py", ["torchrun"]),
        ("python -u -m torch.distributed.launch t.py", ["torchrun"]),
        ("conda run -n x --no-capture-output python t.py", ["conda", "python"]),
        ("uv run python t.py", ["uv", "python"]),
        ("timeout 10m env A=1 python t.py", ["timeout", "env", "python"]),
        ("L='accelerate launch'\nsrun $L t.py", ["srun", "accelerate"]),
        ("srun bash -c 'cd x && torchrun t.py'", ["srun", "bash", "torchrun"]),
        ("srun bash <<'E'\ntorchrun t.py\nE", ["srun", "bash", "torchrun"]),
        ("srun sh -c 'umask 077; exec \"$@\"' sh torchrun t.py", ["srun", "sh", "torchrun"]),
        ('a=(x)\nc && a=(y -z)\nsrun "${a[@]}" torchrun t.py', ["srun", "${a[@]}", "torchrun"]),
        ('a=(x)\nc && a=(y -z)\n"${a[@]}" --lr 1', ["${a[@]}"]),
        ("ssh -p 22 n1 'cd x; torchrun t.py'", ["ssh", "torchrun"]),
    ],
)
def test_what_a_command_starts(command, programs):
    launches = Script(f"#!/bin/bash\n{command}\n".encode()).launches
    assert [program.name for program in launches[-1].programs] == programs


def test_where_a_command_stands():
    shell = parse_shell(b"a | b 2>&1 > f &\nif c; then d; fi\ne || f\nx=$(g)\nh() { i; }\n")
    found = {command.words[0].text: command for command in shell.commands}
    assert found["a"].piped_into == ("b",)
    assert found["a"].background
    assert [word.text for word in found["a"].writes] == ["f"]
    assert found["c"].condition
    assert found["d"].branch
    assert found["e"].rescued
    assert found["f"].branch
    assert found["g"].substitution
    assert found["i"].function


def test_words_lose_their_quotes_and_keep_their_expansions():
    (command,) = parse_shell(b"""a 'b c' "d $E f" g\\ h "${I%%,*}" "\\$J" --k="l" """).commands
    assert [word.text for word in command.words] == ["a", "b c", "d $E f", "g h", "${I%%,*}", "$J", "--k=l"]
    names = [(part.kind, part.name) for word in command.words for part in word.expansions]
    assert names == [("variable", "E"), ("modified", "I")]


@pytest.mark.parametrize("data", [b"x" * (MOST_BYTES + 1), b"a|" * 2_001, b"(" * 5_000])
def test_what_would_take_the_parser_too_long_is_left_alone(data):
    assert not parse_shell(data).is_complete


def test_places_count_characters():
    script = Script("é é\nab\n".encode())
    assert script.place_of("é é\na".encode().index(b"a")) == (2, 1)
    assert script.place_of(3) == (1, 3)


# The lines of sinfo -e of a cluster with two kinds of nodes; a star marks the default partition (sinfo(1)).
def test_sinfo_is_read():
    text = "gpu*|1-00:00:00|4|32|257000|gpu:a100:4(S:0-1)\ngpu*|1-00:00:00|2|64|515000|gpu:2,nvme:1\n"
    text += "cpu|infinite|9|8|16000|(null)\n"
    gpu, cpu = parse_sinfo(text)
    assert gpu == Partition(
        name="gpu",
        nodes=(
            Node(count=4, cpus=32, memory_bytes=257000 * 1024**2, gpus=4, gpu_type="a100"),
            Node(count=2, cpus=64, memory_bytes=515000 * 1024**2, gpus=2),
        ),
        time_limit_s=86400,
        is_default=True,
    )
    assert (cpu.time_limit_s, cpu.is_default, cpu.nodes[0].gpus) == (None, False, 0)
    with pytest.raises(ParseError, match="no line of sinfo"):
        parse_sinfo("PARTITION AVAIL")
