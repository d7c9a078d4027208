"""Settings of the property tests."""

from __future__ import annotations

from hypothesis import settings

# No example is judged by the clock: a busy machine is no bug.
settings.register_profile("whisperd", deadline=None)
settings.load_profile("whisperd")
