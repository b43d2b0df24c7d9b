"""Tells how many compilers may run at once without running out of memory.

    jobs = free memory / what a compiler takes at its peak, at least 1

The free memory is the machine's or, where a container or a batch system grants less (cgroups), what is left of that.

usage: jobs.py PART      where PART is the largest that is built: xla, tensorflow or arrays

It prints the number for Jobs.cmake, or nothing where the free memory cannot be told.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

GB = 10**9

# What the largest compilation of a part takes, by /usr/bin/time -v (g++ 12.2, TensorFlow 2.21, x86-64), and some
# more, for other compilers: 2.84 GB for the headers of XLA, 1.07 for those of the other ops, which are both compiled
# once, beforehand; 0.43 for the module of arrays.
PEAK_GB = {"xla": 3.2, "tensorflow": 1.4, "arrays": 0.6}

# Of each version of cgroups: its folder, the files of the limit and of what is taken, and how the counts of cached
# files, which make room when it is wanted, are named in memory.stat.
_CGROUPS = {
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("sys/fs/cgroup", "memory.max", "memory.current", ""),
}


def free_memory(root: Path = Path("/")) -> int | None:
    """Returns how many bytes this process and its children may still take, or None where the system does not tell.

    Args:
        root: the folder that holds proc/ and sys/.
    """
    left = list(_left_in_cgroups(root))
    with contextlib.suppress(OSError, KeyError):
        left.append(1024 * _counts(root / "proc/meminfo")["MemAvailable"])
    return max(0, min(left)) if left else None


def largest_part(settings: Mapping[str, str]) -> str:
    """Returns the part of a build whose files take the most, as the environment variables of the build say."""
    if settings.get("LSOFTMAX_TF") == "OFF":
        return "arrays"
    return "tensorflow" if settings.get("LSOFTMAX_XLA") == "OFF" else "xla"


def jobs(part: str, free: int) -> int:
    """Returns how many compilers of a part `free` bytes hold, at least 1."""
    return max(1, int(free / (GB * PEAK_GB[part])))


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """What is left of each limit that this process is under: its own group's, and those of the groups above."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, limit, taken, prefix = _CGROUPS[1 if controllers else 2]
        group = root / top / path.lstrip("/")
        for folder in (group, *group.parents):  # in a container some are not to be seen, but its own is the topmost
            with contextlib.suppress(OSError, KeyError, ValueError):  # "max", no limit, is no number
                cached = _counts(folder / "memory.stat")
                yield (
                    int((folder / limit).read_text())
                    - int((folder / taken).read_text())
                    + cached[f"{prefix}inactive_file"]
                    + cached[f"{prefix}active_file"]
                )
            if folder == root / top:
                break


def _counts(file: Path) -> dict[str, int]:
    """The numbers of a file whose lines are a name and a number."""
    words = (line.replace(":", " ").split() for line in file.read_text().splitlines())
    return {word[0]: int(word[1]) for word in words if len(word) > 1}


if __name__ == "__main__":
    free = free_memory()
    if free is not None:
        print(jobs(sys.argv[1], free))
