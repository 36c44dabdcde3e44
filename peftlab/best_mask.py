"""Theorem 3 of Fu et al. (2211.15583) in numbers: the best of all masks, and the rules that should find it.

Quadratic models and a net of 12 parameters are small enough to try every mask. Rows are plain dicts;
`peftlab.choice_plots` draws them.
"""

import itertools

import numpy as np
import torch

from .errors import PeftlabError


def sets(m, k):
    """All sets of k out of m entries, ascending: (C k)."""
    if not 0 < k <= m:
        raise PeftlabError(f"a mask of {k} out of {m} entries does not exist; take k from 1 to {m}")
    return np.array([*itertools.combinations(range(m), k)])


def gains(g, H, masks):
    """½ g_Sᵀ (H_SS)⁻¹ g_S, by how much g·Δ + ½ ΔᵀHΔ falls at most when only the entries S move

    g (b m), H (b m m) positive definite, masks (C k) -> (b C). For diagonal H it is Σ g²/(2h). 2211.15583 eq. 4.
    """
    G, B = g[:, masks], H[:, masks[:, :, None], masks[:, None]]
    return (G * np.linalg.solve(B, G[..., None])[..., 0]).sum(-1) / 2


def judged(score, masks, gain):
    """(found, share), both (b): what the mask of the largest scores gets of the best gain, and if that is 99.9 %."""
    best = np.sort(np.argsort(-score, 1, kind="stable")[:, : masks.shape[1]])
    got = gain[np.arange(len(gain)), (masks == best[:, None]).all(-1).argmax(1)]
    share = got / gain.max(1)
    return share > 1 - 1e-3, share


def quadratic(spread=(0.0, 0.25, 0.5, 1.0, 1.5, 2.0), m=12, k=3, draws=100, seeds=range(5)):
    """max_M over all masks of k entries against the masks of the largest g²/h, the largest g², and a random one

    g ~ N(0, 1), h = 10^u, u uniform in ±spread; H = diag(h), or dense: √h C √h with C the correlations of a Wishart
    matrix of 2m degrees of freedom. Rows {spread, hessian, rule, seed, draws; found: share of the draws in which the
    rule has the best mask; share: of the gain of the best one, the mean}. 2211.15583 thm. 3.
    """
    rows, masks = [], sets(m, k)
    for s, seed in itertools.product(spread, seeds):
        rng = np.random.default_rng(seed)
        g, h, noise = rng.normal(size=(draws, m)), 10 ** rng.uniform(-s, s, (draws, m)), rng.random((draws, m))
        A = rng.normal(size=(draws, m, 2 * m))
        A *= (h**0.5 / np.linalg.norm(A, axis=2))[..., None]
        for hessian, H in dict(diagonal=h[..., None] * np.eye(m), dense=A @ A.mT).items():
            gain = gains(g, H, masks)
            for rule, score in {"g²/h": g**2 / h, "g²": g**2, "random": noise}.items():
                found, share = (float(v.mean()) for v in judged(score, masks, gain))
                rows.append(
                    dict(spread=s, hessian=hessian, rule=rule, seed=seed, draws=draws, found=found, share=share)
                )
    return rows


def outputs(W, x):
    """B tanh(A x + a) + b, a net 2 → 2 → 2 whose 12 parameters A, a, B, b lie end to end in W (… 12); x (… n 2)."""
    A, a, B, b = W[..., :4], W[..., 4:6], W[..., 6:10], W[..., 10:]
    hidden = torch.tanh(x @ A.unflatten(-1, (2, 2)).mT + a[..., None, :])
    return hidden @ B.unflatten(-1, (2, 2)).mT + b[..., None, :]


def squares(W, x, y):
    """½‖f(x) - y‖², the mean over the rows."""
    return (outputs(W, x) - y).square().sum(-1).mean(-1) / 2


def derivatives(loss, w):
    """(loss, gradient, Hessian) of many losses at once: w (… m), loss(w) (…) -> (…), (… m), (… m m)."""
    w = w.detach().requires_grad_()
    value = loss(w)
    (g,) = torch.autograd.grad(value.sum(), w, create_graph=True)
    H = [torch.autograd.grad(g[..., i].sum(), w, retain_graph=True)[0] for i in range(w.shape[-1])]
    return value.detach(), g.detach(), torch.stack(H, -1)


def tuned(W, x, y, masks, steps=16):
    """min over the entries of each mask of the loss, from W (s 12) on: (s C)

    By Newton's method with |H| + damping·I for H; a step that does not lower the loss is taken back and damped more.
    """
    free = torch.eye(W.shape[-1]).to(W)[torch.as_tensor(masks)]  # (C k 12): where the k numbers e go
    loss = lambda e: squares(W[:, None] + (e[..., None, :] @ free)[..., 0, :], x[:, None], y[:, None])
    e = torch.zeros(len(W), *masks.shape).to(W)
    damp = torch.full((*e.shape[:2], 1), 1e-3).to(W)
    for _ in range(steps):
        now, g, H = derivatives(loss, e)
        size, V = torch.linalg.eigh(H)
        tried = e - (V @ ((V.mT @ g[..., None])[..., 0] / (size.abs() + damp))[..., None])[..., 0]
        better = (loss(tried) < now)[..., None]
        e, damp = torch.where(better, tried, e), torch.where(better, damp / 5, damp * 5).clamp(1e-9, 1e9)
    return loss(e)


def net(shift=(0.03, 0.3, 1.0, 3.0), k=3, n=16, seeds=range(10)):
    """Theorem 3 on a net of 12 parameters, where neither H is diagonal nor the loss quadratic, against all masks

    The labels are those of a net with the weights θ⁰ + shift·u, ‖u‖ ≈ 1: for a small shift θ⁰ is near their minimum, as
    the theorem supposes. Exact gradient and Hessian; where the least eigenvalue of H is below a millionth of the
    largest, a multiple of I lifts it there. Rows {shift, hessian: "net", rule, seed; draws: 1; found, share: as in
    `quadratic`, by the loss when only the entries of the mask are trained}. The rule "model" is the best mask of the
    quadratic model, by trying all of them.
    """
    masks, seeds, rows = sets(12, k), list(seeds), []
    for s in shift:
        draws = [np.random.default_rng(seed) for seed in seeds]
        W, u, x, noise = (
            torch.tensor(np.array([rng.normal(size=size) for rng in draws])) for size in (12, 12, (n, 2), 12)
        )
        y = outputs(W + s * u / 12**0.5, x)
        before, g, H = (t.numpy() for t in derivatives(lambda w: squares(w, x, y), W))  # noqa: B023, called at once
        low, high = np.linalg.eigvalsh(H)[:, [0, -1]].T
        H = H + np.maximum(0, 1e-6 * high - low)[:, None, None] * np.eye(12)
        gain, model = before[:, None] - tuned(W, x, y, masks).numpy(), gains(g, H, masks)
        best = np.zeros_like(g)
        np.put_along_axis(best, masks[model.argmax(1)], 1.0, 1)
        diagonal = g**2 / np.diagonal(H, axis1=1, axis2=2)
        rules = {"model": best, "g²/h": diagonal, "g²": g**2, "|θ|": W.abs().numpy(), "random": noise.numpy()}
        for rule, score in rules.items():
            for seed, found, share in zip(seeds, *judged(score, masks, gain), strict=True):
                case = dict(shift=s, hessian="net", rule=rule, seed=seed)
                rows.append(case | dict(draws=1, found=float(found), share=float(share)))
    return rows
