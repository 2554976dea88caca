"""The report in sentences: what was done, how it came out, what to be careful about. Numbers are the run's own."""

from workbench.core.svg import number, percent
from workbench.report.folder import Key, Run
from workbench.report.table import missing_metrics
from workbench.report.words import capital, listed, named, titles


def paragraph(run: Run, x: Key | None, y: Key | None) -> str:
    """What was done, and how many methods came as close to the reference as a second retrained model does."""
    sentences = [_what_was_done(run)]
    for key in (x, y):
        if key is not None:
            sentences.append(_where_they_stand(run, key))
    if x is not None and y is not None and run.band(x) and run.band(y):
        both = [arm for arm in run.methods if run.inside_band(arm, x) and run.inside_band(arm, y)]
        much = f"{len(both)} of {len(run.methods)} methods" if both else "no method"
        who = f": {titles(both)}" if both else ""
        sentences.append(f"On both at once, {much} came as close to the reference as a second retrained model does{who}.")
    return " ".join(sentence for sentence in sentences if sentence)


def _what_was_done(run: Run) -> str:
    unlearned = [arm for arm in run.methods if arm.kind == "unlearn"]
    edited = [arm for arm in run.methods if arm.kind == "edit"]
    others = len(run.methods) - len(unlearned) - len(edited)
    parts = [f"{len(arms)} {word}" for arms, word in ((unlearned, "by unlearning"), (edited, "by editing weights")) if arms]
    parts += [f"{others} other"] if others else []
    tried = f"{len(run.methods)} {'ways were' if len(run.methods) != 1 else 'way was'} tried" + (
        f" ({', '.join(parts)})" if parts else ""
    )
    model = f"to make {run.config['model']} forget" if run.config.get("model") else "to make the model forget"
    against = [
        text
        for role, text in (
            ("untouched", "the untouched model"),
            ("reference", "a model retrained without the forget rows (the gold standard)"),
            ("band", "a second retrained model (how far apart two perfect answers lie)"),
        )
        if run.role(role)
    ]
    return f"{tried} {model}" + (f", and compared with {listed(against)}." if against else ".")


def _where_they_stand(run: Run, key: Key) -> str:
    said = []
    for role, name in (("untouched", "the untouched model"), ("reference", "the reference")):
        arm = run.role(role)
        if arm and key in arm.measurements:
            row = arm.measurements[key]
            bounds = f" [{number(row.low)}, {number(row.high)}]" if row.low == row.low else ""
            said.append(f"{number(row.value)}{bounds} for {name}")
    return f"{capital(named(key))} is {listed(said)}." if said else ""


def cautions(run: Run) -> list[str]:
    """What a reader must know before quoting a number."""
    return [*_intervals(run), *_comparison(run), *_notes(run), *_weights(run), *_gaps(run)]


def _intervals(run: Run) -> list[str]:
    counts = sorted({row.n for arm in run.arms for row in arm.measurements})
    said = []
    if counts:
        span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        said.append(f"Brackets are 95 % intervals over examples; the numbers rest on {span} examples each.")
    if len(run.seeds) == 1:
        said.append(f"Every arm was run once, with seed {run.seeds[0]}: the intervals say nothing about another seed.")
    elif run.seeds:
        said.append(f"Seeds: {', '.join(map(str, run.seeds))}. An interval covers the choice of examples, not that of the seed.")
    bare = sorted({named((row.metric, row.split)) for arm in run.arms for row in arm.measurements if row.low != row.low})
    return [*said, f"No interval is defined for some arms on {listed(bare)}."] if bare else said


def _comparison(run: Run) -> list[str]:
    said = []
    if run.role("untouched") is None:
        said.append("There is no untouched model in this run, so nothing shows where the methods started.")
    if run.role("reference") is None:
        said.append("There is no retrained reference in this run: nothing shows how much forgetting would be right.")
    if run.role("reference") and run.role("band"):
        said.append("The retrain-retrain band comes from one pair of retrained models: a single distance, not a distribution.")
    elif run.role("reference"):
        said.append("There is no second retrained model, so no retrain-retrain band can be drawn.")
    return said


def _notes(run: Run) -> list[str]:
    """The measurements' own notes, each once, with its metrics, and with its arms unless all that have them have it."""
    measured = [(arm, row) for arm in run.arms for row in arm.measurements]
    said = []
    for note in dict.fromkeys(row.note for _, row in measured if row.note):
        keys = list(dict.fromkeys((row.metric, row.split) for _, row in measured if row.note == note))
        noted = [arm for arm in run.arms if any(row.note == note for row in arm.measurements)]
        having = [arm for arm in run.arms if any(key in arm.measurements for key in keys)]
        who = f" ({titles(noted)})" if len(noted) < len(having) else ""
        said.append(f"{capital(listed(named(key) for key in keys))}{who}: {note.rstrip('.')}.")
    return said


def _weights(run: Run) -> list[str]:
    """Arms that stopped early, moved nothing, or moved much less than they were allowed to."""
    said = []
    for arm in run.methods:
        audit = arm.audit
        if audit and audit["stopped"]:
            said.append(f"{arm.title} stopped early, after {audit['steps']} steps: {audit['stopped'].rstrip('.')}.")
        if (audit and audit["moved"] == 0) or (
            arm.layers and not any(layer["ratio"] is None or layer["ratio"] > 0 for layer in arm.layers)
        ):
            said.append(f"{arm.title} moved nothing: it is the untouched model under another name.")
        elif audit and audit.get("moved_of_trainable", 1.0) < 0.5:  # an edit has no trainable share
            share = percent(audit["moved_of_trainable"])
            said.append(f"{arm.title} moved {share} of the weights it was allowed to; the rest had no gradient or rounded back.")
        elif not audit and not arm.layers:
            said.append(f"{arm.title} recorded no change of weights: neither an audit nor layers.")
    return said


def _gaps(run: Run) -> list[str]:
    said = []
    missing = [named(key) for key in missing_metrics(run)]
    if missing:
        said.append(f"Not measured in this run, and so not shown: {listed(missing)}.")
    silent = [arm for arm in run.arms if not len(arm.measurements)]
    if silent:
        said.append(f"Nothing was measured for {titles(silent)}.")
    return said
