"""Noise: the published vectors of Philox, the law of the normals, and that an address is all that matters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.diffusion.noise import Address, Stream, permutation, philox, seeded

KNOWN = {
    "zeros": ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}
N = 100_000


def words(text: str) -> list[Tensor]:
    return [torch.tensor(int(w, 16), dtype=torch.int64) for w in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN.values(), ids=KNOWN.keys())
def test_philox_gives_the_published_words(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    assert " ".join(f"{int(w):08x}" for w in philox((c0, c1, c2, c3), (k0, k1))) == expected


word = st.integers(0, 2**32 - 1)


@given(counter=st.tuples(word, word, word, word), key=st.tuples(word, word))
def test_philox_in_wrapping_tensors_is_philox_in_whole_numbers(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> None:
    low = 0xFFFFFFFF
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & low, (a >> 32) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    c0, c1, c2, c3 = (torch.tensor([v], dtype=torch.int64) for v in counter)
    k0, k1 = (torch.tensor([v], dtype=torch.int64) for v in key)
    assert [int(w) for w in philox((c0, c1, c2, c3), (k0, k1))] == c


@given(seed=st.integers(0, 2**64 - 1), index=word, step=word, stream=st.sampled_from(Stream))
@example(seed=0x0123456789ABCDEF, index=7, step=3, stream=Stream.DROP)
@example(seed=2**63 - 1, index=2**32 - 1, step=0, stream=Stream.SAMPLE)
@example(seed=2**63, index=0, step=2**32 - 1, stream=Stream.SAMPLE)
def test_an_address_is_the_counter_and_the_seed_is_the_key_of_philox(
    seed: int, index: int, step: int, stream: Stream
) -> None:
    got = Address.of(seed, [index], step).uniform(stream, 4)[0] * 2.0**32 - 0.5
    zero = torch.tensor(0, dtype=torch.int64)
    counter = (zero, zero + index, zero + step, zero + int(stream))
    assert got.tolist() == [float(w) for w in philox(counter, (zero + seed % 2**32, zero + seed // 2**32))]


def distance(values: Tensor, cdf: Tensor) -> float:
    """Kolmogorov and Smirnov's distance of sorted values' empirical law from `cdf`, times the root of their number."""
    n = len(values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * float(torch.maximum((cdf - steps[:-1]).abs(), (cdf - steps[1:]).abs()).max())


ONE_IN_A_HUNDRED = 1.628
"""What the distance of a true sample exceeds once in a hundred times. Seeds are fixed, so a pass stays a pass."""


def normals(seed: int = 0, index: int = 0, step: int = 0, stream: Stream = Stream.SAMPLE, n: int = N) -> Tensor:
    return Address.of(seed, [index], step).normal(torch.empty(1, n, dtype=torch.float64), stream)[0]


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 11])
def test_normals_follow_the_normal_law(seed: int) -> None:
    z = normals(seed).sort().values
    assert distance(z, torch.special.ndtr(z)) < ONE_IN_A_HUNDRED


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 11])
def test_normals_have_the_moments_of_the_normal_law(seed: int) -> None:
    """Within four standard errors. The variances of the powers of a normal are 1, 2, 15 and 96."""
    z = normals(seed)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 4 * math.sqrt(variance / N)


def test_one_normal_from_each_of_many_indices_follows_the_normal_law() -> None:
    z = Address.of(5, torch.arange(N)).normal(torch.empty(N, 1, dtype=torch.float64), Stream.NOISE)[:, 0]
    z = z.sort().values
    assert distance(z, torch.special.ndtr(z)) < ONE_IN_A_HUNDRED


def test_uniforms_are_uniform_and_strictly_inside() -> None:
    u = Address.of(3, torch.arange(N)).uniform(Stream.TIME)[:, 0].sort().values
    assert float(u[0]) > 0
    assert float(u[-1]) < 1
    assert distance(u, u) < ONE_IN_A_HUNDRED


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_even_the_extreme_words_give_uniforms_strictly_inside_and_finite_normals(
    word: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extreme(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.zeros_like(counter[0]) + word,) * 4

    monkeypatch.setattr("sfumato.diffusion.noise.philox", extreme)
    u = Address.of(0, [0]).uniform(Stream.TIME, 4)
    assert ((u > 0) & (u < 1)).all()
    z = Address.of(0, [0]).normal(torch.empty(1, 4), Stream.NOISE)
    assert float(z.abs().max()) == pytest.approx(6.76 if word == 0 else 0.0, abs=0.01)


BASE = {"seed": 4, "index": 2, "step": 1, "stream": Stream.NOISE}
CHANGED = {
    "seed": {"seed": 5},
    "high half of the seed": {"seed": 4 + 2**32},
    "index": {"index": 3},
    "step": {"step": 2},
    "stream": {"stream": Stream.ENCODE},
    "index for step": {"index": 1, "step": 2},
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED.keys())
def test_another_address_has_numbers_that_have_nothing_to_do_with_these(change: dict[str, int]) -> None:
    one, two = normals(**BASE), normals(**(BASE | change))
    assert abs(float((one * two).mean())) < 4 / math.sqrt(N)
    assert abs(float(((one**2 - 1) * (two**2 - 1)).mean())) < 4 * 2 / math.sqrt(N)
    assert int(torch.isin(one, two).sum()) <= 1  # numbers are made of 64 bits: a chance meeting is rare


@pytest.mark.parametrize("lag", [1, 2, N // 4, N // 2])
def test_neighbours_in_one_picture_have_nothing_to_do_with_each_other(lag: int) -> None:
    z = normals(9)
    assert abs(float((z[lag:] * z[:-lag]).mean())) < 4 / math.sqrt(N - lag)
    assert abs(float(((z[lag:] ** 2 - 1) * (z[:-lag] ** 2 - 1)).mean())) < 4 * 2 / math.sqrt(N - lag)


@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5),
    place=st.integers(0, 4),
    step=st.integers(0, 1000),
    shape=st.sampled_from([(1,), (3,), (4,), (2, 3, 3)]),
)
def test_the_numbers_of_a_sample_do_not_depend_on_its_mates_or_its_place(
    seeds: list[int], place: int, step: int, shape: tuple[int, ...]
) -> None:
    mine = 77
    row = min(place, len(seeds))
    seeds = [*seeds[:row], mine, *seeds[row:]]
    together, alone = seeded(seeds), seeded([mine])
    for _ in range(3):
        batch = together(torch.empty(len(seeds), *shape, dtype=torch.float64))
        assert torch.equal(batch[row], alone(torch.empty(1, *shape, dtype=torch.float64))[0])
    index = torch.arange(10, 10 + len(seeds))
    batch = Address.of(3, index, step).normal(torch.empty(len(seeds), *shape), Stream.NOISE)
    one = Address.of(3, index[row : row + 1], step).normal(torch.empty(1, *shape), Stream.NOISE)
    assert torch.equal(batch[row], one[0])
    u = Address.of(3, index, step).uniform(Stream.TIME, 5)
    assert torch.equal(u[row], Address.of(3, [10 + row], step).uniform(Stream.TIME, 5)[0])


def test_each_draw_of_a_seed_is_new_and_its_n_th_draw_is_always_the_same() -> None:
    like = torch.empty(1, 64, dtype=torch.float64)
    first, again = seeded([5]), seeded([5])
    draws = [first(like) for _ in range(4)]
    assert all(torch.equal(d, again(like)) for d in draws)
    assert len({float(d[0, 0]) for d in draws}) == 4


def test_the_sample_stream_and_the_training_streams_share_no_numbers() -> None:
    assert len(set(Stream)) == len(Stream)
    like = torch.empty(1, 8, dtype=torch.float64)
    rows = [tuple(Address.of(0, [0]).normal(like, s)[0].tolist()) for s in Stream]
    assert len(set(rows)) == len(Stream)
    assert torch.equal(seeded([0])(like), Address.of(0, [0]).normal(like, Stream.SAMPLE))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_normals_in_a_coarser_type_are_the_same_numbers_rounded(dtype: torch.dtype) -> None:
    fine = seeded([1, 2])(torch.empty(2, 4, 3, 3, dtype=torch.float64))
    coarse = seeded([1, 2])(torch.empty(2, 4, 3, 3, dtype=dtype))
    assert coarse.dtype == dtype
    assert torch.equal(coarse, fine.to(dtype))


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_an_epoch_is_a_permutation(n: int) -> None:
    assert permutation(n, seed=3, epoch=0).sort().values.tolist() == list(range(n))


def test_every_epoch_and_every_seed_has_its_own_order_and_keeps_it() -> None:
    order = permutation(1000, seed=3, epoch=0)
    assert torch.equal(order, permutation(1000, seed=3, epoch=0))
    for other in (permutation(1000, seed=3, epoch=1), permutation(1000, seed=4, epoch=0)):
        assert int((order == other).sum()) < 10  # one on average
    assert int((order == torch.arange(1000)).sum()) < 10


def test_every_place_of_an_epoch_is_equally_likely() -> None:
    """Where index 0 comes, over 1000 epochs of 10: chi squared with 9 degrees of freedom, once in a hundred 21.67."""
    first = torch.stack([(permutation(10, seed=1, epoch=e) == 0).nonzero()[0, 0] for e in range(1000)])
    counts = first.bincount(minlength=10).double()
    assert float(((counts - 100) ** 2 / 100).sum()) < 21.67


@pytest.mark.parametrize("seed", [-1, 2**64, -(2**63)])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    for use in (
        lambda: seeded([0, seed]),
        lambda: Address.of(seed, [0]),
        lambda: permutation(3, seed=seed, epoch=0),
    ):
        with pytest.raises(ValueError, match=f"seed {seed} is out of range"):
            use()


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_seeds_up_to_the_last_of_64_bits_are_all_different_from_each_other(seed: int) -> None:
    like = torch.empty(1, 4)
    others = [s for s in (0, 2**63 - 1, 2**63, 2**64 - 1) if s != seed]
    assert all(not torch.equal(seeded([seed])(like), seeded([s])(like)) for s in others)


def test_too_few_seeds_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="2 seeds cannot serve a batch of 3; give one seed a sample"):
        seeded([1, 2])(torch.empty(3, 4))
