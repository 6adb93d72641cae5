"""The functions an update rule may call: elementwise ones, and reductions over a parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .expression import CONDITIONS, LINES, VOCABULARY, Expression, Level, RuleError, as_expression, asking, combine
from .slot import float_name

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
    "given",
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
    if like is None or like is asking.parameter:
        return Expression("stored", (x,)) if asking.held is None else asking.held(x)
    if not isinstance(like, Expression) or like.op != "slot" or like.level is not Level.ARRAY:
        raise RuleError(
            f"stored(x, like) takes the slot that holds x, an array read before it is written, not ({like})"
        )
    return Expression("stored", (x,), like.detail)


def given(name: str, scope: Literal["array", "all"] = "array") -> Expression:
    """What a step is given beside the gradients: ``optimizer.step(inputs={name: ...})``.

    Args:
        name: what it is called there.
        scope: ``"array"``: a mapping from every parameter to a tensor of its shape; ``"all"``: one number, such as the
            loss.
    """
    if scope not in ("array", "all"):
        raise RuleError(f"scope is 'array' (a tensor for each parameter) or 'all' (one number), not {scope!r}")
    if scope == "all":
        return Expression("input", detail=input_key(name), level=Level.REDUCED)
    return Expression("given", detail=name, level=Level.ARRAY)


def input_key(name: str) -> str:
    """What a number given to a step is called among the inputs of a Program."""
    return f"inputs[{name!r}]"


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
    what = "is a table: do it in the matrix() function" if level is Level.TABLE else what
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


@dataclass(frozen=True)
class Call:
    """What :func:`matrix` calls.

    Attributes:
        function: the function.
        matrices: how many of its operands are stacks; numbers follow.
        results: for each result None, if it is an array, or the slot whose shape it has.
        due: whether the last operand says if it is called.
        dtype: that of the stacks.
        block: the largest extent of a block.
    """

    function: Callable[..., Any]
    matrices: int
    results: tuple[str | None, ...]
    due: bool
    dtype: str | None
    block: int | None


def matrix(
    function: Callable[..., Any],
    x: Any,
    *operands: Any,
    dtype: Any = None,
    returns: Any = None,
    every: Any = None,
    block: Any = None,
) -> Any:
    """``function`` applied to whole matrices: a step between two fused passes.

    Args:
        function: maps stacks of matrices (and numbers, as floats) to stacks. An array is a stack of shape (n, rows,
            columns), n equally shaped matrices; a parameter of more than two dimensions is taken as (size(0),
            everything else). A table is a stack of its own shape. The function may overwrite what it is given.
        x: the first stack: an array, or a slot that is a :func:`table`.
        operands: more arrays and tables, then scalar expressions or plain numbers.
        dtype: the dtype of the stacks, such as ``"bfloat16"``; None means that of the arithmetic: float64 for float64
            parameters, float32 for all others.
        returns: what the results are like: ``x`` if left out; an array, a table, or several of them, such as
            ``(s.left, g)``, where the function returns a tuple.
        every: a number k: the function is called in the first of every k steps of a parameter only; or a condition on
            numbers that the host knows: it is called in those steps in which that holds. Its results are tables, named
            in ``returns`` as slots, and in between are what the slots hold.
        block: cut matrices into blocks of at most so many rows and columns, each with tables of its own
            (``table(..., block=)`` says the same): a number, or a hyperparameter, ``h.block``.

    Returns:
        An expression, or as many as ``returns`` has.
    """
    given = (as_expression(x), *map(as_expression, operands))
    stacks = 1
    while stacks < len(given) and given[stacks].level in (Level.ARRAY, Level.TABLE):
        stacks += 1
    for argument in given[stacks:]:
        if argument.level is not Level.SCALAR:
            raise RuleError(f"({argument}) is not a scalar: matrix() hands on numbers that the host knows")
    single = not isinstance(returns, (tuple, list))
    wanted = (given[0] if returns is None else returns,) if single else tuple(returns)
    results = tuple(map(_like, wanted))
    if every is not None:
        given = (*given, _due(every, wanted))
    call = Call(function, stacks, results, every is not None, float_name(dtype), _settled(block))
    called = Expression("matrix", given, call, Level.ARRAY)
    levels = (Level.ARRAY if slot is None else Level.TABLE for slot in results)
    parts = [
        Expression("part", (called,), (k, slot), level)
        for k, (slot, level) in enumerate(zip(results, levels, strict=True))
    ]
    return parts[0] if single else tuple(parts)


def _like(e: Any) -> str | None:
    """The slot of the shape that a result of a matrix function has; None for that of the parameter."""
    e = as_expression(e)
    if e.level is Level.TABLE:
        return str(e.detail if e.op == "slot" else e.detail[1])
    if e.level is Level.SCALAR:
        raise RuleError(f"returns= of matrix() says by arrays and tables what its results are like, not by ({e})")
    return None


def _settled(block: Any) -> int | None:
    """The largest extent of a block, which a hyperparameter may say."""
    if not isinstance(block, Expression):
        return None if block is None else int(block)
    if block.op != "hyper" or asking.settled is None:
        raise RuleError(f"block= of matrix() is a number or a hyperparameter, not ({block})")
    return int(asking.settled(block))


def _due(every: Any, wanted: Sequence[Any]) -> Expression:
    every = as_expression(every)
    if asking.due is None or every.level is not Level.SCALAR:
        raise RuleError(f"every= of matrix() is a number that the host knows, in a rule, not ({every})")
    for e in wanted:
        if e.level is not Level.TABLE or e.op != "slot":
            raise RuleError(
                f"what matrix(..., every=k) returns is kept in between: name slots that are tables, as they are before "
                f"they are written, in returns=, not ({e})"
            )
    return every if every.op in CONDITIONS else asking.due(every)
