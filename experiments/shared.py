"""Where the golden figures, sample data and peers lie that tests, benchmarks and studies use.

They are no part of the repository, and nothing that a user runs needs them.
"""

import os
from pathlib import Path


def shared_folder() -> Path | None:
    """The folder in NFNETS_SHARED, or ``shared`` beside the repository; None if there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("NFNETS_SHARED", beside))
    return folder if folder.is_dir() else None
