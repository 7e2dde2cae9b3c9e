"""A Jinja2 environment in which a template from the internet can neither reach out nor run away.

`ImmutableSandboxedEnvironment` keeps a template from Python's internals. It does not bound work: a few
characters of template can ask for gigabytes or for years. Here every loop round, call, operator and
filter passes through a method that counts against a budget of time and size, and every value is
measured before something walks through all of it in C, where nothing could stop it.

`chat_template.py` is the only user. Jinja2 (50 ms) is imported by importing this module.
"""

from __future__ import annotations

import re
import time
import types
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from functools import wraps
from typing import Any, NoReturn, cast

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Cycler, Joiner, Namespace

from .template_filters import (
    MAX_BITS,
    MAX_NODES,
    MAX_PYTHON,
    MAX_SECONDS,
    MAX_SIZE,
    MAX_TEXT,
    MAX_TOKENS,
    MAX_WIDTH,
    OWN_FILTERS,
    WIDE_PERCENT,
    LimitError,
    bounded_range,
    strftime_now,
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SIMPLE = (str, int, float, bool, types.NoneType)
_SHRINKING = _names(
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
    "isnumeric isprintable isspace istitle isupper lower lstrip partition removeprefix removesuffix rfind rindex "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"
)
_PADDING = frozenset(("center", "ljust", "rjust", "zfill"))
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, _SHRINKING | _PADDING | {"replace", "join"}),
    (dict, frozenset(("get", "items", "keys", "values", "copy"))),
    (list, frozenset(("index", "count", "copy"))),
    (tuple, frozenset(("index", "count"))),
)
_CALLABLE_TYPES = (dict, Namespace, Cycler, Joiner)
_FILTERS = _names(
    "abs attr batch capitalize center count d default dictsort e escape first float forceescape format groupby indent "
    "int items join last length list lower map max min reject rejectattr replace reverse round safe select "
    "selectattr slice sort string sum title trim truncate unique upper urlencode wordcount"
)
# Filters and tests that look at a value but not at what is in it
_SHALLOW = _names(
    "attr batch boolean callable count d default defined false filter first integer items iterable last length list "
    "map mapping none number reject rejectattr reverse sameas select selectattr sequence slice test true "
    "undefined"
)
_WIDE_BRACES = re.compile(r"\{[^}]*(\d{5}|[:!][^}]*\{)")
_HAS_WIDTH = re.compile(r"%[-+ #.]*\d|\{[^}]*:[^}]*\d")
_OWNED = (str, bytes, int, float, dict, list, tuple, set, frozenset)


