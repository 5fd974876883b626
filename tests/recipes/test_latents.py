"""Latents are computed once for each content of a picture and each first stage, and are what they would be anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from fill import inp
from held import Held
from sfumato.evaluate.reconstruction import as_saved
from sfumato.io import tensors
from sfumato.io.latent_cache import LatentCache, key
from sfumato.latents.kl import KLFirstStage
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.recipes import latents
from sfumato.recipes.events import Encoded, Event
from sfumato.recipes.latents import encoded, latents_of

SIZE = AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=4)


def pictures(n: int, side: int = 16, begin: int = 0) -> list[Tensor]:
    """With the levels that files have."""
    return [as_saved(0.4 * inp(f"{i}", 3, side, side)) for i in range(begin, begin + n)]


def stage(seed: int = 0) -> KLFirstStage:
    torch.manual_seed(seed)
    found = KLFirstStage(SIZE)
    tiny.awake(found)
    return found.eval().requires_grad_(False)


def drained(events: Any) -> tuple[list[Event], Any]:
    seen: list[Event] = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as stop:
            return seen, stop.value


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures were encoded, call by call."""
    seen: list[int] = []
    plain = latents.posterior

    def posterior(stage: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(images))
        return plain(stage, images)

    monkeypatch.setattr(latents, "posterior", posterior)
    return seen


def test_a_changed_picture_is_encoded_alone(tmp_path: Path, counted: list[int]) -> None:
    images, net = pictures(9), stage()
    _, (cache, names) = drained(encoded(net, Held(images), tmp_path))
    assert counted == [9]
    before = cache.moments(names)
    images[4] = pictures(1, begin=100)[0]
    _, (cache, names) = drained(encoded(net, Held(images), tmp_path))
    assert counted == [9, 1]
    after = cache.moments(names)
    same = [i for i in range(9) if i != 4]
    assert all(torch.equal(a[same], b[same]) for a, b in zip(before, after, strict=True))
    mean, logvar = latents.posterior(net, images[4][None])
    assert torch.equal(after[0][4], mean[0])
    assert torch.equal(after[1][4], logvar[0])


@pytest.mark.parametrize("change", ["none", "order", "fewer", "twice", "one more", "size", "weights"])
def test_what_changed_is_encoded_and_nothing_else(change: str, tmp_path: Path, counted: list[int]) -> None:
    images = pictures(6)
    drained(encoded(stage(), Held(images), tmp_path))
    counted.clear()
    others = {
        "none": images,
        "order": images[::-1],
        "fewer": images[:3],
        "twice": [*images, images[0]],
        "one more": [*images, *pictures(1, begin=50)],
        "size": pictures(6, side=8),
        "weights": images,
    }[change]
    net = stage(seed=1 if change == "weights" else 0)
    _, (cache, names) = drained(encoded(net, Held(others), tmp_path))
    assert sum(counted) == {"one more": 1, "size": 6, "weights": 6}.get(change, 0)
    mean, logvar = cache.moments(names)
    expected = [latents.posterior(net, image[None]) for image in others]
    torch.testing.assert_close(mean, torch.cat([m for m, _ in expected]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logvar, torch.cat([v for _, v in expected]), rtol=1e-5, atol=1e-5)


def test_statistics_of_latents_change_no_key(tmp_path: Path, counted: list[int]) -> None:
    """What is kept is what the networks give, before it is brought to unit variance."""
    net = stage()
    drained(encoded(net, Held(pictures(4)), tmp_path))
    net.mean.fill_(0.3)
    net.std.fill_(2.0)
    drained(encoded(net, Held(pictures(4)), tmp_path))
    assert counted == [4]


@pytest.mark.parametrize("cut", [0, 1, 100, "half", "another", -100, -5000])
def test_a_damaged_part_is_made_again(cut: int | str, tmp_path: Path, counted: list[int]) -> None:
    images, net = pictures(5), stage()
    _, (cache, names) = drained(encoded(net, Held(images), tmp_path))
    expected = cache.moments(names)
    (part,) = tmp_path.rglob("part-*.safetensors")
    data = part.read_bytes()
    if cut == "another":
        tensors.write(part, {"keys": torch.zeros(2, 32, dtype=torch.uint8)}, {"first stage": "another"})
    elif cut == "half":
        part.write_bytes(data[: len(data) // 2])
    elif int(cut) < 0:
        part.write_bytes(data[:cut] + bytes([data[int(cut)] ^ 1]) + data[int(cut) + 1 :])
    else:
        part.write_bytes(data[: int(cut)])
    counted.clear()
    _, (cache, names) = drained(encoded(net, Held(images), tmp_path))
    assert counted == [5]
    part.with_name("part-zz.safetensors").write_text("of somebody else")
    drained(encoded(net, Held([*images, *pictures(1, begin=70)]), tmp_path))
    assert counted == [5, 1]
    assert all(torch.equal(a, b) for a, b in zip(expected, cache.moments(names), strict=True))


def test_a_run_that_is_killed_in_between_makes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    monkeypatch.setattr(latents, "CHUNK", 2)
    monkeypatch.setattr(latents.latent_cache, "PART", 4)
    net, images = stage(), Held(pictures(11))
    events, _ = drained(encoded(net, images, tmp_path / "whole"))
    assert [e for e in events if isinstance(e, Encoded)] == [Encoded(4, 11), Encoded(8, 11), Encoded(11, 11)]
    killed = encoded(net, images, tmp_path / "killed")
    while not isinstance(next(killed), Encoded):
        pass
    killed.close()
    counted.clear()
    drained(encoded(net, images, tmp_path / "killed"))
    assert sum(counted) == 7
    files = {p.relative_to(tmp_path / "whole"): p.read_bytes() for p in (tmp_path / "whole").rglob("*.safetensors")}
    assert len(files) == 3
    assert all((tmp_path / "killed" / name).read_bytes() == data for name, data in files.items())


def test_with_and_without_a_cache_a_step_sees_the_same(tmp_path: Path) -> None:
    """The moments at unit variance are equal but for rounding, so the draws of all addresses are."""
    images = Held(pictures(20))
    index = torch.tensor([3, 17, 3, 0])
    found = []
    for home in (tmp_path, None):
        net = stage()
        _, given = drained(latents_of(net, images, home, calibrate=True))
        found.append((given(index), net.mean, net.std))
    (kept, *statistics), (made, *others) = found
    assert kept.keys() == made.keys() == {"mean", "logvar"}
    for name in kept:
        torch.testing.assert_close(kept[name], made[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics, others, rtol=1e-5, atol=1e-6)
    _, given = drained(latents_of(net, images, tmp_path, calibrate=False))
    whole = given(torch.arange(20))
    assert (whole["mean"].square() + whole["logvar"].exp()).mean().item() == pytest.approx(1, abs=1e-4)


def test_keys_are_of_what_can_be_seen() -> None:
    a = pictures(1)[0]
    assert key(a) == key(a.clone())
    assert key(a) != key(a.flip(2))
    grey = torch.zeros(3, 2, 8)
    assert key(grey) != key(grey.view(3, 8, 2))


def test_a_cache_answers_for_what_it_has(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, "a" * 64)
    with pytest.raises(KeyError):
        cache.moments([bytes(32)])
    cache.add([bytes(32)], torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))
    assert bytes(32) in cache
    assert len(LatentCache(tmp_path, "a" * 64)) == 1
    assert len(LatentCache(tmp_path, "a" * 16 + "b" * 48)) == 0  # the same folder, another first stage
