"""The demos, end to end on a few steps, and their reader of IDX files."""

import gzip
import json
import struct

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from examples import annealing, data, digits, figures, roc, sharded, verification


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


@pytest.mark.slow
def test_a_head_of_shards_alone(capsys):
    assert sharded.main(["--steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "worker 1 of 1: classes 0 to 9999" in printed
    assert "step 1: loss " in printed


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


@pytest.mark.parametrize(
    ("scores", "same", "expected"),
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 0.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [1, 0, 1, 0], 0.5),
        ([1, 1, 1, 1], [1, 0, 1, 0], 0.5),  # one threshold for all: half way along the chord
        ([6, 5, 4, 3, 2, 1, 0], [1, 1, 1, 0, 1, 0, 0], 0.25),  # from (0, 1/4) to (1/3, 1/4)
        ([6, 5, 4, 3, 2, 1], [1, 1, 0, 1, 0, 0], 1 / 3),
    ],
)
def test_equal_error_rates(scores, same, expected):
    found = roc.roc_of(np.array(scores, float), np.array(same, bool))
    assert found.equal_error_rate == pytest.approx(expected, abs=1e-15)


def test_every_rate_is_what_its_threshold_makes():
    rng = np.random.default_rng(0)
    same = rng.random(500) < 0.3
    scores = np.round(rng.normal(same, 1), 1)  # with ties
    found = roc.roc_of(scores, same)
    for accept, reject, threshold in zip(
        found.false_accept_rates, found.false_reject_rates, found.thresholds, strict=True
    ):
        assert accept == pytest.approx(np.mean(scores[~same] >= threshold))
        assert reject == pytest.approx(np.mean(scores[same] < threshold))
    near = np.argmin(abs(found.false_accept_rates - found.false_reject_rates))
    assert found.equal_error_rate == pytest.approx(found.false_accept_rates[near], abs=0.02)
    assert found.false_rejects_at(np.array([0, 1])).tolist() == [found.false_rejects_at(np.zeros(1))[0], 0]
    assert found.false_rejects_at(np.zeros(1))[0] == np.mean(scores[same] <= scores[~same].max())


def test_pairs_of_one_kind_alone_have_no_rates():
    with pytest.raises(ValueError, match="same: expected pairs of one class and of two, got 3 of 3 of one"):
        roc.roc_of(np.zeros(3), np.ones(3, bool))


def test_all_pairs():
    embeddings = np.array([[2.0, 0.0], [3.0, 4.0], [0.0, 0.0], [0.0, -1.0]])
    scores, same = roc.all_pairs(embeddings, np.array([5, 7, 5, 7]))
    assert scores == pytest.approx([0.6, 0, 0, 0, -0.8, 0])
    assert same.tolist() == [False, True, False, False, True, False]


def test_turned_digits_are_classes_of_their_own():
    digits_ = data.load_digits()
    images, labels = verification.training_set(digits_, (4, 5), turned=False)
    assert len(images) == len(labels) == np.sum(~np.isin(digits_.train_labels, (4, 5)))
    six = digits_.train_images[digits_.train_labels == 6]
    np.testing.assert_array_equal(images[labels == 4], six)  # 0, 1, 2, 3, 6
    turned, names = verification.training_set(digits_, (4, 5), turned=True)
    assert np.bincount(names).tolist() == np.bincount(labels).tolist() * 4
    for turn in range(4):
        np.testing.assert_array_equal(turned[names == 4 + 8 * turn], np.rot90(six, turn, axes=(1, 2)))


def test_a_second_training_starts_afresh():
    digits_ = data.load_digits()
    images, labels = digits_.train_images[:80], digits_.train_labels[:80]
    trainer = verification.Trainer(verification.kinds_of(8)[2], images.shape[1:], 10, steps=4)
    found = []
    for seed in (0, 1, 0):
        trainer.train(images, labels, seed)
        found.append(trainer.embed(images))
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)
    assert abs(found[0] - found[1]).max() > 0.1


def test_the_table_of_verification(tmp_path):
    def runs(kind, eers):
        return [
            verification.Run(kind, seed, unseen, eer, eer / 2, [0.5] * 61, [0.25] * 61)
            for seed, eer in enumerate(eers)
            for unseen in verification.UNSEEN
        ]

    found = [*runs("the pixels", [0.1]), *runs("softmax", [0.2, 0.3]), *runs("ArcFace 0.5", [0.1, 0.4])]
    lines = [" ".join(line.split()) for line in verification.table(found).splitlines()[1:]]
    assert lines == [
        "the pixels 10.00 5.00",
        "softmax 25.00 ± 7.07 12.50 ± 3.54",
        "ArcFace 0.5 25.00 ± 21.21 0.00 ± 14.14 5 of 10 12.50 ± 10.61 0.00 ± 7.07 5 of 10",
    ]
    assert figures.draw_verification(found, verification.RATES, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_verification_end_to_end(tmp_path, capsys):
    options = ["--steps", "2", "--seeds", "1", "--only", "arcface", "softmax", "--scale", "8", "--turned", "--linear"]
    assert verification.main([*options, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "verification.json").read_text())
    assert [results[name] for name in ("steps", "seeds", "scale", "turned", "linear")] == [2, 1, 8, True, True]
    assert "32 classes to train on" in printed
    assert len(results["runs"]) == 3 * len(verification.UNSEEN)
    for run in results["runs"]:
        assert run["kind"] in printed
        assert 0 < run["unseen_eer"] < 0.7
        assert 0 < run["seen_eer"] < 0.7
        assert len(run["unseen_curve"]) == len(run["seen_curve"]) == len(results["rates"])
    assert str(tmp_path / "verification.png") in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps: expected a positive integer, got 0"),
        (["--scale", "0"], "--scale: expected a finite number > 0, got 0.0"),
        (["--scale", "nan"], "--scale: expected a finite number > 0, got nan"),
        (["--only", "magface"], "invalid choice"),
    ],
)
def test_bad_options_of_verification(options, message, capsys):
    with pytest.raises(SystemExit):
        verification.main(options)
    assert message in capsys.readouterr().err
