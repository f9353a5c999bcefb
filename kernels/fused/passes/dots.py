"""Matrix products on tensor cores without losing float32: operands are cut into parts that those multiply exactly."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def accumulate_dot(a, b, acc, A_SHORT: tl.constexpr, B_SHORT: tl.constexpr):
    """``acc + a @ b`` to float32 rounding.

    Tensor cores read ten bits of a float32 mantissa behind the leading one. An operand that was loaded from bfloat16 or
    float16 has no more than that (SHORT); any other is split into its leading bits and the rest, which brings the error
    to 2⁻²¹. Float64, which only the interpreter runs, is multiplied as it is.
    """
    if a.dtype == tl.float64:
        # Beside float64 weights the streams may be float32.
        b, acc = b.to(tl.float64), acc.to(tl.float64)
        return tl.dot(a, b, acc, input_precision="ieee", out_dtype=tl.float64)
    elif A_SHORT and B_SHORT:  # noqa: RET505
        return tl.dot(a, b, acc, input_precision="tf32")
    elif A_SHORT:
        high = _leading_bits(b)
        acc = tl.dot(a, b - high, acc, input_precision="tf32")
        return tl.dot(a, high, acc, input_precision="tf32")
    elif B_SHORT:
        high = _leading_bits(a)
        acc = tl.dot(a - high, b, acc, input_precision="tf32")
        return tl.dot(high, b, acc, input_precision="tf32")
    else:
        a_high, b_high = _leading_bits(a), _leading_bits(b)
        acc = tl.dot(a - a_high, b_high, acc, input_precision="tf32")
        acc = tl.dot(a_high, b - b_high, acc, input_precision="tf32")
        return tl.dot(a_high, b_high, acc, input_precision="tf32")


@triton.jit
def _leading_bits(x):
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
