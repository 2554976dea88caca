"""Loading: what is read, what is refused, and what a Model says of itself."""

import json
import shutil
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench.core.errors import InputError, ModelError


@pytest.fixture
def copy(root, tmp_path):
    """A copy of slm4096 that a test may break."""
    shutil.copytree(root / "data/models/slm4096", tmp_path / "model")
    return tmp_path / "model"


def test_dimensions(stories, slm):
    assert (stories.n_layers, stories.d_model, stories.n_heads, stories.d_mlp, stories.d_vocab) == (5, 64, 8, 172, 512)
    assert (slm.n_layers, slm.d_model, slm.n_heads, slm.d_mlp, slm.d_vocab) == (4, 64, 4, 256, 54)
    assert stories.context == 512
    assert "260,032 weights" in repr(stories)


def test_a_live_model_is_wrapped_not_copied(stories):
    live = wb.load(stories.hf, stories.tokenizer)
    assert live.hf is stories.hf
    assert live.fingerprint() == stories.fingerprint()
    assert wb.wrap(stories.hf, stories.tokenizer).fingerprint() == stories.fingerprint()
    with pytest.raises(ModelError, match="needs its tokenizer"):
        wb.load(stories.hf)


def test_dtype_and_device(root):
    path = root / "data/models/slm4096"
    assert wb.load(path, dtype="bfloat16").dtype == torch.bfloat16
    assert wb.load(path).dtype == torch.float32
    with pytest.raises(InputError, match="dtype 'int8': expected one of"):
        wb.load(path, dtype="int8")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            wb.load(path, device="cuda")


def test_fingerprint_is_of_config_and_weights(copy, slm):
    assert wb.load(copy).fingerprint() == slm.fingerprint()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-4}))
    assert wb.load(copy).fingerprint() != slm.fingerprint()


def test_the_models_are_what_their_cards_say(stories, slm, root):
    # slm4096 answers 36 of its 38 questions word for word
    lines = (root / "data/models/slm4096/corpus.txt").read_text().split("\n")
    pairs = [(q, a) for q, a in pairwise(lines) if q.startswith("Q:") and a.startswith("A:")]
    exact = 0
    for question, answer in pairs:
        inputs = slm.tokenizer(f"{question}\nA:", return_tensors="pt")["input_ids"]
        room = min(len(answer) + 2, 128 - inputs.shape[1])
        out = slm.hf.generate(inputs, max_new_tokens=room, do_sample=False, pad_token_id=0)
        exact += slm.tokenizer.decode(out[0, inputs.shape[1] :]).split("\n")[0].strip() == answer[2:].strip()
    assert (exact, len(pairs)) == (36, 38)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("no/such/folder", "no such folder, and not a hub id"),
        ("./nowhere", "no such folder"),
        ("owner/name", "there is no such folder here, and the Hugging Face hub could not be reached"),
    ],
)
def test_nothing_there(path, match):
    with pytest.raises(ModelError, match=match):
        wb.load(path)


def test_not_a_model_folder(tmp_path, root):
    with pytest.raises(ModelError, match=r"not a model folder, there is no config.json"):
        wb.load(tmp_path)
    with pytest.raises(ModelError, match="this is a file"):
        wb.load(root / "data/models/slm4096/config.json")


def test_pickles_are_refused_and_read_only_when_asked(copy, slm):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"the weights are a pickle \(pytorch_model.bin\)"):
        wb.load(copy)
    assert wb.load(copy, allow_pickle=True).fingerprint() == slm.fingerprint()
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="no \\*.safetensors in the folder"):
        wb.load(copy)


def test_nan_weights_are_named(copy):
    weights = load_file(copy / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"transformer.h.1.mlp.c_fc.weight holds NaN"):
        wb.load(copy)


def test_broken_config(copy):
    (copy / "config.json").write_text('{"model_type": "no_such_thing"}')
    with pytest.raises(ModelError, match="transformers cannot load it"):
        wb.load(copy)
