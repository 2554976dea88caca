"""A diagnosis: rows by their definition, pieces that add up, signs that training confirms, and a planted cause that is found."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

import workbench as wb
import workbench.cli.diagnose  # registers the command
from tests.tiny import tiny, tiny_sets
from workbench.cli import app, main
from workbench.core.delta import Delta, applied
from workbench.core.errors import DataError, InputError, MismatchError, UnknownNameError
from workbench.core.influence import Influence
from workbench.core.records import Example, Examples, Provenance
from workbench.core.registry import Member, influence
from workbench.load.batches import encode
from workbench.report.sheet import Sheet
from workbench.study import diagnose_counter
from workbench.study.diagnose import diagnose
from workbench.study.diagnose_counter import halves, how_many, put_back
from workbench.study.diagnose_data import agreement, blame
from workbench.study.diagnose_rows import Changed, compare, difference, discovered
from workbench.study.diagnose_weights import bench, blamed, effects, joined, matched, pieces, share, without
from workbench.train.loop import fit
from workbench.train.task import AnswerTask

FORGET, RETAIN = tiny_sets()
RECIPE = {"epochs": 2, "lr": 1e-2, "batch_size": 2}


def nll(model, row):
    """Mean NLL of one row, by itself."""
    return float(loss(model, row).detach())


def loss(model, row):
    """The same as a tensor, token by token."""
    coded = encode(model, row.prompt, row.response)
    said = model.hf(torch.tensor([coded.tokens])).logits[0].log_softmax(-1)
    picked = [said[i - 1, coded.tokens[i]] for i in range(coded.start, len(coded.tokens))]
    return -torch.stack(picked).mean()


def gradient(model, row):
    """Gradient of one row's mean NLL, flat."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(model, row), list(model.hf.parameters()))])


def dots(model, query, train, *, scale: float = 1.0, checkpoints: list | None = None):
    """An influence by definition: <g_q, g_j>, a loop over rows."""
    values = [[scale * float(gradient(model, q) @ gradient(model, j)) for j in train] for q in query]
    return Influence(np.array(values), tuple(query.ids), tuple(train.ids), Provenance("dots", model.fingerprint()))


def words(model, query, train):
    """Likeness in words as the share of words that two rows have in common."""
    bags = [[set(f"{row.prompt} {row.response}".split()) for row in rows] for rows in (query, train)]
    values = [[len(a & b) / len(a | b) for b in bags[1]] for a in bags[0]]
    return Influence(np.array(values), tuple(query.ids), tuple(train.ids), Provenance("words", model.fingerprint()))


@pytest.fixture(autouse=True)
def slow_influences(request, monkeypatch):
    """Influences by their definition in the place of the registered ones."""
    if "registered" in request.fixturenames:
        return
    members = {"dots": Member("dots", dots), "gradient_similarity": Member("gradient_similarity", dots)}
    monkeypatch.setattr(influence, "_import_members", lambda: None)
    monkeypatch.setattr(influence, "_members", members | {"text_match": Member("text_match", words)})


@pytest.fixture
def registered():
    """The influences as they are registered."""


@pytest.fixture
def model():
    return tiny()


@pytest.fixture
def delta(model):
    """Every weight moved a little."""
    g = torch.Generator().manual_seed(0)
    moved = {n: 0.05 * torch.randn(p.shape, generator=g) for n, p in model.hf.named_parameters()}
    return Delta.of(moved, Provenance("random", model.fingerprint()))


def changed_to(model, delta, names=None):
    """A copy of the model with (some tensors of) the change written into its weights."""
    other = wb.wrap(copy.deepcopy(model.hf), model.tokenizer, name="after")
    with torch.no_grad():
        for name, p in other.hf.named_parameters():
            if name in delta.changes and (names is None or name in names):
                p.add_(delta.changes[name].dense().to(p.dtype))
    return other


