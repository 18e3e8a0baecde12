"""Masks on a model over one run: attached, moved along the schedule, folded."""

from sapp_cli.pruner.pruner import Pruner
from sapp_cli.pruner.ranking import Ranking

__all__ = ["Pruner", "Ranking"]
