"""Running Python code in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap


def run_python(code: str, *arguments: object, timeout: float = 300.0, **environment: str) -> str:
    """Run `code` with `arguments` as sys.argv[1:] and return its standard output; fail unless it exits with 0.

    The current folder is an empty one, so that the installed package is imported and not the source tree.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
