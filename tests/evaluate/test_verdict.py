"""Each finding about a first stage turns at its threshold, and at no other's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sfumato.evaluate.codebook import Usage
from sfumato.evaluate.first_stage import FirstStageScore, Latent, Quality
from sfumato.evaluate.verdict import Finding, previews, verdict

NONE = torch.zeros(0, 3, 8, 8)
GOOD = FirstStageScore(
    n=20,
    skipped=(),
    factor=4,
    features="means",
    stage=Quality(30.0, 1.0, 0.9, 0.1, 1.0),
    bicubic=Quality(25.0, 1.0, 0.8, 0.4, 2.0),
    latent=Latent((0.1, -0.1), (1.2, 0.8), 0.0, 1.0, (2.0, 3.0)),
    codebook=Usage(1000, 5000, 800, 0.8, 700.0),
    inputs=NONE,
    outputs=NONE,
)


def changed(score: FirstStageScore = GOOD, **parts: dict[str, Any]) -> FirstStageScore:
    return replace(score, **{name: replace(getattr(score, name), **values) for name, values in parts.items()})


def poor(score: FirstStageScore) -> list[int]:
    return [i for i, finding in enumerate(verdict(score)) if not finding.good]


PSNR, LPIPS, FEATURES, CODES, CHANNELS, SPREAD = range(6)


def test_what_is_good() -> None:
    assert [f.text for f in verdict(GOOD)] == [
        "PSNR 30.00 dB; bicubic scaling by 4 and back gives 25.00 dB",
        "LPIPS 0.1000, 75% better than bicubic's 0.4000 (wanted: 50%)",
        "features at a distance of 1.00; bicubic's are at 2.00 (wanted: 75% of that)",
        "800 of 1,000 codes in use, perplexity 700",
        "all 2 channels of the latent carry something",
        "latents have deviation 1.000 and mean +0.000 (wanted: 1 and 0)",
    ]
    assert poor(GOOD) == []


@pytest.mark.parametrize(
    ("good", "bad", "which"),
    [
        ({"stage": {"psnr": 25.0}}, {"stage": {"psnr": 24.999}}, PSNR),
        ({"stage": {"lpips": 0.2}}, {"stage": {"lpips": 0.201}}, LPIPS),
        ({"stage": {"rfd": 1.5}}, {"stage": {"rfd": 1.501}}, FEATURES),
        ({"codebook": {"share": 0.5}}, {"codebook": {"share": 0.499}}, CODES),
        ({"latent": {"std": (1.2, 0.1)}}, {"latent": {"std": (1.2, 0.099)}}, CHANNELS),
        ({"latent": {"kl": (0.1, 3.0)}}, {"latent": {"kl": (0.099, 3.0)}}, CHANNELS),
        ({"latent": {"overall_std": 1.199}}, {"latent": {"overall_std": 1.201}}, SPREAD),
        ({"latent": {"overall_std": 0.801}}, {"latent": {"overall_std": 0.799}}, SPREAD),
    ],
)
def test_a_finding_turns_at_its_threshold(good: dict[str, Any], bad: dict[str, Any], which: int) -> None:
    assert poor(changed(**good)) == []
    assert poor(changed(**bad)) == [which]


def texts(score: FirstStageScore) -> list[Finding]:
    return list(verdict(score))


def test_silent_channels_are_named() -> None:
    score = changed(latent={"std": (0.05, 1.0, 1.0, 1.4), "kl": (2.0, 0.01, 2.0, 0.0)})
    assert texts(score)[CHANNELS].text == "these channels of the latent carry nothing: [0, 1, 3]"
    apart = changed(latent={"std": (0.5, 10.0), "overall_std": 10.0})  # a share of the deviation of all
    assert texts(apart)[CHANNELS].text == "these channels of the latent carry nothing: [0]"


def test_worse_is_said_as_worse() -> None:
    assert (
        texts(changed(stage={"lpips": 0.5}))[LPIPS].text
        == "LPIPS 0.5000, 25% worse than bicubic's 0.4000 (wanted: 50%)"
    )


def test_pictures_of_one_colour_leave_nothing_to_compare() -> None:
    """Bicubic scaling gives them back as they were."""
    for mine in (0.0, 0.2):
        found = texts(changed(stage={"lpips": mine}, bicubic={"lpips": 0.0}))[LPIPS]
        assert not found.good
        assert found.text == f"LPIPS {mine:.4f}, bicubic's 0.0000 (wanted: 50%)"


def test_what_was_not_measured_is_not_judged() -> None:
    score = changed(stage={"lpips": None}, bicubic={"lpips": None}, latent={"kl": None})
    found = texts(replace(score, codebook=None))
    assert [f.text.split()[0] for f in found] == ["PSNR", "features", "all", "latents"]
    assert all(f.good for f in found)


def test_too_few_pictures_are_too_few() -> None:
    *others, last = texts(replace(GOOD, n=19))
    assert all(f.good for f in others)
    assert last == Finding(False, "19 pictures are too few to judge by; it takes 20")
    assert list(previews(replace(GOOD, n=19), GOOD.stage))[-1] == last


def test_a_tiny_decoder_is_held_against_the_large_one() -> None:
    """And not against what a first stage must be: its latents are the large one's."""
    large = Quality(33.0, 1.0, 0.95, 0.05, 0.5)
    spread_out = changed(latent={"overall_std": 5.0, "std": (5.0, 0.0)})
    assert list(previews(spread_out, large)) == [
        Finding(True, "PSNR 30.00 dB; the large decoder has 33.00 dB (wanted: 3 dB less at most)"),
        Finding(True, "LPIPS 0.1000, 75% better than bicubic's 0.4000; the large decoder has 0.0500"),
    ]
    assert [f.good for f in previews(changed(stage={"psnr": 29.99}), large)] == [False, True]
    assert [f.good for f in previews(changed(stage={"lpips": 0.4}), large)] == [True, False]
