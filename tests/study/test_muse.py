"""A study of MUSE on a model of 0.26 million weights and three passages: what it learns, what it measures, that it goes on."""

import numpy as np
import pandas as pd
import pytest
import yaml

import workbench as wb
from workbench.core.errors import InputError, StudyError, UnknownNameError
from workbench.core.records import check_disjoint
from workbench.load.passages import passages, without_chat
from workbench.report.sheet import Sheet
from workbench.study import muse, muse_grid
from workbench.study.judge import split_retain
from workbench.study.methods import Training
from workbench.study.muse_models import FineTuning, Sizes, documents, learned, plain

SPLITS = ("forget_text", "retain_text", "holdout_text")
SIZES = {"passages": 3, "questions": 4, "asked": 2, "max_tokens": 40, "prompt_tokens": 8, "new_tokens": 8, "answer_tokens": 6}


def file(folder, root, **changes):
    body = {
        "retrained": [str(root / "data/models/stories260K")],
        "sizes": SIZES,
        "fine_tuning": {"epochs": 2, "lr": 1e-3, "batch_size": 4},
        "unlearn": {"npo": {"lr": 1e-3}},
        "seeds": [0, 1],
        "budget": 0.02,
        "max_steps": 4,
        "batch_size": 4,
        "budget_rows": 2,
        "report_rows": 2,
        "growing": [0.5, 1],
        "folds": 2,
    } | changes
    data = {split: str(root / f"data/muse-mini/{split}.jsonl") for split in SPLITS}
    data |= {"forget_qa": "tofu:forget", "retain_qa": "tofu:retain", "root": str(root / "data/tofu-mini")}
    study = {"name": "small", "model": str(root / "data/models/stories260K"), "data": data, "muse": body}
    (folder / "muse.yaml").write_text(yaml.safe_dump(study))
    return folder / "muse.yaml"


@pytest.fixture(scope="module")
def done(tmp_path_factory, root):
    folder = tmp_path_factory.mktemp("muse")
    return folder, muse.run(file(folder, root), out=folder / "runs", show=False)


@pytest.fixture(scope="module")
def docs(root):
    model = plain(wb.load(root / "data/organism/full"), "full")
    rows = {split: passages(root / f"data/muse-mini/{split}.jsonl") for split in SPLITS}
    rows |= {f"{side}_qa": wb.examples(f"tofu:{side}", root=root / "data/tofu-mini") for side in ("forget", "retain")}
    return documents(model, rows, Sizes(passages=4, questions=6, asked=3, max_tokens=50, prompt_tokens=20, new_tokens=30))


def test_what_a_run_writes(done):
    _, run = done
    frame = pd.read_parquet(run / "measurements.parquet")
    assert list(frame["arm"].drop_duplicates()) == ["fine-tuned", "retrained 1", "npo"]
    assert sorted(frame[frame.arm == "npo"].seed.dropna().unique()) == [0, 1]
    gold = frame[(frame.arm == "retrained 1") & (frame.metric == "privleak")]
    assert gold.value.tolist() == [0.0]  # the model PrivLeak compares with
    asked = pd.read_parquet(run / "requests.parquet")
    assert asked.groupby("kind").rows.apply(list).to_dict() == {"growing": [4.0, 7.0], "in sequence": [4.0, 3.0]}
    assert (asked.used <= 0.02 + 1e-6).all()  # the budget is never gone beyond
    sheet = Sheet.load(run)
    assert [section.heading.split(":")[0] for section in sheet.sections[2:]] == ["Scalability", "Sustainability"]
    assert "The fine-tuned model goes on with" in sheet.reading
    assert (run / "report.html").exists()
    assert len(list((run / "models").iterdir())) == 2


def test_it_goes_on_where_it_stopped(done, monkeypatch):
    folder, run = done
    before = pd.read_parquet(run / "measurements.parquet")
    (run / "measurements.parquet").unlink()
    for name in ("at_budget", "read_muse", "in_sequence"):
        monkeypatch.setattr(muse_grid, name, None)
    monkeypatch.setattr("workbench.study.muse_models.fit", None)
    muse.run(folder / "muse.yaml", out=folder / "runs", show=False)
    pd.testing.assert_frame_equal(pd.read_parquet(run / "measurements.parquet"), before)


def test_the_written_config_is_the_study(done):
    folder, run = done
    one, other = muse.read(folder / "muse.yaml").settings, muse.read(run / "config.yaml").settings
    assert one.sizes == other.sizes
    assert one.training == other.training
    assert [(m.method.called, m.lr) for m in one.methods] == [(m.method.called, m.lr) for m in other.methods]
    assert (one.seeds, one.growing, one.folds, one.requested) == (other.seeds, other.growing, other.folds, other.requested)


def test_documents_are_passages_and_questions(docs):
    assert [row.id.split(":")[0] for row in docs.forget] == ["text"] * 4 + ["qa"] * 6
    assert docs.forget[4].prompt.startswith("Question: ")
    assert docs.forget[4].prompt.endswith("\nAnswer:")
    check_disjoint(docs.forget, docs.retain)
    assert len(docs.all) == 20
    assert {split: len(rows) for split, rows in docs.data.items()} == {
        "forget_text": 4, "retain_text": 4, "holdout_text": 4, "forget_qa": 3, "retain_qa": 3,
    }  # fmt: skip


