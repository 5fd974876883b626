"""What a run says of the first stage that it trained: a contact sheet, the numbers, and whether it will do."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from sfumato.data import Dataset
from sfumato.evaluate import features
from sfumato.evaluate.contact import ROWS, contact_sheet
from sfumato.evaluate.first_stage import FirstStageScore, Quality, measure
from sfumato.evaluate.reconstruction import at_once
from sfumato.evaluate.verdict import Finding, previews, verdict
from sfumato.io import atomic, feature_networks, pictures
from sfumato.io.first_stage_folder import FirstStageFile
from sfumato.latents.first_stage import FirstStage
from sfumato.recipes.events import Event, Found, Wrote


def report(
    out: Path,
    file: FirstStageFile,
    stage: FirstStage,
    judged: Dataset,
    *,
    unseen: bool,
    large: FirstStage | None = None,
) -> Iterator[Event]:
    """Measure `stage` on `judged`, pictures that it was not trained on if they are `unseen`, and write what is found.

    With `large` it is a tiny one for previews of what that paints, and held against it. `held-out.png`, `report.json`
    and `report.md` in the folder `out`.
    """
    score = _score(stage, judged, file.resolution)
    sheet = out / "held-out.png"
    pictures.save_png(contact_sheet(score.inputs, score.outputs), sheet, {"rows": list(ROWS)})
    yield Wrote("pictures, reconstructions and errors", sheet)
    beside = None if large is None else _score(large, judged, file.resolution).stage
    findings = list(verdict(score) if beside is None else previews(score, beside))
    conclusion = _conclusion(findings, "to train on" if beside is None else "for previews", unseen=unseen)
    said = {
        "first stage": file.name,
        "judged by pictures never trained on": unseen,
        "good enough": all(finding.good for finding in findings),
        "findings": [{"good": f.good, "text": f.text} for f in findings],
        "score": score.as_dict(),
        **({} if beside is None else {"large decoder": asdict(beside)}),
        "lpips": feature_networks.ALEXNET_NAME,
        "provenance": file.provenance,
    }
    text = json.dumps(said, indent=2, ensure_ascii=False)
    atomic.write_bytes(out / "report.json", text.encode() + b"\n")
    lines = [
        *_heading(file, stage),
        "",
        conclusion,
        "",
        *_found(findings),
        "",
        *_quality(score, beside, unseen=unseen),
        "",
    ]
    lines += [*([] if beside else [*_channels(score), ""]), *_skipped(file, score)]
    atomic.write_bytes(out / "report.md", ("\n".join(lines) + "\n").encode())
    yield from (Found(f"{'good' if f.good else 'POOR'}: {f.text}") for f in findings)
    yield Found(conclusion)
    yield Wrote("report", out / "report.md")


def _score(stage: FirstStage, judged: Dataset, side: int) -> FirstStageScore:
    net = features.opened()
    for event in measure(stage, judged, features=net, lpips=feature_networks.alexnet(), batch=at_once(side)):
        if isinstance(event, FirstStageScore):
            return event
    raise AssertionError("a measure ends with its score")


def _conclusion(findings: list[Finding], purpose: str, *, unseen: bool) -> str:
    good = all(finding.good for finding in findings)
    said = f"Good enough {purpose}." if good else f"Not yet good enough {purpose}: see what is poor."
    return (
        said
        if unseen
        else f"{said} It was judged by pictures that it was trained on: there are too few to hold any out."
    )


def _heading(file: FirstStageFile, stage: FirstStage) -> Iterator[str]:
    if file.size is None:
        kind = "tiny decoder"
    else:
        kind = f"VQ of {file.size.codebook:,} codes" if file.size.codebook else "KL"
    yield f"# {file.name}: a first stage ({kind}, factor {stage.factor}, {stage.channels} channels)"


def _found(findings: list[Finding]) -> Iterator[str]:
    yield from (f"* {'good' if f.good else '**poor**'}: {f.text}" for f in findings)


def _quality(score: FirstStageScore, large: Quality | None, *, unseen: bool) -> Iterator[str]:
    yield f"| {score.n} pictures {'never ' if unseen else ''}trained on | PSNR, dB | SSIM | LPIPS | rFD |"
    yield "|---|---|---|---|---|"
    rows = [(f"this {'first stage' if large is None else 'tiny decoder'}", score.stage)]
    rows += [] if large is None else [("the large decoder", large)]
    for name, row in (*rows, (f"bicubic, {score.factor}x and back", score.bicubic)):
        cells = ("-" if v is None else f"{v:.4f}" for v in (row.ssim, row.lpips))
        yield f"| {name} | {row.psnr:.2f} ± {row.psnr_std:.2f} | {' | '.join(cells)} | {row.rfd:.2f} |"


def _channels(score: FirstStageScore) -> Iterator[str]:
    latent = score.latent
    yield f"| channel | mean | std |{' KL, nats |' if latent.kl else ''}"
    yield f"|---|---|---|{'---|' if latent.kl else ''}"
    for c, (mean, std) in enumerate(zip(latent.mean, latent.std, strict=True)):
        nats = f" {latent.kl[c]:.2f} |" if latent.kl else ""
        yield f"| {c} | {mean:+.3f} | {std:.3f} |{nats}"


def _skipped(file: FirstStageFile, score: FirstStageScore) -> Iterator[str]:
    said = file.provenance
    yield f"LPIPS: {feature_networks.ALEXNET_NAME}. rFD: Fréchet distance of {score.features} features."
    yield f"Perceptual term of the loss: {said['perceptual loss']}."
    skipped = said["skipped"]
    yield (
        f"Skipped: {skipped['unreadable']} unreadable files, {skipped['damaged']} damaged pictures, {skipped['steps']} "
        f"steps that were not finite, {len(score.skipped)} held-out pictures. Rolled back: {said['rolled back']} times."
    )
