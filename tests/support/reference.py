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
