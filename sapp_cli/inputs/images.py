"""Images as the model was trained to see them: sizes, mean and standard deviation of preprocessor_config.json.

C, H, W: channels, height and width.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from sapp_cli.errors import DataError
from sapp_cli.inputs.rows import TARGETS, Row, Targets
from sapp_cli.inputs.tables import Table

SHORTEST_EDGE_KINDS = ("CLIP", "ChineseCLIP", "ConvNext", "MobileViT", "MobileNet")
"""Processors whose `size`, where it is one number, is the shortest edge; of the others it is both sides."""
UNSUPPORTED_KINDS = ("Levit", "Perceiver")
"""Processors that resize or crop by rules of their own."""
UNSUPPORTED = (
    "do_pad",
    "do_flip_channel_order",
    "do_thumbnail",
    "do_align_long_axis",
    "do_reduce_labels",
    "do_color_quantize",
    "keep_aspect_ratio",
    "rescale_offset",
    "include_top",
)
"""Settings that change the pixels in ways not followed here."""


@dataclass(frozen=True)
class ImageTransform:
    """Convert, resize, crop, scale, normalize, in this order."""

    channels: int
    size: tuple[int, int] | int | None  # (H, W), or the shortest edge; None: as it is
    crop: tuple[int, int] | None  # (H, W) from the middle
    resample: int  # as PIL counts them
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        """Float32 (C, H, W)."""
        image = ImageOps.exif_transpose(image).convert("L" if self.channels == 1 else "RGB")
        if self.size is not None:
            image = image.resize(_resized(image.size, self.size), Image.Resampling(self.resample))
        if self.crop is not None:
            height, width = self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))  # beyond the edge it is black
        pixels = np.atleast_3d(np.asarray(image, dtype=np.float32)) * np.float32(self.scale)  # (H, W, C)
        pixels = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class ImageRows(Dataset[Row]):
    """Some images of a table, decoded when they are asked for."""

    def __init__(
        self, table: Table, column: str, transform: ImageTransform, values: Tensor | None, numbers: Sequence[int]
    ) -> None:
        self.images = table.only([column])
        self.column = column
        self.transform = transform
        self.values = values  # targets of all rows of the table (n,)
        self.numbers = numbers  # the rows in use
        self.origin = table.origin

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Row:
        number = self.numbers[index]
        source = self.images[number][self.column]
        try:
            with Image.open(io.BytesIO(source["bytes"]) if source["bytes"] is not None else source["path"]) as image:
                row = {"pixel_values": self.transform(image)}
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{source['path'] or self.origin}: row {number} (counted from 0) is no image: {error}"
            ) from error
        if self.values is not None:
            row[TARGETS] = self.values[number]
        return row

    @property
    def targets(self) -> Targets | None:
        if self.values is None:
            return None
        return Targets(self.values[torch.as_tensor(self.numbers)], self.numbers, self.origin)


def read_transform(folder: Path | None, config: Mapping[str, Any]) -> ImageTransform:
    """What preprocessor_config.json asks for; without one, the image size of config.json and pixels from −1 to 1.

    Raises DataError where neither file says how large an image is, or the first asks for what is not done here.
    """
    channels = config.get("num_channels", 3)
    path = None if folder is None else folder / "preprocessor_config.json"
    if path is None or not path.is_file():
        return _from_config(config, channels)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return _from_settings(settings, channels, path)
    except KeyError as error:
        raise DataError(f"{path} has no {error.args[0]}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _from_config(config: Mapping[str, Any], channels: int) -> ImageTransform:
    size = config.get("image_size")
    if size is None:
        raise DataError(
            "nothing says how large the model's images are: no preprocessor_config.json, no image_size in config.json; "
            "add one of them to the checkpoint's folder, or use data.source factory"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return ImageTransform(channels, (height, width), None, Image.Resampling.BILINEAR, 1 / 255, (0.5,), (0.5,))


def _from_settings(settings: Mapping[str, Any], channels: int, path: Path) -> ImageTransform:
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    asked = [kind] if kind.startswith(UNSUPPORTED_KINDS) else [key for key in UNSUPPORTED if settings.get(key)]
    if settings.get("crop_pct") and not kind.startswith("ConvNext"):
        asked.append("crop_pct")
    if asked:
        raise DataError(f"{path}: {asked[0]} is not supported; prepare the images yourself with data.source factory")
    size = (
        _size(settings["size"], kind.startswith(SHORTEST_EDGE_KINDS), path) if settings.get("do_resize", True) else None
    )
    crop = None
    if settings.get("do_center_crop", "crop_size" in settings):
        square = _size(settings["crop_size"], False, path)
        crop = (square, square) if isinstance(square, int) else square
    if kind.startswith("ConvNext") and isinstance(size, int):
        size, crop = _convnext(size, settings.get("crop_pct", 224 / 256))
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    mean, std = (settings["image_mean"], settings["image_std"]) if settings.get("do_normalize", True) else (0.0, 1.0)
    if isinstance(size, int) and crop is None:
        raise DataError(
            f"{path}: images resized by their shortest edge and not cropped differ in size; set do_center_crop"
        )
    return ImageTransform(channels, size, crop, settings.get("resample", 2), scale, _floats(mean), _floats(std))


def _size(value: Any, shortest: bool, path: Path) -> tuple[int, int] | int:
    """(H, W), or one number for the shortest edge."""
    if isinstance(value, int):
        return value if shortest else (value, value)
    if "shortest_edge" in value:
        return int(value["shortest_edge"])
    if "height" not in value or "width" not in value:
        raise DataError(f"{path}: size {value} is not supported; it has to have height and width, or shortest_edge")
    return int(value["height"]), int(value["width"])


def _convnext(edge: int, share: float) -> tuple[tuple[int, int] | int, tuple[int, int] | None]:
    """ConvNeXt's own rule: below 384 a square is cut out of a larger image, from there on the image is squeezed."""
    return (int(edge / share), (edge, edge)) if edge < 384 else ((edge, edge), None)


def _floats(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, int | float) else tuple(float(item) for item in value)


def _resized(image: tuple[int, int], size: tuple[int, int] | int) -> tuple[int, int]:
    """(W, H), as PIL takes it."""
    if isinstance(size, tuple):
        return size[1], size[0]
    width, height = image
    return (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
