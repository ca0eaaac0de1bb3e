"""Which functions are `async def`: asked by the client, which says so to the node, and by the child that runs them."""

import types
from functools import partial
from typing import Any

_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE; inspect itself costs 10 ms to import


def is_async(call: Any) -> bool:
    """Whether calling this gives something to be awaited, as far as one can see without calling it."""
    while isinstance(call, partial):
        call = call.func
    if not isinstance(call, types.FunctionType | types.MethodType):
        call = getattr(type(call), "__call__", call)  # noqa: B004 - an object with `async def __call__`
    code = getattr(call, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_COROUTINE)
