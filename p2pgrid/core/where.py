"""The small grammar of `where=`: which nodes may run a task.

    condition  = all { "or" all }
    all        = not { "and" not }
    not        = "not" not | "(" condition ")" | comparison
    comparison = operand [ ("==" | "!=" | "<" | "<=" | ">" | ">=") operand ... ] | operand ["not"] "in" set
    set        = "(" literal { "," literal } ")" | "[" ... "]" | operand
    operand    = name { "." name } | literal
    literal    = 'text' | "text" | number | size such as 4GiB | true | false | none

Rule 1: never `eval`, and no `ast`: what is not in the grammar above cannot be said.
Rule 2: evaluation never raises. An unknown name or a comparison of unlike kinds makes that comparison false, so that
a task waits and `explain` shows the clause, rather than failing on a node that lacks a fact.
Rule 3: depth and length are limited; the text comes from anyone who may submit.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from p2pgrid.core.units import parse_size

LENGTH_MAX = 1024
MARK = "▶"
"""Stands in a message before what is wrong with the text: an error is one line."""
DEPTH_MAX = 32

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>'[^']*'|"[^"]*")
    | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[KMGTP]i?B)?(?![\w.]))
    | (?P<name>[A-Za-z_]\w*(?:\.[\w-]+)*)
    | (?P<sign>==|!=|<=|>=|<|>|\(|\)|\[|\]|,)
    | (?P<end>$)
    )""",
    re.VERBOSE | re.ASCII,
)
_WORDS = frozenset({"and", "or", "not", "in"})
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "none": None, "None": None}
_ORDERS = frozenset({"==", "!=", "<", "<=", ">", ">="})
_CLOSING = {"(": ")", "[": "]"}
_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){1,7}", re.ASCII)


class WhereError(ValueError):
    """The text is not in the grammar; the message marks the column and says what was expected."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A value that stands in the text."""

    value: str | float | bool | None


