"""Large pictures through an autoencoder in bounded memory: layer by layer, each by strips of rows, without a seam.

What is computed is what the networks compute on the whole picture, once and in the same order but for rounding: no
strip overlaps another or is blended with it. A convolution reads the rows about its strip too; a group normalisation
has the mean and the variance of the whole map, which were summed up while the map was written; in the attention each
query sees the keys of the whole picture.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.latents.feature_map import FeatureMap, Scratch
from sfumato.latents.first_stage import FirstStage
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.tiny import TinyFirstStage
from sfumato.latents.vq import VQFirstStage
from sfumato.nets.attention import PixelAttention
from sfumato.nets.autoencoder import Decoder, Encoder
from sfumato.nets.blocks import Downsample, ResBlock, Upsample

S = TypeVar("S")
Resample = Literal["none", "down", "up"]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much memory and disk a picture may take, beside the weights, keys and values of the attention, and itself."""

    strip: int = 2**27  # bytes, about, in which a strip is computed; no strip has less than one row
    map: int | None = None  # bytes up to which a feature map stays in the CPU's memory: 64 MiB; on a GPU all do
    folder: Path | None = None  # of the larger ones; see `feature_map.scratch_folder`


def tiled(first_stage: S, bounds: Bounds | None = None) -> S:
    """The same first stage, with the same weights (not copies), whose networks run by strips of rows.

    Its results are those of the given one, up to rounding, for pictures of all sizes that it takes; there are no
    gradients, and autocast does nothing. Pictures of a batch go one after the other. Of a tiny one it is the large one
    that was lent to it as an encoder. A first stage without such networks is returned as it is.

    A feature map of more than `bounds.map` bytes goes to a scratch file, and up to two are kept. At the full size of
    a picture Stable Diffusion's decoder keeps 256 + 128 channels, 1.5 KiB a pixel in float32: 6 GiB for 2048x2048; its
    encoder keeps 1 KiB a pixel. OSError before it begins, or later, if there is no room for them.
    """
    if isinstance(first_stage, TinyFirstStage):
        lent = first_stage.encoder
        by_strips = tiled(lent, bounds)
        if by_strips is lent:
            return first_stage
        return copy.deepcopy(first_stage, {**_kept(first_stage), id(lent): by_strips})
    if not isinstance(first_stage, KLFirstStage | VQFirstStage):
        return first_stage
    bounds = bounds or Bounds()
    twin = copy.deepcopy(first_stage, _kept(first_stage))
    for name in ("encoder", "decoder"):
        net = getattr(first_stage.net, name)
        if not isinstance(net, Streamed):
            twin.net.register_module(name, Streamed(net, bounds))
    return twin


def _kept(module: nn.Module) -> dict[int, Any]:
    """The tensors of a module, for a copy of it that has the same ones."""
    return {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}


def spared(first_stage: FirstStage, work: Callable[[FirstStage], Tensor]) -> Tensor:
    """What `work` makes with a first stage; if memory runs out, it is tried once more with the tiled one."""
    try:
        return work(first_stage)
    except (MemoryError, RuntimeError) as error:
        again = tiled(first_stage)
        if again is first_stage or not out_of_memory(error):
            raise
    return work(again)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that there was no memory: on a GPU, or on the CPU, where torch has no type for it.

    oneDNN, which computes convolutions there, says no more than that it has no primitive.
    """
    said = "DefaultCPUAllocator" in str(error) or str(error) == "could not create a primitive"
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


class Streamed(nn.Module):
    """An encoder or a decoder that runs by strips."""

    def __init__(self, net: Encoder | Decoder, bounds: Bounds) -> None:
        super().__init__()
        self.net, self.bounds = net, bounds

    @property
    def conv_in(self) -> nn.Conv2d:
        """Of the network: its weights say in what it is computed."""
        return self.net.conv_in

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """As the network."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.cat([self._one(picture) for picture in x.split(1)])

    def _one(self, x: Tensor) -> Tensor:
        net, bounds = self.net, self.bounds
        limit = (2**26 if x.device.type == "cpu" else float("inf")) if bounds.map is None else bounds.map
        folded = net.patch if isinstance(net, Encoder) else 1
        height, width = x.shape[2] // folded, x.shape[3] // folded
        needed = scratch_bytes(net, height, width, limit=limit)
        with Scratch(limit, needed, bounds.folder) as scratch:
            run = _Run(scratch, bounds.strip, x.device)
            return _encoded(net, x, run) if isinstance(net, Encoder) else _decoded(net, x, run)


