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
        (4096, 28416, 7104, 8, 227, "2 512 7104"),
        (4096, 28420, 7105, 8, 227, "1 896 0"),
        (4096, 32768, 8192, 8, 64, "1 1024 0"),
        # a row in shared memory
        (4096, 32772, 8193, 8, 64, "2 1024 3936"),
        (4096, 16388, 4097, 8, 227, "2 512 4097"),
        (4096, 16384, 2048, 4, 227, "1 512 0"),
        (4096, 16392, 2049, 4, 227, "2 256 2049"),
        (4096, 1, 3472, 4, 227, "2 256 3472"),
        (4096, 1, 3473, 4, 227, "2 512 3473"),
        (4096, 1, 7104, 4, 227, "2 512 7104"),
        (4096, 1, 7105, 4, 227, "2 1024 7105"),
        (4096, 1, 14368, 4, 227, "2 1024 14368"),
        (4096, 1, 14369, 4, 227, "2 1024 14368"),
        (1024, 100000, 25000, 8, 227, "2 1024 14368"),
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
        (4096, 28420, 7105, 8, 132, 16, "4 1024 7105 of 7105 by 1"),
        # four, two blocks a multiprocessor, one
        (4096, 16392, 2049, 4, 132, 16, "4 256 2049 of 2049 by 1"),
        (4096, 27776, 3472, 4, 132, 16, "4 256 3472 of 3472 by 1"),
        (4096, 27784, 3473, 4, 132, 16, "4 512 3473 of 3473 by 1"),
        (4096, 56832, 7104, 4, 132, 16, "4 512 7104 of 7104 by 1"),
        (4096, 56840, 7105, 4, 132, 16, "4 1024 7105 of 7105 by 1"),
        # the smallest cluster that keeps 7/8, or the largest that keeps 3/4
        (4096, 114944, 14368, 4, 132, 16, "4 1024 14368 of 14368 by 1"),
        (4096, 131360, 16420, 4, 132, 16, "4 1024 14368 of 16420 by 1"),
        (4096, 131368, 16421, 4, 132, 16, "4 1024 8211 of 8211 by 2"),
        (1024, 100000, 25000, 8, 132, 16, "4 1024 12500 of 12500 by 2"),
        (256, 1000000, 250000, 8, 132, 16, "4 1024 14368 of 15625 by 16"),
        (256, 1000000, 125000, 4, 132, 16, "4 1024 14368 of 15625 by 8"),
        (2048, 1226048, 306512, 8, 132, 16, "4 1024 14368 of 19157 by 16"),
        # too long for the largest
        (2048, 1226052, 306513, 8, 132, 16, "3 256 0"),
        (256, 1000000, 250000, 8, 132, 8, "3 256 0"),
        (256, 1000000, 125000, 4, 132, 8, "4 1024 14368 of 15625 by 8"),
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
        (5, 1000000, 250000, 8, 132, 16, "4 1024 14368 of 15625 by 16"),
        (4, 1000000, 250000, 8, 132, 16, "3 256 0"),
        (1, 16385, 4096, 8, 132, 16, "3 256 0"),
        (1, 16384, 4096, 8, 132, 16, "1 512 0"),
    ],
)
def test_plan_with_clusters(planner, rows, classes, vectors, held, multiprocessors, most, plan):
    command = [planner, *map(str, (rows, classes, vectors, held, 227 << 10, multiprocessors, most))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == plan
