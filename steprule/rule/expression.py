"""Scalar and array expressions: what the arguments of an update rule are while it is traced."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from enum import IntEnum
from typing import Any, NoReturn

__all__ = [
    "CONDITIONS",
    "LINES",
    "Expression",
    "Level",
    "Operand",
    "RuleError",
    "as_expression",
    "asking",
    "joint",
    "ordered",
    "signed",
]

Operand = "Expression | float | int | bool"


class RuleError(TypeError):
    """An update rule says something that the language of rules has no meaning for."""


class Level(IntEnum):
    """How often an expression has a value: what it is made of decides, the highest level wins."""

    SCALAR = 0
    """One number for each tensor and step, computed on the host in double precision before the launch."""
    REDUCED = 1
    """One number for each tensor, known only after a reduction over an array."""
    MATRIX = 2
    """One number for each matrix: what reductions over both of its dimensions leave."""
    CHANNEL = 3
    """One number for each index of the first dimension: what a reduction with ``scope="channel"`` leaves."""
    ROW = 4
    """One number for each row of each matrix: what a reduction over ``dim=-1`` leaves."""
    COLUMN = 5
    """One number for each column of each matrix: what a reduction over ``dim=-2`` leaves."""
    ARRAY = 6
    """One number for each element of the parameter."""
    TABLE = 7
    """A matrix of another shape than the parameter's, for functions of whole matrices alone."""


def signed(value: Any) -> Any:
    """A value of an expression, such that two are equal only if they are the same to the bit: -0.0 is not 0.0."""
    return (value, math.copysign(1.0, value)) if isinstance(value, float) and value == 0.0 else value


LINES = frozenset({Level.MATRIX, Level.CHANNEL, Level.ROW, Level.COLUMN})


def joint(levels: Iterable[Level]) -> Level:
    """How often a value is computed that is made of such: rows with columns make an array."""
    found = set(levels)
    if Level.COLUMN in found and (Level.ROW in found or Level.CHANNEL in found):
        return Level.ARRAY
    if Level.ROW not in found and found >= {Level.MATRIX, Level.CHANNEL}:
        return max(Level.ROW, *found)
    return max(found, default=Level.SCALAR)


class _Asking(threading.local):
    answer: Callable[[Expression], bool] | None = None
    ndim: Callable[[], int] | None = None
    draw: Callable[[], tuple[Expression, Expression, int]] | None = None
    """The seed, the step, and how many random numbers were drawn before."""
    due: Callable[[Any], Expression] | None = None
    """Whether work is due that is done in every k-th step."""
    settled: Callable[[Expression], Any] | None = None
    """What a hyperparameter is, on which the Program then depends."""
    held: Callable[[Expression], Expression] | None = None
    """A value as the parameter will hold it; None where that is what its dtype says."""
    parameter: Expression | None = None
    """The parameter as the rule sees it."""


asking: _Asking = _Asking()
"""Answers ``if`` questions of the rule that is being traced in this thread, and records them."""

