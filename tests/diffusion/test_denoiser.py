"""The denoiser: many questions, one call of the network, and what the network is told."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixture import PATHS
from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoiser, Guess, Query
from sfumato.diffusion.level import Level
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import flow, scaled_linear

SD = scaled_linear()


@dataclass
class Network:
    """Answers row by row, from all that it is told, and remembers what that was."""

    told: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
        maps: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        assert tokens is not None
        assert vector is not None
        assert maps is not None
        counts = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        self.told.append((x, t, tokens, counts, vector, maps))
        heard = (tokens * counts[..., None]).sum(1) + vector  # (B, 3)
        return x * 0.5 + maps + (heard * (1 + t[:, None] / 1000))[..., None, None].to(x.dtype)


def told(n: int, *, length: int, masked: bool, seed: int) -> Cond:
    generator = torch.Generator().manual_seed(seed)
    return Cond(
        tokens=torch.randint(-8, 8, (n, length, 3), generator=generator).double(),
        mask=torch.rand(n, length, generator=generator) < 0.7 if masked else None,
        vector=torch.randint(-8, 8, (n, 3), generator=generator).double(),
        maps=torch.randint(-8, 8, (n, 3, 2, 2), generator=generator).double(),
    )


questions = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.booleans(), st.floats(0, 0.99), st.integers(0, 99)),
    min_size=1,
    max_size=5,
)


@given(asked=questions, kind=st.sampled_from(Prediction), path=st.sampled_from(["scaled_linear", "flow"]))
def test_questions_answered_together_are_answered_as_each_alone(
    asked: list[tuple[int, int, bool, float, int]], kind: Prediction, path: str
) -> None:
    schedule = PATHS[path]
    denoiser = Denoiser(Network(), schedule, kind)
    queries = [
        Query(
            torch.randn(n, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
            schedule.level(part * schedule.span[1]),
            told(n, length=length, masked=masked, seed=seed),
        )
        for n, length, masked, part, seed in asked
    ]
    for query, answer in zip(queries, denoiser.ask(queries), strict=True):
        assert torch.equal(answer, denoiser(*query[:3]))
    assert len(denoiser.net.told) == 1 + len(queries)


def test_no_question_is_no_call() -> None:
    network = Network()
    assert Denoiser(network, SD, Prediction.EPS).ask([]) == []
    assert network.told == []


def test_levels_of_a_whole_batch_mix_with_scalar_ones() -> None:
    denoiser = Denoiser(Network(), SD, Prediction.V)
    x, cond = torch.ones(2, 3, 2, 2, dtype=torch.float64), told(2, length=3, masked=False, seed=1)
    batched = SD.level(torch.tensor([10.5, 900.0]).view(-1, 1, 1, 1))
    one, two = denoiser.ask([Query(x, batched, cond), Query(x, SD.level(500.0), cond)])
    for i, t in enumerate((10.5, 900.0)):
        alone = denoiser(x[i : i + 1], SD.level(t), cond.rows(slice(i, i + 1)))
        assert torch.equal(one[i : i + 1], alone)
    assert torch.equal(two, denoiser(x, SD.level(500.0), cond))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("together", [False, True])
def test_the_clock_reaches_the_network_unrounded_whatever_the_type_of_the_picture(
    dtype: torch.dtype, together: bool
) -> None:
    network = Network()
    denoiser = Denoiser(network, SD, Prediction.EPS)
    x, cond = torch.ones(1, 3, 2, 2, dtype=dtype), told(1, length=2, masked=False, seed=0).to("cpu", dtype)
    clocks = [981.0, 899.125] if together else [899.125]
    answers = denoiser.ask([Query(x, SD.level(t), cond) for t in clocks])
    t = network.told[0][1]
    assert t.dtype == torch.float32
    assert t.tolist() == clocks
    assert {a.dtype for a in answers} == {dtype}


@pytest.mark.parametrize("kind", list(Prediction))
def test_the_guess_is_what_the_prediction_reads_from_the_raw_answer(kind: Prediction) -> None:
    denoiser = Denoiser(Network(), SD, kind)
    x, cond = torch.ones(2, 3, 2, 2, dtype=torch.float64), told(2, length=3, masked=True, seed=1)
    at = SD.level(432.5)
    assert torch.equal(denoiser(x, at, cond), kind.x0(denoiser.raw(x, at, cond), x, at))


def test_bind_puts_round_after_round_of_questions_and_closes_a_guide_that_fails() -> None:
    denoiser = Denoiser(Network(), flow(), Prediction.X0)
    cond = told(1, length=2, masked=False, seed=0)
    guesses: list[Guess] = []

    def twice(x: Tensor, at: Level) -> Guess:
        def ask() -> Guess:
            (first,) = yield [Query(x, at, cond)]
            second, third = yield [Query(first, at, cond), Query(2 * first, at, cond)]
            if float(at.t) > 0.9:
                raise ArithmeticError("no")
            return second + third

        guesses.append(ask())
        return guesses[-1]

    x, at = torch.ones(1, 3, 2, 2, dtype=torch.float64), flow().level(0.5)
    first = denoiser(x, at, cond)
    expected = denoiser(first, at, cond) + denoiser(2 * first, at, cond)
    assert torch.equal(denoiser.bind(twice)(x, at), expected)
    with pytest.raises(ArithmeticError):
        denoiser.bind(twice)(x, flow().level(1.0))
    assert [g.gi_frame for g in guesses] == [None, None]


def test_bind_frees_the_guide_when_the_network_fails() -> None:
    cond = Cond()
    guesses: list[Guess] = []

    def broken(*told_: Tensor | None) -> Tensor:
        raise MemoryError("no room")

    def guide(x: Tensor, at: Level) -> Guess:
        def ask() -> Guess:
            (x0,) = yield [Query(x, at, cond)]
            return x0

        guesses.append(ask())
        return guesses[-1]

    with pytest.raises(MemoryError):
        Denoiser(broken, SD, Prediction.EPS).bind(guide)(torch.ones(1, 3, 2, 2), SD.level(1.0))
    assert guesses[0].gi_frame is None
