"""Text towers: every pooling of open_clip's own, and those of Hugging Face, against open_clip's own features."""

import open_clip
import pytest
import torch
import towers
from open_clip.transformer import TextTransformer

import otclib
from otclib import evaluation, losses, models
from otclib.evaluation import zero_shot
from otclib.explorer import Explorer

CAPTIONS = ["a red umbrella", "a photo of a star on the sand", "", "a radioactivity!"]
HUGGING_FACE = ["tiny-bert", "tiny-roberta", "tiny-mt5"]
OWN = ["tiny-siglip", "tiny-clipa", "tiny-worldwide", "tiny-first", "tiny-mobileclip", "tiny-coca"]


@pytest.fixture(scope="module", autouse=True)
def names(tmp_path_factory):
    registered = towers.register(tmp_path_factory.mktemp("towers"))
    yield registered
    for name in registered:
        open_clip.factory._MODEL_CONFIGS.pop(name)


@pytest.fixture(scope="module")
def loaded():
    """Return a model by its name; each is made once, with weights large enough to tell places apart."""
    made = {}

    def load(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = models.load(name, random=True)
            with torch.no_grad():
                for parameter in made[name][0].parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return made[name]

    return load


def end_of(tokenizer, caption):
    """The number of tokens of a caption with its start and end, as the tokenizer itself counts."""
    if hasattr(tokenizer, "tokenizer"):
        return len(tokenizer.tokenizer(tokenizer.clean_fn(caption)).input_ids)
    return len(tokenizer.encode(caption)) + 2


@torch.no_grad()
@pytest.mark.parametrize("name", HUGGING_FACE + OWN)
def test_the_pooled_feature_is_open_clips(loaded, name):
    model, _, tokenizer = loaded(name)
    text = tokenizer(CAPTIONS)
    features = models.encode_text(model, text)
    assert torch.allclose(features.pooled, model.encode_text(text, normalize=True), atol=1e-5)
    assert features.tokens.shape[:2] == features.mask.shape and features.tokens.shape[2] == 24
    assert torch.allclose(features.tokens.norm(dim=-1), torch.ones(features.mask.shape), atol=1e-4)
    assert features.mask.any(1).all() and features.mask.sum(1)[2] == 1, "an empty caption keeps its end"
    assert models.text_length(model, text) == features.tokens.shape[1] < text.shape[1]
    full = models.encode_text(model, text, 40)
    assert torch.allclose(full.pooled, features.pooled, atol=1e-5) and full.tokens.shape[1] == 40
    assert full.mask.sum() == features.mask.sum()


@torch.no_grad()
@pytest.mark.parametrize("name", HUGGING_FACE + OWN)
def test_the_features_of_a_caption_do_not_depend_on_its_batch(loaded, name):
    model, _, tokenizer = loaded(name)
    together = models.encode_text(model, tokenizer(CAPTIONS))
    for k, caption in enumerate(CAPTIONS):
        alone = models.encode_text(model, tokenizer([caption]))
        n = alone.tokens.shape[1]
        assert torch.allclose(alone.pooled[0], together.pooled[k], atol=1e-5)
        assert torch.equal(alone.mask[0], together.mask[k, :n]) and not together.mask[k, n:].any()
        assert torch.allclose(alone.tokens[0][alone.mask[0]], together.tokens[k][together.mask[k]], atol=1e-5)


@pytest.mark.parametrize("name", HUGGING_FACE + OWN)
def test_the_mask_leaves_out_what_is_no_word(loaded, name):
    model, _, tokenizer = loaded(name)
    mask = models.encode_text(model, tokenizer(CAPTIONS)).mask
    starts = name not in ("tiny-mt5", "tiny-siglip")  # a unigram tokenizer writes no start
    for k, caption in enumerate(CAPTIONS):
        if caption:
            words = [False] * starts + [True] * (end_of(tokenizer, caption) - 1 - starts)
            assert mask[k].tolist() == words + [False] * (mask.shape[1] - len(words))


@torch.no_grad()
def test_tokens_of_bert_by_hand(loaded):
    model, _, tokenizer = loaded("tiny-bert")
    text = tokenizer(["a red zzz", ""])
    assert text[0, :5].tolist()[::4] == [2, 3] and text[0, 3] == 1, "[CLS] a red [UNK] [SEP]"
    found = models.encode_text(model, text)
    assert found.mask.tolist() == [[False, True, True, True, False], [False, True, False, False, False]]
    states = model.text.transformer(text, attention_mask=(text != 0).long()).last_hidden_state
    expected = torch.nn.functional.normalize(states @ model.text.proj.weight.T, dim=-1)
    assert torch.allclose(found.tokens[0], expected[0, :5], atol=1e-5)


@torch.no_grad()
def test_padding_that_the_tower_does_not_see_is_cut():
    """A tower without a causal mask that masks padding: the class token, and the end token, pool the same when cut."""
    torch.manual_seed(0)
    how = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2, "output_dim": 8}
    tokenizer = open_clip.get_tokenizer("small")
    text = tokenizer(CAPTIONS, 16)
    for options in ({"pool_type": "argmax"}, {"embed_cls": True}, {"embed_cls": True, "correct_cls_mask": True}):
        tower = TextTransformer(**how, no_causal_mask=True, use_pad_mask=True, **options).eval()
        pooled = torch.nn.functional.normalize(tower(text), dim=-1)
        found = models.encode_text(tower, text)
        assert torch.allclose(found.pooled, pooled, atol=1e-5)
        assert found.tokens.shape[1] == models.text_length(tower, text) < 16


