"""Calls that EC2 refuses."""

from common import *

ec2, west = client("ec2"), client("ec2", WEST)
loose = client("ec2", parameter_validation=False)
snapshot = write_snapshot(size=2)
ABSENT = "snap-00000000000000000"


def volume(**changes):
    ebs = {"SnapshotId": snapshot, "VolumeType": "gp3"} | changes
    return [{"DeviceName": "/dev/sda1", "Ebs": ebs}]


for code, changes in [
    ("InvalidAMIName.Malformed", {"Name": "ab"}),
    ("InvalidAMIName.Malformed", {"Name": "a" * 129}),
    ("InvalidAMIName.Malformed", {"Name": "Fedora: 43"}),
    ("InvalidParameterValue", {"Architecture": "aarch64"}),
    ("InvalidParameterValue", {"BootMode": "uefi_preferred"}),
    ("InvalidParameterValue", {"ImdsSupport": "v2"}),
    ("InvalidParameterValue", {"SriovNetSupport": "complex"}),
    ("InvalidParameterValue", {"Description": "a" * 256}),
    ("InvalidParameterCombination", {"Architecture": "arm64"}),
    ("InvalidParameterCombination", {"VirtualizationType": "paravirtual"}),
    ("InvalidParameterCombination", {"TpmSupport": "v2.0"}),
    ("InvalidBlockDeviceMapping", {"RootDeviceName": "/dev/xvda"}),
    ("InvalidBlockDeviceMapping", {"BlockDeviceMappings": volume(VolumeSize=1)}),
    ("InvalidParameterValue", {"BlockDeviceMappings": volume(VolumeType="gp4")}),
    ("InvalidSnapshot.NotFound", {"BlockDeviceMappings": volume(SnapshotId=ABSENT)}),
    ("UnknownParameter", {"BlockDeviceMappings": volume(Encrypted=True)}),
    ("InvalidParameterValue", {"TagSpecifications": tagged("snapshot", a="b")}),
    ("InvalidParameterValue", {"TagSpecifications": tagged("image", **{"aws:name": "b"})}),
    ("InvalidParameterValue", {"TagSpecifications": tagged("image", **{"a" * 128: "b"})}),
    ("InvalidParameterValue", {"TagSpecifications": tagged("image", a="b" * 256)}),
    ("TagLimitExceeded", {"TagSpecifications": tagged("image", **{f"key{number}": "" for number in range(51)})}),
    ("DryRunOperation", {"DryRun": True}),
]:
    refused(code, loose.register_image, **image(snapshot, **changes))
for missing in ("Name", "RootDeviceName"):
    parameters = image(snapshot)
    del parameters[missing]
    refused("MissingParameter", loose.register_image, **parameters)
assert not ec2.describe_images(Owners=["self"])["Images"], "nothing was registered"
arm = image(snapshot, "arm", Architecture="arm64", BootMode="uefi")
registered = ec2.register_image(**arm)["ImageId"]

container = {"Format": "raw", "UserBucket": {"S3Bucket": "images", "S3Key": "disk.raw"}}
client("s3").put_object(Bucket="images", Key="disk.raw", Body=b"disk")
for code, changes in [
    ("InvalidParameter", {"RoleName": "other"}),
    ("InvalidParameter", {"DiskContainer": container | {"Format": "qcow2"}}),
    ("InvalidParameter", {"DiskContainer": container | {"UserBucket": {"S3Bucket": "images", "S3Key": "other"}}}),
    ("InvalidParameter", {"DiskContainer": container | {"UserBucket": {"S3Bucket": "other", "S3Key": "disk.raw"}}}),
    ("InvalidParameterValue", {"TagSpecifications": tagged("snapshot", a="b")}),
]:
    refused(code, ec2.import_snapshot, **({"DiskContainer": container} | changes))
refused("InvalidParameter", west.import_snapshot, DiskContainer=container)  # The bucket is elsewhere.
# The answer names the bucket's region, and the SDK asks again there; the test checks the recorded calls.
assert client("s3", WEST).list_objects_v2(Bucket="images")["KeyCount"] == 1

group = {"Add": [{"Group": "everybody"}]}
for code, call, parameters in [
    ("InvalidSnapshot.NotFound", west.copy_snapshot, {"SourceRegion": EAST, "SourceSnapshotId": ABSENT}),
    ("InvalidSnapshot.NotFound", west.copy_snapshot, {"SourceRegion": WEST, "SourceSnapshotId": snapshot}),
    ("InvalidParameterValue", west.copy_snapshot, {"SourceRegion": "eu-west-9", "SourceSnapshotId": snapshot}),
    ("InvalidSnapshot.NotFound", ec2.describe_snapshots, {"SnapshotIds": [ABSENT]}),
    ("InvalidParameterValue", ec2.describe_snapshots, {"SnapshotIds": ["snapshot"]}),
    ("InvalidAMIID.NotFound", west.describe_images, {"ImageIds": [registered]}),
    ("InvalidAMIID.Malformed", ec2.describe_images, {"ImageIds": ["image"]}),
    ("InvalidConversionTaskId", ec2.describe_import_snapshot_tasks, {"ImportTaskIds": ["import-snap-0"]}),
    ("InvalidParameterValue", ec2.describe_images, {"Filters": [{"Name": "colour", "Values": ["red"]}]}),
    ("InvalidParameterValue", ec2.describe_images, {"MaxResults": 4}),
    ("InvalidParameterCombination", ec2.describe_images, {"MaxResults": 5, "ImageIds": [registered]}),
    ("InvalidAMIAttributeItemValue", ec2.modify_image_attribute, {"ImageId": registered, "LaunchPermission": group}),
    ("InvalidParameterValue", ec2.modify_image_attribute, {"ImageId": registered, "Attribute": "description"}),
    ("InvalidParameterValue", ec2.enable_image_deprecation, {"ImageId": registered, "DeprecateAt": "2020-01-01"}),
    ("InvalidParameterValue", ec2.enable_image_deprecation, {"ImageId": registered, "DeprecateAt": "2099-01-01"}),
    ("InvalidID", ec2.create_tags, {"Resources": ["vol-1"], "Tags": [{"Key": "a", "Value": "b"}]}),
    ("DryRunOperation", ec2.create_tags, {"Resources": [registered], "Tags": [{"Key": "a"}], "DryRun": True}),
    ("InvalidAction", ec2.describe_volumes, {}),
]:
    refused(code, call, **parameters)

ec2.modify_image_attribute(ImageId=registered, LaunchPermission={"Add": [{"Group": "all"}]})
refused("InvalidParameterValue", ec2.enable_image_deprecation, ImageId=registered, DeprecateAt="2030-01-01")
assert "Tags" not in ec2.describe_images(ImageIds=[registered])["Images"][0]

for key, value in [("aws_access_key_id", "AKIAOTHER"), ("aws_secret_access_key", "other")]:
    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY} | {key: value}
    for service, call in [("ec2", "describe_regions"), ("sts", "get_caller_identity"), ("s3", "list_buckets")]:
        try:
            getattr(boto3.client(service, region_name=EAST, **keys), call)()
        except ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] in (401, 403), error
        else:
            raise AssertionError(f"{call} with a wrong {key} was accepted")
