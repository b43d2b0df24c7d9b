"""The demo, end to end on a few steps, and its reader of IDX files."""

import gzip
import struct

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from examples import annealing, data, digits, figures


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, rows in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (rows, 12, 12), np.uint8)
        labels = (np.arange(rows) % 10).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


@pytest.mark.slow
def test_the_demo_end_to_end(tmp_path, capsys):
    output = tmp_path / "pictures"
    options = ["--steps", "2", "--seeds", "1", "--margins", "1", "4", "--output", str(output)]
    assert digits.main(options) == 0
    printed = capsys.readouterr().out
    assert "softmax" in printed
    assert "L-Softmax m=4" in printed
    for name in ("features.png", "psi.png"):
        assert str(output / name) in printed
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_the_margins(tmp_path):
    assert figures.draw_margins(tmp_path / "margins.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_of_annealing(capsys, monkeypatch):
    row = annealing.train(data.load_digits(), 4, 5.0, normalised=False, steps=1)
    assert all(np.isfinite(value) for value in row.values())
    monkeypatch.setattr(annealing, "train", lambda *_: row)
    assert annealing.main([]) == 0
    printed = capsys.readouterr().out
    for name in ("softmax", "m = 4, schedule, minimum = 5", "m = 4, lambda = 0, no BatchNorm"):
        assert name in printed


def test_bad_options_of_annealing(capsys):
    with pytest.raises(SystemExit):
        annealing.main(["--steps", "0"])
    assert "--steps: expected a positive integer, got 0" in capsys.readouterr().err


def test_idx_files(folder):
    dataset = data.load_idx_folder(folder)
    assert dataset.train_images.shape == (40, 12, 12, 1)
    assert dataset.train_images.dtype == np.float32
    assert 0.9 < dataset.train_images.max() <= 1
    assert dataset.test_labels.tolist() == list(range(10)) * 2


@pytest.mark.parametrize("damage", ["missing", "truncated", "magic", "mismatch"])
def test_damaged_idx_files(folder, damage, capsys):
    file = folder / "t10k-labels-idx1-ubyte"
    good = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(good[:-3])
    elif damage == "magic":
        file.write_bytes(b"\x00\x00\x0b" + good[3:])
    else:
        file.write_bytes(idx(np.zeros(7, np.uint8)))
    assert digits.main(["--data-dir", str(folder)]) == 2
    assert str(folder) in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--margins", "0"], ["--margins", "x"], ["--seeds", "0"], ["--steps", "-1"]])
def test_bad_options(options, capsys):
    with pytest.raises(SystemExit):
        digits.main(options)
    assert options[0] in capsys.readouterr().err


def test_a_folder_that_is_not_there(capsys):
    assert digits.main(["--data-dir", "/nonexistent"]) == 2
    assert "--data-dir: expected a folder" in capsys.readouterr().err
