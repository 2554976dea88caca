"""The page shows where masks lie, and the scores they were cut from."""

from collections.abc import Callable
from pathlib import Path

from tests.tiny import tiny, tiny_sets
from workbench import attribute
from workbench.report.folder import read_run
from workbench.report.located import located
from workbench.report.page import render


def test_masks_and_their_scores_are_drawn(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    model, sets = tiny(), tiny_sets()
    snip, other = attribute.snip(model, *sets), attribute.magnitude(model, *sets)
    arms = sorted(p.name for p in (folder / "arms").iterdir())[:2]
    snip.mask(0.2).save(folder / "arms" / arms[0] / "mask.safetensors")
    snip.mask(0.2).matched_random(seed=0).save(folder / "arms" / arms[1] / "mask.safetensors")
    snip.save(folder / "scores/snip.safetensors")
    other.save(folder / "scores/magnitude.safetensors")
    run = read_run(folder)
    found = located(run)
    assert [one.title.split()[0] for one in found].count("snip") == 1
    assert len(found) == 3, "one file of scores, which nobody's mask came from, is not shown"
    assert all(picture.startswith("<svg") for one in found for picture in one.pictures)
    page = render(run)
    assert "What was located" in page
    assert all(picture in page for one in found for picture in one.pictures)


def test_without_masks_there_is_no_such_section(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert located(run) == []
    assert "What was located" not in render(run)
