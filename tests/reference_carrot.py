"""CARROT by the book: literal, slow, one loop per sum, float64. The graph and its attributions
first, the head after them.
"""

import math

import torch

# --- the graph
# ------------------------------------------------------------------------------------------------


def distance(a, b, metric="l2"):
    if metric == "cosine":
        return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    return math.sqrt(sum(float(x - y) ** 2 for x, y in zip(a, b)))


def weights(H, P, sigma_s, sigma_f, metric="l2"):
    """``W (m, m)`` of one image, entry by entry."""
    m = len(H)
    W = torch.empty(m, m, dtype=torch.double)
    for i in range(m):
        for j in range(m):
            place, feature = distance(P[i], P[j]), distance(H[i], H[j], metric)
            W[i, j] = (
                1.0
                if i == j
                else math.exp(-(place**2) / sigma_s**2) * math.exp(-(feature**2) / sigma_f**2)
            )
    return W


def laplacian(W):
    m = len(W)
    d = [sum(float(W[i, j]) for j in range(m)) for i in range(m)]
    L = torch.empty_like(W)
    for i in range(m):
        for j in range(m):
            L[i, j] = (i == j) - float(W[i, j]) / math.sqrt(d[i] * d[j])
    return L


def heat(L, t):
    """``exp(-tL)`` by its power series, after halving t until the series is short, and squaring
    back.
    """
    halvings = max(0, math.ceil(math.log2(max(t, 1e-9))) + 2)
    step, term, total = (
        -t / 2**halvings * L,
        torch.eye(len(L), dtype=L.dtype),
        torch.eye(len(L), dtype=L.dtype),
    )
    for k in range(1, 30):
        term = term @ step / k
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total


def embedding(kind, H, W, t, k=8):
    """``g`` of one image with tokens ``H (m, c)`` and weights ``W``, diffused and read out."""
    diffused, m = heat(laplacian(W), t) @ H, len(H)
    mean = sum(diffused[i] for i in range(m)) / m
    if kind == "mean":
        return mean
    if kind == "sum":
        return mean * m
    if kind == "degree":
        d = W.sum(1)
        return sum(d[i] * diffused[i] for i in range(m)) / sum(d)
    if kind == "topk":
        longest = sorted(range(m), key=lambda i: -float(diffused[i].norm()))[:k]
        return sum(diffused[i] for i in longest) / len(longest)
    largest = torch.stack([max(diffused[:, j]) for j in range(H.shape[1])])
    if kind == "max":
        return largest
    before = sum(H[i] for i in range(m)) / m
    second = {
        "mean_max": largest,
        "mean_var": sum((diffused[i] - mean) ** 2 for i in range(m)) / m,
        "residual": sum(diffused[i] - H[i] for i in range(m)) / m,
        "residual_abs": sum(abs(diffused[i] - H[i]) for i in range(m)) / m,
    }[kind]
    return torch.cat([before if kind.startswith("residual") else mean, second])


def removed(nodes, H, P, sigma_s, sigma_f, t, kind, W_star):
    """Logits ``(k,)`` of one image rebuilt without some nodes: tokens taken out, graph built again
    at the same bandwidths.
    """
    keep = [i for i in range(len(H)) if i not in nodes]
    return embedding(kind, H[keep], weights(H[keep], P[keep], sigma_s, sigma_f), t) @ W_star


def dirichlet(H, L):
    return float(torch.trace(H.T @ L @ H))
