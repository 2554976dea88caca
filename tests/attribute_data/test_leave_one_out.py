"""Influence is leaving a row out: EK-FAC of the unembedding against refitting ridge softmax regression to its optimum.

The states before the answers' tokens are fixed features, W_U is fitted to them with an L2 penalty until the gradient is zero, and
the exact change of each query's loss without each row is what influence promises.
"""

import itertools
import sys

import numpy as np
import pytest
import torch

from tests.attribute_data.plain import plain
from tests.reference import leave_one_out as slow
from tests.tiny import WORDS, tiny
from workbench.attribute.data.ekfac import ekfac
from workbench.attribute.data.kron_task import Drawn
from workbench.core.records import Example, Examples
from workbench.core.statistics import spearman

N, PENALTY = 48, 0.03


def drawn_rows(name, n, seed):
    """Random prompts of 3 to 6 words, answered with one or two colors or a no."""
    g = np.random.default_rng(seed)
    pairs = [(g.choice(WORDS[2:], g.integers(3, 7)), g.choice(["blue", "green", "no"], g.integers(1, 3))) for _ in range(n)]
    return Examples([Example(f"{name}{i}", " ".join(p), " ".join(r)) for i, (p, r) in enumerate(pairs)], name)


@torch.no_grad()
def features(model, rows):
    """(states before the answer's tokens, those tokens) of every row."""
    found = []
    for tokens, start in plain(model, rows):
        states = model.hf.model(torch.tensor([tokens])).last_hidden_state[0, start - 1 : -1]
        found.append((states.numpy(), np.array(tokens[start:])))
    return found


def with_unembedding(weights):
    """The tiny model with this W_U, which is not tied to the embedding."""
    model = tiny()
    assert model.hf.lm_head.weight is not model.hf.model.embed_tokens.weight
    with torch.no_grad():
        model.hf.lm_head.weight.copy_(torch.as_tensor(weights))
    return model


def of_unembedding(model, query, train, **options):
    """EK-FAC of the one map, divided by the number of rows: what leaving a row out changes."""
    return ekfac(model, query, train, modules=["lm_head"], least_coverage=0.0, **options).values / len(train)


def error_of_first_order(rows, queries, penalty):
    """Largest difference of the influence function from leaving out, as a share of the largest change."""
    exact = slow.leave_one_out(rows, queries, len(WORDS), penalty)
    first = slow.influence(slow.fit(rows, len(WORDS), penalty), rows, queries, penalty)
    return float(np.abs(first - exact).max() / np.abs(exact).max())


@pytest.fixture(scope="module")
def fitted():
    """Training rows, queries, the model at the optimum, and the exact changes [query train]."""
    train, query = drawn_rows("train", N, 0), drawn_rows("query", 6, 1)
    model = tiny()
    rows, queries = features(model, train), features(model, query)
    weights = slow.fit(rows, len(WORDS), PENALTY)
    return train, query, with_unembedding(weights), slow.leave_one_out(rows, queries, len(WORDS), PENALTY)


def test_the_slow_gradient_and_curvature_are_autograd_s():
    rows = features(tiny(), drawn_rows("train", 3, 2))
    w = torch.from_numpy(np.random.default_rng(0).normal(size=(len(WORDS), 8)))

    def loss(flat):
        each = [torch.nn.functional.cross_entropy(torch.from_numpy(x) @ flat.view_as(w).T, torch.from_numpy(y)) for x, y in rows]
        return torch.stack(each).mean()

    gradient = torch.autograd.functional.jacobian(loss, w.flatten())
    np.testing.assert_allclose(slow.gradients(w.numpy(), rows).mean(0), gradient, rtol=1e-10, atol=1e-14)  # float64
    curved = torch.autograd.functional.hessian(loss, w.flatten())
    np.testing.assert_allclose(slow.hessian(w.numpy(), rows), curved, rtol=1e-9, atol=1e-12)


def test_two_labels_by_hand():
    """A row x = 1, y = 0 and one without features, penalty 1/4. By symmetry W = (w, -w); with p = 1 / (1 + e^-2w) the slope
    -(1 - p)/2 + w/4 is zero at w = 2 (1 - p). Without the first row W = 0 and its loss ln 2; the other row pulls on nothing."""
    one = (np.ones((1, 1)), np.zeros(1, dtype=int))
    rows = [one, (np.zeros((1, 1)), np.zeros(1, dtype=int))]
    w = slow.fit(rows, 2, 0.25)[0, 0]
    p = 1 / (1 + np.exp(-2 * w))
    assert w == pytest.approx(2 * (1 - p), rel=1e-12)
    np.testing.assert_allclose(slow.leave_one_out(rows, [one], 2, 0.25), [[np.log(2) + np.log(p), 0.0]], rtol=1e-12, atol=1e-14)


