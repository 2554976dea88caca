"""The depth score: against a loop over rows and layers, by hand, at its two ends, and beside its control."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import traces as slow
from tests.tiny import tiny, tiny_sets
from workbench.core.delta import Delta
from workbench.core.errors import DataError, InputError, MismatchError
from workbench.core.records import Provenance
from workbench.evaluate.depth import unlearning_depth
from workbench.evaluate.depth_record import Depth, Lost, depth_scores
from workbench.evaluate.entity_spans import Entities, Entity, entities, spans
from workbench.load.batches import encode_all

ABOUT = Provenance("by hand", "model")


def marked():
    """Spans of one, two and one tokens, in rows of unequal lengths."""
    return Entities([Entity("f0", "blue"), Entity("f1", "blue and"), Entity("f2", "no")], "marked")


def change(model, *, size=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = {name: size * torch.randn(shape, generator=generator) for name, shape in model.shapes().items() if "mlp" in name}
    return Delta.of(made, Provenance("by hand", model.base_fingerprint()))


def record(retrained, unlearned, *, control=None, threshold=0.05):
    lost = Lost(np.array(retrained, dtype=float), np.array(unlearned, dtype=float))
    rows, layers = lost.retrained.shape
    ids = tuple(f"row {i}" for i in range(rows))
    return Depth(ids, tuple(range(layers)), threshold, np.zeros(rows), lost, control, 2, 0, ABOUT)


def test_against_the_loop():
    full, retrained, unlearned = tiny(), tiny(seed=1), tiny(seed=2)
    forget, retain = tiny_sets()
    found = unlearning_depth(full, retrained, unlearned, forget, marked(), control=retain)
    rows = spans(full, forget, marked())
    for i, row in enumerate(rows):
        span = (row.tokens, row.start, len(row.tokens))
        own = slow.span_logprob(full.hf, *span)
        lost = {"retrained": retrained, "unlearned": unlearned}
        for name, model in lost.items():
            states = slow.stream(model.hf, row.tokens)
            lost[name] = [own - slow.span_logprob(full.hf, *span, layer, states[layer]) for layer in (0, 1)]
            # differences of log-probabilities near 3 nats in float64: 1e-12 is rounding
            np.testing.assert_allclose(getattr(found.lost, name)[i], lost[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.score[i], slow.depth(lost["retrained"], lost["unlearned"], 0.05), rtol=1e-9)
        np.testing.assert_allclose(found.logprob[i], own, rtol=1e-9)
    assert found.control is not None
    row = encode_all(full, retain)[3]  # the control reads whole answers, the end-of-text token included
    span = (row.tokens, row.start, len(row.tokens))
    lost = slow.span_logprob(full.hf, *span) - slow.span_logprob(full.hf, *span, 1, slow.stream(unlearned.hf, row.tokens)[1])
    np.testing.assert_allclose(found.control.unlearned[3, 1], lost, rtol=1e-9, atol=1e-12)


def test_batch_size_and_order_change_nothing():
    full, retrained, unlearned = tiny(), tiny(seed=1), tiny(seed=2)
    forget, retain = tiny_sets()
    found = unlearning_depth(full, retrained, unlearned, forget, marked(), control=retain)
    one = unlearning_depth(full, retrained, unlearned, forget, marked(), control=retain, batch_tokens=1)
    turned = unlearning_depth(full, retrained, unlearned, forget.take([2, 0, 1]), marked(), layers=[1])
    np.testing.assert_allclose(one.lost, found.lost, rtol=1e-9, atol=1e-12)  # float64
    np.testing.assert_allclose(one.control, found.control, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(turned.lost.unlearned[[1, 2, 0]], found.lost.unlearned[:, [1]], rtol=1e-9, atol=1e-12)
    assert turned.layers == (1,)


def test_only_the_positions_that_predict_the_entity_are_replaced():
    """Behind the last layer no position reads another: patched there, the entity is read from the source's states alone."""
    full, other = tiny(), tiny(seed=1)
    forget, _ = tiny_sets()
    found = unlearning_depth(full, other, full, forget, marked(), layers=[1])
    for i, row in enumerate(spans(full, forget, marked())):
        states = slow.stream(other.hf, row.tokens)[1]
        said = [slow.lens(full.hf, states[p - 1], row.tokens[p])[0] for p in range(row.start, len(row.tokens))]
        np.testing.assert_allclose(found.logprob[i] - found.lost.retrained[i, 0], np.mean(said), rtol=1e-6)  # RMSNorm is float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zero_for_the_full_model_and_one_for_the_retrained_one(dtype):
    """Exactly: the same states give the same bits."""
    full, retrained = tiny(dtype), tiny(dtype, seed=6)  # a seed with which every row has an encoding layer
    forget, retain = tiny_sets()
    none = unlearning_depth(full, retrained, full, forget, marked(), control=retain)
    assert (none.lost.unlearned == 0).all()
    assert none.score.tolist() == [0, 0, 0]
    assert unlearning_depth(full, retrained, retrained, forget, marked()).score.tolist() == [1, 1, 1]


