"""The metrics that compare distributions of features: FID, KID, Inception Score, FVD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from demo_t2v.evaluation.features import i3d, inception, videomae
from demo_t2v.evaluation.features.cache import with_cache
from demo_t2v.evaluation.metrics.feature_sets import FeatureSets
from demo_t2v.evaluation.metrics.fid import FrechetInceptionDistance
from demo_t2v.evaluation.metrics.fvd import FrechetVideoDistance
from demo_t2v.evaluation.metrics.inception_score import InceptionScore
from demo_t2v.evaluation.metrics.kid import KernelInceptionDistance
from demo_t2v.evaluation.metrics.metric import Metric, MissingWeightsError


@dataclass(frozen=True)
class Extractors:
    """Where the networks of the features are; None: not here."""

    inception: Path | None = None
    i3d: Path | None = None
    videomae: str | None = None
    """A folder or a hub repository."""
    cache: Path | None = None
    """Folder of features that are computed once; None: they are computed each time."""
    image_frames: int | None = None
    """Frames of each video for the metrics of frames, evenly spread; None: all."""

    def metrics(self) -> list[tuple[str, Callable[[], Metric]]]:
        """Names of metrics, and functions that make them or raise MissingWeightsError.

        A function raises EvaluationError for a network that is there and cannot be used.
        """

        @cache
        def load_inception() -> tuple[FeatureSets, inception.InceptionV3]:
            if self.inception is None:
                raise MissingWeightsError(f"--inception FILE: {inception.WEIGHTS}")
            network = inception.InceptionV3(self.inception)
            return FeatureSets(with_cache(network, self.cache), self.image_frames), network

        def fid() -> Metric:
            return FrechetInceptionDistance(load_inception()[0])

        def kid() -> Metric:
            return KernelInceptionDistance(load_inception()[0])

        def inception_score() -> Metric:
            sets, network = load_inception()
            return InceptionScore(sets, network.logits)

        def fvd_i3d() -> Metric:
            if self.i3d is None:
                raise MissingWeightsError(f"--i3d FILE: {i3d.WEIGHTS}")
            return FrechetVideoDistance(FeatureSets(with_cache(i3d.I3D(self.i3d), self.cache)))

        def fvd_videomae() -> Metric:
            if self.videomae is None:
                raise MissingWeightsError(f"--videomae FOLDER: {videomae.WEIGHTS}")
            network = videomae.VideoMAE(self.videomae)
            return FrechetVideoDistance(FeatureSets(with_cache(network, self.cache)))

        def jedi() -> Metric:
            raise MissingWeightsError(
                "V-JEPA ViT-H/16 with its probe for SSv2 (https://github.com/oooolga/JEDi); "
                "videojedi 1.1.0 does not install beside this program (av<13, torchvision<0.20)"
            )

        return [
            (FrechetInceptionDistance.name, fid),
            (KernelInceptionDistance.name, kid),
            (InceptionScore.name, inception_score),
            ("FVD (I3D)", fvd_i3d),
            ("FVD (VideoMAE)", fvd_videomae),
            ("JEDi", jedi),
        ]
