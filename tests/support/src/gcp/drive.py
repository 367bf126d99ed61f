"""Drives the fake with Google's own client, and asserts the rules that it promises."""

import sys
import uuid

import google.auth
from google.api_core import exceptions
from google.cloud import compute_v1 as compute
from google.cloud.compute_v1.services.global_operations.transports import GlobalOperationsRestTransport
from google.cloud.compute_v1.services.images.transports import ImagesRestTransport


def main(host, project, source, bad_source):
    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    options = {"host": host, "credentials": credentials, "url_scheme": "http"}
    images = compute.ImagesClient(transport=ImagesRestTransport(**options))
    operations = compute.GlobalOperationsClient(transport=GlobalOperationsRestTransport(**options))

    def ended(operation):
        """Waits with the service's own wait, and returns the code of its error."""
        name = getattr(operation, "name", operation)
        while (now := operations.wait(project=project, operation=name)).status != compute.Operation.Status.DONE:
            pass
        assert operations.get(project=project, operation=name).name == name
        return now.error.errors[0].code if now.error.errors else None

    def image(name, **fields):
        fields.setdefault("raw_disk", compute.RawDisk(source=source))
        return compute.Image(name=name, **fields)

    def insert(resource, **fields):
        return images.insert_unary(request={"project": project, "image_resource": resource, **fields})

    def refused(error, call, *arguments, **fields):
        try:
            call(*arguments, **fields)
        except error:
            return
        raise AssertionError(f"not refused with {error.__name__}: {call} {arguments} {fields}")

    def of_family(name):
        return images.get_from_family(project=project, family=name).name

    # Making: pending, then ready; one name once; a request repeated by its id is one request.
    request = str(uuid.uuid4())
    features = [compute.GuestOsFeature(type_=name) for name in ["UEFI_COMPATIBLE", "GVNIC", "SEV_CAPABLE"]]
    first = image(
        "first", architecture="X86_64", guest_os_features=features, labels={"a": "b"}, storage_locations=["us"]
    )
    begun = insert(first, request_id=request)
    assert images.get(project=project, image="first").status == "PENDING"
    assert insert(first, request_id=request).name == begun.name
    assert ended(begun) is None
    made = images.get(project=project, image="first")
    assert (made.status, made.architecture, dict(made.labels)) == ("READY", "X86_64", {"a": "b"}), made
    assert made.disk_size_gb == 1 and made.storage_locations == ["us"], made
    refused(exceptions.Conflict, insert, first)

    # Calls that the reference forbids.
    arm = {"architecture": "ARM64", "guest_os_features": features}
    for name, fields in [
        ("Upper", {}),
        ("with_underscore", {}),
        ("ends-with-", {}),
        ("x" * 64, {}),
        ("arm", arm),
        ("label", {"labels": {"a": "Upper.case"}}),
        ("label", {"labels": {"a": "x" * 64}}),
        ("deprecated", {"deprecated": compute.DeprecationStatus(state="DEPRECATED")}),
        ("two", {"storage_locations": ["us", "eu"]}),
        ("absent", {"raw_disk": compute.RawDisk(source=source + "-absent")}),
        ("elsewhere", {"raw_disk": compute.RawDisk(source="gs://test-bucket/x")}),
    ]:
        refused(exceptions.BadRequest, insert, image(name, **fields))
    bad = insert(image("bad", raw_disk=compute.RawDisk(source=bad_source)))
    assert ended(bad) == "INVALID_IMAGE"
    assert images.get(project=project, image="bad").status == "FAILED"

    # Families: the newest that is not deprecated is the head, at once.
    ended(insert(image("second", family="f")))
    assert of_family("f") == "second"
    ended(images.patch_unary(project=project, image="first", image_resource=compute.Image(family="f")))
    assert of_family("f") == "second", "the first is older"
    link = images.get(project=project, image="first").self_link
    status = compute.DeprecationStatus(state="DEPRECATED", replacement=link, deprecated="2025-01-01T00:00:00Z")
    ended(images.deprecate_unary(project=project, image="second", deprecation_status_resource=status))
    assert of_family("f") == "first"
    assert images.get(project=project, image="second").deprecated.state == "DEPRECATED"
    active = compute.DeprecationStatus(state="ACTIVE")
    ended(images.deprecate_unary(project=project, image="second", deprecation_status_resource=active))
    assert of_family("f") == "second"
    refused(exceptions.NotFound, of_family, "g")
    wrong = compute.DeprecationStatus(state="DEPRECATED", deprecated="yesterday")
    refused(
        exceptions.BadRequest,
        images.deprecate_unary,
        project=project,
        image="second",
        deprecation_status_resource=wrong,
    )
    labels = compute.Image(labels={"c": "d"})
    refused(exceptions.BadRequest, images.patch_unary, project=project, image="first", image_resource=labels)

    # Labels: only with the fingerprint of those that were read.
    def label(fingerprint):
        new = compute.GlobalSetLabelsRequest(labels={"c": "d"}, label_fingerprint=fingerprint)
        return images.set_labels_unary(project=project, resource="first", global_set_labels_request_resource=new)

    fingerprint = images.get(project=project, image="first").label_fingerprint
    ended(label(fingerprint))
    assert dict(images.get(project=project, image="first").labels) == {"c": "d"}
    refused(exceptions.PreconditionFailed, label, fingerprint)

    # Lists: by pages, and filtered.
    listed = [found.name for found in images.list(request={"project": project, "max_results": 1})]
    assert listed == ["bad", "first", "second"], listed
    listed = [found.name for found in images.list(request={"project": project, "filter": "labels.c = d"})]
    assert listed == ["first"], listed

    asked = compute.TestPermissionsRequest(permissions=["compute.images.get", "compute.images.delete"])
    granted = images.test_iam_permissions(
        project=project, resource="first", test_permissions_request_resource=asked
    )
    assert list(granted.permissions) == ["compute.images.get"], granted

    # Deleting, by number too.
    ended(images.delete_unary(project=project, image="second"))
    ended(images.delete_unary(project=project, image=str(images.get(project=project, image="bad").id)))
    assert [found.name for found in images.list(project=project)] == ["first"]
    refused(exceptions.NotFound, images.delete_unary, project=project, image="second")
    refused(exceptions.NotFound, images.get, project=project, image="second")


main(*sys.argv[1:])
