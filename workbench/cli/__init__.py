"""The command line: one subcommand a stage, plus whole studies (run, judge, validate-data, diagnose), and report, compare, doctor,
methods and organism.

Nothing heavy is imported before a subcommand runs, so `workbench --help` is quick. Method names and their options come from the
registries and are checked there. What the user got wrong is said in one line, with exit status 2.
"""

from workbench.cli import runs, validate, diagnose, stages, influence, edits, probes, score, measure, machine  # noqa: F401, I001  # their order is that of --help
from workbench.cli.common import app, main

__all__ = ["app", "main"]
