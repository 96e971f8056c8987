"""Preprocessing against transformers' own and against loops."""

import numpy as np
import pytest
import torch
from PIL import Image

from mfd_cli.errors import MfdError
from mfd_cli.metrics import images


def _pil(picture):
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def test_pictures_are_rounded_and_grey_ones_get_three_channels():
    grey = torch.tensor([0.0, 0.4999, 1.0, 1.2]).reshape(1, 1, 2, 2)
    found = images.to_uint8(grey)
    assert found.dtype == torch.uint8 and found.shape == (1, 3, 2, 2)
    assert found[0, 2].flatten().tolist() == [0, 127, 255, 255]
    with pytest.raises(MfdError, match="no pictures"):
        images.to_uint8(torch.zeros(4, 2))


@pytest.mark.parametrize("shape", [(40, 56), (57, 31), (32, 32), (200, 64)])
def test_clip_preprocessing_is_that_of_transformers(shape):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    picture = torch.randint(0, 256, (1, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(images=_pil(picture[0]), return_tensors="pt").pixel_values
    found = images.normalised(images.short_side_to(picture, 32), images.CLIP_MEAN, images.CLIP_STD)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "inner"), [((64, 32), (32, 16)), ((32, 64), (16, 32)), ((30, 50), (19, 32))])
def test_the_long_side_fits_and_the_rest_is_black(shape, inner):
    picture = torch.randint(1, 256, (1, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = images.long_side_to(picture, 32)
    assert found.shape == (1, 3, 32, 32)
    resized = np.asarray(_pil(picture[0]).resize(inner[::-1], Image.Resampling.BICUBIC))
    top, left = (32 - inner[0]) // 2, (32 - inner[1]) // 2
    inside = found[0, :, top : top + inner[0], left : left + inner[1]]
    assert torch.equal(inside, torch.from_numpy(resized.copy()).permute(2, 0, 1))
    assert found.sum() == inside.sum(), "nothing but black around it"


def _tensorflow(picture, size):
    """TensorFlow 1's bilinear resize of one channel, pixel by pixel."""
    height, width = len(picture), len(picture[0])
    result = [[0.0] * size for _ in range(size)]
    for row in range(size):
        for column in range(size):
            y, x = row * height / size, column * width / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = picture[top][left] + (picture[top][right] - picture[top][left]) * (x - left)
            lower = picture[bottom][left] + (picture[bottom][right] - picture[bottom][left]) * (x - left)
            result[row][column] = upper + (lower - upper) * (y - top)
    return result


@pytest.mark.parametrize("shape", [(5, 9), (40, 23), (13, 13)])
def test_the_resize_of_tensorflow_is_its_loop(shape):
    picture = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    found = images.resized_like_tensorflow(picture, 13)
    expected = torch.tensor([[_tensorflow(channel.tolist(), 13) for channel in one] for one in picture])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    ours = torch.nn.functional.interpolate(picture.float(), size=(13, 13), mode="bilinear", align_corners=False)
    assert shape == (13, 13) or (found - ours).abs().max() > 5, "another rule than torch's"


def test_a_folder_of_pictures_is_read_in_order_and_in_parts(tmp_path):
    for index, shade in enumerate((10, 20, 30)):
        Image.new("RGB", (4 + index, 5), (shade, 0, 0)).save(tmp_path / f"{index}.png")
    Image.new("L", (3, 3), 40).save(tmp_path / "3.png")
    (tmp_path / "notes.txt").write_text("no picture")
    paths = images.require_folder(tmp_path)
    parts = list(images.pictures_in(paths, lambda one: one[:, :, :2, :2], 3))
    assert [len(part) for part in parts] == [3, 1]
    assert torch.cat(parts)[:, 0, 0, 0].tolist() == [10, 20, 30, 40]


def test_what_is_no_picture_is_refused(tmp_path):
    with pytest.raises(MfdError, match="no such folder"):
        images.require_folder(tmp_path / "nothing")
    with pytest.raises(MfdError, match="no pictures"):
        images.require_folder(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(MfdError, match="not a readable picture"):
        list(images.pictures_in(images.require_folder(tmp_path), lambda one: one, 4))