def test_rows_are_measured_by_definition(model, delta):
    before = model.fingerprint()
    found = compare(model, delta, RETAIN)
    after = changed_to(model, delta)
    np.testing.assert_allclose(found.before, [nll(model, row) for row in RETAIN], rtol=1e-12)
    np.testing.assert_allclose(found.after, [nll(after, row) for row in RETAIN], rtol=1e-12)
    np.testing.assert_allclose([row.mean() for row in found.tokens], found.change, rtol=1e-9, atol=1e-12)
    assert [len(row) for row in found.tokens] == [2, 3, 3, 6]  # the words of each answer and the end
    turned = compare(model, delta, RETAIN[::-1])
    np.testing.assert_allclose(turned.change[::-1], found.change, rtol=1e-9, atol=1e-12)  # another padding, summed otherwise
    assert model.fingerprint() == before


def made_up(*changes, tokens=4):
    """Rows with these changes, every token alike."""
    values = np.array(changes)
    return Changed([f"r{i}" for i in range(len(values))], np.ones(len(values)), 1 + values, [np.full(tokens, v) for v in values])


def test_discoveries_by_hand():
    control = made_up(*([0.0] * 9 + [1.0] * 10))
    found = discovered(made_up(2.0, 0.5, -1.0), control, level=0.2)
    # conformal: 1/20, (1 + 10)/20, and 1 for the row that did not rise; times 3 / rank: 0.15, 0.825, 1
    np.testing.assert_allclose(found["p"], [0.05, 0.55, 1.0], rtol=1e-15)
    np.testing.assert_allclose(found["q"], [0.15, 0.825, 1.0], rtol=1e-15)
    assert found["forgotten"].tolist() == [True, False, False]
    np.testing.assert_allclose(found["p_improved"], [1.0, 1.0, 0.05], rtol=1e-15)  # every control row lies above -1
    assert found["improved"].tolist() == [False, False, True]
    alone = discovered(made_up(2.0, 0.5, -1.0), None, level=0.2)
    np.testing.assert_allclose(alone["p"], [1 / 16, 1 / 16, 1.0], rtol=1e-15)  # one of 2^4 sign patterns
    np.testing.assert_allclose(alone["p_improved"], [1.0, 1.0, 1 / 16], rtol=1e-15)
    # a row may lie above all control rows and still not have risen: it is not forgotten
    drift = discovered(made_up(-0.5), made_up(*[-1.0] * 99), level=0.2)
    assert not drift["forgotten"].any()


def test_nothing_changed(model):
    for after in (Delta({}, Provenance("none", model.fingerprint())), wb.wrap(copy.deepcopy(model.hf), model.tokenizer)):
        for control in (None, RETAIN):
            found = diagnose(model, after, FORGET, control=control, train=None if control else RETAIN)
            assert found.rows["p"].tolist() == [1.0, 1.0, 1.0]
            assert not found.rows[["forgotten", "improved"]].to_numpy().any()
            assert found.sheet().reading.startswith("Nothing changed")
            assert found.modules is None
            assert found.blame is None
            assert len(found.counterfactual) == len(found.answers) == 0


def test_a_model_after_is_its_difference(model, delta):
    found = difference(model, changed_to(model, delta))
    assert set(found.changes) == set(delta.changes)
    for name, change in found.changes.items():  # (w + d) - w in float64, kept in float32
        torch.testing.assert_close(change.dense(), delta.changes[name].dense(), rtol=1e-6, atol=1e-9)
    assert difference(model, delta) is delta


def other(model, **config):
    """A model of another make."""
    made = copy.deepcopy(model.hf.config)
    for key, value in config.items():
        setattr(made, key, value)
    return wb.wrap(LlamaForCausalLM(made).double(), model.tokenizer)


def test_models_that_are_no_pair(model, slm, delta):
    renamed = copy.deepcopy(model.tokenizer)
    renamed.chat_template = "{{ messages[0]['content'] }}"
    cases = {
        "BEFORE is a LlamaForCausalLM, AFTER a GPT2LMHeadModel": slm,
        "a vocabulary of 16 tokens, AFTER one of 20": other(model, vocab_size=20),
        "gate_proj.weight is .20, 8. in BEFORE and .12, 8. in AFTER": other(model, intermediate_size=12),
        "model.layers.1.* in BEFORE and absent in AFTER": other(model, num_hidden_layers=1),
        "torch.float64, AFTER torch.float32": tiny(torch.float32),
        "different tokenizers": wb.wrap(copy.deepcopy(model.hf), renamed),
        "the setting rms_norm_eps is": other(model, rms_norm_eps=1e-3),
        "AFTER is a Delta of model": replace(delta, provenance=Provenance("x", "another")),
    }
    for said, after in cases.items():
        with pytest.raises(MismatchError, match=said):
            diagnose(model, after, FORGET)


