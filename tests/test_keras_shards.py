"""ShardedClassifier on several replicas trains as one does with the joined batch, and goes on after a kill -9."""

import functools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from support import ROOT

from benchmarks.local_cluster import tf_configs

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.slow

# 2 that share a process, and 2 or 4 processes.
REPLICAS = (2, *(pytest.param(f"{count} workers", marks=pytest.mark.long) for count in (2, 4)))
FIRST_CLASSES = {2: [0, 4], 4: [0, 2, 4, 6]}  # of their shards


def start(part, replicas, folder, **environment):
    return subprocess.Popen(
        [sys.executable, ROOT / "tests" / "sharded_keras_program.py", part, str(replicas), folder],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def start_workers(part, *folders, of_last=None):
    """A process for each folder."""
    environments = [{"TF_CONFIG": config} for config in tf_configs(len(folders))]
    environments[-1].update(of_last or {})
    return [start(part, 0, folder, **environment) for folder, environment in zip(folders, environments, strict=True)]


def count_of(replicas):
    return replicas if isinstance(replicas, int) else int(replicas.split()[0])


def run(part, replicas, folder):
    """What each process of a run prints."""
    if isinstance(replicas, int):
        return [result_of(start(part, replicas, folder))]
    return [result_of(process) for process in start_workers(part, *[folder] * count_of(replicas))]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return functools.cache(lambda replicas: tmp_path_factory.mktemp(str(replicas)))


@pytest.fixture(scope="module")
def trained(folder_of):
    """trained(replicas): what each process of a training prints; it is run once."""
    return functools.cache(lambda replicas: run("training", replicas, folder_of(replicas)))


def tables_of(states):
    """Rows and slots of all classes [C, D], from the shards of all processes."""
    shards = {int(first): tables for state in states for first, tables in state["shards"].items()}
    return [np.concatenate(parts) for parts in zip(*(shards[first] for first in sorted(shards)), strict=True)]


def assert_same_state(got, expected, **tolerance):
    assert len(tables_of(got)) == 3  # with the two slots of Adam
    for one, other in zip(tables_of(got), tables_of(expected), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)
    for state in got:
        for one, other in zip(state["backbone"], expected[0]["backbone"], strict=True):
            np.testing.assert_allclose(one, other, **tolerance)


@pytest.mark.parametrize("batches", ["33 by 16", "2 by 1"])
@pytest.mark.parametrize("replicas", REPLICAS)
def test_replicas_train_as_one(replicas, batches, trained):
    got, (one,) = ([result[batches] for result in trained(which)] for which in (replicas, 1))
    assert_same_state(got, [one], rtol=0, atol=1e-5)
    assert sorted(int(first) for state in got for first in state["shards"]) == FIRST_CLASSES[count_of(replicas)]
    for state in got:
        for name in ("loss", "accuracy", "lam"):
            np.testing.assert_allclose(state["logs"][name], one["logs"][name], rtol=1e-5)
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(state["evaluated"][name], one["evaluated"][name], rtol=1e-5)
        np.testing.assert_allclose(state["probabilities"], one["probabilities"], rtol=1e-5)
        assert state["classes"] == one["classes"]


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [
        (1, 2),
        *(pytest.param(*pair, marks=pytest.mark.long) for pair in ((2, 1), (2, 3), ("2 workers", 1), ("4 workers", 2))),
    ],
)
def test_files_are_cut_anew_for_other_replicas(saved_by, loaded_by, trained, folder_of):
    saved = [result["33 by 16"] for result in trained(saved_by)]
    got = run("loaded", loaded_by, folder_of(saved_by))
    assert_same_state(got, saved, rtol=0, atol=0)
    assert len(got[0]["shards"]) == loaded_by
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(got[0]["evaluated"][name], saved[0]["evaluated"][name], rtol=1e-6)


@pytest.mark.parametrize("replicas", REPLICAS[:2])
def test_replicas_sample_among_their_own_classes(replicas, tmp_path):
    got = run("sampled", replicas, tmp_path)
    if replicas == 2:
        again = run("sampled", replicas, tmp_path)
        assert [one["after"] for one in got] == [one["after"] for one in again]
    changed = {first: tables for one in got for first, tables in one["changed"].items()}
    assert changed.keys() == {"0", "4"}
    for first, label, count in (("0", 1, 2), ("4", 6, 2)):  # of 4 and of 3 classes, at a rate of 0.4
        for table in changed[first]:
            assert sum(table) == count
            assert table[label - int(first)]
    for one in got:
        assert one["loss"][2] < one["loss"][1] < one["loss"][0]


def test_all_replicas_skip_a_step_of_which_one_has_gradients_that_are_not_finite(tmp_path):
    (got,) = run("scaled", 2, tmp_path)
    assert got["after 0"] == got["after 1"]
    assert got["scale"] == 4
    assert got["steps"] == 2
    for before, after in zip(tables_of([got["after 1"]]), tables_of([got["after 2"]]), strict=True):
        assert (before != after).any()


@pytest.mark.long
def test_a_worker_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    straight = run("killed", "2 workers", tmp_path / "straight")
    first, second = start_workers("killed", *[tmp_path / "killed"] * 2, of_last={"KILL_IN": "2"})
    second.communicate(timeout=300)
    assert second.returncode == -signal.SIGKILL
    first.kill()  # it waits for the other
    first.communicate()
    resumed = run("killed", "2 workers", tmp_path / "killed")
    assert [one["epochs"] for one in (*straight, *resumed)] == [[0, 1, 2, 3]] * 2 + [[2, 3]] * 2
    assert_same_state(resumed, straight, rtol=0, atol=0)


@pytest.mark.long
@pytest.mark.parametrize("first_has_a_checkpoint", [False, True])
def test_workers_with_folders_of_their_own_are_refused(first_has_a_checkpoint, tmp_path):
    folders = tmp_path / "first", tmp_path / "second"
    if first_has_a_checkpoint:
        folders[0].mkdir()
        (folders[0] / "LATEST").write_text("step-3")
    for process in start_workers("killed", *folders):
        _, errors = process.communicate(timeout=300)
        assert process.returncode != 0
        assert "ValueError: folder: expected one that all processes see" in errors
    for folder in folders:
        assert (folder / "LATEST").exists() == (first_has_a_checkpoint and folder == folders[0])