def test_a_change_is_measured_as_the_model_it_makes(tmp_path):
    full, retrained = tiny(torch.float32), tiny(torch.float32, seed=1)
    forget, _ = tiny_sets()
    before, delta = full.fingerprint(), change(full)
    delta.export(full, tmp_path / "unlearned")
    found = unlearning_depth(full, retrained, delta, forget, marked())
    other = unlearning_depth(full, retrained, wb.load(tmp_path / "unlearned"), forget, marked())
    np.testing.assert_allclose(found.lost, other.lost, atol=1e-5)  # float32; the exported one runs another attention kernel
    assert np.abs(found.lost.unlearned).min() > 0
    assert full.fingerprint() == before


def test_stage_1_is_used_again():
    full, retrained, forget, retain = tiny(), tiny(seed=1), *tiny_sets()
    first = unlearning_depth(full, retrained, full, forget, marked(), control=retain)
    found = unlearning_depth(full, first, tiny(seed=2), forget, marked(), control=retain, threshold=0.2)
    anew = unlearning_depth(full, retrained, tiny(seed=2), forget, marked(), control=retain, threshold=0.2)
    np.testing.assert_array_equal(found.lost, anew.lost)
    np.testing.assert_array_equal(found.control, anew.control)
    assert found.provenance.notes == anew.provenance.notes
    with pytest.raises(MismatchError, match="of other control, so its stage 1"):
        unlearning_depth(full, first, full, forget, marked())
    with pytest.raises(MismatchError, match="of other layers and examples"):
        unlearning_depth(full, first, full, forget[:2], marked(), control=retain, layers=[1])
    with pytest.raises(MismatchError, match="of other model, so"):
        unlearning_depth(tiny(seed=3), first, full, forget, marked(), control=retain)


def test_by_hand():
    """D_1 = (2, 1, 0.01), D_2 = (1, 3, 5): layers 0 and 1 encode; (1 + min(3, 1)) / (2 + 1) = 2/3. A gain counts as 0: (-1, 0.5)
    gives 0.5 / 3. No layer above the threshold: none."""
    found = depth_scores(np.array([[2, 1, 0.01], [2, 1, 0.01], [0.05, 0, -3]]), np.array([[1, 3, 5], [-1, 0.5, 5], [1.0, 1, 1]]))
    np.testing.assert_allclose(found, [2 / 3, 0.5 / 3, np.nan], rtol=1e-12)


def test_scores_against_the_published_formula():
    rng = np.random.default_rng(0)
    one, two = rng.normal(0.5, 1, (50, 4)), rng.normal(0.5, 1, (50, 4))
    for threshold in (0.0, 0.05, 1.5):
        expected = [slow.depth(a, b, threshold) for a, b in zip(one, two, strict=True)]
        np.testing.assert_allclose(depth_scores(one, two, threshold=threshold), expected, rtol=1e-12)


def test_rows_without_an_encoding_layer_are_counted_and_never_zero():
    found = record([[2, 1], [0.01, 0.05], [1, 0]], [[1, 1], [1, 1], [1, 0]])
    assert np.isnan(found.score[1])
    assert found.estimate[::3] == (pytest.approx((2 / 3 + 1) / 2), 2)
    row = found.measurements()["unlearning_depth", "forget"]
    assert "1 of 3 rows left out" in row.note
    assert "2 rows have no entity" in row.note
    assert "no control" in row.note
    assert found.frame()["note"].tolist()[1].startswith("no layer loses more than 0.05 nats")
    nothing = record([[0.01]], [[1]])
    assert np.isnan(nothing.estimate[:3]).all()
    assert "too few rows for an interval" in nothing.measurements()["unlearning_depth", "forget"].note


