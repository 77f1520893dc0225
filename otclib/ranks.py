"""Several processes that train one model, as ``torchrun`` or ``accelerate launch`` start them.

Every process holds the whole table, draws the same random numbers, and so knows the whole batch. It encodes a part of
it: every ``count``-th pair. ``gather`` puts the parts together, with gradients, and then every process computes the
loss of the whole batch. A defence therefore sees the same features in one process and in eight.

    loss L(f_1 .. f_B),  process r holds f_r, f_(r + count), ...
    gather passes  count * dL/df  back to these, the mean of the processes' gradients is  dL/dw

Nothing here needs more than one process; with one every function returns what it was given.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from otclib import processes

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # that processes wait for the first one, which alone measures after every epoch
KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass(frozen=True)
class Ranks:
    """This process's number among ``count`` processes."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes, prints and evaluates."""
        return self.rank == 0

    def own(self, items: T) -> T:
        """Return every ``count``-th of the items, beginning with this process's number: its part of a batch.

        >>> Ranks(1, 3).own([10, 11, 12, 13, 14])
        [11, 14]
        """
        return items[self.rank :: self.count] if self.count > 1 else items  # type: ignore[index]

    def gather(self, part: Tensor, n: int | None = None) -> Tensor:
        """Return the n rows of which every process holds its own part, in their order and with their gradients.

        Default of ``n``: all processes hold equally many.
        """
        if self.count == 1:
            return part
        return _Gather.apply(part, len(part) * self.count if n is None else n, self)

    def sum(self, value: float) -> float:
        """Return the sum of the processes' values."""
        return float(self.all_reduce(torch.tensor(value, dtype=torch.float64))) if self.count > 1 else value

    def all_reduce(self, value: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Return a tensor's sum over the processes (or another reduction), computed in place."""
        if self.count > 1:
            moved = value.to(_device())
            dist.all_reduce(moved, op)
            value.copy_(moved)
        return value

    def same(self, value: T) -> T:
        """Return the first process's value in every process; any value that can be pickled."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


ALONE = Ranks()


class _Gather(torch.autograd.Function):
    """Rows r, r + count, ... of every process r put together; the gradient of the own rows, ``count`` times."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, n: int, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        longest = -(-n // ranks.count)
        sent = part.detach().to(torch.uint8 if part.dtype == torch.bool else part.dtype).contiguous()
        if len(sent) < longest:  # what is added comes last in the interleaved order, and is cut off
            sent = torch.cat([sent, sent.new_zeros(longest - len(sent), *sent.shape[1:])])
        received = [torch.empty_like(sent) for _ in range(ranks.count)]
        dist.all_gather(received, sent)
        return torch.stack(received, 1).flatten(0, 1)[:n].to(part.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return ctx.ranks.own(grad) * ctx.ranks.count, None, None


def join() -> tuple[Accelerator, Ranks]:
    """Return accelerate's ``Accelerator`` for this process, on its device, and its ``Ranks``.

    Raises
    ------
    ValueError : the launcher started fewer processes than it was asked for.
    NotImplementedError : a launcher's configuration asks for gradient accumulation, or for sharded weights.
    """
    if _too_few():
        raise ValueError(
            "accelerate launch was asked for several processes and started one, because it found no second GPU: add "
            "--multi_gpu, which starts them on the CPU, too, or use torchrun --nproc_per_node N"
        )
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    cpu = True if several and not torch.cuda.is_available() else None  # else accelerate takes them for single ones
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    if several:
        processes.end_with_launcher()  # from here on it may wait for the others
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[patience])
    if several:
        atexit.register(_leave)  # without it gloo's threads may outlive what they use
    if accelerator.gradient_accumulation_steps != 1:
        raise NotImplementedError(
            f"gradient accumulation over {accelerator.gradient_accumulation_steps} steps was asked for: the loss "
            "compares all pairs of a batch, and the mean over its parts is another loss; launch more processes instead"
        )
    if accelerator.distributed_type not in KNOWN:
        raise NotImplementedError(
            f"{accelerator.distributed_type} was asked for: every process holds the whole model here, which all of "
            "open_clip's towers up to ViT-H allow; launch with MULTI_GPU or MULTI_CPU"
        )
    return accelerator, Ranks(accelerator.process_index, accelerator.num_processes)


def as_many_as_asked(module: str) -> None:
    """Replace this process by as many as ``accelerate launch`` was asked for, where it started only one of them.

    On a machine without a second GPU it starts one, unless ``--multi_gpu`` is given as well. Called by the modules that
    are launched, before anything else; ``module`` is this module's name.
    """
    if not _too_few():
        return
    words = psutil.Process(os.getppid()).cmdline()
    given = [words[k + 1] for k, word in enumerate(words[:-1]) if word == "--num_processes"]
    given += [word.partition("=")[2] for word in words if word.startswith("--num_processes=")]
    if given and given[0].isdecimal():
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", given[0], "-m", module]
        os.execve(sys.executable, [sys.executable, *torchrun, *sys.argv[1:]], environment)


def _too_few() -> bool:
    """Return whether accelerate was asked for several processes and started one."""
    return {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= set(os.environ) and "WORLD_SIZE" not in os.environ


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _device() -> torch.device:
    """Return where the process group's tensors must lie."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def share_weights(model: nn.Module, ranks: Ranks) -> None:
    """Give every process the first one's weights and buffers."""
    if ranks.count > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)


def average_gradients(optimizers: list[torch.optim.Optimizer], ranks: Ranks) -> Callable[[], None]:
    """Make every backward pass average its gradients over the processes; call what is returned before using them.

    A gradient is sent as soon as it is complete, while the pass goes on. A parameter without a gradient keeps none.
    """
    under_way: list[tuple[Any, Tensor]] = []
    if ranks.count == 1:
        return lambda: None

    def send(parameter: Tensor) -> None:
        grad = parameter.grad
        assert grad is not None
        if grad.is_sparse:
            parameter.grad = _average_sparse(grad, ranks)
            return
        grad.div_(ranks.count)
        under_way.append((dist.all_reduce(grad, async_op=True), grad))

    def wait() -> None:
        while under_way:
            under_way.pop()[0].wait()

    for parameter in (p for opt in optimizers for group in opt.param_groups for p in group["params"]):
        parameter.register_post_accumulate_grad_hook(send)
    return wait


def _average_sparse(grad: Tensor, ranks: Ranks) -> Tensor:
    """Return the mean of the processes' sparse gradients, each with its own rows."""
    grad = grad.coalesce()
    counts = [torch.zeros(1, dtype=torch.long, device=grad.device) for _ in range(ranks.count)]
    dist.all_gather(counts, torch.tensor([grad._nnz()], device=grad.device))
    most = int(torch.stack(counts).max())
    missing = most - grad._nnz()
    rows = torch.cat([grad.indices()[0], grad.indices().new_zeros(missing)])
    values = torch.cat([grad.values(), grad.values().new_zeros(missing, *grad.values().shape[1:])])
    all_rows = [torch.empty_like(rows) for _ in range(ranks.count)]
    all_values = [torch.empty_like(values) for _ in range(ranks.count)]
    dist.all_gather(all_rows, rows)
    dist.all_gather(all_values, values)
    kept = [slice(0, int(count)) for count in counts]
    rows = torch.cat([r[some] for r, some in zip(all_rows, kept)])
    values = torch.cat([v[some] for v, some in zip(all_values, kept)]) / ranks.count
    # unless it is said here, PyTorch warns that it does not check them
    return torch.sparse_coo_tensor(rows[None], values, grad.shape, check_invariants=False).coalesce()


def share_batch_norm(model: nn.Module, ranks: Ranks) -> None:
    """Make every batch norm of a model take its mean and variance over the batches of all processes.

    PyTorch's ``SyncBatchNorm`` does this on GPUs only; this does it on any device, in the same way, so that a model
    keeps the classes and names of its modules. timm's ``BatchNormAct2d`` keeps its activation.
    """
    if ranks.count > 1:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.forward = _Shared(module, ranks)  # type: ignore[assignment]


class _Shared:
    """The forward pass of a batch norm over several processes; in evaluation its own."""

    def __init__(self, module: _BatchNorm, ranks: Ranks):
        self.module, self.ranks, self.alone = module, ranks, module.forward

    def __call__(self, x: Tensor) -> Tensor:
        m = self.module
        if not m.training:
            return self.alone(x)
        axes = [0, *range(2, x.ndim)]
        each = self.ranks.gather(torch.stack(torch.var_mean(x.detach().float(), axes, correction=0))[None])
        var, mean = each[:, 0].mean(0) + each[:, 1].var(0, correction=0), each[:, 1].mean(0)
        if m.running_mean is not None and m.running_var is not None and m.num_batches_tracked is not None:
            n = self.ranks.count * x.numel() / x.shape[1]
            m.num_batches_tracked.add_(1)
            share = m.momentum if m.momentum is not None else 1 / float(m.num_batches_tracked)
            m.running_mean.lerp_(mean, share)
            m.running_var.lerp_(var * n / (n - 1), share)
        out = _Normalized.apply(x, m.weight, m.bias, mean, (var + m.eps).rsqrt(), self.ranks)
        for after in ("drop", "act"):
            if hasattr(m, after):
                out = getattr(m, after)(out)
        return out


class _Normalized(torch.autograd.Function):
    """x_hat = (x - mean) / std, then the affine map; with n values of a channel over all processes

    dL/dx = w / std (g - mean(g) - x_hat mean(g x_hat)),   g = dL/dy
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, over_std: Tensor, ranks: Ranks
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, over_std)
        ctx.ranks = ranks
        scale = over_std if weight is None else over_std * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        shape = [1, -1, *[1] * (x.ndim - 2)]
        return torch.addcmul(shift.view(shape), x.float(), scale.view(shape)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight, mean, over_std = ctx.saved_tensors
        shape, axes = [1, -1, *[1] * (x.ndim - 2)], [0, *range(2, x.ndim)]
        g, x_hat = grad.float(), (x.float() - mean.view(shape)) * over_std.view(shape)
        own = torch.stack([g.sum(axes), (g * x_hat).sum(axes)])
        n = ctx.ranks.count * x.numel() / x.shape[1]
        of_g, of_product = ctx.ranks.all_reduce(own.clone()) / n
        scale = over_std if weight is None else over_std * weight
        dx = (g - of_g.view(shape) - x_hat * of_product.view(shape)) * scale.view(shape)
        affine = (None, None) if weight is None else (own[1], own[0])
        return dx.to(x.dtype), *affine, None, None, None
