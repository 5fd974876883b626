"""The page of a run: whole HTML that escapes what it says, fetches nothing, and is a function of the run's files."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from sfumato.cli.main import main
from sfumato.io import pictures
from sfumato.recipes import page
from sfumato.recipes.beginning import Beginning, settled
from sfumato.recipes.chart import BUCKETS, chart, curve, ticks
from sfumato.recipes.events import Event, Found, Ready, Wrote
from sfumato.recipes.log import WHOLE, lines
from sfumato.recipes.settings import DiffusionRun
from sfumato.train.plan import Plan
from sfumato.train.stop import Stopped

HOSTILE = "<script>alert('x')</script>\"&'\ud800"
VOID = {"meta", "img", "br", "path", "circle"}


class Page(HTMLParser):
    """Elements that are closed in order, their attributes, and the text outside of tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _, _ in self.attributes}


def metric(step: int, **more: object) -> str:
    said = {"step": step, "loss": 1 / step, "rate": 1e-3, "norm": 0.5, "seconds": 2.0, "images": 4 * step}
    return json.dumps(said | more) + "\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A run of two stages, the second of which was killed while it wrote a line."""
    home = tmp_path / "run"
    plan = {"steps": 40, "batch": 4}
    settings = {"name": HOSTILE, "first_stage": {"plan": plan}, "diffusion": {"plan": plan}}
    began = {"recipe": "emoji", "data": f"/data/{HOSTILE}", "rests on": {HOSTILE: "3"}, "settings": settings}
    for stage, n in (("first-stage", 40), ("diffusion", 30)):
        (home / stage / "step-20").mkdir(parents=True)
        log = "".join(metric(k, kl=0.25, std=[1.0, 2.0]) for k in range(1, n + 1))
        (home / stage / "metrics.jsonl").write_text(log + '{"step": 31, "lo')
        manifest = {"numbers": {"step": 20, "skipped": 3}}
        (home / stage / "step-20" / "manifest.json").write_text(json.dumps(manifest))
    measured = {"loss": 0.123, "bins": [0.1 * k + 0.01 for k in range(8)]}
    line = {"step": 20, "pictures": 8, "held out": measured, "trained on": measured}
    (home / "diffusion" / "validation.jsonl").write_text(json.dumps(line) + "\n")
    back = json.dumps({"at": 30, "step": 12, "cause": HOSTILE})
    (home / "first-stage" / "rollbacks.jsonl").write_text(back + "\n")
    for step in range(10, 70, 10):
        pictures.save_png(
            torch.zeros(3, 20, 20), home / "samples" / f"step-{step}.png", {"captions": ["<b>", HOSTILE[:-1]]}
        )
    (home / "samples" / "step-70.png").write_bytes(b"not a picture")
    finding = {"good": False, "text": HOSTILE}
    (home / "report.json").write_text(json.dumps({"findings": [finding]}))
    (home / "config.json").write_text(json.dumps(began))
    return home


def test_it_is_whole_and_says_what_there_is(home: Path) -> None:
    found = Page(page.page(home))
    words = " ".join(found.words)
    tiles = ["40 of 40", "30 of 40", "0.123", "160", "80 s", "went back at step 30", "to 12: "]
    for text in ["not finished", *tiles, "first stage", "diffusion", "validation by time", "terms of the loss"]:
        assert text in words
    svgs = [value for tag, name, value in found.attributes if (tag, name) == ("svg", "aria-label")]
    names = ["loss", "learning rate", "gradient norm", "seconds a step", "kl"]
    assert [label.split(" over ")[0] for label in svgs] == [
        *names,
        *("loss", "validation loss", "validation by time, from picture to noise", *names[1:]),
    ]
    assert words.count("step 50 ") == 1
    assert len([1 for tag, name, _ in found.attributes if (tag, name) == ("img", "src")]) == 4  # 5 less the damaged one


def test_it_fetches_and_runs_nothing(home: Path) -> None:
    text = page.page(home)
    found = Page(text)
    assert found.tags.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    assert all(value.startswith("data:image/") for _, name, value in found.attributes if name in ("src", "href"))
    assert not any(name.startswith("on") for _, name, _ in found.attributes)
    assert re.search(r"https?:|url\(|@import", text) is None
    policy = next(value for _, name, value in found.attributes if name == "content" and "default" in value)
    assert policy == "default-src 'none';img-src data:;style-src 'unsafe-inline'"


def test_names_are_only_text(home: Path) -> None:
    found = Page(page.page(home))
    assert "script" not in found.tags
    shown = [w for w in found.words if "alert('x')" in w]
    assert len(shown) >= 5  # title, heading, data, what it rests on, settings, finding, cause, caption
    assert page.write(home).read_bytes().decode().count("\\ud800") >= 5


def test_it_is_a_function_of_the_files(home: Path) -> None:
    first = page.write(home).read_bytes()
    assert page.write(home).read_bytes() == first
    assert page.write(home, home / "other.html").read_bytes() == first


