"""Format tables for a terminal."""

from collections.abc import Sequence


def format_table(lines: Sequence[Sequence[str]]) -> str:
    """Format lines, each with the same number of cells, as aligned columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
