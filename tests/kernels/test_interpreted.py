"""The Triton kernels under Triton's interpreter, which must be switched on before Triton is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scdd.kernels import _dispatch

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.skipif(_dispatch.INTERPRET, reason="this process is the interpreted one")
def test_kernels_pass_interpreted(request):
    # -P: the folder scdd of the repository must not hide an installed package
    command = [sys.executable, "-P", "-m", "pytest", "-m", "interpret", "-q", "-x", "-p", "no:cacheprovider"]
    # more threads than one fight with the interpreter's own NumPy over the cores
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, Path(__file__).parent],
        env=environment,
        cwd=request.config.rootpath,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed.group(1)) > 0
    assert "skipped" not in done.stdout.splitlines()[-1]
