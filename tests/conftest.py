"""One thread a test: two that wait for each other on tiny tensors take many times longer."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
