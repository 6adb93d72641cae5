"""Modifiers around a rule: in which order they act, and what of a rule's new value is its step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .expression import Expression, Level, RuleError, as_expression
from .functions import where
from .modifier import Modifier, Reading, Scoped, Wrapped

__all__ = ["ascended", "chained", "evaluated", "split"]

Update = Callable[[Any, Any, Any, Any], Any]

ZERO, ONE = as_expression(0.0), as_expression(1.0)


def chained(update: Update, modifiers: Sequence[Modifier], name: str = "rule") -> Update:
    """An update rule with modifiers around it, itself an update rule.

    Args:
        update: ``update(p, g, s, h)`` gives the parameter's new value.
        modifiers: in the order in which they act; those that a hyperparameter of their name switches off do not.
        name: what the rule is called in messages.
    """

    def modified(p: Any, g: Any, s: Any, h: Any) -> Expression:
        links = [scoped(m, s, h) for m in modifiers if switched_on(m, h)]
        for m, own, hyper in links:
            g = checked(m, "gradient", m.gradient(p, g, own, hyper))
        rule: Wrapped = Innermost(update, links, s, h, name)
        for link in links:
            if link[0].changes("around"):
                rule = Around(link, rule, s)
        new = rule(p, g)
        for m, own, hyper in links:
            new = checked(m, "weights", m.weights(p, new, own, hyper))
        if any(depends_on_step(m.evaluation(p, own, hyper)) for m, own, hyper in links if m.changes("evaluation")):
            s._asked.add("counted")
        return new

    return modified


def evaluated(modifier: Modifier, kept: str) -> Update:
    """An update rule that puts the weights to evaluate with in place of those that are trained.

    Args:
        modifier: whose weights they are.
        kept: the slot that gets the trained ones.
    """

    def exchange(p: Any, g: Any, s: Any, h: Any) -> Expression:
        _, own, hyper = scoped(modifier, s, h)
        setattr(s, kept, Expression("param", level=Level.ARRAY))
        return checked(modifier, "evaluation", modifier.evaluation(p, own, hyper))

    return exchange


def ascended(modifier: Modifier) -> Update:
    """An update rule that goes to where the second gradient of a step is taken."""

    def ascend(p: Any, g: Any, s: Any, h: Any) -> Expression:
        _, own, hyper = scoped(modifier, s, h)
        return checked(modifier, "ascent", modifier.ascent(p, g, own, hyper))

    return ascend


def depends_on_step(e: Any) -> bool:
    """Whether a value depends on the number of the step."""
    return isinstance(e, Expression) and (e.op == "step" or any(map(depends_on_step, e.args)))


Link = tuple[Modifier, Any, Any]


def scoped(m: Modifier, s: Any, h: Any) -> Link:
    if m.reads is not None:
        return m, s, Reading(s, h, m.reads)
    return (m, Scoped(s, m.name), Scoped(h, m.name, m.defaults)) if m.name else (m, s, h)


def switched_on(m: Modifier, h: Any) -> bool:
    """A built-in link, or a part of an algorithm, has no name, and no switch."""
    return not m.name or bool(getattr(h, m.name))


def checked(m: Modifier, method: str, value: Any) -> Expression:
    """What a modifier's method returned.

    Raises:
        RuleError: it is nothing to compute with.
    """
    if isinstance(value, (Expression, int, float)):
        return as_expression(value)
    raise RuleError(f"{type(m).__name__}.{method} returns {value!r:.40}; it must return an expression")


def refuse_rule_signature(update: Update, name: str) -> None:
    """Refuse a rule that can't be called as rules are.

    Raises:
        RuleError: saying how it is called.
    """
    try:
        signature = inspect.signature(update)
    except (TypeError, ValueError):  # of a callable that does not say
        return
    try:
        signature.bind(*range(4))
    except TypeError as error:
        raise RuleError(
            f"{name}.update{signature} is called with p, g, s and h, beside self: {error}; write "
            "def update(self, p, g, s, h), and let hyperparameters be read as h.name"
        ) from None


class Innermost(Wrapped):
    """The rule itself, with what modifiers make of its step and of its decay."""

    def __init__(self, update: Update, links: Sequence[Link], s: Any, h: Any, name: str) -> None:
        self.update, self.s, self.h, self.name = update, s, h, name
        self.steps = [link for link in links if link[0].changes("step")]
        self.decays = [link for link in links if link[0].changes("decay")]

    def __call__(self, p: Any, g: Any) -> Expression:
        if not self.steps and not self.decays:
            return self.new(p, g)
        keep, u, lost = self.parts(p, g)
        return minus(product(keep, p), u) if lost is None else minus(minus(p, u), lost)

    def step(self, p: Any, g: Any) -> Expression:
        keep, u, lost = self.parts(p, g)
        return plus(u, product(minus(ONE, keep), p) if lost is None else lost)

    def new(self, p: Any, g: Any) -> Expression:
        refuse_rule_signature(self.update, self.name)
        new = self.update(p, g, self.s, self.h)
        if isinstance(new, Expression):
            return new
        raise RuleError(
            f"{self.name}.update returns {new!r:.40}; it must return the parameter's new value (return p - h.lr * g)"
        )

    def parts(self, p: Any, g: Any) -> tuple[Expression, Expression, Expression | None]:
        """What is kept of the parameter, the step, and what the decay takes where a modifier decides on it."""
        keep, u = split(self.new(p, g), p, g, self.s._writes.values())
        for m, own, hyper in self.steps:
            u = checked(m, "step", m.step(p, g, u, own, hyper))
        if not self.decays:
            return keep, u, None
        lost = product(minus(ONE, keep), p)
        for m, own, hyper in self.decays:
            lost = checked(m, "decay", m.decay(p, lost, u, own, hyper))
        return keep, u, lost


class Around(Wrapped):
    """A modifier around a rule."""

    def __init__(self, link: Link, inner: Wrapped, s: Any) -> None:
        self.link, self.inner, self.s = link, inner, s

    def __call__(self, p: Any, g: Any) -> Expression:
        m, own, hyper = self.link
        return checked(m, "around", m.around(self.inner, p, g, own, hyper))

    def step(self, p: Any, g: Any) -> Expression:
        keep, u = split(self(p, g), p, g, self.s._writes.values())
        return plus(u, product(minus(ONE, keep), p))


# -- the step of a new value -------------------------------------------------------------------------------------


def split(new: Expression, p: Expression, g: Expression, whole: Iterable[Expression] = ()) -> tuple[Any, Any]:
    """``keep`` and ``u`` with ``new == keep * p - u``, by the form of the expression, so that nothing is rounded.

    Multiples of ``p`` that are added to the new value are decoupled decay and make up ``keep``. What is added to the
    gradient itself (``g + h.weight_decay * p``) is the gradient of a penalty, and part of the step.

    Args:
        new: the new value.
        p: the parameter.
        g: the gradient, which is not looked into.
        whole: other expressions that are not, such as what goes into slots.
    """
    keep, u = Splitting(p, g, whole).parts(new)
    return (ONE, minus(p, new)) if is_constant(keep, 0.0) else (keep, u)


class Splitting:
    """The pieces of one new value."""

    def __init__(self, p: Expression, g: Expression, whole: Iterable[Expression]) -> None:
        self.p, self.g = p, g
        self.whole = {id(e) for e in (g, *whole)} - {id(p)}
        self.holding: dict[int, bool] = {}

    def holds(self, e: Expression) -> bool:
        """Whether the parameter occurs in an expression."""
        if id(e) not in self.holding:
            self.holding[id(e)] = e is self.p or any([self.holds(a) for a in e.args])  # noqa: C419 (all are visited)
        return self.holding[id(e)]

    def penal(self, e: Expression) -> bool:
        """Whether it is a sum to which the gradient itself belongs."""
        if e is self.g:
            return True
        if e.op in ("add", "sub", "neg", "mul"):
            return any(map(self.penal, e.args))
        if e.op in ("div", "where"):
            return any(map(self.penal, e.args[:1] if e.op == "div" else e.args[1:]))
        return False

    def parts(self, e: Expression, within: bool = False) -> tuple[Expression, Expression]:
        """``keep`` and ``taken`` with ``e == keep * p - taken``.

        Args:
            e: the expression.
            within: whether it is a factor.
        """
        if e is self.p:
            return ONE, ZERO
        rest = ZERO, opposite(e)
        if id(e) in self.whole or not self.holds(e) or (within and e.op in ("add", "sub") and self.penal(e)):
            return rest
        if e.op in ("add", "sub"):
            (a, b), (c, d) = (self.parts(x, within) for x in e.args)
            return (plus(a, c), plus(b, d)) if e.op == "add" else (minus(a, c), minus(b, d))
        if e.op == "neg":
            a, b = self.parts(e.args[0], within)
            return (opposite(a), opposite(b)) if not is_constant(a, 0.0) else rest
        if e.op == "mul" and self.holds(e.args[0]) != self.holds(e.args[1]):
            factor, x = e.args if self.holds(e.args[1]) else e.args[::-1]
            a, b = self.parts(x, within=True)
            return (product(factor, a), product(factor, b)) if not is_constant(a, 0.0) else rest
        if e.op == "div" and not self.holds(e.args[1]):
            a, b = self.parts(e.args[0], within=True)
            return (quotient(a, e.args[1]), quotient(b, e.args[1])) if not is_constant(a, 0.0) else rest
        if e.op == "where" and not self.holds(e.args[0]):
            (a, b), (c, d) = (self.parts(x, within) for x in e.args[1:])
            if not (is_constant(a, 0.0) and is_constant(c, 0.0)):
                return a if a is c else where(e.args[0], a, c), where(e.args[0], b, d)
        return rest


def is_constant(e: Expression, value: float) -> bool:
    return e.op == "constant" and bool(e.detail == value)


def plus(a: Expression, b: Expression) -> Expression:
    return b if is_constant(a, 0.0) else a if is_constant(b, 0.0) else a + b


def minus(a: Expression, b: Expression) -> Expression:
    if is_constant(b, 0.0):
        return a
    if is_constant(a, 0.0):
        return opposite(b)
    return a + b.args[0] if b.op == "neg" else a - b


def opposite(e: Expression) -> Expression:
    return e.args[0] if e.op == "neg" else -e


def product(a: Expression, b: Expression) -> Expression:
    if is_constant(a, 0.0) or is_constant(b, 0.0):
        return ZERO
    return b if is_constant(a, 1.0) else a if is_constant(b, 1.0) else a * b


def quotient(a: Expression, b: Expression) -> Expression:
    return a if is_constant(a, 0.0) else a / b
