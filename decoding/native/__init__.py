"""The forward pass as one compiled call, all layers in one team of threads. ``forward.cpp`` says what it does and why.

The source is compiled once a machine, by the compiler that is there, for the processor that is there, and kept in the
user's cache folder under the hash of source, compiler and processor. Without a compiler there is no native engine and
:class:`decoding.target.TargetModel` takes the eager one; which of the two ran is told as ``engine``.

The threads are those of torch: its OpenMP runtime is already loaded in the process, so the library is linked against
none of its own, and two teams never fight for the cores.

Example::

    if problem := why_not(config, dtype, device):
        ...                                                    # one line: no compiler, another device, an odd shape
    engine = NativeEngine(LlamaWeights.load(config, read, dtype, device, NativeLinear))
    hidden, logits = engine.forward(cache, tokens, positions, parents)
"""

from decoding.native.engine import NativeEngine, can_sum, sum_of, why_not
from decoding.native.layers import BLOCK, SCALE_BYTES, Int8Linear, NativeLinear

__all__ = ["BLOCK", "SCALE_BYTES", "Int8Linear", "NativeEngine", "NativeLinear", "can_sum", "sum_of", "why_not"]
