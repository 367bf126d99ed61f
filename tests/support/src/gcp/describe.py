"""Prints all images of a project, and the heads of families, as Google's own client reads them."""

import json
import sys

import google.auth
from google.api_core.exceptions import NotFound
from google.cloud.compute_v1 import Image, ImagesClient
from google.cloud.compute_v1.services.images.transports import ImagesRestTransport


def main(host, project, *families):
    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    client = ImagesClient(transport=ImagesRestTransport(host=host, credentials=credentials, url_scheme="http"))

    def head(family):
        try:
            return client.get_from_family(project=project, family=family).name
        except NotFound:
            return None

    images = {image.name: Image.to_dict(image, use_integers_for_enums=False) for image in client.list(project=project)}
    json.dump({"images": images, "families": {family: head(family) for family in families}}, sys.stdout)


main(*sys.argv[1:])
