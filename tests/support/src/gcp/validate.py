"""Holds recorded calls against Google's own description of its services.

The description is the discovery document that google-api-python-client brings: which parameters a method has, and what
its body may hold. Prints one line for each thing that is wrong, and ends with 1 if there is any.
"""

import json
import re
import sys
from importlib import resources

from jsonschema import Draft202012Validator

SERVICES = {"images": "compute.v1", "globalOperations": "compute.v1", "objects": "storage.v1", "buckets": "storage.v1"}
# The bytes of an upload and what goes with them are no methods of their own.
SESSIONS = {"objects.upload", "objects.status", "objects.cancel"}


def schema(value):
    """A schema of the document as JSON Schema: references by path, and no field that it does not name."""
    if isinstance(value, list):
        return [schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return {"$ref": "#/$defs/" + value["$ref"]}
    kept = {"type", "enum", "pattern", "items", "additionalProperties"}
    new = {key: schema(item) for key, item in value.items() if key in kept}
    if new.get("type") == "any":
        del new["type"]
    if "properties" in value:
        new["properties"] = {name: schema(item) for name, item in value["properties"].items()}
        new.setdefault("additionalProperties", False)
    return new


def load(service):
    documents = resources.files("googleapiclient.discovery_cache") / "documents"
    return json.loads((documents / f"{service}.json").read_text())


def faults(call, document):
    resource, verb = call["name"].split(".")
    method = document["resources"][resource]["methods"][verb]
    known = set(method.get("parameters", {})) | set(document["parameters"]) | {"uploadType"}
    for name, parameter in method.get("parameters", {}).items():
        what = parameter.get("location") == "path" and name in ("image", "resource", "operation", "family")
        if what and not re.fullmatch(parameter["pattern"], call["target"]):
            yield f"{name} is {call['target']!r}"
    for name, _ in call["query"]:
        # System parameters, https://cloud.google.com/apis/docs/system-parameters
        if name not in known and not name.startswith("$"):
            yield f"unknown parameter {name}"
    if "request" in method:
        definitions = {name: schema(item) for name, item in document["schemas"].items()}
        wanted = {"$ref": "#/$defs/" + method["request"]["$ref"], "$defs": definitions}
        for error in Draft202012Validator(wanted).iter_errors(call["body"] or {}):
            yield f"{error.json_path}: {error.message}"
    elif call["body"]:
        yield "a body where there is none"


def main(path):
    with open(path, encoding="utf-8") as file:
        calls = [call for call in json.load(file) if "." in call["name"] and call["name"] not in SESSIONS]
    documents = {service: load(service) for service in set(SERVICES.values())}
    wrong = 0
    for call in calls:
        for fault in faults(call, documents[SERVICES[call["name"].split(".")[0]]]):
            print(f"{call['name']} {call['target']}: {fault}")
            wrong += 1
    sys.exit(1 if wrong or not calls else 0)


main(sys.argv[1])
