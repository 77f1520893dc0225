"""open_clip's own training loop, called in this process, and the seconds for which a loop waits for its batches."""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import open_clip
import torch


class Waited:
    """An iterable, and the seconds for which its reader waits: for the first item, while workers start, and later."""

    def __init__(self, items):
        self.items, self.first, self.later = items, 0.0, 0.0

    def __getattr__(self, name: str):
        return getattr(self.items, name)

    def __iter__(self) -> Iterator:
        stream, first, start = iter(self.items), True, time.perf_counter()
        for item in stream:
            taken = time.perf_counter() - start
            self.first, self.later = (taken, 0.0) if first else (self.first, self.later + taken)
            yield item
            first, start = False, time.perf_counter()


def data_module():
    """open_clip's data module. It imports braceexpand and webdataset, which a CSV does not need and may be missing."""
    names = {"": ["PipelineStage"], ".filters": ["_shuffle"]}
    names[".tariterators"] = ["base_plus_ext", "url_opener", "tar_file_expander", "valid_sample"]
    for package, parts in ("braceexpand", {"": []}), ("webdataset", names):
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            for part, inside in parts.items():
                sys.modules[package + part] = types.ModuleType(package + part)
                vars(sys.modules[package + part]).update(dict.fromkeys(inside, object))
    from open_clip_train import data

    return data


def epochs(
    model: str, csv: Path, batch: int, lr: float, workers: int, device: str, precision: str
) -> Callable[[], Waited]:
    """Return what trains an epoch, set up as open_clip's ``main`` does; it returns its batches, see ``Waited``."""
    from open_clip_train import distributed, params, scheduler, train

    asked = f"--train-data {csv} --dataset-type csv --csv-img-key image --csv-caption-key caption --csv-separator ,"
    asked += f" --model {model} --batch-size {batch} --workers {workers} --device {device} --lr {lr}"
    args = params.parse_args([*asked.split(), "--precision", {"fp32": "fp32", "bf16": "amp_bf16"}[precision]])
    distributed.init_distributed_device(args)
    args.distill, args.wandb = False, False
    kind = {"precision": args.precision, "device": args.device, "output_dict": True}
    network, preprocess, _ = open_clip.create_model_and_transforms(args.model, None, **kind)
    named = list(network.named_parameters())
    plain = [n for n, p in named if p.ndim < 2 or any(part in n for part in ("bn", "ln", "bias", "logit_scale"))]
    groups = [
        {"params": [p for n, p in named if n in plain], "weight_decay": 0.0},
        {"params": [p for n, p in named if n not in plain], "weight_decay": args.wd},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps)
    data = data_module().get_data(args, (preprocess, None), tokenizer=open_clip.get_tokenizer(model))
    loss, loader = open_clip.create_loss(args), data["train"].dataloader
    schedule = scheduler.cosine_lr(optimizer, args.lr, args.warmup, loader.num_batches)

    def epoch() -> Waited:
        data["train"].dataloader = Waited(loader)
        train.train_one_epoch(network, data, loss, 0, optimizer, None, schedule, None, args)
        return data["train"].dataloader

    return epoch
