//! Images: registered from snapshots, and found again.
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RegisterImage.html>

use jiff::Timestamp;

use super::{
    ACCOUNT, Device, Image, Permissions, State,
    ec2::Context,
    listing::{Filters, Page, all_found},
    refusal::{Refusal, Result},
    request::Parameters,
    state::{Hidden, Pending, new_id},
    tags,
    xml::Xml,
};

const VOLUME_TYPES: [&str; 7] = ["standard", "io1", "io2", "gp2", "gp3", "sc1", "st1"];

pub(super) fn register(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let name = image_name(&mut parameters)?;
    let architecture = parameters.one_of("Architecture", &["i386", "x86_64", "arm64"])?;
    let description = parameters.short("Description", 255)?;
    let virtualization = parameters.one_of("VirtualizationType", &["hvm", "paravirtual"])?;
    let boot_mode = parameters.one_of("BootMode", &["legacy-bios", "uefi", "uefi-preferred"])?;
    let ena = parameters.flag("EnaSupport")?.unwrap_or_default();
    let sriov = parameters.one_of("SriovNetSupport", &["simple"])?;
    let imds = parameters.one_of("ImdsSupport", &["v2.0"])?;
    let tpm = parameters.one_of("TpmSupport", &["v2.0"])?;
    let root_device = parameters.required("RootDeviceName")?;
    let devices = devices(context, &mut parameters)?;
    let tags = tags::specified(&mut parameters, "image")?;
    parameters.finish()?;

    if !devices.iter().any(|device| device.name == root_device) {
        let message = format!("the root device {root_device} is not among the block device mappings");
        return Err(Refusal::new("InvalidBlockDeviceMapping", message));
    }
    // The defaults of EC2 are those of its first years.
    let architecture = architecture.unwrap_or_else(|| "i386".into());
    let virtualization = virtualization.unwrap_or_else(|| "paravirtual".into());
    if virtualization != "hvm" && (ena || sriov.is_some() || boot_mode.is_some() || architecture == "arm64") {
        let message = "networking features, boot modes, and arm64 need an image of virtualization type hvm";
        return Err(Refusal::new("InvalidParameterCombination", message));
    }
    if architecture == "arm64" && boot_mode.as_deref().is_some_and(|mode| mode != "uefi") {
        let message = "images for arm64 boot with uefi only";
        return Err(Refusal::new("InvalidParameterCombination", message));
    }
    if tpm.is_some() && boot_mode.as_deref() != Some("uefi") {
        let message = "TPM support needs the boot mode uefi";
        return Err(Refusal::new("InvalidParameterCombination", message));
    }
    // Unlike everything that looks for images, this knows those of a moment ago.
    if let Some(other) = context.region().images.values().find(|image| image.name == name) {
        let message = format!("AMI name {name} is already in use by AMI {}", other.id);
        return Err(Refusal::new("InvalidAMIName.Duplicate", message));
    }

    let image = Image {
        id: new_id("ami"),
        name,
        description,
        architecture,
        virtualization,
        boot_mode,
        ena,
        sriov,
        imds,
        tpm,
        root_device,
        devices,
        tags,
        permissions: Permissions::default(),
        deprecated: None,
        created: Timestamp::now(),
        state: State::Pending,
        hidden: Hidden(context.settings.hidden),
        pending: Pending::new(context.doom.take()),
    };
    let mut answer = Xml::default();
    answer.text("imageId", &image.id);
    context.region().images.insert(image.id.clone(), image);
    Ok(answer)
}

fn image_name(parameters: &mut Parameters) -> Result<String> {
    let name = parameters.required("Name")?;
    let fits = name
        .chars()
        .all(|letter| letter.is_ascii_alphanumeric() || "()[] ./-'@_".contains(letter));
    if !fits || !(3..=128).contains(&name.len()) {
        let message = "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, \
                       '(', ')', '[', ']', ' ', '.', '/', '-', ''', '@' and '_'";
        return Err(Refusal::new("InvalidAMIName.Malformed", message));
    }
    Ok(name)
}

