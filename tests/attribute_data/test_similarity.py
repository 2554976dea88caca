"""Gradient similarity against one autograd pass a row; checkpoints, Adam's moments, and the sign, by training."""

import numpy as np
import pytest
import torch

from tests.attribute_data.plain import examples, plain
from tests.reference import attribution as truth
from tests.reference import influence as slow
from tests.tiny import tiny, tiny_sets
from workbench import Delta
from workbench.attribute.data import gradient_similarity, similarity
from workbench.core.delta import applied
from workbench.core.errors import InputError, MismatchError, NumericsError, ShapeError
from workbench.core.records import Provenance
from workbench.load.batches import encode_all
from workbench.train.loop import Checkpoint, Moments, fit
from workbench.train.task import AnswerTask


def gradients(model, rows):
    return truth.example_gradients(model.hf, plain(model, rows))


def inner(a, b):
    return sum(float((a[name] * b[name]).sum()) for name in a)


def checkpoint(model, seed, lr):
    source = torch.Generator().manual_seed(seed)
    moved = {name: 0.1 * torch.randn(p.shape, generator=source) for name, p in model.hf.named_parameters()}
    return Checkpoint(Delta.of(moved, Provenance("train", model.fingerprint())), lr)


def moments(model, *, seed=0):
    source = torch.Generator().manual_seed(seed)
    shapes = model.shapes()
    first = {name: 0.1 * torch.randn(shape, generator=source) for name, shape in shapes.items()}
    return Moments(first, {name: 0.01 * torch.rand(shape, generator=source) for name, shape in shapes.items()}, 7)


@pytest.mark.parametrize("kind", ["cosine", "dot"])
@pytest.mark.parametrize("query_block", [None, 2])
def test_against_a_loop(kind, query_block, exact_norms):
    model, (query, train) = tiny(), tiny_sets()
    found = gradient_similarity(model, query, train, kind=kind, query_block=query_block).values
    product = slow.cosine if kind == "cosine" else inner
    expected = [[product(q, g) for g in gradients(model, train)] for q in gradients(model, query)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_float32_is_close():
    query, train = tiny_sets()
    one = gradient_similarity(tiny(torch.float32), query, train).values
    exact = tiny()
    exact.hf.load_state_dict({name: value.double() for name, value in tiny(torch.float32).hf.state_dict().items()})
    # cosines of at most 1 from 2,000 float32 products each; measured 2e-7
    np.testing.assert_allclose(one, gradient_similarity(exact, query, train).values, atol=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "dot"])
def test_checkpoints(kind, exact_norms):
    """TracIn adds lr_k <g_q, g_i>; LESS weights cosines by lr_k / sum lr. Here lr = 0.3, 0.1: shares 3/4 and 1/4."""
    model, (query, train) = tiny(), tiny_sets()
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    steps = [checkpoint(model, 1, 0.3), checkpoint(model, 2, 0.1)]
    found = gradient_similarity(model, query, train, kind=kind, checkpoints=steps).values
    assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())
    product = slow.cosine if kind == "cosine" else inner
    expected = 0
    for step, weight in zip(steps, (0.75, 0.25) if kind == "cosine" else (0.3, 0.1), strict=True):
        with applied(model, step.delta):
            expected += weight * np.array([[product(q, g) for g in gradients(model, train)] for q in gradients(model, query)])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "dot"])
