"""Names of parameters: layers, kinds, tables."""

import numpy as np

from workbench.core.names import layer_of, module_grid, places, pooled


def test_layer_of():
    assert layer_of("model.layers.12.mlp.up_proj.weight") == "model.layers.12"
    assert layer_of("lm_head.weight") == "lm_head.weight"
    assert layer_of("model.layers.².up") == "model.layers.².up"  # a digit to Python, but no number


def test_places():
    assert places(["wte.weight", "h.0.attn.bias", "h.10.mlp.experts.3.weight"]) == {
        "wte.weight": ("wte.weight", "–"),
        "h.0.attn.bias": ("attn.bias", "0"),
        "h.10.mlp.experts.3.weight": ("mlp.experts.*.weight", "10"),
    }


def test_two_stacks_are_told_apart():
    found = places(["encoder.layers.0.up", "decoder.layers.0.up"])
    assert [place.kind for place in found.values()] == ["encoder.layers.*.up", "decoder.layers.*.up"]


def test_pooled_by_hand():
    # (2 + 4) / (1 + 3) and 0 / 0
    found = pooled({"a1": 2.0, "a2": 4.0, "b": 0.0}, {"a1": 1, "a2": 3, "b": 0}, lambda name: name[0])
    assert found["a"] == 1.5
    assert np.isnan(found["b"])


def test_grid_by_hand():
    totals = {"embed": 7.0, "h.2.up": 6.0, "h.10.up": 1.0, "h.10.e.0.w": 1.0, "h.10.e.1.w": 5.0}
    sizes = {"embed": 7, "h.2.up": 3, "h.10.up": 4, "h.10.e.0.w": 2, "h.10.e.1.w": 2}
    grid = module_grid(totals, sizes)
    assert grid.rows == ["embed", "up", "e.*.w"]
    assert grid.columns == ["2", "10", "–"]  # by number, not by letter; the outside last
    nan = np.nan  # the experts of layer 10: (1 + 5) / (2 + 2)
    np.testing.assert_array_equal(grid.values, [[nan, nan, 1.0], [2.0, 0.25, nan], [nan, 1.5, nan]])
