"""EK-FAC through kronfluence: equal to a slow reference, on GPT-2's transposed maps too."""

import sys
from inspect import unwrap

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import ekfac as slow
from tests.tiny import tiny, tiny_sets
from workbench.attribute.data.ekfac import _linear_copy, ekfac
from workbench.attribute.data.kron_task import Drawn, labels
from workbench.core.delta import applied
from workbench.core.errors import InputError, MemoryPlanError, MissingPackageError
from workbench.core.numerics import generator
from workbench.core.records import Example, Examples
from workbench.load.batches import encode_all


@pytest.fixture(scope="module")
def model():
    """One layer: seven linear maps and the unembedding."""
    return tiny(n_layers=1)


@pytest.fixture(scope="module")
def sets():
    """Three queries and four training rows, of unequal length."""
    return tiny_sets()


def rows_of(model, examples):
    """(tokens, start) of every row."""
    return [(row.tokens, row.start) for row in encode_all(model, examples)]


def linear_names(hf):
    return [name for name, module in hf.named_modules() if isinstance(module, torch.nn.Linear)]


@pytest.mark.parametrize(
    ("strategy", "damping"), [("ekfac", None), ("ekfac", 1e-3), ("kfac", 1e-3), ("diagonal", None), ("identity", None)]
)
def test_equals_the_slow_one(model, sets, strategy, damping):
    query, train = sets
    draws = [d.tolist() for d in Drawn(encode_all(model, train), 3).draws]
    names = linear_names(model.hf)
    expected = slow.influence(
        model.hf, names, rows_of(model, query), rows_of(model, train), draws, strategy=strategy, damping=damping
    )
    found = ekfac(model, query, train, strategy=strategy, damping=damping, seed=3, batch_size=3)
    np.testing.assert_allclose(found.values, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())  # float64, three rotations
    assert (found.query, found.train) == (tuple(query.ids), tuple(train.ids))


def test_draws_are_from_the_model():
    """p = (1/2, 1/4, 1/4): numbers below 1/2 pick label 0, below 3/4 label 1, others label 2; often enough, as often as p says."""
    logprob = torch.tensor([0.5, 0.25, 0.25]).log()
    assert labels(logprob.expand(4, 3), torch.tensor([0.0, 0.49, 0.51, 0.99]).double()).tolist() == [0, 0, 1, 2]
    many = labels(logprob.expand(4000, 3), torch.rand(4000, generator=generator(0), dtype=torch.float64))
    share = torch.bincount(many, minlength=3) / 4000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.25, 0.25]), atol=0.03, rtol=0)  # standard error 0.008


