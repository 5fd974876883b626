"""Randomness with an address: every number is a function of (seed, index, step, stream), and nothing is ever saved.

Philox4x32-10, the counter-based generator of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"),
in integer tensor operations, so that a seed means the same bits on every device. Normals come from pairs of
uniforms (Box & Muller 1958) in float64. A sample's numbers do not depend on its batch mates or on its place.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

Noise = Callable[[Tensor], Tensor]
"""Takes a tensor (B, ...) and returns standard normal noise of its shape, type and device."""

Words = tuple[Tensor, Tensor, Tensor, Tensor]

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Stream(IntEnum):
    """What a number is for. Two purposes never share numbers."""

    SAMPLE = 0  # initial and fresh noise of a picture
    NOISE = 1  # eps of a training sample
    TIME = 2  # its noise level
    DROP = 3  # whether its condition is dropped
    CAPTION = 4  # which of its captions is read
    ORDER = 5  # its place in an epoch
    ENCODE = 6  # the draw from its posterior
    AUGMENT = 7  # how its picture is cut and turned
    CODES = 8  # where an entry of a codebook is put
    OFFSET = 9  # what all pixels of a channel share in the noise
    DEGRADE = 20  # how its picture is blurred and made small
    GRAIN = 21  # the noise in the small one
    HOLE = 22  # what of it is painted anew
    CRITIC_TIME = 23  # the noise level at which a critic of clean guesses sees it
    CRITIC_NOISE = 24  # and the noise
    SCENE = 25  # what a scene is made of, and where
    WINDOW = 26  # what is cut out of a picture with boxes
    OBJECTS = 27  # in which order its objects are told


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Ten rounds of Philox4x32. All words are int64 tensors with values below 2^32; shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high, low = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # 64-bit products; wrapping keeps the bits
        c0, c1, c2, c3 = (
            ((low >> 32) & _LOW) ^ c1 ^ k0,
            low & _LOW,
            ((high >> 32) & _LOW) ^ c3 ^ k1,
            high & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Address:
    """Where the numbers of a batch live: a seed and an index for each sample, and a step common to all.

    `seed` and `index` are int64 tensors (B,) (or broadcast against each other); `index` is below 2^32. Of a part of a
    batch, `place` (B,) says where its samples stand in the whole of `batch` samples.
    """

    seed: Tensor
    index: Tensor
    step: int = 0
    place: Tensor | None = None  # 0, 1, ... if not said
    batch: int | None = None  # as many as there are if not said

    @staticmethod
    def of(seed: int, index: Tensor | Sequence[int], step: int = 0) -> "Address":
        """One seed for all samples."""
        index = torch.as_tensor(index, dtype=torch.int64)
        return Address(torch.full_like(index, _signed(seed)), index, step)

    def chunks(self, n: int) -> list["Address"]:
        """The addresses of `n` equal parts, one after the other."""
        places = torch.arange(len(self.index)) if self.place is None else self.place
        parts = zip(self.seed.chunk(n), self.index.chunk(n), places.chunk(n), strict=True)
        return [Address(seed, index, self.step, place, self.batch or len(places)) for seed, index, place in parts]

    def uniform(self, stream: Stream, n: int = 1) -> Tensor:
        """(B, n) float64, strictly between 0 and 1."""
        words = self._words(stream, -(-n // 4))
        return ((words.double() + 0.5) / 2.0**32)[:, :n]

    def normal(self, like: Tensor, stream: Stream) -> Tensor:
        """Standard normal, of the shape (B, ...), type and device of `like`."""
        n = like[0].numel()
        words = self._words(stream, -(-n // 4), like.device)
        first, second = ((words.double() + 0.5) / 2.0**32).chunk(2, dim=1)
        radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
        z = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return z[:, :n].reshape(like.shape).to(like.dtype)

    def _words(self, stream: Stream, blocks: int, device: torch.device | None = None) -> Tensor:
        seed, index = self.seed.to(device)[:, None], self.index.to(device)[:, None]
        block = torch.arange(blocks, dtype=torch.int64, device=seed.device)[None]
        zero = torch.zeros_like(block)
        counter = (block, index & _LOW, zero + (self.step & _LOW), zero + int(stream))
        return torch.cat(philox(counter, (seed & _LOW, (seed >> 32) & _LOW)), dim=1)


def seeded(seeds: Sequence[int], stream: Stream = Stream.SAMPLE) -> Noise:
    """Noise for a batch with one seed a sample; the n-th call draws the n-th numbers of each seed."""
    seed = torch.tensor([_signed(s) for s in seeds], dtype=torch.int64)
    draws = 0

    def noise(like: Tensor) -> Tensor:
        nonlocal draws
        if len(like) != len(seed):
            raise ValueError(f"{len(seed)} seeds cannot serve a batch of {len(like)}; give one seed a sample")
        z = Address(seed, torch.zeros_like(seed), draws).normal(like, stream)
        draws += 1
        return z

    return noise


def permutation(n: int, *, seed: int, epoch: int) -> Tensor:
    """The order (n,) of an epoch: indices 0..n-1 sorted by their addressed numbers."""
    return Address.of(seed, torch.arange(n), epoch).uniform(Stream.ORDER)[:, 0].argsort(stable=True)


def _signed(seed: int) -> int:
    """A seed in [0, 2^64) as the int64 with the same bits."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed} is out of range; a seed is a whole number from 0 to 2^64 - 1")
    return seed - 2**64 if seed >= 2**63 else seed
