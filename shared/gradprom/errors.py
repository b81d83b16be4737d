"""The one exception that tells a user what to change."""

from __future__ import annotations


class InputError(ValueError):
    """A file, a configuration key or an argument that cannot be right.

    The message is one sentence that names the file or key, says what was found and what to do.
    """