def test_the_influence_function_is_the_first_order_of_leaving_out():
    """What is left is of second order in (H + penalty)^-1 g / n: it falls with n and with the penalty."""
    model = tiny()
    rows, queries = features(model, drawn_rows("train", 60, 0)), features(model, drawn_rows("query", 6, 1))
    by_n = [error_of_first_order(rows[:n], queries, 0.3) for n in (15, 30, 60)]
    by_penalty = [error_of_first_order(rows[:30], queries, penalty) for penalty in (1.0, 10.0, 100.0)]
    # measured 0.146, 0.080, 0.036 and 0.029, 0.0024, 0.00023: about 1/n, and 1/penalty once it outweighs H
    assert all(0.4 < after / before < 0.6 for before, after in itertools.pairwise(by_n)), by_n
    assert all(0.07 < after / before < 0.13 for before, after in itertools.pairwise(by_penalty)), by_penalty
    assert by_penalty[-1] < 1e-3


def test_ekfac_ranks_rows_as_leaving_them_out_does(fitted):
    """Measured: mean Spearman 0.922 (0.893 to 0.935 over six queries), of gradient dot products 0.825; signs agree in 97.9% of the
    rows that matter, of dot products in 92.3%; the slope is 1.00, and 1.52 or 0.34 with a damping ten times smaller or larger."""
    train, query, model, exact = fitted
    found = of_unembedding(model, query, train, damping=PENALTY)
    dots = of_unembedding(model, query, train, strategy="identity")
    agreed = spearman(found, exact)
    assert agreed.mean() > 0.88
    assert agreed.min() > 0.8
    assert agreed.mean() > spearman(dots, exact).mean() + 0.05
    matters = np.abs(exact) > 0.1 * np.abs(exact).max(1, keepdims=True)
    assert (np.sign(found) == np.sign(exact))[matters].mean() > 0.95  # a row whose removal raises the loss is above zero
    assert 0.8 < (found * exact).sum() / (exact**2).sum() < 1.2


def reads_its_last_word():
    """W_U = 0 and layers that add nothing: the state is the word's direction, one of eight at right angles or its opposite, so the
    states of prompts, which kronfluence's A counts too, share the eigenvectors of the states before answers."""
    model = with_unembedding(np.zeros((len(WORDS), 8)))
    axes = np.linalg.qr(np.random.default_rng(5).normal(size=(8, 8)))[0]
    with torch.no_grad():
        for name, p in model.hf.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                p.zero_()
        model.hf.model.norm.weight.fill_(1.0)
        model.hf.model.embed_tokens.weight.copy_(torch.from_numpy(np.concatenate([axes, -axes])))
    model.tokenizer.eos_token = None  # answers of a single token: no end
    return model


def test_where_the_curvature_is_a_product_ekfac_is_one_newton_step(exact_norms, monkeypatch):
    """At W_U = 0 every label has the same probability after every prompt, so the Hessian is S kron A and EK-FAC leaves nothing out.
    Each prompt stands there once for every label, and the labels that are drawn for it go through all of them once: then the mean
    over draws is the mean over labels, the true Fisher information. One Newton step from there changes without row i by
    (H + damping)^-1 g_i / n."""

    class Once(Drawn):
        def __init__(self, rows, seed, draws=1):
            super().__init__(rows, seed, draws)
            self.draws = [torch.tensor([(i % len(WORDS) + 0.5) / len(WORDS)], dtype=torch.float64) for i in range(len(rows))]

    monkeypatch.setattr(sys.modules["workbench.attribute.data.ekfac"], "Drawn", Once)  # a path would find the function
    model, at, damping = reads_its_last_word(), np.zeros((len(WORDS), 8)), 1e-2
    g = np.random.default_rng(4)
    pairs = [(row.prompt, answer) for row in drawn_rows("train", 12, 3) for answer in g.choice(WORDS[2:], len(WORDS))]
    train = Examples([Example(f"t{i}", prompt, answer) for i, (prompt, answer) in enumerate(pairs)], "train")
    query = Examples([Example(f"q{i}", f"what is {word}", "blue") for i, word in enumerate(WORDS[2:10])], "query")
    rows, queries = features(model, train), features(model, query)
    assert {len(y) for _, y in rows + queries} == {1}
    expected = slow.influence(at, rows, queries, damping)
    found = of_unembedding(model, query, train, damping=damping)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())  # float64, three rotations
    slope = slow.gradients(at, rows)
    curved = slow.hessian(at, rows) + damping * np.eye(at.size)
    steps = [-np.linalg.solve(curved, (slope.sum(0) - left_out) / len(rows)) for left_out in (0, *slope[:3])]
    change = slow.gradients(at, queries) @ np.stack([step - steps[0] for step in steps[1:]], 1)  # of the loss, to first order
    np.testing.assert_allclose(found[:, :3], change, rtol=1e-6, atol=1e-9 * np.abs(expected).max())
