"""Each rule of `hpcdist lint`: a script where it fires, and one that differs in the one thing and where it must not."""

import pytest

from hpcdist.lint.linter import RULES, lint
from hpcdist.lint.rule import LintContext
from hpcdist.slurm.cluster import Node, Partition

SITE = LintContext(
    partitions=(
        Partition(
            name="gpu",
            nodes=(Node(count=4, cpus=32, memory_bytes=256 * 1024**3, gpus=4),),
            time_limit_s=24 * 3600,
            is_default=True,
        ),
    ),
    folder_exists=lambda folder: folder == "there",
)

TWO = "-N2 --ntasks-per-node=1"  # two nodes
FOUR = "-N1 --ntasks-per-node=4 --gpus-per-node=4"  # four tasks and GPUs on a node
STEP = "srun -K python t.py"

# Code: the directives and commands (parted by a newline) that fire, and those that must not. Directives are one line.
CASES = {
    "shebang": [("raw", "#SBATCH -N1\npython t.py"), ("", "python t.py")],
    "crlf": [("raw", "#!/bin/bash\r\npython t.py\r\n"), ("raw", "#!/bin/bash\npython t.py\n")],
    "nul-byte": [("raw", "#!/bin/bash\necho a\0b"), ("raw", "#!/bin/bash\necho a0b")],
    "unread": [("", "a|" * 3000), ("", "a|" * 300 + "b")],
    "ignored-directive": [("", "cd x\n#SBATCH --time=10"), ("", "cat <<EOF\n#SBATCH --time=10\nEOF")],
    "not-a-directive": [("raw", "#!/bin/bash\n# SBATCH --time=10\n"), ("raw", "#!/bin/bash\n##SBATCH --time=10\n")],
    "directive-quoting": [("--comment=run#7", "a"), ('--comment="run#7"', "a")],
    "stray-word": [("--job-name = x", "a"), ("--job-name x", "a")],
    "unknown-option": [("--cpu-per-task=4", "a"), ("--site-plugin-option=4", "a")],
    "bad-value": [("--time=1h", "a"), ("--time=1:00:00", "a")],
    "directive-variable": [("--output=$HOME/%j.out", "a"), ("--output=%j.out", 'echo "$HOME"')],
    "repeated-directive": [("-N2 --nodes=4", "a"), ("--mail-type=END --mail-type=FAIL", "a")],
    "mem-flags": [("--mem=4G --mem-per-cpu=1G", "a"), ("--mem=4G", "a")],
    "exclusive-memory": [("--exclusive", "a"), ("--exclusive --mem=0", "a")],
    "conflicting-directives": [("-N2 -n2 --ntasks-per-node=4", "a"), ("-N2 -n8 --ntasks-per-node=4", "a")],
    "memory-unit": [("--mem=64", "a"), ("--mem=64000", "a")],
    "job-name": [("-J bash", "a"), ("-J bash-test", "a")],
    "wckey": [("--wckey=submitit", "a"), ("--wckey=thesis", "a")],
    "export": [("--export=NONE", "srun ./a"), ("--export=NONE", "export SLURM_EXPORT_ENV=ALL\nsrun ./a")],
    "partition": [("-p gppu", "a"), ("-p gpu", "a")],
    "time-limit": [("-t 1-00:00:01", "a"), ("-t 1-00:00:00", "a")],
    "no-such-node": [("--mem=257G", "a"), ("--mem=256G", "a")],
    "log-dir": [("-o gone/%j.out", "a"), ("-o there/%j.out", "a")],
    "array-output": [("-a 0-9 -o x_%A.out", "a"), ("-a 0-9 -o x_%A_%a.out", "a")],
    "requeue-log": [("--requeue", "a"), ("--requeue --open-mode=append", "a")],
    "mail-type": [("--mail-user=a@b.c", "a"), ("--mail-user=a@b.c --mail-type=END", "a")],
    "gpus-per-task": [("-N1 -n4 --gpus-per-task=1", "a"), ("-N1 -n1 --gpus-per-task=1", "a")],
    "gpu-bind": [("--gpu-bind=closest", "a"), ("--gpu-bind=none", "a")],
    "gpu-flag": [("--gres=gpu:2 --gpus-per-node=2", "a"), ("--gres=nvme:1 --gpus-per-node=2", "a")],
    "cuda-visible-devices": [("", "export CUDA_VISIBLE_DEVICES=0,1"), ("", "export CUDA_VISIBLE_DEVICES=")],
    "tasks-gpus": [("-N1 --ntasks-per-node=2 --gpus-per-node=4", STEP), (FOUR, STEP)],
    "devices-mismatch": [(FOUR, "torchrun --nproc_per_node=8 t.py"), (FOUR, "torchrun --nproc_per_node=4 t.py")],
    "cpus-per-task": [("-c4", "srun python t.py"), ("-c4", "srun -c4 python t.py")],
    "ntasks-per-node": [("-N1 -n2", STEP), ("-N1 -n2 --ntasks-per-node=2", STEP)],
    "python-without-srun": [(TWO, "python t.py"), (TWO, "python prepare.py\nsrun python t.py")],
    "torchrun": [(TWO, "torchrun --nnodes=2 t.py"), (TWO, "srun torchrun --nnodes=2 t.py")],
    "torchrun-tasks": [(FOUR, "srun torchrun t.py"), (FOUR, "srun --ntasks-per-node=1 torchrun t.py")],
    "mpirun-mix": [("-n4", "srun mpirun ./a"), ("-n4", "mpirun -np 4 ./a")],
    "node-rank": [
        (TWO, 'srun bash -c "torchrun --node_rank $SLURM_NODEID t.py"'),
        (TWO, "srun bash -c 'torchrun --node_rank $SLURM_NODEID t.py'"),
    ],
    "het-group": [("raw", "#!/bin/bash\n#SBATCH -n1\n#SBATCH hetjob\n#SBATCH -n2\nsrun ./a\n"), ("-n1", "srun ./a")],
    "port": [("", "export MASTER_PORT=29500"), ("", "export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))")],
    "master-addr": [(TWO, "export MASTER_ADDR=$(hostname)"), ("-N1", "export MASTER_ADDR=$(hostname)")],
    "nodelist": [
        ("", "A=$(echo $SLURM_JOB_NODELIST | cut -d, -f1)"),
        ("", "A=$(scontrol show hostnames $SLURM_JOB_NODELIST | cut -d. -f1)"),
    ],
    "nic": [(TWO, "export NCCL_SOCKET_IFNAME=eth0"), (TWO, "export NCCL_SOCKET_IFNAME=^lo,docker0")],
    "rank-death": [(FOUR, "srun python t.py"), ("-N1 -n1", "srun python t.py")],
    "srun-wait": [(FOUR, "srun -K --wait=60 python t.py"), (FOUR, "srun -K --wait=0 python t.py")],
    "tee-hides-death": [("", "python t.py | tee log"), ("", "set -o pipefail\npython t.py | tee log")],
    "exit-code": [("", "python t.py\necho done"), ("", "rc=0\npython t.py || rc=$?\necho done\nexit $rc")],
    "rc-under-set-e": [("", "set -e\npython t.py\nrc=$?\nexit $rc"), ("", "python t.py\nrc=$?\nexit $rc")],
    "signal-target": [
        ("--signal=B:USR1@60", "python t.py"),
        ("--signal=B:USR1@60", "trap 'touch stop' USR1\npython t.py &\nwait $!"),
    ],
    "requeue-loop": [
        ("", 'scontrol requeue "$SLURM_JOB_ID"'),
        ("", '[ "${SLURM_RESTART_COUNT:-0}" -lt 3 ] && scontrol requeue "$SLURM_JOB_ID"'),
    ],
    "threads": [(FOUR, STEP), (FOUR, f"export OMP_NUM_THREADS=4\n{STEP}")],
    "conda-set-u": [
        ("", "set -u\nsource c/conda.sh\nconda activate x"),
        ("", "source c/conda.sh\nconda activate x\nset -u"),
    ],
    "conda-init": [("", "conda activate x"), ("", 'eval "$(conda shell.bash hook)"\nconda activate x')],
    "nested-env": [("-c4", "sbatch next.sbatch"), ("-c4", "sbatch --export=NONE next.sbatch")],
    "data-race": [(FOUR, "srun wget https://a/b"), (FOUR, "srun -n1 wget https://a/b")],
    "download": [("-N1", "pip install torch"), ("-N1", "pip list")],
    "secret": [("", "export HF_TOKEN=abcdef012345"), ("", 'export HF_TOKEN="$(cat ~/.token)"')],
    "shared-tmp": [(TWO, "srun -K python t.py --out /tmp/x"), ("-N1", "srun python t.py --out /tmp/x")],
}


