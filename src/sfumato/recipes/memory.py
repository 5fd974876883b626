"""How much memory was in use at most since this was last asked: of the process, or of the accelerator."""

import contextlib
import re
import sys
from pathlib import Path

import torch

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Bytes beyond those in use when this was made; since then where the system does not let its mark be reset."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._reset()
        self._before = self._most()

    def taken(self) -> int:
        """The most that was in use since this was last asked."""
        most = self._most() - self._before
        self._reset()
        return max(0, most)

    def _most(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        with contextlib.suppress(OSError):
            if found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text()):
                return int(found[1]) * 1024
        import resource  # noqa: PLC0415  # not on every system

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):
            _REFS.write_text("5")  # the mark goes down to what is in use (man 5 proc)