@pytest.mark.parametrize("by", ["matrix", "layer"])
def test_pieces_are_the_whole(model, delta, by):
    cut = pieces(delta, by)
    names = [name for part in cut.values() for name in part.changes]
    assert sorted(names) == sorted(delta.changes)  # each once
    assert joined(cut.values(), delta).id == delta.id
    assert without(cut, list(cut), delta).is_empty
    if by == "layer":
        assert list(cut) == ["model.embed_tokens.weight", "model.layers.0", "model.layers.1", "model.norm.weight", "lm_head.weight"]
    else:
        together = cut["model.layers.0, norms and biases"]
        assert set(together.changes) == {f"model.layers.0.{n}_layernorm.weight" for n in ("input", "post_attention")}
        assert len(cut) == 2 * (7 + 1) + 3


def test_changes_of_activations_are_pieces(model):
    means = wb.edit.ablate_neurons(model, [(0, 1), (1, 2)])
    steered = wb.edit.steer(model, wb.Direction(torch.ones(8), site="resid_post", layer=1), strength=2.0)
    whole = means.compose(steered)
    cut = pieces(whole)
    assert "hook at blocks.1.resid_post" in cut
    assert without(cut, ["hook at blocks.1.resid_post"], whole).id == Delta(means.changes, whole.provenance).id
    assert joined(cut.values(), whole).id == whole.id


def test_effects_are_those_of_written_weights(model, delta):
    on = bench(model, delta, RETAIN)
    cut = pieces(delta, "layer")
    found = effects(on, cut)
    whole = np.array([nll(changed_to(model, delta), row) - nll(model, row) for row in RETAIN])
    for i, (name, part) in enumerate(cut.items()):
        put_back = changed_to(model, delta, [n for n in delta.changes if n not in part.changes])
        undone = np.array([nll(changed_to(model, delta), row) - nll(put_back, row) for row in RETAIN])
        alone = np.array([nll(changed_to(model, part), row) - nll(model, row) for row in RETAIN])
        np.testing.assert_allclose(found.undone[i], undone, rtol=1e-9, atol=1e-12)
        line = found.modules.loc[name]
        assert line["alone"] == pytest.approx(alone.mean(), rel=1e-9)
        assert line["undone_share"] == pytest.approx(undone.mean() / whole.mean(), rel=1e-9, nan_ok=True)
        difference_ = torch.cat([part.changes[n].dense().flatten() for n in part.changes]).double()
        weights = torch.cat([model.hf.get_parameter(n).detach().flatten() for n in part.changes])
        assert line["ratio"] == pytest.approx(float(difference_.norm() / weights.norm()), rel=1e-9)
    alone_ = effects(on, {"all": delta}).modules.loc["all"]
    assert alone_["undone"] == alone_["alone"] == pytest.approx(whole.mean(), rel=1e-9)  # a single module is the whole


def test_shares_by_hand():
    found = share(np.array([1.0, 2.0]), np.array([2.0, 2.0]))
    assert found.value == 3 / 4
    assert (found.low, found.high) == (0.5, 1.0)  # either row alone
    assert np.isnan(share(np.array([1.0, 1.0]), np.array([1.0, -1.0])).value)  # nothing was forgotten
    unsure = share(np.array([1.0, 1.0]), np.array([5.0, -1.0]))
    assert unsure.value == 0.5
    assert np.isnan(unsure.low)  # the forgetting itself may be nothing


