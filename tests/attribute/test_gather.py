"""What weight scores share: choice of parameters, forget loss, one pass; and several scores from it."""

from dataclasses import replace

import pytest
import torch

from tests.attribute.plain import plain
from tests.reference import attribution as truth
from tests.tiny import tiny, tiny_sets
from workbench import attribute
from workbench.core.errors import DataError, InputError, MismatchError, NumericsError, UnknownNameError
from workbench.core.records import Examples
from workbench.core.registry import attribution
from workbench.trace import moments


def test_patterns_choose_and_coverage_says_how_much():
    model, sets = tiny(), tiny_sets()
    found = attribute.saliency(model, *sets, include=["*.mlp.*", "*norm*"], exclude="*.1.*")
    assert set(found) == {n for n in model.shapes() if ("mlp" in n or "norm" in n) and ".1." not in n}
    share = sum(found[n].numel() for n in found) / sum(p.numel() for p in model.hf.parameters())
    assert found.coverage == pytest.approx(share)
    whole = attribute.saliency(model, *sets)
    assert whole.coverage == 1
    for name in found:
        torch.testing.assert_close(found[name], whole[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"include": "*.attention.*"}, r"'\*.attention.\*' fits no parameter"),
        ({"exclude": ["*nothing*"]}, r"'\*nothing\*' fits no parameter"),
        ({"include": "*.mlp.*", "exclude": "*"}, "leave no parameter"),
        ({"include": ""}, "'' fits no parameter"),
    ],
)
@pytest.mark.parametrize("method", ["saliency", "magnitude", "random", "integrated_gradients"])
def test_patterns_that_fit_nothing(method, options, match):
    with pytest.raises(InputError, match=match):
        attribution[method].function(tiny(), *tiny_sets(), **options)


def test_sets_that_share_rows():
    forget, _ = tiny_sets()
    with pytest.raises(DataError, match="share 3 rows"):
        attribute.snip(tiny(), forget, forget)


def test_an_objective_stands_for_its_gradient_at_the_model():
    """NPO at its own reference has the gradient of the summed log-probability: -T_e times that of the mean NLL."""
    model, (forget, retain) = tiny(), tiny_sets()
    rows = plain(model, forget)
    each = truth.example_gradients(model.hf, rows)
    lengths = [len(tokens) - start for tokens, start in rows]
    found = attribute.saliency(model, forget, retain, forget_loss="npo")
    assert found.provenance.options["forget_loss"] == "npo"
    for name in found:
        expected = sum(length * g[name] for length, g in zip(lengths, each, strict=True)) / len(rows)
        torch.testing.assert_close(found[name].double(), expected.abs(), rtol=1e-4, atol=1e-7)  # RMSNorm is float32
    with pytest.raises(UnknownNameError, match="forget_loss 'mpo'.*npo"):
        attribute.saliency(model, forget, retain, forget_loss="mpo")
    for name in ("idk", "refusal_dpo", "random_label", "undial", "ceu", "pdu", "rmu", "task_vector"):
        with pytest.raises(
            InputError, match=f"forget_loss '{name}' is not read from .* own answers. Those that are: nll, gradient_ascent"
        ):
            attribute.saliency(model, forget, retain, forget_loss=name)


def test_other_answers_can_be_the_target():
    model, (forget, retain) = tiny(), tiny_sets()
    refusing = forget.answered("no")
    assert [row.response for row in refusing] == ["no"] * 3
    expected = truth.mean_gradient(model.hf, plain(model, refusing))
    found = attribute.saliency(model, refusing, retain)
    for name in found:
        torch.testing.assert_close(found[name].double(), expected[name].abs(), rtol=1e-4, atol=1e-7)  # RMSNorm is float32


def test_several_scores_are_the_same_as_one_by_one_and_share_the_passes(monkeypatch):
    model, (forget, retain) = tiny(), tiny_sets()
    methods = {"wagle": {"gamma": 0.3}, "published": {"method": "wagle", "gamma": "paper"}} | {
        name: {} for name in ("snip", "saliency", "fisher", "fisher_ratio", "forget_retain_cosine", "wanda", "magnitude", "random")
    }
    alone = {}
    for name, options in methods.items():
        own = {key: value for key, value in options.items() if key != "method"}
        alone[name] = attribution[str(options.get("method", name))].function(model, forget, retain, **own)
    seen = []
    inner = moments.logits
    monkeypatch.setattr(moments, "logits", lambda m, batch: seen.append(len(batch.tokens)) or inner(m, batch))
    together = attribute.several(model, forget, retain, methods)
    assert sum(seen) == len(forget) + len(retain) + 2  # each row once, and a pair to compare with autograd
    assert list(together) == list(methods)
    for name, scores in together.items():
        assert list(scores) == list(alone[name])
        for parameter in scores:
            torch.testing.assert_close(scores[parameter], alone[name][parameter], rtol=1e-4, atol=1e-7)  # RMSNorm


