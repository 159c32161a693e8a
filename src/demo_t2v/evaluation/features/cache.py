"""Features that are computed once: one file for each video and extractor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo_t2v.core.atomic_io import atomic_write, make_folder, reason
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.features.extractor import Extractor, Features


class CachedExtractor:
    """An Extractor that keeps the features in a folder and finds them there.

    The key is the hash of the frames, as they are after cutting and scaling, with that of the
    extractor's name, weights and preprocessing. Each file is written atomically as soon as its
    features are there, so that a stopped evaluation resumes. Several processes may share a folder.
    """

    def __init__(self, extractor: Extractor, folder: Path) -> None:
        """Make the folder. Raises PathError, EvaluationError."""
        self._extractor = extractor
        made_by = [extractor.name, extractor.sha256, dict(extractor.preprocessing)]
        key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
        self._folder = folder / key[:16]
        try:
            make_folder(self._folder)
        except OSError as error:
            raise EvaluationError(f"{folder}: cannot be made ({reason(error, folder)})") from None

    @property
    def name(self) -> str:
        return self._extractor.name

    @property
    def sha256(self) -> str:
        return self._extractor.sha256

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        return self._extractor.preprocessing

    def __call__(self, frames: NDArray[np.uint8]) -> Features:
        """The features. Raises EvaluationError, also for a folder that cannot be used."""
        content = hashlib.sha256(f"{frames.shape} ".encode())
        content.update(np.ascontiguousarray(frames).data)
        key = content.hexdigest()
        file = self._folder / key[:2] / f"{key}.npy"
        try:
            if (features := _read(file)) is None:
                features = self._extractor(frames)
                make_folder(file.parent)
                with atomic_write(file) as partial, partial.open("wb") as stream:
                    np.save(stream, features)
            return features
        except OSError as error:
            raise EvaluationError(f"{file}: cannot be used ({reason(error, file)})") from None


def with_cache(extractor: Extractor, folder: Path | None) -> Extractor:
    """The extractor with a cache in `folder`; itself for None. Raises as `CachedExtractor`."""
    return extractor if folder is None else CachedExtractor(extractor, folder)


def _read(file: Path) -> Features | None:
    """The features in a file; None if there is none, or if it is damaged."""
    try:
        features: Features = np.load(file, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return features
