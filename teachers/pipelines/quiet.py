"""Loading without the libraries' own bars and notices, which say nothing about what mfd is doing."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Has diffusers and transformers draw no progress bars inside the block, nor announce renamed arguments."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    drawn = [logging for logging in (of_diffusers, of_transformers) if logging.is_progress_bar_enabled()]  # type: ignore[attr-defined]
    for logging in drawn:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # older versions know only the old name of `dtype`, newer ones warn of it
            warnings.filterwarnings("ignore", message=".*torch_dtype.*deprecated", category=FutureWarning)
            yield
    finally:
        for logging in drawn:
            logging.enable_progress_bar()
