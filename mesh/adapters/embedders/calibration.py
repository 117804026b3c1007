"""How alike an unknown model finds texts that have nothing to do with each other.

Models differ widely in that: unrelated texts lie at 0.0 for one and at 0.7 for another. So a model
that nobody has measured is shown a few texts about as many things, and the cosine that only few of
their pairs exceed becomes its threshold.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TEXTS = (
    "The invoice for March has not been paid yet.",
    "Knead the dough for ten minutes and let it rise.",
    "A library for parsing dates from strings.",
    "The goalkeeper saved two penalties in the final.",
    "Volcanic ash closed the airport for three days.",
    "How do I reset the password of my account?",
    "The choir sang a mass by Palestrina.",
    "Tomatoes want sun, water and patience.",
    "The court dismissed the appeal on Tuesday.",
    "A compiler turns source code into machine code.",
    "Whales sing across whole oceans.",
    "The new tram line opens in autumn.",
    "Take one tablet twice a day after meals.",
    "Property prices fell for the third month in a row.",
    "Her grandfather restored old violins.",
    "The telescope photographed a distant galaxy.",
    "Bring warm clothes, it may snow in the mountains.",
    "The vote on the budget was postponed.",
    "A game about knights and dragons for two players.",
    "Electrons are lighter than protons.",
)
_SHARE = 0.95
"""Of the pairs that lie below the threshold."""
_DIGITS = 2
"""Nodes that ask the same model should come to the same value."""


def threshold(vectors: npt.NDArray[np.float32]) -> float:
    """The cosine that 95 % of the pairs do not reach, from 0 to 0.99.

    Args:
        vectors: `(n, dim)` float32 of `TEXTS`, L2-normalised.
    """
    cosines = (vectors @ vectors.T)[np.triu_indices(len(vectors), k=1)]
    return min(0.99, max(0.0, round(float(np.quantile(cosines, _SHARE)), _DIGITS)))
