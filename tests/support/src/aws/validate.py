"""Checks recorded calls, one JSON object a line, against the service models that come with Amazon's SDK: members that
are unknown or missing, values of another type, outside of their limits, or not among the words allowed.

Prints a JSON list of what is wrong.
"""

import datetime
import json
import re
import sys
import urllib.parse

import botocore.session

MODELS = {"servicequotas": "service-quotas"}


def form_name(protocol, name, member):
    """How a form spells a member: EC2 has a rule of its own."""
    serialization = member.serialization
    if protocol != "ec2":
        return serialization.get("name", name)
    if "queryName" in serialization:
        return serialization["queryName"]
    name = serialization.get("name", name)
    return name[0].upper() + name[1:]


def check_form(protocol, shape, form, path):
    """`form` holds the rest of each name below `path`; the empty rest is a value itself."""
    groups = {}
    for key, value in form.items():
        head, _, rest = key.partition(".")
        groups.setdefault(head, {})[rest] = value
    if shape.type_name == "structure":
        names = {form_name(protocol, name, member): (name, member) for name, member in shape.members.items()}
        given = {names[head][0] for head in groups if head in names}
        for missing in set(shape.required_members) - given:
            yield f"{path}: {missing} is missing"
        for head, group in groups.items():
            if head not in names:
                yield f"{path}: {head} is unknown"
            else:
                yield from check_form(protocol, names[head][1], group, f"{path}.{head}")
    elif shape.type_name == "list":
        for head, group in groups.items():
            if not head.isdecimal() or head == "0":
                yield f"{path}: {head} is no index"
            else:
                yield from check_form(protocol, shape.member, group, f"{path}.{head}")
    elif set(form) != {""}:
        yield f"{path}: is no structure"
    else:
        yield from check_text(shape, form[""], path)


def check_text(shape, text, path):
    """A value that travels as text."""
    kind = shape.type_name
    if kind == "boolean":
        if text not in ("true", "false"):
            yield f"{path}: {text!r} is no boolean"
    elif kind in ("integer", "long"):
        if not re.fullmatch(r"-?[0-9]+", text):
            yield f"{path}: {text!r} is no integer"
        else:
            yield from check_limits(shape, int(text), path)
    elif kind in ("float", "double"):
        try:
            float(text)
        except ValueError:
            yield f"{path}: {text!r} is no number"
    elif kind == "timestamp":
        try:
            datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            yield f"{path}: {text!r} is no time"
    elif kind == "string":
        if shape.enum and text not in shape.enum:
            yield f"{path}: {text!r} is none of {shape.enum}"
        yield from check_limits(shape, len(text), path)
        pattern = shape.metadata.get("pattern")
        if pattern and not re.search(pattern, text):
            yield f"{path}: {text!r} does not match {pattern}"


def check_limits(shape, size, path):
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if (least is not None and size < least) or (most is not None and size > most):
        yield f"{path}: {size} is not from {least} to {most}"


def check_json(shape, value, path):
    kind = shape.type_name
    kinds = {"structure": dict, "list": list, "string": str, "boolean": bool, "integer": int, "long": int}
    if kind in kinds and (not isinstance(value, kinds[kind]) or (kinds[kind] is int and isinstance(value, bool))):
        yield f"{path}: {value!r} is no {kind}"
    elif kind == "structure":
        for missing in set(shape.required_members) - set(value):
            yield f"{path}: {missing} is missing"
        for name, inside in value.items():
            if name not in shape.members:
                yield f"{path}: {name} is unknown"
            else:
                yield from check_json(shape.members[name], inside, f"{path}.{name}")
    elif kind == "list":
        for index, inside in enumerate(value):
            yield from check_json(shape.member, inside, f"{path}.{index}")
    elif kind in ("string", "integer", "long", "boolean"):
        yield from check_text(shape, json.dumps(value) if kind == "boolean" else str(value), path)


def check_rest(shape, raw, path):
    """Members are in the path, the query, the headers, and the body, and each place has only its own."""
    query = dict(urllib.parse.parse_qsl(raw["query"] or "", keep_blank_values=True))
    places = {"uri": dict(raw["members"]), "querystring": query, "header": dict(raw["headers"])}
    body = dict(raw["body"] or {})
    given = set()
    for name, member in shape.members.items():
        place = member.serialization.get("location")
        key = name if place == "uri" else member.serialization.get("name", name)
        if name == shape.serialization.get("payload"):
            given.add(name)
        elif place is None:
            if name in body:
                given.add(name)
                yield from check_json(member, body.pop(name), f"{path}.{name}")
        elif (key := key.lower() if place == "header" else key) in places[place]:
            given.add(name)
            yield from check_text(member, places[place].pop(key), f"{path}.{name}")
    for missing in set(shape.required_members) - given:
        yield f"{path}: {missing} is missing"
    for unknown in [*body, *places["uri"], *places["querystring"], *places["header"]]:
        yield f"{path}: {unknown} is unknown"


def check(session, call):
    service, action, raw = call["service"], call["action"], call["raw"]
    model = session.get_service_model(MODELS.get(service, service))
    if action not in model.operation_names:
        yield f"{service} has no action {action}"
        return
    shape = model.operation_model(action).input_shape
    if "form" in raw:
        form = {key: value for key, value in raw["form"].items() if key not in ("Action", "Version")}
        if raw["form"].get("Version") != model.api_version:
            yield f"{action}: the version is {raw['form'].get('Version')}, not {model.api_version}"
        yield from check_form(service, shape, form, action)
    elif "members" in raw:
        yield from check_rest(shape, raw, action)
    else:
        yield from check_json(shape, raw["body"], action)


def main(path):
    session = botocore.session.Session()
    with open(path, encoding="utf-8") as lines:
        problems = [problem for line in lines for problem in check(session, json.loads(line))]
    json.dump(problems, sys.stdout)


main(sys.argv[1])
