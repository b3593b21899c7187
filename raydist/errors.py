"""Errors that end a run or a command, told in one line. Free of torch, for the commands.

Whatever a message quotes, it is one printable line without passwords.
"""

import errno
import re

SMALLER = (
    "write a smaller data.batch or model.width, or a larger share of a device for each agent in "
    "agent.gpus or agent.cpus"
)
LONGEST = 800  # characters of a line
SECRETS = (  # in a URL: the password before its host, a key among its parameters
    r"(?<![\w+.-])([A-Za-z][\w+.-]*://[^/\s@:]*:)[^/\s]+(?=@)",
    r"(?i)([?&][\w-]*(?:sig|token|secret|key|password)=)[^&\s]+",
)
REMEDIES = {  # what a user can do where the machine cannot
    errno.ENOSPC: "make room (df shows bytes, df -i the number of files)",
    errno.EDQUOT: "make room within your quota",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
    errno.EIO: "look after the disk",
    errno.ESTALE: "look after the network's file system",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


class AgentError(RuntimeError):
    """An agent raised, or died once too often: says which one and why, in one line."""


class AgentDied(AgentError):
    """An agent is gone: the others can go on with another in its place."""

    def __init__(self, message: str, *agents: int) -> None:
        """Say which.

        Args:
            message: one line.
            *agents: the numbers k of all agents of its process; none if they are not known.
        """
        super().__init__(message)
        self.agents = agents


def whole(error: BaseException) -> str:
    """The kind of an error and its message, which may have several lines, as one line."""
    line = " ".join(str(error).split())
    return one_line(f"{type(error).__name__}: {line}".removesuffix(": "))


def raised(who: str, error: BaseException) -> AgentError:
    """The error that ends a run because of what an agent's own code raised, in either pool.

    Args:
        who: the agent, "" if it is not known.
        error: the exception that its code raised.

    Returns:
        The agent, the kind of error and its message; what to write if memory was short.
    """
    said = ": ".join(filter(None, [who, whole(error)]))
    short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if short or "t allocate memory" in said:
        said = f"an agent ran out of memory: {SMALLER} ({said})"
    return AgentError(said)


class MachineError(OSError):
    """A refusal of the machine, such as a full disk: one line with what, why and remedy."""

    def __init__(self, line: str) -> None:
        """Whatever the line quotes, it is one printable line."""
        super().__init__(one_line(line))

    @classmethod
    def of(cls, what: str, error: BaseException) -> "MachineError":
        """The error about what could not be done, with a remedy where the machine says why.

        Args:
            what: the failure in words, such as "/runs/one cannot be written".
            error: the machine's own error.

        Returns:
            The error to raise.
        """
        number = getattr(error, "errno", None)
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        remedy = REMEDIES.get(number or 0, "")
        return cls(f"{what}: {why}{remedy and f': {remedy}'}")


def machine_error(error: BaseException) -> MachineError | None:
    """The refusal of the machine that caused an error, in whatever it is wrapped.

    Args:
        error: any exception; Ray and Tune wrap those of others.

    Returns:
        The error in one line; None if the machine has nothing to do with it.
    """
    chain: list[BaseException] = []
    each: BaseException | None = None if isinstance(error, InputError) else error
    while each is not None and each not in chain:
        chain.append(each)
        each = getattr(each, "cause", None) or each.__cause__ or each.__context__
    for each in chain:
        if isinstance(each, MachineError):
            return each
    for each in chain:
        if isinstance(each, OSError) and each.errno in REMEDIES:
            name = each.filename or "a file"
            return MachineError.of(f"{name} cannot be written or read", each)
    return None


def printable(text: str) -> str:
    r"""Text that is not ours, as it may be shown and stored: no escapes, no passwords in URLs.

    Args:
        text: any text; its line breaks stay.

    Returns:
        The text with control characters spelled out and credentials as "***".

    Example:
        >>> printable("ftp://me:secret@host/runs \x1b[31m")
        'ftp://me:***@host/runs \\x1b[31m'
    """
    shown = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in masked(text))
    return "".join(shown)


def masked(text: str) -> str:
    """Text with "***" for each password in a URL; to be asked for before text is shortened."""
    for secret in SECRETS:
        text = re.sub(secret, r"\1***", text)
    return text


def one_line(text: str) -> str:
    """Text as one line of printable characters, and no long one."""
    text = masked(text)
    line = printable(text[:LONGEST]).replace("\n", "\\n")
    return line if len(text) <= LONGEST else f"{line[: LONGEST - 3]}..."


class InputError(ValueError):
    """Something that the user wrote is wrong: one line with value, expectation and remedy."""

    def __init__(self, line: str) -> None:
        """Whatever the line quotes, it is one printable line."""
        super().__init__(one_line(line))
