"""Stages put together: a study file to a resumable run folder, and the organism."""

from workbench.study.run import run

__all__ = ["run"]
