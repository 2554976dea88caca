"""A diagnosis as pictures and tables, with its sentences."""

from typing import TYPE_CHECKING

from workbench.core.statistics import mean_estimate
from workbench.core.svg import number, shorten
from workbench.report.dots import Dot
from workbench.report.sheet import Cell, Section, Sheet
from workbench.study.diagnose_reading import Line, cautions, changes, reading, records, share_text

if TYPE_CHECKING:
    from workbench.study.diagnose_result import Diagnosis

SHOWN = 12  # modules in the picture, training rows in the table
TEXT, ID = 90, 40  # characters of a question or an answer, and of an id


def sheet(found: "Diagnosis") -> Sheet:
    """Everything a reader wants of a diagnosis."""
    sections = [_rows(found), _answers(found), _modules(found), _put_back(found), _blame(found), _retrained(found)]
    kept = tuple(section for section in sections if section is not None)
    return Sheet("What was forgotten, where it sits, and why", reading(found), kept, cautions(found), found.settings)


def _rows(found: "Diagnosis") -> Section:
    """Changes of every kind of row."""
    rows = records(found.rows)
    kinds = {
        "all rows": rows,
        "forgotten": [row for row in rows if row["forgotten"]],
        "neither": [row for row in rows if not row["forgotten"] and not row["improved"]],
        "improved": [row for row in rows if row["improved"]],
        "control": records(found.control),
    }
    means = {name: mean_estimate(changes(lines)) for name, lines in kinds.items() if lines}
    level = found.settings["level"]
    test = (
        "more than flipping the signs of its own tokens' changes gives (permutation test"
        if found.control is None
        else "more than the control rows do (conformal p-values"
    )
    return Section(
        "Which rows were forgotten",
        "Rise of the mean NLL of the right answer, in nats per token. A row counts as forgotten if it rises "
        f"{test}, Benjamini-Hochberg at {level:g}).",
        tuple(Dot(name, "rows", *one[:3]) for name, one in means.items()),
        "rise of the mean NLL, nats per token",
        ("rows", "how many", "rise"),
        tuple((name, str(one.n), one[:3]) for name, one in means.items()),
        "Means with 95 % bootstrap intervals over rows. Forgotten and improved rows were chosen by their change, so their "
        "intervals say how much it varies, not how sure it is.",
    )


def _answers(found: "Diagnosis") -> Section | None:
    """The rows that lost most, in words."""
    by_id = {row["id"]: row for row in records(found.rows)}
    lines: list[tuple[Cell, ...]] = [
        (
            shorten(row["id"], ID),
            *(shorten(row[key], TEXT) for key in ("prompt", "response", "before", "after")),
            by_id[row["id"]]["change"],
        )
        for row in records(found.answers)
    ]
    if not lines:
        return None
    return Section(
        "The rows that lost most, in words",
        "What the model answered before and after, greedily.",
        columns=("row", "question", "right answer", "before", "after", "rise"),
        rows=tuple(lines),
    )


def _bounds(line: Line, name: str) -> tuple[float, float, float]:
    return line[name], line[f"{name}_low"], line[f"{name}_high"]


def _modules(found: "Diagnosis") -> Section | None:
    """Every module, put back alone and done alone."""
    lines = sorted(records(found.modules), key=lambda line: -line["undone"])
    if not lines:
        return None
    dots = [
        Dot(_short(line["module"]), case, *_bounds(line, column))
        for line in lines[:SHOWN]
        for case, column in (("put back alone", "undone"), ("done alone", "alone"))
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            line["module"],
            line["ratio"],
            _bounds(line, "undone"),
            share_text(line["undone_share"]),
            _bounds(line, "alone"),
            share_text(line["alone_share"]),
        )
        for line in lines
    ]
    total = share_text(sum(line["undone_share"] for line in lines))
    return Section(
        "Which modules carry it",
        f"On {len(found.judged)} rows: the forgetting that goes when one module gets its old weights back, and the forgetting that "
        f"the change of one module causes by itself. The {len(lines)} effects of putting back add up to {total} of the whole.",
        tuple(dots),
        "nats per token",
        ("module", "||Δ||/||W||", "goes when put back", "share", "comes when done alone", "share of it"),
        tuple(rows),
        f"The picture shows the {min(SHOWN, len(lines))} modules with the largest effect of putting back.",
        folded=len(lines) > SHOWN,
    )


