"""Validates messages, one JSON object a line, with the schemas of the installed message package.

Prints one JSON list with what the package says about them. Ends with 1 at the first message that is not valid or names
no schema of its own.
"""

import json
import sys

from fedora_messaging import message


def main(path):
    described = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            loaded = message.loads(line)[0]
            schema = json.loads(line)["headers"].get("fedora_messaging_schema")
            if type(loaded) is message.Message:
                sys.exit(f"unknown schema {schema!r} in {loaded.topic}")
            try:
                loaded.validate()
            except Exception as error:
                sys.exit(f"invalid message {loaded.topic}: {error}")
            described.append(
                {
                    "class": type(loaded).__name__,
                    "summary": loaded.summary,
                    "usernames": loaded.usernames,
                    "containers": loaded.containers,
                    "severity": loaded.severity,
                }
            )
    json.dump(described, sys.stdout)


main(sys.argv[1])
