"""Where programs that were compiled once are kept."""

import os
from pathlib import Path


def keep_programs() -> None:
    """Makes a restart as fast as it can be: what was compiled once is read from a file.

    It lies in the user's cache, or in ``JAX_COMPILATION_CACHE_DIR`` if that is set.
    """
    import jax  # Here, so that a command line that is wrong is refused at once.

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "nfnets_jax" / "xla"))