@pytest.mark.parametrize("name", HUGGING_FACE + OWN)
def test_words_are_located(loaded, name):
    _, _, tokenizer = loaded(name)
    caption = "a  photo of two radioactivity signs, on the sand"
    spans = models.word_spans(tokenizer, caption)
    assert [s.text for s in spans] == caption.split()
    ids = tokenizer([caption])[0].tolist()
    decode = tokenizer.tokenizer.decode if hasattr(tokenizer, "tokenizer") else tokenizer.decode
    for s in spans:
        assert caption[s.start : s.end] == s.text
        said = "".join(decode(ids[s.first : s.last]).split())
        assert said == (s.text.strip(",") if name == "tiny-siglip" else s.text), "SigLIP's reads no punctuation"
    assert all(one.last == two.first for one, two in zip(spans, spans[1:]))
    assert spans[0].first == (name not in ("tiny-mt5", "tiny-siglip"))


def test_words_that_the_tokenizer_does_not_read_have_no_span(loaded):
    tokenizer = loaded("tiny-siglip")[2]
    assert [s.text for s in models.word_spans(tokenizer, "A Star -- on_the sand")] == ["A", "Star", "on_the", "sand"]
    long = " ".join(["star"] * 40)
    spans = models.word_spans(loaded("tiny-bert")[2], long)
    assert 1 < len(spans) < 40 and spans[-1].last == 39, "what is cut off has none"
    with pytest.raises(ValueError, match="cannot be located: the tokenizer reads it as 'voilà le star'"):
        models.word_spans(loaded("tiny-bert")[2], "voil\u00c3 le star")  # ftfy repairs the first word by its neighbour


def test_weights_make_a_round_trip(loaded, tmp_path):
    for name in ("tiny-bert", "tiny-roberta", "tiny-mt5", "tiny-siglip", "tiny-clipa"):
        model, _, tokenizer = loaded(name)
        file = tmp_path / f"{name}.safetensors"
        models.save(model, file, name)
        assert models.name_of(file) == name
        again, _, theirs = models.load(file)
        text = tokenizer(CAPTIONS)
        with torch.no_grad():
            one, two = (models.encode_text(m, text) for m in (model, again))
        assert torch.equal(theirs(CAPTIONS), text)
        assert torch.equal(one.pooled, two.pooled) and torch.equal(one.mask, two.mask)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-siglip"])
def test_the_explorer_and_the_evaluation_take_such_towers(loaded, pairs, name, tmp_path):
    model, _, tokenizer = loaded(name)
    models.save(model, tmp_path / "weights.safetensors", name)
    explorer = Explorer(tmp_path / "weights.safetensors", pairs, pool=20)
    view = explorer.view(3, reg=0.2)
    assert " ".join(view.words) == pairs[3]["caption"] and view.plan.shape == (64, len(view.words))
    assert view.weights.sum() == pytest.approx(1.0) and view.plan.sum() == pytest.approx(1.0, abs=1e-3)
    assert len(view.ranking["transport"][1]) == 5
    classes = otclib.data.classes(pairs)
    embeddings = zero_shot.class_embeddings(model, tokenizer, classes, otclib.data.templates(pairs))
    said = zero_shot.classify(model, otclib.data.image_tensor(pairs.select(range(8)), models.resize(model)), embeddings)
    assert embeddings.shape == (len(classes), 24) and said.shape == (8,)
    measured = evaluation.grounding(model, tokenizer, otclib.data.load("scenes", split="val", size=10, seed=5))
    assert 0 < measured["plan_mass_on_object"] < 1


