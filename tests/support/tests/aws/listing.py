"""Lists: pages, filters, and things that are not visible at once."""

import sys

from common import *

ec2 = client("ec2")
if sys.argv[1] == "pages":
    snapshots = [
        write_snapshot(tags=[("number", str(number)), ("owner", "us")], blocks=[(0, bytes([number]) * BLOCK)])
        for number in range(1, 13)
    ]
    for number, snapshot in enumerate(snapshots):
        ec2.register_image(**image(snapshot, f"image-{number}"))
    pages = list(ec2.get_paginator("describe_snapshots").paginate(OwnerIds=["self"], MaxResults=5))
    assert [len(page["Snapshots"]) for page in pages] == [5, 5, 2], pages
    found = [snapshot["SnapshotId"] for page in pages for snapshot in page["Snapshots"]]
    assert found == sorted(snapshots)
    pages = list(ec2.get_paginator("describe_images").paginate(Owners=["self"], PaginationConfig={"PageSize": 7}))
    assert [len(page["Images"]) for page in pages] == [7, 5], pages
    assert len(ec2.describe_images()["Images"]) == 12
    assert not ec2.describe_images(Owners=["amazon"])["Images"]
    assert not ec2.describe_images(ExecutableUsers=["all"])["Images"]

    def names(*filters):
        filters = [{"Name": name, "Values": values} for name, values in filters]
        return sorted(found["Name"] for found in ec2.describe_images(Filters=filters)["Images"])

    assert names(("name", ["image-1*"])) == ["image-1", "image-10", "image-11"]
    assert names(("name", ["image-1?", "image-2"])) == ["image-10", "image-11", "image-2"]
    assert names(("block-device-mapping.snapshot-id", [snapshots[3]])) == ["image-3"]
    assert names(("name", ["image-3"]), ("architecture", ["arm64"])) == []
    assert len(names(("state", ["available"]), ("is-public", ["false"]))) == 12

    def numbers(*filters):
        filters = [{"Name": name, "Values": values} for name, values in filters]
        return [found["SnapshotId"] for found in ec2.describe_snapshots(Filters=filters)["Snapshots"]]

    assert numbers(("tag:number", ["4"]), ("tag:owner", ["us"])) == [snapshots[3]]
    assert len(numbers(("tag-key", ["owner"]), ("status", ["completed"]))) == 12
    assert numbers(("tag:owner", ["them"])) == []
elif sys.argv[1] == "short":
    # The service gives less than was asked for.
    pages = list(ec2.get_paginator("describe_images").paginate(Owners=["self"]))
    assert [len(page["Images"]) for page in pages] == [4, 4, 4], pages
    ebs = client("ebs")
    snapshot = write_snapshot(blocks=[(index, b"\1" * BLOCK) for index in range(5)])
    first = ebs.list_snapshot_blocks(SnapshotId=snapshot)
    second = ebs.list_snapshot_blocks(SnapshotId=snapshot, NextToken=first["NextToken"])
    blocks = [block["BlockIndex"] for page in (first, second) for block in page["Blocks"]]
    assert blocks == [0, 1, 2, 3, 4] and "NextToken" not in second, (first, second)
else:
    # Each look at something new fails once or twice.
    snapshot = client("ebs").start_snapshot(VolumeSize=1)["SnapshotId"]
    for _ in range(2):
        refused("InvalidSnapshot.NotFound", ec2.describe_snapshots, SnapshotIds=[snapshot])
    assert len(ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]) == 1
    client("ebs").complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=0)
    registered = ec2.register_image(**image(snapshot))["ImageId"]
    assert not ec2.describe_images(Owners=["self"])["Images"]
    refused("InvalidAMIName.Duplicate", ec2.register_image, **image(snapshot))
    tags = {"Resources": [registered], "Tags": [{"Key": "a", "Value": "b"}]}
    refused("InvalidAMIID.NotFound", ec2.create_tags, **tags)
    ec2.create_tags(**tags)
    assert ec2.describe_images(ImageIds=[registered])["Images"][0]["Tags"] == tags["Tags"]
