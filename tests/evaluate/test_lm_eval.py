"""The harness on a task of local files: its options reach it, its numbers reach us, and it leaves the model as it was."""

import json

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.core.delta import applied
from workbench.core.errors import InputError, MissingPackageError, UnknownNameError
from workbench.core.records import Provenance
from workbench.core.statistics import wilson
from workbench.evaluate import suite
from workbench.evaluate.lm_eval import _rows, lm_eval
from workbench.load.multiple_choice import questions

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
TASK = """task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task file and its rows: unequal numbers of choices, of unequal length."""
    pytest.importorskip("lm_eval")
    made = tmp_path_factory.mktemp("tasks")
    texts = ("a small dog", "the", "a very big house in the wood, and nobody was there", "He was happy")
    rows = [
        {"question": f"Once upon a time there was {n}", "choices": [*texts[n % 2 :], "no"][: 2 + n % 3], "answer": n % 2}
        for n in range(14)
    ]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "own.yaml").write_text(TASK.format(rows=made / "rows.jsonl"))
    return made


@pytest.fixture(scope="module")
def model(root):
    return wb.load(root / "data/models/stories260K")


@pytest.fixture(scope="module")
def found(model, folder):
    before, generator = state(model), torch.get_rng_state()
    made = lm_eval(model, ["own_choice"], include_path=folder, batch_size=4)
    assert state(model) == before, "the harness changed the model, its tokenizer or NumPy's generator"
    assert torch.equal(generator, torch.get_rng_state())
    return made


def state(model):
    """Python's own generator is left out: the type checker of the tests draws from it."""
    return model.fingerprint(), model.tokenizer.pad_token, model.hf.training, np.random.get_state()[1].tolist()


def test_multiple_choice_agrees_with_the_harness(model, folder, found):
    """The same questions through both: acc is our accuracy, acc_norm our accuracy_norm."""
    mine = suite("multiple_choice", model, data=questions(folder / "rows.jsonl"))
    assert found["acc", "own_choice"].value == mine["accuracy", "questions"].value
    assert found["acc_norm", "own_choice"].value == mine["accuracy_norm", "questions"].value
    assert found["acc", "own_choice"].value != found["acc_norm", "own_choice"].value  # else one formula would do for both


def test_intervals_and_counts(found):
    row = found["acc", "own_choice"]
    assert (row.n, row.better, row.unit) == (14, "higher", "share of documents")
    assert (row.low, row.high) == pytest.approx(wilson(row.value, 14)[1:3], rel=1e-12)


def test_options_reach_the_harness(model, folder):
    limited = suite("lm_eval", model, data=["own_choice"], options={"limit": 5, "include_path": str(folder)})
    assert limited["acc", "own_choice"].n == 5


def test_an_applied_delta_is_what_is_measured(model, folder, found):
    broken = {name: -2 * p.detach() for name, p in model.hf.named_parameters() if "mlp" in name}
    with applied(model, wb.Delta.of(broken, Provenance("negated", model.fingerprint()))):
        edited = lm_eval(model, ["own_choice"], include_path=folder, batch_size=4)
        mine = suite("multiple_choice", model, data=questions(folder / "rows.jsonl"))
    assert edited["acc", "own_choice"].value == mine["accuracy", "questions"].value
    assert [row.value for row in edited] != [row.value for row in found]


def test_rows_by_hand():
    result = {
        "results": {
            "t": {"name": "t", "sample_len": 4, "acc,none": 0.75, "acc_stderr,none": 0.25, "ppl,get": 9.0, "ppl_stderr,get": "N/A"}
        },
        "n-samples": {"t": {"original": 8, "effective": 4}},
        "higher_is_better": {"t": {"acc": True, "ppl": False}},
    }
    one, two = _rows(result)
    # Wilson, p = 3/4 of 4, z^2 = 3.8415: (.75 + .48018 -+ 1.95996 sqrt(.046875 + .060023)) / 1.96036 = [.3006, .9544]
    assert (one.metric, one.split, one.value, one.n) == ("acc", "t", 0.75, 4)
    assert (one.low, one.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert (two.metric, two.value, two.better) == ("ppl,get", 9.0, "lower")
    assert np.isnan([two.low, two.high]).all()
    assert "no standard error" in two.note


def test_all_right_of_three_is_not_certain_and_a_group_counts_its_documents():
    right = {"acc,none": 1.0, "acc_stderr,none": 0.0}
    result = {
        "results": {"g": right, "h": {"acc,none": 0.75, "acc_stderr,none": 0.25}, "a": right, "b": right},
        "n-samples": {"a": {"effective": 3}, "b": {"effective": 5}},
        "group_subtasks": {"g": ["h", "b"], "h": ["a"], "a": [], "b": []},
        "higher_is_better": {},
    }
    group, inner, one, _ = _rows(result)
    assert (one.low, one.high, one.n) == (pytest.approx(3 / (3 + 1.959964**2), rel=1e-6), 1.0, 3)  # n / (n + z^2)
    assert (group.n, inner.n) == (8, 3)
    assert np.isnan([group.low, group.high]).all()
    assert group.note == ("n: documents of all its tasks; no interval: the harness' standard error is 0, which is not certainty")
    # .75 -+ 1.96 * .25 = [.26, 1.24], cut at 1
    assert (inner.low, inner.high) == (pytest.approx(0.26, abs=1e-4), 1.0)


def test_what_cannot_be_run(model, folder, monkeypatch):
    with pytest.raises(InputError, match="tasks is 'own_choice', expected a list"):
        lm_eval(model, "own_choice")
    with pytest.raises(InputError, match="no such file or folder"):
        lm_eval(model, ["own_choice"], include_path=folder / "nowhere")
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mechanistic-workbench\[lm-eval\]'"):
        lm_eval(model, ["own_choice"], include_path=folder)