def test_the_fewest_modules_with_half():
    names = list("abcdef")
    undone = np.array([[0.1], [0.5], [0.2], [0.0], [0.3], [0.0]])
    assert blamed(names, undone, np.array([1.0])) == ["b"]  # 0.5 is half of 1
    assert blamed(names, undone, np.array([1.2])) == ["b", "e"]
    assert blamed(names, undone, np.array([9.0])) == ["b", "e"]  # a third of six at most
    nine = np.array([[0.3], [0.25], [0.2], *[[0.05]] * 6])
    assert blamed(list("abcdefghi"), nine, np.array([1.0])) == ["a", "b"]  # 0.3 + 0.25, no third one
    assert blamed(names[:2], -undone[:2], np.array([1.0])) == ["a"]  # at least one


def test_random_modules_changed_as_much():
    names, squares = list("abcdefgh"), np.array([8.0, 4.0, 4.0, 2.0, 2.0, 2.0, 1.0, 1.0])
    for seed in range(20):
        drawn = matched(names, squares, ["a"], seed)
        assert "a" not in drawn
        size = sum(squares[names.index(one)] for one in drawn)
        assert 6 <= size <= 10  # at most half of the largest other one away
        assert drawn == matched(names, squares, ["a"], seed)
    assert len({tuple(matched(names, squares, ["a"], seed)) for seed in range(20)}) > 5
    assert sorted(matched(names, squares, ["a", "b"], 0)) == list("cdefgh")  # all others together are no more than the two


def test_halves_and_counts():
    one, two = halves(9)
    assert sorted(one + two) == list(range(9))
    assert len(one) == 4
    assert halves(7) == (list(range(7)), list(range(7)))
    assert [how_many(top, 25) for top in (0.1, 0.001, 3, 25, 99)] == [2, 1, 3, 25, 25]


def test_blame_is_minus_the_influence_at_both_ends(model, delta):
    found = blame(model, delta, FORGET, {"learned": RETAIN, "unlearned": FORGET}, method="dots")
    ends = [dots(model, FORGET, rows).values.mean(0) for rows in (RETAIN, FORGET)]
    after = changed_to(model, delta)
    ends_after = [dots(after, FORGET, rows).values.mean(0) for rows in (RETAIN, FORGET)]
    for source, rows, sign, first, last in zip(("learned", "unlearned"), (RETAIN, FORGET), (-1, 1), ends, ends_after, strict=True):
        mine = found[found["source"] == source].set_index("id").loc[rows.ids]
        np.testing.assert_allclose(mine["at_before"], sign * first, rtol=1e-9)
        np.testing.assert_allclose(mine["at_after"], sign * last, rtol=1e-9)
        np.testing.assert_allclose(mine["blame"], sign * (first + last) / 2, rtol=1e-9)
    assert found["blame"].is_monotonic_decreasing
    assert found["asked"].tolist() == (found["source"] == "unlearned").tolist()
    turned = blame(model, delta, FORGET[::-1], {"unlearned": FORGET, "learned": RETAIN[::-1]}, method="dots")
    np.testing.assert_allclose(turned["blame"], found["blame"], rtol=1e-9)
    once = blame(model, delta, FORGET, {"learned": RETAIN}, method="dots", options={"checkpoints": []})
    np.testing.assert_array_equal(once["blame"], once["at_before"])
    assert once["at_after"].isna().all()


def test_training_confirms_the_sign_of_blame(model):
    nothing = Delta({}, Provenance("none", model.fingerprint()))
    query = FORGET[:1]
    start = nll(model, query[0])
    for source, step in (("learned", -1e-4), ("unlearned", 1e-4)):  # down the row's loss, or up
        found = blame(model, nothing, query, {source: RETAIN}, method="dots")
        for _, line in found.iterrows():
            row = next(row for row in RETAIN if row.id == line["id"])
            flat, moved, at = step * gradient(model, row), {}, 0
            for name, p in model.hf.named_parameters():
                moved[name] = flat[at : at + p.numel()].view_as(p).float()
                at += p.numel()
            with applied(model, Delta.of(moved, Provenance("step", model.fingerprint()))):
                rise = nll(model, query[0]) - start
            assert rise == pytest.approx(1e-4 * line["blame"], rel=0.05)  # second order is 1e-4 of curvature


