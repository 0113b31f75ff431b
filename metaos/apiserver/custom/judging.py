"""Evaluates rules in CEL, in a process of its own: ``python -m metaos.apiserver.custom.judging``.

It reads requests from its input and writes answers to its output, each a length (four bytes) and JSON. Its memory is limited;
who asks limits its time. The library ends loops after some 10,000 rounds.

Requests: ``{"check": SCHEMA, "path": …}`` (what is wrong with a schema's rules), ``{"rules": KEY, "schema": …, "object": …,
"old": …}`` (what they say of an object), ``{"compile": [[EXPRESSION, TYPE, [VARIABLE…]]…]}``,
``{"evaluate": [[NAME, EXPRESSION]…], "data": …}``.
Source: ``k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel`` and ``k8s.io/apiserver/pkg/admission/plugin/policy``.
"""

from __future__ import annotations

import datetime
import os
import re
import resource
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

import orjson
from cel_expr_python import cel
from cel_expr_python.ext import ext_bindings, ext_encoders, ext_math, ext_optional, ext_strings

from metaos.apiserver.custom.functions import declarations, plain
from metaos.apiserver.custom.structural import INT_OR_STRING, Schema, child_of

T = cel.Type
MEMORY_BYTES = 1 << 30
#: Rules of schemas that are kept compiled, and expressions.
MOST_SCHEMAS, MOST_PROGRAMS = 64, 4096
MOST_EXPRESSION = 16 * 1024
RULES = "x-kubernetes-validations"
REASONS = ("FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate")
#: What is found wrong with one object.
MOST_FOUND = 100

_RESERVED = frozenset(
    (
        *("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let"),
        *("loop", "package", "namespace", "return", "var", "void", "while"),
    )
)
_OLD = re.compile(r"\boldSelf\b")
#: Types by the names that stand for them here; ``list:X`` and ``map:X`` are of X.
_NAMED: dict[str, Any] = {"bool": T.BOOL, "string": T.STRING, "int": T.INT, "double": T.DOUBLE, "time": T.TIMESTAMP, "dyn": T.DYN}
_TYPES = {"integer": "int", "number": "double", "boolean": "bool", "string": "string"}
Found = list[Any]
Variables = tuple[tuple[str, str], ...]


class Failed(Exception):
    """An expression that cannot be compiled or evaluated."""


@cache
def _declared() -> list[Any]:
    return declarations()


def _named(name: str) -> Any:
    kind, _, of = name.partition(":")
    if not of:
        return _NAMED[kind]
    return T.List(_named(of)) if kind == "list" else T.Map(T.STRING, _named(of))


@lru_cache(maxsize=MOST_PROGRAMS)
def compiled(expression: str, variables: Variables, wanted: str = "bool") -> Any:
    """Raises :class:`Failed` where it is no expression, or is of another type than ``wanted``."""
    if len(expression) > MOST_EXPRESSION:
        raise Failed(f"an expression may have {MOST_EXPRESSION} characters")
    extensions = [
        each()
        for each in (
            ext_bindings.ExtBindings,
            ext_encoders.ExtEncoders,
            ext_math.ExtMath,
            ext_optional.ExtOptional,
            ext_strings.ExtStrings,
        )
    ]
    try:
        env = cel.NewEnv(variables={name: _named(kind) for name, kind in variables}, functions=_declared(), extensions=extensions)
        program = env.compile(expression)
    except RuntimeError as wrong:
        raise Failed(f"compilation failed: {_plain(wrong)}") from None
    made = program.return_type()
    if wanted != "dyn" and made not in (_NAMED[wanted], T.DYN):
        raise Failed(f"must evaluate to {wanted}")
    return program


def evaluated(program: Any, data: Mapping[str, Any]) -> Any:
    """The value in Python's own types. Raises :class:`Failed`."""
    try:
        found = program.eval(data=data)
    except (RuntimeError, TypeError, ValueError, OverflowError) as wrong:
        raise Failed(_plain(wrong)) from None
    if found.type() == T.ERROR:
        raise Failed(_plain(found.value()))
    return plain(found)


def _plain(error: Any) -> str:
    text = str(error).strip()
    text = re.sub(r"\A[A-Z_]+: |\s*\[[A-Z_]+\]\Z", "", text)
    return "no such key: " + text.removeprefix("Key not found in map : ").strip('"') if text.startswith("Key not found") else text


# -- rules of schemas ------------------------------------------------------------------------------------------


def escaped(name: str) -> str:
    """A property's name as rules write it."""
    if name in _RESERVED:
        return f"__{name}__"
    name = name.replace("__", "__underscores__")
    return name.replace(".", "__dot__").replace("-", "__dash__").replace("/", "__slash__")


