"""Functions that become one kernel each with ``learner.compile``, and a few kernels each without."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def generated_kernel(function: Function) -> Function:
    """The function with ``torch.compile``: its kernel is generated at the first call, once for all lengths.

    Args:
        function: of tensors that need no gradient, without side effects. The first dimension of each is a number of
            tokens, which varies from call to call.
    """
    from torch._dynamo import maybe_mark_dynamic  # takes seconds to import

    compiled, mark = torch.compile(function, fullgraph=True), cast(Any, maybe_mark_dynamic)

    @wraps(function)
    def called(*arguments: Any) -> Any:
        for one in arguments:
            if isinstance(one, Tensor):
                mark(one, 0)
        return compiled(*arguments)

    return cast(Function, called)


def kernel(function: Function, compiled: bool) -> Function:
    """The function as it is, or as :func:`generated_kernel`."""
    return generated_kernel(function) if compiled else function
