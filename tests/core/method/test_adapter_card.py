"""adapter.json as the pipeline reads it."""

import subprocess
import sys


def test_a_card_is_read_without_pytorch():
    script = "import sys, mmrl_core.method.adapter_card\nassert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
