"""ValidatingAdmissionPolicies and their bindings: what an API server asks of a change beyond what is valid.

Source: k8s.io/apiserver/pkg/admission/plugin/policy, its generic and validating packages, and plugin/policy/matching.
Left out is what nothing here uses: `authorizer`, `namespaceObject`, audit annotations, the actions Warn and Audit,
costs, and the wait until a policy is known, which here is at once.
"""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.sandbox.apiserver import errors
from tests.sandbox.apiserver.errors import ApiError, FieldError, invalid_value, required
from tests.sandbox.apiserver.expressions import BOOL, STRING, Declarations, Expression, NotCompiled, NotEvaluated
from tests.sandbox.apiserver.resources import BY_KIND, NAMESPACES, Json, Resource
from tests.sandbox.apiserver.store import Change, Store, Stored
from tests.sandbox.apiserver.users import User

_API = "admissionregistration.k8s.io/v1"
POLICIES = BY_KIND[_API, "ValidatingAdmissionPolicy"]
BINDINGS = BY_KIND[_API, "ValidatingAdmissionPolicyBinding"]

CREATE, UPDATE, DELETE = "CREATE", "UPDATE", "DELETE"
_ALL = "*"
_FAIL, _DENY, _ALLOW = "Fail", "Deny", "Allow"
_CODES = {"Unauthorized": 401, "Forbidden": 403, "RequestEntityTooLarge": 413, "Invalid": 422}
_MESSAGE_BYTES = 5 * 1024


class Denied(ApiError):
    """A policy refused what the account's rights allow."""


@dataclass(frozen=True)
class Request:
    """What a user wants to become of an object."""

    user: User
    operation: str
    resource: Resource
    subresource: str
    namespace: str
    name: str
    object: Json | None
    """As it would be stored. None: it is deleted."""
    old: Json | None
    """As it is stored. None: it is created."""

    def as_seen(self) -> Json:
        """As expressions see it. A field without a value is not there."""
        kind = {"group": self.resource.group, "version": self.resource.version}
        seen: Json = {
            "uid": str(uuid.uuid4()),
            "kind": {**kind, "kind": self.resource.kind},
            "resource": {**kind, "resource": self.resource.plural},
            "subResource": self.subresource,
            "name": self.name,
            "namespace": self.namespace,
            "operation": self.operation,
            "userInfo": {"username": self.user.name, "groups": sorted(self.user.groups), "extra": self.user.extra},
        }
        seen["userInfo"] = {key: value for key, value in seen["userInfo"].items() if value}
        return {key: value for key, value in seen.items() if value}


@dataclass(frozen=True)
class _Validation:
    expression: Expression
    message: str
    message_expression: Expression | None
    reason: str


@dataclass(frozen=True)
class _Policy:
    """A policy with its expressions compiled."""

    spec: Json
    conditions: tuple[Expression, ...]
    variables: tuple[tuple[str, Expression], ...]
    validations: tuple[_Validation, ...]

    @classmethod
    def read(cls, body: Json) -> "_Policy":
        """Raises NotCompiled."""
        spec = body["spec"]
        return cls(
            spec,
            tuple(Expression.compile(each["expression"]) for each in spec.get("matchConditions") or ()),
            tuple((each["name"], Expression.compile(each["expression"])) for each in spec.get("variables") or ()),
            tuple(_validation(each) for each in spec.get("validations") or ()),
        )

    @property
    def fails_closed(self) -> bool:
        return bool((self.spec.get("failurePolicy") or _FAIL) == _FAIL)

    def decide(self, request: Request, params: Json | None) -> ApiError | None:
        """Why it is refused. What can't be evaluated is refused too, unless the policy says otherwise."""
        known: Json = {"object": request.object, "oldObject": request.old, "request": request.as_seen()}
        known["params"] = params
        faults = []
        for condition in self.conditions:
            try:
                if not _holds(condition, known):
                    return None
            except NotEvaluated as error:
                faults.append(str(error))
        if faults:
            return _refusal("Invalid", faults[0]) if self.fails_closed else None
        # One that can't be evaluated is no error of its own, only of the expressions that use it.
        variables: Json = {}
        for name, expression in self.variables:
            try:
                variables[name] = expression.evaluate({**known, "variables": variables})
            except NotEvaluated:
                continue
        known["variables"] = variables
        for validation in self.validations:
            try:
                if not _holds(validation.expression, known):
                    return _refusal(validation.reason, _words(validation, known))
            except NotEvaluated as error:
                if self.fails_closed:
                    return _refusal("Invalid", str(error))
        return None