def test_beyond_control_by_hand():
    """Control means are 1 (retrained) and 2 (unlearned): (3, 4) and (5, 2) become (2, 3) and (3, 0): clip(3, 0, 2) + 0 of 2 + 3."""
    control = Lost(np.array([[0.5, 0.5], [1.5, 1.5]]), np.array([[2.0, 2.0], [2.0, 2.0]]))
    found = record([[3, 4], [9, 9]], [[5, 2], [2, 2]], control=control).beyond_control
    assert found is not None
    assert found.value == pytest.approx((2 / 5 + 0) / 2)
    assert record([[3.0]], [[1.0]]).beyond_control is None


def test_states_that_cannot_be_read_are_no_erasure():
    """Every row loses 4 nats with the unlearned model's states, known rows too: a depth of 1, and 0 beyond the control."""
    rng = np.random.default_rng(0)
    lost = np.abs(rng.normal(3, 0.1, (40, 2)))
    control = Lost(np.zeros((30, 2)), np.full((30, 2), 4.0))
    found = record(lost, np.full((40, 2), 4.0), control=control)
    assert found.estimate.value == 1
    assert found.beyond_control is not None
    assert found.beyond_control[:3] == (0.0, 0.0, 0.0)
    rows = found.measurements("half")
    assert rows["depth_control_unlearned", "half"].value == 4
    assert [row.metric for row in rows][1] == "unlearning_depth_beyond_control"
    same = record(lost, lost, control=Lost(np.full((30, 2), 5.0), np.zeros((30, 2)))).measurements()
    assert np.isnan(same["unlearning_depth_beyond_control", "forget"].value)
    assert "cost as much" in same["unlearning_depth_beyond_control", "forget"].note


def test_layers_and_rows_agree():
    """A layer's erased share is sum clip(D_2, 0, D_1) / sum D_1 over the rows it encodes: (1 + 1) / (2 + 1) and 1 / 1."""
    frame = record([[2, 1], [1, 0.01]], [[1, 2], [1, 9]]).by_layer()
    np.testing.assert_allclose(frame["erased"], [2 / 3, 1], rtol=1e-12)
    assert frame["encoding"].tolist() == [2, 1]
    np.testing.assert_allclose(frame["retrained"], [1.5, 0.505], rtol=1e-12)


def test_the_organism(root):
    """Shallow: a change of the last layer alone leaves the layers below as they were; deep: the retrained model."""
    full, retrained = (wb.load(root / f"data/organism/{name}") for name in ("full", "retain"))
    forget = wb.examples("tofu:forget", root=root / "data/tofu-mini")[:12]
    known = entities(root / "data/tofu-mini/entities.jsonl")
    name = "model.layers.3.mlp.down_proj.weight"
    noise = torch.randn(full.shapes()[name], generator=torch.Generator().manual_seed(0))
    shallow = unlearning_depth(
        full, retrained, Delta.of({name: noise}, Provenance("noise", full.base_fingerprint())), forget, known
    )
    assert (shallow.lost.unlearned[:, :3] == 0).all()
    assert (shallow.lost.unlearned[:, 3] > 1).all()
    assert shallow.by_layer()["erased"].tolist()[:3] == [0, 0, 0]
    assert 0.1 < shallow.estimate.value < 0.35  # one layer of four
    assert (shallow.without, len(shallow.ids)) == (1, 11)


def test_what_is_refused():
    full, other = tiny(), tiny(seed=1)
    forget, _ = tiny_sets()
    with pytest.raises(InputError, match="threshold is -1, expected 0 or more nats"):
        unlearning_depth(full, other, full, forget, marked(), threshold=-1)
    with pytest.raises(MismatchError, match="3 layers of width 8"):
        unlearning_depth(full, tiny(n_layers=3), full, forget, marked())
    with pytest.raises(InputError, match="layers is"):
        unlearning_depth(full, other, full, forget, marked(), layers=[5])
    with pytest.raises(DataError, match="has an entity"):
        unlearning_depth(full, other, full, forget, Entities([Entity("x", "blue")], "marked"))
    full.hf.train()
    with pytest.raises(InputError, match="training mode"):
        unlearning_depth(full, other, full, forget, marked())
