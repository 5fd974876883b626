"""Is a first stage good enough to train a diffusion model on, or a tiny one for previews? Findings, the first first.

The bounds lie between what linear algebra alone reaches, before the first step, and what trained ones do:
docs/first-stages.md has the figures.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sfumato.evaluate.first_stage import FirstStageScore, Quality

CLOSER = 0.5  # of bicubic's LPIPS, at most
NEARER = 0.75  # of bicubic's distance of features, at most
ENOUGH = 20  # pictures, of which a mean says something
SILENT = 0.1  # nats at a position, or a share of the latents' deviation: below it a channel says nothing
IN_USE = 0.5  # of the entries of a codebook
NEAR = 0.2  # how far the deviation of the latents may be from 1
LOST = 3.0  # dB, at most, that a tiny decoder may lose against the large one


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    good: bool
    text: str


def verdict(score: FirstStageScore) -> Iterator[Finding]:
    """What speaks for and against the first stage."""
    stage, scaled = score.stage, score.bicubic
    yield Finding(
        stage.psnr >= scaled.psnr,
        f"PSNR {stage.psnr:.2f} dB; bicubic scaling by {score.factor} and back gives {scaled.psnr:.2f} dB",
    )
    if stage.lpips is not None and scaled.lpips is not None:
        good = stage.lpips <= CLOSER * scaled.lpips and stage.lpips < scaled.lpips
        yield Finding(good, f"LPIPS {stage.lpips:.4f}, {_beside(stage.lpips, scaled.lpips)} (wanted: {CLOSER:.0%})")
    yield Finding(
        stage.rfd <= NEARER * scaled.rfd,
        f"features at a distance of {stage.rfd:.2f}; bicubic's are at {scaled.rfd:.2f} (wanted: {NEARER:.0%} of that)",
    )
    if score.codebook is not None:
        used = score.codebook
        yield Finding(
            used.share >= IN_USE,
            f"{used.used:,} of {used.entries:,} codes in use, perplexity {used.perplexity:.0f}",
        )
    latent = score.latent
    silent = [c for c, std in enumerate(latent.std) if std < SILENT * latent.overall_std]
    if latent.kl is not None:
        silent = sorted({*silent, *(c for c, nats in enumerate(latent.kl) if nats < SILENT)})
    said = f"all {len(latent.std)} channels of the latent carry something"
    yield Finding(not silent, said if not silent else f"these channels of the latent carry nothing: {silent}")
    yield Finding(
        abs(latent.overall_std - 1) < NEAR,
        f"latents have deviation {latent.overall_std:.3f} and mean {latent.overall_mean:+.3f} (wanted: 1 and 0)",
    )
    yield from _few(score.n)


def previews(score: FirstStageScore, large: Quality) -> Iterator[Finding]:
    """What speaks for and against a tiny decoder in the place of one that paints in the quality of `large`."""
    tiny, scaled = score.stage, score.bicubic
    yield Finding(
        tiny.psnr >= large.psnr - LOST,
        f"PSNR {tiny.psnr:.2f} dB; the large decoder has {large.psnr:.2f} dB (wanted: {LOST:g} dB less at most)",
    )
    if tiny.lpips is not None and scaled.lpips is not None and large.lpips is not None:
        yield Finding(
            tiny.lpips < scaled.lpips,
            f"LPIPS {tiny.lpips:.4f}, {_beside(tiny.lpips, scaled.lpips)}; the large decoder has {large.lpips:.4f}",
        )
    yield from _few(score.n)


def _few(n: int) -> Iterator[Finding]:
    """A finding if there is too little to judge by."""
    if n < ENOUGH:
        yield Finding(False, f"{n} pictures are too few to judge by; it takes {ENOUGH}")


def _beside(mine: float, scaled: float) -> str:
    """A distance next to bicubic's, which is 0 where all pictures are of one colour."""
    if scaled == 0:
        return f"bicubic's {scaled:.4f}"
    better = 1 - mine / scaled
    return f"{abs(better):.0%} {'better' if better > 0 else 'worse'} than bicubic's {scaled:.4f}"
