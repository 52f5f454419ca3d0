#!/bin/bash
# 2x1 on this machine: each of the 2 rank(s) runs this once, started by hpcdist.launch. Made by hpcdist.
# A line that fails ends the rank here instead of training on without it.
set -eo pipefail

cd -- '/home/ada/mnist study'
python=/opt/venv/bin/python
# The interpreter that has hpcdist comes first; setup lines below may put another in front.
export PATH="${python%/*}:$PATH"
# Output appears in the logs while the job runs.
export PYTHONUNBUFFERED=1
ulimit -n 4096

exec "$python" -m hpcdist.rank -- \
  /opt/venv/bin/python -m hpcdist.train \
  --nodes 2 \
  --gpus 1 \
  --cpus-per-task 1 \
  --epochs 3 \
  --lr 0.01 \
  --optimizer adamw \
  --precision 32 \
  --seed 1 \
  --accelerator cpu \
  --checkpoint-every 5min \
  --hang-timeout 10min \
  --preflight \
  --log-every 20 \
  --data-dir '/home/ada/mnist study/data' \
  --strategy ddp \
  --ps-mode sync
