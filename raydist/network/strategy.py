"""The strategies by which agents learn together, as the equations of the papers.

With w_k the iterate of agent k before a round, φ_k the one after its own local step, and m_k what
it sends, every decentralised strategy is one line:

    w_k⁺ = Σ_l a_lk m_l + (φ_k − m_k)

    m = φ    diffusion (adapt, then combine)
    m = w    consensus (the gradient is taken at the agent's old own iterate)
    A = I    local (no cooperation)

centralized is one model and the mean gradient over all K·B samples: every agent sends its gradient,
averages all K of them and takes the same step. From a common start this equals diffusion with
A = 11ᵀ/K; consensus with that A is something else. (arXiv:2509.11337; Sayed, "Adaptation,
Learning, and Optimization over Networks", 2014, chapters 5 and 7.)

A strategy is a value of two facts, `sends` and `matrix`, which agents, the theory and the
configuration read here. Another one is another value, under a name in `STRATEGIES` or anyone's
"package.module:name":

    gossip_twice = Strategy(sends="phi", matrix=lambda A: A @ A)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from raydist.lookup import member, ours

if TYPE_CHECKING:  # a configuration is read and refused before NumPy is there
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def graph(A: "Array") -> "Array":
    """Take the graph's own matrix."""
    return A


def mean(A: "Array") -> "Array":
    """Take 11ᵀ/K: everybody hears everybody, equally."""
    import numpy as np

    return np.full(A.shape, 1.0 / len(A))


def alone(A: "Array") -> "Array":
    """Take the identity: nobody hears anybody."""
    import numpy as np

    return np.eye(len(A))


@dataclass(frozen=True)
class Strategy:
    """The rule by which agents learn together.

    Attributes:
        sends: the message m of an agent: "w", its iterate before the local step; "phi", the one
            after it; "gradient", the gradient at w, and then all step with the combined gradient.
        matrix: the matrix to combine with, given the graph's A; (K, K), columns sum to 1.
    """

    sends: Literal["w", "phi", "gradient"]
    matrix: Callable[["Array"], "Array"] = graph

    @property
    def steps_together(self) -> bool:
        """True if agents step with the combined gradient instead of each with its own."""
        return self.sends == "gradient"

    def factors(self, A: "Array") -> tuple["Array", "Array"]:
        """The matrices A_1 and A_2 of the recursion in `raydist.network.theory`."""
        eye, combined = alone(A), self.matrix(A)
        return (combined, eye) if self.sends == "w" else (eye, combined)

    def given(self) -> "Strategy":
        """The same strategy for a matrix to which `matrix` was applied before."""
        return replace(self, matrix=graph)


STRATEGIES = {
    "centralized": Strategy("gradient", mean),
    "consensus": Strategy("w"),
    "diffusion": Strategy("phi"),
    "local": Strategy("phi", alone),
}


def find(name: str) -> Strategy:
    """The strategy of a name.

    Args:
        name: a name in `STRATEGIES`, or "package.module:name" of anyone's.

    Returns:
        The strategy.

    Raises:
        ValueError: there is none of that name.
    """
    found = member(name) if ":" in name else ours(STRATEGIES, name, "strategy")
    if not isinstance(found, Strategy):
        kind = type(found).__name__
        raise ValueError(
            f'strategy "{name}" is of type {kind}, expected a raydist.network.strategy.Strategy'
        )
    return found
