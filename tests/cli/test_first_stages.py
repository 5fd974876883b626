"""What is said of a first stage, and its pictures beside those that it was given."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from console import Run, Said
from PIL import Image

import files
from fill import inp
from quick import features_are_means
from sfumato.cli import first_stages, reconstruct
from sfumato.evaluate.contact import contact_sheet
from sfumato.evaluate.first_stage import likeness
from sfumato.evaluate.reconstruction import as_saved, error_map, mean_psnr, operations, reconstructed
from sfumato.io import feature_networks, opening, pictures
from sfumato.nets.lpips import Lpips


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    features_are_means(monkeypatch)


@pytest.fixture
def folder(home: Path) -> Path:
    """Five pictures of 40 x 32, and one whose header is whole and whose pixels are not."""
    for i in range(5):
        pictures.save_png((0.4 * inp(f"{i}", 3, 32, 40)).clamp(-1, 1), home / "many" / f"{i}.png", {})
    data = (home / "many" / "0.png").read_bytes()
    (home / "many" / "cut.png").write_bytes(data[: len(data) // 2])
    return home / "many"


def refused(said: Said) -> str:
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


FIRST = ("evaluate", "emoji", "--first-stage")


@pytest.mark.usefixtures("quick")
def test_a_folder_is_measured_and_written(sfumato: Run, home: Path, folder: Path) -> None:
    said = sfumato(*FIRST, "--data", folder, "--size", 32, "--json", "--out", "new/score.json", "--sheet", "s.png")
    assert said.code == 0, said
    assert re.fullmatch(r"1 pictures were skipped, the first is .*cut.png: the picture is damaged .*\n", said.err)
    found: dict[str, Any] = json.loads(said.out)
    assert said.out == (home / "new/score.json").read_text()
    assert (found["n"], found["size"], found["factor"], found["features"]) == (5, 32, 4, "means")
    assert (found["first_stage"], found["lpips"]) == ("tiny", "LPIPS 0.1, AlexNet (bundled)")
    assert len(found["skipped"]) == 1
    stage = opening.load("emoji").model.first_stage
    x = torch.stack([pictures.read(folder / f"{i}.png", size=32) for i in range(5)])
    y = as_saved(reconstructed(stage, x))
    psnr, ssim, lpips = likeness(y, x, feature_networks.alexnet()).mean(0).tolist()
    assert found["stage"]["psnr"] == pytest.approx(psnr, rel=1e-4)
    assert found["stage"]["ssim"] == pytest.approx(ssim, rel=1e-3)
    assert found["stage"]["lpips"] == pytest.approx(lpips, rel=1e-3)
    assert found["bicubic"]["psnr"] != pytest.approx(psnr, rel=1e-2)
    assert len(found["latent"]["mean"]) == len(found["latent"]["kl"]) == 4
    sheet = pictures.read(home / "s.png")
    assert sheet.shape == (3, 3 * 34 + 2, 5 * 34 + 2)
    assert pictures.parameters_of(home / "s.png")["rows"] == ["input", "reconstruction", "|error| x 4"]
    cell = [sheet[:, 2 + 34 * k : 34 + 34 * k, 2 + 34 : 34 + 34] for k in range(3)]
    torch.testing.assert_close(cell[0], x[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(cell[1], y[1], rtol=0, atol=1.01 / 127.5)
    torch.testing.assert_close(cell[2], as_saved(error_map(cell[0], cell[1])), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [3, 8, 10, 16])
def test_a_contact_sheet_has_rows_of_eight(n: int) -> None:
    """Each picture is one grey, its reconstruction another: rows of pictures, reconstructions and errors, and again."""
    x = (torch.arange(n).view(n, 1, 1, 1) / n - 0.5).expand(n, 3, 4, 6)
    made = contact_sheet(x, x + 0.125)
    columns, bands = min(n, 8), -(-n // 8)
    assert made.shape == (3, bands * 3 * 6 + 2, columns * 8 + 2)
    cells = made[0, 2::6, 2::8].view(bands, 3, columns).transpose(0, 1).flatten(1)
    assert torch.equal(cells[:, :n], torch.stack([x[:, 0, 0, 0], x[:, 0, 0, 0] + 0.125, torch.full((n,), -0.5)]))
    assert (cells[:, n:] == 1).all()


@pytest.mark.usefixtures("quick")
def test_a_table_says_the_same(sfumato: Run, folder: Path) -> None:
    given = (*FIRST, "--data", folder, "--size", 32)
    found = json.loads(sfumato(*given, "--json").out)
    rows = sfumato(*given, "--sheet", "s.png").out.splitlines()
    assert rows[0].split() == ["PSNR,", "dB", "SSIM", "LPIPS", "rFD", "(means)"]
    for row, name, who in ((rows[1], "tiny", "stage"), (rows[2], "bicubic, 4x", "bicubic")):
        q = found[who]
        numbers = f"{q['psnr']:.2f} ± {q['psnr_std']:.2f}", f"{q['ssim']:.3f}", f"{q['lpips']:.3f}", f"{q['rfd']:.2f}"
        assert row.split() == [*name.split(), *" ".join(numbers).split()]
    assert rows[3].startswith(f"5 pictures of 32x32 ({folder}); LPIPS 0.1, AlexNet (bundled)")
    assert rows[5].startswith(f"latent: mean {found['latent']['overall_mean']:.3f}, std ")
    assert rows[6].startswith(f"KL: {sum(found['latent']['kl']):.2f} nats at a position; channels ")
    assert rows[7] == "s.png: rows of input, reconstruction, |error| x 4"


def test_the_bundled_pictures_by_mobilenet(sfumato: Run) -> None:
    """Nothing stands in here. Pictures of 16 pixels are too small for LPIPS, which is said."""
    said = sfumato(*FIRST, "--n", 3, "--seed", 5)
    assert said.code == 0, said
    assert "rFD (MobileNetV2)" in said.out.splitlines()[0]
    assert re.search(r"^ *tiny +\d+\.\d\d ± \d+\.\d\d +-?0\.\d{3} +- +\d+\.\d\d *$", said.out, re.MULTILINE)
    assert "3 pictures of 16x16 (emoji, concepts never trained on)" in said.out


@pytest.mark.usefixtures("quick")
def test_all_of_the_bundled_pictures(sfumato: Run) -> None:
    found = json.loads(sfumato(*FIRST, "--json").out)
    stage, unseen = opening.load("emoji").model.first_stage, first_stages.Emoji(split="concept", size=16)
    assert found["n"] == len(unseen)
    assert found["stage"]["psnr"] == pytest.approx(mean_psnr(stage, unseen), rel=1e-4)


@pytest.mark.usefixtures("quick")
def test_some_pictures_are_drawn_by_seed(sfumato: Run, home: Path, folder: Path) -> None:
    (folder / "cut.png").unlink()
    given = (*FIRST, "--data", folder, "--size", 16, "--json")
    some = [json.loads(sfumato(*given, "--n", 2, "--seed", seed).out) for seed in (1, 1, 3)]
    assert some[0] == some[1]
    assert some[1]["stage"] != some[2]["stage"]
    everything = json.loads(sfumato(*given, "--n", 50).out)
    assert (some[0]["n"], everything["n"]) == (2, 5)


@pytest.mark.usefixtures("quick")
def test_a_codebook_is_measured(sfumato: Run, home: Path, folder: Path) -> None:
    path = files.single("labels", home / "labels.safetensors")
    said = sfumato("evaluate", path, "--first-stage", "--data", folder, "--size", 32)
    assert said.code == 0, said
    match = re.search(r"^codebook: (\d+) of 16 entries used \((.*)%\), perplexity (\S+)$", said.out, re.MULTILINE)
    assert match
    assert float(match[2]) == pytest.approx(int(match[1]) / 16 * 100, abs=0.051)
    assert 1 <= float(match[3]) <= int(match[1])
    assert "KL:" not in said.out


def test_pictures_beside_their_reconstructions(sfumato: Run, home: Path, folder: Path) -> None:
    pictures.save_png(inp("odd", 3, 35, 46).clamp(-1, 1), home / "other" / "1.png", {})
    said = sfumato("reconstruct", folder / "1.png", "other/1.png", "many/cut.png", "--out", "a/b")
    assert said.code == 0, said
    remarks = said.err.splitlines()
    assert remarks[0] == "other/1.png is 46x35; its middle 44x32 is used, which divides by 4"
    assert remarks[1].startswith("1 pictures were skipped, the first is many/cut.png: the picture is damaged")
    rows = said.out.splitlines()
    assert rows[-1] == "from left to right: input, reconstruction, |error| x 4"
    stage, lpips = opening.load("emoji").model.first_stage, feature_networks.alexnet()
    whole = [pictures.read(folder / "1.png"), pictures.read(home / "other/1.png")[:, 1:33, 1:45]]
    for row, name, x in zip(rows, ("a/b/1.png", "a/b/1_2.png"), whole, strict=False):
        y = as_saved(reconstructed(stage, x[None]))
        psnr, ssim, perceptual = likeness(y, x[None], lpips)[0].tolist()
        assert row == f"{name}  PSNR {psnr:.2f} dB, SSIM {ssim:.3f}, LPIPS {perceptual:.3f}"
        made, (_, h, w) = pictures.read(home / name), x.shape
        assert made.shape == (3, h + 4, 3 * w + 8)
        cells = [made[:, 2:-2, 2 + k * (w + 2) : 2 + k * (w + 2) + w] for k in range(3)]
        torch.testing.assert_close(torch.stack(cells[:2]), torch.cat([x[None], y]), rtol=0, atol=1e-6)
        torch.testing.assert_close(cells[2], as_saved(error_map(x, y[0])), rtol=0, atol=1e-6)


def test_reconstructions_as_json_and_of_a_size(sfumato: Run, home: Path) -> None:
    path = files.single("labels", home / "labels.safetensors")
    said = sfumato("reconstruct", "wide.png", "--vae", path, "--size", 12, "--json")
    assert said.code == 0, said
    (one,) = json.loads(said.out)["pictures"]
    assert one["out"] == "reconstructions/wide.png"
    assert one["lpips"] is None
    with Image.open(home / one["out"]) as picture:
        assert picture.size == (3 * 12 + 8, 12 + 4)
    inside = pictures.parameters_of(home / one["out"])
    assert inside["columns"] == ["input", "reconstruction", "|error| x 4"]
    assert inside["psnr"] == one["psnr"]


def test_a_picture_that_takes_a_while_is_said_beforehand(
    sfumato: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the sizes that take less, the largest is named; where none does, none is."""
    work = operations(opening.load("emoji").model.first_stage)
    monkeypatch.setattr(reconstruct, "QUICKER", (64, 32, 16))
    given = ("reconstruct", folder / "1.png", "init.png")
    monkeypatch.setattr(reconstruct, "LONG", work.of(32, 40) - 1)
    said = sfumato(*given)
    assert (said.code, said.err) == (0, f"{folder / '1.png'} at 40x32 takes a while; --size 32 is quicker\n")
    monkeypatch.setattr(reconstruct, "LONG", work.of(16, 16))
    assert sfumato(*given).err == f"{folder / '1.png'} at 40x32 takes a while; --size 16 is quicker\n"
    assert sfumato(*given, "--size", 16).err == ""
    monkeypatch.setattr(reconstruct, "LONG", 1)
    assert sfumato(*given, "--size", 20).err.splitlines()[1] == "init.png at 20x20 takes a while"
    monkeypatch.setattr(reconstruct, "LONG", work.of(32, 40))
    assert sfumato(*given).err == ""


