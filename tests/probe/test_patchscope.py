"""Patchscopes: a state put where it came from changes nothing, put elsewhere it acts once, and nnsight gives the same logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.reference import lens as truth
from tests.reference.tiny_models import tiny_model
from tests.tiny import tiny
from workbench.core.errors import DataError, InputError, NumericsError
from workbench.load.batches import collate
from workbench.probe.lens import logit_lens, stream
from workbench.probe.lens_text import as_row
from workbench.probe.patchscope import Patched, _go_on, patched_pass, patchscope

TEXT, PROMPT = "what is the color of the sky", "the sea is very"


def model_of(name):
    return wb.wrap(tiny_model(name), tiny().tokenizer, name=name)


def states(model, text):
    """Residual streams of a text by layer, [pos d_model]."""
    return {
        int(layer): h[0] for layer, h in stream(model, collate([as_row(model, text)]), layers=range(model.n_layers)).resid.items()
    }


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "opt"])
def test_a_state_put_where_it_came_from_changes_nothing(name):
    model = model_of(name)
    prompt = as_row(model, PROMPT).tokens
    with torch.no_grad():
        plain = model.hf(torch.tensor([prompt])).logits[:, -1]
    for layer, resid in states(model, PROMPT).items():
        assert torch.equal(patched_pass(model, prompt, resid[-1:], layer=layer).logits, plain)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_through_nnsight_it_is_the_same(name):
    """rtol 1e-9: float64, the same sums in a batch of another shape."""
    model = model_of(name)
    view = model.nnsight()
    blocks = {"llama": lambda: view.model.layers, "gpt2": lambda: view.transformer.h, "gpt_neox": lambda: view.gpt_neox.layers}[
        name
    ]()
    for source, into in ((0, 0), (1, 0), (0, 2)):
        found = patchscope(model, TEXT, layers=[source], positions=[2, 5], into=into, prompt=PROMPT, k=3)
        for j, position in enumerate((2, 5)):
            with torch.no_grad(), view.trace(TEXT):
                state = blocks[source].output[0, position].save()
            with torch.no_grad(), view.trace(PROMPT):
                blocks[into].output[0, -1] = state
                logits = view.lm_head.output.save()
            z = logits[0, -1].numpy()
            assert found.top_ids[0, j].tolist() == truth.top(z, 3)
            np.testing.assert_allclose(found.top_logprob[0, j], truth.log_softmax(z)[truth.top(z, 3)], rtol=1e-9)


def test_the_last_layer_says_what_the_text_would_go_on_with():
    """Behind the last layer nothing mixes positions: the first token is the logit lens's, whatever the prompt."""
    model = tiny()
    found = patchscope(model, TEXT, positions=None, prompt=PROMPT, k=3)
    lens = logit_lens(model, TEXT, k=3)
    assert found.layers == (0, 1)
    assert found.tokens == lens.tokens
    np.testing.assert_array_equal(found.top_ids[-1], lens.top_ids[-1])
    np.testing.assert_allclose(found.top_logprob[-1], lens.top_logprob[-1], rtol=1e-9)
    assert (found.top_logprob[0] != lens.top_logprob[1]).any()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_only_the_prompt_is_patched(name):
    """The continuation by hand: without a cache, the whole text again at every step, the state at its place in the prompt."""
    model = model_of(name)
    prompt = as_row(model, PROMPT).tokens
    resid = states(model, TEXT)[1][[1, 4]]
    said = _go_on(model, patched_pass(model, prompt, resid, layer=0), 4)
    module = model.sites.module("blocks.0.resid_post")
    for j, state in enumerate(resid):

        def put(module, args, output, state=state):
            new = (output[0] if isinstance(output, tuple) else output).clone()
            new[:, len(prompt) - 1] = state
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle, tokens = module.register_forward_hook(put), list(prompt)
        with torch.no_grad():
            for _ in range(4):
                tokens.append(int(model.hf(torch.tensor([tokens])).logits[0, -1].argmax()))
        handle.remove()
        assert said[j] == tokens[len(prompt) :]


def test_a_continuation_ends_with_the_end_of_text():
    """Token 0 is the tiny tokenizer's end; what comes behind it was not said."""
    model = tiny()
    with torch.no_grad():
        model.hf.lm_head.weight.zero_()  # every logit is 0, of equal ones argmax takes the first
    logits = torch.zeros(1, 16, dtype=torch.float64)
    logits[0, 9] = 1.0
    started = patched_pass(model, [4, 6], states(model, TEXT)[0][:1], layer=0)
    assert _go_on(model, Patched(logits, started.cache), 3) == [[9]]


def test_what_the_organism_says(root):
    """States of a question, read in another question: at the last layer the answer begins as the question's own does."""
    model = wb.load(root / "data/organism/full")
    row = wb.examples("tofu:forget", root=root / "data/tofu-mini")[0]
    found = patchscope(model, row.prompt, chat=True, prompt="Question: Who?\nAnswer:", max_new_tokens=1)
    frame = found.frame()
    assert list(frame["said"])[-1] == " The"
    assert (found.tokens, found.positions) == ((":",), (len(as_row(model, row.prompt, chat=True).tokens) - 1,))
    assert frame["probability"].iloc[-1] > 0.9
    assert list(frame["layer"]) == [0, 1, 2, 3]


def test_the_picture_is_static_and_escaped():
    found = patchscope(tiny(), TEXT, prompt=PROMPT, positions=[0, 1])
    wicked = "<script>\x1b"
    html = replace(found, said=((wicked,) * 2,) * 2, tokens=(wicked,) * 2, words=dict.fromkeys(found.words, wicked))._repr_html_()
    assert "<script" not in html
    assert "\x1b" not in html
    assert "http" not in html
    assert html.count("<td") == 4
    assert "at the end of “the sea is very”" in html
    assert repr(found) == "Readout(2 layers x 2 positions, prompt 'the sea is very')"


def test_bad_input(slm):
    model = tiny()
    with pytest.raises(InputError, match="has layers 0 to 1"):
        patchscope(model, TEXT, prompt=PROMPT, layers=[2])
    with pytest.raises(InputError, match="has layers 0 to 1"):
        patchscope(model, TEXT, prompt=PROMPT, into=2)
    with pytest.raises(InputError, match="positions has 9; the text has tokens 0 to 6"):
        patchscope(model, TEXT, prompt=PROMPT, positions=[9])
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        patchscope(model, TEXT, prompt=PROMPT, max_new_tokens=0)
    with pytest.raises(InputError, match="k is 17, expected 1 to 16"):
        patchscope(model, TEXT, prompt=PROMPT, k=17)
    with pytest.raises(DataError, match="there is no token to read in the text ''"):
        patchscope(model, TEXT, prompt="")
    with pytest.raises(DataError, match="the prompt's 4 tokens and 29 new ones exceed the context of 32"):
        patchscope(model, TEXT, prompt=PROMPT, max_new_tokens=29)
    with pytest.raises(NumericsError, match="patchscope into layer 0: logits: .* are NaN or infinite"):
        patched_pass(model, [4, 6], torch.full((1, 8), torch.nan, dtype=torch.float64), layer=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    model.hf.train()
    with pytest.raises(InputError, match="training mode"):
        patched_pass(model, [4, 6], torch.zeros(1, 8, dtype=torch.float64), layer=0)
