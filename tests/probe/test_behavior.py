"""probe.fit: what is planted is found where it is, controls say what they should, and the held-out rows stay unseen."""

import inspect

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import probes as truth
from tests.reference.tiny_models import tiny_model
from tests.tiny import WORDS, tiny
from workbench.core.errors import DataError, InputError, NumericsError, ShapeError, UnknownNameError
from workbench.core.statistics import bootstrap
from workbench.probe import At, fit, logistic
from workbench.trace.features import Features

D = 12
VECTOR = np.random.default_rng(9).normal(size=D)
VECTOR /= np.linalg.norm(VECTOR)


def sentences(n, *, seed=0, words=WORDS[2:]):
    """Different texts of unequal length that say nothing about any label."""
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < n:
        found[" ".join(rng.choice(words, size=rng.integers(4, 12)))] = None
    return list(found)


@pytest.fixture
def plant(monkeypatch):
    """Replace the features by made-up ones: a list of [n, D], one a layer."""

    def made(*layers):
        values = {("resid_post", i): torch.tensor(x, dtype=torch.float32) for i, x in enumerate(layers)}
        monkeypatch.setattr("workbench.probe.behavior.features", lambda *_, **__: Features(values, "mean", False, 7))

    return made


def noise(n, *, seed=1):
    return np.random.default_rng(seed).normal(size=(n, D))


# --- what is planted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["logistic", "mean_difference", "lda", "ridge"])
def test_what_is_planted_is_found_at_its_layer(plant, method):
    n = 3000
    labels = np.arange(n) % 2 if method != "ridge" else np.random.default_rng(3).normal(size=n)
    plant(noise(n), noise(n, seed=2) + 3 * labels[:, None] * VECTOR, noise(n, seed=3))
    sweep = fit(tiny(), sentences(n), labels.tolist(), method=method)
    assert sweep.best() == At("resid_post", 1)
    direction = sweep.direction()
    assert (direction.at, direction.provenance.method) == ("blocks.1.resid_post", f"probe {method}")
    assert float(direction.vector.numpy() @ VECTOR) > 0.99
    assert sweep.value[1, 0] > 0.9
    assert sweep.low[1, 0] < sweep.value[1, 0] < sweep.high[1, 0]
    assert sweep.beats_words.tolist() == [False, True, False]
    chance = sweep.chance[0]
    # sd of an AUC of 900 rows is .02, of a rank correlation .03
    for values in (sweep.value[[0, 2], 0], sweep.shuffled[[0, 2], 0], sweep.words[0, :1]):
        np.testing.assert_allclose(values, chance, atol=0.12)
    assert abs(sweep.shuffled[1, 0].mean() - chance) < 0.35  # permuted labels still meet the planted variance