def test_every_part_has_both_kinds(docs):
    # 4 passages at .125 .375 .625 .875 and 6 questions at .083 .25 .417 .583 .75 .917 of the way
    kinds = [row.id.split(":")[0] for row in docs.mixed()]
    assert kinds == ["qa", "text", "qa", "text", "qa", "qa", "text", "qa", "text", "qa"]
    assert sorted(docs.mixed().ids) == sorted(docs.forget.ids)
    halves = muse_grid.folds(docs.mixed(), 2)
    assert [len(one) for one in halves] == [5, 5]
    assert sorted(halves[0].ids + halves[1].ids) == sorted(docs.forget.ids)
    assert [len(one) for one in muse_grid.portions(docs.mixed(), [1, 0.25, 0.5])] == [2, 5, 10]


def test_passages_of_files_without_ids_are_told_apart(tmp_path, root):
    rows = {}
    for split in SPLITS:
        text = "\n\n".join(row.text for row in passages(root / f"data/muse-mini/{split}.jsonl")[:2])
        (tmp_path / f"{split}.txt").write_text(text)
        rows[split] = passages(tmp_path / f"{split}.txt")
    rows |= {f"{side}_qa": wb.examples(f"tofu:{side}", root=root / "data/tofu-mini") for side in ("forget", "retain")}
    model = plain(wb.load(root / "data/organism/full"), "full")
    made = documents(model, rows, Sizes(passages=2, questions=2, asked=2))
    assert made.all.ids[:2] == ["text:forget:0", "text:forget:1"]
    assert len(set(made.all.ids)) == 8


def test_other_rows_to_train_on_are_another_point(root, docs):
    """report_rows changes what is trained on, though not how many rows the budget is measured on."""
    model = wb.load(root / "data/models/stories260K")
    keys = [
        muse_grid._about(muse_grid.Bench(root, model, docs, parts, {}, Sizes(), Training()))
        for parts in (split_retain(docs.forget, docs.retain, budget_rows=2, report_rows=rows) for rows in (2, 3))
    ]
    assert keys[0] != keys[1]


def test_a_learned_model_is_kept_and_is_another_with_another_seed(tmp_path, root, docs):
    def make(seed):
        base = without_chat(wb.load(root / "data/models/stories260K"))
        return learned(tmp_path, "m", base, docs.forget[4:8], FineTuning(1, 1e-3, 2), seed=seed).fingerprint()

    first = make(0)
    assert make(0) == first
    assert len(list((tmp_path / "models").iterdir())) == 1
    assert make(1) != first


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"unlearn": {"npoo": {}}}, UnknownNameError, "Did you mean 'npo'"),
        ({"unlearn": {"npo": {"lr": 0}}}, StudyError, "muse.unlearn.npo: lr is 0, expected a positive number"),
        ({"unlearn": {}}, StudyError, "muse: the methods are"),
        ({"requested": ["simnpo"]}, UnknownNameError, "unknown method of muse.requested 'simnpo'"),
        ({"sizes": {"passage": 3}}, UnknownNameError, "unknown key of muse.sizes 'passage'. Did you mean 'passages'"),
        ({"sizes": {"passages": 0}}, StudyError, "muse.sizes.passages is 0"),
        ({"sizes": SIZES | {"prompt_tokens": 40}}, StudyError, "prompt_tokens 40 and new_tokens 8 are more than max_tokens 40"),
        ({"sizes": SIZES | {"asked": 5}}, StudyError, "asked is 5, but only 4 questions are learned"),
        ({"unlearn": ["npo"]}, StudyError, "muse.unlearn: expected a mapping, got \\['npo'\\]"),
        ({"growing": 0.5}, StudyError, "muse.growing is 0.5, expected a list"),
        ({"growing": [0.5, 0.5]}, StudyError, "muse.growing is .*, expected a list, at least one, none twice"),
        ({"growing": [0.5, 0.51]}, StudyError, "of 7 documents are \\[4, 4\\]; expected each to be more"),
        ({"folds": 50}, StudyError, "muse.folds is 50, but there are 7 documents to forget"),
        ({"growing": [2]}, StudyError, "muse.growing is 2, expected a share"),
        ({"folds": 0}, StudyError, "muse.folds is 0"),
        ({"retrained": []}, StudyError, "muse.retrained is"),
        ({"retrained": ["./nowhere"]}, InputError, "no such folder"),
        ({"budgets": 1}, UnknownNameError, "unknown key of muse 'budgets'. Did you mean 'budget'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path, root, change, kind, match):
    with pytest.raises(kind, match=match):
        muse.run(file(tmp_path, root, **change), out=tmp_path / "runs", show=False)
    assert not (tmp_path / "runs").exists()


def test_numbers_stay_numbers(done):
    _, run = done
    asked = pd.read_parquet(run / "requests.parquet")
    assert asked.drop(columns=["set", "method", "reached", "note", "kind"]).dtypes.eq("float64").all()
    assert np.isnan(asked[asked.kind == "growing"].earlier_nll).all()
