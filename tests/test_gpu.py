"""The same promises on a CUDA device: `make test-gpu`."""

import pytest
import torch

import workbench as wb
from workbench.core.delta import applied
from workbench.core.numerics import mean_nll
from workbench.core.records import Provenance
from workbench.core.scores import Scores
from workbench.core.topk import choose
from workbench.load.batches import collate, encode_all
from workbench.trace.forward import forward

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["float32", "bfloat16"])
def model(request, root):
    return wb.load(root / "data/organism/full", device="cuda", dtype=request.param)


def bits(model):
    return {n: p.detach().clone() for n, p in model.hf.named_parameters()}


def test_the_gpu_says_what_the_cpu_says(root, forget):
    values = []
    for device in ("cpu", "cuda"):
        model = wb.load(root / "data/organism/full", device=device, dtype="float32")
        with torch.no_grad():
            values.append(mean_nll(forward(model, collate(encode_all(model, forget), device=model.device))).cpu())
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4)  # other kernels sum in another order


def test_scores_and_masks(model, forget, retain):
    scores = wb.attribute.wagle(model, forget, retain)
    assert scores.mask(0.1).count == round(0.1 * scores.n_weights)


def test_all_scores_say_what_the_cpu_says(root, forget, retain):
    """Per-example squares, input norms and the products in by_module on the device, in one shared pass."""
    methods = {"wagle": {"gamma": 1.0}, "fisher_ratio": {}, "forget_retain_cosine": {}, "wanda": {}}
    found = []
    for device in ("cpu", "cuda"):
        model = wb.load(root / "data/organism/full", device=device, dtype="float32")
        found.append(wb.attribute.several(model, forget, retain, methods))
    for name in methods:
        here, there = (torch.cat([scores[name][n].flatten() for n in scores[name]]) for scores in found)
        assert float((here - there).norm() / here.norm()) < 1e-2, name  # other kernels sum in another order


def test_a_choice_on_the_device_is_that_on_the_cpu():
    """Equal scores everywhere among others: ties must break by position on every device."""
    source = torch.Generator().manual_seed(0)
    here = {"a": torch.randint(0, 50, (300, 70), generator=source).float(), "b": torch.randn(999, generator=source)}
    there = {name: scores.cuda() for name, scores in here.items()}
    for k in (1, 5000, 20000):
        one, other = choose(here, k), choose(there, k)
        assert all(torch.equal(one[name], other[name].cpu()) for name in here)
    for scope in ("row", "2:4"):
        fraction = None if ":" in scope else 0.3
        masks = [Scores(scores, Provenance("test", "m")).mask(fraction, scope=scope) for scores in (here, there)]
        assert masks[0] == masks[1]


def test_patching_says_what_the_cpu_says(root):
    found = []
    for device in ("cpu", "cuda"):
        model = wb.load(root / "data/organism/full", device=device, dtype="float32")
        pairs = wb.contrasts(root / "data/circuits/authors.jsonl")
        found.append(wb.attribute.attribution_patching(model, pairs, kind="head", verify=4).values)
    assert abs(found[0] - found[1]).max() < 1e-2 * abs(found[0]).max()


def test_frozen_weights_keep_their_bits_and_the_model_comes_back(model, forget, retain):
    before = bits(model)
    mask = wb.attribute.saliency(model, forget, retain).mask(0.1)
    run = wb.unlearn.run(model, forget, retain, objective="npo", mask=mask, epochs=2, lr=1e-3, weight_decay=0.1)
    assert all(torch.equal(p, before[n]) for n, p in model.hf.named_parameters())
    with applied(model, run.delta):
        for n, p in model.hf.named_parameters():
            frozen = ~mask[n].to(p.device)
            assert torch.equal(p[frozen], before[n][frozen])
        assert run.moved > 0
    assert all(torch.equal(p, before[n]) for n, p in model.hf.named_parameters())


def test_dampening_and_the_token_table(model, forget, retain):
    delta = wb.edit.dampen(model, forget, retain, alpha=2.0)
    with applied(model, delta):
        table = wb.evaluate.tokens(model, forget, generate=8)
    assert table.frame()["logprob"].lt(0).all()
