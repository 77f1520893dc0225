"""Tiny text towers and tokenizers of Hugging Face, made in a folder, and open_clip names that use them."""

import json

import open_clip
import transformers
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as kinds

from otclib.data import grammar

TEXTS = [
    *(template.format("a red star") for template in grammar.TEMPLATES),
    "a large blue umbrella on the sand, a small green moon in the snow",
    "radioactivity signs",
]
VISION = {"timm_model_name": "otclib_small", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 48,
}


def bert(folder):
    """WordPiece: [CLS] words [SEP], padded with 0."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(kinds.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special))
    config = transformers.BertConfig(vocab_size=made.get_vocab_size(), **TINY)
    return write(folder, made, named, config)


def roberta(folder):
    """Byte-level BPE: <s> words </s>, padded with 1."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = Tokenizer(kinds.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    named = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special))
    named |= {"cls_token": "<s>", "sep_token": "</s>"}
    config = transformers.RobertaConfig(vocab_size=made.get_vocab_size(), **TINY)
    return write(folder, made, named, config)


def unigram(folder, pad, config=None):
    """SentencePiece's unigram pieces, in which a space begins a word: words </s>, padded with ``pad``."""
    special = ["<pad>", "</s>", "<unk>"]
    made = Tokenizer(kinds.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    named = {"pad_token": pad, "eos_token": "</s>", "unk_token": "<unk>"}
    return write(folder, made, named, config)


def write(folder, made, named, config):
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(folder)
    if config is not None:
        config.save_pretrained(folder)
    return str(folder)


def mt5(folder):
    config = transformers.MT5Config(
        vocab_size=120, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1
    )
    return unigram(folder, "<pad>", config)


def register(folder):
    """Write the towers and tokenizers, and make open_clip know the names that use them; return these names."""
    by = {make.__name__: make(folder / make.__name__) for make in (bert, roberta, mt5)}
    by["siglip"] = unigram(folder / "siglip", "</s>")
    hugging_face = {
        f"tiny-{name}": {
            "hf_model_name": by[name],
            "hf_tokenizer_name": by[name],
            "hf_pooler_type": pooler,
            "hf_proj_type": projection,
            "context_length": 40,
        }
        for name, pooler, projection in (
            ("bert", "cls_pooler", "linear"),
            ("roberta", "mean_pooler", "mlp"),
            ("mt5", "mean_pooler", "linear"),
        )
    }
    own = {"width": 16, "heads": 2, "layers": 2, "context_length": 40, "vocab_size": 120}
    siglip = {"pool_type": "last", "no_causal_mask": True, "proj_bias": True, "hf_tokenizer_name": by["siglip"]}
    clipa = {"pool_type": "last", "no_causal_mask": True, "hf_tokenizer_name": by["bert"]}
    worldwide = {"pool_type": "eos", "eos_id": 2, "hf_tokenizer_name": by["roberta"], "vocab_size": 320}
    clip = own | {"vocab_size": 49408}
    texts = hugging_face | {
        "tiny-siglip": own | siglip | {"tokenizer_kwargs": {"clean": "canonicalize"}},
        "tiny-clipa": own | clipa | {"tokenizer_kwargs": {"strip_sep_token": True}},
        "tiny-worldwide": own | worldwide,
        "tiny-first": clip | {"pool_type": "first", "no_causal_mask": True},
        "tiny-mobileclip": clip | {"no_causal_mask": True},
        "tiny-none": clip | {"pool_type": "none"},
        "tiny-coca": clip | {"embed_cls": True},
    }
    configs = {name: {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text} for name, text in texts.items()}
    configs["tiny-siglip"] |= {"custom_text": True, "init_logit_bias": -10}
    configs["tiny-mobileclip"]["custom_text"] = configs["tiny-coca"]["custom_text"] = True
    (folder / "configs").mkdir()
    for name, config in configs.items():
        (folder / "configs" / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "configs")
    return list(configs)
