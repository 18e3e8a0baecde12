"""Masks on a model over one run: attached, moved along the schedule, folded."""

from sapp_cli.pruner.dense_start import DenseStart
from sapp_cli.pruner.pruner import Pruner
from sapp_cli.pruner.ranking import Ranking, list_unranked

__all__ = ["DenseStart", "Pruner", "Ranking", "list_unranked"]
