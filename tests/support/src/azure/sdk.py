"""Calls the vendor's SDK: one call as JSON on standard input, its result as JSON on standard output.

Arguments: Resource Manager's URL, the subscription, a token for it, the container's URL, the blob service's authority.
"""

import hashlib
import json
import sys
import time
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.mgmt.compute import ComputeManagementClient
from azure.storage.blob import ContainerClient

endpoint, subscription, token, container, authority, blob_token = sys.argv[1:]


class Bearer(SansIOHTTPPolicy):
    """The SDK's own policy shows no token over plain http."""

    def on_request(self, request):
        request.http_request.headers["Authorization"] = f"Bearer {token}"


class Credential:
    def __init__(self, value):
        self.value = value

    def get_token(self, *scopes, **kwargs):
        return AccessToken(self.value, int(time.time()) + 3600)


def compute():
    return ComputeManagementClient(
        Credential(token),
        subscription,
        base_url=endpoint,
        api_version="2023-07-03",
        authentication_policy=Bearer(),
        polling_interval=0,
        retry_total=0,
    )


def plain(value):
    if hasattr(value, "result"):
        value = value.result()
    if hasattr(value, "as_dict"):
        return value.as_dict()
    if hasattr(value, "__next__") or hasattr(value, "by_page"):
        return [plain(item) for item in value]
    return value


def blob(name):
    client = ContainerClient.from_container_url(container, credential=Credential(blob_token), connection_verify=authority)
    client = client.get_blob_client(name)
    content = client.download_blob().readall()
    ranges, _ = client.get_page_ranges()
    return {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "written": sum(part["end"] - part["start"] + 1 for part in ranges),
        "type": client.get_blob_properties().blob_type.value,
    }


call = json.load(sys.stdin)
try:
    if call["name"] == "blob":
        result = blob(*call["arguments"])
    else:
        function = compute()
        for part in call["name"].split("."):
            function = getattr(function, part)
        result = plain(function(*call["arguments"], **call.get("options", {})))
except HttpResponseError as error:
    code = error.error.code if error.error else None
    result = {"refused": error.status_code, "code": code}
json.dump(result, sys.stdout, default=str)
