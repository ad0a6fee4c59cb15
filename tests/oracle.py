"""Cross-entropy in float64 numpy: one row at a time, nothing shared with the package."""

import numpy as np


def log_softmax(z):
    z = np.asarray(z, np.float64)
    top = z.max(-1, keepdims=True)
    return z - top - np.log(np.exp(z - top).sum(-1, keepdims=True))


def rows(z, target):
    """−Σ_c target_c log softmax(z)_c a row; classes of target 0 are left out."""
    target = np.asarray(target, np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(target == 0, 0.0, -target * log_softmax(z)).sum(-1)


def rows_gradient(z, target):
    """∂/∂z: mass·softmax − target."""
    target = np.asarray(target, np.float64)
    return target.sum(-1, keepdims=True) * np.exp(log_softmax(z)) - target


def one_hot(y, classes):
    return (np.asarray(y)[..., None] == np.arange(classes)).astype(np.float64)


def head(hidden, weight, bias, target, row_weights, softcap=None):
    """(loss, ∂hidden, ∂weight, ∂bias, ∂row weights) of Σ wᵢ H(targetᵢ, softmax(hᵢ W + b)) / Σ wᵢ mᵢ, mᵢ the target's mass."""
    hidden, weight, bias, target, w = (np.asarray(a, np.float64) for a in (hidden, weight, bias, target, row_weights))
    raw = hidden @ weight + bias
    z = raw if softcap is None else softcap * np.tanh(raw / softcap)
    mass = (w * target.sum(-1)).sum()
    losses = rows(z, target)
    loss = (w * losses).sum() / mass
    g = rows_gradient(z, target) * w[:, None] / mass
    if softcap is not None:
        g = g * (1 - np.tanh(raw / softcap) ** 2)
    return loss, g @ weight.T, hidden.T @ g, g.sum(0), (losses - loss * target.sum(-1)) / mass
