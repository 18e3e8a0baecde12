import json

import numpy as np
import pytest
import torch
from PIL import Image

from sapp_cli.errors import DataError
from sapp_cli.inputs.images import ImageRows, ImageTransform, read_transform
from sapp_cli.inputs.tables import read_table

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_settings(folder, **settings):
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return read_transform(folder, {})


def test_pixels_by_hand():
    transform = ImageTransform(3, None, None, 2, 1 / 255, (0.5, 0.0, 0.0), (0.5, 1.0, 2.0))
    image = Image.fromarray(np.uint8([[[255, 0, 51], [0, 255, 102]]]))  # one row, two columns
    pixels = transform(image)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, torch.tensor([[[1.0, -1.0]], [[0.0, 1.0]], [[0.1, 0.2]]]))


def test_grey_and_colour():
    grey = ImageTransform(1, None, None, 2, 1.0, (0.0,), (1.0,))
    assert grey(picture(4, 5)).shape == (1, 4, 5)
    colour = ImageTransform(3, None, None, 2, 1.0, (0.0,), (1.0,))
    assert colour(Image.fromarray(np.uint8([[7, 9]]))).tolist() == [[[7, 9]]] * 3


def test_a_photo_taken_sideways_is_turned():
    image = Image.fromarray(np.uint8([[[1] * 3, [2] * 3]]))  # 1 × 2
    image.getexif()[0x0112] = 6  # to be turned by 90° clockwise
    pixels = ImageTransform(3, None, None, 2, 1.0, (0.0,), (1.0,))(image)
    assert pixels[0].tolist() == [[1.0], [2.0]]


def test_a_crop_beyond_the_edge_is_black():
    pixels = ImageTransform(1, None, (3, 4), 2, 1.0, (0.0,), (1.0,))(Image.fromarray(np.uint8([[5, 6]])))
    assert pixels[0].tolist() == [[0, 0, 0, 0], [0, 5, 6, 0], [0, 0, 0, 0]]


PROCESSORS = [
    pytest.param("ViTImageProcessor", {"size": {"height": 16, "width": 20}, "resample": 2}, id="vit"),
    pytest.param("ViTImageProcessor", {"size": 16, "resample": 3}, id="vit, one number"),
    pytest.param(
        "CLIPImageProcessor",
        {
            "size": {"shortest_edge": 18},
            "do_center_crop": True,
            "crop_size": {"height": 16, "width": 14},
            "resample": 3,
        },
        id="clip",
    ),
    pytest.param(
        "CLIPImageProcessor", {"size": 18, "do_center_crop": True, "crop_size": 16, "resample": 3}, id="clip, old"
    ),
    pytest.param(
        "ConvNextImageProcessor", {"size": {"shortest_edge": 16}, "crop_pct": 0.8, "resample": 3}, id="convnext"
    ),
    pytest.param("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "resample": 3}, id="convnext, large"),
    pytest.param(
        "ViTImageProcessor",
        {"size": {"height": 16, "width": 16}, "resample": 2, "do_rescale": False, "do_normalize": False},
        id="raw",
    ),
]


@pytest.mark.parametrize(("kind", "settings"), PROCESSORS)
@pytest.mark.parametrize("shape", [(40, 31), (25, 60)])
def test_against_the_processors_of_transformers(tmp_path, kind, settings, shape):
    import transformers

    settings = {
        "image_processor_type": kind,
        "image_mean": MEAN,
        "image_std": STD,
        "rescale_factor": 1 / 255,
    } | settings
    image = picture(*shape)
    processor = getattr(transformers, f"{kind}Pil")(**settings)
    expected = processor(image, return_tensors="pt")["pixel_values"][0].float()
    torch.testing.assert_close(write_settings(tmp_path, **settings)(image), expected, rtol=1e-5, atol=1e-5)


def test_without_a_preprocessor(tmp_path):
    transform = read_transform(tmp_path, {"image_size": 8, "num_channels": 1})
    assert transform(Image.fromarray(np.full((4, 4), 255, np.uint8))).equal(torch.ones(1, 8, 8))
    assert transform(Image.fromarray(np.zeros((4, 4), np.uint8))).equal(-torch.ones(1, 8, 8))
    assert read_transform(None, {"image_size": [6, 4]})(picture(9, 9)).shape == (3, 6, 4)
    with pytest.raises(DataError) as error:
        read_transform(tmp_path, {})
    assert str(error.value) == (
        "nothing says how large the model's images are: no preprocessor_config.json, no image_size in config.json; add "
        "one of them to the checkpoint's folder, or use data.source factory"
    )


def test_settings_that_are_not_followed(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    norm = {"image_mean": MEAN, "image_std": STD}
    for name, settings in (
        ("do_pad", {"do_pad": True}),
        ("crop_pct", {"crop_pct": 0.9, "image_processor_type": "PoolFormerImageProcessor"}),
        ("LevitImageProcessor", {"image_processor_type": "LevitImageProcessor"}),
    ):
        with pytest.raises(DataError) as error:
            write_settings(tmp_path, size=8, **settings, **norm)
        assert str(error.value) == (
            f"{path}: {name} is not supported; prepare the images yourself with data.source factory"
        )
    with pytest.raises(DataError) as error:
        write_settings(tmp_path, size={"shortest_edge": 8}, **norm)
    assert str(error.value) == (
        f"{path}: images resized by their shortest edge and not cropped differ in size; set do_center_crop"
    )
    with pytest.raises(DataError) as error:
        write_settings(tmp_path, size=8)
    assert str(error.value) == f"{path} has no image_mean"
    with pytest.raises(DataError) as error:
        write_settings(tmp_path, size={"longest_edge": 8}, **norm)
    assert (
        str(error.value) == f"{path}: size {{'longest_edge': 8}} is not supported; it has to have height and width, or "
        "shortest_edge"
    )
    path.write_text("{")
    with pytest.raises(DataError) as error:
        read_transform(tmp_path, {})
    assert str(error.value).startswith(f"{path} cannot be read: ")


def test_rows_of_a_folder(tmp_path):
    for name in ("cat/1.png", "dog/2.jpg"):
        (tmp_path / name).parent.mkdir()
        picture(5, 6).save(tmp_path / name)
    (tmp_path / "dog" / "3.png").write_text("no image")
    table = read_table([tmp_path], "imagefolder")
    transform = ImageTransform(3, (4, 4), None, 2, 1.0, (0.0,), (1.0,))
    rows = ImageRows(table, "image", transform, torch.tensor([0, 1, 1]), [0, 2])
    assert rows[0]["pixel_values"].equal(transform(picture(5, 6)))
    assert rows[0]["targets"].item() == 0
    assert rows.targets.values.tolist() == [0, 1]
    with pytest.raises(DataError) as error:
        rows[1]
    assert str(error.value).startswith(f"{tmp_path}/dog/3.png: row 2 (counted from 0) is no image: ")