@pytest.mark.parametrize("missing", ["diffusion", "first-stage", "samples", "report.json"])
def test_what_is_not_there_is_left_out(home: Path, missing: str) -> None:
    (home / missing).rename(home / "gone")
    Page(page.page(home))


@pytest.mark.parametrize("text", [None, "", "[]", '{"recipe": "emoji"}', '{"rests on": 3, "settings": {}}'])
def test_a_folder_that_is_no_run(text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert main(["report", str(tmp_path)]) == 2
    said = f"sfumato: {tmp_path} holds no run; give the folder of one, as runs/emoji\n"
    assert capsys.readouterr() == ("", said)
    assert not (tmp_path / "report.html").exists()


def test_the_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(home)]) == 0
    assert capsys.readouterr().out == f"{home / 'report.html'}\n"
    assert (home / "report.html").read_text() == page.write(home, home / "b").read_text()


# While a run goes on --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "written"), [(None, 3), (Stopped(3), 3), (FloatingPointError(), 3), (ValueError(), 2)])
def test_it_is_written_at_previews_and_at_the_end(
    end: BaseException | None, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def events() -> object:
        yield Ready({})
        yield Wrote("preview", tmp_path)
        yield Wrote("preview", tmp_path)
        yield Found("a thing")
        if end:
            raise end

    calls: list[Path] = []
    monkeypatch.setattr(page, "write", lambda out: calls.append(out) or out / page.NAME)
    began = Beginning("emoji", None, DiffusionRun(plan=Plan(steps=1, batch=1, rate=1.0)))
    found: list[Event] = []
    run = page.followed(settled(began, events(), tmp_path), tmp_path)  # pyright: ignore[reportArgumentType]
    if end is None:
        found += run
        assert found == [Wrote("preview", tmp_path), Wrote("page", tmp_path / "report.html"), *found[2:]]
        assert found[2:] == [Wrote("preview", tmp_path), Found("a thing")]
    else:
        with pytest.raises(type(end)):
            found += run
    assert calls == [tmp_path] * written


def test_a_page_that_cannot_be_written_ends_no_training(home: Path) -> None:
    (home / page.NAME).mkdir()
    (home / page.NAME / "a").touch()
    events = [Wrote("preview", home), Found("a thing"), Wrote("preview", home)]
    found = list(page.followed(iter(events), home))
    assert [e for e in found if e in events] == events
    assert [e.text[:43] for e in found if e not in events and isinstance(e, Found)] == [
        "the page of the run cannot be written ([Err"
    ]


# Curves ---------------------------------------------------------------------------------------------------


def test_many_points_become_few_and_keep_their_level() -> None:
    points = [(float(k), math.exp((-1) ** k)) for k in range(1, 16_001)]
    found = curve("loss", points, log=True)
    assert len(found.points) == len(found.band) == BUCKETS
    assert all(y == pytest.approx(1, abs=1e-9) for _, y in found.points)  # the mean of the logarithms
    assert all((low, high) == pytest.approx((1 / math.e, math.e)) for _, low, high in found.band)
    plain = curve("loss", points)
    assert all(y == pytest.approx(math.cosh(1)) for _, y in plain.points)


def test_what_cannot_be_drawn_is_left_out() -> None:
    points = [(1.0, math.nan), (2.0, math.inf), (3.0, 0.0), (4.0, -1.0), (5.0, 2.0)]
    assert curve("a", points).points == points[2:]
    assert curve("a", points, log=True).points == points[4:]
    assert chart("nothing", [curve("a", points[:2])]) == ""
    for some in (points[4:], [(1.0, 0.0), (2.0, 0.0)], [(1.0, 1e-300), (2.0, 1e300)]):
        drawn = chart("<few>", [curve("a", some)], log=True)
        assert "nan" not in drawn
        assert "&lt;few&gt;" in drawn
        Page(drawn)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3e-7, 2e-7), (1.0, 9000.0), (0.1, 0.11)])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_few_and_inside(low: float, high: float, log: bool) -> None:
    found = ticks(low, high, log=log and low > 0)
    assert 2 <= len(found) <= 13
    assert all(low <= v <= high for v in found)
    assert found == sorted(set(found))


def test_a_long_log_is_read_in_places(tmp_path: Path) -> None:
    path = tmp_path / "log"
    n = 60_000
    path.write_text("".join(metric(k) for k in range(1, n + 1)) + '{"step": 6')
    assert path.stat().st_size > WHOLE
    found = [line["step"] for line in lines(path, 500)]
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (1, n)
    assert 500 <= len(found) < 2000
    assert max(b - a for a, b in zip(found, found[1:], strict=False)) < 2 * n / 499
    assert [line["step"] for line in lines(path)] == [*range(1, n + 1)]
    assert lines(tmp_path / "none") == []
