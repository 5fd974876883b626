"""What all tests share: hypothesis draws the same examples every time and does not watch the clock."""

from hypothesis import settings

settings.register_profile("sfumato", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("sfumato")
