"""Models: token and pooled features of every kind of open_clip tower, and the way to disk and back."""

from types import SimpleNamespace

import open_clip
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from otclib import data, evaluation, models, training

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


def test_random_weights_must_be_asked_for():
    with pytest.raises(ValueError, match="'ViT-S-32-alt' names no weights.*'ViT-S-32-alt:/path/file'.*random=True"):
        models.load("ViT-S-32-alt")
    with pytest.raises(ValueError, match="load 'ViT-B-32:laion.*random=True"):
        models.load("ViT-B-32")
    with pytest.raises(ValueError, match="'RN50-quickgelu:openai' names weights.*random=True"):
        models.load("RN50-quickgelu:openai", random=True)
    assert models.load("ViT-S-32-alt", random=True)[0].visual.image_size in (224, (224, 224))
    assert models.load("small") and models.load("small", random=True)


def test_a_tag_is_weights_that_open_clip_fetches(small, tmp_path, monkeypatch):
    for name in ("ViT-B-32:openai", "ViT-B-32-quickgelu:openai", f"small:{tmp_path / 'weights.safetensors'}"):
        models.save(small[0], tmp_path / "weights.safetensors", "small")
        assert models.has_weights(name) and models.name_of(name) == name.split(":")[0]
    assert not models.has_weights("ViT-B-32") and not models.has_weights("small")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))  # open_clip read it already; what counts is that it is offline
    with pytest.raises(
        FileNotFoundError, match="'metaclip_400m' of ViT-B-16-quickgelu are not in the cache .*HF_HUB_OFFLINE"
    ):
        models.load("ViT-B-16-quickgelu:metaclip_400m")
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "small", {"mine": {"file": str(tmp_path / "weights.safetensors")}}
    )
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        same = [models.encode_image(m, x).pooled for m in (models.load("small:mine")[0], small[0])]
    assert torch.equal(*same)


def picture(width, height):
    """A smooth PIL image with a little noise."""
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij")
    waves = torch.stack([torch.sin(x + y), torch.cos(x * y / 3), torch.sin(2 * x - y)])
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    return tv.to_pil_image(((waves + 1) * 110 + 8 * noise).clamp(0, 255).to(torch.uint8))


@pytest.mark.parametrize("size", [(100, 80), (400, 300), (224, 224)])
@pytest.mark.parametrize(
    "shown",
    [{}, {"interpolation": "bilinear"}, {"resize_mode": "squash"}, {"resize_mode": "longest", "fill_color": 60}],
    ids=["CLIP's", "bilinear", "squash", "longest"],
)
def test_training_evaluation_and_preprocess_see_the_same_pixels(shown, size):
    """Those of open_clip's own transform, to within the rounding of a byte, as the model's configuration says."""
    image = picture(*size)
    config = {"size": 224, "mode": "RGB", "mean": models.MEAN, "std": models.STD, **shown}
    visual = SimpleNamespace(image_size=(224, 224), preprocess_cfg=config, image_mean=models.MEAN, image_std=models.STD)
    model = SimpleNamespace(visual=visual)
    table = Dataset.from_dict({"image": [image]}, features=Features({"image": Image()}))
    pixels = data.image_tensor(table, models.resize(model))
    mean, std = (torch.tensor(x)[:, None, None] for x in (models.MEAN, models.STD))
    prepared = models.preprocess(model)(image) * std + mean
    assert pixels.shape == (1, 3, 224, 224) and pixels.dtype == torch.uint8
    assert (prepared * 255 - pixels[0]).abs().max() < 0.01
    theirs = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**config), is_train=False)
    difference = (theirs(image) * std + mean) * 255 - pixels[0]
    assert difference.abs().max() < 2.01 and difference.abs().mean() < 0.5


def test_a_vit_is_trained_on_what_preprocess_shows(pairs):
    """The trainer's pixels, the evaluation's and those of ``preprocess``, for a table of 100 x 80 images."""
    network, preprocess, tokenizer = models.load("ViT-B-32", random=True)
    columns = {"image": [picture(100, 80)] * 2, "caption": ["a star", "a moon"], "label": ["star", "moon"]}
    table = Dataset.from_dict(columns).cast_column("image", Image())
    trainer = training.Trainer(table, network, tokenizer, Accelerator(cpu=True))
    watcher = evaluation.Watcher(network, tokenizer, None, table)
    assert torch.equal(trainer.images.held, watcher.images) and trainer.images.shape == (2, 3, 224, 224)
    assert torch.allclose(trainer.normalize(trainer.images.held[0]), preprocess(columns["image"][0]), atol=1e-5)


def test_a_file_keeps_how_images_are_shown(tmp_path):
    model = open_clip.create_model("small", force_preprocess_cfg={"interpolation": "bilinear", "mean": (0.5, 0.5, 0.5)})
    models.save(model, tmp_path / "weights.safetensors", "small")
    for name in (tmp_path / "weights.safetensors", f"small:{tmp_path / 'weights.safetensors'}"):
        again = models.load(name)[0]
        assert models.resize(again) == data.Resize(64, interpolation="bilinear")
        assert list(models.normalize(again).mean) == [0.5, 0.5, 0.5]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="unknown model 'nosuch'"):
        models.load("nosuch")
    with pytest.raises(FileNotFoundError, match="RN50.pt"):
        models.load(f"RN50:{tmp_path}/RN50.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="does not say which model"):
        models.load(tmp_path / "plain.pt")
    with pytest.raises(FileNotFoundError, match="no weights file at .*gone.safetensors"):
        models.load(tmp_path / "gone.safetensors")
    with pytest.raises(
        ValueError, match="names 'opnai', neither a file nor a tag of ViT-B-32; its tags: openai, laion"
    ):
        models.load("ViT-B-32:opnai")
    with pytest.raises(ValueError, match="'small:openai'.*its tags: none, only files"):
        models.has_weights("small:openai")
    with pytest.raises(ValueError, match="mode is 'shortest', 'longest' or 'squash', got 'tallest'"):
        data.Resize(64, mode="tallest")
    with pytest.raises(ValueError, match="interpolation is 'bicubic' or 'bilinear', got 'cubic'"):
        data.Resize(64, interpolation="cubic")
