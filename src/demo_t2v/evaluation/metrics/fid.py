"""FID: the Frechet inception distance."""

from __future__ import annotations

from demo_t2v.evaluation.metrics.frechet import FrechetDistance


class FrechetInceptionDistance(FrechetDistance):
    """The Frechet distance between the frames of two sets of videos (arXiv 1706.08500).

    The features are the 2,048 of InceptionV3's last pooling. Each frame is a sample.
    """

    name = "FID"
