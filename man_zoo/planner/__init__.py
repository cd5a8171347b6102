"""The planner: memory and arithmetic of any split, and the best cuts for K, budget, processes."""

from .cost import Setting
from .largest import Largest, largest
from .micro_batches import AUTO, choose_micro_batches
from .plan import BALANCED, Plan, Planner, measuring
from .processes import Placement, assign, place
from .sizes import budget_bytes

__all__ = [
    "AUTO",
    "BALANCED",
    "Largest",
    "Placement",
    "Plan",
    "Planner",
    "Setting",
    "assign",
    "budget_bytes",
    "choose_micro_batches",
    "largest",
    "measuring",
    "place",
]
