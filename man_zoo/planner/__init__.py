"""The planner: memory and arithmetic of any split, and the best cuts for K or for a budget."""

from .cost import Setting
from .plan import BALANCED, Plan, Planner, budget_bytes, measuring

__all__ = ["BALANCED", "Plan", "Planner", "Setting", "budget_bytes", "measuring"]
