//! The parts of `tests/measure` that are not Python: the program's data path into stand-in targets, the server that
//! images are read from and uploads go to, and a disk as a compressing file system makes it.
//!
//! ```text
//! measure serve FOLDER                           prints two URLs, files and sink, and serves until standard input ends
//! measure azure                                  likewise a gallery and a sink for page blobs, and what a client needs
//! measure run SHAPE SINK IMAGE SIZE SHA256 …     takes images, all at once, to nothing, dense, ebs, or pages
//! measure extents DISK NEW                       packs what a disk holds into zstd extents
//! measure big ARCHIVE BYTES                      writes a container archive of noise
//! ```

mod path;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cloud_image_uploader::images::source::is_zero;
use cloud_image_uploader_test_support::archive::big;
use cloud_image_uploader_test_support::azure::{ACCOUNT, Azure, Form, GROUP, Times};
use cloud_image_uploader_test_support::files::Files;
use cloud_image_uploader_test_support::sink::Sink;
use serde_json::json;
use tokio::task::JoinSet;

use crate::path::{Shape, image, run, sources};

/// The unit that btrfs compresses at once.
const EXTENT: usize = 128 << 10;
/// The unit that btrfs rounds the compressed size up to.
const SECTOR: usize = 4 << 10;
const GALLERY: &str = "Fedora";
const REGION: &str = "eastus";

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match &words[..] {
        ["serve", folder] => serve(Path::new(folder)).await,
        ["azure"] => azure().await,
        ["run", shape, sink, images @ ..] => run_all(shape, sink, images).await,
        ["extents", disk, new] => extents(Path::new(disk), Path::new(new)),
        ["big", archive, bytes] => Ok(big(Path::new(archive), bytes.parse()?).map(drop)?),
        _ => bail!("see the head of tests/bench/measure.rs"),
    }
}

async fn serve(folder: &Path) -> Result<()> {
    let files = Files::start(folder).await?;
    let sink = Sink::start().await?;
    println!("{} {}", files.url(""), sink.url());
    end_of_input().await
}

/// A gallery that takes no time, so that what is measured is the upload.
async fn azure() -> Result<()> {
    let sink = Sink::start().await?;
    let azure = Azure::start(None).await?;
    azure.set_form(Form::None);
    azure.set_times(|times| {
        *times = Times {
            import: Duration::ZERO,
            region: Duration::ZERO,
            other: Duration::ZERO,
            forgetting: Duration::ZERO,
        };
    });
    azure.add_gallery(GALLERY, REGION);
    let section = format!(
        "[consumer_config.azure]\npublish_amqp_messages = false\nlocation = \"{REGION}\"\n\
         resource_group_name = \"{GROUP}\"\nstorage_account_name = \"{ACCOUNT}\"\nstorage_container_name = \"vhds\"\n\
         gallery_name = \"{GALLERY}\"\ngallery_description = \"Images\"\n\
         resource_manager_endpoint = \"{arm}\"\nauthority_host = \"{arm}\"\nblob_endpoint = \"{blobs}/{ACCOUNT}\"\n\
         [[consumer_config.azure.target_regions]]\nname = \"{REGION}\"\nregional_replica_count = 1\n\
         storage_account_type = \"Standard_LRS\"\n",
        arm = azure.url(),
        blobs = sink.url(),
    );
    let environment: HashMap<_, _> = azure.environment().into_iter().collect();
    println!(
        "{}",
        json!({"sink": sink.url(), "section": section, "environment": environment})
    );
    end_of_input().await
}

/// Waits until the parent process has ended, which closes standard input.
async fn end_of_input() -> Result<()> {
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

async fn run_all(shape: &str, sink: &str, images: &[&str]) -> Result<()> {
    let shape = match shape {
        "nothing" => Shape::Nothing,
        "dense" => Shape::Dense,
        "ebs" => Shape::Ebs,
        "pages" => Shape::Pages,
        _ => bail!("no such shape: {shape}"),
    };
    let sources = sources()?;
    let mut running = JoinSet::new();
    let (images, rest) = images.as_chunks::<3>();
    ensure!(rest.is_empty(), "an image is given by location, size, and SHA-256");
    for &[location, size, sha256] in images {
        let (image, sink) = (image(location, size.parse()?, sha256)?, sink.to_owned());
        let sources = sources.clone();
        running.spawn(async move { run(&sources, &image, shape, &sink).await });
    }
    while let Some(size) = running.join_next().await {
        println!("{}", size??);
    }
    Ok(())
}

/// Replaces each extent that holds anything by its zstd frame, padded to whole sectors, one behind the other.
fn extents(disk: &Path, new: &Path) -> Result<()> {
    let mut disk = BufReader::new(File::open(disk).with_context(|| format!("open {}", disk.display()))?);
    let mut out = BufWriter::new(File::create(new).with_context(|| format!("create {}", new.display()))?);
    let mut extent = Vec::with_capacity(EXTENT);
    loop {
        extent.clear();
        if disk.by_ref().take(EXTENT as u64).read_to_end(&mut extent)? == 0 {
            break;
        }
        if is_zero(&extent) {
            continue;
        }
        let mut packed = zstd::bulk::compress(&extent, 1)?;
        packed.resize(packed.len().next_multiple_of(SECTOR), 0);
        out.write_all(&packed)?;
    }
    // As much again is free space.
    let size = out.stream_position()?;
    out.flush()?;
    out.into_inner()?.set_len((2 * size).next_multiple_of(1 << 20))?;
    Ok(())
}
