"""MobileNetV2 (Sandler et al. 2018): the small network whose pooled features compare pictures here."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
BLOCKS = (  # expansion, width, repeats, first stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv(channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; added to the input where the shapes agree."""

    def __init__(self, channels: int, out: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.adds = stride == 1 and channels == out
        widen = [_conv(channels, hidden, 1)] if expansion > 1 else []
        narrow = [nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.conv = nn.Sequential(*widen, _conv(hidden, hidden, 3, stride=stride, groups=hidden), *narrow)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H / stride, W / stride)."""
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """The network with torchvision's parameter names."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 32, 3, stride=2)]
        width = 32
        for expansion, out, repeats, stride in BLOCKS:
            for i in range(repeats):
                step = stride if i == 0 else 1
                layers.append(InvertedResidual(width, out, stride=step, expansion=expansion))
                width = out
        layers.append(_conv(width, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def pooled(self, image: Tensor, size: int = 224) -> Tensor:
        """Features (B, 1280) of pictures (B, 3, H, W) in [-1, 1], brought to `size` bilinearly."""
        x = F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return self.features(((x + 1) / 2 - self.mean) / self.std).mean((2, 3))

    def forward(self, image: Tensor) -> Tensor:
        """ImageNet's logits (B, 1000)."""
        return self.classifier(self.pooled(image))
