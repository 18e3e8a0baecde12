"""Masks on a model over one run: attached, moved along the schedule, folded."""

from sapp_cli.pruner.pruner import Pruner

__all__ = ["Pruner"]
