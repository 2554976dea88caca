"""Influence functions with the EK-FAC curvature, computed by kronfluence on a copy of the model.

For a linear map y = W a (bias as a last column of W and a 1 in a), with a of every token and s = d loss / d y under labels drawn
from the model,
    A = mean_token a a^T,  S = mean_token s s^T,  A = Q_A L_A Q_A^T,  S = Q_S L_S Q_S^T,
    Lambda = mean_row (Q_S^T G Q_A)^2  (elementwise; G = sum over the row's tokens of s a^T),
    influence of row i on query q = sum over maps of  < Q_S [ (Q_S^T G_q Q_A) / (Lambda + damping) ] Q_A^T,  G_i >,
with G_i and G_q the gradients of the mean NLL per answer token of row and query: the loss that `train.fit` minimizes on answers.
Labels enter with the weight 1/sqrt(T) a token, T answer tokens, which makes E[G^2] the Fisher information of that mean. A is over
all real tokens, the prompt's among them, as in kronfluence; at lm_head, where s is 0 on the prompt, its eigenvectors are therefore
not quite those of the states that predict answers.

kronfluence's own examples sum the NLL over tokens, so that long rows weigh more, and draw labels anew in every pass; here each
row's draws depend on the seed and its tokens alone, so neither order, nor the size of a batch, nor padding changes them. The scores
are not divided by the number of rows; only their order and sums are compared.
"""

import copy
import fnmatch
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.attribute.data.kron_task import Drawn, KronTask
from workbench.attribute.data.same_rows import same_rows
from workbench.core.activation import detach_copies
from workbench.core.errors import InputError, MissingPackageError, unknown
from workbench.core.influence import Influence
from workbench.core.numerics import check_finite, isolated_rng
from workbench.core.records import Examples, Provenance
from workbench.core.registry import influence
from workbench.core.runtime import plan_memory
from workbench.load.batches import encode_all
from workbench.load.models import Model, wrap
from workbench.trace.forward import check_eval

Strategy = Literal["ekfac", "kfac", "diagonal", "identity"]
STRATEGIES = get_args(Strategy)
INSTALL = "pip install --no-deps kronfluence && pip install einconv opt-einsum"


