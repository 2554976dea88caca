"""Ablated neurons: what the MLP loses, means against one row at a time, the bias against the hook."""

import pytest
import torch

import workbench as wb
from tests.edit.models import CLOSE, FLOAT32, ROWS, TEXTS, bits, logits, model_of, same
from tests.reference import edits as truth
from tests.reference.tiny_models import tokens
from tests.tiny import tiny, tiny_sets
from workbench import edit
from workbench.core.delta import Delta, applied
from workbench.core.errors import DataError, InputError, ModelError, NumericsError, UnknownNameError
from workbench.core.records import Provenance
from workbench.load.batches import encode_all
from workbench.trace.changes import activation_change
from workbench.trace.hooks import capture, patch

ALL = ["llama", "gpt2", "gpt_neox", "phi3", "gemma2", "opt"]
PLACES = [(1, 7), (1, 3), (2, 0)]


def mlp(model, layer=1):
    """Coefficients [batch pos d_mlp] and what the down-projection gives."""
    names = [f"blocks.{layer}.mlp.post", f"blocks.{layer}.mlp.out"]
    with capture(model, names) as acts, torch.no_grad():
        model.hf(tokens())
    return [acts[name] for name in names]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3", "gemma2"])
def test_zeroing_a_value_vector_moves_the_output_by_exactly_its_coefficient_times_it(name):
    model = model_of(name)
    m, before = mlp(model)
    vectors = model.sites.value_vectors(1).read(model.hf)
    found = edit.ablate_neurons(model, [(1, 7), (1, 3)])
    with applied(model, found):
        _, after = mlp(model)
        assert float(model.sites.value_vectors(1).read(model.hf)[[3, 7]].abs().max()) < 1e-6  # float64: values are float32
    want = -(m[..., [3]] * vectors[3] + m[..., [7]] * vectors[7])
    torch.testing.assert_close(after - before, want, **FLOAT32)
    assert float(want.abs().max()) > 0.1
    assert found.provenance.notes["by"] == "weights"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_is_zero_to_the_bit_and_undone_to_the_bit(name, dtype):
    model = model_of(name, dtype)
    before = bits(model)
    found = edit.ablate_neurons(model, PLACES)
    assert same(model, before)
    with applied(model, found):
        assert not model.sites.value_vectors(1).read(model.hf)[[3, 7]].any()
        assert not model.sites.value_vectors(2).read(model.hf)[0].any()
        assert model.sites.value_vectors(1).read(model.hf)[4].any()
    assert same(model, before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_zero_is_patching_the_coefficients_to_zero(name):
    model = model_of(name, torch.float32)

    def zero(x):
        x = x.clone()
        x[..., [3, 7]] = 0
        return x

    with patch(model, {"blocks.1.mlp.post": zero}):
        want = logits(model, tokens())
    with applied(model, edit.ablate_neurons(model, [(1, 7), (1, 3)])):
        assert torch.equal(logits(model, tokens()), want)


def means(model, name, layer):
    module = truth.MLP_OUT[name].format(layer)
    return truth.mean(model.hf, truth.inputs, module, ROWS)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch_tokens", [4, 4096])
def test_the_mean_is_that_of_one_row_at_a_time_and_stands_in_the_bias_or_in_a_hook(name, batch_tokens):
    model = model_of(name)
    vectors = model.sites.value_vectors(1).read(model.hf)
    m = means(model, name, 1)[[3, 7]]
    found = edit.ablate_neurons(model, PLACES, kind="mean", texts=TEXTS, batch_tokens=batch_tokens)
    notes = found.provenance.notes
    assert (notes["tokens"], notes["texts"]) == (10, 3)
    module = truth.MLP_OUT[name].format(1)
    if name in ("phi3", "gemma2"):
        assert [(hook.kind, hook.site) for hook in found.hooks] == [("set", f"blocks.{n}.mlp.post") for n in (1, 2)]
        assert found.hooks[0].index.tolist() == [3, 7]
        torch.testing.assert_close(found.hooks[0].values.double(), m, **FLOAT32)
        assert (notes["by"], found.changes) == ("hooks", {})
    else:
        moved = found.changes[f"{module}.bias"].dense().double()
        torch.testing.assert_close(moved, m @ vectors[[3, 7]], **FLOAT32)
        assert (notes["by"], found.hooks) == ("weights", ())
    assert "bias" in notes["why"]


@pytest.mark.parametrize("kind", ["mean", "resample"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt"])
def test_the_bias_does_what_the_hook_does(name, kind):
    model = model_of(name)
    by_bias = edit.ablate_neurons(model, PLACES, kind=kind, texts=TEXTS, seed=3)
    index = {1: torch.tensor([3, 7]), 2: torch.tensor([0])}
    if kind == "mean":
        held = {n: means(model, name, n)[index[n]] for n in index}
    else:
        at = by_bias.provenance.notes["token"]
        held = {
            n: truth.inputs(model.hf, truth.MLP_OUT[name].format(n), ROWS[int(at["text"])])[at["position"]][index[n]] for n in index
        }
    hooks = tuple(activation_change(model, f"blocks.{n}.mlp.post", "set", held[n].float(), index=index[n]) for n in index)
    by_hook = Delta({}, Provenance("by hand", model.fingerprint()), hooks)
    with applied(model, by_hook):
        want = logits(model, tokens())
    with applied(model, by_bias):
        torch.testing.assert_close(logits(model, tokens()), want, **FLOAT32)


def test_resampling_draws_one_token_for_all_places_evenly():
    model = model_of("phi3")
    tokens_of = {}
    for n in (0, 2):
        rows = [truth.inputs(model.hf, truth.MLP_OUT["phi3"].format(n), row) for row in ROWS]
        tokens_of[n] = torch.cat(rows)
    seen = []
    for seed in range(60):
        found = edit.ablate_neurons(model, [(0, 5), (2, 9)], kind="resample", texts=TEXTS, seed=seed)
        first, second = (float(hook.values[0]) for hook in found.hooks)
        token = int((tokens_of[0][:, 5] - first).abs().argmin())
        assert tokens_of[0][token, 5] == pytest.approx(first, rel=1e-6)
        assert tokens_of[2][token, 9] == pytest.approx(second, rel=1e-6)  # of the same token
        at = found.provenance.notes["token"]
        assert sum(len(row) for row in ROWS[: int(at["text"])]) + at["position"] == token
        seen.append(token)
    assert set(seen) == set(range(10))  # with 60 draws a token is missed with a chance of 10 * 0.9**60 = 2 %; these seeds miss none
    one, two = (edit.ablate_neurons(model, [(0, 5)], kind="resample", texts=TEXTS, seed=5) for _ in range(2))
    assert one.id == two.id


def test_examples_count_prompt_and_answer_and_their_end():
    model, (forget, _) = tiny(), tiny_sets()
    found = edit.ablate_neurons(model, [(0, 1)], kind="mean", texts=forget)
    rows = [row.tokens for row in encode_all(model, forget)]
    want = truth.mean(model.hf, truth.inputs, truth.MLP_OUT["llama"].format(0), rows)[1]
    assert float(found.hooks[0].values[0]) == pytest.approx(float(want), rel=1e-6)  # float32 values
    assert found.provenance.notes["tokens"] == sum(map(len, rows))
    assert found.provenance.data == {"texts": forget.fingerprint()}


def test_the_token_before_the_text_counts_only_when_asked(stories):
    texts = ["Once upon a time", "The cat sat on the mat and slept"]
    rows = [stories.tokenizer(text)["input_ids"] for text in texts]
    assert all(row[0] == stories.tokenizer.bos_token_id for row in rows)
    every = [truth.inputs(stories.hf, "model.layers.2.mlp.down_proj", row)[:, 9] for row in rows]
    for bos, want in ((True, torch.cat(every)), (False, torch.cat([x[1:] for x in every]))):
        found = edit.ablate_neurons(stories, [(2, 9)], kind="mean", texts=texts, bos=bos)
        assert float(found.hooks[0].values[0]) == pytest.approx(float(want.mean()), rel=1e-4)  # a float32 model, batched or not
        assert found.provenance.notes["tokens"] == len(want)


def test_what_is_applied_takes_part_in_the_mean():
    model = model_of("phi3")
    before = edit.ablate_neurons(model, [(2, 0)], kind="mean", texts=TEXTS)
    with applied(model, edit.ablate_neurons(model, [(1, 3), (1, 4)])):
        after = edit.ablate_neurons(model, [(2, 0)], kind="mean", texts=TEXTS)
    assert abs(float(before.hooks[0].values - after.hooks[0].values)) > 1e-4


def test_control_place_takes_as_many_other_neurons_of_every_layer():
    model = model_of("phi3")
    for kind in ("zero", "mean"):
        found = edit.ablate_neurons(model, PLACES, kind=kind, texts=TEXTS, control="place", seed=1)
        assert [layer for layer, _ in found.provenance.options["edited"]] == [1, 1, 2]
        assert not {tuple(p) for p in found.provenance.options["edited"]} & set(PLACES)
        assert found.provenance.options["places"] == [[1, 3], [1, 7], [2, 0]]
    many = [(1, n) for n in range(40)]
    found = edit.ablate_neurons(model, many, control="place")
    edited = {n for _, n in found.provenance.options["edited"]}
    assert len(edited) == 40
    assert edited >= set(range(40, 48))  # all that were not chosen, then some that were
    with pytest.raises(InputError, match="everything there is was chosen"):
        edit.ablate_neurons(model, [(1, n) for n in range(48)], control="place")


def test_refusals():
    model = model_of("phi3")
    with pytest.raises(InputError, match=r"neuron \(1, 48\) does not exist; layer 1 has neurons 0 to 47"):
        edit.ablate_neurons(model, [(1, 48)])
    with pytest.raises(InputError, match="there is no layer 3; layers are 0 to 2"):
        edit.ablate_neurons(model, [(3, 0)])
    with pytest.raises(InputError, match="there is no layer -1"):
        edit.ablate_neurons(model, [(-1, 0)])
    with pytest.raises(InputError, match="places is empty"):
        edit.ablate_neurons(model, [])
    with pytest.raises(InputError, match=r"neuron \(1, 3\) is named twice"):
        edit.ablate_neurons(model, [(1, 3), (2, 0), wb.core.components.Place(1, 3)])
    with pytest.raises(InputError, match="takes means over a declared set; give texts"):
        edit.ablate_neurons(model, [(1, 3)], kind="mean")
    with pytest.raises(DataError, match="texts is empty"):
        edit.ablate_neurons(model, [(1, 3)], kind="mean", texts=[])
    with pytest.raises(UnknownNameError, match="unknown kind of ablation 'means'. Did you mean 'mean'"):
        edit.ablate_neurons(model, [(1, 3)], kind="means", texts=TEXTS)
    with pytest.raises(UnknownNameError, match="unknown control 'elsewhere'"):
        edit.ablate_neurons(model, [(1, 3)], control="elsewhere")
    with torch.no_grad():
        model.hf.get_parameter("model.layers.0.mlp.gate_up_proj.weight")[2, 2] = float("nan")
    with pytest.raises(NumericsError, match=r"blocks.1.mlp.post: the mean over the texts is NaN"):
        edit.ablate_neurons(model, [(1, 3)], kind="mean", texts=TEXTS)


def test_a_mixture_of_experts_has_no_neurons():
    from transformers import MixtralConfig, MixtralForCausalLM

    from tests.trace.test_views import tokenizer

    config = MixtralConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, num_local_experts=2, max_position_embeddings=64)  # fmt: skip
    with torch.random.fork_rng():
        model = wb.wrap(MixtralForCausalLM(config), tokenizer(bos_token="w1", eos_token="w2"))
    with pytest.raises(ModelError, match="mixture of experts"):
        edit.ablate_neurons(model, [(0, 1)])
    # layers can be held there, by a hook
    found = edit.ablate_layers(model, [1], part="mlp")
    assert (found.provenance.notes["by"], [hook.site for hook in found.hooks]) == ("hooks", ["blocks.1.mlp_out"])
    with patch(model, {"blocks.1.mlp_out": torch.zeros_like}):
        want = logits(model, tokens())
    with applied(model, found):
        torch.testing.assert_close(logits(model, tokens()), want, **CLOSE)
    with pytest.raises(ModelError, match="Use how='hooks'"):
        edit.orthogonalize(model, wb.Direction(torch.ones(32), "resid_post", 0))
