"""Fields of the page's form: what each accepts, and its value at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from demo_t2v.config import ConfigError, InferenceConfig, load
from demo_t2v.config.inference import Interval
from demo_t2v.core.errors import UserError


class RequestError(UserError):
    """A value of the form outside its limits."""


class Field(Protocol):
    """One field of the form."""

    @property
    def start(self) -> Any:
        """Its value at first."""

    def check(self, name: str, value: Any) -> Any:
        """The option's value for a value of the form. Raises RequestError, which names `name`."""

    def shown(self, value: Any) -> Any:
        """The form's value for a value of the option."""


@dataclass(frozen=True)
class Bound:
    """The range of a number, both ends included, its default `start` and its step."""

    low: float
    high: float
    start: float
    step: float = 1

    def check(self, name: str, value: Any) -> Any:
        """The value, an int where the step is one. Raises RequestError."""
        number = value if isinstance(value, int | float) else self.low - 1
        if not self.low <= number <= self.high:  # also for nan
            raise RequestError(f"{name}: choose from {self.low:g} to {self.high:.10g}")
        if self.step != int(self.step):
            return float(number)
        if number % self.step:
            raise RequestError(f"{name}: choose a multiple of {self.step:g}")
        return int(number)

    def shown(self, value: Any) -> Any:
        """The number itself."""
        return value


@dataclass(frozen=True)
class Choice:
    """One of several names, or None, which the form calls `none`."""

    names: tuple[str, ...]
    start: str | None
    none: str

    @property
    def choices(self) -> tuple[str, ...]:
        """What the form offers."""
        return (self.none, *self.names)

    def check(self, name: str, value: Any) -> str | None:
        """The name that is chosen. Raises RequestError."""
        if value not in self.choices:
            raise RequestError(f"{name}: choose one of {', '.join(self.choices)}")
        return None if value == self.none else str(value)

    def shown(self, value: str | None) -> str:
        """The name; for None that of `none`."""
        return self.none if value is None else value


@dataclass(frozen=True)
class NoiseLevels:
    """A guidance interval as a text, such as `0.3-1`."""

    start: Interval

    def check(self, name: str, value: Any) -> Interval:
        """The lowest and the highest noise level. Raises RequestError."""
        key = "guidance_interval"
        try:
            interval: Interval = getattr(load(InferenceConfig, None, (), {key: value or ""}), key)
        except ConfigError as error:
            raise RequestError(f"{name}: {str(error).rpartition(f'{key}: ')[2]}") from None
        return interval

    def shown(self, value: Interval) -> str:
        """The text of an interval."""
        return "{:g}-{:g}".format(*value)
