"""Images with labels: the digits that ship in scikit-learn, or any data set in the IDX format of MNIST."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """Images [N, height, width, 1], float32 within 0 and 1, and labels [N], int64."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits() -> Dataset:
    """Returns scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, a third of them for the test."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    digits = load()
    images = (digits.images / 16.0).astype(np.float32)[..., None]
    labels = digits.target.astype(np.int64)
    split = train_test_split(images, labels, test_size=1 / 3, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = split
    return Dataset("scikit-learn's digits", train_images, train_labels, test_images, test_labels)


def load_idx_folder(folder: Path) -> Dataset:
    """Returns the data set of four IDX files, named as MNIST's and Fashion-MNIST's are, gzipped or not.

    Raises:
        FileNotFoundError: the folder, or one of the files, does not exist.
        ValueError: a file that is not of the format, or files that do not fit each other.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--data-dir: expected a folder of IDX files, got {folder}")
    arrays = []
    for part in ("train", "t10k"):
        images = _read_idx(_find(folder, f"{part}-images-idx3-ubyte"), 3)
        labels = _read_idx(_find(folder, f"{part}-labels-idx1-ubyte"), 1)
        if len(images) != len(labels):
            raise ValueError(f"{folder}: {len(images)} images but {len(labels)} labels in {part}")
        arrays += [(images / np.float32(255))[..., None], labels.astype(np.int64)]
    return Dataset(folder.resolve().name, *arrays)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"--data-dir: expected {name} or {name}.gz in {folder}, found neither")


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """An IDX file: two zero bytes, the type (8: bytes), the rank, the big-endian sizes, the bytes."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    header = 4 + 4 * rank
    if data[:4] != bytes([0, 0, 8, rank]) or len(data) < header:
        raise ValueError(f"{path}: expected an IDX file of bytes, rank {rank}")
    shape = struct.unpack(f">{rank}I", data[4:header])
    if len(data) - header != np.prod(shape):
        raise ValueError(f"{path}: expected {np.prod(shape)} bytes of data, got {len(data) - header}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