class Screen(io.StringIO):
    """What a person watches."""

    def isatty(self) -> bool:
        return True


def test_who_watches_sees_which_file_is_on(sfumato: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("reconstruct", "init.png", "wide.png")
    known = sfumato(*given, "--out", "a").out
    for asked, seen in ((given, True), (given[:2], False)):
        monkeypatch.setattr(sys, "stderr", screen := Screen())
        said = sfumato(*asked, "--out", "b" if seen else "c")
        assert all((name in screen.getvalue()) == seen for name in asked[1:])
        assert said.out.splitlines()[0] == known.splitlines()[0].replace("a/", "b/" if seen else "c/")


NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_picture_is_kept_though_it_cannot_be_measured(
    sfumato: Run, home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("reconstruct", folder / "1.png", "--json")
    whole = json.loads(sfumato(*given, "--out", "whole").out)["pictures"][0]
    monkeypatch.setattr(Lpips, "forward", raising(NO_MEMORY))
    said = sfumato(*given, "--out", "a")
    assert said.code == 0, said
    assert said.err == f"{folder / '1.png'}: there is not enough memory for LPIPS; a/1.png is written without\n"
    (found,) = json.loads(said.out)["pictures"]
    assert found == whole | {"out": "a/1.png", "lpips": None}
    inside = pictures.parameters_of(home / "a/1.png")
    assert {name: inside[name] for name in ("psnr", "ssim", "lpips")} == {
        "psnr": whole["psnr"],
        "ssim": whole["ssim"],
        "lpips": None,
    }
    assert torch.equal(pictures.read(home / "a/1.png"), pictures.read(home / "whole/1.png"))
    monkeypatch.setattr(Lpips, "forward", raising(KeyboardInterrupt()))  # a process that is ended has no time to write
    assert sfumato(*given, "--out", "b").code == 130
    assert torch.equal(pictures.read(home / "b/1.png"), pictures.read(home / "whole/1.png"))
    assert pictures.parameters_of(home / "b/1.png")["psnr"] is None


@pytest.mark.usefixtures("quick")
def test_no_memory_is_said_of_the_picture(sfumato: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(reconstruct, "reconstructed", raising(NO_MEMORY))
        said = sfumato("reconstruct", "wide.png")
        line = "sfumato: failed: there is not enough memory for wide.png at 24x16; a smaller --size needs less\n"
        assert (said.code, said.out, said.err) == (1, "", line)
        patch.setattr(reconstruct, "reconstructed", raising(RuntimeError("shapes do not match")))
        assert sfumato("reconstruct", "wide.png").err == "sfumato: failed: shapes do not match\n"
    monkeypatch.setattr(pictures, "on_white", raising(MemoryError()))
    said = sfumato("reconstruct", "wide.png", "init.png")
    line = "sfumato: failed: wide.png: there is not enough memory for a picture of 24 x 16\n"
    assert (said.code, said.out, said.err) == (1, "", line)
    assert not (home / "reconstructions").exists()
    said = sfumato(*FIRST, "--data", "bare")
    assert (said.code, said.err.count("damaged"), said.err.count("\n")) == (1, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*FIRST, "--data", "nowhere"), "nowhere: there is no such folder"),
        ((*FIRST, "--data", "run"), "run: no pictures in here"),
        ((*FIRST, "--size", "30"), "size 30 does not fit this first stage; it must divide by 4 (near: 32)"),
        ((*FIRST, "--size", "0"), "size 0 does not fit this first stage; it must divide by 4 (near: 4)"),
        ((*FIRST, "--size", "4100"), "size 4100 is out of range; a side has 1 to 4096 pixels"),
        ((*FIRST, "--seed", "-1"), "seed is -1; it must be 0 to 2^64 - 1"),
        ((*FIRST, "--seed", f"{2**64}"), "seed is 18446744073709551616; it must be 0 to 2^64 - 1"),
        (("evaluate", "--seed", "-1"), "seed is -1; it must be 0 to 2^64 - 1"),
        (
            ("evaluate", "--seed", f"{2**64 - 9}", "--n", "10"),
            "that of the last of 10 pictures would not be below 2^64",
        ),
        ((*FIRST, "--out", "bare"), "bare is a folder; name a file"),
        ((*FIRST, "--sheet", "folder.png"), "folder.png is a folder; name a file"),
        ((*FIRST, "--sheet", "x.jpg"), "x.jpg does not end in .png; the sheet is a PNG"),
        (("evaluate", "--sheet", "folder.png"), "folder.png is a folder; name a file"),
        (("evaluate", "--sheet", "x.jpg"), "x.jpg does not end in .png; the sheet is a PNG"),
        (("evaluate", "--sheet", "empty.txt/x.png"), "empty.txt is a file; choose another place"),
        ((*FIRST, "--n", "1"), "n is 1; at least two pictures are needed"),
        ((*FIRST, "--data", "bare"), "1 pictures can be read, and at least 2 are needed"),
        ((*FIRST, "--out", "empty.txt/x.json"), "empty.txt is a file; choose another place"),
        (("evaluate", "emojo", "--first-stage"), "unknown model 'emojo'; did you mean 'emoji'?"),
        (("evaluate", "--data", "bare"), "--data says nothing without --first-stage or --layout; give one of"),
        ((*FIRST, "--features", "nowhere.ckpt"), "nowhere.ckpt cannot be opened"),
        ((*FIRST, "--features", "cut/model.json"), "cut/model.json is neither a safetensors file nor a checkpoint"),
        (("evaluate", "--features", "x.ckpt"), "--features says nothing without --first-stage"),
        (("evaluate", "--size", "16"), "--size says nothing without --first-stage"),
        (("evaluate", "--out", "x.json"), "--out says nothing without --first-stage"),
        (("reconstruct",), "FILE is missing; name the pictures to reconstruct"),
        (("reconstruct", "nowhere.png"), "none of the 1 pictures can be used; the first is nowhere.png cannot be open"),
        (("reconstruct", "not-a-picture.png"), "not-a-picture.png: not a picture of a known kind"),
        (("reconstruct", "wide.png", "--size", "0"), "size 0 is out of range; a side has 1 to 4096 pixels"),
        (("reconstruct", "wide.png", "--size", "4097"), "size 4097 is out of range; a side has 1 to 4096 pixels"),
        (("reconstruct", "wide.png", "--size", "3"), "wide.png is 3x3; this first stage needs 4 pixels each way"),
        (("reconstruct", "wide.png", "--vae", "nowhere.safetensors"), "there is no file nowhere.safetensors"),
        (("reconstruct", "wide.png", "--out", "empty.txt"), "empty.txt is a file; choose another place"),
    ],
    ids=lambda x: " ".join(x)[:60] if isinstance(x, tuple) else "",
)
@pytest.mark.usefixtures("quick")
def test_a_refusal_is_a_line(sfumato: Run, home: Path, arguments: tuple[str, ...], said: str) -> None:
    (home / "folder.png").mkdir()
    before = sorted(home.rglob("*"))
    assert said in refused(sfumato(*arguments))
    assert sorted(home.rglob("*")) == before


@pytest.mark.usefixtures("quick")
def test_pictures_that_are_all_damaged(sfumato: Run, folder: Path) -> None:
    cut = (folder / "cut.png").read_bytes()
    for i in range(5):
        (folder / f"{i}.png").write_bytes(cut)
    assert "0 pictures can be read, and at least 2 are needed; the first" in refused(sfumato(*FIRST, "--data", folder))
    both = sfumato("reconstruct", folder / "0.png", folder / "1.png")
    assert "none of the 2 pictures can be used; the first is" in refused(both)


def test_a_model_of_pixels_has_none(sfumato: Run, home: Path) -> None:
    path = files.single("adm", home / "adm.safetensors")
    assert "paints pixels and has no first stage" in refused(sfumato("evaluate", path, "--first-stage"))
