"""The page of theory in two dimensions: its closed forms are the exact ones, and what it draws follows from them."""

import importlib.util
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mixture import Mixture, f64
from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.move import noise_in
from sfumato.diffusion.noise import Address
from sfumato.diffusion.objective import noised
from sfumato.diffusion.prediction import Prediction
from sfumato.train.plan import Plan

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toy = loaded("toy_2d")
RING = toy.ring()
N = 3000


@pytest.fixture(scope="module")
def learnt() -> tuple[nn.Module, list[float]]:
    """Three hundred steps of the example's training."""
    plan = Plan(steps=300, batch=512, rate=8e-3, warmup=20, weight_decay=0.0, ema=0.95, precision="fp32")
    return toy.trained(RING, plan)


class Exact(nn.Module):
    """The exact answers in the place of a network: of one Gaussian if its class is told, else of all."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = Told()
        self.denoiser = Denoiser(self.eps, toy.SCHEDULE, Prediction.EPS)

    def eps(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
        maps: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        at = toy.SCHEDULE.level(t[0].double())
        assert label is not None
        gain = at.alpha * RING.s**2 / ((at.alpha * RING.s) ** 2 + at.sigma**2)
        mean = RING.means[label % len(RING.weights)].view_as(x)
        alone = mean + gain * (x - at.alpha * mean)
        return noise_in(x, torch.where((label < len(RING.weights)).view(-1, 1, 1, 1), alone, RING.x0(x, at)), at)


class Told:
    """The labels as they are."""

    def __call__(self, batch: Mapping[str, Tensor]) -> Cond:
        return Cond(label=batch["label"])

    def null(self, n: int) -> Cond:
        return Cond(label=torch.full((n,), len(RING.weights)))


def test_data_has_unit_variance_in_each_direction() -> None:
    assert RING.means.mean(0).abs().max() < 1e-6
    spread = RING.means.T @ (RING.weights[:, None] * RING.means) + RING.s**2 * torch.eye(2)
    torch.testing.assert_close(spread, torch.eye(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("t", [0.0, 100.0, 500.0, 999.0])
def test_the_exact_denoiser_is_the_measuring_bench_and_the_score(t: float) -> None:
    weights = torch.tensor([0.5, 0.3, 0.2])
    data = toy.Mixture(weights, RING.means[:3], 0.25)
    bench = Mixture(weights.double(), RING.means[:3].double(), f64(0.25, 0.25, 0.25))
    at, x = toy.SCHEDULE.level(t), data.draw(50, seed=1)[0].double().requires_grad_()
    guess = data.x0(x, at)
    torch.testing.assert_close(guess, bench.x0(x, at), rtol=0, atol=1e-6)
    (score,) = torch.autograd.grad(data.joint(x, at).logsumexp(1).sum(), x)
    torch.testing.assert_close(at.alpha * guess, x + at.sigma**2 * score, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "steps"), [("ddpm", 400), ("ddim", 400), ("plms", 60), ("dpmpp_2m", 100)])
def test_with_exact_answers_samples_have_the_weights_means_and_spreads_of_the_data(name: str, steps: int) -> None:
    """Each within four standard errors; the Gaussians are 11 deviations apart, so every point has its own."""
    weights = torch.tensor([0.35, 0.25, 0.2, 0.15, 0.05])
    data = toy.Mixture(weights, toy.ring(5, 0.15).means, 0.15)
    x = toy.sampled(name, data.x0, steps, N)[-1]
    own = data.joint(x, toy.SCHEDULE.level(0.0)).argmax(1)
    for k, w in enumerate(weights.tolist()):
        mine = x.flatten(1)[own == k]
        assert abs(len(mine) / N - w) < 4 * math.sqrt(w * (1 - w) / N)
        assert (mine.mean(0) - data.means[k]).abs().max() < 4 * data.s / math.sqrt(len(mine))
        assert abs((mine - data.means[k]).square().mean() / data.s**2 - 1) < 4 / math.sqrt(len(mine))


def test_samplers_share_the_noise_and_count_their_evaluations() -> None:
    paths = {name: toy.sampled(name, RING.x0, 10, 20) for name in toy.SHOWN}
    assert [len(path) - 1 for path in paths.values()] == [10, 10, 11, 10]  # PLMS begins with Heun's step
    assert all(torch.equal(path[0], paths["ddpm"][0]) for path in paths.values())


def test_the_exact_denoiser_has_no_error_and_noise_alone_has_the_least_loss_of_one() -> None:
    relative, absolute, least = toy.errors(RING, RING.x0, toy.SCHEDULE.level(200.0))
    assert relative == absolute == 0
    assert 0 < least < 1
    at = toy.SCHEDULE.level(200.0)
    relative, absolute, _ = toy.errors(RING, lambda x, at: x / at.alpha, at)  # eps guessed as 0
    assert relative == pytest.approx(1, abs=1e-5)
    assert absolute > 0.5


def test_a_short_training_beats_the_best_linear_guess_and_not_the_exact_one(
    learnt: tuple[nn.Module, list[float]],
) -> None:
    model, losses = learnt
    x0, label = RING.draw(N, seed=toy.HELD_OUT)
    address = Address.of(9, torch.arange(N))
    x, eps, at = noised(toy.SCHEDULE, x0, address)
    linear = (at.sigma * x - eps).square().mean()
    loss = model({"x0": x0, "label": label}, address).loss
    told = torch.tensor([toy.errors(RING, RING.x0, toy.SCHEDULE.level(float(t)))[2] for t in range(12, 1000, 25)])
    assert len(losses) == 300
    assert told.mean() < loss < 0.7 * linear


def test_distance_is_what_a_shift_moves_in_the_mean_of_the_directions() -> None:
    x, shift = RING.draw(500, seed=0)[0], torch.tensor([0.3, -0.4])
    angle = torch.arange(32) * math.pi / 32
    expected = float((shift[0] * angle.cos() + shift[1] * angle.sin()).abs().mean())
    moved = (x + shift.view(1, 2, 1, 1)).repeat(3, 1, 1, 1)
    assert toy.distance(x, moved) == pytest.approx(expected, abs=1e-5)
    assert toy.distance(x, x.flip(0)) == 0


def test_guidance_on_exact_answers_narrows_a_class_towards_its_mean_and_pushes_it_outwards() -> None:
    """At scale 1 the samples are the class's Gaussian, within four standard errors. Above, they leave the neighbours,
    so sideways they are nearer to the mean; but away from all neighbours is outwards, and there they overshoot."""
    x, k = RING.draw(N, seed=3)
    p = RING.joint(x, toy.SCHEDULE.level(0.0)).softmax(1).gather(1, k[:, None])
    seen = {scale: toy.sharpened(RING, Exact(), scale, N)[2] for scale in (1.0, 2.0, 5.0)}
    sure, sideways, outwards = zip(*seen.values(), strict=True)
    assert abs(sure[0] - float(p.mean())) < 4 * math.sqrt(2) * float(p.std()) / math.sqrt(N)
    assert abs(sideways[0] / RING.s - 1) < 4 / math.sqrt(2 * N)
    assert abs(outwards[0]) < 4 * RING.s / math.sqrt(N)
    assert sure[0] < sure[1] < sure[2]
    assert sideways[0] > 2 * sideways[1] > 2 * sideways[2]
    assert outwards[0] + 0.1 < outwards[1] < outwards[2] - 0.1


def test_guidance_of_a_learnt_model_does_so_too(learnt: tuple[nn.Module, list[float]]) -> None:
    sure, sideways, outwards = zip(
        *(toy.sharpened(RING, learnt[0], scale, 800)[2] for scale in (1.0, 2.0)), strict=True
    )
    assert sure[0] < sure[1]
    assert sideways[0] > 2 * sideways[1]
    assert outwards[0] < outwards[1]


def test_the_density_of_exact_answers_is_the_true_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "SIDE", 30)
    true, learnt, pixel = toy.densities(RING, RING.x0)
    assert float(true.exp().sum() * pixel) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(learnt.exp(), true.exp(), rtol=0, atol=1e-3 * float(true.exp().max()))


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_the_whole_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(EXAMPLES)
    for name, value in {"MANY": 200, "SIDE": 8, "COUNTS": (5, 10)}.items():
        monkeypatch.setattr(toy, name, value)
    monkeypatch.setattr(sys, "argv", ["toy_2d.py", "--out", str(tmp_path / "page.png"), "--steps", "20"])
    toy.main()
    with Image.open(tmp_path / "page.png") as page:
        assert len(page.convert("RGB").getcolors(1 << 24) or []) > 50
    said = capsys.readouterr().out
    assert all(name in said for name in toy.SHOWN.values())


def test_without_matplotlib_a_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    nothing = (tmp_path / "page.png", [], ([], {}), [], ({}, []), [], {}, ())
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        loaded("toy_2d_picture").draw(*nothing)
    assert not (tmp_path / "page.png").exists()
