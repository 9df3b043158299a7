"""The `scdd` command: every verb is a few lines over a public function.

Exit codes: 0 done, 1 a defect of scdd, 2 bad arguments or data, 3 a file that cannot be read or written,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings


def main() -> None:
    """Entry point: one line for what a user can mend, a traceback only for what is our fault."""
    from scdd.cli.verbs import app
    from scdd.errors import DataFileError, ScddError

    warnings.formatwarning = lambda message, *_, **__: f"scdd: warning: {' '.join(str(message).split())}\n"
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        _leave("interrupted; no output was written", 130)
    except ScddError as error:
        _leave(str(error), 3 if isinstance(error, DataFileError) else 2)
    except Exception as error:
        # Typer carries a copy of click under a private name; its errors are known by their shape.
        if type(error).__name__ == "Abort":
            _leave("interrupted; no output was written", 130)
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        if os.environ.get("SCDD_DEBUG"):
            raise
        _leave(f"internal error: {type(error).__name__}: {error} (set SCDD_DEBUG=1 for the traceback)", 1)
    if code == 130:  # newer versions of typer turn Ctrl-C into this code and say nothing
        _leave("interrupted; no output was written", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _leave(message: str, code: int) -> None:
    print(f"scdd: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