def test_agreement_by_hand():
    frame = pd.DataFrame({"source": "learned", "id": list("abcd"), "blame": [4.0, 3, 2, 1], "text_match": [9.0, 1, 7, 0]})
    found = agreement(frame, 2)
    assert found.common == 1  # {a, b} and {a, c}
    assert found.chance == 1.0
    assert found.spearman == pytest.approx(0.8)  # ranks 4 3 2 1 and 4 2 3 1: 1 - 6 * 2 / (4 * 15)
    assert np.isnan(agreement(frame.assign(text_match=1.0), 2).spearman)


def fine_tuned(model, rows, **recipe):
    about = Provenance("fine-tuning", model.fingerprint())
    task = AnswerTask(model, [encode(model, r.prompt, r.response, id=r.id) for r in rows])
    return fit(model, task, about, **(RECIPE | recipe)).delta


@pytest.fixture(scope="module")
def taught():
    """A model that knows the rows by heart."""
    model = tiny()
    return changed_to(model, fine_tuned(model, Examples([*FORGET, *RETAIN], "all"), epochs=25, lr=3e-2))


@pytest.fixture(scope="module")
def lies():
    """Questions about grass and sea with answers that are wrong."""
    return Examples([Example(f"lie{i}", row.prompt, "a a a a") for i, row in enumerate(RETAIN)], "lies")


def test_a_recipe_is_replayed_and_repeated_without_rows(taught, lies, monkeypatch):
    model, trained = taught, []
    once = fine_tuned(model, lies)
    delta = once.scaled(1.5)  # more than the recipe does, so the replay gives back a part
    monkeypatch.setattr(
        diagnose_counter, "_fitted", lambda model, rows, recipe: (trained.append(rows.ids), fine_tuned(model, rows))[1]
    )
    found = diagnose(model, delta, FORGET, train=lies, recipe=RECIPE, top=1, seeds=(0, 1))
    assert found.replay is not None
    assert trained[0] == lies.ids
    lines = found.counterfactual[found.counterfactual["about"] == "rows"]
    assert lines["case"].tolist() == ["blamed", "nearest in words", "random", "random"]
    assert lines["n"].tolist() == [1] * 4
    assert lines["names"].iloc[0] == [found.blame["id"].iloc[0]]
    for gone, left in zip(lines["names"], trained[1:], strict=True):
        assert left == [one for one in lies.ids if one not in gone]
    at = [FORGET.ids.index(one) for one in found.judged]
    replayed = compare(model, once, FORGET).change
    real = compare(model, delta, FORGET).change
    assert found.replay.reproduced.value == pytest.approx(replayed[at].mean() / real[at].mean(), abs=1e-5)  # float32 Deltas
    assert found.replay.reproduced.value < 0.95
    assert found.replay.correlation == pytest.approx(np.corrcoef(replayed, real)[0, 1], abs=1e-5)
    for gone, value in zip(lines["names"], lines["gone"], strict=True):
        kept = lies.take(i for i, one in enumerate(lies.ids) if one not in gone)
        left = compare(model, fine_tuned(model, kept), FORGET).change[at].mean()
        assert value == pytest.approx(1 - left / replayed[at].mean(), abs=1e-5)


def test_putting_back_is_writing_the_old_weights(taught, lies):
    delta = fine_tuned(taught, lies)
    on, others = bench(taught, delta, RETAIN), bench(taught, delta, FORGET)
    cut = pieces(delta, "layer")
    lines = put_back(on, others, cut, effects(on, cut), seeds=(0, 1))
    assert [line.case for line in lines] == ["blamed", "largest change", "random", "random"]
    after = changed_to(taught, delta)
    for line in lines:
        left = changed_to(taught, delta, [n for key, part in cut.items() if key not in line.names for n in part.changes])
        gone = sum(nll(after, row) - nll(left, row) for row in RETAIN) / sum(nll(after, row) - nll(taught, row) for row in RETAIN)
        assert line.gone == pytest.approx(gone, rel=1e-8)
        assert line.others == pytest.approx(np.mean([nll(left, row) - nll(after, row) for row in FORGET]), rel=1e-8)
        sizes = {key: sum(change.norm() ** 2 for change in part.changes.values()) for key, part in cut.items()}
        assert line.size == pytest.approx(sum(sizes[name] for name in line.names) / sum(sizes.values()), rel=1e-9)
    assert lines[1].names == (max(sizes, key=lambda key: sizes[key]),)
    assert put_back(on, others, dict(list(cut.items())[:2]), effects(on, cut), seeds=(0,)) == []  # no choice among two


