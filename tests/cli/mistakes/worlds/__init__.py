"""Everything that can be wrong, by the name of its case: importing a file enters its worlds."""

from tests.cli.mistakes.setups import WORLDS
from tests.cli.mistakes.worlds import checkpoints, circumstances, outputs, recipes, rows

__all__ = ["WORLDS", "checkpoints", "circumstances", "outputs", "recipes", "rows"]
