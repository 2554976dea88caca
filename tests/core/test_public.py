"""The public surface: what it names is there, and importing it loads nothing heavy."""

import subprocess
import sys

import workbench as wb


def test_every_public_name_is_there():
    for name in wb.__all__:
        assert getattr(wb, name) is not None
    assert set(wb.__all__) <= set(dir(wb))


def test_load_can_be_called_whatever_was_imported_before(root):
    wb.examples("tofu:forget", root=root / "data/tofu-mini")
    assert wb.load(root / "data/models/slm4096").n_layers == 4


def test_import_and_help_load_no_torch():
    code = "import sys, workbench, workbench.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