def test_adam_moments(kind, exact_norms, monkeypatch):
    monkeypatch.setattr(similarity, "_fitting", lambda *a: 2)  # training rows and queries in blocks of two
    model, (query, train) = tiny(), tiny_sets()
    adam = moments(model)
    found = gradient_similarity(model, query, train, kind=kind, moments=adam).values
    turned = [
        {name: slow.adam_direction(g, adam.first[name], adam.second[name]) for name, g in one.items()}
        for one in gradients(model, train)
    ]
    product = slow.cosine if kind == "cosine" else inner
    expected = [[product(q, g) for g in turned] for q in gradients(model, query)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_gamma_by_hand():
    """g = 2, m = 1, v = 4, b1 = 0.5, b2 = 0.75, eps = 5: m' = 1.5, v' = 3 + 1 = 4, gamma = 1.5 / sqrt(4 + 5) = 0.5."""
    found = similarity.adam_direction(torch.tensor([[2.0]]), torch.tensor([1.0]), torch.tensor([4.0]), betas=(0.5, 0.75), eps=5.0)
    assert found.tolist() == [[0.5]]


def test_a_step_on_the_top_proponent_lowers_the_loss_most():
    """One small step of plain gradient descent on each row: the change of the query's loss is -lr times the dot product."""
    model, (query, train) = tiny(), tiny_sets()
    planted = examples("train", *[(row.prompt, row.response) for row in (*train, query[1])])
    found = gradient_similarity(model, query, planted, kind="dot").values[1]
    assert int(found.argmax()) == len(planted) - 1  # the query itself
    [asked] = plain(model, query[1:2])
    before = float(truth.row_loss(model.hf, asked).detach())
    changes = []
    for gradient in gradients(model, planted):
        with torch.no_grad():
            for name, p in model.hf.named_parameters():
                p.sub_(1e-4 * gradient[name])
            changes.append(float(truth.row_loss(model.hf, asked)) - before)
            for name, p in model.hf.named_parameters():
                p.add_(1e-4 * gradient[name])
    assert changes[-1] < 0
    assert int(np.argmin(changes)) == int(found.argmax())
    np.testing.assert_allclose(
        np.array(changes) / -1e-4, found, rtol=2e-2, atol=2e-2
    )  # float32 norms: 1e-7 / 1e-4, and the curvature


def test_a_linear_model_where_the_inverse_hessian_is_known():
    """g_q' H^-1 g_i has the sign and, corrected for leverage, the size of leaving a row out: the sign of every influence here.

    A row that is left out raises the query's loss by g_q' H^-1 g_i / (1 - h_i) to first order, so a proponent is positive.
    """
    source = torch.Generator().manual_seed(0)
    x, query = torch.randn(60, 3, generator=source).double(), torch.randn(3, generator=source).double()
    y = x @ torch.tensor([1.0, -2.0, 0.5]).double() + torch.randn(60, generator=source).double()
    values, exact = slow.ridge_influence(x, y, query, torch.tensor(9.0).double(), penalty=1.0)  # a far target: first order rules
    hessian = x.T @ x + torch.eye(3).double()
    leverage = (x * torch.linalg.solve(hessian, x.T).T).sum(1)
    torch.testing.assert_close(values / (1 - leverage), exact, rtol=0.02, atol=1e-3)  # second order: (x_q dw)^2 / 2
    assert float(torch.corrcoef(torch.stack([values, exact]))[0, 1]) > 0.99


def test_parameters_that_are_asked_for(exact_norms):
    model, (query, train) = tiny(), tiny_sets()
    names = ["lm_head.weight", "model.norm.weight"]
    found = gradient_similarity(model, query, train, names=names).values
    part = [[{name: one[name] for name in names} for one in gradients(model, rows)] for rows in (query, train)]
    np.testing.assert_allclose(found, [[slow.cosine(q, g) for g in part[1]] for q in part[0]], rtol=1e-9)
    adam = moments(model)
    some = Moments(*({name: value for name, value in one.items() if name in names} for one in adam[:2]), 7)
    assert np.array_equal(
        gradient_similarity(model, query, train, moments=some).values,
        gradient_similarity(model, query, train, moments=adam, names=names).values,
    )


def test_what_is_refused():
    model, (query, train) = tiny(), tiny_sets()
    adam = moments(model)
    other = Checkpoint(Delta({}, Provenance("train", "another")), 0.1)
    with pytest.raises(InputError, match="checkpoints is empty"):
        gradient_similarity(model, query, train, checkpoints=[])
    with pytest.raises(InputError, match=r"rates are \[0.0\]"):
        gradient_similarity(model, query, train, checkpoints=[checkpoint(model, 0, 0.0)])
    with pytest.raises(MismatchError, match="a checkpoint is a change of another model"):
        gradient_similarity(model, query, train, checkpoints=[other])
    step = checkpoint(model, 0, 0.1)
    with applied(model, step.delta), pytest.raises(MismatchError, match="as it was before training"):
        gradient_similarity(model, query, train, checkpoints=[step])
    with pytest.raises(InputError, match="query_block is 0"):
        gradient_similarity(model, query, train, query_block=0)
    with pytest.raises(InputError, match=r"no moments of lm_head.weight; was the training masked"):
        gradient_similarity(model, query, train, moments=Moments({}, {}, 0), names=["lm_head.weight"])
    adam.first["lm_head.weight"] = torch.zeros(2, 2)
    with pytest.raises(ShapeError, match=r"moments of lm_head.weight are \(2, 2\)"):
        gradient_similarity(model, query, train, moments=adam)
    with pytest.raises(NumericsError, match="the gradient of row 'f0' is zero"):
        gradient_similarity(silent(), query, train)


def silent():
    """A model that unembeds nothing: every distribution is uniform, and only the unembedding has a gradient."""
    model = tiny()
    with torch.no_grad():
        model.hf.lm_head.weight.zero_()
        model.hf.model.norm.weight.zero_()
    return model


def test_what_training_leaves_behind():
    """Snapshots and moments of `train.fit` go in as they come out; LESS weights the epochs by their mean rates."""
    model, (query, train) = tiny(), tiny_sets()
    about = Provenance("tune", model.fingerprint())
    done = fit(
        model, AnswerTask(model, encode_all(model, train)), about, epochs=2, batch_size=4, lr=1e-2, snapshots=True, moments=True
    )
    found = gradient_similarity(model, query, train, checkpoints=done.checkpoints, moments=done.moments).values
    expected, total = 0.0, sum(one.lr for one in done.checkpoints)
    for one in done.checkpoints:
        with applied(model, one.delta):
            expected += one.lr / total * gradient_similarity(model, query, train, moments=done.moments).values
    np.testing.assert_allclose(found, expected, rtol=1e-12)
