"""Models: load any open_clip model, and get its pooled *and* its token features in the joint space with one call.

    model, preprocess, tokenizer = otclib.models.load("small")    # or "RN50-quickgelu:openai", "RN50:/path/weights.pt"
    v = otclib.models.encode_image(model, images)          # Features(pooled [B, D], tokens [B, T, D], mask [B, T])
    t = otclib.models.encode_text(model, tokenizer(["a red umbrella"]))

A token is what the tower's own head returns for one place alone. The head is the last norm and projection (ViT, text),
the projection (a Hugging Face text tower), the value and output projections of the attention pool (ModifiedResNet; the
pooling query is not used), or the trunk's head applied to each place (timm). So tokens lie in the space of the pooled
feature, and are L2-normalised like it.
"""

from otclib.models.features import Features, Tokenizer
from otclib.models.files import has_weights, load, load_weights, name_of, save
from otclib.models.images import (
    MEAN,
    STD,
    encode_image,
    image_size,
    normalize,
    preprocess,
    resize,
    takes_any_size,
)
from otclib.models.text import SpecialTokens, attach_tokenizer, encode_text, padding, text_length, word_places
from otclib.models.words import WordSpan, word_spans

__all__ = [
    "MEAN",
    "STD",
    "Features",
    "SpecialTokens",
    "Tokenizer",
    "WordSpan",
    "attach_tokenizer",
    "encode_image",
    "encode_text",
    "has_weights",
    "image_size",
    "load",
    "load_weights",
    "name_of",
    "normalize",
    "padding",
    "preprocess",
    "resize",
    "save",
    "takes_any_size",
    "text_length",
    "word_places",
    "word_spans",
]