class _Generator(CodeGenerator):
    """Generates calls of the environment's measuring methods around what Jinja2 would run directly."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.join_texts((")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self.write("(")
        self._measured(node.expr, frame)
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:  # noqa: N802
        names = {
            "eq": "==",
            "ne": "!=",
            "gt": ">",
            "gteq": ">=",
            "lt": "<",
            "lteq": "<=",
            "in": "in",
            "notin": "not in",
        }
        self.write(f" {names[node.op]} ")
        self._measured(node.expr, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write("environment.made({")
        for pair in node.items:
            self._measured(pair.key, frame)
            self.write(": ")
            self.visit(pair.value, frame)
            self.write(", ")
        self.write("})")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self.write("environment.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        is_target = node.ctx == "store"
        self.write("" if is_target else "environment.made(")
        super().visit_Tuple(node, frame)
        self.write("" if is_target else ")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        is_copy = isinstance(node.arg, nodes.Slice)
        self.write("environment.made(" if is_copy else "")
        super().visit_Getitem(node, frame)
        self.write(")" if is_copy else "")

    def _measured(self, node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.measured(")
        self.visit(node, frame)
        self.write(")")


class _Generation(Extension):
    """Accepts Hugging Face's ``{% generation %}`` blocks, which mark text for training, and renders their body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Renders with a budget; ``start`` begins a new one. For one thread at a time."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        """Set up what Hugging Face's templates expect and nothing else."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=self._finalized,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        self.globals = {
            "range": bounded_range,
            "dict": dict,
            "namespace": Namespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": self._raise,
            "strftime_now": strftime_now,
        }
        filters: dict[str, Callable[..., Any]] = {name: FILTERS[name] for name in _FILTERS} | OWN_FILTERS
        self.filters = {name: self._counted(function, name in _SHALLOW) for name, function in filters.items()}
        tests = cast("dict[str, Callable[..., Any]]", TESTS)
        self.tests = {name: self._counted(function, name in _SHALLOW) for name, function in tests.items()}
        self.concat = self.join_texts  # type: ignore[method-assign]  # Jinja2 calls it through the instance
        self.start(0)

    def start(self, n_char: int) -> None:
        """Begin a budget for rendering ``n_char`` characters of conversation, or for compiling, in this thread."""
        self._seconds = MAX_SECONDS + 2e-6 * n_char
        self._deadline = time.thread_time() + self._seconds  # other programs' time does not count
        self._size_left = max(MAX_SIZE, 32 * n_char)
        self._max_nodes = max(MAX_NODES, n_char)
        self.max_text = max(MAX_TEXT, 4 * n_char)

    def tick(self) -> str:
        """Check the time. Called in every loop round and macro, so it returns what can be ignored."""
        if time.thread_time() > self._deadline:
            raise LimitError(f"it takes longer than {self._seconds:.1f} s")
        return ""

    def made(self, value: Any) -> Any:
        """Count a new value, and return it."""
        if isinstance(value, str):
            self._spend(len(value))
        elif isinstance(value, list | tuple | dict):
            self._spend(8 * len(value) + 8)
        return value

    def measured(self, value: Any) -> Any:
        """Return a value that something will walk through, after counting what is in it, however often.

        An iterator is returned as one that counts each of its items.
        """
        if isinstance(value, (*_SIMPLE, Context)):  # a filter's context is not a value
            return value
        if isinstance(value, Iterator):
            return self._ticking(value)
        pending, n_nodes = [value], 0
        while pending:
            item = pending.pop()
            if isinstance(item, Mapping):
                pending += item.keys()
                pending += item.values()
            elif isinstance(item, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
                pending += item
            elif isinstance(item, str):
                n_nodes += len(item) // 64
            n_nodes += 1
            if n_nodes + len(pending) > self._max_nodes:
                raise LimitError(f"a value holds more than {self._max_nodes} values")
        self._spend(n_nodes)
        return value

    def check_text(self, n_char: int) -> None:
        """Refuse to make a text of ``n_char`` characters, if that is too long."""
        if n_char > self.max_text:
            raise LimitError(f"a text of {n_char} characters, expected at most {self.max_text}")

    def join_texts(self, items: Iterable[Any]) -> str:
        """Return the texts of the items in one, as ``~``, ``set`` blocks and macros need it."""
        self.tick()
        texts = [self._text(item) for item in items]
        self.check_text(sum(map(len, texts)))
        return str(self.made("".join(texts)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Check and apply an arithmetic operator."""
        self.tick()
        if operator == "%" and isinstance(left, str):
            if WIDE_PERCENT.search(left):
                raise LimitError(f"a format with a field wider than {MAX_WIDTH}")
            self.check_format(left, right)
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > MAX_BITS:
                raise LimitError(f"a number of more than {MAX_BITS} bits")
        elif operator == "+" and isinstance(left, Sequence) and isinstance(right, Sequence):
            self.check_text(len(left) + len(right))
        return self.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Check and make a call: of a macro, of what the template is given, or of a harmless method."""
        __self.tick()
        is_method = isinstance(__obj, types.BuiltinMethodType | types.MethodWrapperType | types.MethodType)
        if is_method and isinstance(__obj.__self__, _OWNED):
            __self._check_method(__obj.__self__, __obj.__name__, args)
        elif isinstance(__obj, type) and __obj not in _CALLABLE_TYPES:
            raise SecurityError(f"type {__obj.__name__} is not callable here")
        if is_method or isinstance(__obj, type):  # others look at their arguments through this environment
            for value in (*args, *kwargs.values()):
                __self.measured(value)
        return __self.made(super().call(__context, __obj, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item, its key measured."""
        return super().getitem(obj, self.measured(argument))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return a checked ``str.format``."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__

        def checked(*args: Any, **kwargs: Any) -> str:
            if _WIDE_BRACES.search(text):
                raise LimitError(f"a format with a field wider than {MAX_WIDTH}, or within a field")
            self.check_format(text, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return checked

    def check_format(self, text: str, args: Any) -> None:
        """Refuse a format whose result may be too long."""
        values = args.values() if isinstance(args, Mapping) else args if isinstance(args, tuple) else (args,)
        longest = max((len(self._text(value)) for value in values), default=0)
        n_fields = text.count("%") + text.count("{")
        self.check_text(len(text) + n_fields * (longest + MAX_WIDTH * bool(_HAS_WIDTH.search(text))))

    def handle_exception(self, source: str | None = None) -> NoReturn:  # noqa: ARG002 - Jinja2's signature
        """Raise the exception as it is: Jinja2 would rebuild its traceback, slow after deep recursion."""
        raise

    def _raise(self, message: Any) -> NoReturn:
        raise TemplateError(self._text(message))

    def _finalized(self, value: Any) -> Any:
        """Return a value that is printed, measured."""
        self.tick()
        return self.measured(value)

    def _text(self, value: Any) -> str:
        return value if isinstance(value, str) else str(self.measured(value))

    def _spend(self, size: int) -> None:
        self._size_left -= size
        if self._size_left < 0:
            raise LimitError("it makes too many or too long values")

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > MAX_BITS:
                raise LimitError(f"a number of more than {MAX_BITS} bits")
            return
        for repeated, count in ((left, right), (right, left)):
            if isinstance(repeated, Sequence) and isinstance(count, int):
                self.check_text(len(repeated) * max(count, 0))

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...]) -> None:
        if not any(isinstance(owner, kind) and name in allowed for kind, allowed in _METHODS):
            raise SecurityError(f"method {name} of {type(owner).__name__} is not callable here")
        if name in _PADDING and args and isinstance(args[0], int):
            self.check_text(args[0])
        elif name == "replace" and len(args) >= 2:
            self.check_replace(str(owner), *args[:2])
        elif name == "join":
            if not args or not isinstance(args[0], Sequence):
                raise LimitError("str.join of what is no list")
            self.check_text(sum(len(item) + len(owner) for item in args[0] if isinstance(item, str)))

    def check_replace(self, text: str, old: str, new: str) -> None:
        """Refuse a replacement whose result may be too long."""
        self.check_text(len(text) + text.count(old) * max(len(new) - len(old), 0))

    def _counted(self, function: Callable[..., Any], is_shallow: bool) -> Callable[..., Any]:
        """Return a filter or test that ticks, measures what it gets and counts what it makes."""

        @wraps(function)  # keeps the attribute that says whether Jinja2 passes the context first
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            if not is_shallow:
                args = tuple(map(self.measured, args))
                kwargs = {name: self.measured(value) for name, value in kwargs.items()}
            result = function(*args, **kwargs)
            return self._ticking(result) if isinstance(result, Iterator) else self.made(result)

        return counted

    def _ticking(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.tick()
            yield self.made(self.measured(item))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse, and let every loop body and macro begin with a tick."""
        n_tokens = 0
        for n_tokens, _ in enumerate(self.lex(source), start=1):
            if n_tokens % 256 == 0:
                self.tick()
            if n_tokens > 2 * MAX_TOKENS:  # lex() counts white space too
                raise LimitError(f"it has more than {MAX_TOKENS} tokens")
        tree = super()._parse(source, name, filename)
        self.tick()
        bodies: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
            *tree.find_all(nodes.For),
            *tree.find_all(nodes.Macro),
            *tree.find_all(nodes.CallBlock),
        ]
        for node in bodies:
            tick = nodes.ExprStmt(nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None))
            node.body.insert(0, tick.set_lineno(node.lineno).set_environment(self))
        return tree

    def _compile(self, source: str, filename: str) -> types.CodeType:
        self.tick()
        if len(source) > MAX_PYTHON:
            raise LimitError("it is too long")
        return super()._compile(source, filename)
