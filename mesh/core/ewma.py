"""Exponentially weighted mean: `mean += weight * (sample - mean)`.

The first sample is the mean; a sample's share fades as `weight * (1 - weight) ** age`, so the last
`2 / weight - 1` samples make about 86 % of it.

Source: Roberts, "Control Chart Tests Based on Geometric Moving Averages", Technometrics 1(3), 1959.
"""

from __future__ import annotations


def ewma(mean: float | None, sample: float, weight: float) -> float:
    """The mean after one more sample.

    Args:
        mean: So far; None before the first sample.
        sample: Any unit, finite.
        weight: Share of the newest sample, 0 < weight <= 1.
    """
    if mean is None:
        return sample
    return mean + weight * (sample - mean)
