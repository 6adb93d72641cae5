"""The functions an update rule may call: elementwise ones, and reductions over a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from .expression import LINES, VOCABULARY, Expression, Level, RuleError, as_expression, asking, combine
from .program import float_name

__all__ = [
    "abs",
    "atan2",
    "ceil",
    "clip",
    "cos",
    "eps",
    "erf",
    "exp",
    "floor",
    "isnan",
    "lerp",
    "log",
    "matrix",
    "max_abs",
    "maximum",
    "mean",
    "minimum",
    "ndim",
    "norm",
    "power",
    "round",
    "rsqrt",
    "sign",
    "sin",
    "size",
    "sqrt",
    "square",
    "stored",
    "sum",
    "tanh",
    "where",
]

VOCABULARY.update(__all__)

Scope = Literal["tensor", "channel", "all"]
Dim = Literal[-1, -2] | None


def sqrt(x: Any) -> Expression:
    """The square root of each element; NaN below zero."""
    return combine("sqrt", x)


def rsqrt(x: Any) -> Expression:
    """``1 / sqrt(x)`` of each element."""
    return 1 / sqrt(x)


def exp(x: Any) -> Expression:
    """e to the power of each element."""
    return combine("exp", x)


def log(x: Any) -> Expression:
    """The natural logarithm of each element."""
    return combine("log", x)


def tanh(x: Any) -> Expression:
    """The hyperbolic tangent of each element."""
    return combine("tanh", x)


def sin(x: Any) -> Expression:
    """The sine of each element, in radians."""
    return combine("sin", x)


def cos(x: Any) -> Expression:
    """The cosine of each element, in radians."""
    return combine("cos", x)


def floor(x: Any) -> Expression:
    """The largest whole number not above each element."""
    return combine("floor", x)


def ceil(x: Any) -> Expression:
    """The smallest whole number not below each element."""
    return combine("ceil", x)


def atan2(y: Any, x: Any) -> Expression:
    """The angle of each point ``(x, y)``, in radians from -pi to pi, as :func:`torch.atan2`."""
    return combine("atan2", y, x)


def erf(x: Any) -> Expression:
    """The error function of each element, as :func:`torch.erf`."""
    return combine("erf", x)


def round(x: Any) -> Expression:
    """The nearest whole number to each element, of two equally near the even one, as :func:`torch.round`."""
    return combine("round", x)


def abs(x: Any) -> Expression:
    """The absolute value of each element."""
    return combine("abs", x)


def sign(x: Any) -> Expression:
    """-1, 0 or 1 for each element, as :func:`torch.sign` (0 for NaN)."""
    return combine("sign", x)


def square(x: Any) -> Expression:
    """``x * x`` for each element."""
    return combine("mul", x, x)


def power(x: Any, exponent: Any) -> Expression:
    """``x ** exponent`` for each element."""
    return combine("pow", x, exponent)


def minimum(a: Any, b: Any) -> Expression:
    """The smaller of each two elements; NaN if either is, as :func:`torch.minimum`."""
    return combine("minimum", a, b)


def maximum(a: Any, b: Any) -> Expression:
    """The larger of each two elements; NaN if either is, as :func:`torch.maximum`."""
    return combine("maximum", a, b)


def clip(x: Any, low: Any = None, high: Any = None) -> Expression:
    """Each element brought into ``[low, high]``; a bound that is None does not bind."""
    x = x if low is None else maximum(x, low)
    return x if high is None else minimum(x, high)


def isnan(x: Any) -> Expression:
    """Whether each element is NaN, as a condition for :func:`where`."""
    return combine("isnan", x)


def where(condition: Any, a: Any, b: Any) -> Expression:
    """``a`` where the condition holds, else ``b``; a NaN in the value not taken does no harm."""
    return combine("where", condition, a, b)


def lerp(start: Any, end: Any, weight: Any) -> Expression:
    """``start + weight * (end - start)`` for each element: the running mean of most optimizers."""
    return combine("add", start, weight * (end - start))


def stored(x: Any, like: Expression | None = None) -> Expression:
    """A value as it will be held: rounded to the dtype that it is kept in, as what is computed next will find it.

    Args:
        x: an array, or a scalar as a slot of one number holds it: of float32, unless torch's default dtype is float64.
        like: of an array, the slot (``s.name``, read before it is written) that holds it; None means the parameter.
    """
    x = as_expression(x)
    if x.level is Level.SCALAR and like is None:
        return combine("stored", x)
    if x.level is not Level.ARRAY:
        raise RuleError(f"stored() is for arrays, and for the numbers that the host computes; ({x}) is neither")
    if like is None or like.op == "param":
        return Expression("stored", (x,))
    if not isinstance(like, Expression) or like.op != "slot" or like.level is not Level.ARRAY:
        raise RuleError(
            f"stored(x, like) takes the slot that holds x, an array read before it is written, not ({like})"
        )
    return Expression("stored", (x,), like.detail)


def size(p: Expression, dim: int | None = None) -> Expression:
    """The number of elements of the parameter, or its extent along ``dim``: a scalar.

    ``p`` is the parameter or any array, such as a slot: all have its shape.
    """
    _refuse_all_but_arrays(p, "size", "size(p) or size(p, dim)")
    return Expression("size", detail=dim)


def eps(p: Expression) -> Expression:
    """The rounding unit of the parameter's dtype, as ``torch.finfo(p.dtype).eps``: a scalar."""
    _refuse_all_but_arrays(p, "eps", "eps(p)")
    return Expression("size", detail="eps")


