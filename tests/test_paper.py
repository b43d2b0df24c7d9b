"""The paper's experiment, on a few images: its network, its tables, and rows that are killed and go on."""

import dataclasses
import json
import signal
import struct

import numpy as np
import pytest
from support import run_python

pytest.importorskip("tensorflow")

import keras

from examples import paper, paper_row
from examples.data import load_idx_folder

STEPS = 4  # a point of the curve after each
ROW = "from examples import paper_row\n"
DIES = f"""{ROW}
import os, signal
replace = paper_row.replace
def die(path, write):
    if path.suffix == ".keras" and '"step": 3' in path.with_suffix(".json").read_text():
        os.kill(os.getpid(), signal.SIGKILL)
    replace(path, write)
paper_row.replace = die
"""


def write_idx(path, array):
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Dark and bright images of 8 x 8 pixels."""
    path = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for part, rows in (("train", 300), ("t10k", 50)):
        labels = (np.arange(rows) % 2).astype(np.uint8)
        images = rng.integers(0, 128, (rows, 8, 8)) + 128 * labels[:, None, None]
        write_idx(path / f"{part}-images-idx3-ubyte", images.astype(np.uint8))
        write_idx(path / f"{part}-labels-idx1-ubyte", labels)
    return path


@pytest.fixture
def row(folder, tmp_path):
    settings = {"width": 1, "steps": STEPS, "rate": 0.1, "minimum": 5.0}
    return paper_row.Row(str(folder), str(tmp_path), margin=2, seed=0, **settings)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The options of an experiment, and the folder of its results."""
    output = tmp_path_factory.mktemp("trained") / "new"
    options = ["--data-dir", str(folder), "--width", "1", "--steps", str(STEPS), "--seeds", "1", "--margins", "4"]
    options += ["--output", str(output)]
    assert paper.main(options) == 0
    return options, output


@pytest.mark.slow
def test_end_to_end(trained, capsys):
    """A row, the tables and the picture; a second call shows them again and trains nothing."""
    options, output = trained
    files = {path: path.stat().st_mtime_ns for path in output.iterdir() if path.suffix != ".png"}
    assert paper.main(options) == 0
    printed = capsys.readouterr().out
    assert "Trained 0 of 1 rows" in printed
    assert files == {path: path.stat().st_mtime_ns for path in output.iterdir() if path.suffix != ".png"}
    result = json.loads((output / "m4-seed0.json").read_text())
    assert [point["step"] for point in result["curve"]] == list(range(1, STEPS + 1))
    assert f"{100 * result['curve'][-1]['error']:.2f}" in printed
    assert np.isfinite(list(result["train"].values())).all()
    picture = output / "experiment.png"
    assert str(picture) in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_row_goes_on(trained, row):
    """Killed at the worst moment, between results and checkpoint, a row ends as one that was left alone."""
    row = dataclasses.replace(row, margin=4)
    killed = run_python(f"{DIES}paper_row.main([{json.dumps(dataclasses.asdict(row))!r}])", check=False)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout.split() == ["0", "1", "2"]
    assert len(row.result()["curve"]) == 3
    assert not row.done()
    resumed = run_python(f"{ROW}paper_row.main([{json.dumps(dataclasses.asdict(row))!r}])")
    assert resumed.stdout.split() == ["2", "3", "4"]
    assert row.result() == dataclasses.replace(row, output=str(trained[1])).result()


@pytest.mark.long
def test_a_row_in_mixed_precision_goes_on_in_it(row):
    """On the deterministic way of a GPU, too, where all that it needs is at hand on a CPU."""
    row = dataclasses.replace(row, mixed=True)
    deterministic = f"{ROW}import tensorflow as tf\ntf.config.experimental.enable_op_determinism()\n"
    arguments = f"[{json.dumps(dataclasses.asdict(row))!r}]"
    run_python(f"{deterministic}{DIES}paper_row.main({arguments})", check=False)
    assert not row.done()
    run_python(f"{deterministic}paper_row.main({arguments})")
    assert row.done()
    model = keras.saving.load_model(row.path(".keras"))
    assert {layer.compute_dtype for layer in (model, model.head, model.backbone.layers[0])} == {"bfloat16"}
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}


@pytest.mark.parametrize("gpus", [[], ["a GPU"]])
def test_rows_use_a_gpu_where_there_is_one(gpus, monkeypatch):
    """It serves one row at a time, unless told otherwise, which takes memory as it needs it; a CPU two, on a thread."""
    asked = []

    class Config:
        class experimental:  # noqa: N801
            set_memory_growth = staticmethod(lambda gpu, grow: asked.append((gpu, grow)))
            enable_op_determinism = staticmethod(lambda: asked.append("deterministic"))

        class threading:  # noqa: N801
            set_intra_op_parallelism_threads = set_inter_op_parallelism_threads = staticmethod(asked.append)

        @staticmethod
        def list_physical_devices(kind):
            return gpus

    monkeypatch.setattr(paper_row.tf, "config", Config)
    paper_row.prepare_devices()
    assert asked == ([("a GPU", True), "deterministic"] if gpus else [1, 1])
    assert paper.parse(["--data-dir", "x"]).jobs == (1 if gpus else 2)
    assert paper.parse(["--data-dir", "x", "--jobs", "3"]).jobs == 3


