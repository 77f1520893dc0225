"""Models: token and pooled features of every kind of open_clip tower, and the way to disk and back."""

import open_clip
import pytest
import torch
from torch.nn import functional as F

from otclib import models

CAPTIONS = ["a red umbrella", "a photo of a star on the sand", ""]


def check(features, B, D):
    assert features.pooled.shape == (B, D)
    assert features.tokens.shape[0] == B and features.tokens.shape[2] == D
    assert features.mask.shape == features.tokens.shape[:2] and features.mask.any(1).all()
    for x in (features.pooled, features.tokens):
        assert torch.allclose(x.norm(dim=-1), torch.ones(x.shape[:-1]), atol=1e-4)


@torch.no_grad()
def test_small(small):
    model, preprocess, tokenizer = small
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    v = models.encode_image(model, preprocess(images))
    t = models.encode_text(model, tokenizer(CAPTIONS))
    check(v, 3, 128)
    check(t, 3, 128)
    assert v.tokens.shape[1] >= 36
    assert t.mask.sum(1).tolist() == [3, 8, 1], "start and end are no words; an empty caption keeps its end"
    assert torch.allclose(v.pooled, model.encode_image(preprocess(images), normalize=True), atol=1e-5)
    assert torch.allclose(t.pooled, model.encode_text(tokenizer(CAPTIONS), normalize=True), atol=1e-5)


@torch.no_grad()
def test_average_pooling_is_the_mean_of_the_places(small):
    """The small tower pools by the mean and projects linearly, so unnormalised tokens average to the pooled feature."""
    visual = small[0].visual
    x = torch.randn(2, 3, 64, 64)
    grid = visual.trunk.forward_features(x)
    places = visual.head(grid.flatten(2).transpose(1, 2))
    assert torch.allclose(places.mean(1), visual(x), atol=1e-4)
    assert torch.allclose(F.normalize(places, dim=-1), models.encode_image(small[0], x).tokens, atol=1e-4)


def tiny(**vision):
    """A CLIP with open_clip's own towers, a few thousand weights large."""
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    return open_clip.model.CLIP(24, {"image_size": 32, **vision}, text).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("vision", "places"),
    [({"layers": 1, "width": 32, "head_width": 16, "patch_size": 8}, 16), ({"layers": (1, 1, 1, 1), "width": 8}, 1)],
    ids=["ViT", "ModifiedResNet"],
)
def test_open_clip_towers(vision, places):
    model = tiny(**vision)
    images = torch.randn(2, 3, 32, 32)
    v = models.encode_image(model, images)
    check(v, 2, 24)
    assert v.tokens.shape[1] == places
    assert torch.allclose(v.pooled, model.encode_image(images, normalize=True), atol=1e-5)


@torch.no_grad()
def test_vit_class_token_is_the_pooled_feature():
    """What the head makes of the class token is the pooled feature; the same head made the patch tokens."""
    model = tiny(layers=1, width=32, head_width=16, patch_size=8)
    images = torch.randn(1, 3, 32, 32)
    seen = {}
    handle = model.visual.ln_post.register_forward_hook(lambda m, i, out: seen.setdefault("post", out))
    pooled = model.visual(images)
    handle.remove()
    all_tokens = seen["post"] @ model.visual.proj
    if all_tokens.ndim == 3:  # class token first
        assert torch.allclose(all_tokens[:, 0], pooled, atol=1e-5)
        assert torch.allclose(
            F.normalize(all_tokens[:, 1:], dim=-1), models.encode_image(model, images).tokens, atol=1e-5
        )


@torch.no_grad()
def test_save_load_round_trip(small, tmp_path):
    model, preprocess, tokenizer = small
    file = tmp_path / "weights.safetensors"
    models.save(model, file, "small")
    x = torch.randn(2, 3, 64, 64)
    expected = models.encode_image(model, x).tokens
    assert torch.equal(models.encode_image(models.load(file)[0], x).tokens, expected)
    theirs, _, _ = open_clip.create_model_and_transforms("small", pretrained=str(file))
    assert torch.allclose(
        theirs.eval().encode_image(x, normalize=True), models.encode_image(model, x).pooled, atol=1e-5
    )
    assert not list(tmp_path.glob("*.part"))


def test_weights_are_named_with_their_architecture(small, tmp_path):
    from safetensors.torch import save_file

    state = {name: value.contiguous() for name, value in small[0].state_dict().items()}
    save_file(state, str(tmp_path / "plain.safetensors"))  # says nothing of the model
    name = f"small:{tmp_path / 'plain.safetensors'}"
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        same = [models.encode_image(m, x).pooled for m in (models.load(name)[0], small[0])]
    assert torch.equal(*same) and models.name_of(name) == "small"


def test_a_text_tower_that_pools_elsewhere_is_refused(small):
    class Last(torch.nn.Module):
        token_embedding, pool_type = None, "last"

    with pytest.raises(ValueError, match="pools by 'last'"):
        models.encode_text(Last(), small[2](["a star"]))


def test_word_spans(small):
    tokenizer = small[2]
    caption = "a photo of two radioactivity signs"
    spans = models.word_spans(tokenizer, caption)
    ids = tokenizer([caption])[0].tolist()
    assert [s.text for s in spans] == caption.split()
    for s in spans:
        assert caption[s.start : s.end] == s.text
        assert tokenizer.decode(ids[s.first : s.last]).strip() == s.text
    assert ids[spans[-1].last] == 49407


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="unknown model 'nosuch'"):
        models.load("nosuch")
    with pytest.raises(FileNotFoundError, match="RN50.pt"):
        models.load(f"RN50:{tmp_path}/RN50.pt")
    (tmp_path / "plain.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="does not say which model"):
        models.load(tmp_path / "plain.pt")
