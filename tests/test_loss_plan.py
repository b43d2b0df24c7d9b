"""How a device's threads share the rows of the loss (cc/cuda/loss_plan.h), at the borders of each mapping."""

import shutil
import subprocess

import pytest
from support import ROOT


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    """A program that prints mapping, threads and vectors kept of a shape."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("plan")
    (folder / "main.cc").write_text(
        '#include "cuda/loss_plan.h"\n#include <stdio.h>\n#include <stdlib.h>\n'
        "int main(int, char** v) {\n"
        "  const lsoftmax::cuda::LossDevice device = {atoll(v[5]), atoi(v[6]), atoi(v[7])};\n"
        "  const auto plan = lsoftmax::cuda::plan_loss(atoll(v[1]), atoll(v[2]), atoll(v[3]), atoll(v[4]), device);\n"
        '  printf("%d %d %d", static_cast<int>(plan.mapping), plan.threads, static_cast<int>(plan.kept));\n'
        '  if (plan.part != 0) printf(" of %d by %d", static_cast<int>(plan.part), plan.blocks);\n}\n'
    )
    subprocess.run(["c++", "-std=c++17", f"-I{ROOT / 'cc'}", "main.cc", "-o", "main"], cwd=folder, check=True)
    return folder / "main"


@pytest.mark.parametrize(
    ("rows", "classes", "vectors", "held", "shared", "plan"),
    [
        # a row per group
        (65536, 1, 0, 8, 227, "0 2 0"),
        (65536, 64, 16, 8, 227, "0 2 0"),
        (65536, 68, 17, 8, 227, "0 4 0"),
        (65536, 100, 25, 8, 227, "0 4 0"),
        (65536, 100, 12, 4, 227, "0 4 0"),
        (4096, 1000, 250, 8, 227, "0 32 0"),
        (4096, 1024, 256, 8, 227, "0 32 0"),
        (4096, 1024, 128, 4, 227, "0 32 0"),
        # a row per block
        (4096, 1028, 257, 8, 227, "1 64 0"),
        (4096, 1032, 129, 4, 227, "1 64 0"),
        (4096, 10000, 2500, 8, 227, "1 320 0"),
        (4096, 10000, 1250, 4, 227, "1 320 0"),
        (1, 16384, 4096, 8, 227, "1 512 0"),
        (4096, 16388, 4097, 8, 64, "1 544 0"),
        (4096, 28544, 7136, 8, 227, "2 512 7136"),
        (4096, 28548, 7137, 8, 227, "1 896 0"),
        (4096, 32768, 8192, 8, 64, "1 1024 0"),
        # a row in shared memory
        (4096, 32772, 8193, 8, 64, "2 1024 3968"),
        (4096, 16388, 4097, 8, 227, "2 512 4097"),
        (4096, 16384, 2048, 4, 227, "1 512 0"),
        (4096, 16392, 2049, 4, 227, "2 256 2049"),
        (4096, 1, 3504, 4, 227, "2 256 3504"),
        (4096, 1, 3505, 4, 227, "2 512 3505"),
        (4096, 1, 7136, 4, 227, "2 512 7136"),
        (4096, 1, 7137, 4, 227, "2 1024 7137"),
        (4096, 1, 14400, 4, 227, "2 1024 14400"),
        (4096, 1, 14401, 4, 227, "2 1024 14400"),
        (1024, 100000, 25000, 8, 227, "2 1024 14400"),
        (17, 17408, 4352, 8, 227, "2 512 4352"),
        # parts
        (1, 16385, 4096, 8, 227, "3 256 0"),
        (16, 16385, 4096, 8, 227, "3 256 0"),
        (17, 17409, 4352, 8, 227, "3 256 0"),
        (256, 1000000, 250000, 8, 227, "3 256 0"),
    ],
)
def test_plan_without_clusters(planner, rows, classes, vectors, held, shared, plan):
    command = [planner, *map(str, (rows, classes, vectors, held, shared << 10, 132, 0))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == plan


# Mapping 4: threads, vectors kept, "of" those of a part, "by" the blocks of a cluster.
@pytest.mark.parametrize(
    ("rows", "classes", "vectors", "held", "multiprocessors", "most", "plan"),
    [
        # in registers, as without clusters; no block of more than 512 threads
        (65536, 100, 25, 8, 132, 16, "0 4 0"),
        (4096, 10000, 2500, 8, 132, 16, "1 320 0"),
        (4096, 16384, 4096, 8, 132, 16, "1 512 0"),
        (4096, 16384, 2048, 4, 132, 16, "1 512 0"),
        (4096, 28548, 7137, 8, 132, 16, "4 1024 7137 of 7137 by 1"),
        # four, two blocks a multiprocessor, one
        (4096, 16392, 2049, 4, 132, 16, "4 256 2049 of 2049 by 1"),
        (4096, 28032, 3504, 4, 132, 16, "4 256 3504 of 3504 by 1"),
        (4096, 28040, 3505, 4, 132, 16, "4 512 3505 of 3505 by 1"),
        (4096, 57088, 7136, 4, 132, 16, "4 512 7136 of 7136 by 1"),
        (4096, 57096, 7137, 4, 132, 16, "4 1024 7137 of 7137 by 1"),
        # the smallest cluster that keeps 7/8, or the largest that keeps 3/4
        (4096, 115200, 14400, 4, 132, 16, "4 1024 14400 of 14400 by 1"),
        (4096, 131656, 16457, 4, 132, 16, "4 1024 14400 of 16457 by 1"),
        (4096, 131664, 16458, 4, 132, 16, "4 1024 8229 of 8229 by 2"),
        (1024, 100000, 25000, 8, 132, 16, "4 1024 12500 of 12500 by 2"),
        (256, 1000000, 250000, 8, 132, 16, "4 1024 14400 of 15625 by 16"),
        (256, 1000000, 125000, 4, 132, 16, "4 1024 14400 of 15625 by 8"),
        (2048, 1228800, 307200, 8, 132, 16, "4 1024 14400 of 19200 by 16"),
        # too long for the largest
        (2048, 1228804, 307201, 8, 132, 16, "3 256 0"),
        (256, 1000000, 250000, 8, 132, 8, "3 256 0"),
        (256, 1000000, 125000, 4, 132, 8, "4 1024 14400 of 15625 by 8"),
        (256, 100000, 25000, 8, 132, 1, "3 256 0"),
        (1024, 50000, 12500, 8, 132, 1, "4 1024 12500 of 12500 by 1"),
        # few rows: up to 8 blocks a row, so that they fill the device
        (66, 50000, 12500, 8, 132, 16, "4 512 6250 of 6250 by 2"),
        (67, 50000, 12500, 8, 132, 16, "4 1024 12500 of 12500 by 1"),
        (17, 17408, 4352, 8, 132, 16, "4 256 1088 of 1088 by 4"),
        (16, 17408, 4352, 8, 132, 16, "4 256 544 of 544 by 8"),
        (17, 17408, 4352, 8, 132, 2, "4 256 2176 of 2176 by 2"),
        # so few that they leave half of it idle
        (9, 17408, 4352, 8, 132, 16, "4 256 544 of 544 by 8"),
        (8, 17408, 4352, 8, 132, 16, "3 256 0"),
        (5, 1000000, 250000, 8, 132, 16, "4 1024 14400 of 15625 by 16"),
        (4, 1000000, 250000, 8, 132, 16, "3 256 0"),
        (1, 16385, 4096, 8, 132, 16, "3 256 0"),
        (1, 16384, 4096, 8, 132, 16, "1 512 0"),
    ],
)
def test_plan_with_clusters(planner, rows, classes, vectors, held, multiprocessors, most, plan):
    command = [planner, *map(str, (rows, classes, vectors, held, 227 << 10, multiprocessors, most))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == plan
