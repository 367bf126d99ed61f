"""A request that no model allows."""

from common import *

ec2 = client("ec2", parameter_validation=False)


def strange(params, **_):
    params["body"].update({"ImageID.1": "ami-1", "Filter.1.Values.1": "x"})


def perhaps(params, **_):
    params["body"]["AllRegions"] = "perhaps"


ec2.meta.events.register("before-call.ec2.DescribeImages", strange)
ec2.meta.events.register("before-call.ec2.DescribeRegions", perhaps)
refused("UnknownParameter", ec2.describe_images, Filters=[{"Name": "name", "Values": ["x"]}])
refused("MissingParameter", ec2.delete_snapshot)
refused("InvalidParameterValue", ec2.describe_regions)
# This one is in the model, only the cloud does not know it.
container = {"Format": "raw", "UserBucket": {"S3Bucket": "images", "S3Key": "disk.raw"}}
refused("UnknownParameter", ec2.import_snapshot, DiskContainer=container, Encrypted=False)
refused("ValidationException", client("ebs", parameter_validation=False).start_snapshot, VolumeSize="big")
