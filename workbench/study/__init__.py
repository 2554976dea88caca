"""Stages put together: study files to resumable run folders, the judge of located weights, and the organism."""

from workbench.study.judge import Fixed, Ranked, from_components, judge, split_retain
from workbench.study.run import run
from workbench.study.verdict import Verdict

__all__ = ["Fixed", "Ranked", "Verdict", "from_components", "judge", "run", "split_retain"]
