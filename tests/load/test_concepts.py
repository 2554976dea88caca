import json

import pytest

from tests.tiny import tiny, tiny_sets
from workbench.core.components import Place
from workbench.core.errors import DataError, InputError, MismatchError, ModelError, UnknownNameError
from workbench.core.store import file_sha256
from workbench.load import concepts as module
from workbench.load.concepts import MODELS, Known, check_model, concepts, own_concept

ENTRY = {
    "Concept": "Poland",
    "Layer": 23,
    "Dim": 743,
    "QA": [" What is the capital city of Poland?\n", "Who?"],
    "unrelated_QA": ["What is the capital city of Italy?\n"],
    "text_completion": [{"First_half": "In 1926", "Second_half": "the May Coup"}],
    "wikipedia_content": "Poland is a country.",
}


def written(folder, *entries, name="llama2-7b_concepts.json"):
    path = folder / name
    path.write_text(json.dumps(list(entries)))
    return path


@pytest.mark.parametrize(
    ("file", "ids"),
    [
        ("llama2-7b_concepts_dev.json", ["llama2-7b/23/743", "llama2-7b/24/10867"]),
        ("olmo-7b_concepts_dev.json", ["olmo-7b/27/5294", "olmo-7b/26/680"]),
    ],
)
def test_the_bundled_rows(root, file, ids):
    path = root / "data/conceptvectors" / file
    assert f"`{file_sha256(path)}`" in (path.parent / "CARD.md").read_text()
    rows = concepts(path)
    assert rows.ids == ids
    for row in rows:
        assert len(row.qa) == 10
        assert len(row.unrelated_qa) == 50
        assert 1 <= len(row.completion) <= 10
        assert not set(row.qa) & set(row.unrelated_qa)
        assert all(q == q.strip() for q in row.qa + row.unrelated_qa)
        assert f"{row.model}/{row.places[0].layer}/{row.places[0].index}" == row.id


def test_an_entry(tmp_path):
    row = concepts(written(tmp_path, ENTRY))[0]
    assert (row.name, row.model, row.places) == ("Poland", "llama2-7b", (Place(23, 743),))
    assert row.qa == ("What is the capital city of Poland?", "Who?")
    assert row.completion == (("In 1926", "the May Coup"),)
    assert row.question.replace("{text}", row.qa[1]) == "Question: Who?\n Answer:"
    assert row.start == "Please complete the following paragraph: {text}"


def test_one_name_at_two_places_are_two_concepts_and_one_place_twice_is_refused(tmp_path):
    assert len(concepts(written(tmp_path, ENTRY, ENTRY | {"Dim": 744}))) == 2
    with pytest.raises(DataError, match="two rows have the id 'llama2-7b/23/743'"):
        concepts(written(tmp_path, ENTRY, ENTRY | {"Concept": "Polish"}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"Layer": "23"}, "entry 1: Layer is '23', expected a whole number"),
        ({"Dim": -1}, "Dim is -1"),
        ({"Dim": 11008}, r"Llama-2-7B-chat has no value vector \(23, 11008\)"),
        ({"Layer": 32}, r"has no value vector \(32, 1\)"),
        ({"QA": []}, "QA is .*expected a list that is not empty"),
        ({"QA": ["a", " "]}, "QA holds something that is no question"),
        ({"unrelated_QA": None}, "unrelated_QA is absent"),
        ({"text_completion": ["x"]}, "text_completion: a str, expected First_half"),
        ({"text_completion": [{"First_half": "x"}]}, "no text under 'Second_half'"),
        ({"wikipedia_content": ""}, "no text under 'wikipedia_content'"),
        ({"Concept": None}, "no text under 'Concept'"),
    ],
)
def test_broken_entries(tmp_path, change, says):
    with pytest.raises(DataError, match=says):
        concepts(written(tmp_path, ENTRY, ENTRY | {"Dim": 1} | change))


def test_broken_files(tmp_path):
    with pytest.raises(InputError, match="does not say which model it is about; pass model=, one of llama2-7b, olmo-7b"):
        concepts(written(tmp_path, ENTRY, name="mine.json"))
    assert concepts(written(tmp_path, ENTRY, name="mine.json"), model="olmo-7b").ids == ["olmo-7b/23/743"]
    with pytest.raises(UnknownNameError, match="unknown model of ConceptVectors 'llama-7b'. Did you mean 'llama2-7b'"):
        concepts(written(tmp_path, ENTRY), model="llama-7b")
    with pytest.raises(DataError, match="entry 0: a str, expected an object"):
        concepts(written(tmp_path, "Poland"))
    (tmp_path / "olmo-7b.json").write_text("{}")
    with pytest.raises(DataError, match="holds a dict, expected a list of concepts"):
        concepts(tmp_path / "olmo-7b.json")


def test_a_model_the_file_is_not_about_is_refused(tmp_path, monkeypatch):
    model, row = tiny(), concepts(written(tmp_path, ENTRY))[0]
    with pytest.raises(
        ModelError,
        match=r"concept 'Poland' is value vector 23/743 of Llama-2-7B-chat \(llama, 32 layers, d_mlp 11008, .*'tiny' \(llama, "
        r"2 layers, d_mlp 20, d_model 8, 16 tokens\) is not there or means something else; find places there with ",
    ):
        check_model(model, row)
    fits = Known("Tiny", "llama", 2, 20, 8, 16)
    monkeypatch.setitem(module.MODELS, "llama2-7b", fits)
    check_model(model, row)
    for field, value in {"type": "olmo", "n_layers": 3, "d_mlp": 19, "d_model": 9, "d_vocab": 17}.items():
        monkeypatch.setitem(module.MODELS, "llama2-7b", fits._replace(**{field: value}))
        with pytest.raises(ModelError, match="concept 'Poland'"):
            check_model(model, row)


def test_the_two_models_differ_in_type_and_vocabulary():
    llama, olmo = MODELS["llama2-7b"], MODELS["olmo-7b"]
    assert llama[2:5] == olmo[2:5]
    assert llama.type != olmo.type
    assert llama.d_vocab != olmo.d_vocab


def test_your_own():
    model, (forget, retain) = tiny(), tiny_sets()
    row = own_concept(model, "sky", [Place(1, 3), Place(0, 2)], forget, retain, completion=[("the sky is", "blue")])
    assert row.qa == tuple(r.prompt for r in forget)
    assert row.unrelated_qa == tuple(r.prompt for r in retain)
    assert row.id.endswith("/1.3+0.2")
    assert row.question is None
    check_model(model, row)
    with pytest.raises(MismatchError, match="concept 'sky' was found in model .* its value vectors are other ones"):
        check_model(tiny(seed=1), row)
    with pytest.raises(InputError, match=r"tiny has no value vector \(1, 20\)"):
        own_concept(model, "sky", [Place(1, 20)], forget, retain)
    with pytest.raises(InputError, match="places is empty"):
        own_concept(model, "sky", [], forget, retain)
    with pytest.raises(DataError, match="3 question.s. stand in qa and in unrelated_qa"):
        own_concept(model, "sky", [Place(0, 0)], forget, forget)