@dataclass(frozen=True, slots=True)
class Name:
    """A fact of the node; dots reach into it."""

    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Items:
    """The literals after `in`."""

    values: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """One comparison; `op` is one of `== != < <= > >= in`."""

    left: Literal | Name
    op: str
    right: Literal | Name | Items
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Truth:
    """An operand that stands alone: it holds if it is known and neither empty, zero nor false."""

    operand: Literal | Name


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of a condition."""

    part: "Condition"


@dataclass(frozen=True, slots=True)
class All:
    """Conditions joined by `and`, each with the text it came from."""

    parts: tuple["Condition", ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """Conditions joined by `or`."""

    parts: tuple["Condition", ...]


Condition = Compare | Truth | Not | All | Either


@dataclass(frozen=True, slots=True)
class Where:
    """A parsed condition and the text it came from."""

    text: str
    root: Condition


@lru_cache(maxsize=1024)
def parse(text: str) -> Where:
    """Parse a condition.

    Raises:
        WhereError: it is not in the grammar, longer than 1 KiB or nested deeper than 32.
    """
    if len(text.encode("utf-8", "surrogatepass")) > LENGTH_MAX:
        msg = f"where: longer than {LENGTH_MAX} bytes"
        raise WhereError(msg)
    parser = _Parser(text, _tokens(text))
    root = parser.condition(depth=0)
    parser.expect_end()
    return Where(text.strip(), root)


def evaluate(where: Where, facts: Mapping[str, object]) -> bool:
    """Say whether a node with these facts satisfies the condition."""
    return _holds(where.root, facts)


def clauses(where: Where) -> tuple[Where, ...]:
    """Split at the top-level `and`s; all of them hold if and only if the whole does."""
    match where.root:
        case All(parts, sources):
            return tuple(
                clause for part, source in zip(parts, sources, strict=True) for clause in clauses(Where(source, part))
            )
    return (where,)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while not tokens or tokens[-1].kind != "end":
        found = _TOKEN.match(text, position)
        if found is None:
            _refuse_character(text, position)
        group = found.lastgroup or "end"
        kind = "word" if found[group] in _WORDS else group
        tokens.append(_Token(kind, found[group], found.start(group), found.end()))
        position = found.end()
    return tokens


def _refuse_character(text: str, position: int) -> NoReturn:
    rest = text[position:]
    column = position + len(rest) - len(rest.lstrip())
    match text[column]:
        case "=":
            expected = "write == to compare"
        case "'" | '"':
            expected = "this text has no closing quote"
        case digit if digit.isdigit():
            expected = "not a number or size; write it like 4, 2.5 or 4GiB"
        case other:
            expected = f"{other!r} means nothing here; expected a name, a value or a comparison"
    _refuse(text, column, expected)


def _refuse(text: str, column: int, problem: str) -> NoReturn:
    shown = "".join(character if character.isprintable() else " " for character in text)
    msg = f"where, column {column + 1}: {problem}: {shown[:column]}{MARK}{shown[column:]}"
    raise WhereError(msg)


class _Parser:
    """Recursive descent: one method per line of the grammar."""

    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text = text
        self._tokens = tokens
        self._at = 0

    def condition(self, depth: int) -> Condition:
        parts = [self._all(depth)]
        while self._take("or"):
            parts.append(self._all(depth))
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def expect_end(self) -> None:
        if self._next.kind != "end":
            self._fail("'and', 'or' or the end")

    def _all(self, depth: int) -> Condition:
        parts: list[Condition] = []
        sources: list[str] = []
        while True:
            start = self._next.start
            parts.append(self._not(depth))
            sources.append(self._text[start : self._tokens[self._at - 1].end])
            if not self._take("and"):
                break
        return parts[0] if len(parts) == 1 else All(tuple(parts), tuple(sources))

    def _not(self, depth: int) -> Condition:
        if depth > DEPTH_MAX:
            _refuse(self._text, self._next.start, f"nested deeper than {DEPTH_MAX}")
        if self._take("not"):
            return Not(self._not(depth + 1))
        if self._take("("):
            inside = self.condition(depth + 1)
            if not self._take(")"):
                self._fail("'and', 'or' or ')'")
            return inside
        return self._comparison()

    def _comparison(self) -> Condition:
        start = self._next.start
        left = self._operand()
        if self._next.text == "in" or (self._next.text == "not" and self._tokens[self._at + 1].text == "in"):
            negated = self._take("not")
            self._take("in")
            return Compare(left, "in", self._set(), negated)
        links: list[Condition] = []
        sources: list[str] = []
        while self._next.kind == "sign" and self._next.text in _ORDERS:
            op = self._advance().text
            right_start = self._next.start
            right = self._operand()
            links.append(Compare(left, op, right))
            sources.append(self._text[start : self._tokens[self._at - 1].end])
            left, start = right, right_start
        if not links:
            return Truth(left)
        return links[0] if len(links) == 1 else All(tuple(links), tuple(sources))

    def _set(self) -> Literal | Name | Items:
        closing = _CLOSING.get(self._next.text) if self._next.kind == "sign" else None
        if closing is None:
            return self._operand()
        self._advance()
        values: list[Literal] = []
        while not self._take(closing):
            operand = self._operand()
            if not isinstance(operand, Literal):
                self._at -= 1
                self._fail("a text or a number")
            values.append(operand)
            if not self._take(",") and self._next.text != closing:
                self._fail(f"',' or {closing!r}")
        return Items(tuple(values))

    def _operand(self) -> Literal | Name:
        token = self._next
        if token.kind not in {"text", "number", "name"}:
            self._fail("a name or a value")
        self._advance()
        if token.kind == "text":
            return Literal(token.text[1:-1])
        if token.kind == "number":
            return Literal(_number(token.text))
        if token.text in _CONSTANTS:
            return Literal(_CONSTANTS[token.text])
        return Name(tuple(token.text.split(".")))

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _advance(self) -> _Token:
        token = self._next
        self._at += 1
        return token

    def _take(self, text: str) -> bool:
        taken = self._next.kind in {"word", "sign"} and self._next.text == text
        self._at += taken
        return taken

    def _fail(self, expected: str) -> NoReturn:
        token = self._next
        found = "the end" if token.kind == "end" else token.text
        _refuse(self._text, token.start, f"expected {expected}, found {found}")


def _number(text: str) -> float:
    if text.endswith("B"):
        sign = -1 if text.startswith("-") else 1
        return sign * parse_size(text.removeprefix("-"))
    return float(text) if "." in text else int(text)


_UNKNOWN = object()


def _holds(part: Condition, facts: Mapping[str, object]) -> bool:
    match part:
        case All(parts):
            return all(_holds(inner, facts) for inner in parts)
        case Either(parts):
            return any(_holds(inner, facts) for inner in parts)
        case Not(inner):
            return not _holds(inner, facts)
        case Truth(operand):
            value = _value(operand, facts)
            return isinstance(value, bool | int | float | str | list | tuple | Mapping) and bool(value)
        case Compare(left, "in", right, negated):
            return _contains(right, _value(left, facts), facts, negated=negated)
        case Compare(left, op, Literal() | Name() as right):
            return _ordered(_value(left, facts), op, _value(right, facts))
        case Compare():
            return False


def _value(operand: Literal | Name, facts: Mapping[str, object]) -> object:
    if isinstance(operand, Literal):
        return operand.value
    value: object = facts
    for name in operand.path:
        if not isinstance(value, Mapping) or name not in value:
            return _UNKNOWN
        value = value[name]
    return value


def _contains(box: Literal | Name | Items, value: object, facts: Mapping[str, object], *, negated: bool) -> bool:
    if isinstance(box, Items):
        return value is not _UNKNOWN and any(_same(value, item.value) for item in box.values) != negated
    inside = _value(box, facts)
    if isinstance(inside, list | tuple) and value is not _UNKNOWN:
        return any(_same(value, item) for item in inside) != negated
    if isinstance(inside, str | Mapping) and isinstance(value, str):
        return (value in inside) != negated
    return False


def _ordered(left: object, op: str, right: object) -> bool:
    if _kind(left) is None or _kind(left) != _kind(right):
        return False
    if op == "==":
        return left == right
    if op == "!=":
        return left != right
    if isinstance(left, str) and isinstance(right, str):
        above, below = _text_order(left, right)
    elif isinstance(left, int | float) and isinstance(right, int | float) and not isinstance(left, bool):
        above, below = left > right, left < right
    else:
        return False
    return (above if op[0] == ">" else below) or (op.endswith("=") and left == right)


def _text_order(left: str, right: str) -> tuple[bool, bool]:
    """Compare `3.9` with `3.11` as versions: as texts, 3.9 would be the larger."""
    if _VERSION.fullmatch(left) and _VERSION.fullmatch(right):
        return _version(left) > _version(right), _version(left) < _version(right)
    return left > right, left < right


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _same(left: object, right: object) -> bool:
    return _kind(left) is not None and _kind(left) == _kind(right) and left == right


def _kind(value: object) -> str | None:
    """Name the kind within which values may be compared; a bool is no number here."""
    match value:
        case None:
            return "none"
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return "text"
        case _:
            return None
