"""RMU around its distance: layers, what moves by default, vectors, the adaptive length, refusals."""

import pytest
import torch

import workbench as wb
from tests.tiny import tiny, tiny_sets
from tests.unlearn.tasks import rows_of, state_rows, task_of, three_layers
from workbench.core.errors import InputError
from workbench.core.mask import Mask
from workbench.core.records import Provenance
from workbench.load.batches import collate
from workbench.trace.forward import states
from workbench.unlearn.run import run


def only(model, *names):
    shapes = model.shapes()
    return Mask.of({n: torch.ones(shapes[n], dtype=torch.bool) for n in names}, Provenance("test", model.fingerprint()))


@pytest.mark.parametrize("layer", [0, 1])
def test_states_are_those_of_the_whole_model(layer):
    model = three_layers()
    rows = rows_of(model)[0]
    found = states(model, collate(rows), f"blocks.{layer}.resid_post")
    for row, one in zip(rows, found, strict=True):
        expected = torch.tensor(state_rows(model, row, layer), dtype=torch.float64)
        torch.testing.assert_close(one[: len(row.tokens)], expected, rtol=1e-6, atol=1e-8)  # RMSNorm is float32
    assert found.requires_grad


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_value_vectors_up_to_the_layer_move_where_nothing_is_said(length):
    model = tiny(torch.float32, n_layers=length)
    found = run(model, *tiny_sets(), objective="rmu", epochs=1, batch_size=3, lr=1e-2)
    layer = length // 2
    expected = {f"model.layers.{i}.mlp.down_proj.weight" for i in range(max(0, layer - 2), layer + 1)}
    assert set(found.delta.changes) == expected
    assert found.delta.provenance.options["mask"]["method"] == "value_weights"


def test_a_mask_decides_and_must_be_reached():
    model = three_layers(torch.float32)
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight")
    found = run(model, *tiny_sets(), objective="rmu", mask=only(model, *names), epochs=2, batch_size=3, lr=1e-2, weight_decay=0.5)
    assert set(found.delta.changes) == {names[0]}  # the other one has no gradient, so it does not even decay
    with pytest.raises(InputError, match="all 160 weights of the mask lie behind layer 1, whose states they cannot change"):
        run(model, *tiny_sets(), objective="rmu", mask=only(model, names[1]))
    found = run(model, *tiny_sets(), objective="rmu", mask=only(model, names[1]), options={"layer": 2}, epochs=1, lr=1e-2)
    assert set(found.delta.changes) == {names[1]}


def test_adapters_must_be_reached_too():
    model = three_layers(torch.float32)
    behind = {"rank": 2, "targets": ["layers.2.mlp.down_proj"]}
    with pytest.raises(InputError, match="all layers that lora's targets name lie behind layer 1, whose states they cannot change"):
        run(model, *tiny_sets(), objective="rmu", lora=behind)
    both = {"rank": 2, "targets": ["layers.2.mlp.down_proj", "layers.1.mlp.down_proj"]}
    found = run(model, *tiny_sets(), objective="rmu", lora=both, epochs=1, lr=1e-2)
    assert set(found.delta.changes) == {"model.layers.1.mlp.down_proj.weight"}


def test_states_go_to_the_vector_and_those_of_retain_rows_stay():
    model = three_layers(torch.float32)
    forget, retain = rows_of(model)
    task = task_of(model, "rmu", epochs=30)
    wanted = task.targets[0].double()

    def far(rows, targets):
        return sum(
            float((torch.tensor(state_rows(model, row, 1)).double() - t).square().mean())
            for row, t in zip(rows, targets, strict=True)
        )

    kept = [torch.tensor(state_rows(model, row, 1)).double() for row in retain]
    start = far(forget, [wanted] * 3)
    drift = {}
    for weight in (0.0, 20.0):
        found = run(model, *tiny_sets(), objective="rmu", retain_weight=weight, epochs=30, batch_size=3, lr=2e-2, seed=2)
        with wb.edit.applied(model, found.delta):
            assert far(forget, [wanted] * 3) < 0.8 * start
            drift[weight] = far(retain, kept)
    assert drift[20.0] < 0.5 * drift[0.0]


def test_the_adaptive_length_by_hand():
    model = three_layers()
    task = task_of(model, "rmu", options={"adaptive": True, "coefficient": 3.0, "positions": "answer"})
    for row, target in zip(rows_of(model)[0], task.targets, strict=True):
        norms = [sum(x * x for x in h) ** 0.5 for h in state_rows(model, row, 1)[row.start :]]
        assert float(target.norm()) == pytest.approx(3 * sum(norms) / len(norms), rel=1e-6)  # states are kept in float32
    assert bool((task.targets > 0).all()), "uniform vectors lie in the positive orthant"


def test_options_that_cannot_be():
    model, sets = three_layers(), tiny_sets()
    for options, match in (
        ({"layer": 3}, "layer is 3, but the model's layers are 0 to 2"),
        ({"layer": -1}, "layer is -1"),
        ({"coefficient": 0.0}, "coefficient is 0.0"),
        ({"steering": torch.ones(5)}, r"steering is a tensor of shape \(5,\), expected a finite vector \[8\]"),
        ({"steering": torch.zeros(8)}, "not all 0"),
        ({"steering": "unifrom"}, "option steering of rmu is 'unifrom'"),
        ({"positions": "some"}, "option positions of rmu is 'some'"),
    ):
        with pytest.raises(InputError, match=match):
            run(model, *sets, objective="rmu", options=options)


def test_a_vector_is_recorded_by_its_hash():
    model = three_layers(torch.float32)
    one, two, again = (
        run(model, *tiny_sets(), objective="rmu", options={"steering": vector}, epochs=1).delta.provenance.options["objective"]
        for vector in (torch.ones(8), torch.arange(8.0), torch.ones(8))
    )
    assert one == again != two
    assert len(one["steering"]) == 64
