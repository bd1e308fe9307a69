"""Settings that every test shares. They stand here because they must be set before Hugging Face libraries load."""

import os

from hypothesis import settings


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The models here are so small that threads cost more than they give; one thread also makes sums come out in the same
# order on every machine. Processes that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is not a failing property.
settings.register_profile("rlmec", deadline=None)
settings.load_profile("rlmec")
