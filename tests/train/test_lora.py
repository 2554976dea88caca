"""Low-rank adapters: their training written out, the model exactly as it was afterwards, and peft reading what comes of it."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from tests.reference import lora as truth
from tests.reference.adamw import adamw
from tests.tiny import tiny, tiny_sets
from tests.train.test_loop import about, answers, bits, random_mask
from workbench.core.change import LowRank
from workbench.core.delta import Delta, applied
from workbench.core.errors import InputError, MismatchError, MissingPackageError, ModelError, UnknownNameError
from workbench.core.numerics import isolated_rng
from workbench.load.batches import encode_all
from workbench.train import AnswerTask, Check, Lora, export_adapter, fit
from workbench.train.lora import adapters, low_rank, target_layers
from workbench.train.masters import write_back

PATH = "model.layers.0.mlp.up_proj"
ONE = Lora(rank=3, alpha=4.5, targets=("layers.0.mlp.up_proj",))


class Regression:
    """loss_e = 1/2 ||layer(x_e) - target_e||^2 of one linear layer: its gradients in A and B are known without autograd."""

    def __init__(self, model, path=PATH, n=5):
        g = torch.Generator().manual_seed(4)
        self.model, self.path, weight = model, path, model.hf.get_submodule(path).weight
        self.x = torch.randn(n, weight.shape[1], generator=g, dtype=torch.float64)
        self.target = torch.randn(n, weight.shape[0], generator=g, dtype=torch.float64)

    def __len__(self):
        return len(self.x)

    def losses(self, chosen, epoch):
        y = self.model.hf.get_submodule(self.path)(self.x[list(chosen)])
        return 0.5 * (y - self.target[list(chosen)]).square().sum(-1)

    def tokens(self, chosen, epoch):
        return len(chosen)


def test_training_is_adamw_on_a_and_b_written_out():
    model = tiny()
    task = Regression(model)
    options = {"epochs": 4, "batch_size": 5, "lr": 0.02, "schedule": "constant", "clip_norm": None, "seed": 7}
    with isolated_rng(7), adapters(model, ONE) as (start,):
        down, up = start.down_matrix().clone().numpy(), start.up_matrix().clone().numpy()
    assert up.any() == np.False_
    assert np.abs(down).max() <= 1 / 8**0.5  # kaiming_uniform with a = sqrt(5): bound sqrt(6 / ((1 + 5) * 8)) = 1 / sqrt(8)
    found = fit(model, task, about(model), lora=ONE, **options)
    weight = model.hf.get_parameter(f"{PATH}.weight").detach().numpy()
    both, gradients = np.concatenate([down.ravel(), up.ravel()]), []
    now = both
    for _ in range(4):
        a, b = now[: down.size].reshape(down.shape), now[down.size :].reshape(up.shape)
        slopes = truth.gradients(weight, a, b, 1.5, task.x.numpy(), task.target.numpy())
        gradients.append(np.concatenate([one.ravel() for one in slopes]))
        now = adamw(both, gradients, [0.02] * len(gradients))
    a, b = now[: down.size].reshape(down.shape), now[down.size :].reshape(up.shape)
    assert list(found.delta.changes) == [f"{PATH}.weight"]
    change = found.delta.changes[f"{PATH}.weight"]
    assert isinstance(change, LowRank)
    assert change.left.shape[1] == 3
    np.testing.assert_allclose(change.dense().numpy(), truth.change(a, b, 1.5), rtol=1e-5, atol=1e-7)  # a Delta is float32
    assert found.audit.trainable == 3 * (8 + 20)
    assert found.audit.moved_of_trainable == pytest.approx(1.0, abs=0.02)  # of the 160 weights it adds to
    assert [row["loss"] for row in found.history] == sorted((row["loss"] for row in found.history), reverse=True)


def test_a_change_by_hand():
    # rank 1, alpha 2: scaling 2; A = (1, -2, 0, ...), B = (0, 3, 0, ...)^T: only row 1 changes, by 2 * 3 * A = (6, -12, 0, ...)
    model = tiny()
    known = about(model)
    with adapters(model, Lora(rank=1, alpha=2.0, targets=("layers.1.self_attn.q_proj",))) as made:
        with torch.no_grad():
            made[0].down.master.zero_()[:2] = torch.tensor([1.0, -2.0])
            made[0].up.master[1] = 3.0
        delta = low_rank(made, known)
    expected = torch.zeros(8, 8)
    expected[1, 0], expected[1, 1] = 6.0, -12.0
    assert torch.equal(delta.changes["model.layers.1.self_attn.q_proj.weight"].dense(), expected)


def state_of(model):
    """All that a training could leave behind on a model: modules, their order, hooks, attributes, parameters, flags, gradients."""
    hf = model.hf
    return {
        "modules": [(name, id(module)) for name, module in hf.named_modules()],
        "keys": list(hf.state_dict()),
        "parameters": [(name, id(p), p.requires_grad, None if p.grad is None else id(p.grad)) for name, p in hf.named_parameters()],
        "attributes": sorted(vars(hf)),
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in hf.modules()],
        "training": [m.training for m in hf.modules()],
        "fingerprint": model.fingerprint(),
    }


def assert_untouched(model, state, before, output):
    assert state_of(model) == state
    for name, p in model.hf.named_parameters():
        assert torch.equal(p.view(torch.uint8), before[name].view(torch.uint8)), name
    with torch.no_grad():
        assert torch.equal(model.hf(torch.tensor([[1, 5, 3, 9]])).logits, output)


@pytest.mark.parametrize("kind", ["tiny", "organism", "slm", "bfloat16"])
@pytest.mark.parametrize("end", ["well", "in a loss", "inside peft"])
def test_the_model_is_left_exactly_as_it_was(kind, end, root, slm, monkeypatch):
    import peft

    model = {"tiny": tiny, "bfloat16": lambda: tiny(torch.bfloat16), "slm": lambda: slm}.get(kind, lambda: None)()
    model = model or wb.load(root / "data/organism/full")
    first = next(model.hf.parameters())
    first.requires_grad_(False)
    model.hf.get_parameter(f"{next(iter(target_layers(model)))}.weight").grad = torch.ones_like(
        model.hf.get_parameter(f"{next(iter(target_layers(model)))}.weight")
    )
    rows = tiny_sets()[1]
    state, before = state_of(model), bits(model)
    with torch.no_grad():
        output = model.hf(torch.tensor([[1, 5, 3, 9]])).logits

    class Breaks(AnswerTask):
        def losses(self, chosen, epoch):
            if end == "in a loss" and epoch == 1:
                raise ZeroDivisionError
            return super().losses(chosen, epoch)

    def half_way(config, hf, adapter_name):
        peft_inject(config, hf, adapter_name=adapter_name)
        raise ZeroDivisionError

    peft_inject = peft.inject_adapter_in_model
    if end == "inside peft":
        monkeypatch.setattr(peft, "inject_adapter_in_model", half_way)
    task = Breaks(model, encode_all(model, rows))
    options = {"lora": Lora(rank=2), "epochs": 2, "batch_size": 2, "lr": 0.05}
    if end == "well":
        found = fit(model, task, about(model), **options)
        assert found.delta.changes
        assert all(isinstance(change, LowRank) for change in found.delta.changes.values())
        assert set(found.delta.changes) == {f"{path}.weight" for path in target_layers(model)}
        assert not any("lm_head" in name or "wte" in name or "embed" in name for name in found.delta.changes)
    else:
        with pytest.raises(ZeroDivisionError):
            fit(model, task, about(model), **options)
    assert_untouched(model, state, before, output)


@pytest.mark.parametrize("kind", ["tiny", "slm"])
def test_the_delta_is_what_the_adapters_did(kind, slm):
    """The logits with the adapters in place are those with the Delta applied, for layers stored either way round."""
    model = tiny() if kind == "tiny" else slm
    tokens = torch.tensor([[1, 5, 3, 9], [2, 2, 7, 4]])
    known, g = about(model), torch.Generator().manual_seed(0)
    with torch.no_grad(), adapters(model, Lora(rank=2, alpha=3.0)) as made:
        for one in made:
            for m in (one.up, one.down):
                m.master.copy_(0.1 * torch.randn(m.master.shape, generator=g, dtype=m.master.dtype))
        write_back([m for one in made for m in (one.up, one.down)])
        expected = model.hf(tokens).logits
        delta = low_rank(made, known)
    with torch.no_grad():
        plain = model.hf(tokens).logits
        with applied(model, delta):
            found = model.hf(tokens).logits
    assert float((plain - expected).abs().max()) > 0.1
    # a Delta is float32 (2^-24 relative); W + B A is rounded once where W x and B A x are added
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def trained(model, rows, **options):
    task = AnswerTask(model, encode_all(model, rows))
    return fit(model, task, about(model), epochs=2, batch_size=4, lr=5e-3, **options).delta


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks transformers for it
@pytest.mark.parametrize("which", ["data/organism/full", "data/models/slm4096"])
def test_peft_loads_the_exported_adapter_to_the_same_logits(which, root, tmp_path, forget):
    import peft
    from transformers import AutoModelForCausalLM

    model = wb.load(root / which, dtype="float32")
    rows = tiny_sets()[0] if "slm" in which else forget[:4]
    one = trained(model, rows, lora=Lora(rank=4))
    two = trained(model, rows, lora=Lora(rank=2, targets=("c_fc" if "slm" in which else "up_proj",)))
    both = one.compose(two)  # rank 6 in some layers, 4 in the others
    export_adapter(both, model, tmp_path / "adapter")
    hf = AutoModelForCausalLM.from_pretrained(root / which, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(hf, tmp_path / "adapter").eval()
    tokens = torch.tensor([[1, 5, 3, 9], [2, 2, 7, 4]])
    with torch.no_grad():
        found, plain = loaded(tokens).logits, model.hf(tokens).logits
        with applied(model, both):
            expected = model.hf(tokens).logits
    assert float((plain - expected).abs().max()) > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)  # float32 logits of size 10, added in another order


def test_what_cannot_be_exported_as_an_adapter(tmp_path):
    model = tiny(torch.float32)
    dense = fit(model, answers(model), about(model), epochs=1, lr=0.01).delta
    with pytest.raises(InputError, match="is Rows; an adapter holds low-rank changes"):
        export_adapter(dense, model, tmp_path / "a")
    with pytest.raises(InputError, match="is empty, which no adapter can hold"):
        export_adapter(Delta({}, about(model)), model, tmp_path / "a")
    low = fit(model, answers(model), about(model), epochs=1, lr=0.01, lora=ONE).delta
    with pytest.raises(MismatchError, match="belongs to model"):
        export_adapter(low, tiny(torch.float32, seed=1), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "theirs").write_text("x")
    with pytest.raises(InputError, match="not an empty folder"):
        export_adapter(low, model, tmp_path / "b")
    assert not (tmp_path / "a").exists()


def test_the_delta_saves_loads_and_undoes(tmp_path):
    model = tiny(torch.bfloat16)
    before = bits(model)
    delta = fit(model, answers(model), about(model), epochs=2, batch_size=2, lr=0.05, lora=Lora(rank=2)).delta
    delta.save(tmp_path / "d.safetensors")
    again = Delta.load(tmp_path / "d.safetensors")
    assert again.id == delta.id
    with applied(model, again):
        assert any(not torch.equal(p, before[n]) for n, p in model.hf.named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.hf.named_parameters())


def test_half_precision_models_have_adapters_in_full_precision():
    model = tiny(torch.bfloat16)
    with adapters(model, Lora(rank=2)) as made:
        held = [m for one in made for m in (one.down, one.up)]
        assert {(m.master.dtype, m.weight.dtype) for m in held} == {(torch.float32, torch.float32)}
        assert {p.dtype for n, p in model.hf.named_parameters() if "lora" not in n} == {torch.bfloat16}
    # a step of 1e-5 is below half an ulp of most entries of A (about 0.2) in bfloat16, where 20 steps would move next to nothing
    options = {"epochs": 20, "batch_size": 4, "lr": 1e-5, "schedule": "constant", "lora": Lora(rank=2)}
    with isolated_rng(0), adapters(model, Lora(rank=2)) as made:
        start = {one.name: one.down_matrix().clone() for one in made}
    found = fit(model, answers(model), about(model), **options)
    moved = torch.cat([(change.right - start[name]).flatten().abs() for name, change in found.delta.changes.items()])
    assert float((moved > 0).double().mean()) > 0.95
    assert float(moved.median()) == pytest.approx(19e-5, rel=0.2)  # the first step is 0, for B is; Adam's others are about the rate


def test_same_seed_same_bits_and_another_seed_another_adapter():
    model = tiny(torch.float32)
    state = torch.random.get_rng_state()
    one, same, other = (
        fit(model, answers(model), about(model), epochs=2, batch_size=2, lr=0.01, seed=s, lora=ONE).delta for s in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers must go on as if nothing had been drawn"
    assert one.id == same.id
    assert one.id != other.id


def test_micro_batches_change_memory_not_the_result():
    model = tiny()
    options = {"epochs": 2, "batch_size": 4, "lr": 0.01, "lora": ONE}
    whole, split = (fit(model, answers(model), about(model), micro_batch=m, **options) for m in (None, 1))
    for name in whole.delta.changes:
        torch.testing.assert_close(whole.delta.changes[name].dense(), split.delta.changes[name].dense(), rtol=1e-4, atol=1e-7)
    for one, other in zip(whole.history, split.history, strict=True):
        assert one == pytest.approx(other, rel=1e-6)  # Llama's RMSNorm is float32 in any dtype


def test_checks_and_snapshots_work_on_adapters():
    model = tiny(torch.float32)
    task = answers(model)

    def nll():
        with torch.no_grad():
            return -float(task.losses([0, 1, 2, 3], 0).mean())

    options = {"batch_size": 2, "lr": 0.02, "schedule": "constant", "lora": Lora(rank=2)}
    free = fit(model, task, about(model), epochs=3, check=Check(nll, 0.0, "likeness", every=1), snapshots=True, **options)
    assert len(free.checkpoints) == 3
    assert free.checkpoints[-1].delta.id == free.delta.id
    values = [row["likeness"] for row in free.history if "likeness" in row]
    limit = 0.5 * (values[3] + values[4])
    assert values[3] < limit < values[4]
    found = fit(model, task, about(model), epochs=3, check=Check(nll, limit, "likeness", 1, True), **options)
    assert 0 < found.audit.part < 1
    with applied(model, found.delta):
        assert limit - 0.01 * (limit - values[0]) - 1e-5 <= nll() <= limit + 1e-5  # merged instead of added: float32 rounding


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Lora(rank=0), InputError, "rank is 0"),
        (lambda: Lora(alpha=-1.0), InputError, "alpha is -1.0"),
        (lambda: Lora(targets="q_proj"), InputError, "targets is 'q_proj'"),
        (lambda: Lora(targets=()), InputError, r"targets is \(\)"),
    ],
)
def test_settings_that_cannot_be(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_adapters_that_cannot_be(slm, monkeypatch):
    model = tiny(torch.float32)
    with pytest.raises(InputError, match="does not stay inside single weights"):
        fit(model, answers(model), about(model), mask=random_mask(model, 0.5), lora=Lora())
    with pytest.raises(UnknownNameError, match="Did you mean 'q_proj'"):
        fit(model, answers(model), about(model), lora=Lora(targets=("q_prog",)))
    with pytest.raises(InputError, match="moments are kept by weight"):
        fit(model, answers(model), about(model), lora=Lora(), moments=True)
    with pytest.raises(InputError, match=r"lm_head shares its weight \(transformer.wte.weight, lm_head.weight\)"):
        target_layers(slm, ("lm_head",))
    handle = model.hf.get_submodule(PATH).register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="is hooked, and a hook would not see the adapter"):
        fit(model, answers(model), about(model), lora=Lora())
    handle.remove()
    model.hf.peft_config = {}
    with pytest.raises(ModelError, match="has adapters already"):
        fit(model, answers(model), about(model), lora=Lora())
    del model.hf.peft_config
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"mechanistic-workbench\[peft\]"):
        fit(model, answers(model), about(model), lora=Lora())


def test_targets_choose_layers_by_the_end_of_their_name():
    model = tiny()
    assert list(target_layers(model, ("mlp.up_proj",))) == [f"model.layers.{n}.mlp.up_proj" for n in (0, 1)]
    assert list(target_layers(model, (PATH,))) == [PATH]
    everything = target_layers(model)
    assert len(everything) == 14
    assert "lm_head" not in everything
    assert all(isinstance(layer, nn.Linear) for layer in everything.values())
    with pytest.raises(UnknownNameError, match="j_proj"):
        target_layers(model, ("j_proj",))  # the end of a name, but not of a part of it
