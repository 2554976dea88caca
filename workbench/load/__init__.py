"""Checkpoints, sites and rows.

The package itself can be called: `wb.load("folder")` is `workbench.load.models.load("folder")`. It has to be, because importing
any module in here binds the name `workbench.load` to this package.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from workbench.load.models import load

        return load(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