def scratch_bytes(net: Encoder | Decoder, height: int, width: int, *, limit: float) -> int:
    """The most bytes that are in files at a time, for a first feature map of this size."""
    item = net.conv_in.weight.dtype.itemsize

    def size(channels: int) -> int:
        whole = height * width * channels * item
        return whole if whole > limit else 0

    channels = net.conv_in.out_channels
    peak = now = size(channels)
    for layer in net.layers:
        match layer:
            case ResBlock():
                channels = layer.conv_out.out_channels
            case Downsample():
                height, width = height // 2, width // 2
            case Upsample():
                height, width = height * 2, width * 2
            case _:
                continue  # attention writes where it reads
        before, now = now, size(channels)
        peak = max(peak, before + now)
    return max(peak, now + size(net.conv_out.out_channels))


def _encoded(net: Encoder, image: Tensor, run: "_Run") -> Tensor:
    x = run.conv(FeatureMap.of(F.pixel_unshuffle(image, net.patch)), net.conv_in)
    x = run.conv(run.layers(x, net.layers), net.conv_out, norm=net.norm_out)
    out = net.quant_conv(x.whole().to(image.device))
    if net.linear is not None:
        mean, *logvar = out.split(net.linear.out_channels, dim=1)
        out = torch.cat([mean + net.linear(F.pixel_unshuffle(image, net.fold)), *logvar], dim=1)
    return out


def _decoded(net: Decoder, latent: Tensor, run: "_Run") -> Tensor:
    x = run.conv(FeatureMap.of(net.post_quant_conv(latent)), net.conv_in)
    x = run.conv(run.layers(x, net.layers), net.conv_out, norm=net.norm_out)
    out = F.pixel_shuffle(x.whole().to(latent.device), net.patch)
    return out if net.linear is None else out + F.pixel_shuffle(net.linear(latent), net.fold)