def test_every_row_has_draws_of_its_own(model, sets):
    rows = encode_all(model, sets[1])
    first, again, other = (torch.cat(Drawn(rows, seed).draws) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert len({*first.tolist(), *other.tolist()}) == 2 * len(first) == 2 * sum(len(r.tokens) - r.start for r in rows)


@pytest.mark.parametrize("strategy", ["identity", "ekfac"])
def test_neither_batches_nor_padding_nor_order_matter(model, sets, strategy):
    query, train = sets
    one = ekfac(model, query, train, strategy=strategy, batch_size=1)
    many = ekfac(model, query, train, strategy=strategy, batch_size=7)
    np.testing.assert_allclose(one.values, many.values, rtol=1e-8, atol=1e-10 * np.abs(one.values).max())  # float64
    turned = ekfac(model, query[::-1], train[::-1], strategy=strategy)
    np.testing.assert_allclose(turned.values[::-1, ::-1], one.values, rtol=1e-8, atol=1e-10 * np.abs(one.values).max())


def test_several_draws(model, sets):
    """Equal to the slow one whose factors are fitted on every row twice, with the first draws and with the second."""
    query, train = sets
    rows = rows_of(model, train)
    drawn = Drawn(encode_all(model, train), 3, 2)
    assert torch.equal(torch.cat(drawn.draws[:4]), torch.cat(Drawn(encode_all(model, train), 3).draws))
    assert not set(torch.cat(drawn.draws[:4]).tolist()) & set(torch.cat(drawn.draws[4:]).tolist())
    numbers = [d.tolist() for d in drawn.draws]
    names = linear_names(model.hf)
    expected = slow.influence(model.hf, names, rows_of(model, query), rows * 2, numbers, strategy="ekfac", damping=1e-3)[:, :4]
    found = ekfac(model, query, train, damping=1e-3, seed=3, draws=2, batch_size=3)
    np.testing.assert_allclose(found.values, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())  # float64
    once = ekfac(model, query, train, damping=1e-3, seed=3).values
    assert np.abs(found.values - once).max() > 1e-3 * np.abs(once).max()


def test_draws_belong_to_the_row_not_to_its_place(model, sets):
    rows = encode_all(model, sets[1])
    turned = Drawn(rows[::-1], 5).draws[::-1]
    assert all(torch.equal(a, b) for a, b in zip(turned, Drawn(rows, 5).draws, strict=True))


def test_same_seed_same_bits(model, sets):
    before = torch.random.get_rng_state()
    first, again = (ekfac(model, *sets, seed=1).values for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert torch.equal(before, torch.random.get_rng_state())  # torch's own generator is where it was


def test_the_model_is_left_alone(sets):
    model = tiny(torch.float32, n_layers=1)
    before, modules = model.fingerprint(), [type(m) for m in model.hf.modules()]
    found = ekfac(model, *sets)
    assert model.fingerprint() == before
    assert [type(m) for m in model.hf.modules()] == modules
    assert all(p.requires_grad and p.grad is None for p in model.hf.parameters())
    assert found.provenance.dtype == "torch.float32"


def test_a_duplicate_of_the_query_is_the_top_proponent(model, sets):
    query, train = sets
    rows = Examples([*train, *(Example(f"copy-{row.id}", row.prompt, row.response) for row in query)], "train")
    found = ekfac(model, query, rows)
    for q, row in enumerate(query):
        assert found.train[int(found.values[q].argmax())] == f"copy-{row.id}"


def test_gpt2_is_tracked_whole(slm):
    text = Examples([Example("a", "Once upon", "a time"), Example("b", "One day", "a girl went")], "text")
    copied = _linear_copy(slm.hf)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(copied(tokens).logits, slm.hf(tokens).logits, rtol=0, atol=1e-4)  # float32, other kernels
    found = ekfac(slm, text, text, strategy="identity")
    notes = found.provenance.notes
    assert "transformer.h.0.attn.c_attn" in notes["tracked"]
    assert "lm_head" in notes["tracked"]
    outside = sum(p.numel() for name, p in slm.hf.named_parameters() if "ln_" in name or "wpe" in name)
    every = sum(p.numel() for p in slm.hf.parameters())
    assert notes["coverage"] == pytest.approx(1 - outside / every, abs=1e-12)
    with pytest.raises(
        InputError, match=r"1 tracked linear maps hold [\d,]+ of [\d,]+ weights, \d+\.\d%, below least_coverage=50\.0%"
    ):
        ekfac(slm, text, text, modules=["lm_head"])


def test_what_is_tracked_can_be_chosen(model, sets):
    query, train = sets
    chosen = ["*.mlp.*", "lm_head"]
    found = ekfac(model, query, train, strategy="identity", modules=chosen, least_coverage=0.1)
    names = [name for name in linear_names(model.hf) if ".mlp." in name or name == "lm_head"]
    assert found.provenance.notes["tracked"] == names
    draws = [d.tolist() for d in Drawn(encode_all(model, train), 0).draws]
    rows = rows_of(model, query), rows_of(model, train)
    expected = slow.influence(model.hf, names, *rows, draws, strategy="identity", damping=None)
    np.testing.assert_allclose(found.values, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())  # float64


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"damping": -1.0}, r"damping is -1\.0, expected a finite number above 0"),
        ({"damping": 0.0, "strategy": "kfac"}, r"damping is 0\.0, expected a finite number above 0"),
        ({"draws": 0}, "draws is 0, expected at least 1"),
        ({"strategy": "ekfak"}, "unknown strategy of ekfac 'ekfak'. Did you mean 'ekfac'"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"modules": ["*.mlp.*", "*.mpl.*"]}, r"modules '\*\.mpl\.\*' matches no linear map. There are 8: model.layers.0"),
        ({"least_coverage": 0.999}, "Track more modules, or lower least_coverage"),
    ],
)
def test_bad_options(model, sets, options, match):
    with pytest.raises(InputError, match=match):
        unwrap(ekfac)(model, *sets, **options)  # as outside the tests, where no annotation is run


def test_no_damping_where_it_has_no_effect(model, sets):
    plain, zero = (ekfac(model, *sets, strategy="identity", damping=damping).values for damping in (None, 0.0))
    np.testing.assert_array_equal(plain, zero)


def test_edits_of_activations_are_refused(sets):
    model = tiny()
    vector = torch.ones(model.d_model, dtype=torch.float64)
    delta = wb.edit.steer(model, wb.Direction(vector, site="resid_post", layer=0), strength=0.1)
    with applied(model, delta), pytest.raises(InputError, match="an edit of activations is applied"):
        ekfac(model, *sets)


def test_it_says_what_to_install(model, sets, monkeypatch):
    monkeypatch.setitem(sys.modules, "kronfluence.analyzer", None)
    with pytest.raises(MissingPackageError, match="pip install --no-deps kronfluence && pip install einconv opt-einsum"):
        ekfac(model, *sets)


def test_memory_is_planned(model, sets, monkeypatch):
    monkeypatch.setattr("workbench.core.runtime.free_bytes", lambda device: 1000)
    with pytest.raises(MemoryPlanError, match="ekfac needs about .* Lower batch_size, or leave wide maps out"):
        ekfac(model, *sets)
