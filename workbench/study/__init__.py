"""Stages put together: study files to resumable run folders, the judge of located weights, the diagnosis, and the organism."""

from workbench.study.diagnose import diagnose
from workbench.study.diagnose_result import Diagnosis
from workbench.study.judge import Fixed, Ranked, from_components, judge, split_retain
from workbench.study.run import run
from workbench.study.verdict import Verdict

__all__ = ["Diagnosis", "Fixed", "Ranked", "Verdict", "diagnose", "from_components", "judge", "run", "split_retain"]
