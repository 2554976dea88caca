"""Model Surgery: the chosen rows against brute force, what they are moved by, its controls and refusals."""

import pytest
import torch

import workbench as wb
from tests.edit.models import FLOAT32, bits, direction, model_of
from tests.reference import edits as truth
from tests.reference.tiny_models import tokens
from tests.reference.units import GATED
from tests.tiny import tiny
from workbench import edit
from workbench.core.delta import applied
from workbench.core.errors import InputError, ModelError, NumericsError, ShapeError, UnknownNameError
from workbench.edit import lines as lines_module
from workbench.edit.lines import products
from workbench.edit.surgery import Measured, Rule, select
from workbench.trace.hooks import capture

CASES = [
    (name, matrix)
    for name in ("llama", "gpt2", "gpt_neox", "phi3", "falcon")
    for matrix in (("gate", "up") if name in GATED else ("in",)) + ("down", "q", "k", "v", "o")
]


def dense(model, delta):
    """Every parameter's change in float64, zeros where there is none."""
    shapes = model.shapes()
    return {n: delta.changes[n].dense().double() if n in delta.changes else torch.zeros(s).double() for n, s in shapes.items()}


def expected_of(model, chosen, vectors, strength):
    out = {n: torch.zeros(s, dtype=torch.float64) for n, s in model.shapes().items()}
    for (layer, _), (coordinates, norm, _) in chosen.items():
        for (name, i, j), u in zip(coordinates, vectors[layer], strict=True):
            out[name][i, j] = strength * norm * u
    return out


@pytest.mark.parametrize(("name", "matrix"), CASES)
def test_the_chosen_rows_and_their_change_are_those_of_brute_force(name, matrix):
    model, d = model_of(name), direction()
    vectors = [d.vector.double().tolist()] * 3
    weights = bits(model)
    for choose, per_layer in (("bottom", False), ("top", False), ("bottom", True)):
        chosen = truth.surgery(weights, name, matrix, vectors, 11, choose=choose, per_layer=per_layer)
        scope = "layer" if per_layer else "global"
        found = edit.surgery(model, d, matrix=matrix, rows=11, choose=choose, scope=scope, strength=0.7)
        want = expected_of(model, chosen, vectors, 0.7)
        for parameter, change in dense(model, found).items():
            torch.testing.assert_close(change, want[parameter], rtol=1e-6, atol=1e-8)  # values are float32
        notes, cosines = found.provenance.notes, [value for _, _, value in chosen.values()]
        assert notes["cosine"]["min"] == pytest.approx(min(cosines))
        assert notes["cosine"]["max"] == pytest.approx(max(cosines))
        assert notes["cosine"]["mean"] == pytest.approx(sum(cosines) / 11)
        assert notes["rows_by_layer"] == {str(n): sum(layer == n for layer, _ in chosen) for n in range(3)}
        assert notes["rows_of"] == 3 * len(truth.lines(name, matrix, 0))
        assert found.n_touched == 11 * 32 == notes["n_parameters"]


def test_one_direction_a_layer_in_any_order():
    model = model_of("llama")
    each = [direction(seed=n, layer=n) for n in range(3)]
    vectors = [d.vector.double().tolist() for d in each]
    chosen = truth.surgery(bits(model), "llama", "gate", vectors, 9)
    want = expected_of(model, chosen, vectors, 0.5)
    found = edit.surgery(model, [each[2], each[0], each[1]], rows=9)
    for parameter, change in dense(model, found).items():
        torch.testing.assert_close(change, want[parameter], rtol=1e-6, atol=1e-8)
    assert "site" not in found.provenance.notes  # each at its own layer and at mlp_in, which gate rows read


def test_layers_restrict_the_choice():
    model, d = model_of("gpt2"), direction()
    found = edit.surgery(model, d, matrix="in", rows=5, layers=[2])
    assert list(found.changes) == ["transformer.h.2.mlp.c_fc.weight"]
    assert found.provenance.notes["rows_by_layer"] == {"2": 5}


