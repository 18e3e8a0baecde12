"""sapp: give it a trained PyTorch checkpoint, get it back block-sparse, smaller and faster.

    import sapp_cli as sapp

    model = sapp.load(model, "OUT")              # weights in; pruned layers become block-sparse ones
    sapp.keep_freed_memory()                     # for serving large batches on a CPU: up to 1.7×
    state = sapp.load_state_dict("OUT/sparse")   # dense tensors, from either layout
    pruner = sapp.Pruner(model, {"sparsity": 0.9, "block_size": 16}, steps)   # in a training loop of one's own

The names are imported when they are first asked for: `sapp report` and `sapp check` never load torch.
"""

# Nothing of the standard library is imported here: with `python -m sapp_cli` the current folder still comes first.
from sapp_cli._version import __version__
from sapp_cli.opening.import_hook import install as _install

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sapp_cli.callbacks import PrunerCallback
    from sapp_cli.lightning_callback import PrunerLightningCallback
    from sapp_cli.loading import load_state_dict
    from sapp_cli.pruner import Pruner
    from sapp_cli.runtime.heap import keep_freed_memory
    from sapp_cli.runtime.load import load
    from sapp_cli.runtime.registration import register_operators

__all__ = [
    "Pruner",
    "PrunerCallback",
    "PrunerLightningCallback",
    "__version__",
    "keep_freed_memory",
    "load",
    "load_state_dict",
    "register_operators",
]

_PLACES = {
    "Pruner": "sapp_cli.pruner",
    "PrunerCallback": "sapp_cli.callbacks",
    "PrunerLightningCallback": "sapp_cli.lightning_callback",
    "keep_freed_memory": "sapp_cli.runtime.heap",
    "load": "sapp_cli.runtime.load",
    "load_state_dict": "sapp_cli.loading",
    "register_operators": "sapp_cli.runtime.registration",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module 'sapp_cli' has no attribute '{name}'")
    found: object = getattr(import_module(_PLACES[name]), name)
    return found


_install()
