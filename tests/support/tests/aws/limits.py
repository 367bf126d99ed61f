"""Limits and blocks of a region. The settings: one copy at a time, which takes for ever; one public image; the west
blocks public access."""

from common import *

east, west = client("ec2", EAST), client("ec2", WEST)
snapshot = write_snapshot(EAST)
copy = {"SourceRegion": EAST, "SourceSnapshotId": snapshot}
copied = west.copy_snapshot(**copy)["SnapshotId"]
message = refused("ResourceLimitExceeded", west.copy_snapshot, **copy)
assert message.startswith("Too many snapshot copies in progress"), message
refused("ResourceLimitExceeded", west.copy_snapshot, **copy)
# The limit is that of the destination.
back = write_snapshot(WEST)
east.copy_snapshot(SourceRegion=WEST, SourceSnapshotId=back)

everybody = {"LaunchPermission": {"Add": [{"Group": "all"}]}}
first = east.register_image(**image(snapshot, "first"))["ImageId"]
second = east.register_image(**image(snapshot, "second"))["ImageId"]
east.modify_image_attribute(ImageId=first, **everybody)
east.modify_image_attribute(ImageId=first, **everybody)
message = refused("ResourceLimitExceeded", east.modify_image_attribute, ImageId=second, **everybody)
assert "quota of 1 for the number of public images" in message, message

assert west.get_image_block_public_access_state()["ImageBlockPublicAccessState"] == "block-new-sharing"
assert west.get_snapshot_block_public_access_state()["State"] == "block-all-sharing"
blocked = west.register_image(**image(back))["ImageId"]
refused("OperationNotPermitted", west.modify_image_attribute, ImageId=blocked, **everybody)
permission = {"CreateVolumePermission": {"Add": [{"Group": "all"}]}}
refused("OperationNotPermitted", west.modify_snapshot_attribute, SnapshotId=back, **permission)
west.modify_image_attribute(ImageId=blocked, LaunchPermission={"Add": [{"UserId": "123456789012"}]})
told = west.describe_image_attribute(ImageId=blocked, Attribute="launchPermission")["LaunchPermissions"]
assert told == [{"UserId": "123456789012"}], told

# Without its source, a copy comes to nothing.
east.deregister_image(ImageId=first)
east.deregister_image(ImageId=second, DeleteAssociatedSnapshots=True)
refused("InvalidSnapshot.NotFound", east.delete_snapshot, SnapshotId=snapshot)