ARCHITECTURES = {"llama": "model.embed_tokens", "gpt2": "transformer.wte", "gpt_neox": "gpt_neox.embed_in"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_planted_in_a_model_is_found_in_all_its_layers(name):
    """Blocks that add nothing carry the embeddings through; the word "very" has a large one."""
    hf = tiny_model(name, dtype=torch.float32)
    vector = torch.randn(hf.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for key, p in hf.named_parameters():
            if ".layers." in key or ".h." in key or ".wpe." in key:
                p.zero_()
        hf.get_submodule(ARCHITECTURES[name]).weight[WORDS.index("very")] += 40 * vector
    model = wb.wrap(hf, tiny().tokenizer, name=name)
    plain = sentences(60, words=[w for w in WORDS[2:] if w not in ("very", "blue")])
    texts = [f"{word} {text}" for text in plain for word in ("very", "blue")]
    groups = [i // 2 for i in range(120)]
    sweep = fit(model, texts, ["yes", "no"] * 60, method="mean_difference", groups=groups)
    assert sweep.classes == ("no", "yes")
    for layer, direction in enumerate(sweep.directions()):
        assert direction.at == f"blocks.{layer}.resid_post"
        # the two words' embeddings differ by 40 v and by their own, which are of size 1 each
        assert float(direction.vector @ vector / vector.norm()) > 0.99
    assert (sweep.value[:, 0] == 1).all()
    assert not sweep.beats_words.any(), "the word itself tells it"


def test_a_word_that_says_it_is_not_beaten_and_its_absence_is(plant):
    n = 300
    labels = np.arange(n) % 2
    plant(noise(n) + 4 * labels[:, None] * VECTOR)
    said = [f"{text} {'green' if label else 'blue'}" for text, label in zip(sentences(n, words=WORDS[2:8]), labels, strict=True)]
    told, untold = (fit(tiny(), texts, labels.tolist(), controls=1) for texts in (said, sentences(n)))
    assert (told.beats_words.tolist(), untold.beats_words.tolist()) == ([False], [True])
    assert told.words[0, 0] == 1
    assert untold.gain[0, 0, 1] > 0
    assert untold.gain[0, 0, 0] == pytest.approx(untold.value[0, 0] - untold.words[0, 0])


# --- the split --------------------------------------------------------------------------------------------------------


def test_what_tells_the_group_alone_does_not_pass(plant):
    """Eight rows an author, who has a direction of its own: apart from its author, the label is nowhere."""
    n, n_groups = 480, 60
    groups = np.arange(n) // 8
    labels = (groups % 2).tolist()
    own = 6 * np.random.default_rng(0).normal(size=(n_groups, 40))
    plant(own[groups] + np.random.default_rng(1).normal(size=(n, 40)))
    mixed, apart = (fit(tiny(), sentences(n), labels, groups=g, controls=0) for g in (None, groups.tolist()))
    assert mixed.value[0, 0] > 0.95
    assert apart.value[0, 0] < 0.75
    assert mixed.provenance.notes["groups"] == n
    assert apart.provenance.notes["groups"] == n_groups
    # whole authors are drawn, so the interval is wider than that of rows
    rows = mixed.high[0, 1] - mixed.low[0, 1]
    assert apart.high[0, 1] - apart.low[0, 1] > rows


def test_equal_texts_stay_on_one_side(plant):
    """Each text stands twice, and its features tell only which text it is."""
    n = 400
    texts = [text for text in sentences(n // 2) for _ in range(2)]
    labels = [int(i // 2 % 2) for i in range(n)]
    own = 6 * np.random.default_rng(0).normal(size=(n // 2, 150))
    plant(own[np.arange(n) // 2])
    sweep = fit(tiny(), texts, labels, controls=0)
    assert sweep.value[0, 0] < 0.7
    assert sweep.provenance.notes["groups"] == n // 2


def test_the_layer_is_chosen_on_the_training_rows(plant):
    """Held-out rows are changed so that another layer looks best on them; the choice stays."""
    n = 400
    labels = np.arange(n) % 2
    good, weak = (noise(n, seed=s) + size * labels[:, None] * VECTOR for s, size in ((1, 3.0), (2, 1.0)))
    plant(good, weak)
    before = fit(tiny(), sentences(n), labels.tolist(), controls=0)
    held = np.setdiff1d(np.arange(n), _training_rows(labels))
    good[held] = noise(len(held), seed=5)
    weak[held] += 5 * labels[held, None] * VECTOR
    plant(good, weak)
    after = fit(tiny(), sentences(n), labels.tolist(), controls=0)
    assert after.value[1, 0] > 0.95 > 0.7 > after.value[0, 0]
    assert after.best() == before.best() == At("resid_post", 0)
    np.testing.assert_array_equal(after.cross_validated, before.cross_validated)
    np.testing.assert_array_equal(after.probes[0].weight, before.probes[0].weight)


def _training_rows(labels):
    from workbench.probe.task import task_of

    return task_of(sentences(len(labels)), labels.tolist(), None, numeric=False, positive=None, held_out=0.3, seed=0).train


# --- what is measured -------------------------------------------------------------------------------------------------


def test_values_and_intervals_are_those_of_the_definitions(plant):
    n = 200
    labels = (np.random.default_rng(4).random(n) < 0.35).astype(int)
    x = noise(n) + 1.2 * labels[:, None] * VECTOR
    plant(x)
    sweep = fit(tiny(), sentences(n), labels.tolist(), seed=3)
    from workbench.probe.task import task_of

    held = task_of(sentences(n), labels.tolist(), None, numeric=False, positive=None, held_out=0.3, seed=3).held
    np.testing.assert_array_equal(sweep.held, held)
    assert sweep.n == len(held) == round(0.3 * (labels == 1).sum()) + round(0.3 * (labels == 0).sum())
    decision, y = sweep.probes[0].decision(x[held].astype(np.float32))[:, 0], labels[held]
    assert sweep.value[0, 0] == pytest.approx(truth.auc(decision, y == 1))
    assert sweep.value[0, 1] == pytest.approx(np.mean((decision > 0) == y))
    assert sweep.chance.tolist() == pytest.approx([0.5, max(y.mean(), 1 - y.mean()), 0.5])
    p = 1 / (1 + np.exp(-decision))
    assert sweep.calibration[0, 0] == pytest.approx(truth.calibration_error(p, y, 10))
    assert sweep.reliability[0][:, 2].sum() == len(held)

    def right(zeros, ones):
        return np.hstack([zeros <= 0, ones > 0]).mean(axis=1)

    order = [decision[y == 0], decision[y == 1]]

    def area(zeros, ones):
        return (ones[:, :, None] > zeros[:, None, :]).mean(axis=(1, 2))  # no ties among the rows of a sample of reals

    # the same resamples of both classes, so the same but for rounding
    for metric, statistic in ((0, area), (1, right)):
        expected = bootstrap(statistic, *order, seed=3)
        assert (sweep.low[0, metric], sweep.high[0, metric]) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_controls_and_folds_are_those_of_a_plain_loop(plant):
    from workbench.probe.task import task_of

    n = 150
    labels = (np.random.default_rng(4).random(n) < 0.4).astype(int)
    x = (noise(n) + labels[:, None] * VECTOR).astype(np.float32)
    plant(x)
    sweep = fit(tiny(), sentences(n), labels.tolist(), seed=3, controls=3, options={"C": 0.5})
    task = task_of(sentences(n), labels.tolist(), None, numeric=False, positive=None, held_out=0.3, seed=3)
    y = labels[task.train]
    for k in range(3):
        permuted = np.random.default_rng([3, k]).permutation(y)
        control = logistic(x[task.train], permuted, C=0.5).decision(x[task.held])[:, 0]
        assert sweep.shuffled[0, 0, k] == pytest.approx(truth.auc(control, labels[task.held] == 1))
        assert sweep.shuffled[0, 1, k] == pytest.approx(((control > 0) == labels[task.held]).mean())
    assert len(task.inner) == 5
    folds = []
    for seen, asked in task.inner:
        assert sorted([*seen, *asked]) == list(range(len(y)))
        one = logistic(x[task.train[seen]], y[seen], C=0.5).decision(x[task.train[asked]])[:, 0]
        folds.append(truth.auc(one, y[asked] == 1))
    assert sweep.cross_validated[0] == pytest.approx(np.mean(folds))


def test_three_classes_and_numbers(plant):
    n = 300
    labels = np.arange(n) % 3
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(D, 3)))[0].T
    plant(noise(n) + 4 * axes[labels])
    names = [["left", "right", "up"][label] for label in labels]
    sweep = fit(tiny(), sentences(n), names)
    assert (sweep.classes, sweep.metrics) == (("left", "right", "up"), ("auc", "accuracy", "balanced_accuracy"))
    assert sweep.probes[0].classes == sweep.classes
    assert sweep.value[0].min() > 0.9
    for c, name in enumerate(sweep.classes):
        other = axes[c] - axes.mean(0)  # against the mean of the classes
        assert float(sweep.direction(0, cls=name).vector.numpy() @ other / np.linalg.norm(other)) > 0.9
    assert [d.provenance.notes["positive"] for d in sweep.directions()] == ["left", "right", "up"]
    numeric = fit(tiny(), sentences(n), (noise(n)[:, 0] + 5).tolist(), method="ridge")
    assert (numeric.classes, numeric.metrics) == ((), ("spearman", "r_squared"))
    assert np.isnan(numeric.calibration).all()
    assert numeric.reliability.shape == (1, 0, 3)
    assert set(numeric.frame()["metric"]) == {"spearman", "r_squared"}


@pytest.mark.parametrize(
    ("labels", "positive", "classes"),
    [
        ([True, False], None, (False, True)),
        ([1, 0], None, (0, 1)),
        (["no", "yes"], None, ("no", "yes")),
        (["no", "yes"], "no", ("yes", "no")),
        (np.array([2, 7]), 2, (7, 2)),
    ],
)
def test_which_class_is_positive(plant, labels, positive, classes):
    n = 100
    sign = np.array([1, -1])[np.arange(n) % 2]
    plant(noise(n) + 3 * sign[:, None] * VECTOR)
    given = [labels[i % 2] for i in range(n)]
    sweep = fit(tiny(), sentences(n), given, positive=positive, controls=0)
    assert sweep.classes == classes
    plus = 1.0 if given[0] == classes[-1] else -1.0  # where the first label lies
    found, turned = sweep.direction(0).vector.numpy(), sweep.direction(0, cls=classes[0]).vector.numpy()
    assert plus * found @ VECTOR > 0.9
    np.testing.assert_array_equal(turned, -found)


def test_the_seed_decides_everything(plant):
    n = 200
    labels = (np.arange(n) % 2).tolist()
    plant(noise(n) + np.outer(np.arange(n) % 2, VECTOR))
    one, same, other = (fit(tiny(), sentences(n), labels, seed=s) for s in (0, 0, 1))
    for name in ("value", "low", "shuffled", "words", "gain", "cross_validated", "calibration"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
        assert (getattr(one, name) != getattr(other, name)).any()


def test_options_reach_the_fitter_and_the_pooling(monkeypatch):
    asked = {}
    n = 60
    values = torch.randn(n, D, generator=torch.Generator().manual_seed(0))

    def made(model, rows, **options):
        asked.update(options, rows=rows)
        return Features({("mlp_out", 1): values}, options["pool"], options["bos"], 7)

    monkeypatch.setattr("workbench.probe.behavior.features", made)
    model, texts, labels = tiny(), sentences(n), (np.arange(n) % 2).tolist()
    options = {"sites": ["mlp_out"], "layers": [1], "pool": "max", "bos": True, "batch_tokens": 99}
    strong = fit(model, texts, labels, options={"C": 1e-4}, max_tokens=5, **options)
    weak = fit(model, texts, labels, options={"C": 1.0}, **options)
    assert {key: asked[key] for key in options} == options
    assert model.tokenizer.decode(asked["rows"][0].tokens) == texts[0]
    model.tokenizer.chat_template = "{% for m in messages %}what is {{ m['content'] }}{% endfor %}"
    fit(model, texts, labels, chat=True, **options)
    assert model.tokenizer.decode(asked["rows"][0].tokens) == f"what is {texts[0]}"
    assert np.linalg.norm(strong.probes[0].weight) < 0.1 * np.linalg.norm(weak.probes[0].weight)
    assert strong.provenance.options["options"] == {"C": 1e-4}
    assert strong.provenance.notes["texts_cut"] == sum(len(text.split()) > 5 for text in texts) > 0
    assert strong.provenance.reduction == "max"


# --- refusals ---------------------------------------------------------------------------------------------------------


def assert_refused(error, match, texts=None, labels=None, **options):
    texts = sentences(40) if texts is None else texts
    labels = (np.arange(len(texts)) % 2).tolist() if labels is None else labels
    with pytest.raises(error, match=match):
        inspect.unwrap(fit)(tiny(), texts, labels, **options)


def test_refused_labels():
    assert_refused(DataError, r"all 40 labels are \['a'\]; expected at least two classes", labels=["a"] * 40)
    assert_refused(DataError, "class 1 has 4 row.s. of 40, expected at least 5 of every class", labels=[1] * 4 + [0] * 36)
    assert_refused(DataError, "For numeric labels choose method='ridge'", labels=np.linspace(0, 1, 40).tolist())
    assert_refused(ShapeError, "40 texts and 39 labels; expected one label a text", labels=[0, 1, 0] * 13)
    assert_refused(DataError, "label 0 is None, expected a str, int, bool or float", labels=[None, 1] * 20)
    assert_refused(DataError, "label 1 is nan", labels=[1.0, float("nan")] * 20)
    assert_refused(DataError, r"labels are of several kinds \(int, str\)", labels=[1, "a"] * 20)
    assert_refused(UnknownNameError, "unknown positive class '2'. Known: 0, 1", positive=2)
    assert_refused(InputError, "positive is 1, but there are 4 classes", labels=[0, 1, 2, 3] * 10, positive=1)
    assert_refused(InputError, "positive is 1, but numeric labels have no classes", positive=1, method="ridge")
    assert_refused(DataError, "label 3 is inf, expected a finite number", labels=[1.0, 2, 3, float("inf")] * 10, method="ridge")
    assert_refused(DataError, "label 1 is 'b', expected a finite number", labels=["1", "b"] * 20, method="ridge")
    assert_refused(DataError, "40 numeric labels, of which 1 differ", labels=[2.5] * 40, method="ridge")
    assert_refused(DataError, "9 numeric labels, .* expected at least 10 rows", sentences(9), list(range(9)), method="ridge")


def test_refused_texts():
    assert_refused(DataError, "text 3 .'sky'. has 1 token", [*sentences(3), "sky", *sentences(36, seed=2)])
    assert_refused(InputError, "texts is the string 'the sky'", "the sky", [0, 1])
    assert_refused(ShapeError, "40 texts and 3 groups; expected one group a text", groups=[1, 2, 3])
    assert_refused(DataError, "class 0 train", groups=[i % 2 for i in range(40)], held_out=0.6)
    assert_refused(DataError, "after the split only 0 row.s. of class 0 judge, expected at least 2", groups=["all"] * 40)
    assert_refused(DataError, "judge, expected at least 2. Give more rows, another held_out than 0.01", held_out=0.01)
    assert_refused(InputError, "held_out is 1.0, expected a share", held_out=1.0)


def test_refused_options():
    assert_refused(UnknownNameError, "unknown probe 'logistics'. Did you mean 'logistic'", method="logistics")
    assert_refused(UnknownNameError, "unknown option of logistic 'c'", options={"c": 1.0})
    assert_refused(UnknownNameError, "unknown pool 'min'", pool="min")
    assert_refused(UnknownNameError, "unknown site 'blocks.0.resid_past'", sites=["resid_past"])
    assert_refused(InputError, "layers 0 to 1", layers=[7])
    assert_refused(InputError, "controls is -1", controls=-1)
    model = tiny()
    with torch.no_grad():
        model.hf.model.embed_tokens.weight[WORDS.index("sky")] = torch.nan
    with pytest.raises(NumericsError, match="blocks.0.resid_post is NaN"):
        fit(model, sentences(40), (np.arange(40) % 2).tolist())


def test_too_few_rows_to_choose_a_layer_are_said(plant):
    """Three groups a class: two train, and each fold would train on one."""
    n = 60
    plant(noise(n), noise(n, seed=2))
    few = fit(tiny(), sentences(n), (np.arange(n) % 2).tolist(), groups=[f"{i % 2}{i // 2 % 2}" for i in range(n)], held_out=0.5)
    assert np.isnan(few.cross_validated).all()
    assert np.isnan(few.low).all(), "one held-out group of a class has no interval"
    assert not few.beats_words.any()
    with pytest.raises(InputError, match="too few training rows .or groups. of a class to cross-validate"):
        few.best()
    assert "none was chosen" in repr(few)
    assert few.direction(1).layer == 1


def test_on_the_organism(root):
    """Forget questions against retain questions: the names tell it, so no layer may be said to beat bag of words."""
    model = wb.load(root / "data/organism/full")
    rows = {name: wb.examples(f"tofu:{name}", root=root / "data/tofu-mini") for name in ("forget", "retain")}
    texts = [row.prompt for row in [*rows["forget"], *rows["retain"][:240]]]
    sweep = fit(model, texts, [1] * 80 + [0] * 240, chat=True, controls=2)
    assert len(sweep) == 4
    assert (sweep.value[:, 0] > 0.9).all()
    assert sweep.words[0, 0] > 0.95
    assert not sweep.beats_words.any()


def test_slm_drops_what_it_does_not_know(slm):
    with pytest.raises(DataError, match="text 1 .'日本0'. has 1 token"):
        fit(slm, [text for i in range(10) for text in (f"abc {i}", f"日本{i}")], [0, 1] * 10)
