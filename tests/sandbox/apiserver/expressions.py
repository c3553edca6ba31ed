"""CEL, the language of admission policies: what Kubernetes 1.30 understands of it and what our policies need.

The interpreter is that of cel-cpp. Like the real server it takes `object`, `oldObject` and `params` as they come, so a
field that is not there is an error when it is met and not before; and it has the optional values and the functions on
strings that Kubernetes adds (k8s.io/apiserver/pkg/cel/environment/base.go). Kubernetes' own libraries are left out.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_optional, ext_strings
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2

_ANY = ("object", "oldObject", "params")
_EXTENSIONS = (ext_optional.ExtOptional(), ext_strings.ExtStrings())
_ENVIRONMENT = cel.NewEnv(
    variables=dict.fromkeys((*_ANY, "request", "variables"), cel.Type.DYN), extensions=[*_EXTENSIONS]
)

BOOL, STRING = cel.Type.BOOL, cel.Type.STRING

_KIND = {"group": "string", "version": "string", "kind": "string"}
_RESOURCE = {"group": "string", "version": "string", "resource": "string"}
_MESSAGES = {
    "Kind": _KIND,
    "Resource": _RESOURCE,
    "UserInfo": {"username": "string", "uid": "string", "groups": "string", "extra": "google.protobuf.Struct"},
    "Request": {
        "kind": "k8s.Kind",
        "resource": "k8s.Resource",
        "subResource": "string",
        "requestKind": "k8s.Kind",
        "requestResource": "k8s.Resource",
        "requestSubResource": "string",
        "name": "string",
        "namespace": "string",
        "operation": "string",
        "userInfo": "k8s.UserInfo",
        "dryRun": "bool",
        "options": "google.protobuf.Value",
    },
}
"""Fields of `request` and their types (BuildRequestType, k8s.io/apiserver/pkg/admission/plugin/cel/compile.go). The
values of `extra` are lists of strings there, which protobuf can't say: here they are anything."""
_REPEATED = {"groups"}


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

    @property
    def type(self) -> cel.Type:
        return self._compiled.return_type()

    def evaluate(self, known: Mapping[str, Any]) -> Any:
        """The value, in Python's own types. Raises NotEvaluated."""
        outcome = self._compiled.eval(data=known)
        if outcome.type() == cel.Type.ERROR:
            raise NotEvaluated(str(outcome.plain_value()))
        return outcome.plain_value()


class Declarations:
    """Expressions of one policy as the real server compiles them when the policy is written: `request` has its fields
    and no others, and each variable has the type of its own expression. `compile` can't be evaluated."""

    def __init__(self) -> None:
        self._variables = dict.fromkeys(_ANY, cel.Type.DYN) | {"request": cel.Type("k8s.Request")}

    def compile(self, text: str) -> Expression:
        """Raises NotCompiled."""
        environment = cel.NewEnv(descriptor_pool=_messages(), variables=self._variables, extensions=[*_EXTENSIONS])
        try:
            return Expression(environment.compile(re.sub(r"\bvariables\.(\w+)", r"variables_\1", text)))
        except RuntimeError as error:
            raise NotCompiled(str(error)) from None

    def declare(self, variable: str, text: str) -> Expression:
        """What comes later may use it. Raises NotCompiled."""
        expression = self.compile(text)
        self._variables[f"variables_{variable}"] = expression.type
        return expression


@functools.cache
def _messages() -> descriptor_pool.DescriptorPool:
    field_types = descriptor_pb2.FieldDescriptorProto
    scalars = {"string": field_types.TYPE_STRING, "bool": field_types.TYPE_BOOL}
    file = descriptor_pb2.FileDescriptorProto(name="k8s.proto", package="k8s", syntax="proto3")
    file.dependency.append("google/protobuf/struct.proto")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            added = message.field.add(name=field, json_name=field, number=number)
            added.label = field_types.LABEL_REPEATED if field in _REPEATED else field_types.LABEL_OPTIONAL
            added.type = scalars.get(kind, field_types.TYPE_MESSAGE)
            if kind not in scalars:
                added.type_name = f".{kind}"
    known = descriptor_pb2.FileDescriptorProto()
    struct_pb2.DESCRIPTOR.CopyToProto(known)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(known)
    pool.Add(file)
    return pool
