"""The drivers that answer a sampler's asks: one for one run, one for many strangers in one batch."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Denoiser, Guess, Guide, Query
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
            x0 = denoise(x, at)
            yield Asked(at, x0)
            x, at = sampler.send(x0)
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

    `jobs` is looked at anew each round: a job put in joins, one taken out is closed. Latents must have one shape.
    """
    running: dict[Id, _Run[Id]] = {}
    try:
        while True:
            for gone in running.keys() - jobs.keys():
                running.pop(gone).close()
            for id_, job in [(id_, job) for id_, job in jobs.items() if id_ not in running]:
                running[id_] = _Run(id_, job)
                yield from running[id_].start()
            asking = [run for run in running.values() if run.sample is None]
            if not asking:
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
        self._x0: Tensor | None = None  # what a guide guessed that had nothing to ask

    def start(self) -> list[Answer[Id]]:
        """Run to the first questions. Only a run without steps has an answer already: the sample."""
        return self._ask(None)

    def send(self, answers: list[Tensor]) -> list[Answer[Id]]:
        """Answer the open questions. What that brought: nothing, an answered ask, or this and the sample."""
        x0 = self._x0
        if x0 is None:
            assert self._guess is not None
            try:
                self.queries = list(self._guess.send(answers))
                return []
            except StopIteration as done:
                x0 = done.value
        return [Answer(self.id, Asked(self._at, x0), None), *self._ask(x0)]

    def close(self) -> None:
        self.job.sampler.close()
        if self._guess is not None:
            self._guess.close()

    def _ask(self, x0: Tensor | None) -> list[Answer[Id]]:
        self.queries, self._x0 = [], None
        try:
            x, self._at = next(self.job.sampler) if x0 is None else self.job.sampler.send(x0)
        except StopIteration as done:
            self.sample = done.value
            return [Answer(self.id, None, self.sample)]
        self._guess = self.job.guide(x, self._at)
        try:
            self.queries = list(next(self._guess))
        except StopIteration as done:
            self._x0 = done.value
        return []