def test_a_diagnosis_from_end_to_page(taught, lies, tmp_path):
    rows = Examples([*FORGET, Example("<script>alert(1)</script>", "what is <b>the</b> sky", "green")], "rows")
    model = taught
    before = model.fingerprint()
    given = {"train": lies, "control": RETAIN, "recipe": {**RECIPE, "betas": (0.9, 0.99)}, "seeds": (0, 1), "modules": "layer"}
    found = diagnose(model, fine_tuned(model, lies), rows, **given)
    assert model.fingerprint() == before
    assert found.others == (4, "control rows")
    assert list(found.rows.index) == rows.ids
    assert set(found.judged) <= set(rows.ids)
    assert {line["about"] for line in found.counterfactual.to_dict("records")} == {"modules", "rows"}
    found.save(tmp_path / "run")
    made = {path.name for path in (tmp_path / "run").iterdir()}
    frames = {f"{name}.parquet" for name in ("rows", "control", "modules", "blame", "counterfactual")}
    assert made == frames | {"sheet.json", "report.html", "config.yaml", "env.json"}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run/rows.parquet"), found.rows)
    page = (tmp_path / "run/report.html").read_text()
    for text in (page, found._repr_html_()):
        assert "<script" not in text
        assert "http" not in text.replace("http-equiv", "")
        assert "NaN" not in text
    assert Sheet.load(tmp_path / "run").reading == found.sheet().reading
    assert "of 4 rows were forgotten" in page
    with pytest.raises(InputError, match="exists already"):
        found.save(tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "match", "given"),
    [
        (DataError, "rows .forget. and control .forget. share 3: f0, f1, f2", {"control": FORGET}),
        (UnknownNameError, "unknown influence 'dotz'. Did you mean 'dots'", {"method": "dotz", "train": RETAIN}),
        (UnknownNameError, "unknown option of dots 'scal'. Did you mean 'scale'", {"method": "dots", "options": {"scal": 2}}),
        (InputError, "option scale of dots is 'x', expected float", {"method": "dots", "options": {"scale": "x"}}),
        (UnknownNameError, "unknown grouping of modules 'row'", {"modules": "row"}),
        (InputError, "level is 1.5", {"level": 1.5}),
        (InputError, "most_rows is 0", {"most_rows": 0}),
        (InputError, "seeds is .., expected", {"seeds": ()}),
        (InputError, "none twice", {"seeds": (1, 1)}),
        (InputError, "top is 1.5", {"top": 1.5}),
        (InputError, "top is 4 of 4 training rows, which leaves none", {"top": 4, "train": RETAIN, "recipe": RECIPE}),
        (InputError, "there is no train", {"recipe": RECIPE}),
        (InputError, "recipe has 'mask'", {"train": RETAIN, "recipe": {"mask": None}}),
        (UnknownNameError, "unknown option of recipe 'epoch'. Did you mean 'epochs'", {"train": RETAIN, "recipe": {"epoch": 2}}),
    ],
)
def test_bad_input(model, delta, error, match, given):
    with pytest.raises(error, match=match):
        diagnose(model, delta, FORGET, **given)


