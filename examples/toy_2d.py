"""The theory of diffusion models on one page, in two dimensions: data, noise, loss, score, samplers, guidance, density.

    python examples/toy_2d.py [--out toy-2d.png] [--steps 2000]

The data is a mixture of Gaussians, so all that a network can learn of it is known in closed form too. Points are
(B, 2, 1, 1): pictures of one pixel and two channels.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.conditioning.label import Labels
from sfumato.diffusion.denoiser import Denoise, Denoiser, Estimate
from sfumato.diffusion.drive import answer
from sfumato.diffusion.grid import SPACINGS
from sfumato.diffusion.guidance import guided
from sfumato.diffusion.level import Level
from sfumato.diffusion.likelihood import flow_log_density
from sfumato.diffusion.move import noise_in
from sfumato.diffusion.noise import Address, Stream, seeded
from sfumato.diffusion.objective import denoising_loss
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.samplers import SAMPLERS, start
from sfumato.diffusion.schedule import SCHEDULES
from sfumato.nets.embed import sinusoid
from sfumato.outcome import Outcome
from sfumato.train.fit import Batch, Phase, fit
from sfumato.train.plan import Plan
from sfumato.train.state import State

SCHEDULE = SCHEDULES["linear"]()  # the thousand levels of DDPM
SHOWN = {"ddpm": "DDPM", "ddim": "DDIM", "plms": "PLMS", "dpmpp_2m": "DPM-Solver++"}
COUNTS = (5, 7, 10, 15, 20, 40)  # steps of a sampler
SCALES = (1.0, 2.0, 5.0)  # of guidance
MANY = 4096  # points to measure with
SIDE = 56  # pixels of the densities
HELD_OUT = 10**6  # a seed that no step of training draws with


# 1. The data: eight Gaussians on a ring, of unit variance in each direction as latents are. The class is the Gaussian.
@dataclass(frozen=True)
class Mixture:
    """sum_k w_k N(m_k, s^2 I). At x = alpha x0 + sigma eps it is sum_k w_k N(alpha m_k, (alpha^2 s^2 + sigma^2) I)."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, 2)
    s: float

    def draw(self, n: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Points and their classes (n,)."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return (self.means[k] + self.s * torch.randn(n, 2, generator=generator)).view(n, 2, 1, 1), k

    def joint(self, x: Tensor, at: Level) -> Tensor:
        """log p(x_t, k) (B, K): logsumexp of it is log p(x_t), softmax of it is p(k | x_t), the perfect classifier."""
        var = (at.alpha * self.s) ** 2 + at.sigma**2
        off = x.flatten(1)[:, None] - at.alpha * self.means
        return self.weights.log() - off.square().sum(2) / (2 * var) - (2 * math.pi * var).log()

    def x0(self, x: Tensor, at: Level) -> Tensor:
        """E[x0 | x_t]: linear in x for each Gaussian, and mixed by p(k | x_t). It is the score by Tweedie's formula,
        grad log p(x_t) = (alpha E[x0 | x_t] - x_t) / sigma^2 (Efron 2011)."""
        gain = at.alpha * self.s**2 / ((at.alpha * self.s) ** 2 + at.sigma**2)
        each = self.means + gain * (x.flatten(1)[:, None] - at.alpha * self.means)
        return (self.joint(x, at).softmax(1)[..., None] * each).sum(1).view_as(x)


def ring(count: int = 8, s: float = 0.25) -> Mixture:
    """Equal Gaussians on a circle."""
    angle = torch.arange(count) * 2 * math.pi / count
    means = math.sqrt(2 * (1 - s**2)) * torch.stack([angle.cos(), angle.sin()], 1)
    return Mixture(torch.full((count,), 1 / count), means, s)


# 2. The forward process: q(x_t | x0) = N(alpha x0, sigma^2 I) (Ho et al. 2020, eq. 4).
def noisy(x0: Tensor, at: Level) -> Tensor:
    """A draw of x_t."""
    return at.alpha * x0 + at.sigma * seeded(range(HELD_OUT, HELD_OUT + len(x0)))(x0)


# 3. The loss: E |eps_theta(x_t, t, c) - eps|^2 (Ho et al. 2020, eq. 14). Every other time the class c is not told, so
#    that one network learns p(x | c) and p(x) (Ho & Salimans 2022; more often than theirs, as both are looked at).
class Mlp(nn.Module):
    """Residual layers; the place and the time come as waves too (Tancik et al. 2020), the class as a vector."""

    def __init__(self, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        self.point, self.time = nn.Linear(14, width), nn.Linear(width, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.answer = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, *_: None) -> Tensor:
        """The noise in x (B, 2, 1, 1)."""
        waves = torch.cat([f * x.flatten(1) for f in (1, 2, 3)], 1)
        h = self.point(torch.cat([x.flatten(1), waves.sin(), waves.cos()], 1))
        h = h + self.time(sinusoid(t, self.time.in_features)) + tokens[:, 0]
        for layer in self.layers:
            h = h + layer(F.silu(h))
        return self.answer(F.silu(h)).view_as(x)


class Model(nn.Module):
    """A conditioner and a denoiser. Called, it is the objective that the loop minimises."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.labels = Labels(classes + 1, 128, null=classes)
        self.denoiser = Denoiser(Mlp(), SCHEDULE, Prediction.EPS)

    def forward(self, batch: Batch, at: Address) -> Outcome:
        """`batch`: "x0" (B, 2, 1, 1) and "label" (B,)."""
        told = at.uniform(Stream.DROP)[:, 0] >= 0.5  # noqa: PLR2004
        cond = self.labels(batch).where(told, self.labels.null(len(told)))
        return Outcome(denoising_loss(self.denoiser, batch["x0"], cond, at).mean())


def trained(data: Mixture, plan: Plan) -> tuple[Model, list[float]]:
    """The model with the average of its weights, and the loss of each step. Every batch is new data."""

    def batches(step: int) -> Batch:
        x0, label = data.draw(plan.batch, seed=step)
        return {"index": torch.arange(plan.batch), "x0": x0, "label": label}

    torch.manual_seed(plan.seed)
    model = Model(len(data.weights))
    state = State(model, plan)
    losses = [float(p.losses["loss"]) for p in fit(Phase(model, state), batches)]  # pyright: ignore[reportArgumentType]
    state.ema.copy_to(model)
    return model.requires_grad_(False), losses


def unconditional(model: Model) -> Callable[[Tensor, Level], Tensor]:
    """(x, level) -> x0, with no class told."""
    return lambda x, at: model.denoiser(x, at, model.labels.null(len(x)))


# 4. What was learnt: the score, -eps / sigma (Song et al. 2021b), so the relative error of eps is that of the score. It
#    grows where t is small: little can be known of such noise, so the exact answer is small beside the chance in it.
def errors(data: Mixture, denoise: Callable[[Tensor, Level], Tensor], at: Level) -> tuple[float, float, float]:
    """Of a guess of eps: its relative error, its error, and the least loss, the class told or not in turn."""
    x0, _ = data.draw(MANY, seed=HELD_OUT)
    x = noisy(x0, at)
    eps, best, learnt = (noise_in(x, guess, at) for guess in (x0, data.x0(x, at), denoise(x, at)))
    size, off, least = (float(v.square().mean()) for v in (best, learnt - best, best - eps))
    told = (at.alpha * data.s) ** 2 / ((at.alpha * data.s) ** 2 + at.sigma**2)  # the least loss on one Gaussian
    return math.sqrt(off / size), math.sqrt(off), (least + float(told)) / 2


# 5. Sampling: from noise down a grid of levels, here even in log-SNR. What differs is how a sampler uses the answers.
def sampled(name: str, denoise: Denoise, steps: int, n: int) -> list[Tensor]:
    """n points where each evaluation found them, and at the end. Every sampler begins at the same noise."""
    noise, path = seeded(range(n)), []

    def followed(x: Tensor, at: Level) -> Tensor | Estimate:
        path.append(x)
        return denoise(x, at)

    x = noise(torch.empty(n, 2, 1, 1))
    end = answer(start(SAMPLERS[name], x, SPACINGS["logsnr"](SCHEDULE, steps), noise), followed)
    return [*path, end]


def distance(x: Tensor, y: Tensor, directions: int = 32) -> float:
    """Sliced Wasserstein: how far shadows in each direction are to be moved (Rabin et al. 2011). y may be more."""
    angle = torch.arange(directions) * math.pi / directions
    shadows = (v.flatten(1) @ torch.stack([angle.cos(), angle.sin()]) for v in (x, y))
    a, b = (shadow.sort(0).values for shadow in shadows)
    return float((a.repeat_interleave(len(b) // len(a), 0) - b).abs().mean())


# 6. Classifier-free guidance: x0(null) + scale (x0(c) - x0(null)) (Ho & Salimans 2022). It leads away from the other
#    classes: a sample is surer of its own, and nearer to its mean on the neighbours' sides, but too far outwards.
def sharpened(data: Mixture, model: Model, scale: float, n: int) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Points of the classes in turn, and these. Then the mean p(c | x), the deviation from the class's mean sideways,
    where the neighbours are, and how far outwards the points lie."""
    label = torch.arange(n) % len(data.weights)
    guide = guided(model.labels({"label": label}), model.labels.null(n), scale=scale)
    x = sampled("dpmpp_2m", model.denoiser.bind(guide), 30, n)[-1]
    p = data.joint(x, Level.clean(0.0)).softmax(1).gather(1, label[:, None])
    out = F.normalize(data.means[label], dim=1)
    off = x.flatten(1) - data.means[label]
    along = (off * out).sum(1)
    sideways = (off - along[:, None] * out).square().sum(1).mean().sqrt()
    return x, label, (float(p.mean()), float(sideways), float(along.mean()))


# 7. The density, by the flow's change of volume: d log p(x_t) / dt = -div (Song et al. 2021b, eq. 39).
def densities(data: Mixture, denoise: Denoise, reach: float = 2.9) -> tuple[Tensor, Tensor, float]:
    """log p, true and learnt, on a square (SIDE, SIDE), and the area of a pixel."""
    line = torch.linspace(-reach, reach, SIDE)
    x = torch.cartesian_prod(line, line).view(-1, 2, 1, 1)
    grid = SPACINGS["logsnr"](SCHEDULE, 24)
    true, learnt = data.joint(x, grid.levels[-1]).logsumexp(1), flow_log_density(x, grid, denoise)
    return true.view(SIDE, SIDE), learnt.float().view(SIDE, SIDE), float(line[1] - line[0]) ** 2


def main() -> None:
    """Go through all seven parts; print the numbers, draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("toy-2d.png"), help="the picture")
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # matrices this small gain nothing from a second
    data = ring()
    points, label = data.draw(1000, seed=HELD_OUT)
    forward = [(at, noisy(points, at), label) for at in map(SCHEDULE.level, (0.0, 100.0, 250.0, 500.0, 999.0))]

    plan = Plan(steps=asked.steps, batch=1024, rate=8e-3, weight_decay=0.0, ema=0.998, precision="fp32")
    model, losses = trained(data, plan)
    denoise = unconditional(model)
    score = [(t, *errors(data, denoise, SCHEDULE.level(float(t)))) for t in range(12, 1000, 25)]
    marks = {"linear": float(SCHEDULE.level(torch.arange(1000)).alpha.square().mean())}  # eps = sigma x, unit variance
    marks["exact"] = sum(least for *_, least in score) / len(score)
    last = losses[-200:]
    print(f"loss {sum(last) / len(last):.4f}; best linear {marks['linear']:.4f}, exact {marks['exact']:.4f}")
    print("relative error of the score at t: " + ", ".join(f"{t}: {off:.3f}" for t, off, *_ in score[::6]))

    many = data.draw(4 * MANY, seed=HELD_OUT + 1)[0]
    floor = [distance(data.draw(MANY, seed=HELD_OUT + 2 + i)[0], many) for i in range(10)]
    print(f"distance to the data, network / exact; {min(floor):.3f} to {max(floor):.3f} from other draws of it")
    off = {}
    for name, title in SHOWN.items():
        runs = [[sampled(name, d, n, MANY) for d in (denoise, data.x0)] for n in COUNTS]
        off[title] = [(len(a) - 1, distance(a[-1], many), distance(b[-1], many)) for a, b in runs]
        print(f"  {title:13}", "  ".join(f"{n:2}: {a:.3f} / {b:.3f}" for n, a, b in off[title]))
    paths = [(title, sampled(name, denoise, 10, 1000)) for name, title in SHOWN.items()]
    paths.insert(1, ("DDPM", sampled("ddpm", denoise, 100, 1000)))
    walks = [(title, path, data.joint(path[-1], Level.clean(0.0)).argmax(1)) for title, path in paths]

    print("guidance: p(c | x), deviation sideways, outwards")
    strong = {scale: sharpened(data, model, scale, MANY) for scale in SCALES}
    for scale, (*_, seen) in strong.items():
        print(f"  {scale:3.0f}", "  ".join(f"{v:+.3f}" for v in seen))
    true, flow, pixel = densities(data, denoise)
    kl = (true.exp() * (true - flow)).sum() * pixel
    print(f"learnt density: {flow.exp().sum() * pixel:.4f} in all, {kl:.3f} nats from the true one")

    from toy_2d_picture import draw  # noqa: PLC0415

    draw(asked.out, forward, (losses, marks), score, (off, floor), walks, strong, (true, flow))


if __name__ == "__main__":
    main()