def _short(name: str) -> str:
    """A parameter's name without the words that all of them share."""
    return name.removeprefix("model.").removeprefix("transformer.").removesuffix(".weight")


def _put_back(found: "Diagnosis") -> Section | None:
    """The blamed modules against chance."""
    text = (
        "Modules were put back together. The blamed ones are the fewest whose single effects add up to half of the forgetting, at "
        "most a third of all; where there are 8 rows or more, one half of them chose and the other half is reported. Random ones "
        "are drawn from the others, as many as together changed as much (||Δ||²)."
    )
    columns = ("put back", "how many", "of ||Δ||²", "forgetting that goes", "other rows")
    return _counterfactual(found, "modules", "Is it these modules?", text, columns)


def _retrained(found: "Diagnosis") -> Section | None:
    """Training without the blamed rows against chance."""
    if found.replay is None:
        return None
    value, low, high, _ = found.replay.reproduced
    text = (
        f"The model before was trained again by the recipe, without some rows. On all of them the recipe gives back "
        f"{share_text(value)} [{share_text(low)}, {share_text(high)}] of the forgetting, and its changes of single rows correlate "
        f"{number(found.replay.correlation)} with the real ones. Shares are of the forgetting that it gives. "
        "Fewer rows are also fewer steps; the random choices show how much that does."
    )
    return _counterfactual(found, "rows", "Is it these rows?", text, ("left out", "how many", "forgetting that goes", "other rows"))


def _counterfactual(found: "Diagnosis", about: str, heading: str, text: str, columns: tuple[str, ...]) -> Section | None:
    lines = [line for line in records(found.counterfactual) if line["about"] == about]
    if not lines:
        return None
    names = [line["case"] if line["case"] != "random" else f"random, seed {line['seed']}" for line in lines]
    rows: list[tuple[Cell, ...]] = []
    for name, line in zip(names, lines, strict=True):
        size = (share_text(line["size"]),) if about == "modules" else ()
        rows.append((name, str(line["n"]), *size, _bounds(line, "gone"), _bounds(line, "others")))
    n, kind = found.others
    elsewhere = f"the change of the mean NLL of {n} {kind} in nats per token, above 0 a cost" if n else "there are none"
    return Section(
        heading,
        text,
        tuple(Dot(name, "forgetting that goes", *_bounds(line, "gone")) for name, line in zip(names, lines, strict=True)),
        "share of the forgetting that goes",
        columns,
        tuple(rows),
        f"Shares are of 1, with 95 % bootstrap intervals over rows. Other rows: {elsewhere}.",
    )


def _blame(found: "Diagnosis") -> Section | None:
    """The most blamed training rows."""
    lines = records(found.blame)
    if not lines:
        return None
    remark = "Blame is in the method's own unit. Likeness in words is BM25 between the texts, the mean over these rows."
    if found.agreement is not None:
        remark += f" Over all training rows the two rank alike to {number(found.agreement.spearman)} (Spearman)."
    return Section(
        "Which training rows explain it",
        f"Blame by {found.settings['method']}: how far training on the row went against {len(found.judged)} rows, the mean of "
        f"the model before and the model after. The {min(SHOWN, len(lines))} highest of {len(lines)}.",
        columns=("training row", "id", "was", "blame", "likeness in words"),
        rows=tuple(
            (shorten(line["text"], TEXT), shorten(line["id"], ID), line["source"], line["blame"], line["text_match"])
            for line in lines[:SHOWN]
        ),
        remark=remark,
    )
