#!/usr/bin/env bash
# Four processes as 2 x 2: two share the blocks of a batch, and two such pairs share the data. For
# more devices than the network has blocks that are worth a device (docs/scaling.md).
#
#   recipes/launch/block_and_data_parallel.sh PATH
#
# Ranks 0 and 1 have the first half of the blocks, 2 and 3 the second: processes that average
# gradients are neighbours in rank. On two machines the pairs of a batch are therefore on different
# ones, and features cross the network between them, but no gradient does.
# --batch-size is a pair's.
set -euo pipefail
data=$1
shift

torchrun --standalone --nproc-per-node 4 \
    -m man_zoo.commands.train -c imagenet/resnet101_man_infopro_k4 --data-dir "$data" \
    --mixed-precision bf16 --lr 0.1 --block-parallel 2 --experiment block_and_data_parallel "$@"
