"""What every test starts from: no network, quiet libraries, fixed seeds, the repository's root on the import path."""

import os
import random
import sys
from pathlib import Path

# Read by the libraries when they are first imported, so set before that.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# float32 is float32, or nothing agrees to six digits: a user may have allowed oneDNN to multiply in bfloat16.
os.environ["ONEDNN_DEFAULT_FPMATH_MODE"] = "STRICT"

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# The models are tiny: a second thread wins nothing, and on a busy machine waiting for it costs a hundredfold.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """A test gives the same numbers alone, in the whole suite and in any order."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
