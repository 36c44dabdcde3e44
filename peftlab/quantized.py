"""Weights in few bits, really packed: unpacked for every product, and bit for bit what they were when taken back."""

import tempfile

import torch
from torch import nn
from torch.nn import functional as F

from .errors import PeftlabError

BITS = (2, 4, 8)  # so many fit into a byte without a rest


def pack(codes, bits):
    """Numbers below 2^bits as bytes, the first one in the highest bits."""
    many = 8 // bits
    rows = F.pad(codes.flatten().to(torch.uint8), (0, -codes.numel() % many)).view(-1, many)
    return (rows << places(bits, codes.device)).sum(1, dtype=torch.uint8)


def unpack(packed, bits, shape):
    """Undo `pack`: the numbers in this shape."""
    rows = (packed[:, None] >> places(bits, packed.device)) & (2**bits - 1)
    return rows.flatten()[: shape.numel()].view(shape)


def places(bits, device):
    return torch.arange(8 - bits, -1, -bits, dtype=torch.uint8, device=device)


def normal_float(bits):
    """The 2^bits values of NF: quantiles of a Gaussian, 0 among them, the outermost at -1 and 1 (2305.14314 app. E)."""
    n = 2**bits
    last = 1 - (1 / n + 1 / (n - 1)) / 4
    side = lambda count: torch.special.ndtri(torch.linspace(0.5, last, count, dtype=torch.float64))
    values = torch.cat([-side(n // 2).flip(0), side(n // 2 + 1)[1:]])
    return (values / values.max()).float()


class NormalFloat(nn.Module):
    """Ŵ = c·NF[codes], c the largest |w| of 64 neighbours, itself kept in 8 bits: c = mean + c₁·c₂ (2305.14314 eq. 6).

    About bits + 0.13 bits a weight. `packed()` is Ŵ (out in).
    """

    block, blocks = 64, 256  # weights that share a constant c, constants that share a c₁

    def __init__(self, W, bits):
        super().__init__()
        self.bits, self.shape, self.dtype = checked(bits), W.shape, W.dtype
        rows = in_rows(W.detach().float(), self.block)
        largest = rows.abs().amax(1)
        values = normal_float(bits).to(W.device)
        scaled = rows / largest.clamp_min(1e-12)[:, None]
        codes = torch.bucketize(scaled, (values[1:] + values[:-1]) / 2)
        self.codes = nn.Parameter(pack(codes.flatten()[: W.numel()], bits), requires_grad=False)
        apart = in_rows(largest - largest.mean(), self.blocks)
        first = apart.abs().amax(1).clamp_min(1e-12) / torch.finfo(torch.float8_e4m3fn).max
        second = (apart / first[:, None]).to(torch.float8_e4m3fn)
        for name, t in dict(values=values, mean=largest.mean(), first=first, second=second).items():
            self.register_buffer(name, t)

    def constants(self):
        """c of every block, in fp32."""
        count = -(-self.shape.numel() // self.block)
        return (self.mean + self.first[:, None] * self.second.float()).flatten()[:count]

    def forward(self):
        if self.codes.is_cuda and self.bits == 4 and (kernels := bitsandbytes()):
            state = kernels.QuantState(self.constants(), self.shape, self.values, self.block, "nf4", self.dtype)
            return kernels.dequantize_4bit(self.codes[:, None], state)
        flat = self.values[unpack(self.codes, self.bits, self.shape).flatten().int()]
        rows = in_rows(flat, self.block) * self.constants()[:, None]
        return rows.flatten()[: flat.numel()].view(self.shape).to(self.dtype)


class Grouped(nn.Module):
    """Ŵ = s·(codes - z), with a scale s and a zero point z for every g neighbours of a row (2309.14717)."""

    def __init__(self, W, bits, g):
        super().__init__()
        self.bits, self.shape = checked(bits), W.shape
        rows = W.detach().unflatten(1, (-1, g))  # (out in/g g)
        low, high = rows.amin(2), rows.amax(2)
        s = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
        codes = ((rows - low[..., None]) / s[..., None]).round()
        self.codes = nn.Parameter(pack(codes, bits), requires_grad=False)
        self.register_buffer("s", s), self.register_buffer("z", -low / s)  # (out in/g)

    def forward(self):
        codes = unpack(self.codes, self.bits, self.shape).unflatten(1, (self.s.shape[1], -1))
        return (self.s[..., None] * (codes - self.z[..., None])).flatten(1)


class Packed(nn.Linear):
    """What a Linear becomes while its weight is packed in `packed`."""

    def forward(self, x):
        y = Product.apply(x, self.packed)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @property
    def weight(self):
        return self.packed()

    @property
    def hidden(self):
        """How many more weights there are than bytes that hold them."""
        return self.packed.shape.numel() - self.packed.codes.numel()


class Product(torch.autograd.Function):
    """y = x Ŵᵀ. Ŵ is unpacked once more on the way back, where autograd would have kept it."""

    @staticmethod
    def forward(ctx, x, packed):
        ctx.packed = packed
        return F.linear(x, packed().to(x.dtype))

    @staticmethod
    def backward(ctx, dy):
        return dy @ ctx.packed().to(dy.dtype), None


class Aside:
    """A parameter that waits in a temporary file, where it takes no memory."""

    def __init__(self, p):
        self.device, self.file = p.device, tempfile.TemporaryFile()
        torch.save(p.detach().cpu(), self.file)

    def __deepcopy__(self, memo):
        return self  # it is only ever read

    def back(self):
        self.file.seek(0)
        return nn.Parameter(torch.load(self.file).to(self.device), requires_grad=False)


def put(m, packed):
    """Pack the Linear `m`. PeftlabError when it is packed, or holds another delta that reads its weight."""
    if type(m) is not nn.Linear:
        raise PeftlabError(f"the weight at site {m.site} is packed or reparameterized already; quantise it first")
    del m.weight
    m.packed, m.__class__ = packed, Packed


def take(m, weight):
    """Undo `put`."""
    m.__class__ = nn.Linear
    del m.packed
    m.weight = weight


def in_rows(t, width):
    """Flat, with zeros to fill the last row of `width`."""
    return F.pad(t.flatten(), (0, -t.numel() % width)).view(-1, width)


def checked(bits):
    if bits not in BITS:
        raise PeftlabError(f"a weight can be packed in {', '.join(map(str, BITS))} bits, not in {bits}")
    return bits


def bitsandbytes():
    """Its kernels, when it is installed; they read the same bytes."""
    try:
        import bitsandbytes.functional as kernels
    except ImportError:
        return None
    return kernels
