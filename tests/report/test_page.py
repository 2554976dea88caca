"""The page: complete, self-contained, escaped, the same bytes twice, and drawn where the numbers say."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from tests.report.conftest import ARMS, IMAGE, SCRIPT
from workbench.core.errors import InputError
from workbench.report import page

ACTIVE = {
    "script",
    "img",
    "iframe",
    "object",
    "embed",
    "link",
    "base",
    "form",
    "video",
    "audio",
    "image",
    "use",
    "foreignobject",
}


class Reader(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def html(run_folder: Path) -> str:
    return page(run_folder).read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_runs_nothing(html: str) -> None:
    reader = Reader(html)
    assert not ACTIVE & {tag for tag, _ in reader.tags}
    assert "<script" not in html.lower()
    for tag, attributes in reader.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), f"<{tag} {key}>"
            assert key not in ("src", "srcset", "data", "background", "action", "xmlns", "xlink:href"), f"<{tag} {key}>"
            assert key != "href" or value.startswith("#"), f"<{tag} href={value}>"
            assert not re.search(r"url\(|//", value), f"<{tag} {key}={value}>"
    style = re.findall(r"<style>(.*?)</style>", html, re.S)[0]
    assert not re.search(r"url\(|@import|//|<", style)
    assert "default-src 'none'" in html
    assert html.count("https://") == 1, "config.yaml's own text, and nothing else"


def test_hostile_text_is_shown_and_not_interpreted(html: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<img" not in html
    text = Reader(html).text
    # title, reading, table, all measurements, plane, layers, samples, note, stop reason, options, config, environment
    assert text.count(SCRIPT) >= 12
    assert text.count(IMAGE) >= 12


def test_no_control_character_or_half_surrogate_reaches_the_page(html: str) -> None:
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    assert "\ufffd[31mred\ufffd" in Reader(html).text


def test_every_arm_is_in_the_table_untouched_first(html: str) -> None:
    table = html[html.index('<table class="results">') : html.index("</table>")]
    places = [table.index(str(title)) for title in ("untouched", "retrained", "retrained again", "&#34;&gt;&lt;img", "&lt;script")]
    assert places == sorted(places)
    assert table.count('<th scope="row">') == len(ARMS)


def test_values_come_with_their_intervals(html: str) -> None:
    table = html[html.index('<table class="results">') : html.index("</table>")]
    # 0.92 +- 0.04 for the untouched model's ROUGE; a p-value has no interval
    assert re.search(r"<td>0\.920<small>\[0\.880, 0\.960\]</small></td>", table)
    assert len(re.findall(r"<td>1\.50e-23(<sup.*?</sup>)?<small>no interval</small></td>", table)) == len(ARMS)
    assert "<td>80.0 %</td><td>12.5</td>" in table


def test_the_band_mark_stands_at_methods_inside_it_only(html: str) -> None:
    table = html[html.index('<table class="results">') : html.index("</table>")]
    rows = table.split("<tr")[2:]
    marked = {re.sub(r".*?</svg> <span>(.*?)<small.*", r"\1", row, flags=re.S): row.count("≈") for row in rows if "≈" in row}
    # |0.35 - 0.30| = 0.05: 0.34 and 0.33 are within it (ROUGE, and half of it: probability).
    # Utility 0.70 +- 0.02 holds 0.71 and not 0.61.
    # Everybody has the same p, so the band is that one value and all four methods are in it.
    assert marked == {
        "&#34;&gt;&lt;img src=x onerror=alert(2)&gt;": 3,
        "Model Surgery": 4,
        "&lt;script&gt;alert(1)&lt;/script&gt;": 1,
        "npo with lr 0": 1,
    }


def test_what_is_missing_is_said(html: str) -> None:
    words = Reader(html).words
    assert "nobody measured KS distance on forget rows, ROUGE-L recall on retain rows, probability on retain rows" in words
    assert "Not measured in this run, and so not shown: KS distance" in words
    missing = "ROUGE-L recall on forget rows or model utility (geometric) was not measured: npo with lr 0."
    assert f"Not in the plane, because {missing}" in words
    assert "No change of layers was recorded for untouched, retrained, retrained again, and Model Surgery." in words


def test_cautions_name_stops_and_arms_that_moved_nothing(html: str) -> None:
    words = Reader(html[html.index('id="care"') : html.index('id="settings"')]).words
    assert f"{SCRIPT} stopped early, after 35 steps: retain_nll above 2.5 {SCRIPT}." in words
    assert "npo with lr 0 moved nothing" in words
    assert f"{SCRIPT} moved 40.0 % of the weights it was allowed to" in words
    assert f"{IMAGE} moved" not in words
    assert "Model Surgery recorded no change of weights" in words
    assert f"Forget quality on forget rows: the floor is 2.1e-47 {SCRIPT}." in words
    assert "9 to 360 examples" in words
    assert "with seed 7" in words


@pytest.mark.parametrize("gone", ["audit", "layers"])
def test_an_audit_or_layers_alone_show_that_an_arm_moved_nothing(run_folder: Path, gone: str) -> None:
    path = run_folder / "arms/noop/arm.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), gone: {"audit": None, "layers": []}[gone]}))
    assert "npo with lr 0 moved nothing" in Reader(page(run_folder).read_text(encoding="utf-8")).words


def test_the_reading_counts_what_came_as_close_as_retraining(html: str) -> None:
    words = Reader(html).words
    assert "4 ways were tried (3 by unlearning, 1 by editing weights) to make hub/model forget" in words
    assert "ROUGE-L recall on forget rows is 0.920 [0.880, 0.960] for the untouched model and 0.300" in words
    assert "1 of 4 methods came as close to the reference as a second retrained model does: Model Surgery." in words


def test_without_any_utility_the_plane_says_so(make_run: Callable[..., Path]) -> None:
    words = Reader(page(make_run(arms=("noop",))).read_text(encoding="utf-8")).words
    assert "The plane is not drawn: this run did not measure model_utility_geometric/all or" in words
    assert "There is no retrained reference in this run" in words


def test_the_same_run_gives_the_same_bytes(run_folder: Path, tmp_path: Path) -> None:
    first, second = page(run_folder), page(run_folder, out=tmp_path / "again.html")
    assert first == run_folder / "report.html"
    assert second == tmp_path / "again.html"
    assert first.read_bytes() == second.read_bytes()


def _to_data(svg: str, axis: str) -> Callable[[float], float]:
    """Pixel -> data, from the first and the last tick of an axis as they stand in the figure."""
    at = "x" if axis == "x" else "y"
    ticks = []
    for attributes, text in re.findall(rf'<text ([^>]*class="{axis}-tick")>([^<]*)</text>', svg):
        found = re.search(rf'(?<!\w){at}="([-\d.]+)"', attributes)
        size = re.search(r'font-size="([\d.]+)"', attributes)
        assert found
        assert size
        shift = 0.34 * float(size[1]) if axis == "y" else 0.0  # the text's baseline is below its line
        ticks.append((float(found[1]) - shift, float(text.replace("−", "-"))))
    (p, a), (q, b) = ticks[0], ticks[-1]
    return lambda pixel: a + (pixel - p) / (q - p) * (b - a)


@pytest.mark.parametrize("drawing", ["wide", "narrow"])
def test_points_and_band_are_drawn_where_the_data_are(html: str, drawing: str) -> None:
    svg = re.findall(rf'<div class="{drawing}">(<svg.*?</svg>)', html, re.S)[0]
    x, y = _to_data(svg, "x"), _to_data(svg, "y")
    found = re.findall(r'transform="translate\(([-\d.]+) ([-\d.]+)\)" class="point" data-arm="([^"]*)"', svg)
    drawn = {Reader(title).text: (x(float(px)), y(float(py))) for px, py, title in found}
    wanted = {title: at for _, _, title, at in ARMS.values() if at[1] == at[1]}
    assert drawn.keys() == wanted.keys()
    for title, at in wanted.items():  # pixels are rounded to 0.01 of some 300 for a range of about 1
        assert drawn[title] == pytest.approx(at, abs=2e-4), title
    strip = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" class="([xy])-band"', svg)
    edges = {axis: tuple(map(float, numbers)) for *numbers, axis in strip}
    left, _, width, _ = edges["x"]
    _, top, _, height = edges["y"]
    # reference 0.30 and 0.70; second retrained model 0.35 and 0.68
    assert (x(left), x(left + width)) == pytest.approx((0.25, 0.35), abs=4e-4)
    assert (y(top + height), y(top)) == pytest.approx((0.68, 0.72), abs=4e-4)


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "measurements.parquet", "arms/npo/arm.json"])
def test_a_missing_file_is_named(run_folder: Path, name: str) -> None:
    (run_folder / name).unlink()
    with pytest.raises(InputError, match=f"has no {Path(name).name}.*did that run finish"):
        page(run_folder)
    assert not (run_folder / "report.html").exists()


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        page(tmp_path / "nowhere")


def test_missing_samples_are_said(run_folder: Path) -> None:
    (run_folder / "arms/npo/samples.json").unlink()
    words = Reader(page(run_folder).read_text(encoding="utf-8")).words
    assert f"No answers were kept for {IMAGE}." in words


def test_files_that_disagree_are_refused(run_folder: Path) -> None:
    path = run_folder / "measurements.parquet"
    frame = pd.read_parquet(path)
    pd.concat([frame, frame[:1].assign(arm="ghost")]).to_parquet(path)
    with pytest.raises(InputError, match="has the arms ghost, arms/ does not"):
        page(run_folder)
    pd.concat([frame, frame[:1]]).to_parquet(path)
    with pytest.raises(InputError, match="npo has two rows for rouge_l_recall/forget"):
        page(run_folder)
    frame.drop(columns=["note", "n"]).to_parquet(path)
    with pytest.raises(InputError, match="lacks the columns n, note"):
        page(run_folder)
    path.write_text("not parquet")
    with pytest.raises(InputError, match="not a parquet file"):
        page(run_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "boss"}, "unknown role in .*'boss'.*Known: band, method, reference, untouched"),
        ({"role": "reference"}, "the arms npo, retain all have the role 'reference'"),
    ],
)
def test_roles_are_checked(run_folder: Path, change: dict[str, str], message: str) -> None:
    path = run_folder / "arms/npo/arm.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        page(run_folder)


def test_an_arm_file_without_its_keys_is_refused(run_folder: Path) -> None:
    (run_folder / "arms/npo/arm.json").write_text('{"arm": "npo", "title": "x"}')
    with pytest.raises(InputError, match=r"arm\.json: lacks kind, method, mask, options, seconds, audit, layers, order"):
        page(run_folder)


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- a", "holds a list, expected the keys")])
def test_a_broken_config_is_refused(run_folder: Path, text: str, message: str) -> None:
    (run_folder / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        page(run_folder)