def _validation(body: Json) -> _Validation:
    words = body.get("messageExpression")
    return _Validation(
        Expression.compile(body["expression"]),
        body.get("message") or f"failed expression: {body['expression'].strip()}",
        Expression.compile(words) if words else None,
        body.get("reason") or "Invalid",
    )


def _holds(expression: Expression, known: Mapping[str, Any]) -> bool:
    return expression.evaluate(known) is True


def _words(validation: _Validation, known: Mapping[str, Any]) -> str:
    if validation.message_expression is None:
        return validation.message
    try:
        words = validation.message_expression.evaluate(known)
    except NotEvaluated:
        return validation.message
    usable = isinstance(words, str) and words.strip() and "\n" not in words and len(words) <= _MESSAGE_BYTES
    return words.strip() if usable else validation.message


def _refusal(reason: str, words: str) -> ApiError:
    return ApiError(_CODES[reason], reason, words)


class Policies:
    """Those in the store, compiled once and again after a change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, _Policy] = {}
        store.follow(POLICIES, self._changed)

    def _changed(self, _: Change) -> None:
        self._known.clear()

    def check(self, request: Request) -> None:
        """Raises Denied. Policies don't hold for policies: who wrote a wrong one must be able to mend it."""
        if request.resource in (POLICIES, BINDINGS):
            return
        for binding in self._store.all(BINDINGS):
            policy = self._store.get(POLICIES, "", binding.object["spec"]["policyName"])
            if policy is None or not _matches(policy.object["spec"].get("matchConstraints"), request, self._store):
                continue
            narrowed = binding.object["spec"].get("matchResources")
            if narrowed is not None and not _matches(narrowed, request, self._store):
                continue
            self._apply(policy, binding, request)

    def _apply(self, stored: Stored, binding: Stored, request: Request) -> None:
        policy = self._policy(stored)
        reference = binding.object["spec"].get("paramRef")
        params = self._params(policy, reference, request)
        decided = [policy.decide(request, each) for each in params]
        if not params and (reference or {}).get("parameterNotFoundAction") != _ALLOW and policy.fails_closed:
            decided = [_refusal("Invalid", "no params found for policy binding with `Deny` parameterNotFoundAction")]
        refused = next((each for each in decided if each is not None), None)
        if refused and _DENY in binding.object["spec"]["validationActions"]:
            words = f"ValidatingAdmissionPolicy '{stored.name}' with binding '{binding.name}' denied request: {refused}"
            denied = errors.forbidden(request.resource, request.name, words, [{"message": words}])
            raise Denied(refused.code, refused.reason, denied.message, denied.details)

    def _policy(self, stored: Stored) -> _Policy:
        if stored.name not in self._known:
            self._known[stored.name] = _Policy.read(stored.object)
        return self._known[stored.name]

    def _params(self, policy: _Policy, reference: Json | None, request: Request) -> list[Json | None]:
        """The objects that the policy is evaluated with, once with each. None: once, without any."""
        kind = policy.spec.get("paramKind")
        if not kind or not reference:
            return [None]
        resource = BY_KIND[kind["apiVersion"], kind["kind"]]
        namespace = (reference.get("namespace") or request.namespace) if resource.namespaced else ""
        if name := reference.get("name"):
            named = self._store.get(resource, namespace, name)
            return [named.object] if named else []
        return [
            each.object for each in self._store.all(resource, namespace) if _selects(reference["selector"], each.object)
        ]


