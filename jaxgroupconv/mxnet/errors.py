"""The one error of the MXNet face."""


class MXNetError(RuntimeError, ValueError):
    """A wrong call, symbol or shape, in MXNet's words.

    A `RuntimeError` because MXNet's own class is one, so that `except` clauses of ported scripts keep working; a `ValueError`
    because every complaint of this library about a value is one. MXNet's messages start with a place in its C++ sources; here
    only their final text is kept.
    """
