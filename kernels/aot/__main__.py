"""``python -m scdd.kernels.aot``: what every kernel takes; exit status 1 if one breaks its budget."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from . import ARCHITECTURES, OPERATORS, every_build

_ROW = "{:56}{:>8}{:>6}{:>7}{:>9}{:>6}{:>8}{:>8}  {}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scdd.kernels.aot",
        description="Compile every kernel for GPUs that need not be here; print what each takes.",
    )
    parser.add_argument(
        "--operator", choices=OPERATORS, action="append", help="may be repeated; default: all"
    )
    parser.add_argument(
        "--architecture",
        type=int,
        choices=ARCHITECTURES,
        action="append",
        help="may be repeated; default: all",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="compilers side by side")
    return parser.parse_args()


def _row(operator: str, name: str, architecture: int) -> tuple[str, bool]:
    """One line of the table, and whether the build keeps its promises."""
    from .machine_code import broken_promises, cost

    build = every_build((operator,))[name]
    found = cost(build, architecture)
    broken = broken_promises(build, architecture, found)
    narrow = sum(found.loads.values()) - found.loads.get(128, 0)
    line = _ROW.format(
        name, f"sm_{architecture}", found.registers, found.local_bytes, found.shared_bytes,
        found.tensor_core_instructions, found.loads.get(128, 0), narrow, "; ".join(broken) or "ok",
    )  # fmt: skip
    return line, not broken


def main() -> int:
    """Print the table."""
    from .._dispatch import INTERPRET, TRITON_INSTALLED

    if INTERPRET or not TRITON_INSTALLED:
        print("needs Triton and a process without TRITON_INTERPRET", file=sys.stderr)
        return 2
    import triton

    options = _arguments()
    jobs = [
        (operator, name, architecture)
        for operator in options.operator or OPERATORS
        for name, build in every_build((operator,)).items()
        for architecture in options.architecture or ARCHITECTURES
        if architecture in build.architectures
    ]
    print(f"triton {triton.__version__}; bytes of local memory a thread, of shared memory a block")
    print(_ROW.format("build", "for", "regs", "local", "shared", "mma", "ld128", "ld<128", ""))
    sound = True
    with ProcessPoolExecutor(options.processes) as pool:
        for line, kept in pool.map(_row, *zip(*jobs, strict=True)):
            print(line, flush=True)
            sound &= kept
    return int(not sound)


if __name__ == "__main__":
    sys.exit(main())
