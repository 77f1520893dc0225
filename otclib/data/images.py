"""The images of a table as a model sees them: in memory where they fit, else decoded by workers when needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from otclib.data.parallel import cores
from otclib.data.table import Resize, decoded, image_tensor, stored

MEMORY = 1 << 30  # bytes of pixels that a process keeps by default: 87,000 images of 64 px, 7,100 of 224 px


class Images:
    """The images of a table, uint8 [3, S, S] each. ``images[rows]`` returns those of some rows.

    ``batches(batches of rows)`` yields the images of one batch after the other, in order. Images that are not in memory
    are decoded ahead of time by worker processes (PyTorch's ``DataLoader``), which also lets a GPU copy them meanwhile.

    Parameters
    ----------
    pairs : the table; its images lie on disk (Arrow, files) and are decoded when they are read.
    resize : the step from an image to the pixels that the model sees, ``models.resize(model)``.
    memory : the most bytes that the decoded images may take; larger sets are decoded again in every epoch.
    workers : processes that decode; default one for each core, up to eight.
    """

    def __init__(self, pairs: Dataset, resize: Resize, memory: int = MEMORY, workers: int | None = None):
        if memory < 0 or (workers is not None and workers < 0):
            raise ValueError(f"memory and workers must be at least 0, got {memory} and {workers}")
        self.shape = (len(pairs), 3, resize.size, resize.size)
        self.workers = max(1, min(8, cores())) if workers is None else workers
        self.held = image_tensor(pairs, resize) if torch.Size(self.shape).numel() <= memory else None
        self.decoded = _Decoded(stored(pairs), resize)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.decoded.__getitems__(rows.tolist()) if self.held is None else self.held[rows]

    def batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images [B, 3, S, S] of each of the ``batches`` of rows [B]."""
        if self.held is not None:
            yield from (self.held[rows] for rows in batches)
            return
        wanted = [rows.tolist() for rows in batches]
        options: dict[str, Any] = {"num_workers": min(self.workers, len(wanted)), "collate_fn": _as_it_is}
        options |= {"prefetch_factor": 4} if options["num_workers"] else {}
        options |= {"pin_memory": torch.cuda.is_available(), "generator": torch.Generator()}  # not the global one
        yield from DataLoader(self.decoded, batch_sampler=wanted, **options)


class _Decoded(torch.utils.data.Dataset):
    """Decode and resize the images of some rows; a worker holds a copy of this, and not of the pixels."""

    def __init__(self, images: Dataset, resize: Resize):
        self.images, self.resize = images, resize

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> Tensor:
        found = self.images[rows]
        cells = zip(found["image"], rows, found.get("id", rows))
        return torch.stack([self.resize(decoded(image, row, id)) for image, row, id in cells])


def _as_it_is(batch: Tensor) -> Tensor:
    return batch
