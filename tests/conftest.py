"""What all tests share: hypothesis draws the same examples every time and does not watch the clock.

Where tests run in several processes, each has one thread: together they would have more than there are cores.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # said before torch is imported

from hypothesis import settings

settings.register_profile("sfumato", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("sfumato")