def type_of(schema: Schema) -> str:
    """The type of a value of this schema. Objects are maps of anything: the library has no types of one's own."""
    kind = schema.get("type")
    if schema.get("nullable") or schema.get(INT_OR_STRING) or kind is None:
        return "dyn"
    if kind == "array":
        items = schema.get("items")
        return f"list:{type_of(items)}" if isinstance(items, dict) else "list:dyn"
    if kind == "object":
        additional = schema.get("additionalProperties")
        return f"map:{type_of(additional)}" if isinstance(additional, dict) else "map:dyn"
    return _TYPES[kind]


def value_of(value: Any, schema: Schema, *, root: bool = False) -> Any:
    """A value as rules see it: names of properties escaped, numbers of fractions as such."""
    if isinstance(value, dict):
        declared = schema.get("properties") or {}
        found = {}
        for key, child in value.items():
            below = child_of(schema, key)
            found[escaped(key) if key in declared or root else key] = child if below is None else value_of(child, below)
        return found
    if isinstance(value, list):
        items = schema.get("items")
        return [value_of(item, items) for item in value] if isinstance(items, dict) else value
    if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def moment(value: Any, schema: Schema) -> tuple[Any, str]:
    """A rule's own value with its type: a date and time is one where it stands alone."""
    if schema.get("type") == "string" and schema.get("format") == "date-time" and isinstance(value, str):
        try:
            return datetime.datetime.fromisoformat(value.replace("Z", "+00:00")), "time"
        except ValueError:
            pass
    return value_of(value, schema), type_of(schema)


class Tree:
    """The rules of one schema and of all below it; ``None`` where there are none."""

    def __init__(self, schema: Schema, *, root: bool = False) -> None:
        self.schema, self.root = schema, root
        self.rules: list[Mapping[str, Any]] = list(schema.get(RULES) or ())
        self.fields = {key: tree for key, child in (schema.get("properties") or {}).items() if (tree := Tree.of(child))}
        self.values = Tree.of(schema.get("additionalProperties"))
        self.items = Tree.of(schema.get("items"))

    @classmethod
    def of(cls, schema: Any) -> Tree | None:
        tree = cls(schema) if isinstance(schema, dict) else None
        return tree if tree is not None and (tree.rules or tree.fields or tree.values or tree.items) else None

    def judge(self, value: Any, old: Any, there: bool, path: str = "") -> Iterator[Found]:
        """``there``: whether there is an old value to compare with."""
        if value is None:
            return
        unchanged = there and value == old
        for rule in self.rules:
            yield from self._rule(rule, value, old, there, unchanged, path)
        if isinstance(value, dict):
            for key, child in value.items():
                below = self.fields.get(key) or self.values
                if below is not None:
                    known = there and isinstance(old, dict) and key in old
                    yield from below.judge(child, old[key] if known else None, known, f"{path}.{key}" if path else key)
        elif isinstance(value, list) and self.items is not None:
            keys = self.schema.get("x-kubernetes-list-map-keys")
            held = {orjson.dumps([o.get(k) for k in keys]): o for o in old} if there and keys and isinstance(old, list) else {}
            for i, item in enumerate(value):
                before = held.get(orjson.dumps([item.get(k) for k in keys])) if keys and isinstance(item, dict) else None
                yield from self.items.judge(item, before, before is not None, f"{path}[{i}]")

    def _rule(self, rule: Mapping[str, Any], value: Any, old: Any, there: bool, unchanged: bool, path: str) -> Iterator[Found]:
        optional, transition = bool(rule.get("optionalOldSelf")), bool(_OLD.search(rule["rule"]))
        if (transition and not there and not optional) or (unchanged and not transition):
            return
        where = path + (rule.get("fieldPath") or "")
        where, kind = where.removeprefix("."), self.schema.get("type") or ""
        try:
            data, types = self._data(value, old if there else None, there)
            if evaluated(compiled(self._text(rule, "rule"), types), data) is True:
                return
            message = ""
            if rule.get("messageExpression"):
                try:
                    said = evaluated(compiled(self._text(rule, "messageExpression"), types, "string"), data)
                    message = said.strip() if "\n" not in said else ""
                except Failed:
                    message = ""
            text = message or rule.get("message") or f"failed rule: {rule['rule'].strip()}"
            yield [rule.get("reason") or "FieldValueInvalid", where, kind, text]
        except Failed as failed:
            yield ["FieldValueInvalid", where, kind, f"rule evaluation error: {failed}"]

    @staticmethod
    def _text(rule: Mapping[str, Any], part: str) -> str:
        text = str(rule[part])
        if not rule.get("optionalOldSelf"):
            return text
        return f"cel.bind(oldSelf, __there ? optional.of(__old) : optional.none(), ({text}))"

    def _data(self, value: Any, old: Any, there: bool) -> tuple[dict[str, Any], Variables]:
        now, kind = moment(value, self.schema)
        before = moment(old, self.schema)[0] if there else now
        data = {"self": now, "oldSelf": before, "__old": before, "__there": there}
        return data, (("self", kind), ("oldSelf", kind), ("__old", kind), ("__there", "bool"))

    def problems(self, path: str) -> Iterator[Found]:
        """What is wrong with the rules themselves."""
        kind = type_of(self.schema)
        if self.schema.get("type") == "string" and self.schema.get("format") == "date-time":
            kind = "time"
        types = (("self", kind), ("oldSelf", kind), ("__old", kind), ("__there", "bool"))
        for i, rule in enumerate(self.rules):
            where = f"{path}.{RULES}[{i}]"
            for part, wanted in (("rule", "bool"), ("messageExpression", "string")):
                if part == "rule" and not str(rule.get("rule") or "").strip():
                    yield ["FieldValueRequired", f"{where}.rule", "", "rule is not specified"]
                elif rule.get(part):
                    try:
                        compiled(self._text(rule, part), types, wanted)
                    except Failed as failed:
                        yield ["FieldValueInvalid", f"{where}.{part}", rule[part], str(failed)]
            if rule.get("reason") not in (None, *REASONS):
                yield ["FieldValueNotSupported", f"{where}.reason", rule["reason"], "must be a reason of a field"]
            if rule.get("optionalOldSelf") and not _OLD.search(str(rule.get("rule"))):
                yield ["FieldValueInvalid", f"{where}.optionalOldSelf", True, "may not be set if oldSelf is not used in rule"]
        for key, child in self.fields.items():
            yield from child.problems(f"{path}.properties[{key}]")
        for part, below in (("additionalProperties", self.values), ("items", self.items)):
            if below is not None:
                yield from below.problems(f"{path}.{part}")