@pytest.mark.parametrize(
    ("name", "matrix", "site"),
    [
        ("llama", "gate", "mlp.pre"),
        ("llama", "up", "mlp.pre_linear"),
        ("phi3", "gate", "mlp.pre"),
        ("phi3", "up", "mlp.pre_linear"),
        ("gpt2", "in", "mlp.pre"),
        ("gpt_neox", "in", "mlp.pre"),
    ],
)
def test_a_preactivation_moves_by_strength_times_norm_times_u_dot_x(name, matrix, site):
    model, d = model_of(name), direction()
    strength, where = 0.7, f"blocks.1.{site}"
    found = edit.surgery(model, d, matrix=matrix, rows=7, layers=[1], strength=strength)  # one layer: what it reads stays
    chosen = truth.surgery(bits(model), name, matrix, [d.vector.double().tolist()] * 3, 7, layers=[1])

    def read():
        with capture(model, [where, "blocks.1.mlp_in"]) as acts, torch.no_grad():
            model.hf(tokens())
        return acts[where], acts["blocks.1.mlp_in"]

    before, x = read()
    with applied(model, found):
        after, _ = read()
    want = torch.zeros_like(before)
    for (_, row), (_, norm, _) in chosen.items():
        want[..., row] = strength * norm * (x @ d.vector.double())
    torch.testing.assert_close(after - before, want, **FLOAT32)
    assert float(want.abs().max()) > 0.1


@torch.no_grad()
def test_by_hand():
    model = tiny()
    gate = model.hf.get_parameter("model.layers.0.mlp.gate_proj.weight")
    gate[0] = torch.tensor([-3.0, 4, 0, 0, 0, 0, 0, 0])
    d = wb.Direction(torch.tensor([2.0, 0, 0, 0, 0, 0, 0, 0]), "mlp_in", 0)  # normalized: u = (1, 0, ...)
    # cos = -3/5, norm 5: below every other row of layer 0? the test says so
    found = edit.surgery(model, d, rows=1, layers=[0], strength=0.5)
    assert found.provenance.notes["cosine"]["mean"] <= -0.6
    gate[1:] = gate[1:].abs()  # positive first entries: no other negative cosine
    found = edit.surgery(model, d, rows=1, layers=[0], strength=0.5)
    assert found.provenance.notes["cosine"] == {"mean": -0.6, "min": -0.6, "max": -0.6}
    with applied(model, found):
        assert gate[0].tolist() == [-0.5, 4, 0, 0, 0, 0, 0, 0]  # -3 + 0.5 * 5
    paper = edit.surgery(model, d, rows=1, layers=[0], strength=0.5, scale="paper", paper_norm=2.0)
    with applied(model, paper):
        assert gate[0].tolist() == [-2.0, 4, 0, 0, 0, 0, 0, 0]  # -3 + 0.5 * 2


@torch.no_grad()
def test_planted_rows_are_found_in_every_layer():
    model, d = model_of("phi3"), direction(seed=3)
    planted = {(0, 5), (1, 17), (1, 40), (2, 0)}
    for layer, row in planted:
        weight = model.hf.get_parameter(f"model.layers.{layer}.mlp.gate_up_proj.weight")
        weight[48 + row] = -2 * d.vector.double() + 0.02 * weight[48 + row]  # up rows lie behind the 48 gate rows
    found = edit.surgery(model, d, matrix="up", rows=4)
    hit = {(layer, int(i) - 48) for layer in range(3) for i in found.changes[f"model.layers.{layer}.mlp.gate_up_proj.weight"].index}
    assert hit == planted
    assert found.provenance.notes["cosine"]["max"] < -0.99


@torch.no_grad()
def test_rows_of_zeros_have_no_cosine_and_are_never_chosen():
    model, d = model_of("llama"), direction()
    model.hf.get_parameter("model.layers.1.mlp.gate_proj.weight")[3:9] = 0
    every = edit.surgery(model, d, choose="all")
    assert every.provenance.notes["zero_rows"] == 6
    assert every.provenance.notes["rows"] == 3 * 48 - 6
    assert not set(range(3, 9)) & set(every.changes["model.layers.1.mlp.gate_proj.weight"].index.tolist())
    drawn = edit.surgery(model, d, rows=138, choose="random")
    assert torch.equal(
        drawn.changes["model.layers.1.mlp.gate_proj.weight"].index, every.changes["model.layers.1.mlp.gate_proj.weight"].index
    )
    with pytest.raises(InputError, match="139 rows are asked for, but there are 138 that are not zero"):
        edit.surgery(model, d, rows=139)
    with pytest.raises(InputError, match="layer number 1 of the edited has 42"):
        edit.surgery(model, d, rows=129, scope="layer")


