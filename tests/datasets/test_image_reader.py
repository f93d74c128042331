"""Pictures and masks in, masks out."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from statefield.datasets.readers.image import mask_values, num_channels_of, read_image, read_mask, write_mask
from statefield.datasets.sample import UNLABELLED
from statefield.errors import ConfigError, DataError, LabelError
from statefield.tasks.common import config

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
RGB = np.stack([GREY, GREY + 20, GREY + 40], axis=-1)


def _save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_grey_and_colour_pictures_keep_their_values(tmp_path, suffix):
    grey, colour = _save(tmp_path / f"g{suffix}", GREY), _save(tmp_path / f"c{suffix}", RGB)
    np.testing.assert_array_equal(read_image(grey), GREY[None].astype(np.float32))
    np.testing.assert_array_equal(read_image(colour), RGB.transpose(2, 0, 1).astype(np.float32))
    assert (num_channels_of(grey), num_channels_of(colour)) == (1, 3)
    assert read_image(grey).dtype == np.float32


def test_sixteen_bit_float_and_one_bit_pictures_keep_their_values(tmp_path):
    deep = GREY.astype(np.uint16) * 5000
    np.testing.assert_array_equal(read_image(_save(tmp_path / "deep.png", deep))[0], deep)
    np.testing.assert_array_equal(read_image(_save(tmp_path / "f.tif", GREY / np.float32(7)))[0], GREY / np.float32(7))
    np.testing.assert_array_equal(read_image(_save(tmp_path / "bit.png", GREY > 5))[0], GREY > 5)


def test_palette_is_looked_up_in_images_and_is_the_label_in_masks(tmp_path):
    image = Image.fromarray(GREY % 3).convert("P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0])
    image.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png").shape == (3, 3, 4)
    assert read_image(tmp_path / "p.png")[:, 0, 1].tolist() == [200, 0, 0]
    assert num_channels_of(tmp_path / "p.png") == 3
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png", 3), GREY % 3)


def test_opaque_alpha_is_dropped_and_real_transparency_refused(tmp_path):
    alpha = np.full((3, 4, 1), 255, np.uint8)
    np.testing.assert_array_equal(
        read_image(_save(tmp_path / "a.png", np.concatenate([RGB, alpha], axis=-1))), RGB.transpose(2, 0, 1)
    )
    alpha[0, 0] = 0
    with pytest.raises(DataError, match="1 pixels are transparent"):
        read_image(_save(tmp_path / "b.png", np.concatenate([RGB, alpha], axis=-1)))


def test_two_class_mask_of_0_and_255_is_read_as_0_and_1(tmp_path):
    shown = _save(tmp_path / "shown.png", ((GREY > 5) * 255).astype(np.uint8))
    plain = _save(tmp_path / "plain.png", (GREY > 5).astype(np.uint8))
    full = _save(tmp_path / "full.png", np.full((3, 4), 255, np.uint8))
    for path in (shown, plain):
        np.testing.assert_array_equal(read_mask(path, 2), GREY > 5)
    assert (read_mask(full, 2) == 1).all()
    assert mask_values(shown).tolist() == [0, 255]
    with pytest.raises(LabelError, match=r"label values 255 found in 6 places; the declared classes are 0 to 2"):
        read_mask(shown, 3)


def test_grey_mask_saved_as_rgb_is_read_and_real_colours_are_refused_with_their_list(tmp_path):
    np.testing.assert_array_equal(read_mask(_save(tmp_path / "a.png", np.stack([GREY % 3] * 3, -1)), 3), GREY % 3)
    colours = np.zeros((3, 4, 3), np.uint8)
    colours[0, 0] = (255, 0, 0)
    with pytest.raises(LabelError, match=r"2 colours found \(\(0,0,0\), \(255,0,0\)\)"):
        read_mask(_save(tmp_path / "b.png", colours), 2)


def test_soft_masks_are_refused(tmp_path):
    with pytest.raises(LabelError, match="label values"):
        read_mask(_save(tmp_path / "soft.png", GREY * 20), 2)
    with pytest.raises(LabelError, match="no integers"):
        read_mask(_save(tmp_path / "soft.tif", GREY / np.float32(11)), 2)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_truncated_picture_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    path = _save(tmp_path / f"a{suffix}", noise)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=rf"a\{suffix}: .*damaged"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow also warns of the damage
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".gif"])
def test_damaged_pictures_raise_our_errors_and_no_other(tmp_path, suffix):
    rng = np.random.default_rng(0)
    sound = _save(tmp_path / f"a{suffix}", rng.integers(0, 255, (20, 20)).astype(np.uint8)).read_bytes()
    refused = 0
    for _ in range(150):
        content = bytearray(sound)
        for place in rng.choice(len(content), 3):
            content[place] = rng.integers(256)
        path = tmp_path / f"b{suffix}"
        path.write_bytes(content[: rng.integers(1, len(content))] if rng.random() < 0.3 else content)
        try:
            read_image(path)
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 20


def test_files_that_are_no_picture_are_refused(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a\.png: this is no picture"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "absent.png")
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "cmyk.tif")
    with pytest.raises(DataError, match="CMYK"):
        read_image(tmp_path / "cmyk.tif")


def test_stack_of_frames_is_refused(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(GREY)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="2 frames"):
        read_image(tmp_path / "stack.tif")


def test_picture_beyond_the_memory_limit_or_pillows_is_refused_before_decoding(tmp_path, monkeypatch):
    path = _save(tmp_path / "a.png", np.zeros((100, 100), np.uint8))
    monkeypatch.setenv("STATEFIELD_MEMORY_LIMIT_GB", "0.00001")
    with pytest.raises(DataError, match="100 x 100 pixels"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    with pytest.raises(DataError, match="too many pixels"):
        read_image(path)


def test_nan_pixels_are_refused(tmp_path):
    values = np.ones((3, 4), np.float32)
    values[1, 1] = np.nan
    with pytest.raises(DataError, match="1 pixels are NaN"):
        read_image(_save(tmp_path / "a.tif", values))


@pytest.mark.parametrize("largest", [3, 255, 256, 65535])
def test_written_mask_is_read_back_equal(tmp_path, largest):
    labels = np.array([[0, 1, 2], [largest, 0, 1]])
    write_mask(tmp_path / "m.png", labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), labels)


def test_wrong_masks_leave_no_file(tmp_path):
    for name, labels, error in (
        ("a.jpg", GREY, ConfigError),
        ("a.png", GREY[None], ConfigError),
        ("a.png", -GREY.astype(int), LabelError),
        ("a.png", GREY.astype(int) * 70000, LabelError),
    ):
        with pytest.raises(error):
            write_mask(tmp_path / name, labels.astype(int) if error is LabelError else labels)
    assert list(tmp_path.iterdir()) == []


def test_an_ignore_value_becomes_unlabelled_before_anything_is_judged(tmp_path):
    path = tmp_path / "mask.png"
    _save(path, np.array([[0, 255, 7], [255, 0, 7]], np.uint8))
    np.testing.assert_array_equal(read_mask(path, 2, unlabelled=7), [[0, 1, UNLABELLED], [1, 0, UNLABELLED]])
    np.testing.assert_array_equal(read_mask(path, 8, unlabelled=255), [[0, UNLABELLED, 7], [UNLABELLED, 0, 7]])
    with pytest.raises(LabelError, match="label values 255 found in 2 places"):
        read_mask(path, 8, unlabelled=3)
    _save(path, np.array([[0, 255, 1]], np.uint8))
    np.testing.assert_array_equal(read_mask(path, 2, unlabelled=1), [[0, 1, UNLABELLED]])


def test_one_value_stands_for_unlabelled_in_files_and_in_training():
    assert config.UNLABELLED == UNLABELLED