fn devices(context: &mut Context<'_>, parameters: &mut Parameters) -> Result<Vec<Device>> {
    let refused = |message: String| Err(Refusal::new("InvalidBlockDeviceMapping", message));
    let mut devices: Vec<Device> = Vec::new();
    for mut mapping in parameters.structures("BlockDeviceMapping")? {
        let name = mapping.required("DeviceName")?;
        let Some(mut ebs) = mapping.structure("Ebs") else {
            return refused(format!("the device {name} has no volume"));
        };
        let id = ebs.required("SnapshotId")?;
        let size = ebs.number("VolumeSize")?;
        let kind = ebs.one_of("VolumeType", &VOLUME_TYPES)?;
        let delete_on_termination = ebs.flag("DeleteOnTermination")?.unwrap_or(true);
        ebs.finish()?;
        mapping.finish()?;
        if devices.iter().any(|other| other.name == name) {
            return refused(format!("the device {name} is mapped twice"));
        }
        let Some(snapshot) = context.region().snapshots.get(&id) else {
            return Err(Refusal::new(
                "InvalidSnapshot.NotFound",
                format!("the snapshot '{id}' does not exist"),
            ));
        };
        if snapshot.state != State::Ready {
            let message = format!(
                "the snapshot '{id}' is in an invalid state: {}",
                snapshot.state.of_snapshot()
            );
            return Err(Refusal::new("IncorrectState", message));
        }
        let size = size.unwrap_or(snapshot.size);
        if size < snapshot.size {
            return refused(format!(
                "a volume of {size} GiB is smaller than the snapshot '{id}', which wants at least {} GiB",
                snapshot.size
            ));
        }
        devices.push(Device {
            name,
            snapshot: id,
            size,
            kind: kind.unwrap_or_else(|| "standard".into()),
            delete_on_termination,
        });
    }
    Ok(devices)
}

/// An image by its id, for an action that works on it.
pub(super) fn find<'a>(context: &'a mut Context<'_>, id: &str) -> Result<&'a mut Image> {
    let region = context.region();
    if region.gone.contains(id) {
        let message = format!("the image ID '{id}' is no longer available");
        return Err(Refusal::new("InvalidAMIID.Unavailable", message));
    }
    let image = region.images.get_mut(id).ok_or_else(|| missing(id))?;
    if image.hidden.looks_absent() {
        return Err(missing(id));
    }
    Ok(image)
}

fn missing(id: &str) -> Refusal {
    match id.strip_prefix("ami-") {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
            Refusal::new("InvalidAMIID.NotFound", format!("the image id '{id}' does not exist"))
        }
        _ => Refusal::new(
            "InvalidAMIID.Malformed",
            format!("invalid id: \"{id}\" (expecting \"ami-...\")"),
        ),
    }
}

const FILTERS: [&str; 15] = [
    "architecture",
    "block-device-mapping.device-name",
    "block-device-mapping.snapshot-id",
    "block-device-mapping.volume-size",
    "block-device-mapping.volume-type",
    "creation-date",
    "description",
    "ena-support",
    "image-id",
    "is-public",
    "name",
    "owner-id",
    "root-device-name",
    "state",
    "virtualization-type",
];

