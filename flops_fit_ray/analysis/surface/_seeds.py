"""Starting points: (E, A, B) in closed form on a table of (alpha, beta), and the best cell of every region."""

from __future__ import annotations

import numpy as np

from flops_fit_ray.analysis.arrays import Floats

TABLE = np.geomspace(0.03, 3.0, 40)
REGIONS = 3  # per axis: REGIONS² starts, spread over the whole table
MAX_POINTS = 500  # a starting point needs no more


def seeds(x: Floats, y: Floats, loss: Floats, alphas: Floats = TABLE, betas: Floats = TABLE) -> Floats:
    """Return starting points theta (starts, 5) = a, alpha, b, beta, e; x and y are ln N and ln D, centred.

    For every (alpha, beta), with u = exp(-alpha·x) and v = exp(-beta·y), E, A', B' minimise the relative squared error
    sum ((E + A'u + B'v) / L - 1)²: to first order the squared error of ln L.
    """
    if len(x) > MAX_POINTS:
        picked = np.linspace(0, len(x) - 1, MAX_POINTS).astype(int)
        order = np.argsort(loss, kind="stable")[picked]
        x, y, loss = x[order], y[order], loss[order]
    # 1) normal equations of the basis q, q·u, q·v (q = 1/L) for a right-hand side of ones
    q = 1 / loss
    u, v = np.exp(-np.outer(alphas, x)) * q, np.exp(-np.outer(betas, y)) * q
    rows, columns = len(alphas), len(betas)
    normal = np.empty((rows, columns, 3, 3))
    normal[..., 0, 0] = q @ q
    normal[..., 0, 1] = normal[..., 1, 0] = (u @ q)[:, None]
    normal[..., 0, 2] = normal[..., 2, 0] = (v @ q)[None, :]
    normal[..., 1, 1], normal[..., 2, 2] = np.sum(u * u, axis=1)[:, None], np.sum(v * v, axis=1)[None, :]
    normal[..., 1, 2] = normal[..., 2, 1] = u @ v.T
    right = np.empty((rows, columns, 3))
    right[..., 0], right[..., 1], right[..., 2] = q.sum(), u.sum(axis=1)[:, None], v.sum(axis=1)[None, :]
    # 2) E, A', B' and their error, n - c·right; a coefficient without a logarithm is penalised
    scale = 1 / np.sqrt(np.einsum("abii->abi", normal))
    scaled = normal * scale[..., :, None] * scale[..., None, :]
    c = np.linalg.solve(scaled + 1e-10 * np.eye(3), (right * scale)[..., None])[..., 0] * scale
    error = len(x) - np.einsum("abi,abi->ab", c, right) + 1e3 * (c <= 0).any(axis=-1)

    # 3) the best cell of every region
    starts = []
    for band in np.array_split(np.arange(rows), min(REGIONS, rows)):
        for strip in np.array_split(np.arange(columns), min(REGIONS, columns)):
            i, j = divmod(int(np.argmin(error[np.ix_(band, strip)])), len(strip))
            starts.append((band[i], strip[j]))
    i, j = np.array(starts).T
    floor = 1e-3 * float(np.median(loss))
    e, a, b = np.log(np.maximum(c[i, j], floor)).T
    return np.stack([a, alphas[i], b, betas[j], e], axis=1)