@pytest.mark.parametrize(
    ("name", "matrix"), [("llama", "gate"), ("llama", "down"), ("gpt2", "in"), ("phi3", "up"), ("gpt_neox", "k")]
)
def test_all_rows_are_moved_and_low_rank_where_they_are_a_whole_tensor(name, matrix):
    model, d = model_of(name), direction()
    vectors = [d.vector.double().tolist()] * 3
    total = 3 * len(truth.lines(name, matrix, 0))
    want = expected_of(model, truth.surgery(bits(model), name, matrix, vectors, total), vectors, 0.3)
    found = edit.surgery(model, d, matrix=matrix, choose="all", strength=0.3)
    for parameter, change in dense(model, found).items():
        torch.testing.assert_close(change, want[parameter], rtol=1e-6, atol=1e-8)  # values are float32
    fused = matrix in ("up", "k") and name != "llama"
    form = {True: "Rows"}.get(fused, "LowRank")
    assert {type(c).__name__ for c in found.changes.values()} == {form}
    assert edit.surgery(model, d, matrix=matrix, rows=total, strength=0.3).id == found.id


def test_ties_go_to_the_lower_layer_and_line_and_random_follows_its_seed():
    even = [Measured(torch.full((4,), 0.5), torch.ones(4)), Measured(torch.full((4,), 0.5), torch.ones(4))]
    assert [c.tolist() for c in select(even, Rule("bottom", "global", 5, 0))] == [[0, 1, 2, 3], [0]]
    assert [c.tolist() for c in select(even, Rule("bottom", "layer", 5, 0))] == [[0, 1, 2], [0, 1]]
    one, two, other = (select(even, Rule("random", "global", 4, seed)) for seed in (0, 0, 5))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_random_rows_are_drawn_evenly():
    even = [Measured(torch.zeros(5), torch.ones(5)), Measured(torch.zeros(15), torch.ones(15))]
    hits = sum(len(select(even, Rule("random", "global", 4, seed))[0]) for seed in range(500))
    assert hits / 2000 == pytest.approx(0.25, abs=0.03)  # 5 of 20 rows; three standard errors of 2,000 draws


@pytest.mark.parametrize("matrix", ["gate", "k", "down"])
def test_control_place_is_the_same_done_to_as_many_other_rows_of_every_layer(matrix):
    model, d = model_of("llama"), direction()
    options = {"matrix": matrix, "rows": 12, "strength": 0.4}
    mine, other, again = (edit.surgery(model, d, control=c, seed=1, **options) for c in ("", "place", "place"))
    assert other.id == again.id != edit.surgery(model, d, control="place", seed=2, **options).id
    assert other.provenance.notes["rows_by_layer"] == mine.provenance.notes["rows_by_layer"]
    for name, change in other.changes.items():
        assert len(change.index) == len(mine.changes[name].index)
        assert not set(change.index.tolist()) & set(mine.changes[name].index.tolist())
        weight = model.hf.get_parameter(name).detach()
        along = 1 - change.dim
        lengths = change.at(weight).norm(dim=along)
        torch.testing.assert_close(change.values.double().norm(dim=along), 0.4 * lengths, rtol=1e-6, atol=0)


def test_control_change_moves_the_chosen_rows_as_far_along_a_random_direction():
    model = model_of("llama")
    for given in (direction(), [direction(seed=n, layer=n) for n in range(3)]):
        mine, other = (edit.surgery(model, given, rows=12, control=c, seed=4) for c in ("", "change"))
        kept = []
        for name, change in other.changes.items():
            assert torch.equal(change.index, mine.changes[name].index)
            torch.testing.assert_close(change.values.norm(dim=1), mine.changes[name].values.norm(dim=1))
            units = change.values / change.values.norm(dim=1, keepdim=True)
            assert (units @ units[0]).min() > 1 - 1e-5  # all rows of a layer along one direction
            kept.append(units[0])
            assert abs(float(units[0] @ (mine.changes[name].values[0] / mine.changes[name].values[0].norm()))) < 0.7
        alike = float(kept[0] @ kept[1])
        assert alike > 1 - 1e-5 if isinstance(given, wb.Direction) else abs(alike) < 0.7


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_products_block_by_block_are_those_of_float64(monkeypatch, dim, dtype):
    monkeypatch.setattr(lines_module, "BLOCK", 100)  # two rows of 37 at a time, the last block shorter
    source = torch.Generator().manual_seed(0)
    weight, vector = torch.randn(23, 37, generator=source).to(dtype), torch.randn((37, 23)[dim], generator=source)
    dot, norm = products(weight, dim, vector)
    w = weight.double() if dim == 0 else weight.double().T
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}  # sums of 37 in float32
    torch.testing.assert_close(dot.double(), w @ vector.double(), **close)
    torch.testing.assert_close(norm.double(), w.norm(dim=1), **close)


