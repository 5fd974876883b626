"""The drivers: one run, or many strangers that share the calls of one network."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoiser, Estimate, Guess, Guide, Query
from sfumato.diffusion.drive import Answer, Asked, Job, answer, answer_all, steps
from sfumato.diffusion.grid import Grid, trailing
from sfumato.diffusion.guidance import conditional, guided, inpainted
from sfumato.diffusion.level import Level
from sfumato.diffusion.noise import seeded
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.samplers import SAMPLERS, Sampler, ddim
from sfumato.diffusion.samplers import start as started
from sfumato.diffusion.schedule import scaled_linear

SD = scaled_linear()


@dataclass
class Network:
    """Hears clock, vector and picture, row by row, and learnt a spread; counts its calls and the rows of each."""

    rows: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, tokens: None, mask: None, vector: Tensor, maps: None) -> Tensor:
        self.rows.append(len(x))
        return torch.cat([x * (t / 2000).double()[:, None, None, None] + vector[..., None, None], x.tanh()], dim=1)


def denoiser() -> Denoiser:
    return Denoiser(Network(), SD, Prediction.V, learned=True)


def picture(n: int, seed: int) -> Tensor:
    return torch.randn(n, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def told(n: int, value: float) -> Cond:
    return Cond(vector=torch.full((n, 3), value, dtype=torch.float64))


def guide(kind: str, n: int) -> Guide:
    cond, null = told(n, 0.5), told(n, 0.0)
    match kind:
        case "plain":
            return conditional(cond)
        case "guided":
            return guided(cond, null, scale=4.0)
        case "in an interval":
            return guided(cond, null, scale=2.5, interval=(-1.5, 0.5))
        case "inpainted":
            inner = guided(cond, null, scale=3.0, rescale=0.7)
            return inpainted(inner, picture(n, 5), (picture(n, 6) > 0).double())
    raise AssertionError(kind)


@dataclass(frozen=True)
class Wish:
    """A run to build as often as needed."""

    sampler: str
    steps: int
    n: int
    kind: str
    seed: int

    def job(self) -> Job:
        x = picture(self.n, self.seed)
        noise = seeded(range(self.seed, self.seed + self.n))
        entry = SAMPLERS[self.sampler]
        return Job(started(entry, x, trailing(SD, self.steps), noise), guide(self.kind, self.n))

    def alone(self) -> list[Asked | Tensor]:
        job = self.job()
        return list(steps(job.sampler, denoiser().bind(job.guide)))


wishes = st.builds(
    Wish,
    sampler=st.sampled_from(sorted(SAMPLERS)),
    steps=st.integers(1, 6),
    n=st.integers(1, 3),
    kind=st.sampled_from(["plain", "guided", "in an interval", "inpainted"]),
    seed=st.integers(0, 99),
)


def same(one: Asked | Tensor | None, two: Asked | Tensor | None) -> bool:
    if isinstance(one, Asked) and isinstance(two, Asked):
        return all(torch.equal(a, b) for a, b in zip((*one.at, one.x0), (*two.at, two.x0), strict=True))
    return isinstance(one, Tensor) and isinstance(two, Tensor) and torch.equal(one, two)


def of(answers: list[Answer[str]], id_: str) -> list[Asked | Tensor | None]:
    return [a.sample if a.asked is None else a.asked for a in answers if a.id == id_]


@settings(max_examples=25)
@given(mix=st.lists(wishes, min_size=1, max_size=6))
def test_strangers_together_get_the_answers_and_the_samples_that_each_gets_alone(mix: list[Wish]) -> None:
    ids = {f"job {i}": wish for i, wish in enumerate(mix)}
    shared = denoiser()
    answers = list(answer_all({id_: wish.job() for id_, wish in ids.items()}, shared))
    asks = []
    for id_, wish in ids.items():
        alone = wish.alone()
        got = of(answers, id_)
        assert len(got) == len(alone)
        assert all(same(a, b) for a, b in zip(got, alone, strict=True))
        asks.append(len(alone) - 1)
    assert len(shared.net.rows) == max(asks)  # one call a round


def test_a_round_is_one_call_with_the_rows_of_all_open_questions() -> None:
    shared = denoiser()
    jobs = {"a": Wish("ddim", 4, 2, "plain", 0).job(), "b": Wish("heun", 2, 3, "guided", 1).job()}
    list(answer_all(jobs, shared))
    assert shared.net.rows == [2 + 6, 2 + 6, 2 + 6, 2]


def test_jobs_may_join_and_leave_between_rounds() -> None:
    first, second, third = (
        Wish("plms", 6, 1, "plain", 0),
        Wish("ddim", 4, 2, "guided", 7),
        Wish("heun", 3, 1, "plain", 9),
    )
    jobs = {"first": first.job(), "second": second.job()}
    leaving = jobs["first"].sampler
    answers: list[Answer[str]] = []
    for a in answer_all(jobs, denoiser()):
        answers.append(a)
        if len(of(answers, "first")) == 2 and "third" not in jobs:
            jobs["third"] = third.job()
        if len(of(answers, "third")) == 1:
            jobs.pop("first", None)
    assert leaving.gi_frame is None
    assert 2 < len(of(answers, "first")) < 7
    assert not any(isinstance(a, Tensor) for a in of(answers, "first"))
    for id_, wish in (("second", second), ("third", third)):
        alone = wish.alone()
        assert all(same(a, b) for a, b in zip(of(answers, id_), alone, strict=True))


def test_a_finished_job_does_not_hold_up_the_others_and_is_told_once() -> None:
    jobs = {"short": Wish("ddim", 1, 1, "plain", 0).job(), "long": Wish("ddim", 5, 1, "plain", 1).job()}
    order = [(a.id, a.sample is not None) for a in answer_all(jobs, denoiser())]
    assert order.index(("short", True)) < 4
    assert order.count(("short", True)) == order.count(("long", True)) == 1


def test_a_job_that_joins_after_the_last_round_of_the_others_still_runs() -> None:
    jobs = {"a": Wish("ddim", 1, 1, "plain", 0).job()}
    samples = []
    for a in answer_all(jobs, denoiser()):
        if a.sample is not None:
            samples.append(a.id)
            if a.id == "a":
                jobs["b"] = Wish("ddim", 2, 1, "plain", 1).job()
    assert samples == ["a", "b"]


def test_no_jobs_is_no_answer_and_no_call() -> None:
    shared = denoiser()
    assert list(answer_all({}, shared)) == []
    assert shared.net.rows == []


def test_jobs_take_their_place_in_the_batch_in_the_order_in_which_they_came() -> None:
    ids = [f"id {i}" for i in range(20)]
    jobs = {id_: Wish("ddim", 1, 1, "plain", i).job() for i, id_ in enumerate(ids)}
    assert [a.id for a in answer_all(jobs, denoiser()) if a.asked is not None] == ids


def test_a_run_without_steps_brings_its_start_from_both_drivers() -> None:
    x = picture(1, 0)
    here = Grid(SD, (SD.level(500.0),))
    assert torch.equal(answer(ddim(x, here), denoiser().bind(guide("plain", 1))), x)
    jobs = {"still": Job(ddim(x, here), guide("plain", 1)), "moves": Wish("ddim", 2, 1, "plain", 1).job()}
    samples = {a.id: a.sample for a in answer_all(jobs, denoiser()) if a.sample is not None}
    assert samples.keys() == {"still", "moves"}
    assert torch.equal(samples["still"], x)


def test_a_guide_may_know_the_answer_without_asking() -> None:
    """As one that caches does; it costs no call, and other runs do not notice."""
    known = picture(1, 8)

    def silent(x: Tensor, at: Level) -> Guess:
        if at.t > 400:
            return known
        (x0,) = yield [Query(x, at, told(1, 0.5))]
        return x0

    def job() -> Job:
        return Job(ddim(picture(1, 0), trailing(SD, 5)), silent)

    expected = answer(job().sampler, denoiser().bind(silent))
    other = Wish("ddim", 7, 1, "plain", 3)
    samples = {
        a.id: a.sample for a in answer_all({"silent": job(), "other": other.job()}, denoiser()) if a.sample is not None
    }
    assert torch.equal(samples["silent"], expected)
    assert same(samples["other"], other.alone()[-1])
    shared = denoiser()
    list(answer_all({"silent": job()}, shared))
    assert shared.net.rows == [1, 1]  # at 399 and at 199


@dataclass
class Watched:
    """A guide that remembers the guesses it began."""

    guide: Guide
    guesses: list[Guess] = field(default_factory=list)

    def __call__(self, x: Tensor, at: Level) -> Guess:
        self.guesses.append(self.guide(x, at))
        return self.guesses[-1]


def watched() -> tuple[dict[str, Job], list[Sampler], list[Watched]]:
    built = {name: Wish(name, 5, 1, "inpainted", i).job() for i, name in enumerate(SAMPLERS)}
    guides = [Watched(job.guide) for job in built.values()]
    jobs = {id_: Job(job.sampler, guide_) for (id_, job), guide_ in zip(built.items(), guides, strict=True)}
    return jobs, [job.sampler for job in jobs.values()], guides


@pytest.mark.parametrize("taken", [1, 2, 9])
def test_closing_the_driver_half_way_leaves_no_sampler_and_no_guide_suspended(taken: int) -> None:
    jobs, samplers, guides = watched()
    driver = answer_all(jobs, denoiser())
    for _ in range(taken):
        next(driver)
    assert any(s.gi_frame is not None for s in samplers)
    driver.close()
    assert [s.gi_frame for s in samplers] == [None] * len(samplers)
    assert all(g.gi_frame is None for guide_ in guides for g in guide_.guesses)


def test_running_to_the_end_leaves_no_sampler_and_no_guide_suspended() -> None:
    jobs, samplers, guides = watched()
    list(answer_all(jobs, denoiser()))
    assert [s.gi_frame for s in samplers] == [None] * len(samplers)
    assert all(g.gi_frame is None for guide_ in guides for g in guide_.guesses)


def test_taking_a_job_out_closes_its_sampler_and_its_guide_at_the_next_round() -> None:
    jobs, samplers, guides = watched()
    for round_, _ in enumerate(answer_all(jobs, denoiser())):
        if round_ == 0:
            jobs.pop(next(iter(jobs)))
        if round_ == 2 * len(samplers):
            break
    assert samplers[0].gi_frame is None
    assert all(g.gi_frame is None for g in guides[0].guesses)


@pytest.mark.parametrize("fails_at", [999, 799])
def test_a_guide_that_fails_frees_all_and_its_error_comes_through(fails_at: int) -> None:
    jobs, samplers, _ = watched()

    def failing(x: Tensor, at: Level) -> Guess:
        if at.t == fails_at:
            raise ArithmeticError("no")
        (x0,) = yield [Query(x, at, told(1, 0.5))]
        return x0

    bad = ddim(picture(1, 0), trailing(SD, 5))
    with pytest.raises(ArithmeticError, match="no"):
        list(answer_all(jobs | {"bad": Job(bad, failing)}, denoiser()))
    assert [s.gi_frame for s in [*samplers, bad]] == [None] * (len(samplers) + 1)


def test_a_network_that_fails_frees_all_and_its_error_comes_through() -> None:
    jobs, samplers, guides = watched()

    def broken(*told_: Tensor | None) -> Tensor:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        list(answer_all(jobs, Denoiser(broken, SD, Prediction.V, learned=True)))
    assert [s.gi_frame for s in samplers] == [None] * len(samplers)
    assert all(g.gi_frame is None for guide_ in guides for g in guide_.guesses)


def test_steps_yields_each_clean_guess_and_then_the_sample() -> None:
    job = Wish("ddim", 4, 1, "plain", 0).job()
    seen: list[Tensor] = []
    denoise = denoiser().bind(job.guide)

    def watch(x: Tensor, at: Level) -> Tensor:
        seen.append(Estimate.of(denoise(x, at)).x0)
        return seen[-1]

    *asked, sample = list(steps(job.sampler, watch))
    assert [float(a.at.t) for a in asked if isinstance(a, Asked)] == [999, 749, 499, 249]
    assert all(a.x0 is x0 for a, x0 in zip(asked, seen, strict=True) if isinstance(a, Asked))
    assert same(sample, seen[-1])  # DDIM's last step goes to the clean guess


def test_an_id_that_is_given_another_job_runs_that_and_frees_the_first() -> None:
    first, second = Wish("ddim", 5, 1, "plain", 0).job(), Wish("heun", 3, 1, "guided", 1)
    jobs = {"a": first}
    answers = []
    for a in answer_all(jobs, denoiser()):
        answers.append(a)
        if len(answers) == 2:
            jobs["a"] = second.job()
    assert first.sampler.gi_frame is None
    got = of(answers[2:], "a")
    assert all(same(a, b) for a, b in zip(got, second.alone(), strict=True))


def test_a_job_that_joins_when_one_without_steps_has_told_its_sample_still_runs() -> None:
    late = Wish("ddim", 3, 1, "plain", 4)
    x = picture(1, 0)
    jobs = {"none": Job(ddim(x, trailing(SD, 4).part(0.0)), guide("plain", 1))}
    answers = []
    for a in answer_all(jobs, denoiser()):
        answers.append(a)
        if a.id == "none":
            jobs["late"] = late.job()
    assert all(same(a, b) for a, b in zip(of(answers, "late"), late.alone(), strict=True))


def test_strangers_of_different_types_each_keep_theirs() -> None:
    types = {"half": torch.bfloat16, "single": torch.float32, "double": torch.float64}
    jobs = {}
    for name, dtype in types.items():
        jobs[name] = Job(ddim(picture(1, 3).to(dtype), trailing(SD, 3)), conditional(told(1, 0.5)))
    for a in answer_all(jobs, denoiser()):
        got = a.sample if a.asked is None else a.asked.x0
        assert got is not None
        assert got.dtype == types[a.id]