def test_what_cannot_be_done_is_said(loaded, monkeypatch):
    model, _, tokenizer = loaded("tiny-none")
    with pytest.raises(ValueError, match="pools at one place, this one has pool_type='none'"):
        models.encode_text(model, tokenizer(CAPTIONS))
    with pytest.raises(ValueError, match="this model has Linear"):
        models.encode_text(torch.nn.Linear(1, 1), torch.zeros(1, 4).long())
    bare = open_clip.create_model("tiny-bert", pretrained_text=False).eval()
    tokenizer = open_clip.get_tokenizer("tiny-bert")
    with pytest.raises(ValueError, match="special tokens of this text tower are unknown.*attach_tokenizer"):
        models.encode_text(bare, tokenizer(CAPTIONS))
    models.attach_tokenizer(bare, tokenizer)
    assert models.encode_text(bare, tokenizer(CAPTIONS)).mask.any(1).all()
    with pytest.raises(ValueError, match="CLIP's own tokenizer and with those of Hugging Face, not with function"):
        models.word_spans(lambda captions: torch.zeros(1, 4), "a star")
    with pytest.raises(ValueError, match="in its usual mode, this is mode 'clips'"):
        monkeypatch.setattr(tokenizer, "tokenizer_mode", "clips")
        models.word_spans(tokenizer, "a star")


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(FileNotFoundError, match="text tower 'roberta-base' of roberta-ViT-B-32 is not in the cache"):
        models.load("roberta-ViT-B-32", random=True)
    with pytest.raises(FileNotFoundError, match="the tokenizer 'timm/ViT-B-16-SigLIP' of ViT-B-16-SigLIP is not in"):
        models.load("ViT-B-16-SigLIP", random=True)
    monkeypatch.setattr(open_clip.hf_model, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="needs transformers: install it with pip install 'otclib.hf.'"):
        models.load("tiny-bert", random=True)


@torch.no_grad()
def test_siglip_is_taken_with_its_bias(monkeypatch):
    """The published configuration, with another tokenizer, because its own must be downloaded."""
    config = open_clip.get_model_config("ViT-B-16-SigLIP")
    config["text_cfg"]["hf_tokenizer_name"] = open_clip.get_model_config("tiny-siglip")["text_cfg"]["hf_tokenizer_name"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-16-SigLIP", config)
    model, preprocess, tokenizer = models.load("ViT-B-16-SigLIP", random=True)
    images, text = preprocess(torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)), tokenizer(CAPTIONS)
    image, said = models.encode_image(model, images), models.encode_text(model, text)
    assert torch.allclose(image.pooled, model.encode_image(images, normalize=True), atol=1e-5)
    assert torch.allclose(said.pooled, model.encode_text(text, normalize=True), atol=1e-5)
    assert image.tokens.shape == (1, 196, 768) and said.mask.any(1).all()
    scale = model.logit_scale.exp()
    loss = losses.contrastive(said.pooled, said.pooled, scale, bias=model.logit_bias)
    theirs = open_clip.loss.SigLipLoss()(said.pooled, said.pooled, scale, model.logit_bias)
    assert torch.allclose(loss, theirs, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["RN50", "ViT-B-32", "ViT-B-16", "ViT-S-32"])
def test_published_architectures(name):
    model, preprocess, tokenizer = models.load(name, random=True)
    images = preprocess(torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8))
    text = tokenizer(CAPTIONS)
    image, said = models.encode_image(model, images), models.encode_text(model, text)
    assert torch.allclose(image.pooled, model.encode_image(images, normalize=True), atol=1e-5)
    assert torch.allclose(said.pooled, model.encode_text(text, normalize=True), atol=1e-5)
    assert image.tokens.shape[1] == (196 if name == "ViT-B-16" else 49)
    assert said.mask.sum(1).tolist() == [3, 8, 1, end_of(tokenizer, CAPTIONS[3]) - 2]