def test_the_notes_say_when_the_direction_lies_in_another_basis():
    model = model_of("llama")
    assert edit.surgery(model, direction(site="mlp_in"), rows=3).provenance.notes["site"] == "one direction for all layers"
    said = edit.surgery(model, direction(site="resid_post"), rows=3).provenance.notes["site"]
    assert "found at resid_post, while the lines of gate read mlp_in: another basis" in said
    assert "another basis" not in edit.surgery(model, direction(site="mlp_out"), matrix="down", rows=3).provenance.notes["site"]
    assert "write to attn_out" in edit.surgery(model, direction(site="mlp_in"), matrix="o", rows=3).provenance.notes["site"]


def test_refusals():
    model, d = model_of("llama"), direction()
    with pytest.raises(ShapeError, match=r"direction has 8 features, but the lines of model.layers.0.mlp.gate_proj.weight have 32"):
        edit.surgery(model, direction(width=8), rows=3)
    with pytest.raises(InputError, match="rows is 145, expected 1 to 144; the edited layers have that many"):
        edit.surgery(model, d, rows=145)
    with pytest.raises(InputError, match="rows is 0"):
        edit.surgery(model, d, rows=0)
    with pytest.raises(InputError, match="give rows or fraction, one of them"):
        edit.surgery(model, d)
    with pytest.raises(InputError, match="give rows or fraction, one of them"):
        edit.surgery(model, d, rows=3, fraction=0.1)
    with pytest.raises(InputError, match="fraction is 1.5, expected 0 < fraction <= 1"):
        edit.surgery(model, d, fraction=1.5)
    with pytest.raises(InputError, match="takes every row; leave rows and fraction out"):
        edit.surgery(model, d, choose="all", rows=3)
    with pytest.raises(UnknownNameError, match="unknown matrix 'gates'. Did you mean 'gate'"):
        edit.surgery(model, d, matrix="gates", rows=3)
    with pytest.raises(UnknownNameError, match="unknown choice of rows 'bottum'. Did you mean 'bottom'"):
        edit.surgery(model, d, choose="bottum", rows=3)
    with pytest.raises(UnknownNameError, match="unknown scope 'tensor'"):
        edit.surgery(model, d, scope="tensor", rows=3)
    with pytest.raises(UnknownNameError, match="unknown scale 'papr'"):
        edit.surgery(model, d, scale="papr", rows=3)
    with pytest.raises(UnknownNameError, match="unknown control 'random'"):
        edit.surgery(model, d, rows=3, control="random")
    with pytest.raises(InputError, match="paper_norm, the norm of the un-normalized probe row, goes with scale='paper'"):
        edit.surgery(model, d, rows=3, scale="paper")
    with pytest.raises(NumericsError, match="strength is nan"):
        edit.surgery(model, d, rows=3, strength=float("nan"))
    with pytest.raises(InputError, match=r"given for layers \[0, 0\], expected one for each edited layer, \[0, 1, 2\]"):
        edit.surgery(model, [direction(layer=0)] * 2, rows=3)
    with pytest.raises(InputError, match="layer 3 does not exist; layers are 0 to 2"):
        edit.surgery(model, d, rows=3, layers=[3])
    with pytest.raises(ModelError, match="'in': the MLP of LlamaForCausalLM has a gate"):
        edit.surgery(model, d, rows=3, matrix="in")
    with pytest.raises(ModelError, match="the MLP of GPT2LMHeadModel has no gate"):
        edit.surgery(model_of("gpt2"), d, rows=3)
    with pytest.raises(InputError, match="everything there is was chosen"):
        edit.surgery(model, d, choose="all", control="place")
    with torch.no_grad():
        model.hf.get_parameter("model.layers.1.mlp.gate_proj.weight")[2, 2] = float("nan")
    with pytest.raises(NumericsError, match="model.layers.1.mlp.gate_proj.weight holds NaN"):
        edit.surgery(model, d, rows=3)
