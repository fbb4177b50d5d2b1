"""An integer network one number at a time, in Python's own integers, from the equations in its documentation."""

import itertools

from adder_zoo.integer.steps import AveragePool, Lookup, MaxPool, Narrow, Weighted


def activations(network, image):
    """Every tensor by name, nested lists [H][W][C], from one image [H][W][C] of ints."""
    values = {"image": image}
    for step in network.steps:
        x = values[step.x.name]
        if isinstance(step, Weighted):
            weighted(step, x, values)
        elif isinstance(step, Lookup):
            values[step.narrow.name] = [
                [[int(step.table[c][level]) for c, level in enumerate(pixel)] for pixel in row] for row in x
            ]
        elif isinstance(step, MaxPool):
            values[step.narrow.name] = each(step.narrow, lambda p, q, c, step=step, x=x: largest(step, x, p, q, c))
        elif isinstance(step, AveragePool):
            totals = [sum(pixel[c] - step.zero_point for row in x for pixel in row) for c in range(step.x.shape[2])]
            values[step.narrow.name] = [[[level(total, step.rescale) for total in totals]]]
        else:
            assert isinstance(step, Narrow)
            values[step.narrow.name] = [[[level(v, step.rescale) for v in pixel] for pixel in row] for row in x]
    return values


def each(placed, value):
    H, W, C = placed.shape
    return [[[value(p, q, k) for k in range(C)] for q in range(W)] for p in range(H)]


def weighted(step, x, values):
    placed = step.wide or step.narrow
    wide = each(placed, lambda p, q, k: v_of(step, x, values, p, q, k))
    if step.wide is not None:
        values[step.wide.name] = wide
    if step.narrow is not None:
        values[step.narrow.name] = [[[level(v, step.rescale) for v in pixel] for pixel in row] for row in wide]


def v_of(step, x, values, p, q, k):
    weight, by = step.weight[k].tolist(), step.requantize
    a = 0
    for r, s in itertools.product(range(len(weight)), range(len(weight[0]))):
        i = p * step.stride[0] + r * step.dilation[0] - step.padding[0]
        j = q * step.stride[1] + s * step.dilation[1] - step.padding[2]
        inside = 0 <= i < len(x) and 0 <= j < len(x[0])
        pixel = x[i][j] if inside else step.pad.tolist()
        size, group = len(pixel) // step.groups, k // (len(step.weight) // step.groups)
        pixel = pixel[group * size : (group + 1) * size]
        for level_, w in zip(pixel, weight[r][s], strict=True):
            a += -abs(level_ - w) if step.kind == "distance" else level_ * w
    sum_ = int(by.multiplier[k]) * a + int(by.offset[k])
    assert -(2**31) <= int(by.multiplier[k]) * a < 2**31, "leaves int32"
    assert -(2**31) <= sum_ < 2**31, "leaves int32"
    v = sum_ // 2 ** int(by.shift[k])  # rounds down
    if step.shortcut is not None:
        v += values[step.shortcut.name][p][q][k]
    v = max(v, 0) if step.relu else v
    v = min(v, step.most) if step.most is not None else v
    narrow_alone = (
        step.wide is None and step.shortcut is None and (step.rescale.multiplier, step.rescale.shift) == (1, 0)
    )
    if narrow_alone or (step.wide is not None and step.wide.dtype == "int32"):
        return v
    return min(max(v, -(2**15)), 2**15 - 1)


def largest(step, x, p, q, c):
    top, left = p * step.stride[0] - step.padding[0], q * step.stride[1] - step.padding[2]
    rows = range(max(top, 0), min(top + step.kernel[0], len(x)))
    columns = range(max(left, 0), min(left + step.kernel[1], len(x[0])))
    return max(x[i][j][c] for i in rows for j in columns)


def level(v, by):
    half = 2**by.shift // 2
    scaled = (by.multiplier * v + half) // 2**by.shift
    return min(max(scaled + by.zero_point, 0), by.top)
