"""Muon, the schedule, and fp32 or bf16."""

import pytest
import torch
from timm.optim.muon import zeropower_via_newtonschulz

import otclib
from otclib import optim
from otclib.training import precision


@pytest.mark.parametrize("shape", [(24, 27), (96, 864), (128, 96), (64, 64)])
def test_orthogonalize_is_the_iteration_of_muon(shape):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = zeropower_via_newtonschulz(g, 5, [optim.NEWTON_SCHULZ], dtype=torch.float64).float()
    assert torch.allclose(optim.orthogonalize(g), expected, atol=2e-4)


def test_orthogonalize_brings_singular_values_near_one():
    g = torch.randn(40, 90, generator=torch.Generator().manual_seed(1))
    s = torch.linalg.svdvals(optim.orthogonalize(g))
    assert 0.6 < s.min() and s.max() < 1.3
    assert torch.isfinite(optim.orthogonalize(torch.zeros(3, 5))).all()


def test_muon_does_not_care_how_a_convolution_lies_in_memory():
    torch.manual_seed(0)
    weight, grad = torch.randn(8, 6, 3, 3), torch.randn(8, 6, 3, 3)
    out = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = torch.nn.Parameter(weight.clone().to(memory_format=layout))
        p.grad = grad.clone().to(memory_format=layout)
        optim.Muon([p], lr=0.1, weight_decay=0.1).step()
        out.append(p.detach())
    assert torch.allclose(*out, atol=1e-5)
    update = grad.flatten(1) * (1 - 0.95 * 0.95)  # nesterov: of a first step a multiple of the gradient
    expected = 0.99 * weight.flatten(1) - 0.1 * 0.2 * 54**0.5 * optim.orthogonalize(update)
    assert torch.allclose(out[0].flatten(1), expected, atol=1e-4)


def test_only_words_of_the_batch_are_touched(small):
    model, _, tokenizer = small
    optimizers = optim.optimizers(model, 1e-2, 0.1)
    before = model.token_embedding.weight.detach().clone()
    otclib.models.encode_text(model, tokenizer(["a red star"])).pooled.sum().backward()
    for opt in optimizers:
        opt.step()
        opt.zero_grad()
    moved = (model.token_embedding.weight != before).any(1).nonzero()[:, 0].tolist()
    assert moved and set(moved) <= set(tokenizer(["a red star"])[0].tolist())
    model.load_state_dict({**model.state_dict(), "token_embedding.weight": before})


def test_auto_takes_bf16_only_where_it_is_faster(small, monkeypatch):
    for seconds, expected in (({"fp32": 1.0, "bf16": 0.5}, "bf16"), ({"fp32": 1.0, "bf16": 0.95}, "fp32")):
        monkeypatch.setattr(precision, "measure", lambda model, s=seconds: s)
        chosen, said = precision.choose("auto", small[0])
        assert chosen == expected and f"precision {expected}" in said and "1000 ms in fp32" in said
    assert precision.choose("bf16", small[0]) == ("bf16", None)
    with pytest.raises(ValueError, match="got 'fp8'"):
        precision.choose("fp8", small[0])


def test_measuring_leaves_the_model_alone(small):
    before = {k: v.clone() for k, v in small[0].state_dict().items()}
    seconds = precision.measure(small[0], batch_size=2, repeats=1)
    assert set(seconds) == {"fp32", "bf16"} and min(seconds.values()) > 0
    assert all(torch.equal(v, before[k]) for k, v in small[0].state_dict().items())


def test_adamw_is_that_of_the_published_codes(loaded):
    """Its groups are those that names make there, and its step is torch's."""
    model = loaded[0]
    (adamw,) = optim.optimizers(model, 1e-3, 0.1, "adamw")
    assert {g["betas"] for g in adamw.param_groups} == {(0.9, 0.999)} and {g["eps"] for g in adamw.param_groups} == {
        1e-8
    }
    rn50 = otclib.models.load("RN50", random=True)[0]
    decayed, rest = (g["params"] for g in optim.optimizers(rn50, 1e-3, 0.1, "adamw")[0].param_groups)
    excluded = {id(p) for p in rest}
    by_name = {
        name for name, _ in rn50.named_parameters() if any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
    }
    named = {name for name, p in rn50.named_parameters() if id(p) in excluded}
    # the norms of the shortcuts are called downsample.1 there, so the published codes decay these alone
    assert by_name <= named and all(".downsample.1.weight" in name for name in named - by_name)
    assert len(decayed) + len(rest) == len(list(rn50.parameters()))


def test_unknown_optimizers_and_betas_are_refused(small):
    with pytest.raises(ValueError, match="optimizer is one of muon, adamw, got 'sgd'"):
        optim.optimizers(small[0], 1e-3, 0.1, "sgd")
    with pytest.raises(ValueError, match=r"betas are two numbers in \[0, 1\), got \(0.9, 1.0\)"):
        optim.optimizers(small[0], 1e-3, 0.1, "adamw", (0.9, 1.0))
