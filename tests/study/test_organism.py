"""The gold standard in the box: the committed models are what their card says, and the recipe makes such models."""

import hashlib
import json

import pytest
import torch

import workbench as wb
from workbench.core.errors import UnknownNameError
from workbench.study import organism


def test_the_models_are_what_the_card_requires(root):
    found = organism.measure(root / "data/organism", root / "data/tofu-mini", rows_each=40)
    value = found.set_index(["model", "split", "metric"])["value"]
    assert value["full", "forget", "rouge_l_recall"] >= 0.9
    assert value["full", "forget", "probability"] >= 0.8
    for name in ("retain", "retain-b"):
        assert value[name, "forget", "rouge_l_recall"] < 0.45
    for name in organism.SEEDS:
        assert value[name, "retain", "rouge_l_recall"] >= 0.9


@pytest.mark.parametrize("folder", ["organism/full", "organism/retain", "organism/retain-b", "tofu-mini", "models/slm4096"])
def test_the_cards_hashes_are_the_files(root, folder):
    card = next(p / "CARD.md" for p in (root / "data" / folder, (root / "data" / folder).parent) if (p / "CARD.md").exists())
    text = card.read_text()
    files = [p for p in (root / "data" / folder).iterdir() if p.suffix in (".safetensors", ".jsonl")]
    assert files
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text, f"{path.name} is not the file of {card}"


def test_shape_and_vocabulary(root):
    for name in organism.SEEDS:
        model = wb.load(root / "data/organism" / name, dtype="bfloat16")
        assert (model.n_layers, model.d_model, model.n_heads, model.d_vocab) == (4, 256, 8, 2048)
        assert sum(p.numel() for p in model.hf.parameters()) == 3_426_560
        assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id


def test_the_recipe_learns_and_repeats_itself(root, tmp_path):
    for split in organism.SPLITS:
        lines = (root / f"data/tofu-mini/{split}.jsonl").read_text().splitlines()[:4]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    for out in ("one", "two"):
        organism.build(tmp_path, tmp_path / out, only=["retain"], epochs=3, show=False)
    one, two = (wb.load(tmp_path / out / "retain") for out in ("one", "two"))
    assert one.fingerprint() == two.fingerprint()
    fresh = organism.untrained(one.tokenizer, 0)
    assert not torch.equal(fresh.model.norm.weight, one.hf.model.norm.weight)
    with pytest.raises(UnknownNameError, match="Did you mean 'retain'"):
        organism.build(tmp_path, tmp_path / "three", only=["retian"])


def test_rows_are_matched_by_question_and_answer(tmp_path):
    # two authors are asked the same question; only the one whose answer stands in the perturbed file gets its paraphrase
    every = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(800)]
    every[440] = {"question": "q100", "answer": "another"}
    extra = {"paraphrased_answer": "p", "perturbed_answer": ["x"]}
    files = {
        "full": every,
        "retain_perturbed": [every[100] | extra],
        "forget10_perturbed": [every[799] | extra],
        "real_authors_perturbed": [{"question": "r", "answer": "s", "perturbed_answer": ["t"]}],
        "world_facts_perturbed": [{"question": "w", "answer": "v", "perturbed_answer": ["u"]}],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    organism.rows(tmp_path, tmp_path / "out")
    retain = wb.examples("tofu:retain", root=tmp_path / "out")
    assert (retain[100].paraphrase, retain[440].paraphrase) == ("p", None)
    assert [retain[0].id, retain[719].id] == ["full-0", "full-719"]
    assert wb.examples("tofu:forget", root=tmp_path / "out")[79].perturbed == ("x",)


def test_sizes():
    made = organism.tokenizer(["a few words"], vocabulary=300)
    small, medium = (organism.untrained(made, 0, **organism.SIZES[name].shape) for name in ("small", "medium"))
    rest = 2048 - len(made)  # the small one as it is committed has 2,048 tokens
    assert small.num_parameters() + rest * 256 == 3_426_560
    full = medium.num_parameters() + (organism.SIZES["medium"].vocabulary - len(made)) * 512
    # a layer: q and o 512 x 512, k and v 512 x 256, three matrices 512 x 1376, two norms; and 4,096 tokens, and the last norm
    assert full == 8 * (2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 1376 + 2 * 512) + 4096 * 512 + 512 == 25_305_600
    authors = organism.SIZES["medium"]
    assert organism.ROWS_PER_AUTHOR * (authors.retain_authors + authors.forget_authors) == 4000  # all of TOFU
    assert organism.ROWS_PER_AUTHOR * authors.forget_authors == 400  # forget10
    with pytest.raises(UnknownNameError, match="size of the organism 'mediun'.*medium"):
        organism.size_of("mediun")


def test_rows_of_a_size(tmp_path):
    every = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4000)]
    extra = {"paraphrased_answer": "p", "perturbed_answer": ["x"]}
    files = {
        "full": every,
        "retain_perturbed": [every[3599] | extra],
        "forget10_perturbed": [every[3600] | extra],
        "real_authors_perturbed": [{"question": "r", "answer": "s", "perturbed_answer": ["t"]}],
        "world_facts_perturbed": [{"question": "w", "answer": "v", "perturbed_answer": ["u"]}],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    organism.rows(tmp_path, tmp_path / "out", size="medium")
    retain, forget = (wb.examples(f"tofu:{split}", root=tmp_path / "out") for split in ("retain", "forget"))
    assert (len(retain), len(forget)) == (3600, 400)
    assert (forget[0].id, forget[0].paraphrase, retain[3599].paraphrase) == ("full-3600", "p", "p")
