"""The one error a user of pyprune can cause: bad input, told in one line."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input. The message is one line: the value that was given and what is accepted.

    The command line prints it and exits with code 2.
    """


class MissingExtraError(InputError, ImportError):
    """A package that an extra of pyprune brings is not installed. The message says what to type."""


class NativeLibraryWarning(UserWarning):
    """The compiled kernels are missing, so the reference implementations run: the same results, slowly."""


class SlowTypeWarning(UserWarning):
    """A GGUF file has tensors that the `gguf` package dequantises: the same values, slowly."""
