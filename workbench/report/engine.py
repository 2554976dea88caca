"""The template engine of every page: autoescape, no undefined name, no control character."""

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from workbench.core.svg import clean


def engine() -> Environment:
    """Templates of this package with autoescape; every string that is put in has its control characters taken out first."""
    made = Environment(
        loader=PackageLoader("workbench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["json"] = _json
    return made


def _json(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value, sort_keys=True)}" for key, value in sorted(options.items()))
