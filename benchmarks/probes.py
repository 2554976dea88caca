"""Features for probes at every layer against one bare forward pass over the same rows."""

from collections.abc import Iterator

from benchmarks.cases import Row, Sets, batches, forward_only
from benchmarks.timing import peak_gib, versus
from workbench.load.models import Model
from workbench.load.texts import encode_texts
from workbench.trace.features import features


def probe_features(model: Model, sets: Sets, tokens: int, *, repeats: int = 5) -> Iterator[Row]:
    """Pooled activations of all layers; the floor is what a user would run anyway, logits included, in the same batches."""
    rows = encode_texts(model, [f"{row.prompt} {row.response}" for part in (sets.forget, sets.retain) for row in part])
    groups = batches(model, rows, tokens)
    jobs = {"resid_post": ("resid_post",), "resid_post, mlp_out and mlp.post": ("resid_post", "mlp_out", "mlp.post")}
    for name, sites in jobs.items():

        def job(sites: tuple[str, ...] = sites) -> None:
            features(model, rows, sites=sites, batch_tokens=tokens)

        took, bare = versus(job, lambda: forward_only(model, groups), model.device, repeats=repeats)
        yield Row(f"probe features: {name}, all layers", "one forward", took, bare, "≤ 1.20", peak_gib(job, model.device))