class _Run:
    """Layers on the feature maps of one picture. Rows (n, C, W) are on the CPU, strips (1, C, n, W) on the device."""

    def __init__(self, scratch: Scratch, memory: int, device: torch.device) -> None:
        self.scratch, self.memory, self.device = scratch, memory, device

    def layers(self, x: FeatureMap, layers: nn.Sequential) -> FeatureMap:
        """All of them, one after the other."""
        for layer in layers:
            match layer:
                case ResBlock():
                    x = self.block(x, layer)
                case PixelAttention():
                    self.attend(x, layer)
                case Downsample():
                    assert layer.padding == "end"
                    x = self.conv(x, layer.conv, resample="down")
                case Upsample():
                    x = self.conv(x, layer.conv, resample="up")
                case _:
                    raise AssertionError(f"a {type(layer).__name__} does not run by strips")
        return x

    def block(self, x: FeatureMap, block: ResBlock) -> FeatureMap:
        """Its two passes; the second writes over what the first has written."""
        assert block.resample == "none"
        assert block.emb is None
        h = self.conv(x, block.conv_in, norm=block.norm_in, keep=True)
        self.conv(h, block.conv_out, norm=block.norm_out, onto=lambda a, b: block.skip(self._strip(x.read(a, b))))
        self.scratch.release(x)
        return h

    def conv(
        self,
        x: FeatureMap,
        conv: nn.Conv2d,
        *,
        norm: nn.GroupNorm | None = None,
        resample: Resample = "none",
        onto: Callable[[int, int], Tensor] | None = None,
        keep: bool = False,
    ) -> FeatureMap:
        """The convolution of the map, of silu(norm(map)) with `norm`. The map is released, unless it is kept.

        With `onto`, strips that are added, it is written over: what comes out has its shape.
        """
        stride, halo = conv.stride[0], conv.kernel_size[0] // 2
        wrap = conv.padding_mode == "circular" and halo > 0
        scale = 2 if resample == "up" else 1
        area = scale**2 / stride**2  # numbers out for one in, of as many channels
        rows = self._rows(x, (2 + 3 * scale**2) * conv.in_channels + 5 * area * conv.out_channels, stride)
        affine = None if norm is None else _affine(norm, x, self.device)
        out = x
        if onto is None:
            height, width = (side * scale // stride for side in (x.height, x.width))
            out = self.scratch.new(height, conv.out_channels, width, x.dtype)
        else:
            x.rewritten()
        before = 0 if resample == "down" else halo
        for first, last, window, there in x.windows(rows, before=before, after=halo, wrap=wrap):
            around = window.to(self.device)
            if affine is not None:
                F.silu(_normed(around[there], affine), inplace=True)
            around[: there.start] = 0
            around[there.stop :] = 0
            strip = around.transpose(0, 1)[None]
            if resample == "up":
                strip = F.interpolate(strip, scale_factor=2.0, mode="nearest")[:, :, 1:-1]
            columns = (0, halo, 0, 0) if resample == "down" else (halo, halo, 0, 0)
            strip = F.pad(strip, columns, mode="circular" if wrap else "constant")
            y = F.conv2d(strip, conv.weight, conv.bias, stride)
            if onto is not None:
                y += onto(first, last)
            out.write(first * scale // stride, y[0].transpose(0, 1))
        if not keep and out is not x:
            self.scratch.release(x)
        return out

    def attend(self, x: FeatureMap, layer: PixelAttention) -> None:
        """Each position to all others; the map is written over."""
        affine = _affine(layer.norm, x, self.device)
        rows = self._rows(x, 12 * x.channels)
        split = (x.height * x.width, layer.heads, -1)

        def tokens(window: Tensor) -> Tensor:
            return _normed(window.to(self.device, copy=True), affine).transpose(1, 2).flatten(0, 1)  # (n * W, C)

        k, v = (torch.empty(x.height * x.width, x.channels, dtype=x.dtype, device=self.device) for _ in range(2))
        for first, last, window, _ in x.windows(rows):
            h, at = tokens(window), slice(first * x.width, last * x.width)
            k[at], v[at] = layer.to_k(h), layer.to_v(h)
        k, v = (t.view(split).transpose(0, 1)[None] for t in (k, v))  # (1, heads, H * W, d)
        x.rewritten()
        for first, _, window, _ in x.windows(rows):
            q = layer.to_q(tokens(window)).unflatten(-1, (layer.heads, -1)).transpose(0, 1)[None]
            seen = [F.scaled_dot_product_attention(part, k, v) for part in q.split(self._queries(k), dim=2)]
            out = layer.to_out(torch.cat(seen, dim=2)[0].transpose(0, 1).flatten(1))
            x.write(first, window.to(self.device) + out.unflatten(0, (-1, x.width)).transpose(1, 2))

    def _queries(self, k: Tensor) -> int:
        """How many attend at a time. A CPU's kernel keeps no scores, and likes many; another may keep all of them."""
        scores = k.shape[1] * k.shape[2] * max(4, k.dtype.itemsize)
        return 1024 if self.device.type == "cpu" else max(1, self.memory // (3 * scores))

    def _rows(self, x: FeatureMap, channels: float, multiple: int = 1) -> int:
        """The rows of a strip that takes so many channels of numbers, float32 at least."""
        rows = int(self.memory / (channels * x.width * max(4, x.dtype.itemsize)))
        return max(multiple, min(x.height, rows // multiple * multiple))

    def _strip(self, rows: Tensor) -> Tensor:
        return rows.to(self.device).transpose(0, 1)[None]


Affine = tuple[Tensor, Tensor]


def _affine(norm: nn.GroupNorm, x: FeatureMap, device: torch.device) -> Affine:
    """Scale and shift (C, 1) which the normalisation of the whole map is, in float32 at least, as torch has them."""
    mean, variance = x.moments.grouped(norm.num_groups)
    each = x.channels // norm.num_groups
    scale = norm.weight.cpu().double() * (variance + norm.eps).rsqrt().repeat_interleave(each)
    shift = norm.bias.cpu().double() - scale * mean.repeat_interleave(each)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return scale.to(device, dtype)[:, None], shift.to(device, dtype)[:, None]


def _normed(rows: Tensor, affine: Affine) -> Tensor:
    """The rows (n, C, W), changed, times scale plus shift, rounded once to their type."""
    scale, shift = affine
    return torch.addcmul(shift, rows, scale, out=rows)
