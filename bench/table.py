"""Print rows of `bench/run.py` as a Markdown table: ``python bench/table.py bench/results/*.jsonl``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_HEAD = (
    "operator",
    "case",
    "dtype",
    "mode",
    "way",
    "ms",
    "against eager",
    "TB/s",
    "of copy",
    "TFLOP/s",
    "GiB",
)


# of operators, and of a training step
_BASELINES = ("eager", "published")


def table(rows: list[dict[str, Any]]) -> str:
    """One line a measurement; the ratio is the time of eager over that of the line, in the same run."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    eager = {
        _subject(row): row["p50_us"]
        for row in rows
        if row.get("implementation") in _BASELINES and "p50_us" in row
    }
    for row in rows:
        if "p50_us" in row:
            lines.append("| " + " | ".join(_cells(row, eager.get(_subject(row)))) + " |")
        else:
            reason = row.get("error") or row.get("unavailable") or row.get("skipped")
            lines.append(f"| {row['operator']} | {row['case']} | {row['dtype']} | {row.get('mode', '')} "
                         f"| {row.get('implementation', '')} | {reason} |" + " |" * 5)  # fmt: skip
    return "\n".join(lines)


def _subject(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in ("operator", "case", "dtype", "mode", "date", "commit"))


def _cells(row: dict[str, Any], eager: float | None) -> list[str]:
    peak = row.get("peak_bytes")
    return [
        row["operator"], row["case"], row["dtype"], row["mode"], row["implementation"],
        f"{row['p50_us'] / 1e3:.3f}",
        f"{eager / row['p50_us']:.2f}x" if eager else "",
        f"{row['bytes_per_s'] / 1e12:.3f}" if "bytes_per_s" in row else "",
        f"{row['of_copy']:.0%}" if "of_copy" in row else "",
        f"{row['flops_per_s'] / 1e12:.1f}" if "flops_per_s" in row else "",
        f"{peak / 2**30:.2f}" if peak is not None else "",
    ]  # fmt: skip


def main() -> None:
    """Print the rows of all files named."""
    for name in sys.argv[1:]:
        print(table([json.loads(line) for line in Path(name).read_text().splitlines()]))


if __name__ == "__main__":
    main()