PRECEDENCE = {"or": 1, "and": 2, "not": 3, "lt": 4, "le": 4, "gt": 4, "ge": 4, "eq": 4, "ne": 4}
PRECEDENCE |= {"add": 5, "sub": 5, "mul": 6, "div": 6, "mod": 6, "neg": 7, "pow": 8}
SYMBOL = {"or": "or", "and": "and", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
SYMBOL |= {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%", "pow": "**"}
COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
NOT_LEFT = COMPARISONS | {"pow"}
"""Operators of which a first operand of the same rank needs parentheses."""
CONDITIONS = COMPARISONS | {"and", "or", "not", "isnan", "is_new"}


NO_ELEMENTS = (
    "where(condition, a, b) for some elements, sum(x, dim=-1) and the like for rows and columns, matrix(function, x) "
    "for whole matrices; a tuple among the hyperparameters is unpacked (beta1, beta2 = h.betas)"
)
"""What to do in place of taking an element of an array."""


class Expression:
    """A value of an update rule, known by how it is computed.

    Expressions are made by tracing a rule and combined with ``+ - * / ** %``, comparisons (for
    :func:`steprule.rule.where`), ``& | ~`` on comparisons, and the functions of :mod:`steprule.rule`.
    """

    __slots__ = ("args", "detail", "level", "op", "varies")
    op: str
    args: tuple[Expression, ...]
    detail: Any
    level: Level
    varies: bool
    """Whether the value differs between tensors or steps under the same hyperparameters."""
    __array_ufunc__: Any

    def __init__(
        self, op: str, args: tuple[Expression, ...] = (), detail: Hashable = None, level: Level | None = None
    ) -> None:
        self.op = op
        self.args = args
        self.detail = detail
        self.level = joint(a.level for a in args) if level is None else level
        self.varies = op in ("step", "is_new", "slot", "size") or any(a.varies for a in args)

    def __add__(self, other: Any) -> Expression:
        return combine("add", self, other)

    def __radd__(self, other: Any) -> Expression:
        return combine("add", other, self)

    def __sub__(self, other: Any) -> Expression:
        return combine("sub", self, other)

    def __rsub__(self, other: Any) -> Expression:
        return combine("sub", other, self)

    def __mul__(self, other: Any) -> Expression:
        return combine("mul", self, other)

    def __rmul__(self, other: Any) -> Expression:
        return combine("mul", other, self)

    def __truediv__(self, other: Any) -> Expression:
        return combine("div", self, other)

    def __rtruediv__(self, other: Any) -> Expression:
        return combine("div", other, self)

    def __pow__(self, other: Any) -> Expression:
        return combine("pow", self, other)

    def __rpow__(self, other: Any) -> Expression:
        return combine("pow", other, self)

    def __mod__(self, other: Any) -> Expression:
        return combine("mod", self, other)

    def __rmod__(self, other: Any) -> Expression:
        return combine("mod", other, self)

    def __neg__(self) -> Expression:
        return combine("neg", self)

    def __pos__(self) -> Expression:
        return self

    def __abs__(self) -> Expression:
        return combine("abs", self)

    def __lt__(self, other: Any) -> Expression:
        return combine("lt", self, other)

    def __le__(self, other: Any) -> Expression:
        return combine("le", self, other)

    def __gt__(self, other: Any) -> Expression:
        return combine("gt", self, other)

    def __ge__(self, other: Any) -> Expression:
        return combine("ge", self, other)

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return combine("eq", self, other)

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        return combine("ne", self, other)

    def __hash__(self) -> int:
        return id(self)

    def __and__(self, other: Any) -> Expression:
        return combine("and", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Expression:
        return combine("or", self, other)

    __ror__ = __or__

    def __invert__(self) -> Expression:
        return combine("not", self)

    def __bool__(self) -> bool:
        return self._holds(self)

    def _holds(self, asked: Expression) -> bool:
        """Whether it is not zero, which is what ``asked`` asks."""
        if self.op == "constant":
            return bool(self.detail)
        if self.op in ("eq", "ne"):
            zero = [a.op == "constant" and a.detail == 0 for a in self.args]
            if any(zero):
                return self.args[zero.index(True) - 1]._holds(asked) == (self.op == "ne")
        if self.level is not Level.SCALAR or self.op in CONDITIONS or self.varies:
            raise RuleError(
                f"an update rule can't decide by `if` whether ({asked}) holds: the rule runs once, on symbols. "
                "Use where(condition, a, b); `if` may only ask a flag, or whether a hyperparameter is zero"
            )
        if asking.answer is None:
            raise RuleError(f"({self}) has no truth value outside of a rule's tracing")
        return asking.answer(self)

    def _not_a_number(self, called: str, instead: str) -> NoReturn:
        raise RuleError(f"{called} does not apply to ({self}), a symbol of an update rule; use {instead}")

    def __matmul__(self, other: Any) -> NoReturn:
        self._not_a_number("@", "matrix(function, x), whose function gets whole matrices, or sum(a * b) for a product")

    __rmatmul__ = __matmul__

    def __getitem__(self, key: Any) -> NoReturn:
        self._not_a_number("[...]", NO_ELEMENTS)

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        self._not_a_number("[...] =", NO_ELEMENTS)

    def __contains__(self, item: Any) -> NoReturn:
        self._not_a_number("in", "where(condition, a, b)")

    def __floordiv__(self, other: Any) -> NoReturn:
        self._not_a_number("//", "floor(a / b)")

    __rfloordiv__ = __floordiv__

    def __divmod__(self, other: Any) -> NoReturn:
        self._not_a_number("divmod()", "floor(a / b) and a % b")

    __rdivmod__ = __divmod__

    def __xor__(self, other: Any) -> NoReturn:
        self._not_a_number("^", "** for a power, != for one of two conditions")

    __rxor__ = __xor__

    def __lshift__(self, other: Any) -> NoReturn:
        self._not_a_number("<< or >>", "* or / with a power of two")

    __rlshift__ = __lshift__
    __rshift__ = __lshift__
    __rrshift__ = __lshift__

    def __round__(self, digits: Any = None) -> NoReturn:
        self._not_a_number("the built-in round()", "round(x) from steprule.rule")

    def __trunc__(self) -> NoReturn:
        self._not_a_number("math.trunc()", "floor(x) from steprule.rule")

    def __floor__(self) -> NoReturn:
        self._not_a_number("math.floor()", "floor(x) from steprule.rule")

    def __ceil__(self) -> NoReturn:
        self._not_a_number("math.ceil()", "ceil(x) from steprule.rule")

    def __complex__(self) -> NoReturn:
        self._not_a_number("complex()", "the parameter as it is: a complex one is computed as its real view")

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._not_a_number("a call", "* for a product")

    def __float__(self) -> float:
        self._not_a_number("float() or a function of math", "the function of that name from steprule.rule")

    def __int__(self) -> int:
        self._not_a_number("int()", "floor(x) from steprule.rule")

    def __index__(self) -> int:
        self._not_a_number("range() or an index", "a number from outside, such as an attribute of the optimizer")

    def __iter__(self) -> NoReturn:
        self._not_a_number("iteration", "sum(x) or norm(x) from steprule.rule")

    def __len__(self) -> int:
        self._not_a_number("len()", "size(p) from steprule.rule")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what consoles and debuggers ask
            raise AttributeError(name)
        raise RuleError(
            f"({self}) is a symbol of an update rule and has no .{name}; {instead(name.rstrip('_'))} "
            "(rules return new values, they change nothing in place)"
        )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> NoReturn:
        name = getattr(func, "__name__", str(func))
        for other in args:
            if hasattr(other, "__torch_function__"):
                as_expression(other)
        raise RuleError(f"torch.{name} is not of the language of update rules; {instead(name)}")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> NoReturn:  # type: ignore[no-redef]
        raise RuleError(f"numpy.{ufunc.__name__} is not of the language of update rules; {instead(ufunc.__name__)}")

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> NoReturn:
        raise RuleError(f"numpy.{func.__name__} is not of the language of update rules; {instead(func.__name__)}")

    def __repr__(self) -> str:
        return bounded_text(self)


VOCABULARY: set[str] = set()
"""The names of the language's functions."""

OTHER_NAMES = {
    "+": "add",
    "-": "sub subtract rsub",
    "unary -": "neg negative",
    "*": "mul multiply",
    "/": "div divide true_divide reciprocal",
    "**": "pow float_power",
    "%": "remainder fmod",
    "<": "lt less",
    "<=": "le less_equal",
    ">": "gt greater",
    ">=": "ge greater_equal",
    "==": "eq equal",
    "!=": "ne not_equal",
    "&": "logical_and",
    "|": "logical_or",
    "~": "logical_not",
    "a + value * b * c": "addcmul",
    "a + value * b / c": "addcdiv",
    "abs(x)": "absolute fabs",
    "clip(x, low, high)": "clamp",
    "maximum(x, 0)": "relu",
    "minimum(a, b)": "min fmin",
    "maximum(a, b) or max_abs(x)": "max fmax amax",
    "norm(x)": "vector_norm linalg_vector_norm linalg_norm",
    "size(p)": "numel",
    "size(p), size(p, dim) or ndim(p)": "shape",
    "ndim(p)": "dim",
    "eps(p)": "finfo",
}
"""What to write instead of functions that other libraries have under another name."""

EQUIVALENT = {name: ours for ours, names in OTHER_NAMES.items() for name in names.split()}


def instead(name: str) -> str:
    """What to write in a rule instead of another library's function."""
    if name in VOCABULARY:
        return f"use steprule.rule.{name}"
    if name in EQUIVALENT:
        return f"use {EQUIVALENT[name]}"
    return f"the functions are {', '.join(sorted(VOCABULARY))}"


def as_expression(value: Any) -> Expression:
    """The expression of a number, or the expression itself.

    Raises:
        RuleError: for anything else.
    """
    if isinstance(value, Expression):
        return value
    if isinstance(value, (bool, int, float)):
        return Expression("constant", detail=float(value))
    raise RuleError(
        f"an update rule computes with its arguments and plain numbers, not with {type(value).__name__} {value!r:.60}; "
        "make a hyperparameter of a number, a slot (s.name) of an array"
    )


FOLD: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b if b else math.nan if a == 0 or a != a else a * math.copysign(math.inf, b),
    "neg": lambda a: -a,
    "abs": abs,
}


def combine(op: str, *operands: Any) -> Expression:
    """The expression of an operator applied to expressions and numbers; numbers alone are computed at once."""
    args = tuple(map(as_expression, operands))
    for table in (a for a in args if a.level is Level.TABLE):
        raise RuleError(
            f"({table}) is a table, not an array like the parameter: compute with it in a matrix() function"
        )
    if op in FOLD and all(a.op == "constant" for a in args):
        return Expression("constant", detail=FOLD[op](*(a.detail for a in args)))
    return Expression(op, args)


def precedence(e: Expression) -> int:
    """How tightly an expression binds, as text."""
    return PRECEDENCE["neg"] if e.op == "constant" and math.copysign(1.0, e.detail) < 0 else PRECEDENCE.get(e.op, 9)


def ordered(
    roots: Iterable[Expression], operands: Callable[[Expression], Iterable[Expression]] = lambda e: e.args
) -> list[Expression]:
    """Expressions and what they are made of, operands first, each once; however deep, without recursion.

    Args:
        roots: where to begin, in this order.
        operands: of which of its operands an expression counts as made.
    """
    done: set[int] = set()
    order: list[Expression] = []
    for root in roots:
        stack = [root]
        while stack:
            e = stack[-1]
            open_operands = [a for a in operands(e) if id(a) not in done] if id(e) not in done else []
            stack.extend(reversed(open_operands))
            if not open_operands:
                stack.pop()
                if id(e) not in done:
                    done.add(id(e))
                    order.append(e)
    return order


LONG = 60
"""Operations of a formula at most that is written as one; parts of a longer one get names."""
SHOWN = 12
"""The names at most that are explained where an expression is shown alone."""


def written_length(e: Expression, lengths: Mapping[int, int]) -> int:
    """How many operations an expression's text has, given those of its operands; every use counts."""
    return 1 + sum(lengths.get(id(a), 1) for a in e.args)


def bounded_text(expression: Expression) -> str:
    """An expression as text of a bounded size: what is used more than once, or long, gets a name in a long one."""
    order = ordered([expression])
    lengths: dict[int, int] = {}
    for e in order:
        lengths[id(e)] = written_length(e, lengths)
    if lengths[id(expression)] <= LONG:
        return text(expression)
    uses = Counter(id(a) for e in order for a in e.args)
    known: dict[int, str] = {}
    lines: list[str] = []
    for e in order[:-1]:
        lengths[id(e)] = written_length(e, lengths)
        if e.args and (uses[id(e)] > 1 or lengths[id(e)] > LONG):
            lines.append(f"t{len(known)} = {text(e, lambda x: known.get(id(x)))}")
            known[id(e)] = f"t{len(known)}"
            lengths[id(e)] = 1
    left_out = "..., " if len(lines) > SHOWN else ""
    return f"{text(expression, lambda x: known.get(id(x)))} where {left_out}{', '.join(lines[-SHOWN:])}"


def text(expression: Expression, names: Callable[[Expression], str | None] = lambda _: None) -> str:
    """An expression as mathematics, parenthesised only where needed.

    Args:
        expression: what to print.
        names: gives the name under which a subexpression is already known, or None.
    """
    shown: dict[int, str] = {}
    for e in ordered([expression], lambda e: () if names(e) is not None else e.args):
        name = names(e)
        shown[id(e)] = one_text(e, shown, names) if name is None else name
    return shown[id(expression)]


def one_text(expression: Expression, shown: Mapping[int, str], names: Callable[[Expression], str | None]) -> str:
    """An expression as text, given that of its operands."""
    op, args = expression.op, expression.args
    rank = precedence(expression)

    def inner(index: int, bound: int) -> str:
        arg = args[index]
        tight = names(arg) is not None or precedence(arg) >= bound
        return shown[id(arg)] if tight else f"({shown[id(arg)]})"

    if op == "constant":
        short = f"{expression.detail:g}"
        return short if float(short) == expression.detail else repr(expression.detail)
    if op in ("param", "grad"):
        return op[0]
    if op in ("step", "is_new"):
        return op
    if op == "hyper":
        key, *index = expression.detail
        return str(key) + "".join(f"[{i}]" for i in index)
    if op in ("shared", "noisy"):
        return shown[id(args[0])]
    if op == "drawn":
        return f"random({32 - expression.detail} bits)"
    if op == "given":
        return f"inputs[{expression.detail!r}]"
    if op in ("slot", "input"):
        return str(expression.detail)
    if op == "size" and expression.detail == "eps":
        return "eps(p)"
    if op == "size":
        return "size(p)" if expression.detail is None else f"size(p, {expression.detail})"
    if op == "reduce":
        kind, scope = expression.detail
        if scope == "channel":  # of what was reduced over rows already
            return f"{args[0].detail[0]}({shown.get(id(args[0].args[0])) or text(args[0].args[0], names)}, channel)"
        over = {"tensor": "", "all": ", all"}.get(scope, f", dim={scope}")
        return f"{kind}({shown[id(args[0])]}{over})"
    if op == "matrix":
        function = expression.detail.function
        return f"{function.__name__}({', '.join(shown[id(a)] for a in args)})"
    if op == "part":
        several = len(args[0].detail.results) > 1
        return f"{shown[id(args[0])]}{f'[{expression.detail[0]}]' * several}"
    if op == "neg":
        return "-" + inner(0, rank)
    if op == "not":
        return "not " + inner(0, rank)
    if op in SYMBOL:
        left, right = (rank + (op in NOT_LEFT), rank + (op != "pow"))
        return f"{inner(0, left)} {SYMBOL[op]} {inner(1, right)}"
    return f"{op}({', '.join(shown[id(a)] for a in args)})"
