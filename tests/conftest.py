"""Made-up cases are the same in every run, so that green stays green; ``HYPOTHESIS_PROFILE=thorough`` looks at more of them (as
continuous integration does), and ``HYPOTHESIS_PROFILE=explore`` makes up new ones.
How long a case takes is the machine's business, which may have other things to do."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("steady", max_examples=40, derandomize=True, database=None, deadline=None)
settings.register_profile("thorough", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