def _matches(wanted: Json | None, request: Request, store: Store) -> bool:
    """matchConstraints of a policy, or matchResources of a binding."""
    wanted = wanted or {}
    rules = wanted.get("resourceRules")
    if rules is not None and not any(_covers(rule, request) for rule in rules):
        return False
    if any(_covers(rule, request) for rule in wanted.get("excludeResourceRules") or ()):
        return False
    if selector := wanted.get("namespaceSelector"):
        place = request.name if request.resource is NAMESPACES else request.namespace
        home = store.get(NAMESPACES, "", place) if place else None
        if place and not (home and _selects(selector, home.object)):
            return False
    selector = wanted.get("objectSelector")
    return not selector or any(each is not None and _selects(selector, each) for each in (request.object, request.old))


def _covers(rule: Json, request: Request) -> bool:
    def among(field: str, value: str) -> bool:
        return bool({_ALL, value} & set(rule.get(field) or ()))

    named = rule.get("resourceNames")
    paths = (each.partition("/") for each in rule.get("resources") or ())
    return (
        among("apiGroups", request.resource.group)
        and among("apiVersions", request.resource.version)
        and among("operations", request.operation)
        and (not named or request.name in named)
        and any(
            resource in (_ALL, request.resource.plural) and subresource in (_ALL, request.subresource)
            for resource, _, subresource in paths
        )
    )


def _selects(selector: Json, body: Json) -> bool:
    """A LabelSelector."""
    labels = body["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for each in selector.get("matchExpressions") or ():
        present, value = each["key"] in labels, labels.get(each["key"])
        admitted = {
            "In": present and value in (each.get("values") or ()),
            "NotIn": not present or value not in (each.get("values") or ()),
            "Exists": present,
            "DoesNotExist": not present,
        }
        if not admitted[each["operator"]]:
            return False
    return True


def check_policy(body: Json) -> Iterator[FieldError]:
    """Source: pkg/apis/admissionregistration/validation/validation.go."""
    spec = body.get("spec") or {}
    if not (spec.get("matchConstraints") or {}).get("resourceRules"):
        yield required("spec.matchConstraints.resourceRules")
    if not spec.get("validations"):
        yield required("spec.validations", "validations or auditAnnotations must contain at least one item")
    declarations = Declarations()
    for field in ("matchConditions", "variables", "validations"):
        for place, each in enumerate(spec.get(field) or ()):
            for key in ("expression", "messageExpression"):
                if text := each.get(key):
                    what = _compilation_fault(declarations, field, key, each.get("name", ""), text)
                    if what:
                        yield invalid_value(f"spec.{field}[{place}].{key}", text, what)
    for place, each in enumerate(spec.get("validations") or ()):
        if each.get("reason") and each["reason"] not in _CODES:
            yield errors.unsupported(f"spec.validations[{place}].reason", each["reason"], sorted(_CODES))


def _compilation_fault(declarations: Declarations, field: str, key: str, name: str, text: str) -> str:
    """Empty: none. Source: compile.go, cited in expressions.py, and ReturnTypes of the validating package."""
    try:
        if field == "variables":
            declarations.declare(name, text)
            return ""
        found = declarations.compile(text).type
    except NotCompiled as error:
        return f"compilation failed: {error}"
    if key == "messageExpression":
        return "" if found == STRING else "must evaluate to string"
    return "" if found == BOOL else "must evaluate to bool"


def check_binding(body: Json) -> Iterator[FieldError]:
    spec = body.get("spec") or {}
    if not spec.get("policyName"):
        yield required("spec.policyName")
    if not spec.get("validationActions"):
        yield required("spec.validationActions")
    if reference := spec.get("paramRef"):
        if bool(reference.get("name")) == (reference.get("selector") is not None):
            yield required("spec.paramRef", "one of name or selector must be specified")
        if reference.get("parameterNotFoundAction") not in (_ALLOW, _DENY):
            yield required("spec.paramRef.parameterNotFoundAction")
