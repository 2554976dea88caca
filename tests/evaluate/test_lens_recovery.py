"""The lens on entities: against a loop, its floors, and a model it cannot read."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import traces as slow
from tests.tiny import WORDS, tiny, tiny_sets
from workbench.core.errors import DataError, InputError, MismatchError, ModelError
from workbench.core.records import Example
from workbench.evaluate.entity_spans import Entities, Entity, entities, spans
from workbench.evaluate.lens_recovery import lens_recovery
from workbench.trace.forward import row_nll


def marked():
    return Entities([Entity("f0", "blue"), Entity("f1", "blue and"), Entity("f2", "no")], "marked")


def test_against_the_loop():
    """Hugging Face's RMSNorm computes in float32 also of a float64 model, the loop's in float64."""
    model, (forget, _) = tiny(), tiny_sets()
    found = lens_recovery(model, forget, marked(), k=4)
    for i, row in enumerate(spans(model, forget, marked())):
        for layer, states in enumerate(slow.stream(model.hf, row.tokens)):
            told = [slow.lens(model.hf, states[p - 1], row.tokens[p]) for p in range(row.start, len(row.tokens))]
            np.testing.assert_allclose(found.logprob[i, layer], np.mean([value for value, _ in told]), rtol=1e-6)
            assert found.within[i, layer] == np.mean([rank <= 4 for _, rank in told])


def test_the_last_layer_is_what_the_model_says(stories):
    rows = wb.Examples([Example("a", "Once upon a time", "there was a cat named Tom"), Example("b", "The", "dog ran")], "rows")
    known = Entities([Entity("a", "Tom"), Entity("b", "ran")], "names")
    found = lens_recovery(stories, rows, known)
    said = -row_nll(stories, spans(stories, rows, known)).numpy()
    np.testing.assert_allclose(found.logprob[:, -1], said, rtol=1e-5)  # float32 logits, another batch shape


def test_a_gpt2_is_read_too(slm):
    rows = wb.Examples([Example("a", "the cat", "sat"), Example("b", "a dog", "ran away")], "rows")
    found = lens_recovery(slm, rows, Entities([Entity("a", "sat"), Entity("b", "away")], "names"))
    assert found.logprob.shape == (2, slm.n_layers)


def test_batch_size_order_and_layers_change_nothing():
    model, (forget, _) = tiny(), tiny_sets()
    found = lens_recovery(model, forget, marked())
    other = lens_recovery(model, forget.take([2, 0, 1]), marked(), batch_tokens=1, layers=[1])
    np.testing.assert_allclose(other.logprob[[1, 2, 0], 0], found.logprob[:, 1], rtol=1e-9)
    np.testing.assert_array_equal(other.within[[1, 2, 0], 0], found.within[:, 1])


def test_a_uniform_model_is_at_the_guess():
    """No unembedding: ln p is -ln 16, and every token is tied for rank 1."""
    model, (forget, _) = tiny(), tiny_sets()
    with torch.no_grad():
        model.hf.lm_head.weight.zero_()
    found = lens_recovery(model, forget, marked(), k=1)
    np.testing.assert_allclose(found.logprob, -np.log(len(WORDS)), rtol=1e-12)
    assert (found.within == 1).all()
    assert "a uniform guess has -2.77" in found.measurements()["lens_logprob", "forget"].note


def test_the_reference_is_the_floor():
    model, retrained, (forget, _) = tiny(), tiny(seed=1), tiny_sets()
    floor = lens_recovery(retrained, forget, marked())
    found = lens_recovery(model, forget, marked(), reference=floor)
    rows = found.measurements()
    gap = rows["lens_logprob", "forget"].value - floor.best().value
    assert rows["lens_logprob_excess", "forget"].value == pytest.approx(gap)
    assert rows["lens_within_10_excess", "forget"].n == 3
    assert lens_recovery(retrained, forget, marked(), reference=floor).excess() == (0.0, 0.0, 0.0, 3)
    assert found.excess("within").value == pytest.approx(found.best("within").value - floor.best("within").value)
    assert floor.excess() is None
    assert found.by_layer()["logprob_reference"].tolist() == pytest.approx(floor.logprob.mean(0).tolist())
    assert len(found.frame()) == 6


def test_what_an_early_layer_knows_counts_though_the_model_does_not_say_it():
    """A last layer that turns every answer away lowers what is said, not what the best layer says."""
    model, (forget, _) = tiny(), tiny_sets()
    before = lens_recovery(model, forget, marked())
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight.mul_(50)
    after = lens_recovery(model, forget, marked())
    np.testing.assert_allclose(after.logprob[:, 0], before.logprob[:, 0], rtol=1e-12)
    assert after.logprob[:, 1].mean() < after.best().value
    assert after.best().value == pytest.approx(max(after.logprob.mean(0)))


def test_the_organism(root):
    """The full model says every entity; the retrained one, at no layer."""
    full, retrained = (wb.load(root / f"data/organism/{name}") for name in ("full", "retain"))
    forget = wb.examples("tofu:forget", root=root / "data/tofu-mini")
    known = entities(root / "data/tofu-mini/entities.jsonl")
    floor = lens_recovery(retrained, forget, known)
    found = lens_recovery(full, forget, known, reference=floor)
    assert found.best().value > -0.01
    assert floor.best().value < -5
    assert found.excess().low > 5


def test_a_model_with_a_step_behind_its_last_layer_is_refused():
    model, (forget, _) = tiny(), tiny_sets()
    model.hf.lm_head.register_forward_hook(lambda m, a, out: out * 2 if out.ndim == 3 else None)
    with pytest.raises(ModelError, match="at the last layer the lens misses"):
        lens_recovery(model, forget, marked())


def test_what_is_refused():
    model, (forget, _) = tiny(), tiny_sets()
    for bad in (0, 17):
        with pytest.raises(InputError, match=f"k is {bad}, expected 1 to 16"):
            lens_recovery(model, forget, marked(), k=bad)
    with pytest.raises(DataError, match="has an entity"):
        lens_recovery(model, forget, Entities([Entity("x", "blue")], "marked"))
    floor = lens_recovery(model, forget, marked(), layers=[0])
    with pytest.raises(MismatchError, match=r"the reference has 3 rows, layers \[0\] and k 10"):
        lens_recovery(model, forget, marked(), reference=floor)
