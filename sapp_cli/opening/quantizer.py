"""The quantization method `sapp` of transformers: `from_pretrained` of a folder of block-sparse weights.

transformers builds the model without values, lets us look at it, loads the files, and lets us look again. The files hold a
marker of shape (rows, 0, n) under the name of each pruned weight (docs/format.md). The library loads it like any weight,
whatever that means for this class: prefixes that come and go, names that change, ties, dtype and device. So the weight with
the number n belongs where its marker is found afterwards. It is read with sapp's own checked reader, and it is never made
dense if the layer can compute with blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sapp_cli.checkpoint.block_sparse_file import SUFFIXES
from sapp_cli.checkpoint.quantization_entry import QUANT_METHOD
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.opening.placing import Loading, expected_names, put_weights
from sapp_cli.opening.saving import blocks_of_model
from sapp_cli.runtime.load import described

LOG = logging.getLogger("sapp")
PARTS = rf"\.({'|'.join(suffix.removeprefix('.') for suffix in SUFFIXES)})$"
"""Names that the library does not know and must not warn about."""


class SappConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What config.json says: the name of the method, and nothing else. All facts are in the header of the weights."""

    def __init__(self, **_entries: Any) -> None:
        self.quant_method = QUANT_METHOD


class SappQuantizer(HfQuantizer):  # type: ignore[misc]
    """Block-sparse layers in the place of those that were pruned."""

    requires_calibration = True
    """Of `from_pretrained(..., quantization_config=SappConfig())` on a dense folder: it is refused. Pruning is `sapp prune`."""

    def __init__(self, quantization_config: SappConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._loading: Loading | None = None

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """True where the library may take a marker for a weight although its shape is another."""
        return self._loading is not None and param_name in self._loading.expected

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        if not checkpoint_files:
            raise ValueError(
                "block-sparse weights are read from their files, not from a state_dict; give from_pretrained the folder, or "
                "call sapp.load(model, folder)"
            )
        first = Path(checkpoint_files[0])
        checkpoint = open_checkpoint(first if len(checkpoint_files) == 1 else first.parent)
        shapes = {name: tuple(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}
        own = model._keys_to_ignore_on_load_unexpected
        self._loading = Loading(checkpoint, shapes, expected_names(checkpoint, model, shapes), own)
        model._keys_to_ignore_on_load_unexpected = {*(own or ()), PARTS}

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        loading, self._loading = self._loading, None
        assert loading is not None, "the library lets us look at the model twice"
        model._keys_to_ignore_on_load_unexpected = loading.ignored
        places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
        if len(places) > 1 and places & {"cpu", "disk"}:
            raise ValueError(
                f"device_map: {sorted(places)}, expected one device or several GPUs; block-sparse weights cannot be offloaded"
            )
        dense = put_weights(model, loading)
        if dense:
            LOG.warning("%s: %s", loading.checkpoint.path, described(dense))
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """What `save_pretrained` writes: the blocks again, with markers, and the metadata of the format."""
        return blocks_of_model(model)

    def is_serializable(self, **_: Any) -> bool:
        """True: what `save_pretrained` writes can be opened again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: the Trainer takes the model. It trains all but the blocks, or an adapter."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True: the Trainer takes the model without an adapter as well, to evaluate it."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: the layers are operators in a graph."""
        return True
