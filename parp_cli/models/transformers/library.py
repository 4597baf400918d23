"""The library itself, which is an extra and talks a lot."""

import importlib.util
from functools import cache
from typing import Any

from parp_cli.errors import UsageError


@cache
def library() -> Any:
    """transformers, with its progress bars and advice off.

    Raises UsageError where it is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UsageError("text encoders need transformers, which is not installed", hint="pip install 'parp-cli[nlp]'")
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers
