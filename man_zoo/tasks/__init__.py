"""What is learnt: what a target is, the loss on it, what is measured. Nothing else knows."""

from .classification import Classification

__all__ = ["Classification"]
