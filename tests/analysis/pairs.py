"""The area under the ROC curve, word for word."""

import numpy as np

__all__ = ["pairs"]


def pairs(values: np.ndarray, labels: np.ndarray) -> float:
    """How often a value where the label holds is above one where it does not, pair by pair; equal ones count half."""
    above, below = values[labels][:, None], values[~labels][None, :]
    return float(((above > below) + 0.5 * (above == below)).mean())