def test_several_refuses_what_it_cannot_share():
    model, sets = tiny(), tiny_sets()
    with pytest.raises(InputError, match="no method was named"):
        attribute.several(model, *sets, [])
    with pytest.raises(UnknownNameError, match="wagel.*wagle"):
        attribute.several(model, *sets, ["wagel"])
    with pytest.raises(InputError, match="the same for all"):
        attribute.several(model, *sets, {"snip": {"forget_loss": "npo"}})


def test_gathered_must_be_of_this_model_and_these_rows():
    model, (forget, retain) = tiny(), tiny_sets()
    found = attribute.gather(model, forget, retain, ["forget.gradient"], shared=True)
    assert torch.equal(
        attribute.snip(model, forget, retain, gathered=found)["lm_head.weight"],
        attribute.snip(model, forget, retain)["lm_head.weight"],
    )
    with pytest.raises(MismatchError, match="another model or other rows"):
        attribute.snip(tiny(seed=1), forget, retain, gathered=found)
    with pytest.raises(MismatchError, match="another model or other rows"):
        attribute.snip(model, forget[:2], retain, gathered=found)
    with pytest.raises(InputError, match="it lacks retain.gradient"):
        attribute.wagle(model, forget, retain, gathered=found)


def test_a_gradient_that_is_not_finite_is_named(monkeypatch):
    model, sets = tiny(), tiny_sets()

    def broken(passed, rows):
        return passed.logprob.sum(-1) * float("inf")

    with pytest.raises(NumericsError, match="forget: .*weight holds NaN or infinity"):
        attribute.wagle(model, *sets, gamma=1.0, forget_loss=broken)


def test_the_plan_is_said_before_the_run(capsys):
    attribute.snip(tiny(), *tiny_sets(), show=True)
    assert "GiB at the peak (weights" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(dtype):
    """Weights rounded to the half's 8 or 11 bits and then widened: what remains is the rounding inside the passes."""
    half, (forget, retain) = tiny(dtype, d_model=16), tiny_sets()
    full = tiny(torch.float32, d_model=16)
    with torch.no_grad():
        for p, q in zip(full.hf.parameters(), half.hf.parameters(), strict=True):
            p.copy_(q.float())
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]  # measured 0.04 and 0.006 of each score's norm
    for method in ("wagle", "snip", "fisher", "forget_retain_cosine", "wanda"):
        options = {"gamma": 1.0} if method == "wagle" else {}
        one, other = (attribution[method].function(m, forget, retain, **options) for m in (half, full))
        for name in one:
            assert one[name].dtype == torch.float32
        joined = [torch.cat([s[n].flatten() for n in s]) for s in (one, other)]
        error = float((joined[0] - joined[1]).norm() / joined[1].norm())
        assert 0 < error < tolerance, f"{method}: {error:.4f}"


def test_large_sets_do_not_underflow_in_float16():
    """A mean's small gradients are lost if the loss is divided before the backward pass: 1e-7 is half of float16's least step."""
    forget, retain = tiny_sets()
    many = Examples([replace(row, id=f"{row.id}.{k}") for k in range(400) for row in forget], "many")
    few, lots = (attribute.snip(tiny(torch.float16), rows, retain) for rows in (forget, many))
    for name in few:
        # copies of three rows: the same mean; batches of another shape round differently
        error = float((few[name] - lots[name]).norm()) / (float(few[name].norm()) + 1e-9)
        assert error < 0.1, f"{name}: {error:.3f}"  # 0.03 by rounding alone


def test_what_was_gathered_serves_several_scores_and_only_what_was_asked():
    model, (forget, retain) = tiny(torch.float32), tiny_sets()
    found = attribute.gather(model, forget, retain, ["forget.square", "forget.gradient"])
    first = attribute.fisher(model, forget, retain, gathered=found)
    for tensor in first.tensors.values():
        tensor.zero_()
    again = attribute.fisher(model, forget, retain, gathered=found)
    assert float(again["lm_head.weight"].sum()) > 0, "a score is not the gathered tensor itself"
    for asked in ({"forget_loss": "npo"}, {"include": "*.mlp.*"}, {"exclude": "*norm*"}):
        with pytest.raises(MismatchError, match=f"its {next(iter(asked))} is"):
            attribute.saliency(model, forget, retain, gathered=found, **asked)


def test_scores_that_are_not_finite_are_refused():
    model, sets = tiny(), tiny_sets()
    with pytest.raises(NumericsError, match="wagle: the scores of"):
        attribute.wagle(model, *sets, gamma=1e-42)
