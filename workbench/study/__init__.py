"""Stages put together: study files to resumable run folders, the judge of located weights, and the organism."""

from workbench.study.judge import Ranked, judge
from workbench.study.run import run
from workbench.study.verdict import Verdict

__all__ = ["Ranked", "Verdict", "judge", "run"]
