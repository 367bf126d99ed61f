"""Imports that come to nothing: one is cancelled, one loses its object before it has read it."""

from common import *

ec2, s3 = client("ec2"), client("s3")
s3.put_object(Bucket="images", Key="disk.raw", Body=b"disk")
request = {"DiskContainer": {"Format": "RAW", "UserBucket": {"S3Bucket": "images", "S3Key": "disk.raw"}}}


def detail(task):
    tasks = ec2.describe_import_snapshot_tasks(ImportTaskIds=[task])["ImportSnapshotTasks"]
    return tasks[0]["SnapshotTaskDetail"]


task = ec2.import_snapshot(**request)["ImportTaskId"]
assert detail(task)["Status"] == "active" and detail(task)["Progress"] == "50", detail(task)
cancelled = ec2.cancel_import_task(ImportTaskId=task, CancelReason="no longer wanted")
assert (cancelled["PreviousState"], cancelled["State"]) == ("active", "cancelling"), cancelled
assert detail(task)["Status"] == "cancelled", detail(task)
refused("IncorrectState", ec2.cancel_import_task, ImportTaskId=task)

task = ec2.import_snapshot(**request)["ImportTaskId"]
s3.delete_object(Bucket="images", Key="disk.raw")
while detail(task)["Status"] == "active":
    pass
assert detail(task)["Status"] == "deleted" and "SnapshotId" not in detail(task), detail(task)
assert "cannot be read" in detail(task)["StatusMessage"], detail(task)