def test_rows_of_an_earlier_version(row):
    """They do not mention the precision, which was float32."""
    settings = row.settings()
    del settings["mixed"]
    row.path(".json").write_text(json.dumps({"settings": settings, "curve": [], "train": {}}))
    assert row.done()
    with pytest.raises(ValueError, match="was trained with {'mixed': False}"):
        dataclasses.replace(row, mixed=True).done()


@pytest.mark.parametrize(("begin", "end"), [(0, 4), (3, 5), (2, 3)])
def test_the_order_of_the_images(begin, end):
    """It depends on seed and step alone, and every epoch sees every image once."""
    images, batch = 300, paper_row.BATCH
    whole = paper_row.order(0, 75, images, seed=1)  # 64 epochs
    assert len(whole) == 64 * images == 75 * batch
    assert paper_row.order(begin, end, images, seed=1).tolist() == whole[begin * batch : end * batch].tolist()
    assert (np.sort(whole.reshape(-1, images)) == np.arange(images)).all()
    assert whole.tolist() != paper_row.order(0, 75, images, seed=2).tolist()


def test_the_network_is_that_of_table_1():
    model = paper_row.backbone((28, 28, 1), width=64)
    kernels = [w.shape for w in model.trainable_weights if w.name == "kernel"]
    assert kernels == [(3, 3, 1, 64), *[(3, 3, 64, 64)] * 9, (3 * 3 * 64, 256)]
    pools = [layer.output.shape[1] for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    assert pools == [14, 7, 3]
    assert model.output_shape == (None, 256)


def test_the_schedules_shrink_with_the_steps(row):
    row = dataclasses.replace(row, steps=1800)
    model = paper_row.classifier((8, 8, 1), 10, row)
    assert model.head.units == 10
    assert not model.head.use_bias
    rate = model.optimizer._learning_rate
    assert [round(float(rate(step)), 6) for step in (1200, 1201, 1500, 1501)] == [0.1, 0.01, 0.01, 0.001]
    assert model.head.get_config()["lam"]["config"]["gamma"] == pytest.approx(2.5e-4)


@pytest.mark.parametrize("images", [None, 20])
def test_images_are_normalised(folder, images):
    data = load_idx_folder(folder)
    prepared = paper_row.prepared(data, images)
    assert prepared.train_labels.tolist() == data.train_labels[:images].tolist()
    mean = 255 * data.train_images[:images].mean(dtype=np.float64)
    np.testing.assert_allclose(prepared.train_images, (255 * data.train_images[:images] - mean) / 256, atol=1e-6)
    np.testing.assert_allclose(prepared.test_images, (255 * data.test_images - mean) / 256, atol=1e-6)
    assert prepared.train_images.dtype == np.float32


@pytest.fixture
def rows(row):
    """Softmax and m = 2, two seeds each, as trained."""
    rows = [dataclasses.replace(row, margin=margin, seed=seed) for margin in (1, 2) for seed in (0, 1)]
    for row, error in zip(rows, (0.08, 0.10, 0.07, 0.0725), strict=True):
        measured = {"error": error, "worst_class_error": 0.3, "loss": 0.5, "angle": 40.0}
        point = {"step": 1, "margin_loss": 1.0, "train_error": error, **measured}
        train = {**measured, "error": error / 2}
        row.path(".json").write_text(json.dumps({"settings": row.settings(), "curve": [point], "train": train}))
    return rows


def test_the_form_of_the_tables(rows):
    head, *lines = paper.table(rows).splitlines()
    assert head.split() == ["Method", "Error", "rate", "(%)", "seed", "0", "seed", "1"]
    assert [line.split() for line in lines] == [
        ["softmax", "9.00", "±", "1.41", "8.00", "10.00"],
        ["L-Softmax", "m=2", "7.12", "±", "0.18", "7.00", "7.25"],
    ]
    assert "4.50 ± 0.71" in paper.details(rows).splitlines()[1]
    assert "±" not in paper.table(rows[:1])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--steps", "16"),
        ("--steps", "0"),
        ("--margins", "0"),
        ("--margins", "65"),
        ("--seeds", "0"),
        ("--width", "-1"),
        ("--jobs", "0"),
        ("--rate", "nan"),
        ("--minimum", "-1"),
        ("--images", "0"),
    ],
)
def test_bad_options(option, value, capsys):
    with pytest.raises(SystemExit):
        paper.main(["--data-dir", "/nonexistent", option, value])
    assert f"{option}: expected" in capsys.readouterr().err


def test_a_folder_that_is_not_there(capsys):
    assert paper.main(["--data-dir", "/nonexistent"]) == 2
    printed = capsys.readouterr().err
    assert "--data-dir: expected a folder of IDX files, got /nonexistent" in printed
    assert "apt-get download dataset-fashion-mnist" in printed


def test_results_of_other_settings(rows, folder, capsys):
    options = ["--data-dir", str(folder), "--output", rows[0].output, "--margins", "1", "--width", "2"]
    assert paper.main([*options, "--steps", str(STEPS)]) == 2
    assert "was trained with {'width': 1}: choose another folder" in capsys.readouterr().err


def test_a_row_that_fails(row, monkeypatch):
    monkeypatch.setattr(paper_row.sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"m = 2, seed 0 failed \(1\): see .*m2-seed0.log"):
        paper.run_all([row], jobs=1)
