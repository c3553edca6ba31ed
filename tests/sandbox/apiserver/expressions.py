"""CEL, the language of admission policies: what Kubernetes 1.30 understands of it and what our policies need.

The interpreter is that of cel-cpp. Like the real server it takes `object`, `oldObject` and `params` as they come, so a
field that is not there is an error when it is met and not before; and it has the optional values and the functions on
strings that Kubernetes adds (k8s.io/apiserver/pkg/cel/environment/base.go). Kubernetes' own libraries are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_optional, ext_strings

_ENVIRONMENT = cel.NewEnv(
    variables=dict.fromkeys(("object", "oldObject", "request", "params", "variables"), cel.Type.DYN),
    extensions=[ext_optional.ExtOptional(), ext_strings.ExtStrings()],
)


class NotCompiled(Exception):
    """The text is no expression; the message shows where."""


class NotEvaluated(Exception):
    """The expression met an error, as a field that is not there."""


@dataclass(frozen=True)
class Expression:
    _compiled: cel.Expression

    @classmethod
    def compile(cls, text: str) -> "Expression":
        """Raises NotCompiled."""
        try:
            return cls(_ENVIRONMENT.compile(text))
        except RuntimeError as error:
            raise NotCompiled(str(error)) from None

    def evaluate(self, known: Mapping[str, Any]) -> Any:
        """The value, in Python's own types. Raises NotEvaluated."""
        outcome = self._compiled.eval(data=known)
        if outcome.type() == cel.Type.ERROR:
            raise NotEvaluated(str(outcome.plain_value()))
        return outcome.plain_value()
