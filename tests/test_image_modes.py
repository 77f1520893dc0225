"""Images of every mode become the RGB that they show, in one place and the same everywhere."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from copies import put

import otclib
from otclib.attacks import planting
from otclib.data.images import Images
from otclib.data.table import Resize, image_tensor, rgb

RAMP = np.linspace(0, 255, 256).round().astype(np.uint8).reshape(16, 16)
GREY = np.repeat(RAMP[:, :, None], 3, axis=2)
COLOUR = np.stack([RAMP, RAMP[::-1], np.full_like(RAMP, 200)], axis=2)


def saved(image: PIL.Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned() -> bytes:
    """A picture whose EXIF says that it lies on its side."""
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6  # to be turned by a quarter, clockwise
    return saved(PIL.Image.fromarray(np.rot90(COLOUR)), "png", exif=exif)


def on_nothing() -> PIL.Image.Image:
    """A black picture, of which only the left half is there."""
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, :8] = 255
    return PIL.Image.fromarray(np.dstack([np.zeros((16, 16, 3), np.uint8), alpha]))


HALF = np.repeat(np.where(np.arange(16) < 8, 0, 255).astype(np.uint8)[None, :, None].repeat(16, 0), 3, 2)
WIDE = RAMP.astype(np.uint16) * 257
FRAMES = [PIL.Image.fromarray(frame) for frame in (GREY, 255 - GREY)]
FILES = {  # content, what it shows, by how many levels a pixel may differ
    "8 bits": (saved(PIL.Image.fromarray(RAMP), "png"), GREY, 0),
    "16 bits": (saved(PIL.Image.fromarray(WIDE), "png"), GREY, 0),
    "16 bits, big-endian": (saved(PIL.Image.fromarray(WIDE), "tiff"), GREY, 0),
    "32 bits": (saved(PIL.Image.fromarray(WIDE.astype(np.int32)), "tiff"), GREY, 0),
    "floats up to 1": (saved(PIL.Image.fromarray((RAMP / 255).astype(np.float32)), "tiff"), GREY, 0),
    "floats up to 255": (saved(PIL.Image.fromarray(RAMP.astype(np.float32)), "tiff"), GREY, 0),
    "black and white": (saved(PIL.Image.fromarray(RAMP).point(lambda v: 255 * (v > 127), "1"), "png"), None, 0),
    "palette": (saved(PIL.Image.fromarray(GREY).quantize(256), "png"), GREY, 3),
    "CMYK": (saved(PIL.Image.fromarray(COLOUR).convert("CMYK"), "tiff"), COLOUR, 2),
    "CMYK jpeg": (saved(PIL.Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).convert("CMYK"), "jpeg"), None, 0),
    "YCbCr": (saved(PIL.Image.fromarray(GREY).convert("YCbCr"), "jpeg", quality=98), GREY, 6),
    "animated gif": (saved(FRAMES[0], "gif", save_all=True, append_images=FRAMES[1:]), GREY, 6),
    "animated webp": (saved(FRAMES[0], "webp", save_all=True, append_images=FRAMES[1:], lossless=True), GREY, 0),
    "turned": (turned(), COLOUR, 0),
    "transparent": (saved(on_nothing(), "png"), HALF, 0),
    "transparent grey": (saved(on_nothing().convert("LA"), "png"), HALF, 0),
    "transparent palette": (saved(on_nothing().quantize(4), "png"), HALF, 0),
}


@pytest.mark.parametrize("name", FILES)
def test_an_image_of_any_mode_shows_what_it_is(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OTCLIB_CACHE", str(tmp_path / "cache"))
    content, shown, by = FILES[name]
    put(tmp_path / "a.image", content)
    put(tmp_path / "train.csv", "image,caption\na.image,one\na.image,two\n")
    pairs = otclib.data.load("csv", root=tmp_path)
    whole = image_tensor(pairs, 16)
    if shown is not None:
        assert np.abs(whole[0].permute(1, 2, 0).numpy().astype(int) - shown).max() <= by
    for memory in (0, 1 << 20):
        assert torch.equal(Images(pairs, Resize(16), memory, 0)[torch.tensor([1, 0])], whole)
    opened = PIL.Image.open(io.BytesIO(content))
    assert torch.equal(Resize(16)(opened), whole[0]), "an image that no table opened"
    assert torch.equal((planting.tensor(pairs[0]["image"]) * 255).round().byte(), whole[0])
    assert rgb(pairs[0]["image"]).mode == "RGB"


def test_dark_images_of_16_bits_stay_dark():
    dark = PIL.Image.fromarray(np.full((4, 4), 5140, np.uint16))
    assert np.asarray(rgb(dark)).max() == 20
    holes = np.array([[np.nan, -3, 0.5, 1]], np.float32)
    assert np.asarray(rgb(PIL.Image.fromarray(holes)))[0, :, 0].tolist() == [0, 0, 128, 255]
    assert np.asarray(rgb(PIL.Image.fromarray(np.full((1, 1), np.nan, np.float32)))).max() == 0


@pytest.mark.parametrize("size", [(40_000, 2), (2, 40_000)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_a_thin_image_costs_no_memory(size, mode):
    """Its shorter side would become 64 px, and its longer one more than a million."""
    thin = Resize(64, mode=mode)(PIL.Image.new("RGB", size, "red"))
    assert thin.shape == (3, 64, 64) and thin[0].max() == 255


def test_a_long_image_is_seen_as_before():
    rng = np.random.default_rng(0)
    long = PIL.Image.fromarray(rng.integers(0, 256, (20, 400, 3), np.uint8))
    middle = long.crop((160, 0, 240, 20))  # nothing outside it is near the square
    assert torch.equal(Resize(8)(long), Resize(8)(middle))
