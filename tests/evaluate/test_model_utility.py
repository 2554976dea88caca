from dataclasses import replace

import numpy as np
import pytest

from tests.evaluate.cases import FULL, RETAIN, answers, random_answers
from tests.reference import tofu_metrics as slow
from workbench.core.errors import DataError, InputError
from workbench.evaluate.logs import read_logs
from workbench.evaluate.model_utility import harmonic_mean, model_utility_arithmetic, model_utility_geometric

LN2, LN4 = np.log(2), np.log(4)
SPLITS = ("retain", "real_authors", "world_facts")


def random_splits():
    return {s: random_answers(n, seed=i, name=s) for i, (s, n) in enumerate(zip(SPLITS, (7, 4, 5), strict=True))}


def test_harmonic_mean_by_hand():
    # 3 / (1 + 2 + 4) = 3/7; one zero makes it 0, by definition
    np.testing.assert_allclose(harmonic_mean(np.array([[1, 1 / 2, 1 / 4], [1, 1, 0]])), [3 / 7, 0], rtol=1e-15)


def test_by_hand():
    # each split one row: true answer 1/2, one false answer 1/4, recall 1/2.
    # retain: p = 1/2, recall 1/2, R = (1/4)/(1/2) = 1/2, score 1/2. The others: p = (1/2)/(3/4) = 2/3, recall 1/2, score 1/2.
    row = answers([LN2], paraphrase=[LN2], perturbed=[[LN4]], recall=[0.5])
    plain = replace(row, paraphrase=np.array([np.nan]))
    tables = {"retain": row, "real_authors": plain, "world_facts": plain}
    # 9 / (7 * 2 + 2 * 3/2) = 9/17
    for utility in (model_utility_geometric, model_utility_arithmetic):
        assert utility(tables).value == pytest.approx(9 / 17, rel=1e-12)
        assert utility(tables).n == 3


@pytest.mark.parametrize(
    ("utility", "aggregate"), [(model_utility_geometric, "geometric"), (model_utility_arithmetic, "arithmetic")]
)
def test_reference(utility, aggregate):
    tables = random_splits()
    nine = []
    for split, table in tables.items():
        rows = list(zip(table.response, table.paraphrase, table.perturbed, table.truth, table.generated, strict=True))
        if split == "retain":
            nine.append(np.mean([slow.probability(x) for x, *_ in rows]))
        else:
            nine.append(np.mean([slow.probability_options(x, list(f)) for x, _, f, *_ in rows]))
        nine.append(np.mean([slow.rouge_l_recall(t, g) for *_, t, g in rows]))
        ratios = [slow.truth_ratio(p, list(f), aggregate=aggregate) for _, p, f, *_ in rows]
        nine.append(np.mean([slow.truth_ratio_score(r, forget=False) for r in ratios]))
    got = utility(tables)
    assert got.value == pytest.approx(slow.harmonic_mean(nine), rel=1e-9)
    assert 0 <= got.low <= got.high <= 1


def test_published_logs():
    full, retain = read_logs(FULL), read_logs(RETAIN)
    # six digits were published
    assert model_utility_geometric(full).value == pytest.approx(0.622677, abs=5e-7)
    assert model_utility_arithmetic(full).value == pytest.approx(0.585886, abs=5e-7)
    assert model_utility_geometric(retain).value == pytest.approx(0.613745, abs=5e-7)
    assert model_utility_arithmetic(retain).value == pytest.approx(0.575240, abs=5e-7)


def test_interval_of_the_published_log():
    got = model_utility_geometric(read_logs(FULL))
    # reference/unlearning.md: sd .015, 95 % interval [.593, .650]; two draws of 2,000 differ by about .001
    assert (got.low, got.high) == (pytest.approx(0.593, abs=0.003), pytest.approx(0.650, abs=0.003))
    assert got.n == 517


def test_what_belongs_to_one_row_stays_together():
    # probability, recall and score of a row rise together; drawn apart, the interval would be narrower by about a third
    known = np.array([0.05, 3.0] * 20)
    row = answers(list(known), paraphrase=list(known), perturbed=[[3.1]] * 40, recall=np.where(known < 1, 1.0, 0.1))
    sure = answers([0.01] * 40, paraphrase=[0.01] * 40, perturbed=[[9.0]] * 40, recall=[1.0] * 40)
    got = model_utility_geometric({"retain": row, "real_authors": sure, "world_facts": sure})
    draw = np.random.default_rng(1)
    columns = np.stack([np.exp(-known), row.recall, np.maximum(0, 1 - np.exp(known - 3.1))], axis=1)
    six = np.array([1 / (1 + np.exp(0.01 - 9.0)), 1.0, 1 - np.exp(0.01 - 9.0)] * 2)
    together, apart = [], []
    for _ in range(2000):
        i = draw.integers(0, 40, (40, 3))
        together.append(slow.harmonic_mean([*columns[i[:, 0]].mean(0), *six]))
        apart.append(slow.harmonic_mean([*(columns[i[:, k], k].mean() for k in range(3)), *six]))
    width = {name: np.subtract(*np.quantile(x, [0.975, 0.025])) for name, x in (("t", together), ("a", apart))}
    assert got.high - got.low == pytest.approx(width["t"], rel=0.1)
    assert width["a"] < 0.8 * width["t"]


def test_order_of_rows_and_splits_does_not_matter():
    tables = random_splits()
    turned = {s: tables[s].take(range(len(tables[s]) - 1, -1, -1)) for s in reversed(SPLITS)}
    assert model_utility_geometric(turned).value == pytest.approx(model_utility_geometric(tables).value, rel=1e-12)


def test_bad_input():
    tables = random_splits()
    with pytest.raises(DataError, match="no world_facts among retain, real_authors"):
        model_utility_geometric({s: tables[s] for s in SPLITS[:2]})
    with pytest.raises(InputError, match="no generated text"):
        model_utility_geometric(tables | {"retain": replace(tables["retain"], generated=(None,) * 7)})
    with pytest.raises(DataError, match="'retain' have no paraphrase"):
        model_utility_geometric(tables | {"retain": replace(tables["retain"], paraphrase=np.full(7, np.nan))})