@influence
def ekfac(
    model: Model,
    query: Examples,
    train: Examples,
    *,
    damping: float | None = None,
    strategy: Strategy = "ekfac",
    seed: int = 0,
    draws: int = 1,
    modules: Sequence[str] | None = None,
    least_coverage: float = 0.5,
    batch_size: int = 16,
    show: bool = False,
) -> Influence:
    """Influence of training rows on queries through an approximate inverse of the curvature, g_q^T (H + damping)^-1 g_i.

    Only linear maps are tracked: of a tied embedding its use as the unembedding, and neither the lookup, nor norms, nor anything
    else. The share of all weights that are in tracked maps is in `provenance.notes["coverage"]`.

    Args:
        damping: added to every eigenvalue, in (nats per token)^2 per unit of weight squared; None is 0.1 times the mean eigenvalue
            of each map, which is free of scale. Eigenvalues of "kfac" are smaller than those of "ekfac" by about the number of
            tokens in a row, so one number means another damping there.
        strategy: "ekfac"; "kfac", with L_S L_A^T in place of Lambda; "diagonal", with the squared gradients of the weights
            themselves; "identity", the dot product of the gradients, where damping has no effect.
        seed: of the labels that are drawn from the model.
        draws: how often each row stands in the set that A, S and Lambda are fitted on, with labels of its own each time. On the
            small model of data/capitals (240 rows) the rank correlation of a query's scores under two seeds, mean over 20 queries
            and six pairs of seeds, was 0.70 with 1 and 0.80 with 4; with a damping of 1e-8, 0.51 and 0.61.
        modules: paths of linear maps as in `model.hf.named_modules()`, with * and ?; None for all.
        least_coverage: share of the weights that must be in tracked maps.
        batch_size: rows at once; changes memory, not the result beyond rounding.
    Raises: MissingPackageError without kronfluence; UnknownNameError for the strategy; InputError for a coverage below
        `least_coverage`, modules that match nothing, a damping that is not above 0, or edits of activations; MemoryPlanError if the
        factors would not fit; NumericsError for NaN scores.
    Reference: Grosse et al. 2023, arXiv:2308.03296; George et al. 2018, arXiv:1806.03884; kronfluence 1.0.1.
    """
    if strategy not in STRATEGIES:
        raise unknown("strategy of ekfac", strategy, STRATEGIES)
    if strategy != "identity" and damping is not None and not (math.isfinite(damping) and damping > 0):
        raise InputError(
            f"ekfac: damping is {damping}, expected a finite number above 0, or None for 0.1 x the mean eigenvalue. Without "
            "damping, directions that the rows hardly use would be divided by about 0."
        )
    for name, value in (("batch_size", batch_size), ("draws", draws)):
        if value < 1:
            raise InputError(f"ekfac: {name} is {value}, expected at least 1.")
    if any(line.delta.hooks for line in model.ledger):
        raise InputError("ekfac: an edit of activations is applied, which a copy of the weights does not hold; undo it first.")
    check_eval(model)
    copied = wrap(_linear_copy(model.hf), model.tokenizer, name=model.name)
    tracked = _tracked(copied.hf, modules)
    coverage = _coverage(copied.hf, tracked, least_coverage)
    _plan(copied, tracked, batch_size)
    rows, queries = encode_all(model, train), encode_all(model, query)
    options = {"damping": damping, "strategy": strategy, "draws": draws, "modules": None if modules is None else list(modules)}
    sets = {"query": Drawn(queries, seed), "train": Drawn(rows, seed), "factors": Drawn(rows, seed, draws)}
    values = _scores(KronTask(copied, tracked), sets, options, batch_size, seed, show)
    check_finite("ekfac", values)
    made = Provenance(
        "ekfac",
        model.fingerprint(),
        {"query": query.fingerprint(), "train": train.fingerprint()},
        options,
        seed,
        str(copied.dtype),
        "gradients of the mean NLL per answer token",
        sum(len(row.tokens) for row in (*rows, *queries)),
        {
            "coverage": coverage,
            "tracked": list(tracked),
            "damping": "0.1 x mean eigenvalue of each map" if damping is None else damping,
            **same_rows(query, train),
        },
    )
    return Influence(values.double().cpu().numpy(), tuple(query.ids), tuple(train.ids), made)


def _linear_copy(hf: nn.Module) -> Any:
    """A copy of the model in float32 (float64 stays), GPT-2's transposed maps turned into `nn.Linear`, which kronfluence tracks."""
    from transformers.pytorch_utils import Conv1D

    copied: Any = copy.deepcopy(hf)
    detach_copies(copied)
    if copied.dtype != torch.float64:
        copied = copied.float()
    for path, module in list(copied.named_modules()):
        if isinstance(module, Conv1D):
            parent, _, name = path.rpartition(".")
            turned = nn.Linear(module.weight.shape[0], module.weight.shape[1], device="meta")  # Conv1D's weight is [in, out]
            turned.weight = nn.Parameter(module.weight.detach().t().contiguous())
            turned.bias = module.bias
            setattr(copied.get_submodule(parent), name, turned)
    return copied


def _tracked(hf: nn.Module, modules: Sequence[str] | None) -> dict[str, nn.Linear]:
    """The linear maps by path that match one of the patterns."""
    every = {path: module for path, module in hf.named_modules() if isinstance(module, nn.Linear)}
    if modules is None:
        return every
    patterns = [modules] if isinstance(modules, str) else list(modules)
    for pattern in patterns:
        if not fnmatch.filter(every, pattern):
            listed = ", ".join(list(every)[:8])
            raise InputError(f"ekfac: modules {pattern!r} matches no linear map. There are {len(every)}: {listed}, ...")
    return {path: module for path, module in every.items() if any(fnmatch.fnmatchcase(path, one) for one in patterns)}


