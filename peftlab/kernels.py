"""Which library multiplies matrices on this CPU: oneDNN where MKL leaves half of the machine alone."""

import contextlib
import pathlib
import threading
import warnings

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# A compiled kernel stays for each shape. The usual 1,024 are 450 MB after a search over sizes, and no faster.
CACHES = dict(ONEDNN_PRIMITIVE_CACHE_CAPACITY="64", LRU_CACHE_CAPACITY="64")
SHORT = 128  # positions; longer texts keep fused attention, whose memory does not grow with their square


def flags():
    """What this CPU says of itself, where it does."""
    cpu = pathlib.Path("/proc/cpuinfo")
    return frozenset(cpu.read_text().split() if cpu.exists() else ())


def suits(flags):
    """Whether fp32 products are better sent to oneDNN. MKL has no AVX-512 for AMD's CPUs and takes twice as long there.

    torch gives oneDNN an fp32 product only with leave to round to bf16. oneDNN makes use of this leave on CPUs with
    AMX, so not there; on others it multiplies in fp32 all the same.
    """
    return {"AuthenticAMD", "avx512bw"} <= flags and not any(flag.startswith("amx") for flag in flags)


def halves(flags):
    """Whether bf16 products are taken to be faster than fp32: with AMX, with ARM's bf16, with AMD's AVX-512. Intel's
    AVX-512 alone is slower in bf16: 83 GFLOP/s a core there, 152 in fp32."""
    return bool({"amx_bf16", "bf16"} & flags) or {"AuthenticAMD", "avx512_bf16"} <= flags


ONEDNN, HALVES = suits(flags()), halves(flags())


@contextlib.contextmanager
def fast():
    """The faster library for the products within."""
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    if ONEDNN:
        products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


class Shared:
    """A switch of torch that is the whole process's: first in throws it, last out throws it back.

    Each thread for itself would restore what another one had set: a panel counts in a second thread while a run trains.
    """

    def __init__(self, switch):
        self.make, self.lock, self.within = switch, threading.Lock(), 0

    def __enter__(self):
        with self.lock:
            if not self.within:
                self.switch = self.make()
                self.switch.__enter__()
            self.within += 1

    def __exit__(self, *error):
        with self.lock:
            self.within -= 1
            if not self.within:
                self.switch.__exit__(None, None, None)


@contextlib.contextmanager
def asked():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch tells that this build knows no Intel GPU
        with torch.backends.mkldnn.flags(enabled=False):
            yield


UNFUSED, PLAIN = Shared(asked), Shared(lambda: sdpa_kernel(SDPBackend.MATH))


def unfused():
    """Without oneDNN's fused layers. A compiled pass has layers of its own, and cannot ask."""
    return contextlib.nullcontext() if torch.compiler.is_compiling() else UNFUSED


def attending(q):
    """How attention over q (b h t d) is computed: in plain steps when fused attention's many small products would
    each pay for a call of oneDNN, which takes longer than they do. A compiled pass has its choice built in."""
    if not (q.device.type == "cpu" and q.shape[2] < SHORT and ONEDNN):
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH) if torch.compiler.is_compiling() else PLAIN
