"""The drivers that answer a sampler's asks: one for one run, one for many strangers in one batch."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Denoiser, Estimate, Guess, Guide, Query
from sfumato.diffusion.level import Level
from sfumato.diffusion.samplers.registry import Sampler

Id = TypeVar("Id", bound=Hashable)


class Asked(NamedTuple):
    """One answered ask of a run: where it was and the clean guess, which serves as a preview."""

    at: Level
    x0: Tensor


def steps(sampler: Sampler, denoise: Denoise) -> Iterator[Asked | Tensor]:
    """Run a sampler, yielding each answered ask, and last the sample itself. Closing this closes the sampler."""
    try:
        x, at = next(sampler)
        while True:
            guess = denoise(x, at)
            yield Asked(at, Estimate.of(guess).x0)
            x, at = sampler.send(guess)
    except StopIteration as done:
        yield done.value
    finally:
        sampler.close()


def answer(sampler: Sampler, denoise: Denoise) -> Tensor:
    """The sample."""
    *_, sample = steps(sampler, denoise)
    assert isinstance(sample, Tensor)
    return sample


@dataclass(frozen=True)
class Job:
    """A run that shares the network with others: its own sampler, its own guide."""

    sampler: Sampler
    guide: Guide


class Answer(NamedTuple, Generic[Id]):
    """What a round brought one run: an answered ask, or the finished sample."""

    id: Id
    asked: Asked | None
    sample: Tensor | None


def answer_all(jobs: Mapping[Id, Job], denoiser: Denoiser) -> Iterator[Answer[Id]]:
    """Run many jobs together, with one call of the network a round, until all are done.

    `jobs` is looked at anew each round: a job put in joins, one taken out or replaced is closed. Latents must have one
    shape.
    """
    running: dict[Id, _Run[Id]] = {}
    try:
        while True:
            for gone in [id_ for id_, run in running.items() if jobs.get(id_) is not run.job]:
                running.pop(gone).close()
            for id_, job in [(id_, job) for id_, job in jobs.items() if id_ not in running]:
                running[id_] = _Run(id_, job)
                yield from running[id_].start()
            asking = [run for run in running.values() if run.sample is None]
            if not asking:
                if any(id_ not in running or running[id_].job is not job for id_, job in jobs.items()):
                    continue  # put in while those that started and ended at once were told
                return
            answers = iter(denoiser.ask([q for run in asking for q in run.queries]))
            for run in asking:
                yield from run.send([next(answers) for _ in run.queries])
    finally:
        for run in running.values():
            run.close()


class _Run(Generic[Id]):
    """A job between two rounds: its open questions, or its sample."""

    def __init__(self, id_: Id, job: Job) -> None:
        self.id = id_
        self.job = job
        self.sample: Tensor | None = None
        self.queries: list[Query] = []
        self._guess: Guess | None = None
        self._guessed: Tensor | Estimate | None = None  # by a guide that had nothing to ask

    def start(self) -> list[Answer[Id]]:
        """Run to the first questions. Only a run without steps has an answer already: the sample."""
        return self._ask(None)

    def send(self, answers: list[Any]) -> list[Answer[Id]]:
        """Answer the open questions. What that brought: nothing, an answered ask, or this and the sample."""
        guessed = self._guessed
        if guessed is None:
            assert self._guess is not None
            try:
                self.queries = list(self._guess.send(answers))
                return []
            except StopIteration as done:
                guessed = done.value
        return [Answer(self.id, Asked(self._at, Estimate.of(guessed).x0), None), *self._ask(guessed)]

    def close(self) -> None:
        self.job.sampler.close()
        if self._guess is not None:
            self._guess.close()

    def _ask(self, guessed: Tensor | Estimate | None) -> list[Answer[Id]]:
        self.queries, self._guessed = [], None
        try:
            x, self._at = next(self.job.sampler) if guessed is None else self.job.sampler.send(guessed)
        except StopIteration as done:
            self.sample = done.value
            return [Answer(self.id, None, self.sample)]
        self._guess = self.job.guide(x, self._at)
        try:
            self.queries = list(next(self._guess))
        except StopIteration as done:
            self._guessed = done.value
        return []
