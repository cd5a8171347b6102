"""The planner: memory and arithmetic of any split, and the best cuts for K, budget, processes."""

from .cost import Setting
from .plan import BALANCED, Plan, Planner, measuring
from .processes import Placement, assign, place
from .sizes import budget_bytes

__all__ = [
    "BALANCED",
    "Placement",
    "Plan",
    "Planner",
    "Setting",
    "assign",
    "budget_bytes",
    "measuring",
    "place",
]
