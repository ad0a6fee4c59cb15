"""What a command says when it cannot go on."""


class CommandError(Exception):
    """Ends a command with its message and exit status 1."""
