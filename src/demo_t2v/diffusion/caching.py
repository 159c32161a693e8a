"""Deep features that neighbouring denoising steps share.

DeepCache (arXiv 2312.00858): the deep features of a U-Net change slowly along the steps. Each n-th
step is complete. The steps between compute only the first layer and the last one, which has the
first skip connection, and take the input of the last layer from the cache.

TaylorSeers (arXiv 2503.06923): the features of later steps are forecast by a Taylor expansion,
whose derivatives are differences of complete steps, instead of being reused as they are. With the
name `forecast` the input of the last layer is forecast to first order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from torch import Tensor

CacheName = Literal["deep", "forecast"]
FORECAST_STEPS: Final = 8
"""A forecast needs so many steps for each step of its interval: over longer parts of the noise
process features are not on a line (docs/experiments.md)."""


@dataclass(frozen=True)
class CacheConfig:
    """What `DemoPipeline.enable_cache` takes.

    `name` is `deep` (features reused as they are) or `forecast` (to first order); `interval` is the
    number of steps from one complete step to the next, and 1 makes all steps complete. Raises
    ValueError for other values.
    """

    name: CacheName = "deep"
    interval: int = 2

    def __post_init__(self) -> None:
        if self.name not in ("deep", "forecast"):
            raise ValueError(f"cache {self.name!r}: must be deep or forecast")
        if self.interval < 1:
            raise ValueError(f"cache_interval {self.interval}: must be at least 1")

    def check(self, scheduler: Any, num_steps: int) -> None:
        """Raise ValueError for a scheduler or a number of steps that it does not fit."""
        if getattr(scheduler, "order", 1) > 1:
            raise ValueError(
                f"cache: {type(scheduler).__name__} calls the network several times a step; "
                "take a scheduler of order 1, such as dpm++"
            )
        if num_steps < self.interval:
            raise ValueError(
                f"cache_interval {self.interval}: must be at most the number of steps, {num_steps}"
            )
        if self.name == "forecast" and num_steps < FORECAST_STEPS * self.interval:
            raise ValueError(
                f"cache forecast: needs {FORECAST_STEPS * self.interval} steps with the interval "
                f"{self.interval}, not {num_steps}; take deep, or a smaller interval"
            )


class PassCache:
    """The features of one pass of the network, which each step repeats."""

    def __init__(self, config: CacheConfig) -> None:
        self._interval = config.interval
        self._step = 0
        # (step, features) of complete passes
        self._known: deque[tuple[int, Tensor]] = deque(maxlen=2 if config.name == "forecast" else 1)

    @property
    def complete(self) -> bool:
        """Whether the pass of this step computes all features."""
        return not self._known or self._step - self._known[-1][0] >= self._interval

    def begin(self, step: int) -> None:
        """Begin the pass of a step; steps count from 0."""
        self._step = step

    def store(self, features: Tensor) -> None:
        """Keep the features of a complete pass."""
        self._known.append((self._step, features))

    def load(self) -> Tensor:
        """The features of this step: on the line through two complete passes, else the last ones.

        With complete passes at the steps a < b, those of step s are f(b) + (s - b) / (b - a) *
        (f(b) - f(a)).
        """
        (first, earlier), (last, features) = self._known[0], self._known[-1]
        if first == last:
            return features
        return features + (self._step - last) / (last - first) * (features - earlier)


class StepCache:
    """The features of all passes of one call of a pipeline.

    A step may run the network several times: for each window of a long video, and without the
    motion branch. Each of these passes has a cache of its own. A pass that the step before did not
    have, as when guidance begins or ends, is complete.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._step = -1
        self._passes: dict[Hashable, PassCache] = {}
        self._previous: dict[Hashable, PassCache] = {}

    def next_step(self) -> None:
        """Begin a step; the caches that the step before did not use are dropped."""
        self._step += 1
        self._previous, self._passes = self._passes, {}

    def next_pass(self, key: Hashable) -> PassCache:
        """The cache of the next pass of this step. `key` is what it is conditioned on."""
        numbered = (len(self._passes), key)
        found = self._previous.get(numbered) or PassCache(self._config)
        found.begin(self._step)
        self._passes[numbered] = found
        return found


class CachingMixin:
    """Caching in the calls of a pipeline. It is off at first."""

    scheduler: Any
    _cache_config: CacheConfig | None = None

    def enable_cache(self, config: CacheConfig) -> None:
        """Let neighbouring steps of later calls share features, in place of an earlier setting."""
        self._cache_config = config

    def disable_cache(self) -> None:
        """Compute all features in each step."""
        self._cache_config = None

    @property
    def is_cache_enabled(self) -> bool:
        """Whether neighbouring steps share features."""
        return self._cache_config is not None

    def check_cache(self, num_steps: int) -> None:
        """Raise ValueError where the cache does not fit the scheduler or the number of steps."""
        if self._cache_config is not None:
            self._cache_config.check(self.scheduler, num_steps)

    def start_cache(self, num_steps: int, output_attention: bool = False) -> StepCache | None:
        """An empty cache for one call; None without caching.

        Raises ValueError as `check_cache`, and for `output_attention`, which needs all layers.
        """
        if self._cache_config is None:
            return None
        self.check_cache(num_steps)
        if output_attention:
            raise ValueError("output_attention: needs complete steps; call disable_cache() first")
        return StepCache(self._cache_config)