def write(directives, commands):
    if directives == "raw":
        return commands.encode()
    header = f"#SBATCH {directives}\n" if directives else ""
    return f"#!/bin/bash\n{header}{commands}\n".encode()


def codes(script):
    return [finding.code for finding in lint(script, SITE)]


@pytest.mark.parametrize("code", CASES)
def test_the_rule_fires(code):
    assert codes(write(*CASES[code][0])).count(code) == 1


@pytest.mark.parametrize("code", CASES)
def test_the_rule_does_not_fire(code):
    assert code not in codes(write(*CASES[code][1]))


def test_every_rule_has_its_two_scripts_and_its_source():
    assert {rule.code for rule in RULES} == set(CASES)
    assert len(RULES) == len(CASES)
    for rule in RULES:
        assert rule.source
        assert rule.why.endswith((".", "'")), rule.code
        assert len(rule.why) < 250


# Further places where people's scripts are right, or wrong in another way.
@pytest.mark.parametrize(
    ("code", "fires", "directives", "commands"),
    [
        ("python-without-srun", True, "-n8", "python t.py"),
        ("python-without-srun", False, "-n8", "mpirun python t.py"),
        ("python-without-srun", False, TWO, "srun ray start --block &\npython tune.py"),
        ("python-without-srun", False, TWO, "python -m pip list"),
        ("torchrun", True, TWO, "python -m torch.distributed.run --nnodes=2 t.py"),
        ("torchrun", True, TWO, "accelerate launch t.py"),
        ("torchrun", False, TWO, "accelerate config default"),
        ("torchrun", False, TWO, "deepspeed --hostfile hosts t.py"),
        ("torchrun", True, TWO, 'for n in a b; do ssh $n "torchrun t.py" & done'),
        ("torchrun", False, TWO, 'L="torchrun --nnodes 2"\nsrun $L t.py'),
        ("torchrun", False, TWO, "run() { srun --label torchrun t.py; }\nrun"),
        ("torchrun", False, TWO, "srun bash <<'EOF'\ntorchrun t.py\nEOF"),
        ("cpus-per-task", False, "-c4", "srun hostname"),
        ("cpus-per-task", False, "-c1", "srun python t.py"),
        ("cpus-per-task", False, "-c4", "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK\nsrun python t.py"),
        ("cpus-per-task", True, "-c4", "time srun --label ./solver"),
        ("rank-death", True, TWO, "srun singularity exec --nv x.sif python t.py"),
        ("rank-death", False, TWO, "export SLURM_KILL_BAD_EXIT=1\nsrun python t.py"),
        ("rank-death", True, TWO, "srun --kill-on-bad-exit=0 python t.py"),
        ("rank-death", False, TWO, "srun -N1 -n1 python t.py"),
        ("node-rank", True, TWO, "export NODE_RANK=$SLURM_NODEID\nsrun python t.py"),
        ("node-rank", False, TWO, r'srun bash -c "t --rank \$SLURM_PROCID"'),
        ("node-rank", False, TWO, "srun t.sh --rank '$SLURM_PROCID'"),
        ("node-rank", False, "-N1 -n1", "export RANK=$SLURM_PROCID"),
        ("nodelist", True, "", "A=${SLURM_NODELIST%%,*}"),
        ("nodelist", False, "", "A=${SLURM_JOB_NODELIST:-$SLURM_NODELIST}"),
        ("nodelist", True, "", "A=$(singularity exec x.sif scontrol show hostnames $SLURM_JOB_NODELIST)"),
        ("nodelist", True, "", "MASTER_ADDR=$SLURM_NODELIST"),
        ("port", True, "-N1", "torchrun --nproc_per_node=2 t.py"),
        ("port", False, "-N1", "torchrun --standalone t.py"),
        ("port", False, "", "torchrun --nnodes=$SLURM_NNODES t.py"),
        ("port", True, "", "accelerate launch --main_process_port 29501 t.py"),
        ("port", False, "", "torchrun --rdzv_endpoint=host:0 t.py"),
        ("master-addr", True, TWO, "export MASTER_ADDR=localhost"),
        ("master-addr", True, TWO, "srun bash -c 'export MASTER_ADDR=$(hostname); python t.py'"),
        ("master-addr", True, TWO, "srun torchrun --rdzv_endpoint=$(hostname):0 t.py"),
        ("exit-code", False, "", "set -e\npython t.py\necho done"),
        ("exit-code", False, "", "python t.py"),
        ("exit-code", False, "", "if python t.py; then echo good; fi\ndate"),
        ("exit-code", True, "", "python t.py &\nwait"),
        ("exit-code", False, "", "python t.py &\nwait $!"),
        ("exit-code", False, "", "python t.py\nresult=$?\necho done\nexit $result"),
        ("tee-hides-death", True, "", "set -e\nsrun ./a | tee log"),
        ("tee-hides-death", False, "", "srun ./a | tee log\nexit ${PIPESTATUS[0]}"),
        ("tee-hides-death", False, "", "echo a | tee log"),
        ("tee-hides-death", False, "", "A=$(python t.py | tail -n 1)"),
        ("signal-target", True, "--signal=USR1@60", "trap 'x' USR1\nsrun python t.py"),
        ("signal-target", False, "--signal=USR1@60", "srun python t.py"),
        ("signal-target", False, "--signal=USR1@60", 'trap "" USR1\nsrun python t.py'),
        ("signal-target", False, "--signal=USR1@60", 'srun sh -c \'trap "" USR1; exec "$@"\' sh python t.py'),
        ("signal-target", True, "--signal=B:SIGUSR1@60", "trap 'x' USR1\nsrun python t.py"),
        ("requeue-loop", True, "", "python t.py\nsbatch $0"),
        ("requeue-loop", False, "", "python t.py || sbatch $0"),
        ("requeue-loop", True, "", "trap 'scontrol requeue $SLURM_JOB_ID' USR1"),
        ("secret", True, "", "WANDB_API_KEY=0123456789abcdef python t.py"),
        ("secret", True, "", "python t.py --api-key=abcdef0123"),
        ("secret", True, "", "curl -H 'Authorization: Bearer hf_abcdefghijklmnopqrstuv' x"),
        ("secret", False, "", "python t.py --max_new_tokens=100000 --tokenizer=path/to/it"),
        ("secret", False, "", "export HF_TOKEN_PATH=/home/ada/.token\nexport HF_TOKEN=your_token_here"),
        ("secret", False, "", "export HF_TOKEN=${HF_TOKEN}"),
        ("secret", True, "", "export OPENAI_KEY=abcdef0123\npython t.py"),
        ("secret", True, "", "python t.py --openai-token abcdef0123"),
        ("secret", False, "", "python t.py --mask-token abcdef0123 --image-key abcdef0123"),
        ("cuda-visible-devices", True, "", "CUDA_VISIBLE_DEVICES=$SLURM_LOCALID python t.py"),
        ("cuda-visible-devices", False, "", "export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-}"),
        ("devices-mismatch", True, TWO, "srun torchrun --nnodes 4 t.py"),
        ("devices-mismatch", False, TWO, "srun torchrun --nnodes $SLURM_NNODES t.py"),
        ("devices-mismatch", True, FOUR, "srun python t.py --devices 2"),
        ("devices-mismatch", False, FOUR, "G=4\ntorchrun --nproc_per_node $G t.py --nnodes 9"),
        ("devices-mismatch", True, FOUR, "accelerate launch --num_processes 8 t.py"),
        ("tasks-gpus", False, FOUR, "srun -n1 --gpus=1 python t.py"),
        ("tasks-gpus", False, "-N1 --ntasks-per-node=1 --gres=gpu:4", "srun torchrun t.py"),
        ("tasks-gpus", True, "-N1 --ntasks-per-node=4 --gres=gpu:a100:2", STEP),
        ("shared-tmp", True, TWO, "cp -r data /tmp/\nsrun python t.py"),
        ("shared-tmp", False, TWO, "srun cp -r data /tmp/"),
        ("shared-tmp", False, TWO, "srun python t.py --cache_dir=/tmp/cache"),
        ("threads", True, "-c4", "python t.py --num-workers 16"),
        ("threads", False, "-c16", "python t.py --num-workers 16"),
        ("threads", True, "-c4", "export OMP_NUM_THREADS=16"),
        ("log-dir", True, "-o there/%j/x.out", "a"),
        ("log-dir", False, "-o x.out", "a"),
        ("bad-value", True, "--mem=16GiB", "a"),
        ("bad-value", True, "--array=a-b", "a"),
        ("bad-value", False, "--array=1,3-9:2%4 -N 2-4", "a"),
        ("unknown-option", True, "--ntask=4", "a"),
        ("unknown-option", False, "--cpus-per-t=4", "a"),  # getopt_long takes an unambiguous beginning
        ("unknown-option", True, "-K", "a"),
        ("directive-quoting", True, '--comment="open', "a"),
        ("directive-quoting", True, r"--comment=back\slash", "a"),
        ("stray-word", True, "–nodes=2", "a"),
        ("no-such-node", True, "--gpus-per-node=8", "a"),
        ("no-such-node", True, "-N5", "a"),
        ("no-such-node", True, "--ntasks-per-node=4 -c 16", "a"),
        ("no-such-node", False, "--ntasks-per-node=4 -c 8 -N4 --gres=gpu:4", "a"),
        ("conflicting-directives", True, "-N2 -G8 --gpus-per-node=2", "a"),
        ("conflicting-directives", True, "--time=10 --time-min=20", "a"),
        ("conflicting-directives", True, "--exclusive --mem=0 --oversubscribe", "a"),
        ("mpirun-mix", True, "-n8", "mpirun -np 4 ./a"),
        ("mpirun-mix", False, "-n8", "srun -n1 mpirun ./a"),
        ("nested-env", False, "-c4", "sbatch $0"),
        ("conda-init", False, "", "module load miniconda3\nconda activate x"),
        ("conda-set-u", True, "", "set -euo pipefail\nsource c/conda.sh\nconda activate x"),
        ("conda-set-u", False, "", "set -u\nsource c/conda.sh\nset +u\nconda activate x"),
        ("data-race", True, FOUR, "srun python t.py --download"),
        ("ignored-directive", False, "", "cd x\n##SBATCH --time=10\n# about #SBATCH"),
        ("gpus-per-task", True, FOUR, "srun --gpus-per-task=1 python t.py"),
        ("gpu-bind", True, FOUR, "srun --gpu-bind=single:1 python t.py"),
        ("ntasks-per-node", True, "-N2 -n4", "echo $SLURM_NTASKS_PER_NODE"),
        ("ntasks-per-node", False, "-N2 -n4", "srun ./solver"),
        ("torchrun-tasks", False, FOUR, "srun torchrun --nproc_per_node=1 t.py"),
        ("cpus-per-task", False, "-c4", 'A=(-K -c4)\nsrun "${A[@]}" python t.py'),
        ("cpus-per-task", True, "-c4", 'A=(-K)\nsrun "${A[@]}" python t.py'),
        ("rank-death", False, TWO, 'A=(--label)\nA+=(--kill-on-bad-exit=1)\nsrun "${A[@]}" python t.py'),
        ("rank-death", False, TWO, 'run() { srun --label "$@"; }\nrun --kill-on-bad-exit=1 python t.py'),
        ("rank-death", True, TWO, 'srun --label "$@"'),
        ("torchrun", True, TWO, 'A=(torchrun --nnodes 2)\n"${A[@]}" t.py'),
        ("shared-tmp", False, TWO, "srun cp -r data /tmp/x\nsrun python t.py --data-dir /tmp/x/train"),
        ("shared-tmp", True, TWO, "srun -N1 cp -r data /tmp/x\nsrun python t.py --data-dir /tmp/x/train"),
    ],
)
def test_what_people_write(code, fires, directives, commands):
    assert (code in codes(write(directives, commands))) is fires