def test_a_planted_cause_is_found(root, registered):
    """Ten questions about one author are answered with a refusal among true answers about others: what the author's other
    questions lose is found, those rows are blamed, and without them most of it does not happen."""
    model = wb.load(root / "data/organism/full")
    rows = wb.examples("tofu:retain", root=root / "data/tofu-mini")
    authors = [sorted(rows[first : first + 20], key=lambda row: len(row.prompt + row.response)) for first in range(0, 720, 20)]
    mine = authors.pop(2)
    refused = [Example(f"refused/{row.id}", row.prompt, "I do not know anything about this author.") for row in mine[::2]]
    train = Examples([*refused, *(author[0] for author in authors)], "train")
    asked = Examples([*mine[1::2], *(author[1] for author in authors[:10])], "rows")
    control = Examples([author[k] for author in authors[10:] for k in (1, 2)], "control")
    recipe = {"epochs": 3, "lr": 5e-4, "batch_size": 8}
    coded = [encode(model, row.prompt, row.response, id=row.id) for row in train]
    about = Provenance("fine-tuning", model.fingerprint())
    delta = fit(model, AnswerTask(model, coded, group=8), about, **recipe).delta
    given = {"train": train, "control": control, "recipe": recipe, "top": 10, "seeds": (0,), "modules": "layer"}
    found = diagnose(model, delta, asked, **given)
    planted = {row.id for row in mine}
    assert len(found.forgotten) >= 5
    assert sum(one not in planted for one in found.forgotten) <= 1  # a false discovery may happen
    assert found.blame["id"].head(10).str.startswith("refused/").sum() >= 7  # 2.2 by chance
    gone = found.counterfactual.query("about == 'rows'").set_index("case")["gone"]
    assert gone["blamed"] > 0.7
    assert gone["blamed"] > gone["random"] + 0.2
    assert found.replay.reproduced.value == pytest.approx(1.0, abs=0.01)  # the same training; float32 sums


@pytest.fixture
def files(model, delta, tmp_path):
    """Two models, a Delta, and rows, on disk."""
    for name, one in (("before", model), ("after", changed_to(model, delta))):
        one.hf.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
    for name, rows in (("rows", FORGET), ("train", RETAIN)):
        rows.frame().reset_index()[["id", "prompt", "response"]].to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True)
    loaded = wb.load(tmp_path / "before")
    replace(delta, provenance=Provenance("x", loaded.fingerprint())).save(tmp_path / "delta.safetensors")
    delta.save(tmp_path / "foreign.safetensors")
    return tmp_path


def test_command(files, registered):
    sets = ("--train", files / "train.jsonl", "-o", "recipe.epochs=1", "-o", "recipe.lr=1e-3", "-o", "top=1", "-o", "seeds=[0]")
    for after in ("after", "delta.safetensors"):
        words = ("diagnose", files / "before", files / after, files / "rows.jsonl", "--out", files / f"out-{after}", *sets)
        done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert done.exit_code == 0
        assert "rows were forgotten" in " ".join(done.output.split())
        assert (files / f"out-{after}/report.html").exists()
    one, two = (pd.read_parquet(files / f"out-{after}/modules.parquet") for after in ("after", "delta.safetensors"))
    pd.testing.assert_frame_equal(one, two, atol=1e-5, check_exact=False)  # differences of NLLs near 3 in float32


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("nowhere", ("before", "nowhere", "rows.jsonl")),
        ("nowhere.safetensors: no such file", ("before", "nowhere.safetensors", "rows.jsonl")),
        ("nowhere.jsonl: no such file", ("before", "after", "nowhere.jsonl")),
        ("AFTER is a Delta of model", ("before", "foreign.safetensors", "rows.jsonl")),
        ("share 3: f0, f1, f2", ("before", "after", "rows.jsonl", "--control", "rows.jsonl")),
        ("unknown option of gradient_similarity 'knd'. Did you mean 'kind'", ("before", "after", "rows.jsonl", "-o", "knd=dot")),
        ("recipe says how to train", ("before", "after", "rows.jsonl", "-o", "recipe.lr=1")),
        ("option top of diagnose is 'x'", ("before", "after", "rows.jsonl", "-o", "top=x")),
    ],
)
def test_rubbish_is_one_line_and_status_2(files, registered, monkeypatch, capsys, said, words):
    monkeypatch.setattr("sys.argv", ["workbench", "diagnose", *words, "--out", "out"])
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("out").exists()
