"""The file of a comparison: which methods, masks and rates, and what is refused before anything runs."""

import pytest
import yaml

from workbench.core.errors import InputError, StudyError, UnknownNameError
from workbench.study.compare import read
from workbench.study.compare_plan import EDIT, cells, plain
from workbench.study.compare_tests import untwinned
from workbench.study.config import MaskPlan

WAGLE = {"attribute": "wagle", "fraction": 0.1}
BODY = {
    "retrained": "organism/retain",
    "retrained_b": "organism/retain-b",
    "unlearn": {"npo": {}, "gentle": {"objective": "npo", "retain_weight": 2, "masks": ["none"]}},
    "edits": {"dampen": {"alpha": 5}},
    "masks": {"none": {}, "wagle": WAGLE, "random": {**WAGLE, "control": "matched_random"}},
}


def written(root, tmp_path, **changes):
    """A study file with these changes of its mapping `compare`; None takes a key away."""
    body = {key: value for key, value in {**BODY, **changes}.items() if value is not None}
    for name in ("retrained", "retrained_b"):
        if isinstance(body.get(name), str):
            body[name] = str(root / "data" / body[name])
    data = {split: f"tofu:{split}" for split in ("forget", "retain", "real_authors", "world_facts")}
    head = {"name": "c", "model": str(root / "data/organism/full"), "data": {**data, "root": str(root / "data/tofu-mini")}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**head, "compare": body}, sort_keys=False))
    return path


def test_every_method_has_its_masks_and_rates(root, tmp_path):
    path = written(
        root,
        tmp_path,
        unlearn={
            **BODY["unlearn"],
            "salun": {"objective": "npo", "mask": {"attribute": "saliency", "fraction": 0.5}, "rates": [1, 2, 3]},
        },
    )
    plan = read(path, ["compare.budget=0.1", "compare.seeds=[4]"])
    found = {line.method.name: line for line in plan.settings.lines}
    assert list(found) == ["npo", "gentle", "salun", "dampen"]
    assert list(found["npo"].masks) == ["none", "wagle", "random"]
    assert found["npo"].masks["none"] is None
    assert found["npo"].masks["random"] == MaskPlan("wagle", 0.1, control="matched_random")
    assert found["gentle"].masks == {"none": None}
    assert found["gentle"].method.options == {"objective": "npo", "retain_weight": 2}
    assert found["salun"].masks == {"saliency": MaskPlan("saliency", 0.5)}
    assert found["salun"].rates == (1, 2, 3)
    assert found["dampen"].masks == {EDIT: None}
    assert found["dampen"].rates == ()
    assert len(cells(plan.settings.lines)) == 3 + 1 + 1 + 1
    assert plan.settings.training.budget == 0.1
    assert plan.settings.seeds == (4,)


def test_only_some_methods(root, tmp_path):
    path = written(root, tmp_path)
    plan = read(path, ["compare.only=[dampen, gentle]"])
    assert [line.method.name for line in plan.mine] == ["gentle", "dampen"]
    assert len(plan.settings.lines) == 3
    assert "only" not in plan.settings.body(tmp_path)
    with pytest.raises(UnknownNameError, match="method of this comparison 'gentel'.*gentle"):
        read(path, ["compare.only=[gentel]"])


def test_the_name_of_a_method_does_not_decide_its_results(root, tmp_path):
    lines = read(
        written(
            root, tmp_path, unlearn={"npo": {}, "same": {"objective": "npo"}, "other": {"objective": "npo", "retain_weight": 2}}
        )
    )
    found = {line.method.name: plain(line, "wagle") for line in lines.settings.lines if line.rates}
    assert found["npo"] == found["same"] != found["other"]


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"retrained": None}, StudyError, "compare has no 'retrained'"),
        ({"retrained": "organism/retrain"}, InputError, "organism/retrain"),
        ({"unlearn": {"npoo": {}}}, UnknownNameError, "npo"),
        ({"unlearn": {"npo": {"retain_wieght": 2}}}, UnknownNameError, "retain_weight"),
        ({"unlearn": {"npo": {"lr": 1e-3}}}, StudyError, "lr is set by the study for all methods alike"),
        ({"unlearn": {"npo": {"rates": [1e-3]}}}, StudyError, "has 1, but compare.rates has 3: every method gets the same number"),
        ({"unlearn": {"npo": {"masks": ["wagel"]}}}, UnknownNameError, "mask of compare.unlearn.npo 'wagel'.*wagle"),
        ({"unlearn": {"npo": {"mask": {"attribute": "wagle"}}}}, StudyError, "compare.unlearn.npo: mask has no 'fraction'"),
        ({"unlearn": {"npo": {"lora": {"rank": 2}}}}, StudyError, "it takes no mask; write masks: \\[none\\]"),
        ({"edits": {"dampn": {}}}, UnknownNameError, "dampen"),
        ({"edits": {"npo": {"method": "dampen"}}}, StudyError, "each with a name of its own"),
        ({"edits": {"cut": {"method": "surgery", "locate": {"fraction": 0.1}}}}, UnknownNameError, "locate 'fraction'.*probe"),
        ({"masks": {"none": WAGLE}}, StudyError, "compare.masks.none means all weights"),
        ({"masks": {"wagle": {**WAGLE, "fraction": 2}}}, StudyError, "above 0 and at most 1"),
        ({"masks": {"wagle": {**WAGLE, "control": "random"}}}, UnknownNameError, "control 'random'.*matched_random"),
        ({"rates": []}, StudyError, "a list of learning rates, at least one"),
        ({"rates": [1e-3, -1]}, StudyError, "positive number"),
        ({"rates": [1e-3, 1e-3]}, StudyError, "has a rate twice"),
        ({"seeds": [0, 0]}, StudyError, "none twice"),
        ({"seeds": [0, -1]}, StudyError, "compare.seeds is .*, expected whole numbers of at least 0"),
        ({"unlearn": {"retrained-b": {"objective": "npo"}}}, StudyError, "'retrained-b', which is a model here"),
        ({"edits": {"untouched": {"method": "dampen"}}}, StudyError, "'untouched', which is a model here"),
        (
            {"unlearn": {"salun": {"objective": "npo", "mask": {"attribute": "wagle", "fraction": 0.5}}}},
            StudyError,
            "its own mask is called 'wagle', as one of compare.masks",
        ),
        ({"budget": 0}, StudyError, "compare.budget is 0, expected a positive number"),
        ({"validation": 1}, StudyError, "compare.validation is 1, expected a whole number of at least 2"),
        ({"deltas": "yes please"}, StudyError, "expected true or false"),
        ({"budgets": 1}, UnknownNameError, "key of compare 'budgets'.*budget"),
    ],
)
def test_bad_files_are_refused_before_anything_runs(root, tmp_path, changes, error, match):
    with pytest.raises(error, match=match):
        read(written(root, tmp_path, **changes))


def test_the_shipped_study(root):
    plan = read(root / "studies/tofu.yaml")
    assert len(plan.settings.seeds) == 3
    assert {len(line.rates) for line in plan.settings.lines if line.method.kind == "unlearn"} == {3}
    names = {line.method.name for line in plan.settings.lines}
    assert {"npo", "simnpo", "rmu", "salun", "sam", "npo-lora", "dampen-5", "task_vector"} <= names
    assert untwinned(plan.settings.lines) == []
    medium = (root / "studies/tofu-medium.yaml").read_text()
    assert [line.method.name for line in plan.settings.lines] == list(
        yaml.safe_load(medium)["compare"]["unlearn"] | yaml.safe_load(medium)["compare"]["edits"]
    )
