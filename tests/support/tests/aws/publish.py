"""The whole way of an image: object, import, snapshot, copy, image in two regions, public, deprecated, gone."""

from common import *

s3 = client("s3", s3={"addressing_style": "path"})
assert s3.head_bucket(Bucket="images")["BucketRegion"] == EAST
assert s3.get_bucket_location(Bucket="images")["LocationConstraint"] is None
data = b"first" + bytes(6 * 1024 * 1024) + b"last"
upload = s3.create_multipart_upload(Bucket="images", Key="disk.raw", Metadata={"sha256": "abc"})["UploadId"]
assert [listed["UploadId"] for listed in s3.list_multipart_uploads(Bucket="images")["Uploads"]] == [upload]
assert "Uploads" not in s3.list_multipart_uploads(Bucket="images", Prefix="other")
parts = []
for number, part in enumerate([data[: 5 * 1024 * 1024], data[5 * 1024 * 1024 :]], 1):
    target = {"Bucket": "images", "Key": "disk.raw", "UploadId": upload, "PartNumber": number}
    refused("BadDigest", s3.upload_part, Body=part, ChecksumSHA256=sha256(b"other"), **target)
    answer = s3.upload_part(Body=part, ChecksumSHA256=sha256(part), **target)
    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
s3.complete_multipart_upload(Bucket="images", Key="disk.raw", UploadId=upload, MultipartUpload={"Parts": parts})
assert "Uploads" not in s3.list_multipart_uploads(Bucket="images")
head = s3.head_object(Bucket="images", Key="disk.raw")
assert head["ContentLength"] == len(data) and head["Metadata"] == {"sha256": "abc"}, head

assert client("sts").get_caller_identity()["Account"] == "125523088429"
role = client("iam").get_role(RoleName="vmimport")["Role"]
assert role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["Service"] == "vmie.amazonaws.com"
refused("NoSuchEntity", client("iam").get_role, RoleName="other")
quotas = client("service-quotas")
assert quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-0E3CBAB9")["Quota"]["Value"] == 1000
refused("NoSuchResourceException", quotas.get_service_quota, ServiceCode="ec2", QuotaCode="L-00000000")

east, west = client("ec2", EAST), client("ec2", WEST)
regions = {region["RegionName"]: region["OptInStatus"] for region in east.describe_regions()["Regions"]}
assert regions == {EAST: "opt-in-not-required", WEST: "opt-in-not-required"}, regions
regions = east.describe_regions(AllRegions=True)["Regions"]
assert {region["RegionName"] for region in regions if region["OptInStatus"] == "not-opted-in"} == {"af-south-1"}
refused("AuthFailure", client("ec2", "af-south-1").describe_images)
refused("AuthFailure", client("ec2", "eu-west-9").describe_images)

request = {
    "ClientToken": "token-1",
    "Description": "a disk",
    "RoleName": "vmimport",
    "DiskContainer": {"Format": "raw", "UserBucket": {"S3Bucket": "images", "S3Key": "disk.raw"}},
    "TagSpecifications": tagged("import-snapshot-task", compose="Fedora-43"),
}
started = east.import_snapshot(**request)
task = started["ImportTaskId"]
assert started["Tags"] == [{"Key": "compose", "Value": "Fedora-43"}], started
assert east.import_snapshot(**request)["ImportTaskId"] == task
refused("IdempotentParameterMismatch", east.import_snapshot, **(request | {"Description": "another"}))
found = east.describe_import_snapshot_tasks(Filters=[{"Name": "tag:compose", "Values": ["Fedora-43"]}])
assert [one["ImportTaskId"] for one in found["ImportSnapshotTasks"]] == [task]
assert found["ImportSnapshotTasks"][0]["SnapshotTaskDetail"]["Status"] in ("pending", "active"), found
east.get_waiter("snapshot_imported").wait(ImportTaskIds=[task], WaiterConfig=QUICK)
detail = east.describe_import_snapshot_tasks(ImportTaskIds=[task])["ImportSnapshotTasks"][0]["SnapshotTaskDetail"]
assert detail["DiskImageSize"] == len(data) and "Progress" not in detail, detail
imported = detail["SnapshotId"]
snapshot = east.describe_snapshots(SnapshotIds=[imported])["Snapshots"][0]
assert snapshot["VolumeSize"] == 1 and "Tags" not in snapshot, snapshot
assert task in snapshot["Description"]
east.create_tags(Resources=[imported], Tags=[{"Key": "sha256", "Value": "abc"}, {"Key": "gone", "Value": ""}])
east.delete_tags(Resources=[imported], Tags=[{"Key": "gone"}])
found = east.describe_snapshots(OwnerIds=["self"], Filters=[{"Name": "tag:sha256", "Values": ["abc"]}])
assert [(one["SnapshotId"], one["Tags"]) for one in found["Snapshots"]] == [
    (imported, [{"Key": "sha256", "Value": "abc"}])
]
ebs = client("ebs")
blocks = ebs.list_snapshot_blocks(SnapshotId=imported)["Blocks"]
assert [block["BlockIndex"] for block in blocks] == [0, 12], blocks
block = ebs.get_snapshot_block(SnapshotId=imported, **blocks[0])
assert block["BlockData"].read() == data[:BLOCK] and block["DataLength"] == BLOCK

