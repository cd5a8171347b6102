"""The training loop and its parts, to be read from top to bottom in train.py."""
