"""The session of a page: one pipeline and one generation at a time for all visitors."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from demo_t2v.config import ConfigError, InferenceConfig
from demo_t2v.inference.runner import CancelledError, free_memory, out_of_memory
from demo_t2v.web.generation import Generation, StepUpdate
from demo_t2v.web.history import GenerationResult
from demo_t2v.web.request import GenerationRequest, Limits

if TYPE_CHECKING:
    from demo_t2v.pipeline import DemoPipeline

_log = logging.getLogger(__name__)

GenerateFunction = Callable[[GenerationRequest], Iterator[StepUpdate | GenerationResult]]
"""Yields an update after each step, and the result at the end."""


class GenerationSession:
    """One model, and one generation at a time.

    `config` has the model, device and precision, and the form's first values. `pipeline` has the
    scheduler of the model; each request sets its own scheduler and cache. Each result gets a folder
    of its own in `folder`, which must exist. `decorate` wraps the function that computes, as
    ZeroGPU's `spaces.GPU` does.
    """

    def __init__(
        self,
        pipeline: DemoPipeline,
        config: InferenceConfig,
        folder: Path,
        decorate: Callable[[GenerateFunction], GenerateFunction] | None = None,
    ) -> None:
        self.config = config
        self.limits = Limits.of(pipeline, config)
        self.has_motion = pipeline.motion_encoder is not None
        self.motion_words = tuple(pipeline.motion_words)
        self._pipeline = pipeline
        self._scheduler = pipeline.scheduler
        self._folder = folder
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._decorated = decorate(self._generate) if decorate else self._generate

    def generate(self, request: GenerationRequest) -> Iterator[StepUpdate | GenerationResult]:
        """Yields an update after each step, and the result at the end.

        Closing the iterator cancels the generation within two steps and deletes its files. Raises
        ConfigError for a size that the network cannot take, ArithmeticError for an overflow, and
        any other failure; failures other than a lack of memory are logged.
        """
        return self._decorated(request)

    def close(self) -> None:
        """Cancel the current generation, which takes a step, and all later ones."""
        self._closed.set()
        with self._lock:
            pass

    def _generate(self, request: GenerationRequest) -> Iterator[StepUpdate | GenerationResult]:
        # The pipeline calls back and the page iterates, so the pipeline runs in a thread.
        updates: SimpleQueue[StepUpdate | GenerationResult | Exception] = SimpleQueue()
        stop = threading.Event()
        threading.Thread(target=self._run, args=(request, updates.put, stop), daemon=True).start()
        try:
            while True:
                update = updates.get()
                if isinstance(update, CancelledError):
                    return
                if isinstance(update, Exception):
                    raise update
                yield update
                if isinstance(update, GenerationResult):
                    return
        finally:
            stop.set()  # without waiting: a step of a large model is long

    def _run(
        self,
        request: GenerationRequest,
        put: Callable[[StepUpdate | GenerationResult | Exception], None],
        stop: threading.Event,
    ) -> None:
        """Generate, and put the updates and then the result or the error."""

        def is_cancelled() -> bool:
            return stop.is_set() or self._closed.is_set()

        try:
            # A cancelled generation uses the scheduler until its step ends.
            with self._lock, _result_folder(self._folder) as folder:
                self._pipeline.scheduler = self._scheduler
                generation = Generation(
                    self._pipeline, self.config, request, folder, put, is_cancelled
                )
                put(generation.run())
        except Exception as error:
            if out_of_memory(error):
                error.__traceback__ = None  # it holds references to tensors
                free_memory()
            elif not isinstance(error, (CancelledError, ConfigError, ArithmeticError)):
                _log.exception("a video could not be made")
            put(error)


@contextmanager
def _result_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, deleted if the block fails."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
