"""Seeds of training samples."""

from __future__ import annotations

import numpy as np


def sample_seed(seed: int, number: int) -> int:
    """The seed of one training sample, from the run's seed and the sample's number."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
