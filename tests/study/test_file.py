"""Values from a command line are read as in a study file."""

import pytest

from workbench.core.errors import InputError, StudyError
from workbench.study.file import parse_options


def test_values():
    given = ["lr=1e-3", "seeds=[0, 1]", "include=*.mlp.*", "exclude=['*norm*']", "mask.scope=2:4"]
    expected = {"lr": 0.001, "seeds": [0, 1], "include": "*.mlp.*", "exclude": ["*norm*"], "mask.scope": "2:4"}
    assert parse_options(given) == expected


def test_what_cannot_be_read():
    with pytest.raises(InputError, match="expected key=value"):
        parse_options(["lr"])
    with pytest.raises(StudyError, match="not valid YAML"):
        parse_options(["seeds=[0"])
