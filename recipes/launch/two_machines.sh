#!/usr/bin/env bash
# Two machines with four GPUs each share the data. Start this on both, with the name of one of them,
# the same on both, and the data's folder:
#
#   recipes/launch/two_machines.sh HOST PATH
#
# The folder of runs has to be one that both see: every process writes its part of a checkpoint.
set -euo pipefail
host=$1 data=$2
shift 2

# If a machine has several networks, say which one to use:
# export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0

# The machines meet at HOST's port 29500, which has to be open between them. The id is any word that
# is the same on both. A process that dies ends them all, and each says how to go on.
torchrun --nnodes 2 --nproc-per-node 4 \
    --rdzv-backend c10d --rdzv-endpoint "$host:29500" --rdzv-id man-zoo \
    -m man_zoo.commands.train -c imagenet/resnet101_man_infopro_k4 --data-dir "$data" \
    --mixed-precision bf16 --experiment two_machines "$@"
