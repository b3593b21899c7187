"""How a run ends that its agents could not go on with; without torch, for the commands."""


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
