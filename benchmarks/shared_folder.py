"""Finds the folder of golden figures, sample data and peers that tests and benchmarks read.

The folder is not part of the repository, and no user's command needs it.
"""

import os
from pathlib import Path


def shared_folder() -> Path | None:
    """Returns the folder in NFNETS_SHARED, or ``shared`` beside the repository; None if absent."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("NFNETS_SHARED", beside))
    return folder if folder.is_dir() else None
