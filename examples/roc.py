"""Verification: are two embeddings of one class? Scores of all pairs, and what a threshold makes of them.

score of a pair      = the cosine of its two embeddings
accepted             = score >= threshold
false accept rate    = accepted pairs of two classes / all pairs of two classes
false reject rate    = rejected pairs of one class / all pairs of one class
equal error rate     = where the two are equal
"""

from __future__ import annotations

import dataclasses

import numpy as np
from sklearn.metrics import roc_curve


@dataclasses.dataclass(frozen=True)
class Roc:
    """The rates of every threshold, from one that accepts nothing to one that accepts everything.

    Attributes:
        false_accept_rates: [K], from 0 to 1, never falling.
        false_reject_rates: [K], from 1 to 0, never rising.
        thresholds: [K], falling; the first is infinite.
    """

    false_accept_rates: np.ndarray
    false_reject_rates: np.ndarray
    thresholds: np.ndarray

    @property
    def equal_error_rate(self) -> float:
        """The rate at which as large a share is falsely accepted as is falsely rejected, a fraction.

        Between two thresholds both rates are taken as linear: the usual chord of the curve.
        """
        above = self.false_accept_rates - self.false_reject_rates  # from -1 to 1
        after = int(np.argmax(above >= 0))
        before = after - 1
        share = above[before] / (above[before] - above[after])
        rates = self.false_accept_rates
        return float(rates[before] + share * (rates[after] - rates[before]))

    def false_rejects_at(self, false_accept_rates: np.ndarray) -> np.ndarray:
        """Returns the false reject rates [M] at false accept rates [M]: the smallest that a threshold reaches."""
        last = np.searchsorted(self.false_accept_rates, false_accept_rates, side="right") - 1
        return self.false_reject_rates[last]


def roc_of(scores: np.ndarray, same: np.ndarray) -> Roc:
    """Returns the rates that pairs have at every threshold.

    Args:
        scores: [P], of each pair, finite.
        same: [P] bool, whether the pair is of one class.

    Raises:
        ValueError: there is no pair of one class, or none of two.
    """
    if same.all() or not same.any():
        raise ValueError(f"same: expected pairs of one class and of two, got {same.sum()} of {len(same)} of one")
    false_accepts, true_accepts, thresholds = roc_curve(same, scores)
    return Roc(false_accepts, 1 - true_accepts, thresholds)


def all_pairs(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cosine of every pair of samples, [N (N - 1) / 2], and whether it is of one class, bool.

    Args:
        embeddings: [N, D] of any length; one of zeros has a cosine of 0 with all others.
        labels: [N], the class of each.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(norms > 0, norms, 1)
    i, j = np.triu_indices(len(labels), 1)
    return (unit @ unit.T)[i, j], labels[i] == labels[j]


def verify(embeddings: np.ndarray, labels: np.ndarray) -> Roc:
    """Returns the rates of all pairs of samples: embeddings [N, D], labels [N]."""
    return roc_of(*all_pairs(embeddings, labels))
