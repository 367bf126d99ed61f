"""Prints what the account has in the regions named, as Amazon's SDK sees it: images with all that is told of them, and
snapshots. One JSON object by region."""

import json
import sys

import boto3


def described(region):
    ec2 = boto3.client("ec2", region_name=region)
    pages = ec2.get_paginator("describe_images").paginate(Owners=["self"], IncludeDeprecated=True)
    images = [image for page in pages for image in page["Images"]]
    for image in images:
        told = ec2.describe_image_attribute(ImageId=image["ImageId"], Attribute="launchPermission")
        image["LaunchPermissions"] = told["LaunchPermissions"]
    pages = ec2.get_paginator("describe_snapshots").paginate(OwnerIds=["self"])
    snapshots = [snapshot for page in pages for snapshot in page["Snapshots"]]
    for snapshot in snapshots:
        told = ec2.describe_snapshot_attribute(
            SnapshotId=snapshot["SnapshotId"], Attribute="createVolumePermission"
        )
        snapshot["CreateVolumePermissions"] = told["CreateVolumePermissions"]
    return {"images": images, "snapshots": snapshots}


json.dump({region: described(region) for region in sys.argv[1:]}, sys.stdout, default=lambda time: time.isoformat())
