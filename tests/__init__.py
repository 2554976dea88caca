"""The tests. `typecheck.checked` is what the jaxtyping option in pyproject.toml names."""

from tests import typecheck
