"""What the scripts share: clients that ask once, and a call that must be refused."""

import base64
import hashlib
import os

import boto3
import botocore.config
from botocore.exceptions import ClientError

WEST, EAST = "us-west-2", "us-east-1"
BLOCK = 512 * 1024
ACCESS_KEY, SECRET_KEY = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
QUICK = {"Delay": 0.05, "MaxAttempts": 200}


def client(service, region=EAST, **config):
    once = botocore.config.Config(retries={"total_max_attempts": 1}, **config)
    return boto3.client(service, region_name=region, config=once)


def refused(code, call, **parameters):
    """The call must be refused with this code; returns the message."""
    try:
        answer = call(**parameters)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, f"{error} instead of {code}"
        return error.response["Error"]["Message"]
    raise AssertionError(f"{parameters} was accepted instead of refused with {code}: {answer}")


def sha256(data):
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def put_block(ebs, snapshot, index, data, **changes):
    parameters = {
        "SnapshotId": snapshot,
        "BlockIndex": index,
        "BlockData": data,
        "DataLength": len(data),
        "Checksum": sha256(data),
        "ChecksumAlgorithm": "SHA256",
    }
    return ebs.put_snapshot_block(**(parameters | changes))


def write_snapshot(region=EAST, size=1, tags=(), blocks=()):
    """A completed snapshot made by EBS direct."""
    ebs = client("ebs", region)
    tags = [{"Key": key, "Value": value} for key, value in tags]
    snapshot = ebs.start_snapshot(VolumeSize=size, **({"Tags": tags} if tags else {}))["SnapshotId"]
    for index, data in blocks:
        put_block(ebs, snapshot, index, data)
    ebs.complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=len(blocks))
    client("ec2", region).get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig=QUICK)
    return snapshot


def tagged(kind, **tags):
    return [{"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}]


def image(snapshot, name="Fedora-Cloud-Base-AmazonEC2.x86_64-43-1.6", **changes):
    """Parameters of a RegisterImage that goes well."""
    ebs = {"SnapshotId": snapshot, "VolumeType": "gp3", "DeleteOnTermination": True}
    return {
        "Name": name,
        "Architecture": "x86_64",
        "VirtualizationType": "hvm",
        "BootMode": "uefi-preferred",
        "EnaSupport": True,
        "SriovNetSupport": "simple",
        "ImdsSupport": "v2.0",
        "RootDeviceName": "/dev/sda1",
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": ebs}],
    } | changes
