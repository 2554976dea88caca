"""`workbench influence` and `workbench edit-to-data`: what is printed, what is written, what is refused before the work."""

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import workbench as wb
from workbench.attribute.data import edit_to_data, text_match
from workbench.cli import influence as commands
from workbench.cli.common import app
from workbench.core.errors import InputError, UnknownNameError
from workbench.core.influence import Influence
from workbench.core.records import Provenance

MODEL = "data/models/stories260K"
SETS = ["--query", "tofu:world_facts", "--train", "tofu:real_authors", "--root", "data/tofu-mini"]


@pytest.fixture
def call(root, monkeypatch):
    """Run a command in the repository; an error is raised, not printed."""
    monkeypatch.chdir(root)
    assert commands.app is app
    return lambda *words: CliRunner().invoke(app, list(words), catch_exceptions=False)


def test_influence(call, tmp_path, root):
    out = tmp_path / "influence.safetensors"
    said = call("influence", "text-match", MODEL, *SETS, "--out", str(out), "-o", "b=0.5", "--top", "2", "--queries", "1").output
    query, train = (wb.examples(f"tofu:{name}", root=root / "data/tofu-mini") for name in ("world_facts", "real_authors"))
    expected = text_match(wb.load(root / MODEL), query, train, b=0.5)
    found = Influence.load(out)
    assert (found.values == expected.values).all()
    assert found.provenance.options == {"k1": 1.2, "b": 0.5}
    assert said.count("query ") == 1
    assert [line.split()[0] for line in said.splitlines()[1:5]] == ["1", "2", "-2", "-1"]
    assert expected.top(query.ids[0], 1)[0] in said.splitlines()[1]
    with pytest.raises(InputError, match="exists already"):
        call("influence", "text-match", MODEL, *SETS, "--out", str(out))


def test_edit_to_data(call, tmp_path, root):
    model = wb.load(root / MODEL)
    name = "model.layers.0.mlp.up_proj.weight"
    moved = 0.01 * torch.randn(model.shapes()[name], generator=torch.Generator().manual_seed(0))
    delta = wb.Delta.of({name: moved}, Provenance("noise", model.fingerprint()))
    delta.save(tmp_path / "delta.safetensors")
    out = tmp_path / "rows.parquet"
    words = ["--rows", "tofu:world_facts", "--root", "data/tofu-mini", "--out", str(out), "-o", "exact=true", "--top", "1"]
    said = call("edit-to-data", MODEL, str(tmp_path / "delta.safetensors"), *words).output
    rows = wb.examples("tofu:world_facts", root=root / "data/tofu-mini")
    pd.testing.assert_frame_equal(pd.read_parquet(out), edit_to_data(model, delta, rows, exact=True).frame())
    assert "nats per token; higher: the edit raises the row's loss more" in said
    assert len(said.splitlines()) == 1 + 1 + 2 + 1  # names, the index's name, both ends, the last line


@pytest.mark.parametrize(
    ("method", "option", "says"), [("tekst", "b=1", "influence 'tekst'"), ("text_match", "k=1", "option of text_match 'k'")]
)
def test_what_is_refused_before_the_model_is_read(call, tmp_path, method, option, says):
    with pytest.raises(UnknownNameError, match=says):
        call("influence", method, "no/such/model", *SETS, "--out", str(tmp_path / "x"), "-o", option)
