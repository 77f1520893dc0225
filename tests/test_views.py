"""Views of images: what stays, what changes, and that every image has its own."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from otclib.defenses import views
from otclib.defenses.views import Views

STILL = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "brightness": 0.0, "contrast": 0.0}

STRONG = views.Views(scale=(0.6, 1.0), ratio=(0.8, 1.25), brightness=0.3, contrast=0.3, saturation=0.5, hue=0.5)


@pytest.fixture
def images():
    return torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_with_nothing_to_change_an_image_is_itself_or_its_mirror_image(images):
    torch.manual_seed(0)
    seen, unit = Views(**STILL)(images, 32), images / 255
    own, mirrored = ((seen - x).abs().amax((1, 2, 3)) < 1e-4 for x in (unit, unit.flip(-1)))
    assert (own | mirrored).all() and own.any() and mirrored.any()


def test_every_image_has_a_draw_of_its_own():
    same = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(8, -1, -1, -1)
    torch.manual_seed(0)
    # some of AutoAugment's draws change nothing
    ways = {views.WEAK: 8, STRONG: 8, views.published_view(): 8, views.AutoAugmented(): 4}
    for view, least in ways.items():
        seen = view(same, 32)
        assert len(seen.mul(1000).round().unique(dim=0)) >= least
        assert seen.shape == (8, 3, 32, 32) and 0 <= seen.min() and seen.max() <= 1


def test_any_size_comes_out_and_the_same_seed_draws_the_same(images):
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(STRONG(images, 24))
    assert draws[0].shape == (6, 3, 24, 24) and torch.equal(*draws)


def test_crops_have_the_area_and_ratio_that_were_asked_for():
    """An image whose red is its x and whose green is its y tells which part of it a view shows."""
    ramp = torch.linspace(0, 255, 200)
    image = torch.stack([ramp.expand(200, 200), ramp[:, None].expand(200, 200), torch.zeros(200, 200)]).to(torch.uint8)
    torch.manual_seed(0)
    view = Views(**STILL | {"scale": (0.3, 0.6), "ratio": (0.8, 1.25)})
    seen = view.crops(image.expand(200, 3, 200, 200), 40, view.draw(200))
    wide = (seen[:, 0, 0, -1] - seen[:, 0, 0, 0]).abs() * 40 / 39
    high = (seen[:, 1, -1, 0] - seen[:, 1, 0, 0]) * 40 / 39
    area, ratio = wide * high, wide / high
    assert 0.29 < area.min() < 0.33 and 0.57 < area.max() < 0.61
    assert 0.78 < ratio.min() < 0.85 and 1.18 < ratio.max() < 1.28


@pytest.mark.parametrize(
    ("option", "change"),
    [("brightness", tv.adjust_brightness), ("contrast", tv.adjust_contrast), ("saturation", tv.adjust_saturation)],
)
def test_colours_change_as_torchvision_changes_them(images, option, change, monkeypatch):
    """Where nothing is cut off at black or white."""
    middle = (images // 4 + 96).to(torch.uint8)
    monkeypatch.setattr(views, "_between", lambda low, high, n: torch.full((n,), float(high)))
    seen = Views(**STILL | {option: 0.3})
    matrix, offset = seen.colours(middle / 255, seen.draw(len(middle)))
    found = torch.baddbmm(offset, matrix, (middle / 255).flatten(2)).view(middle.shape)
    assert torch.allclose(found, change(middle / 255, 1.3), atol=4e-3)


def test_a_turned_hue_leaves_greys_and_brightness_alone():
    torch.manual_seed(0)
    view = Views(**STILL | {"hue": 0.5})
    colours = torch.rand(50, 3, 4, 4)
    draws = view.draw(50)
    matrix, offset = view.colours(colours, draws)
    turned = torch.baddbmm(offset, matrix, colours.flatten(2)).view(colours.shape)
    luma = torch.tensor(views.LUMA)
    assert torch.allclose(torch.einsum("bchw,c->bhw", turned - colours, luma), torch.zeros(50, 4, 4), atol=1e-3)
    grey = torch.full((50, 3, 1), 0.4)
    assert torch.allclose(torch.baddbmm(offset, matrix, grey), grey, atol=1e-3)
    assert (turned - colours).abs().amax((1, 2, 3)).median() > 0.2


def test_grey_views_have_no_colour(images):
    seen = Views(**STILL | {"grey": 1.0})(images, 32)
    assert (seen - seen.mean(1, keepdim=True)).abs().max() < 5e-3


def test_every_image_is_blurred_by_its_own_sigma():
    spot = torch.zeros(2, 1, 31, 31)
    spot[:, :, 15, 15] = 1.0
    found = views.blurred(spot, torch.tensor([0.01, 2.0]))
    assert torch.allclose(found[0], spot[0])
    at = torch.arange(-15, 16) / 2.0
    bell = torch.exp(-0.5 * at**2) / (2 * math.sqrt(2 * math.pi))
    assert torch.allclose(found[1, 0], torch.outer(bell, bell), atol=1e-3)
    assert float(found[1].sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("view", [STRONG, views.published_view(), views.AutoAugmented()])
def test_a_part_of_a_batch_is_seen_as_in_the_whole_batch(images, view):
    torch.manual_seed(4)
    draws = view.draw(6)
    whole = view(images, 24, draws)
    for rank in range(2):
        assert torch.allclose(view(images[rank::2], 24, draws[rank::2]), whole[rank::2], atol=1e-5)
