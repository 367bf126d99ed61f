"""What the faults look like to a client. The other side has set them up, in this order."""

import botocore.exceptions
from common import *

ec2, west = client("ec2"), client("ec2", WEST)
ebs, s3 = client("ebs"), client("s3", read_timeout=1, connect_timeout=1)
for code in ("RequestLimitExceeded", "RequestLimitExceeded", "InternalError"):
    refused(code, ec2.describe_images)
ec2.describe_images()
refused("UnauthorizedOperation", west.describe_images)
ec2.describe_images()
refused("RequestThrottledException", ebs.start_snapshot, VolumeSize=1)
snapshot = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
s3.put_object(Bucket="images", Key="first", Body=b"first")
refused("SlowDown", s3.put_object, Bucket="images", Key="second", Body=b"second")


def fails(error, call, **parameters):
    try:
        call(**parameters)
    except error:
        return
    raise AssertionError(f"{call} with {parameters} did not fail")


# This one was carried out, the next was not, the third was.
lost = (botocore.exceptions.ConnectionClosedError, botocore.exceptions.EndpointConnectionError)
fails(lost, ebs.complete_snapshot, SnapshotId=snapshot, ChangedBlocksCount=0)
fails(botocore.exceptions.ReadTimeoutError, s3.delete_object, Bucket="images", Key="first")
fails(botocore.exceptions.ReadTimeoutError, s3.put_object, Bucket="images", Key="third", Body=b"third")

task = ec2.import_snapshot(DiskContainer={"Format": "raw", "UserBucket": {"S3Bucket": "images", "S3Key": "first"}})
task = ec2.describe_import_snapshot_tasks(ImportTaskIds=[task["ImportTaskId"]])["ImportSnapshotTasks"][0]
assert task["SnapshotTaskDetail"]["Status"] == "deleting", task
task = ec2.describe_import_snapshot_tasks(ImportTaskIds=[task["ImportTaskId"]])["ImportSnapshotTasks"][0]
assert task["SnapshotTaskDetail"]["Status"] == "deleted", task
assert task["SnapshotTaskDetail"]["StatusMessage"] == "no disk", task
copy = west.copy_snapshot(SourceRegion=EAST, SourceSnapshotId=snapshot)["SnapshotId"]
shown = west.describe_snapshots(SnapshotIds=[copy])["Snapshots"][0]
assert shown["State"] == "error" and shown["StateMessage"] == "no copy", shown
image = ec2.register_image(**image(snapshot))["ImageId"]
shown = ec2.describe_images(ImageIds=[image])["Images"][0]
assert shown["State"] == "failed" and shown["StateReason"]["Message"] == "no image", shown
