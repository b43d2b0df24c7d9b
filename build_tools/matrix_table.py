"""What the matrix found: a table on a page; and JSON, in which a later run replaces the cells that it ran again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLUMNS = ("TensorFlow", "Keras", "NumPy", "CPython", "pip install of the wheel", "checks", "fast tests")
RESULTS = "results.json"
BEGIN = "<!-- what build_tools/matrix.py found: begin -->"
END = "<!-- what build_tools/matrix.py found: end -->"


def line(row: dict[str, Any]) -> list[str]:
    """Returns what a row of results shows in each column."""
    versions = [row[name] or row["cell"].get(name, "?") for name in ("tensorflow", "keras", "numpy", "python")]
    if row["cell"]["package"] != "tensorflow":
        versions[0] += f" ({row['cell']['package']})"
    seconds = "-" if row["install_s"] is None else f"{row['install_s']:.1f} s"
    return [*versions, seconds, row["checks"] or "-", _counts(row["tests"])]


def _counts(tests: dict[str, int] | None) -> str:
    if tests is None:
        return "-"
    return ", ".join(
        f"{tests[word]} {word}" for word in ("failed", "passed", "skipped") if tests[word] or word == "passed"
    )


def failed(row: dict[str, Any]) -> bool:
    """Returns whether something went wrong in a cell."""
    return row["error"] is not None


def markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the table, the oldest TensorFlow first."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(line, sorted(rows, key=_order))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _order(row: dict[str, Any]) -> tuple:
    """By TensorFlow, then CPython, then NumPy: "1.26" is before "newest"."""
    tensorflow, python = (tuple(map(int, row["cell"][name].split("."))) for name in ("tensorflow", "python"))
    return tensorflow, python, row["cell"]["numpy"], row["cell"]["package"]


def merge(earlier: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the new rows, and those earlier ones of other cells that came from the same wheels."""
    wheels = {row["cell"]["python"]: row["sha256"] for row in new}
    cells = [row["cell"] for row in new]

    def stands(row: dict[str, Any]) -> bool:
        same_wheel = wheels.get(row["cell"]["python"], row["sha256"]) == row["sha256"]
        return same_wheel and row["cell"] not in cells and row["version"] == new[0]["version"]

    return [row for row in earlier if new and stands(row)] + new


def load(folder: Path) -> list[dict[str, Any]]:
    """Returns the results that a folder holds.

    Raises:
        ValueError: it holds none.
    """
    path = folder / RESULTS
    if not path.exists():
        raise ValueError(f"{path} does not exist: make matrix")
    return json.loads(path.read_text())


def save(rows: list[dict[str, Any]], folder: Path) -> None:
    """Merges rows into the results of a folder, and writes the table of all that it holds now."""
    earlier = load(folder) if (folder / RESULTS).exists() else []
    rows = sorted(merge(earlier, rows), key=_order)
    (folder / RESULTS).write_text(json.dumps(rows, indent=2) + "\n")
    (folder / "table.md").write_text(markdown(rows))


def show_on(page: Path, text: str) -> None:
    """Puts a table on a page, between the two comments that mark its place.

    Raises:
        ValueError: the page has no such place.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"{page}: expected the lines\n{BEGIN}\n{END}\nbetween which the table belongs; they are not there"
        )
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