copy = west.copy_snapshot(
    SourceRegion=EAST,
    SourceSnapshotId=imported,
    Description="a copy",
    TagSpecifications=tagged("snapshot", sha256="abc"),
)
assert copy["Tags"] == [{"Key": "sha256", "Value": "abc"}]
copied = copy["SnapshotId"]
assert west.describe_snapshots(SnapshotIds=[copied])["Snapshots"][0]["State"] == "pending"
refused("IncorrectState", west.register_image, **image(copied))
west.get_waiter("snapshot_completed").wait(SnapshotIds=[copied], WaiterConfig=QUICK)

deprecated = "2027-10-01T00:00:00Z"
for ec2, snapshot in [(east, imported), (west, copied)]:
    new = image(snapshot, Description="Fedora", TagSpecifications=tagged("image", compose="Fedora-43"))
    registered = ec2.register_image(**new)["ImageId"]
    message = refused("InvalidAMIName.Duplicate", ec2.register_image, **new)
    assert registered in message, message
    ec2.get_waiter("image_available").wait(ImageIds=[registered], WaiterConfig=QUICK)
    shown = ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": [new["Name"]]}])["Images"]
    assert [one["ImageId"] for one in shown] == [registered]
    shown = shown[0]
    for name in ("Name", "Architecture", "BootMode", "ImdsSupport", "EnaSupport", "SriovNetSupport", "RootDeviceName"):
        assert shown[name] == new[name], shown
    assert shown["Tags"] == new["TagSpecifications"][0]["Tags"] and not shown["Public"], shown
    volume = shown["BlockDeviceMappings"][0]["Ebs"]
    assert volume["SnapshotId"] == snapshot and volume["VolumeSize"] == 1 and volume["VolumeType"] == "gp3", volume

    assert ec2.get_image_block_public_access_state()["ImageBlockPublicAccessState"] == "unblocked"
    assert ec2.get_snapshot_block_public_access_state()["State"] == "unblocked"
    ec2.modify_image_attribute(ImageId=registered, LaunchPermission={"Add": [{"Group": "all"}]})
    told = ec2.describe_image_attribute(ImageId=registered, Attribute="launchPermission")
    assert told["LaunchPermissions"] == [{"Group": "all"}], told
    assert ec2.describe_images(ImageIds=[registered])["Images"][0]["DeprecationTime"], "public images age"
    ec2.modify_snapshot_attribute(
        SnapshotId=snapshot, Attribute="createVolumePermission", OperationType="add", GroupNames=["all"]
    )
    told = ec2.describe_snapshot_attribute(SnapshotId=snapshot, Attribute="createVolumePermission")
    assert told["CreateVolumePermissions"] == [{"Group": "all"}], told
    ec2.enable_image_deprecation(ImageId=registered, DeprecateAt=deprecated)
    shown = ec2.describe_images(ImageIds=[registered])["Images"][0]
    assert shown["DeprecationTime"] == "2027-10-01T00:00:00.000Z" and shown["Public"], shown

# All that was made goes again in the west; the east stays for the other side to look at.
registered = west.describe_images(Owners=["self"])["Images"][0]["ImageId"]
message = refused("InvalidSnapshot.InUse", west.delete_snapshot, SnapshotId=copied)
assert registered in message, message
west.reset_snapshot_attribute(SnapshotId=copied, Attribute="createVolumePermission")
west.disable_image_deprecation(ImageId=registered)
west.modify_image_attribute(ImageId=registered, LaunchPermission={"Remove": [{"Group": "all"}]})
assert not west.describe_images(ImageIds=[registered])["Images"][0]["Public"]
west.deregister_image(ImageId=registered)
refused("InvalidAMIID.Unavailable", west.deregister_image, ImageId=registered)
west.delete_snapshot(SnapshotId=copied)
refused("InvalidSnapshot.NotFound", west.delete_snapshot, SnapshotId=copied)
s3.delete_object(Bucket="images", Key="disk.raw")
