from tests import typecheck  # found as tests.typecheck.checked by the jaxtyping option in pyproject.toml