def ndim(p: Expression) -> int:
    """How many dimensions the parameter has: a plain number, which ``if`` may ask (``if ndim(p) > 1:``)."""
    _refuse_all_but_arrays(p, "ndim", "ndim(p)")
    if asking.ndim is None:
        raise RuleError("ndim(p) is known only while a rule is traced")
    return asking.ndim()


def _refuse_all_but_arrays(p: Any, name: str, instead: str) -> None:
    if not isinstance(p, Expression) or p.level is not Level.ARRAY:
        raise RuleError(f"{name}() is a property of the parameter, or of an array of its shape: write {instead}")


LEFT: dict[tuple[Level, Any], Level] = {
    (Level.ARRAY, -1): Level.ROW,
    (Level.ARRAY, -2): Level.COLUMN,
    (Level.ROW, -2): Level.MATRIX,
    (Level.COLUMN, -1): Level.MATRIX,
}
"""What is left of a level by a reduction over a dimension."""

SCOPES = "'tensor' (this parameter), 'channel' (each index of its first dimension) or 'all' (every parameter)"


def _reduce(called: str, kind: str, x: Expression, scope: Scope, dim: Dim) -> Expression:
    if scope not in ("tensor", "channel", "all"):
        raise RuleError(f"scope is {SCOPES}, not {scope!r}")
    level: Any = getattr(x, "level", None)
    what = "has been reduced over a dimension already" if level in LINES else "is a single number"
    if dim is None:
        if level is not Level.ARRAY:
            raise RuleError(f"{called}() reduces an array, but ({x}) {what}")
        if scope != "channel":
            return Expression("reduce", (x,), (kind, scope), Level.REDUCED)
        rows = Expression("reduce", (x,), (kind, -1), Level.ROW)
        return Expression("reduce", (rows,), ("max_abs" if kind == "max_abs" else "sum", scope), Level.CHANNEL)
    if dim not in (-1, -2) or scope != "tensor":
        raise RuleError(
            f"{called}() over a dimension takes dim=-1 (over each row) or dim=-2 (over each column) of one parameter, "
            f"not dim={dim!r} with scope={scope!r}"
        )
    if (level, dim) not in LEFT:
        what = "has been reduced over that dimension already" if level in LINES else what
        raise RuleError(f"{called}() over dim={dim} reduces an array, but ({x}) {what}")
    return Expression("reduce", (x,), (kind, dim), LEFT[level, dim])


def sum(x: Expression, scope: Scope = "tensor", *, dim: Dim = None) -> Expression:
    """The sum over the parameter's elements, or over those of every parameter, or of a part of it.

    Added up in float64 in a fixed order: the same bits for any number of threads.

    Args:
        x: an array.
        scope: ``"tensor"``; ``"all"``, every parameter; or ``"channel"``: for each index of the first dimension, over
            all others, which is each row of the matrix that :func:`matrix` takes a convolution for.
        dim: -1 sums each row, and -2 each column, of the matrices that the last two dimensions are; the result
            counts as an array of which all elements of a row, or of a column, are the same.
    """
    return _reduce("sum", "sum", x, scope, dim)


def norm(x: Expression, scope: Scope = "tensor", *, dim: Dim = None) -> Expression:
    """The Euclidean norm over the parameter's elements, or over those that :func:`sum` sums."""
    return sqrt(_reduce("norm", "sum_of_squares", x, scope, dim))


def mean(x: Expression, scope: Scope = "tensor", *, dim: Dim = None) -> Expression:
    """The mean over the parameter's elements, or over those that :func:`sum` sums."""
    total = _reduce("mean", "sum", x, scope, dim)
    if scope == "all":
        return total / sum(Expression("constant", detail=1.0, level=Level.ARRAY), scope)
    if scope == "channel":
        return total / (Expression("size") / Expression("size", detail=0))
    return total / Expression("size", detail=dim)


def max_abs(x: Expression, scope: Scope = "tensor", *, dim: Dim = None) -> Expression:
    """The largest absolute value among the parameter's elements, or among those that :func:`sum` sums."""
    return _reduce("max_abs", "max_abs", x, scope, dim)


def matrix(function: Callable[..., Any], x: Expression, *numbers: Any, dtype: Any = None) -> Expression:
    """``function`` applied to the array as a whole matrix: a step between two fused passes.

    Args:
        function: maps a stack of equally shaped matrices, a tensor of shape (n, rows, columns) (and the
            ``numbers``, as floats), to a stack of that shape. A parameter of more than two dimensions is taken as
            (size(0), everything else).
        x: what the function is given.
        numbers: scalar expressions or plain numbers handed on to ``function``.
        dtype: the dtype of the stack, such as ``"bfloat16"``; None means that of the arithmetic.
    """
    arguments = tuple(map(as_expression, numbers))
    for argument in arguments:
        if argument.level is not Level.SCALAR:
            raise RuleError(f"({argument}) is not a scalar: matrix() hands on numbers that the host knows")
    return Expression("matrix", (as_expression(x), *arguments), (function, float_name(dtype)), Level.ARRAY)
