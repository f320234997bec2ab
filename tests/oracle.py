"""Convolutions as their definitions say, in NumPy and in 64 bits: slow, obvious, and independent of XLA and of this library."""

import itertools

import numpy as np


def conv(
    lhs,
    rhs,
    *,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    dimension_numbers,
    feature_group_count=1,
    batch_group_count=1,
    **_,
):
    """What `lax.conv_general_dilated` means, in float64, complex128 or int64; takes lax's parameters."""
    x = wide(lhs).transpose(dimension_numbers.lhs_spec)  # batch, feature, *spatial
    w = wide(rhs).transpose(dimension_numbers.rhs_spec)  # out, in, *spatial
    groups, size, window = feature_group_count * batch_group_count, x.shape[2:], w.shape[2:]
    if batch_group_count > 1:
        x = x.reshape(groups, -1, *x.shape[1:]).swapaxes(0, 1)
    else:
        x = x.reshape(x.shape[0], groups, x.shape[1] // groups, *size)
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    dilated = [(s - 1) * d + 1 if s else 0 for s, d in zip(size, lhs_dilation, strict=True)]
    reach = [(k - 1) * d + 1 if k else 0 for k, d in zip(window, rhs_dilation, strict=True)]
    out_size = [
        max(0, (s + low + high - r) // stride + 1)
        for s, (low, high), r, stride in zip(dilated, padding, reach, window_strides, strict=True)
    ]
    out = np.zeros((x.shape[0], *w.shape[:2], *out_size), np.result_type(x, w))
    for p in itertools.product(*map(range, out_size)):
        for k in itertools.product(*map(range, window)):
            at = [
                pi * stride + ki * d - low
                for pi, ki, stride, d, (low, _) in zip(p, k, window_strides, rhs_dilation, padding, strict=True)
            ]
            if all(i % d == 0 and 0 <= i // d < s for i, d, s in zip(at, lhs_dilation, size, strict=True)):
                element = x[(..., *(i // d for i, d in zip(at, lhs_dilation, strict=True)))]
                out[(..., *p)] += np.einsum("ngc,goc->ngo", element, w[(..., *k)])
    out = out.reshape(out.shape[0], groups * w.shape[1], *out_size)
    return out.transpose(np.argsort(dimension_numbers.out_spec))


def conv_transpose(x, w, *, groups, stride, padding, output_padding, dilation):
    """A transposed convolution as a scatter: each input element adds the kernel, times itself, to the result.

    Channel-first: x (N, C, *s), w (C, O/G, *k); padding as (low, high) pairs, which are cut from the full result.
    """
    x, w = wide(x), wide(w)
    size, kernel = x.shape[2:], w.shape[2:]
    x = x.reshape(x.shape[0], groups, -1, *size)
    w = w.reshape(groups, -1, *w.shape[1:])
    full = [(s - 1) * st + d * (k - 1) + 1 for s, k, st, d in zip(size, kernel, stride, dilation, strict=True)]
    out = np.zeros((x.shape[0], groups, w.shape[2], *full))
    for p in itertools.product(*map(range, size)):
        for k in itertools.product(*map(range, kernel)):
            at = tuple(pi * st + ki * d for pi, ki, st, d in zip(p, k, stride, dilation, strict=True))
            out[(..., *at)] += np.einsum("ngc,gco->ngo", x[(..., *p)], w[(..., *k)])
    out = out.reshape(out.shape[0], -1, *full)
    for axis, ((low, high), extra) in enumerate(zip(padding, output_padding, strict=True), 2):
        zeros = [(0, 0)] * out.ndim
        zeros[axis] = (max(0, -low), max(0, extra - high))
        out = np.pad(out, zeros)
        out = np.take(out, range(max(0, low), out.shape[axis] - max(0, high - extra)), axis)
    return out


def wide(array):
    """The array in the widest dtype of its kind."""
    array = np.asarray(array)
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int64)
    return array.astype(np.complex128 if np.issubdtype(array.dtype, np.complexfloating) else np.float64)
