"""The one exception that users are meant to read."""


class HyperLoRAError(ValueError):
    """Bad input or a missing piece: one sentence that names the thing, what is wrong, and the remedy.

    Nodes, Python and the command line all show the same text.
    """


class NoFaceError(HyperLoRAError):
    """A photo in which no face was found; a batch job may skip it and report it."""


class MissingPackageError(HyperLoRAError, ImportError):
    """An optional package that this step needs; the message holds the command that installs it."""
