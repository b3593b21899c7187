"""How a run ends that its agents could not go on with; without torch, for the commands."""

from raydist.config.experiment import one_line

SMALLER = (
    "write a smaller data.batch or model.width, or a larger share of a device for each agent in "
    "agent.gpus or agent.cpus"
)


class AgentError(RuntimeError):
    """An agent raised, or died once too often: says which one and why, in one line."""


class AgentDied(AgentError):
    """An agent is gone: the others can go on with another in its place."""

    def __init__(self, message: str, *agents: int) -> None:
        """Say which.

        Args:
            message: one line.
            *agents: all that its process had, by their numbers k; none if they are not known.
        """
        super().__init__(message)
        self.agents = agents


def whole(error: BaseException) -> str:
    """The kind of an error and its message, which may have several lines, as one line."""
    line = " ".join(str(error).split())
    return one_line(f"{type(error).__name__}: {line}".removesuffix(": "))


def raised(who: str, error: BaseException) -> AgentError:
    """What an agent's own code raised, as a run ends by it in either pool.

    Args:
        who: the agent, "" if it is not known.
        error: what it raised.

    Returns:
        The agent, the kind of error and its message; what to write if memory was short.
    """
    said = ": ".join(filter(None, [who, whole(error)]))
    short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if short or "t allocate memory" in said:
        said = f"an agent ran out of memory: {SMALLER} ({said})"
    return AgentError(said)