# -- requests --------------------------------------------------------------------------------------------------

_trees: OrderedDict[str, Tree] = OrderedDict()


def _rules(asked: Mapping[str, Any]) -> Any:
    key = asked["rules"]
    tree = _trees.get(key)
    if tree is None:
        if "schema" not in asked:
            return {"unknown": True}
        tree = _trees[key] = Tree(asked["schema"], root=True)
        while len(_trees) > MOST_SCHEMAS:
            _trees.popitem(last=False)
    _trees.move_to_end(key)
    found = []
    for each in tree.judge(asked["object"], asked.get("old"), asked.get("old") is not None):
        found.append(each)
        if len(found) == MOST_FOUND:
            break
    return {"found": found}


def _evaluate(asked: Mapping[str, Any]) -> Any:
    """Each expression's value or error, by name. Names ``variables.X`` become known to the next."""
    data = dict(asked["data"])
    variables: dict[str, Any] = {}
    types = tuple((name, "dyn") for name in (*data, "variables"))
    found: dict[str, Any] = {}
    for name, expression in asked["evaluate"]:
        try:
            value = evaluated(compiled(expression, types, "dyn"), {**data, "variables": variables})
            found[name] = {"value": value}
            if name.startswith("variables."):
                variables[name.removeprefix("variables.")] = value
        except Failed as failed:
            found[name] = {"error": str(failed)}
    return {"found": found}


def _compile(asked: Mapping[str, Any]) -> Any:
    found = []
    for expression, wanted, names in asked["compile"]:
        try:
            compiled(expression, tuple((name, "dyn") for name in names), wanted)
            found.append("")
        except Failed as failed:
            found.append(str(failed))
    return {"found": found}


def answer(asked: Mapping[str, Any]) -> Any:
    """One request."""
    if "check" in asked:
        return {"found": list(Tree(asked["check"], root=True).problems(asked["path"]))}
    if "rules" in asked:
        return _rules(asked)
    return _evaluate(asked) if "evaluate" in asked else _compile(asked)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(4):
        asked = orjson.loads(source.read(int.from_bytes(head, "big")))
        try:
            said = orjson.dumps(answer(asked), default=str)
        except MemoryError:
            os._exit(1)  # Whoever asked is told by the end of the process, and the next has a fresh one.
        except Exception as fault:
            said = orjson.dumps({"fault": repr(fault)})
        sink.write(len(said).to_bytes(4, "big") + said)
        sink.flush()


if __name__ == "__main__":
    main()
