"""The page about judged localizations: every text escaped, numbers as they are, unspent budgets said, the same bytes twice."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from rich.console import Console

from tests.report.conftest import IMAGE, SCRIPT
from workbench.core.errors import InputError
from workbench.report.curves import cell, drawn, panels
from workbench.report.verdict import cautions, is_verdict, page, paragraph, print_table, read_judged, remarks

NAN = float("nan")
CHANGES = ("forget", "retain", "forget_probability", "retain_probability")


def point(name: str, size: float, side: str, seed: int, value: float, *, reached: bool = True) -> dict[str, object]:
    changes = {f"{key}_{part}": value + shift for key in CHANGES for part, shift in (("change", 0), ("low", -0.01), ("high", 0.01))}
    about = {"set": name, "size": size, "side": side, "seed": seed, "weights": 1234, "reached": reached}
    spent = {"budget_used": 0.05 if reached else 0.012, "steps": 6.5, "removed": NAN, "lr": 1e-3}
    return about | spent | changes | {"seconds": 1.5, "note": "" if reached else f"40 steps cost 0.0120 {SCRIPT}"}


def area(name: str, against: str, value: float, half: float, verdict: str, sizes: str, note: str = "") -> dict[str, object]:
    bounds = {"area": value, "low": value - half, "high": value + half}
    effort = {"bound": "", "seeds": 2, "steps": 6.5, "steps_against": 4.0}
    return {"set": name, "against": against, **bounds, **effort, "verdict": verdict, "sizes": sizes, "note": note}


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Three sets at two sizes, two seeds; hostile names; one arm that did not spend the budget."""
    folder = tmp_path / "verdict"
    folder.mkdir()
    sizes = (0.05, 0.2)
    values = {"wagle": 0.6, SCRIPT: 0.1, IMAGE: 0.3}
    points = [
        point(name, size, side, seed, {"inside": base, "random": 0.3, "outside": 0.5}[side] + 0.02 * seed)
        for name, base in values.items()
        for size in sizes
        for side in ("inside", "random", "outside")
        for seed in (0, 1)
    ]
    points[-1] = point(IMAGE, 0.2, "outside", 1, 0.2, reached=False)
    pd.DataFrame(points).astype({"seed": "Int64"}).to_parquet(folder / "verdict.parquet", index=False)
    areas = [
        area("wagle", "random", 0.3, 0.1, "beats random", "0.05, 0.2"),
        area("wagle", "outside", 0.1, 0.2, "not told apart", "0.05, 0.2"),
        area(SCRIPT, "random", -0.2, 0.1, "worse than random", "0.05, 0.2"),
        area(SCRIPT, "outside", -0.4, 0.1, "worse than outside", "0.05, 0.2"),
        area(IMAGE, "random", NAN, NAN, "not measured", "", "size 0.05 left out"),
        area(IMAGE, "outside", -0.2, 0.3, "not told apart", "0.05", "size 0.2 left out, the budget was not spent outside the set"),
    ]
    pd.DataFrame(areas).to_parquet(folder / "areas.parquet", index=False)
    scores = {"wagle": {"method": "wagle"}, SCRIPT: {"method": "random"}, IMAGE: {"method": "random", "seed": 3}}
    chosen = {"scores": scores, "seeds": [0, 1], "sizes": list(sizes), "budget": 0.05, "budget_rows": 48, "objective": "npo"}
    config = {"name": f"demo {SCRIPT}", "title": IMAGE, "judge": chosen | {"intervention": "unlearn", "options": {}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "env.json").write_text(json.dumps({"python": f"3.11 {SCRIPT}"}))
    return folder


def test_the_page_is_static_and_escaped(judged):
    html = page(judged).read_text()
    assert "<script" not in html
    assert "<img" not in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert page(judged, out=judged / "again.html").read_text() == html
    assert html.count("<svg") == 3 + 3, "three sets, three dots in the legend"


def test_what_came_out_in_sentences(judged):
    said = paragraph(read_judged(judged))
    assert said.startswith(
        "3 located sets of weights were judged inside the set, in a matched random set, and outside it, each time by unlearning "
        "(npo), until the mean NLL on retain rows had risen by 0.05 nats per token."
    )
    assert "1 of 3 forgot more than the random set: wagle (0.300 [0.200, 0.400])." in said
    assert f"1 of 3 forgot less than the random set: {SCRIPT} (-0.200 [-0.300, -0.100])." in said
    assert f"1 of 3 could not be compared with the random set: {IMAGE}." in said


def test_cautions(judged):
    said = " ".join(cautions(read_judged(judged)))
    assert "0.05 nats per token on 48 retain rows that are neither" in said
    assert "95 % Student-t intervals over 2 seeds (random set and order of training), so few that only a large" in said
    assert f"{IMAGE} at 0.2 outside (1 run; 40 steps cost 0.0120" in said
    assert "3 sets are compared, each at the 5 % level" in said
    assert "the NLL rose by 0.100 to 0.620 nats per token" in said


def test_steps_that_are_few_and_budgets_that_were_not_met_are_cautioned(judged):
    assert "Fewer than 5 steps" not in " ".join(cautions(read_judged(judged)))
    points = pd.read_parquet(judged / "verdict.parquet")
    few = (points["set"] == "wagle") & (points["side"] == "random") & (points["size"] == 0.2)
    points.loc[few, "steps"] = 4.5
    points.loc[few, "note"] = "the search ended at 0.03 of it"
    points.to_parquet(judged / "verdict.parquet", index=False)
    said = " ".join(cautions(read_judged(judged)))
    # wagle: inside 6.5 four times; random 6.5 twice and 4.5 twice
    assert "Mean steps inside and in the random set: wagle 6.5 and 5.5" in said
    assert "Fewer than 5 steps were enough for wagle at 0.2 random:" in said
    assert "The budget was crossed, but not met, by wagle at 0.2 random (2 runs; the search ended at 0.03 of it)" in said


def test_no_interval_and_bounds_in_words(judged):
    areas = pd.read_parquet(judged / "areas.parquet")
    areas.loc[0, ["low", "high", "verdict"]] = [NAN, NAN, "no interval"]
    areas.loc[2, ["low", "high", "bound"]] = [float("-inf"), -0.1, "at most"]
    areas.to_parquet(judged / "areas.parquet", index=False)
    said = paragraph(read_judged(judged))
    assert "1 of 3 have a difference from the random set but no interval, and so no verdict: wagle (0.300 no interval)." in said
    assert f"forgot less than the random set: {SCRIPT} (at most -0.200 [-inf, -0.100])." in said


def test_one_seed_has_no_interval_and_says_so(judged):
    config = yaml.safe_load((judged / "config.yaml").read_text())
    config["judge"]["seeds"] = [0]
    (judged / "config.yaml").write_text(yaml.safe_dump(config))
    assert "One seed: no interval can be given" in " ".join(cautions(read_judged(judged)))
    assert cell({"area": 0.1, "low": NAN, "high": NAN}) == ("0.100", "no interval")
    assert cell({"area": NAN, "low": NAN, "high": NAN}) == ("–", "")


def test_an_ablation_draws_only_its_random_set(judged):
    config = yaml.safe_load((judged / "config.yaml").read_text())
    config["judge"]["intervention"] = "ablate"
    (judged / "config.yaml").write_text(yaml.safe_dump(config))
    read = read_judged(judged)
    assert "Student-t intervals over 2 seeds (the random set alone)" in " ".join(cautions(read))
    assert "each time by taking weights away, until the mean NLL" in paragraph(read)
    assert "a crossing of the budget found by bisection" in " ".join(cautions(read))
    assert "Mean steps" not in " ".join(cautions(read))
    assert "<th>Share removed</th>" in page(judged).read_text()


def test_rows_are_ordered_by_advantage_and_unmeasured_ones_come_last(judged):
    read = read_judged(judged)
    assert [row["set"] for row in read.rows("random")] == ["wagle", SCRIPT, IMAGE]
    assert [row["set"] for row in read.rows("outside")] == ["wagle", IMAGE, SCRIPT]


def test_a_panel_shows_every_size_and_what_did_not_spend_the_budget(judged):
    points = read_judged(judged).points
    svg = panels(points)
    assert list(svg) == ["wagle", SCRIPT, IMAGE]
    # three sides at two sizes, a mean each; where a seed did not spend the budget, both seeds stand alone and there is no mean
    assert svg["wagle"].count("<circle") == 6
    assert svg[IMAGE].count("<circle") == 7
    assert svg[IMAGE].count('r="3" fill="none" stroke="#d9660b"') == 1
    assert "outside, 0.2: 0.500, in no mean: another seed did not spend it" in svg[IMAGE]
    assert "outside, 0.2: 0.500 (n" not in svg[IMAGE]
    assert "outside, 0.2: 0.510 (n = 2)" in svg["wagle"]
    assert "only 0.012 of the budget spent" in svg[IMAGE]
    assert ">5 %<" in svg["wagle"]
    assert ">20 %<" in svg["wagle"]
    one = panels(points[points["size"] == 0.2])
    assert one["wagle"].count("<circle") == 3, "a single size is drawn too"


def test_a_point_without_a_value_is_not_drawn(judged):
    points = read_judged(judged).points
    points.loc[points["side"] == "outside", "forget_change"] = NAN
    assert panels(points)["wagle"].count("<circle") == 4


def test_a_note_of_several_sets_is_said_once(judged):
    areas = pd.read_parquet(judged / "areas.parquet")
    areas.loc[areas["against"] == "random", "note"] = "few steps"
    areas.to_parquet(judged / "areas.parquet", index=False)
    assert remarks(read_judged(judged))[0] == f"wagle, {SCRIPT}, and {IMAGE} against random: few steps"
    assert page(judged).read_text().count("few steps") == 1


def test_in_a_notebook(judged):
    read = read_judged(judged)
    html = drawn(read.points, read.areas, read.chosen)
    assert "unlearning (npo), until the mean NLL on retain rows had risen by 0.05" in html
    assert "6.5, 4" in html
    assert "<script" not in html
    assert "beats random" in html
    assert "[0.200, 0.400]" in html


def test_in_the_terminal(judged):
    console = Console(width=160, record=True, file=io.StringIO())
    print_table(judged, console=console)
    said = console.export_text()
    assert "beats random" in said
    assert "[0.200, 0.400]" in said
    assert "size 0.2 left out" in said


def test_a_folder_that_is_none(judged, tmp_path):
    assert is_verdict(judged)
    assert not is_verdict(tmp_path)
    config = (judged / "config.yaml").read_text()
    (judged / "config.yaml").write_text("[")
    assert is_verdict(judged), "it has a verdict, whatever else is broken"
    (judged / "verdict.parquet").rename(judged / "aside")
    assert not is_verdict(judged)
    (judged / "config.yaml").write_text(config)
    assert is_verdict(judged), "a run that is not finished"
    with pytest.raises(InputError, match="there is no verdict yet"):
        page(judged)
    (judged / "aside").rename(judged / "verdict.parquet")
    (judged / "areas.parquet").unlink()
    with pytest.raises(InputError, match="has no areas.parquet"):
        page(judged)
    with pytest.raises(InputError, match="no such file or folder"):
        page(tmp_path / "nowhere")
