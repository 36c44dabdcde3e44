"""Laplace-LoRA: a Gaussian around a trained LoRA, and predictions that know what they do not know (2308.13111)."""

import torch

from .errors import PeftlabError
from .methods.reparameterized import LoRA


class Laplace:
    """δ ~ N(δ_MAP, (H + λ I)⁻¹), H ≈ Σ G ⊗ K for every A and B of a LoRA, each tensor by itself (Kronecker-factored)

    K is the mean outer product of what goes into a tensor, G the sum of those of the gradients of what comes out, for
    the Hessian of the cross-entropy (Gauss and Newton). batches: training batches with labels, walked through once.
    λ, the prior's precision, is the one under which `validation` (a batch) is likeliest; without it the one of the
    greatest evidence, which on few rows is too small. PeftlabError for deltas that are no LoRA.
    """

    def __init__(self, model, attached, batches, validation=None):
        self.model, self.deltas, self.factors, positions = model.eval(), attached.deltas, {}, 0
        if not self.deltas or any(type(d).forward is not LoRA.forward for d in self.deltas):
            raise PeftlabError("the Laplace approximation here is that of a LoRA; attach lora and train it first")
        for batch in batches:
            p = self.jacobians(batch)[0].softmax(1)
            root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]  # (b c c), r rᵀ = diag(p) - p pᵀ
            positions += int(self.mask.sum())
            for key, (ins, outs) in self.parts.items():
                outs = torch.einsum("bck,cbto->kbto", root, outs)
                K, G = self.factors.get(key, (0, 0))
                ins = ins[self.mask]
                self.factors[key] = K + ins.T @ ins, G + torch.einsum("kbto,kbtp->op", outs, outs)
        eigen = {key: (torch.linalg.eigh(K / positions), torch.linalg.eigh(G)) for key, (K, G) in self.factors.items()}
        self.bases = {key: (K.eigenvectors, G.eigenvectors) for key, (K, G) in eigen.items()}
        self.curvature = {key: (G.eigenvalues[:, None] * K.eigenvalues).clamp_min(0) for key, (K, G) in eigen.items()}
        tried = self.evidence if validation is None else lambda precision: self.likelihood(precision, validation)
        self.precision = max((10 ** (i / 2) for i in range(-8, 9)), key=tried)

    def evidence(self, precision):
        """log p(data | λ) up to what does not depend on λ: -½ λ‖δ‖² - ½ Σ log(1 + H/λ)."""
        weight = sum(float(getattr(d, name).detach().square().sum()) for d, name in self.curvature)
        bends = sum(float(torch.log1p(c / precision).sum()) for c in self.curvature.values())
        return -0.5 * (precision * weight + bends)

    def likelihood(self, precision, batch):
        """Mean log probability of a batch's labels under this λ."""
        self.precision = precision
        return float(self(batch).log().gather(1, batch["labels"][:, None]).mean())

    def jacobians(self, batch):
        """(logits (b c), {tensor: (inputs (b t in), gradients of every logit by its outputs (c b t out))})."""
        seen, handles = {}, []
        for d in self.deltas:
            handles.append(d.register_forward_hook(lambda d, args, y: seen.__setitem__(d, (args[0].detach(), y))))
        try:
            logits = self.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        finally:
            for h in handles:
                h.remove()
        ends = [y for _, y in seen.values()]
        each = [torch.autograd.grad(column.sum(), ends, retain_graph=True) for column in logits.unbind(1)]
        self.parts, self.mask = {}, batch["attention_mask"].bool()
        with torch.no_grad():
            for i, (d, (x, _)) in enumerate(seen.items()):
                dy = d.s * torch.stack([grads[i] for grads in each])
                both = {(d, "A"): (x, dy @ d.B), (d, "B"): (x @ d.A.T, dy)}
                self.parts |= {(d, n): part for (d, n), part in both.items() if getattr(d, n).requires_grad}
        return logits.detach(), self.parts

    def __call__(self, batch, samples=1000, seed=0):
        """Probabilities (b c): the mean softmax of logits drawn from N(f, J (H + λ I)⁻¹ Jᵀ)."""
        logits, parts = self.jacobians(batch)
        cov = 0
        for key, (ins, outs) in parts.items():
            K, G = self.bases[key]
            J = torch.einsum("cbto,bti->cboi", outs @ G, ins @ K)
            cov = cov + torch.einsum("cboi,dboi->bcd", J / (self.curvature[key] + self.precision), J)
        root = torch.linalg.cholesky(cov + 1e-6 * torch.eye(logits.shape[1]))
        noise = torch.randn(samples // 2, *logits.shape, generator=torch.Generator().manual_seed(seed))
        noise = torch.cat([noise, -noise])  # in pairs, so that of two classes the likelier one stays the likelier one
        return (logits + torch.einsum("bcd,sbd->sbc", root, noise)).softmax(2).mean(0)


def calibration_error(probabilities, labels, bins=10):
    """Σ over bins of confidence: share of the rows × |mean confidence - accuracy| (1706.04599 eq. 3)."""
    return reliability(probabilities, labels, bins)["error"]


def reliability(probabilities, labels, bins=10):
    """confidence, accuracy and share of the rows in every bin of confidence that has some; error and accuracy of all.

    probabilities (b c), labels (b). Columns are lists, `error` and `score` are numbers.
    """
    confidence, answers = probabilities.max(1)
    right, at = (answers == labels).float(), (confidence * bins).long().clamp_max(bins - 1)
    row = lambda here: torch.stack([confidence[here].mean(), right[here].mean(), here.float().mean()])
    columns = torch.stack([row(at == i) for i in at.unique()])
    error = float(((columns[:, 0] - columns[:, 1]).abs() * columns[:, 2]).sum())
    named = dict(zip(("confidence", "accuracy", "share"), columns.T.tolist(), strict=True))
    return named | dict(error=error, score=float(right.mean()))
