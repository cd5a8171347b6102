"""The planner: memory and arithmetic of any split, and the best cuts for K, budget, processes."""

from .bar import measuring
from .largest import Largest, largest
from .micro_batches import AUTO, choose_micro_batches
from .plan import Plan
from .planner import BALANCED, Planner
from .processes import Placement, assign, place
from .setting import Setting
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
