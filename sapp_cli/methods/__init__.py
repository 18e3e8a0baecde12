"""The pruning methods, one a file, behind one interface; each is at once the method's section of the recipe."""

from sapp_cli.methods.acdc import Acdc
from sapp_cli.methods.gradual_magnitude import GradualMagnitude
from sapp_cli.methods.magnitude import Magnitude
from sapp_cli.methods.method import BlockState, Method
from sapp_cli.methods.powerprop import Powerprop
from sapp_cli.methods.sequential_attention import SequentialAttention

__all__ = [
    "Acdc",
    "BlockState",
    "GradualMagnitude",
    "Magnitude",
    "Method",
    "Powerprop",
    "SequentialAttention",
]
