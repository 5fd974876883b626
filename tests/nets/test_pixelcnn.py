"""PixelCNN++ sees no pixel too early, gives probabilities that are whole, learns, and draws what it has learnt."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fill import inp
from sfumato.nets.logistics import Mixture, bits_per_dim, drawn, log_likelihood, log_prob, mixture
from sfumato.nets.pixelcnn import Gated, PixelCnn, PixelCnnSize, painted

LEVELS = (2 * torch.arange(256, dtype=torch.float64) / 255) - 1
SMALL = PixelCnnSize(filters=8, blocks=1, mixtures=2, dropout=0.0)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pictures(n: int, height: int = 8, width: int = 8) -> Tensor:
    return LEVELS[((inp("pictures", n, 3, height, width) + 1.8) * 70).long().clamp(0, 255)]


def make(size: PixelCnnSize = SMALL, *, cond: Tensor | None = None) -> PixelCnn:
    torch.manual_seed(0)
    net = PixelCnn(size).double().requires_grad_(False).eval()
    net.start_at_data(pictures(4), cond)
    return net


# Discretised logistics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "mean", "expected"), [(0, 0, -3.93195378), (-1, -0.9, -1.28474482)])
def test_one_logistic_has_the_known_values(value: float, mean: float, expected: float) -> None:
    found = log_prob(f64(value), f64(mean), f64(0.1).log())
    assert found.item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("mean", [-1.7, -1.0, -0.318, 0.0, 0.9, 1.2])
@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 2.0, 9.0])
def test_the_levels_have_all_the_mass(mean: float, log_scale: float) -> None:
    total = log_prob(LEVELS, f64(mean), f64(log_scale)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_the_smallest_probabilities_are_exact() -> None:
    """A level k scales above the mean has e^-k (e^h - e^-h) of the mass to all figures, however small; float32 too."""
    scale, half = 0.01, 1 / 255
    value = LEVELS[[150, 200, 250]]
    expected = -(value + 0.9) / scale + math.log(2 * math.sinh(half / scale))
    exact = log_prob(value, f64(-0.9), f64(scale).log())
    torch.testing.assert_close(exact, expected, rtol=1e-9, atol=0)
    assert exact[-1] < -180  # no float32 holds this as a probability
    coarse = log_prob(value.float(), torch.tensor(-0.9), torch.tensor(scale).log())
    torch.testing.assert_close(coarse.double(), expected, rtol=1e-5, atol=0)


def test_it_is_what_is_published_where_that_does_not_approximate() -> None:
    """log(cdf - cdf), wherever the difference is above 1e-5."""
    mean, scale = f64(0.123), f64(0.05)
    edges = torch.sigmoid((LEVELS + 1 / 255 - mean) / scale) - torch.sigmoid((LEVELS - 1 / 255 - mean) / scale)
    inner = (edges > 1e-5) & (LEVELS.abs() < 0.999)
    assert 80 < inner.sum() < 250
    torch.testing.assert_close(log_prob(LEVELS, mean, scale.log())[inner], edges[inner].log(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("log_scale", [30.0, 95.0, 300.0])
@pytest.mark.parametrize("value", [-1.0, 0.2, 1.0])
def test_a_scale_may_grow_without_end(value: float, log_scale: float) -> None:
    """Half of the mass is then on each edge. Without care the logarithm of 0 spoils the gradients of all values."""
    value_, mean, wide = (torch.tensor(v, requires_grad=True) for v in (value, 0.3, log_scale))
    found = log_prob(value_, mean, wide)
    found.backward()
    assert found.item() == pytest.approx(
        -math.log(2) if abs(value) == 1 else math.log(2 / 255 / 4) - log_scale, rel=1e-5
    )
    for t in (value_, mean, wide):
        assert t.grad is not None
        assert t.grad.isfinite().all()


def test_gradients_of_one_logistic() -> None:
    for value, mean, log_scale in ((0.2, 0.1, -3.0), (-1.0, -0.8, -2.0), (1.0, 0.1, -1.0), (0.2, 0.9, -5.0)):
        at = f64(mean, log_scale).requires_grad_()
        assert torch.autograd.gradcheck(lambda a, v=value: log_prob(f64(v), a[:1], a[1:]), at)


def parameters(n: int = 2, *, mean: float = 0.0, log_scale: float = -5.0) -> Tensor:
    """(1, 10 n, 1, 1): unlike parts whose scales are narrow, so that few levels have all the mass."""
    raw = inp("mixture", 1, 10 * n, 1, 1).double()
    raw[:, n:].unflatten(1, (3, 3, n))[:, :, 0] *= 0.02
    raw[:, n:].unflatten(1, (3, 3, n))[:, :, 0] += mean
    raw[:, n:].unflatten(1, (3, 3, n))[:, :, 1] = log_scale + 0.2 * raw[:, n:].unflatten(1, (3, 3, n))[:, :, 1]
    return raw


def by_hand(pixel: Tensor, raw: Tensor) -> float:
    """The probability of one pixel (3,), summed over the parts in plain numbers."""
    n = raw.shape[1] // 10
    flat = raw.flatten().tolist()
    weights = [math.exp(v) for v in flat[:n]]
    total, (r, g, _) = 0.0, pixel.tolist()
    for k in range(n):
        (m, s, c) = ([flat[n + colour * 3 * n + kind * n + k] for colour in range(3)] for kind in range(3))
        c = [math.tanh(v) for v in c]
        means = [m[0], m[1] + c[0] * r, m[2] + c[1] * r + c[2] * g]
        p = math.prod(math.exp(log_prob(pixel[i], f64(means[i]), f64(max(s[i], -7))).item()) for i in range(3))
        total += weights[k] / sum(weights) * p
    return total


def test_a_pixel_by_hand() -> None:
    raw = parameters(3, log_scale=-1.0)
    for levels in ([10, 200, 255], [0, 128, 130], [90, 91, 92]):
        pixel = LEVELS[levels]
        found = log_likelihood(pixel.view(1, 3, 1, 1), raw).exp().item()
        assert found == pytest.approx(by_hand(pixel, raw), rel=1e-9)


@pytest.mark.parametrize("mean", [0.0, -0.97, 0.97])
def test_all_colours_together_have_all_the_mass(mean: float) -> None:
    """Every triple of levels near the means, in the middle and at both edges: the chain rule loses nothing."""
    raw = parameters(2, mean=mean, log_scale=-5.5)
    near = [LEVELS[((LEVELS[:, None] - f64(*middles)).abs() < 0.2).any(1)] for middles in whereabouts(raw)]
    grid = torch.stack(torch.meshgrid(*near, indexing="ij")).flatten(1)  # (3, triples)
    total = log_likelihood(grid[None, :, None], raw.expand(-1, -1, 1, grid.shape[1])).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-6)


def whereabouts(raw: Tensor) -> list[list[float]]:
    """About where each colour is, in each part, when the colours before it are at their means."""
    found: list[list[float]] = [[], [], []]
    parts = mixture(raw)
    for m, c in zip(parts.means[0, :, :, 0, 0].T.tolist(), parts.coefficients[0, :, :, 0, 0].T.tolist(), strict=True):
        r = max(-1.0, min(1.0, m[0]))
        g = max(-1.0, min(1.0, m[1] + c[0] * r))
        b = max(-1.0, min(1.0, m[2] + c[1] * r + c[2] * g))
        for colour, at in zip(found, (r, g, b), strict=True):
            colour.append(at)
    return found


def test_a_uniform_guess_has_eight_bits() -> None:
    """No logistic is uniform; but bits are counted so that one which gives a level 1/256 has eight."""
    image = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    raw = torch.zeros(1, 10, 1, 1, dtype=torch.float64)
    scale = 1 / 255 / math.log((256 + 1) / (256 - 1))  # sigmoid(x) - sigmoid(-x) = 1 / 256 at x = log(257 / 255)
    raw[:, 1:].unflatten(1, (3, 3, 1))[:, :, 1] = math.log(scale)
    assert bits_per_dim(image, raw).item() == pytest.approx(8, abs=1e-9)


def test_channels_must_be_a_multiple_of_ten() -> None:
    with pytest.raises(ValueError, match="14 are no multiple"):
        mixture(torch.zeros(1, 14, 2, 2))


# Drawing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "log_scale"), [(0.1, -4.0), (-0.95, -3.0), (0.4, 0.5)])
def test_drawn_levels_have_their_probabilities(mean: float, log_scale: float) -> None:
    """With n uniform numbers evenly spaced, each level is drawn n times its probability, but for two at its ends."""
    n = 50_000
    raw = torch.zeros(1, 10, 1, n, dtype=torch.float64)
    raw[:, 1] = mean
    raw[:, 2] = log_scale
    uniform = torch.full((1, 4, 1, n), 0.5, dtype=torch.float64)
    uniform[0, 1, 0] = (torch.arange(n) + 0.5) / n
    red = drawn(raw, uniform)[0, 0, 0]
    counts = torch.bincount(((red + 1) * 127.5).round().long(), minlength=256)
    expected = n * log_prob(LEVELS, f64(mean), f64(log_scale)).exp()
    assert (counts - expected).abs().max() < 2


def test_drawn_colours_go_together_as_the_likelihood_says() -> None:
    """The frequencies of the 200 likeliest of all triples, each within five standard errors, and their total."""
    n = 40_000
    raw = parameters(2, log_scale=-6.0)
    uniform = torch.rand(1, 5, 1, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels = drawn(raw.expand(-1, -1, 1, n), uniform)[0, :, 0]  # (3, n)
    triples, counts = pixels.unique(dim=1, return_counts=True)
    p = log_likelihood(triples[None, :, None], raw.expand(-1, -1, 1, triples.shape[1])).exp()[0, 0]
    most = p.argsort(descending=True)[:200]
    assert p[most].sum() > 0.5
    deviation = (counts[most] - n * p[most]) / (n * p[most] * (1 - p[most])).sqrt()
    assert deviation.abs().max() < 5
    assert 0.8 < deviation.square().mean() < 1.2
    assert torch.isin(pixels, LEVELS).all()


def test_all_uniform_numbers_give_finite_pixels() -> None:
    raw = torch.tensor([0.0] + [0.5, 300.0, 9.0] * 3).view(1, 10, 1, 1)
    for u in (0.0, 0.5, 1.0):
        assert drawn(raw, torch.full((1, 4, 1, 1), u)).abs().max() <= 1


# The network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("filters", "params"), [(160, 53_659_080), (80, 13_440_840)])
def test_published_sizes(filters: int, params: int) -> None:
    with torch.device("meta"):
        net = PixelCnn(PixelCnnSize(filters=filters))
    assert sum(p.numel() for p in net.parameters()) == params


def test_a_pixel_depends_on_those_before_it_on_all_of_them_and_on_no_other() -> None:
    """In the order of reading, by the exact gradient."""
    net = make(PixelCnnSize(filters=8, blocks=2, mixtures=2, dropout=0.0))  # with one block it sees 6 pixels aside
    image = pictures(1).requires_grad_()
    out = net(image)
    weight = inp("weight", out.shape[1]).double()
    for p in range(64):
        (gradient,) = torch.autograd.grad(out[0, :, p // 8, p % 8] @ weight, image, retain_graph=True)
        seen = (gradient[0] != 0).flatten(1)  # (3, 64)
        assert seen[:, :p].all(), p
        assert not seen[:, p:].any(), p


def test_the_rest_of_a_picture_changes_nothing() -> None:
    """Rows below may be cut off, as drawing does; a higher picture has the same outputs where it is the same."""
    net, image = make(), pictures(2, 16, 12)
    torch.testing.assert_close(net(image[:, :, :8]), net(image)[:, :, :8], rtol=0, atol=1e-12)


@torch.no_grad()
def test_it_starts_with_layers_of_mean_zero_and_variance_one() -> None:
    """On the pictures that it was started at, each channel; the second convolution of a block has deviation 0.1."""
    net = make()
    seen: dict[nn.Module, Tensor] = {}
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda layer, _, out: seen.update({layer: out}))
    out = net(pictures(4))
    small = {m.conv_out.conv for m in net.modules() if isinstance(m, Gated)}
    assert len(seen) == 3 + 2 * 2 * 3 + 3 + 2 * 2 * 5 + 2 * 5 + 2 * 4 + 1  # firsts, down and sides, up and sides, sizes
    for layer, found in seen.items():
        target = 0.1 if layer in small else 1.0
        torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros_like(found[0, :, 0, 0]), rtol=0, atol=1e-9)
        deviations = found.std((0, 2, 3), correction=0)
        torch.testing.assert_close(deviations, torch.full_like(deviations, target), rtol=1e-9, atol=0)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-9)


def test_starting_survives_a_channel_that_does_not_vary_and_leaves_the_mode() -> None:
    """One picture of 4x4 has one place in the smallest resolution: nothing varies there."""
    torch.manual_seed(0)
    net = PixelCnn(PixelCnnSize(filters=4, blocks=1, mixtures=1))
    image = pictures(1, 4, 4).float()
    net.start_at_data(image)
    assert net.training
    smallest = dict(net.down[-1].named_parameters())
    scales = [p for name, p in smallest.items() if name.endswith("original0")]
    assert len(scales) == 5
    assert all(bool((p == 1).all()) for p in scales)
    assert net.eval()(image).isfinite().all()


@torch.no_grad()
def test_weights_have_the_length_that_their_scales_say() -> None:
    """Salimans & Kingma 2016: w = g v / |v| for each channel of the output, so the length of v does not matter."""
    net = make()
    image = pictures(2)
    before = net(image)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            g = layer.get_parameter("parametrizations.weight.original0")
            others = (0, 2, 3) if isinstance(layer, nn.ConvTranspose2d) else (1, 2, 3)
            torch.testing.assert_close(layer.weight.square().sum(others).sqrt(), g.flatten().abs())
            layer.get_parameter("parametrizations.weight.original1").mul_(3)
    torch.testing.assert_close(net(image), before, rtol=0, atol=1e-9)


def test_a_condition_steers_every_pixel_and_leaks_none() -> None:
    size = PixelCnnSize(filters=8, blocks=1, mixtures=1, dropout=0.0, cond_dim=3)
    cond = inp("cond", 4, 3).double()
    net = make(size, cond=cond)
    image = pictures(1).requires_grad_()
    told = cond[:1].clone().requires_grad_()
    out = net(image, told)
    for p in (0, 20, 63):
        pixel = out[0, :, p // 8, p % 8].sum()
        to_image, to_cond = torch.autograd.grad(pixel, (image, told), retain_graph=True)
        assert bool((to_cond != 0).all())
        assert not to_image[0].flatten(1)[:, p:].any()


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4, not 6x8"):
        make()(pictures(1, 8, 6))
    with pytest.raises(ValueError, match="takes no condition"):
        make()(pictures(1), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="needs a condition"):
        PixelCnn(PixelCnnSize(filters=4, blocks=1, cond_dim=3))(pictures(1).float())


# Drawing with it ----------------------------------------------------------------------------------------------


def test_pictures_are_drawn_in_the_order_of_reading() -> None:
    uniform = torch.rand(2, 5, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *so_far, last = (torch.zeros(2, 3, 4, 8, dtype=torch.float64), *painted(make(), uniform))
    assert len(so_far) == 32
    for p, (before, after) in enumerate(zip(so_far, [*so_far[1:], last], strict=True)):
        changed = (before != after).any(1).flatten(1)
        assert changed[:, p].all()
        assert changed.sum() == 2


def test_a_drawn_picture_is_what_its_own_mixtures_give() -> None:
    """Run once on the finished picture, the network offers at each pixel just the mixture that it was drawn from."""
    net = make()
    uniform = torch.rand(3, 5, 12, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    *_, picture = painted(net, uniform)
    assert torch.equal(drawn(net(picture), uniform), picture)


# Learning -----------------------------------------------------------------------------------------------------


def stripes(phase: Tensor) -> Tensor:
    """Upright stripes, black and white, two pixels wide, in one of four phases (B, 3, 8, 8)."""
    rows = (torch.arange(8) + phase[:, None]) // 2 % 2 * 2.0 - 1
    return rows[:, None, None, :].expand(-1, 3, 8, -1).contiguous()


@pytest.fixture(scope="module")
def learnt() -> PixelCnn:
    torch.manual_seed(0)
    net = PixelCnn(PixelCnnSize(filters=8, blocks=1, mixtures=4, dropout=0.0))
    generator = torch.Generator().manual_seed(0)

    def batch(n: int) -> Tensor:
        return stripes(torch.randint(0, 4, (n,), generator=generator))

    net.start_at_data(batch(32))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3, betas=(0.9, 0.99))
    for _ in range(80):
        images = batch(16)
        optimizer.zero_grad()
        bits_per_dim(images, net(images)).mean().backward()
        optimizer.step()
    return net.requires_grad_(False).eval()


def test_it_learns_what_pixels_that_know_nothing_of_each_other_cannot(learnt: PixelCnn) -> None:
    """Four phases are 2 bits a picture, 0.0104 a dimension; no model of single pixels is below 1/3, and none, unless
    it sees what it must guess, is below 0.0104.
    """
    images = stripes(torch.arange(4))
    bits = bits_per_dim(images, learnt(images)).mean().item()
    assert 2 / 192 < bits < 0.05


def test_drawn_pictures_are_as_frequent_as_their_likelihood_says(learnt: PixelCnn) -> None:
    n = 120
    uniform = torch.rand(n, 7, 8, 8, generator=torch.Generator().manual_seed(2))
    *_, drawings = painted(learnt, uniform)
    images = stripes(torch.arange(4))
    p = log_likelihood(images, learnt(images)).sum((1, 2)).exp()
    counts = (drawings[:, None] == images).flatten(2).all(2).sum(0)
    assert p.sum() > 0.7
    assert ((counts - n * p).abs() < 4 * (n * p * (1 - p)).sqrt()).all()


def test_dropout_is_between_the_convolutions_of_a_block() -> None:
    """Elementwise and only in training: what is left is doubled at the published rate of one half."""
    torch.manual_seed(0)
    net = PixelCnn(PixelCnnSize(filters=8, blocks=1, mixtures=1))
    image = pictures(1).float()
    assert torch.equal(net.eval()(image), net(image))
    seen: list[Tensor] = []
    first = next(m for m in net.modules() if isinstance(m, Gated))
    first.conv_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(1)
    net.eval()(image)
    net.train()(image)
    whole, dropped = seen
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    assert kept.float().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(kept.numel()))
    assert 0 < kept[0, 0].sum() < 64  # not whole channels


def test_mixture_reads_the_published_layout() -> None:
    """Logits, then for each colour means, log-scales and coefficients; scales are kept from vanishing."""
    raw = torch.arange(20.0).view(1, 20, 1, 1) - 30
    parts = mixture(raw)
    assert isinstance(parts, Mixture)
    assert (parts.logits.flatten() + 30).tolist() == [0, 1]
    assert (parts.means.flatten() + 30).tolist() == [2, 3, 8, 9, 14, 15]
    assert parts.log_scales.unique().tolist() == [-7]
    torch.testing.assert_close(parts.coefficients.flatten(), (torch.tensor([6.0, 7, 12, 13, 18, 19]) - 30).tanh())