def _coverage(hf: nn.Module, tracked: Mapping[str, nn.Module], least: float) -> float:
    """Share of the weights in tracked maps, a tied one counted once; InputError below `least`."""
    mine = {id(p): p.numel() for module in tracked.values() for p in module.parameters()}
    every = {id(p): p.numel() for p in hf.parameters()}
    share = sum(mine.values()) / sum(every.values())
    if share < least:
        raise InputError(
            f"ekfac: {len(tracked)} tracked linear maps hold {sum(mine.values()):,} of {sum(every.values()):,} weights, "
            f"{share:.1%}, below least_coverage={least:.1%}. Track more modules, or lower least_coverage if that part is what you "
            "ask about."
        )
    return share


def _plan(model: Model, tracked: Mapping[str, nn.Linear], batch_size: int) -> None:
    """MemoryPlanError if copy, factors, eigenvectors, Lambda and the gradients of a batch would not fit."""
    size = torch.finfo(model.dtype).bits // 8
    shapes = [(m.in_features + (m.bias is not None), m.out_features) for m in tracked.values()]
    factors = sum(2 * (i * i + o * o) + (1 + 2 * batch_size) * i * o for i, o in shapes)
    widest = max(max(shape) for shape in shapes)
    needed = size * (factors + sum(p.numel() for p in model.hf.parameters())) + 3 * 8 * widest**2  # eigenvectors in float64
    cure = f"Lower batch_size, or leave wide maps out by modules=[...]; the widest has {widest:,} features."
    plan_memory("ekfac", needed, model.device, cure=cure)


def _scores(
    task: KronTask, rows: Mapping[str, Drawn], options: Mapping[str, Any], batch_size: int, seed: int, show: bool
) -> Float[Tensor, "query train"]:
    """Fit the factors on the training rows and score every pair, in a folder that is gone afterwards."""
    try:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.utils.dataset import DataLoaderKwargs
        from kronfluence.utils.state import State
    except ImportError as error:
        raise MissingPackageError(f"ekfac needs the packages kronfluence, einconv and opt-einsum: {INSTALL}") from error

    device, dtype = task.copied.device, task.copied.dtype
    factors: Any = FactorArguments(
        strategy=options["strategy"],
        covariance_max_examples=None,
        lambda_max_examples=None,
        activation_covariance_dtype=dtype,
        gradient_covariance_dtype=dtype,
        per_sample_gradient_dtype=dtype,
        lambda_dtype=dtype,
    )
    score: Any = ScoreArguments(
        damping_factor=options["damping"], per_sample_gradient_dtype=dtype, precondition_dtype=dtype, score_dtype=dtype
    )
    State._reset_state()  # it keeps the device of whoever asked first in this process
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with isolated_rng(seed), on_device, warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.filterwarnings("ignore", r"`torch\.cuda\.amp\.", FutureWarning)  # what kronfluence 1.0.1 calls was renamed since
        asked: Any = task
        prepared = prepare_model(task.copied.hf, asked)
        analyzer = Analyzer("influence", prepared, asked, cpu=device.type == "cpu", disable_tqdm=not show, output_dir=folder)
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=Drawn.batch))
        sets: dict[str, Any] = dict(rows)
        analyzer.fit_all_factors("factors", sets["factors"], per_device_batch_size=batch_size, factor_args=factors)
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            query_dataset=sets["query"],
            train_dataset=sets["train"],
            per_device_query_batch_size=batch_size,
            per_device_train_batch_size=batch_size,
            score_args=score,
        )
        found: Any = analyzer.load_pairwise_scores("scores")
        return found["all_modules"].to(torch.float64)
