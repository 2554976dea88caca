"""The README tells the truth: its tree is the folders', its commands exist, its picture is there."""

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
HIDDEN = {"__pycache__", ".git", ".venv", "runs", ".pytest_cache", ".ruff_cache", ".import_linter_cache"}


def test_the_tree_is_the_folders():
    tree = re.search(r"```tree\n(.*?)```", README, re.S)
    assert tree, "the README has no ```tree block"
    named = {line.split()[0].rstrip("/") for line in tree[1].splitlines() if line.strip()}
    folders = {p.name for p in FOLDER.iterdir() if p.is_dir() and p.name not in HIDDEN and not p.name.startswith(".")}
    stages = {f"workbench/{p.name}" for p in (FOLDER / "workbench").iterdir() if p.is_dir() and p.name not in HIDDEN}
    assert named == (folders - {"workbench"}) | stages


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (FOLDER / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


def test_every_file_it_links_is_there():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (FOLDER / link).exists(), link
