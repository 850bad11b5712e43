import subprocess
import sys

import pytest

CODE = """
import sys
import toedit_collate{also}
heavy = {{"trl", "peft", "datasets", "matplotlib", "sklearn", "rich"}} & set(sys.modules)
sys.exit(f"imported: {{sorted(heavy)}}" if heavy else 0)
"""


@pytest.mark.parametrize(("also", "light"), [("", True), (", peft", False)])
def test_import_is_light(also, light):
    """No optional package is imported; and the test would see it if one were."""
    code = CODE.format(also=also)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode == 0) == light, done.stderr
