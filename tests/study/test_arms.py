"""Where an arm may write: single weights or whole units, as planned, or their control."""

import pytest
import yaml

from tests.tiny import tiny, tiny_sets
from workbench import attribute
from workbench.core.errors import InputError, StudyError, UnknownNameError
from workbench.study.arms import find_mask
from workbench.study.config import MaskPlan, read


@pytest.fixture(scope="module")
def setting():
    model = tiny()
    return model, attribute.snip(model, *tiny_sets())


def test_single_weights(setting):
    model, scores = setting
    assert find_mask(MaskPlan("snip", 0.2, "row"), model, scores, seed=0) == scores.mask(0.2, scope="row")
    matrices = attribute.snip(model, *tiny_sets(), include="*.mlp.*")
    assert find_mask(MaskPlan("snip", scope="2:4"), model, matrices, seed=0) == matrices.mask(scope="2:4")
    mask = scores.mask(0.2)
    assert find_mask(MaskPlan("snip", 0.2, control="inverted"), model, scores, seed=0) == ~mask
    assert find_mask(MaskPlan("snip", 0.2, control="matched_random"), model, scores, seed=3) == mask.matched_random(seed=3)


def test_whole_units_and_their_control(setting):
    model, scores = setting
    inside = find_mask(MaskPlan("snip", 0.25, unit="neuron"), model, scores, seed=0)
    assert inside == attribute.structured(model, scores, unit="neuron", fraction=0.25)
    random = find_mask(MaskPlan("snip", 0.25, unit="neuron", control="matched_random"), model, scores, seed=0)
    assert random != inside
    assert random.count == inside.count == 10 * (3 * 8)  # a quarter of 40 neurons of three vectors of 8
    assert find_mask(MaskPlan("snip", 0.25, unit="neuron", control="inverted"), model, scores, seed=0) == ~inside


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        ({"attribute": "snip", "fraction": 0.1, "unit": "neurone"}, UnknownNameError, "unit 'neurone'.*neuron"),
        ({"attribute": "snip", "fraction": 0.1, "unit": "head", "scope": "layer"}, StudyError, "units are chosen globally"),
        ({"attribute": "snip", "fraction": 0.1, "scope": "2:4"}, StudyError, "give neither fraction nor unit"),
        ({"attribute": "snip", "scope": "5:4"}, InputError, "expected N:M"),
        ({"attribute": "snip", "fraction": 0.1, "scope": "globe"}, UnknownNameError, "scope 'globe'.*global"),
        ({"attribute": "snip"}, StudyError, "no 'fraction'"),
        ({"attribute": "snip", "fraction": 0.0}, StudyError, "above 0"),
    ],
)
def test_bad_plans_are_refused_before_anything_runs(root, tmp_path, mask, error, match):
    body = {
        "name": "bad",
        "model": str(root / "data/models/stories260K"),
        "data": dict.fromkeys(("forget", "retain", "real_authors", "world_facts"), "rows.jsonl"),
        "arms": {"one": {"unlearn": {"objective": "npo"}, "mask": mask}},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(body))
    with pytest.raises(error, match=match):
        read(tmp_path / "study.yaml")


def test_a_plan_in_words():
    assert MaskPlan("snip", 0.1, unit="head", control="matched_random").words() == "matched_random snip head 0.1"
    assert MaskPlan("wanda", scope="2:4").words() == "wanda 2:4"
