#!/usr/bin/env bash
# Four processes of one machine, each with a run of the network's blocks: while one trains its blocks
# on a batch, the one before is at the next batch already. Weights are those of one process, to the
# bit. Which process has which blocks the planner says, here and in training:
#
#   man-zoo plan resnet101_man_infopro_k4 --cuts published --model-kwargs form=release --processes 4
#   recipes/launch/block_parallel.sh PATH
#
# --batch-size is the whole batch: only the first process reads images. Where GPUs differ, say what
# each can hold, in order: --process-memory 24GiB 24GiB 12GiB 12GiB.
set -euo pipefail
data=$1
shift

torchrun --standalone --nproc-per-node 4 \
    -m man_zoo.commands.train -c imagenet/resnet101_man_infopro_k4 --data-dir "$data" \
    --mixed-precision bf16 --lr 0.05 --block-parallel 4 --experiment block_parallel "$@"
