"""The optimisers of a run, ``muon`` or the papers' ``adamw``, and the schedule of their learning rate.

``muon``, the default, is Muon for the matrices and Adam for the rest.

Muon (Jordan et al., 2024) makes the update of a matrix orthogonal, so rare directions are learned as fast as frequent
ones. On the embedded scenes it reached in two epochs what AdamW reached in five. Libraries run its Newton-Schulz
iteration in bf16, which is fifty times slower than fp32 on a processor without a bf16 unit. Here it runs in the dtype
of the weights, and on the small Gram matrix, which takes half of the products.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic; singular values end in about [0.7, 1.2]
BETAS = (0.9, 0.98)


def orthogonalize(matrix: Tensor, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """Bring the singular values of a matrix [N, M] near 1 and keep its singular vectors, in its own dtype.

    With X the matrix over its Frobenius norm, Newton-Schulz iterates X <- (a + b A + c A^2) X, A = X X^T. All factors
    are polynomials P of the first A. So they are multiplied on the smaller side, A <- P A P and Q <- P Q, and X is
    multiplied only once, by Q. In exact arithmetic the result is the same.
    """
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / wide.norm().clamp(min=eps)
    a, b, c = NEWTON_SCHULZ
    gram, product = x @ x.mT, None
    for step in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps:
            gram = factor @ gram @ factor
    x = product @ x
    return x.mT if wide is not matrix else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose every update is made orthogonal (``orthogonalize``), with decoupled weight decay.

    Parameters have two axes or more; a convolution's [out, in, h, w] is the matrix [out, in h w]. The step of a matrix
    [N, M] is ``lr * 0.2 * sqrt(max(N, M))``, so that its entries move about as much as under Adam (Liu et al., 2025).
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # without a closure, which nobody gives
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"])
                moved = update.movedim(1, -1)  # the order in memory of a convolution in channels_last
                matrix = moved.reshape(len(p), -1)
                scale = 0.2 * max(matrix.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                step = orthogonalize(matrix).reshape(moved.shape).movedim(-1, 1)
                p.add_(step, alpha=-group["lr"] * scale)


def optimizers(
    model: nn.Module, lr: float, weight_decay: float, kind: str = "muon", betas: tuple[float, float] | None = None
) -> list[torch.optim.Optimizer]:
    """Return the optimisers of a model's parameters. Each group's ``share`` is its part of the learning rate.

    Parameters
    ----------
    kind : ``muon``: Muon for the matrices, and Adam at a quarter of its rate for embeddings, norms, biases and the
        logit scale. ``adamw``: AdamW for everything, as in the published codes (``adamw``).
    betas : Adam's. Default (0.9, 0.98) beside Muon, and (0.9, 0.999) of ``adamw``, as published.

    Raises
    ------
    ValueError : an unknown kind, or betas outside [0, 1).
    """
    if kind not in KINDS:
        raise ValueError(f"optimizer is one of {', '.join(KINDS)}, got {kind!r}")
    if betas is not None and not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise ValueError(f"betas are two numbers in [0, 1), got {betas}")
    return KINDS[kind](model, lr, weight_decay, None if betas is None else (betas[0], betas[1]))


def _muon(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] | None
) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices, and Adam for the rest.

    In a table of words only the rows of the batch's words have a gradient, and only these are updated (SparseAdam,
    without weight decay). Updating all of CLIP's 49,408 words would cost more than the rest of a small text tower.
    """
    betas = betas or BETAS
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for table in tables:
        table.sparse = True
    words = [table.weight for table in tables]
    others = [(name, p) for name, p in model.named_parameters() if p.requires_grad and all(p is not w for w in words)]
    positions = [p for name, p in others if p.ndim >= 2 and "embedding" in name]
    matrices = [p for name, p in others if p.ndim >= 2 and "embedding" not in name]
    vectors = [p for name, p in others if p.ndim < 2]
    rest = [{"params": positions, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    out: list[torch.optim.Optimizer] = [Muon([{"params": matrices, "share": 1.0}], lr=lr, weight_decay=weight_decay)]
    if words:
        out.append(torch.optim.SparseAdam([{"params": words, "share": 0.25}], lr=lr, betas=betas))
    out.append(torch.optim.AdamW([group | {"share": 0.25} for group in rest], lr=lr, betas=betas, fused=True))
    return out


def _adamw(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] | None
) -> list[torch.optim.Optimizer]:
    """Return AdamW as the RoCLIP, SafeCLIP and CleanCLIP codes have it: eps 1e-8, and no decay of norms and biases.

    These codes find norms and biases by ``bn``, ``ln``, ``bias`` or ``logit_scale`` in a parameter's name. Here they
    are the parameters with fewer than two axes. In RN50 these are the same, and the norms of the shortcuts besides.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": decayed, "share": 1.0, "weight_decay": weight_decay},
        {"params": rest, "share": 1.0, "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, lr=lr, betas=betas or (0.9, 0.999), fused=True)]


KINDS = {"muon": _muon, "adamw": _adamw}


WARM = 0.05  # of the training is the warm-up of the learning rate


def one_cycle(progress: float, warm: float = WARM) -> float:
    """Return the share of the peak learning rate: linear warm-up over the first ``warm``, then half a cosine to zero.

    ``progress`` : share of the training that is over, in [0, 1].
    """
    if progress < warm or warm >= 1:  # in a run that is shorter than its warm-up the rate only rises
        return min(1.0, (progress + 1e-3) / (warm + 1e-3))
    return 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))
