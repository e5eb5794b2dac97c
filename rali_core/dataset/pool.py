"""Decoding in worker processes; one that dies costs its current image, and is replaced.

Each worker has one image at a time, so it is known which image ended it. An image is retried once in a fresh
process, since the kernel's out-of-memory killer does not always choose the guilty one. A thread of the main process
feeds the workers and collects their results, so that they work on while the model computes.
"""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from .decode import Decoded, DecodeSettings, DecodeTask, decode, prepare_process

Label = TypeVar("Label")

TRIES = 2
START_TRIES = 3
START_SECONDS = 300.0
END_SECONDS = 5.0
POLL_SECONDS = 1.0
PARTS_AHEAD = 1
"""Parts of a video that may wait to be scored, besides the one being decoded."""
STARVED_SECONDS = 0.005
"""Polling interval while the workers wait for results to be consumed."""
DEFAULT_TIMEOUT = 300.0
"""Default timeout of an image in seconds."""


class DecodePool(Generic[Label]):
    """Worker processes that decode images.

    Args:
        settings: How images become encoder input.
        workers: How many processes.
        ahead: How many images may be in work or waiting to be taken; bounds the memory.
        timeout: Seconds for one image.

    Raises:
        ValueError: Fewer than one worker.
    """

    def __init__(
        self, settings: DecodeSettings, *, workers: int, ahead: int = 0, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if timeout <= 0:
            raise ValueError(f"timeout must be more than 0 seconds, got {timeout}")
        self._settings, self._count, self._timeout = settings, workers, timeout
        self._ahead = max(ahead, 2 * workers)
        self._stop = threading.Event()
        self._workers: list[_Worker] = []
        self._context = _context()
        self._parts = threading.Semaphore(PARTS_AHEAD)

    def __enter__(self) -> DecodePool[Label]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes; `map` starts new ones."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def map(self, tasks: Iterable[tuple[Label, DecodeTask]]) -> Generator[tuple[Label, Decoded], None, None]:
        """Decode images; one call at a time.

        Args:
            tasks: What to decode, each with a label that is returned with it; read lazily.

        Yields:
            Label and result, in the order of `tasks`; for a video all its parts in sequence.

        Raises:
            ChildProcessError: The worker processes do not start.
            Any exception from reading `tasks`.
        """
        room = threading.Semaphore(self._ahead)
        results: queue.SimpleQueue[tuple[Label, Decoded] | BaseException | None] = queue.SimpleQueue()
        self._stop.clear()
        self._parts = threading.Semaphore(PARTS_AHEAD)
        pump = threading.Thread(target=self._pump, args=(iter(tasks), room, results), name="rali-decode", daemon=True)
        pump.start()
        finished = False
        try:
            while (result := results.get()) is not None:
                if isinstance(result, BaseException):
                    raise result
                (self._parts if result[1].more else room).release()
                yield result
            finished = True
        finally:
            self._stop.set()
            pump.join()
            if not finished:  # some are busy with images that nobody waits for any more
                self.close()

    def _pump(self, tasks: Iterator[tuple[Label, DecodeTask]], room: threading.Semaphore, results: Any) -> None:
        try:
            while len(self._workers) < self._count:
                self._workers.append(_Worker(self._context, self._settings))
            self._run(tasks, room, results)
            results.put(None)
        except BaseException as error:  # re-raised in the consumer
            results.put(error)

    def _run(self, tasks: Iterator[tuple[Label, DecodeTask]], room: threading.Semaphore, results: Any) -> None:
        numbers = itertools.count()
        waiting: deque[_QueuedTask] = deque()
        labels: dict[int, Label] = {}
        done: dict[int, deque[Decoded]] = {}
        emitted, exhausted = 0, False
        while not self._stop.is_set():
            starved = False
            for worker in self._workers:
                if not worker.idle:
                    continue
                if not waiting and not exhausted:
                    if not room.acquire(blocking=False):
                        starved = True
                        break
                    entry = next(tasks, None)
                    if entry is None:
                        exhausted = True
                    else:
                        number = next(numbers)
                        labels[number] = entry[0]
                        waiting.append(_QueuedTask(number, entry[1]))
                if waiting:
                    worker.submit(waiting.popleft())
            paused = any(worker.paused and worker.number == emitted for worker in self._workers)
            for number, decoded in self._collect(waiting, STARVED_SECONDS if starved or paused else POLL_SECONDS):
                done.setdefault(number, deque()).append(decoded)
            while done.get(emitted):
                decoded = done[emitted].popleft()
                results.put((labels[emitted], decoded))
                if not decoded.more:
                    del labels[emitted], done[emitted]
                    emitted += 1
            self._resume(emitted)
            if exhausted and not waiting and not labels:
                return

    def _resume(self, number: int) -> None:
        """Continue the worker whose video is next in order; others wait, so that memory is bounded."""
        for worker in self._workers:
            if worker.paused and worker.number == number and self._parts.acquire(blocking=False):
                worker.continue_video()

    def _collect(self, waiting: deque[_QueuedTask], seconds: float) -> Iterator[tuple[int, Decoded]]:
        """Finished results, after waiting for the first one at most this long."""
        ready = set(wait([worker.results for worker in self._workers], seconds))
        for place, worker in enumerate(self._workers):
            job = worker.job
            if worker.results in ready:
                try:
                    decoded = worker.receive()
                except (EOFError, OSError):
                    why = worker.exit_reason()
                    worker.kill()
                    self._workers[place] = self._replace(worker, why)
                    if job is not None and job.tries < TRIES:
                        waiting.appendleft(job)
                    elif job is not None:
                        yield job.number, _failed(job, f"the process that decoded it ended with {why}, {TRIES} times")
                    continue
                if decoded is not None and job is not None:
                    yield job.number, decoded
            elif job is not None and not worker.paused and time.monotonic() - worker.since > self._timeout:
                worker.kill()
                self._workers[place] = _Worker(self._context, self._settings)
                yield job.number, _failed(job, f"not decoded within {self._timeout:g} seconds")
            elif not worker.started and time.monotonic() - worker.since > START_SECONDS:
                raise ChildProcessError(f"a decoding process did not start within {START_SECONDS:g} seconds")

    def _replace(self, worker: _Worker, why: str) -> _Worker:
        if not worker.started and worker.generation >= START_TRIES:
            raise ChildProcessError(f"the decoding processes do not start: {worker.problem or why}")
        return _Worker(self._context, self._settings, generation=1 if worker.started else worker.generation + 1)


class _QueuedTask:
    """An image and how often it was submitted to a worker."""

    def __init__(self, number: int, task: DecodeTask) -> None:
        self.number, self.task, self.tries = number, task, 0


class _Worker:
    """One process, and the pipes to and from it."""

    def __init__(self, context: Any, settings: DecodeSettings, generation: int = 1) -> None:
        theirs, self._tasks = context.Pipe(duplex=False)
        self.results, answers = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(theirs, answers, settings), daemon=True)
        self._process.start()
        theirs.close()  # otherwise the pipe would outlive the process
        answers.close()
        self.generation, self.started, self.since = generation, False, time.monotonic()
        self.problem: str | None = None
        self.job: _QueuedTask | None = None
        self.paused = False

    @property
    def idle(self) -> bool:
        return self.started and self.job is None

    @property
    def number(self) -> int | None:
        """Number of its image."""
        return None if self.job is None else self.job.number

    def continue_video(self) -> None:
        """Decode the next part of its video."""
        self.paused, self.since = False, time.monotonic()
        with suppress(OSError):
            self._tasks.send(None)

    def submit(self, job: _QueuedTask) -> None:
        job.tries += 1
        self.job, self.since = job, time.monotonic()
        with suppress(OSError):  # if it has just died, its results end, and the image goes to another one
            self._tasks.send(job.task)

    def receive(self) -> Decoded | None:
        """The result that it sent; None for the message that it has started."""
        shape, width, height, error, clip, more = self.results.recv()
        if not self.started:
            if error is not None:
                self.problem = error
                raise EOFError
            self.started = True
            return None
        crops = None
        if shape is not None:
            values = np.empty(shape, dtype=np.float32)
            self.results.recv_bytes_into(values.data.cast("B"))
            crops = torch.from_numpy(values)
        if more and self.job is not None:
            self.paused = True
            self.job.task = self.job.task._replace(done=self.job.task.done + sum(map(len, clip.times)))
        else:
            self.job = None
        return Decoded(crops, width, height, error, clip, more)

    def kill(self) -> None:
        """Kill it if it is still running."""
        self._process.kill()
        self._process.join()
        self._tasks.close()
        self.results.close()

    def exit_reason(self) -> str:
        """Exit status or signal of a process whose pipe has ended, in words."""
        self._process.join(END_SECONDS)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"exit status {code}"
        return f"signal {-code} ({signal.Signals(-code).name})"


def _failed(job: _QueuedTask, reason: str) -> Decoded:
    return Decoded(None, error=f"{job.task.item.uri}: {reason}")


def _context() -> Any:
    """A start method whose processes inherit neither threads nor CUDA state; with a fork server they start quickly."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([decode.__module__])
    return context


def _work(tasks: Connection, results: Connection, settings: DecodeSettings) -> None:
    """Main loop of a worker process, until the main process ends or closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    try:
        prepare_process(settings)
    except Exception as error:
        results.send((None, None, None, f"{type(error).__name__}: {error}", None, False))
        return
    results.send((None, None, None, None, None, False))
    with suppress(EOFError, OSError):
        while True:
            for decoded in decode(tasks.recv(), settings):
                crops = decoded.crops
                results.send((None if crops is None else tuple(crops.shape), *decoded[1:]))
                if crops is not None:
                    results.send_bytes(crops.contiguous().numpy().data.cast("B"))
                if decoded.more:
                    tasks.recv()  # until it is requested