pub(super) fn describe(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let ids = parameters.list("ImageId")?;
    let owners = parameters.list("Owner")?;
    let executable_by = parameters.list("ExecutableBy")?;
    // All images are the account's own. Owners see them deprecated or not, and none is disabled here.
    parameters.flag("IncludeDeprecated")?;
    parameters.flag("IncludeDisabled")?;
    let filters = Filters::read(&mut parameters, &FILTERS)?;
    let page = Page::read(&mut parameters, !ids.is_empty(), context.settings.page)?;
    parameters.finish()?;

    let ours = owners.is_empty() || owners.iter().any(|owner| owner == "self" || owner == ACCOUNT);
    let found: Vec<_> = context
        .region()
        .images
        .values_mut()
        .filter(|image| ours && (ids.is_empty() || ids.contains(&image.id)))
        .filter(|image| {
            let allowed = |who: &String| match who.as_str() {
                "all" => image.permissions.public,
                "self" => true,
                user => image.permissions.users.contains(user),
            };
            executable_by.is_empty() || executable_by.iter().any(allowed)
        })
        .filter(|image| filters.pass(&image.tags, |name| attribute(image, name)))
        .filter_map(|image| (!image.hidden.looks_absent()).then_some(&*image))
        .collect();
    if filters.is_empty() {
        all_found(&ids, found.iter().map(|image| image.id.as_str()), missing)?;
    }
    let (found, token) = page.cut(found, |image| &image.id);
    let mut answer = Xml::default();
    answer.list("imagesSet", found, write);
    answer.optional("nextToken", token);
    Ok(answer)
}

fn attribute(image: &Image, name: &str) -> Vec<String> {
    let of_devices = |get: fn(&Device) -> String| image.devices.iter().map(get).collect();
    let one = match name {
        "block-device-mapping.device-name" => return of_devices(|device| device.name.clone()),
        "block-device-mapping.snapshot-id" => return of_devices(|device| device.snapshot.clone()),
        "block-device-mapping.volume-size" => return of_devices(|device| device.size.to_string()),
        "block-device-mapping.volume-type" => return of_devices(|device| device.kind.clone()),
        "architecture" => image.architecture.clone(),
        "creation-date" => moment(image.created),
        "description" => image.description.clone().unwrap_or_default(),
        "ena-support" => image.ena.to_string(),
        "image-id" => image.id.clone(),
        "is-public" => image.permissions.public.to_string(),
        "name" => image.name.clone(),
        "owner-id" => ACCOUNT.to_owned(),
        "root-device-name" => image.root_device.clone(),
        "state" => image.state.of_image().to_owned(),
        _ => image.virtualization.clone(),
    };
    vec![one]
}

fn write(item: &mut Xml, image: &Image) {
    item.text("imageId", &image.id)
        .text("imageLocation", format!("{ACCOUNT}/{}", image.name))
        .text("imageState", image.state.of_image())
        .text("imageOwnerId", ACCOUNT)
        .text("isPublic", image.permissions.public)
        .text("architecture", &image.architecture)
        .text("imageType", "machine")
        .optional("sriovNetSupport", image.sriov.as_ref())
        .text("name", &image.name)
        .optional("description", image.description.as_ref())
        .text("rootDeviceType", "ebs")
        .text("rootDeviceName", &image.root_device)
        .list("blockDeviceMapping", &image.devices, |item, device| {
            item.text("deviceName", &device.name).element("ebs", |ebs| {
                ebs.text("snapshotId", &device.snapshot)
                    .text("volumeSize", device.size)
                    .text("deleteOnTermination", device.delete_on_termination)
                    .text("volumeType", &device.kind)
                    .text("encrypted", false);
            });
        })
        .text("virtualizationType", &image.virtualization)
        .text("hypervisor", "xen")
        .text("enaSupport", image.ena)
        .optional("bootMode", image.boot_mode.as_ref())
        .optional("imdsSupport", image.imds.as_ref())
        .optional("tpmSupport", image.tpm.as_ref())
        .text("creationDate", moment(image.created))
        .optional("deprecationTime", image.deprecated.map(moment))
        .text("platformDetails", "Linux/UNIX")
        .text("usageOperation", "RunInstances");
    if let State::Failed(message) = &image.state {
        item.element("stateReason", |reason| {
            reason.text("code", "Client.InternalError").text("message", message);
        });
    }
    if !image.tags.is_empty() {
        item.tags(&image.tags);
    }
}

/// A time as EC2 writes it.
pub(super) fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}
