#!/usr/bin/env bash
# Four processes share the data and, unlike plain data parallel, every block's weights, gradients and
# optimizer state too (FSDP2). For a model whose weights and optimizer state do not fit into each
# device; activations of a block do not get smaller.
#
#   recipes/launch/sharded.sh PATH
#
# Any number of processes goes on with such a run: torchrun --nproc-per-node 2 ... --resume RUN.
set -euo pipefail
data=$1
shift

torchrun --standalone --nproc-per-node 4 \
    -m man_zoo.commands.train -c imagenet_vit/vit_base_patch16_224_man_dgl_k4 \
    --data-dir "$data" --mixed-precision bf16 --lr 5e-4 --fsdp --experiment sharded "$@"
