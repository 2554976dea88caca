import json

import pytest

from tests.evaluate.cases import FULL, RETAIN
from workbench.core.errors import DataError, InputError
from workbench.evaluate import rescore
from workbench.evaluate.logs import read_logs


def broken(tmp_path, change):
    log = json.loads(FULL.read_text(encoding="utf-8"))
    change(log)
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log), encoding="utf-8")
    return path


def test_published_numbers():
    rows = rescore(FULL, RETAIN)
    # reference/unlearning.md, golden vectors: as many digits as were published
    assert rows["model_utility_geometric", "all"].value == pytest.approx(0.622677, abs=5e-7)
    assert rows["model_utility_arithmetic", "all"].value == pytest.approx(0.585886, abs=5e-7)
    assert rows["forget_quality", "forget"].value == pytest.approx(1.834e-21, rel=3e-4)
    assert rows["forget_quality_arithmetic", "forget"].value == pytest.approx(6.032e-23, rel=3e-4)
    assert rows["ks_distance", "forget"].value == pytest.approx(0.3967, abs=5e-5)
    assert rows["ks_distance_arithmetic", "forget"].value == pytest.approx(0.4100, abs=5e-5)
    assert rows["probability", "forget"].value == pytest.approx(0.9909, abs=5e-5)
    assert rows["rouge_l_recall", "forget"].value == pytest.approx(0.9854, abs=5e-5)
    assert rows["forget_quality", "forget"].n == 300
    assert "its floor at n=300 is 1.48e-179" in rows["forget_quality", "forget"].note  # 2 / C(600, 300)
    assert rescore(RETAIN)["model_utility_geometric", "all"].value == pytest.approx(0.613745, abs=5e-7)


def test_reads_by_index():
    read = read_logs(FULL)
    assert {split: len(table) for split, table in read.items()} == {
        "forget": 300,
        "retain": 300,
        "real_authors": 100,
        "world_facts": 117,
    }
    log = json.loads(FULL.read_text(encoding="utf-8"))["eval_log_forget.json"]
    table = read["forget"]
    assert table.ids[7] == "7"
    assert table.perturbed[7].tolist() == log["average_perturb_loss"]["7"]
    assert table.recall is not None
    assert table.recall[7] == log["rougeL_recall"]["7"]


def test_fields_may_list_their_rows_in_another_order(tmp_path):
    def shuffle(log):
        section = log["eval_log_forget.json"]
        section["avg_paraphrased_loss"] = dict(reversed(section["avg_paraphrased_loss"].items()))

    got, want = read_logs(broken(tmp_path, shuffle))["forget"], read_logs(FULL)["forget"]
    assert (got.paraphrase == want.paraphrase).all()


def test_texts_replace_a_recall_that_is_not_there(tmp_path):
    def with_texts(log):
        section = log["eval_log_forget.json"]
        del section["rougeL_recall"]
        section["generated_text"] = {i: ["q", "the cat", "the cat sat on"] for i in section["avg_gt_loss"]}

    assert rescore(broken(tmp_path, with_texts))["rouge_l_recall", "forget"].value == 1 / 2  # 2 of 4 words


def test_an_empty_generated_text_is_not_a_missing_recall(tmp_path):
    def with_texts(log):
        section = log["eval_log_forget.json"]
        del section["rougeL_recall"]
        section["generated_text"] = {i: ["q", "", "the cat"] for i in section["avg_gt_loss"]}

    assert rescore(broken(tmp_path, with_texts))["rouge_l_recall", "forget"].value == 0.0


def test_logs_of_different_forget_sets(tmp_path):
    def named(text):
        def change(log):
            section = log["eval_log_forget.json"]
            section["generated_text"] = {i: ["q", "x", f"{text} {i}"] for i in section["avg_gt_loss"]}

        return change

    one = broken(tmp_path, named("forget10"))
    (tmp_path / "b").mkdir()
    two = broken(tmp_path / "b", named("forget05"))
    with pytest.raises(DataError, match=r"row '0' is 'forget10 0' here and 'forget05 0' in the reference.*another forget set"):
        rescore(one, two)


def drop_section(log):
    del log["eval_real_author_wo_options.json"]


def drop_field(log):
    del log["eval_log.json"]["avg_paraphrased_loss"]


def drop_recall(log):
    del log["eval_log.json"]["rougeL_recall"]


def drop_row(log):
    del log["eval_log_forget.json"]["average_perturb_loss"]["12"]


def nan(log):
    log["eval_log.json"]["avg_gt_loss"]["3"] = float("nan")


def text(log):
    log["eval_log.json"]["average_perturb_loss"]["3"][1] = "1.0"


def short(log):
    log["eval_log.json"]["average_perturb_loss"]["3"].pop()


def odd_text(log):
    log["eval_log.json"]["generated_text"] = {i: ["only this"] for i in log["eval_log.json"]["avg_gt_loss"]}


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (drop_section, InputError, r"no section 'eval_real_author_wo_options.json' \(real_authors\); it has eval_"),
        (drop_field, InputError, r"section 'eval_log.json': no values under 'avg_paraphrased_loss'; it has avg_gt_loss"),
        (drop_recall, InputError, r"section 'eval_log.json': no values under 'rougeL_recall'"),
        (drop_row, DataError, r"average_perturb_loss and avg_gt_loss differ in their rows, first '12'; is the log cut off"),
        (nan, DataError, r"section 'eval_log.json': avg_gt_loss of row '3' is nan, expected a finite number"),
        (text, DataError, r"average_perturb_loss of row '3' is '1.0', expected a finite number"),
        (short, DataError, r"average_perturb_loss of row '3' is not a list of 5 numbers like the others"),
        (odd_text, DataError, r"generated_text of row '0' is not \[prompt, generated, truth\]"),
    ],
)
def test_broken_logs(tmp_path, change, error, match):
    with pytest.raises(error, match=match):
        rescore(broken(tmp_path, change))


def test_not_a_log(tmp_path):
    (tmp_path / "no.json").write_text("not json")
    with pytest.raises(InputError, match=r"no\.json: not valid JSON"):
        rescore(tmp_path / "no.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"no section 'eval_log_forget.json' \(forget\); it has a JSON list"):
        rescore(tmp_path / "list.json")
    with pytest.raises(InputError, match=r"a folder; give the eval_log_aggregated\.json in it"):
        rescore(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        rescore(FULL, tmp_path / "absent.json")
