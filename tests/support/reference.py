"""The slow, obvious version: all agents stacked as W of shape (K, M), in NumPy.

It judges the driver with the local pool, which judges the Ray pool. Nothing here is shared with
the package but the equations of arXiv:2509.11337.
"""

import numpy as np

from raydist.learning.data import load


def metropolis(adjacency):
    """A[l, k] = 1 / max(n_l, n_k) for neighbours, the rest on the diagonal; n counts the agent."""
    agents = len(adjacency)
    A = np.zeros((agents, agents))
    sizes = [1 + sum(row) for row in adjacency]
    for l in range(agents):
        for k in range(agents):
            if l != k and adjacency[l][k]:
                A[l, k] = 1 / max(sizes[l], sizes[k])
    for k in range(agents):
        A[k, k] = 1 - A[:, k].sum()
    return A


def ring(agents):
    return [
        [int((l - k) % agents in (1, agents - 1)) for k in range(agents)] for l in range(agents)
    ]


def star(agents):
    return [[int((l == 0) != (k == 0)) for k in range(agents)] for l in range(agents)]


def complete(agents):
    return [[int(l != k) for k in range(agents)] for l in range(agents)]


def round_of(strategy, A, W, gradients, lr):
    """One round of plain SGD, W and gradients of shape (K, M)."""
    if strategy == "centralized":
        return W - lr * gradients.mean(axis=0)
    phi = W - lr * gradients
    if strategy == "consensus":
        return A.T @ W - lr * gradients
    return A.T @ phi if strategy == "diffusion" else phi


def quadratic_gradients(W, samples, h, eps=0.0):
    """Mean gradient of max over |d| <= eps of 1/2 h (w - x - d)^2; samples (K, B, M), h (K, M)."""
    residual = W[:, None, :] - samples
    return (h[:, None, :] * (residual + eps * np.sign(residual))).mean(axis=1)


def excess_risk(W, centers, h):
    """Mean over agents of J(w_k) - J(w*), J the mean of the agents' quadratics."""
    minimiser = (h * centers).sum(axis=0) / h.sum(axis=0)
    return float((0.5 * h.mean(axis=0) * (W - minimiser) ** 2).sum(axis=1).mean())


def fixed_point(strategy, A, centers, h, lr):
    """Where exact gradients of (h/2) |w - c_k|^2 lead, scalar h, doubly stochastic A."""
    identity = np.eye(len(A))
    if strategy == "consensus":
        return np.linalg.solve((1 + lr * h) * identity - A.T, lr * h * centers)
    return np.linalg.solve(identity - (1 - lr * h) * A.T, lr * h * A.T @ centers)


def robust_accuracy(w, eps):
    """Of the model "linear" on all digits for test, by the closed form of its worst margins.

    Each pixel moves to the end of ball and box that lowers the margin between two classes.
    """
    x, y = load("digits").test
    x = x.reshape(len(x), 1, -1) / 16
    W = w[:-10].reshape(10, -1) / 0.3760  # the digits' standard deviation, and mean
    b = w[-10:] - 0.3053 * W.sum(axis=1)
    d = W[y][:, None] - W
    worst = np.where(d > 0, np.maximum(x - eps, 0), np.minimum(x + eps, 1))
    margins = (d * worst).sum(axis=-1) + b[y][:, None] - b
    margins[np.arange(len(y)), y] = np.inf
    return (margins.min(axis=1) > 0).mean()


def factors(strategy, A):
    """The matrix before the local step and the one after it."""
    eye, mean = np.eye(len(A)), np.full_like(A, 1 / len(A))
    return {
        "consensus": (A, eye),
        "diffusion": (eye, A),
        "centralized": (eye, mean),
        "local": (eye, eye),
    }[strategy]


def modal_excess_risk(strategy, A, hessian, gradients, noise, lr, batch, rounds):
    """The excess risk for a common Hessian, symmetric A and a start at w*, mode by mode.

    With H = U diag(θ_q) Uᵀ, A = V diag(λ_p) Vᵀ, the component d_pq of d and the variance r_pq of a
    sample's noise on mode (p, q):

        ER_n = (1/2K) Σ_pq θ_q μ² g_p² { d_pq² [Σ_{j<n} f^j]² + (r_pq/B) Σ_{j<n} f^{2j} }
        consensus: g_p = 1, f = λ_p − μ θ_q        diffusion: g_p = λ_p, f = λ_p (1 − μ θ_q)
    """
    before, after = factors(strategy, A)
    theta, U = np.linalg.eigh(hessian)
    V = np.linalg.eigh(before @ after)[1]  # one of the two is the identity
    first, g = (np.diag(V.T @ factor @ V)[:, None] for factor in (before, after))
    f = g * (first - lr * theta)
    mean = (V.T @ gradients @ U) ** 2
    variance = np.einsum("kp,iq,kij,jq->pq", V**2, U, noise, U) / batch

    def geometric(f, n):
        one = f == 1
        return np.where(one, n, (1 - f**n) / np.where(one, 1, 1 - f))

    def risk(n):
        if n == np.inf and np.abs(f).max() >= 1 - 1e-12:
            return np.inf
        terms = mean * geometric(f, n) ** 2 + variance * geometric(f**2, n)
        return float((theta * (lr * g) ** 2 * terms).sum()) / (2 * len(gradients))

    return np.array([risk(n) for n in rounds])


def leading_order(strategy, A, hessians, gradients, lr):
    """What heterogeneity adds to the centralized excess risk in the limit, as μ → 0.

    With e = μ (I − A)⁺ d (consensus) or μ A (I − A)⁺ d (diffusion), u = −H̄⁻¹ (1/K) Σ_k H_k e_k:

        ER_∞ − ER_∞(centralized) ≈ (1/2K) Σ_k e_kᵀ H̄ e_k + ½ uᵀ H̄ u = O(μ²)
    """
    Hbar, after = hessians.mean(axis=0), factors(strategy, A)[1]
    e = lr * after @ np.linalg.pinv(np.eye(len(A)) - A, hermitian=True) @ gradients
    u = -np.linalg.solve(Hbar, np.einsum("kij,kj->i", hessians, e) / len(A))
    return float(np.einsum("ki,ij,kj->", e, Hbar, e) / len(A) + u @ Hbar @ u) / 2
