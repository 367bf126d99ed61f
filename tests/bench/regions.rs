//! The cost of regions: the same image to 2 and to 22 of them, in a cloud where each copy takes as long.
//!
//! ```text
//! cargo run --release --example regions [SECONDS]    for a copy; 20 unless said otherwise
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cloud_image_uploader::base::http;
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::config::{self, Config, Environment};
use cloud_image_uploader::images::source::Sources;
use cloud_image_uploader::model::compose::release::{Release, Stage};
use cloud_image_uploader::model::compose::{Compose, ComposeId};
use cloud_image_uploader::model::select::select;
use cloud_image_uploader::providers::aws::AwsProvider;
use cloud_image_uploader::providers::contract::{Publish, Task};
use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row, noise, xz_blocks};
use cloud_image_uploader_test_support::aws::Cloud;

const COMPOSE: &str = "Fedora-Cloud-43-20260305.0";
/// The most that 22 regions may take of the time of 2.
const WANTED: f64 = 1.3;

#[tokio::main]
async fn main() -> Result<()> {
    let copy = match std::env::args().nth(1) {
        Some(seconds) => Duration::from_secs(seconds.parse().context("SECONDS is a whole number")?),
        None => Duration::from_secs(20),
    };
    let folder = tempfile::tempdir()?;
    let file = "Fedora-Cloud-Base-AmazonEC2-43-20260305.0.x86_64.raw.xz";
    let disk = xz_blocks(&noise(1, 64 << 20), 1 << 20);
    let row = Row::new("raw-xz", "raw.xz", "Cloud_Base", "x86_64", file, disk);
    ComposeBuilder::new(COMPOSE, None).image(row).write(folder.path())?;
    println!("| method | 2 regions | 22 regions | ratio |\n| --- | --- | --- | --- |");
    for method in ["s3-import", "ebs-direct"] {
        let few = publish(folder.path(), method, 2, copy).await?;
        let many = publish(folder.path(), method, 22, copy).await?;
        let ratio = many.as_secs_f64() / few.as_secs_f64();
        println!(
            "| {method} | {:.1} s | {:.1} s | {ratio:.2} |",
            few.as_secs_f64(),
            many.as_secs_f64()
        );
        ensure!(ratio <= WANTED, "22 regions take {ratio:.2} of the time of 2");
    }
    Ok(())
}

/// How long it takes until all of these regions have the image.
async fn publish(folder: &Path, method: &str, count: usize, copy: Duration) -> Result<Duration> {
    let regions: Vec<String> = (1..=count).map(|number| format!("eu-test-{number}")).collect();
    let names: Vec<&str> = regions.iter().map(String::as_str).collect();
    let cloud = Cloud::start(&names).await?;
    cloud.create_bucket(&regions[0], "bucket").await?;
    cloud.settings().copy = copy;
    let text = format!(
        "[consumer_config.aws]\nbase_region = \"eu-test-1\"\nami_regions = {regions:?}\n\
         ami_volume_dev_name = \"/dev/sda1\"\nami_volume_type = \"gp3\"\ns3_bucket_name = \"bucket\"\n\
         snapshot_method = \"{method}\"\n"
    );
    let config = Config::parse(&text, Path::new("regions.toml")).map_err(|problems| anyhow!("{problems}"))?;
    let config::Provider::Aws(section) = &config.provider else {
        unreachable!("the section is there")
    };
    let environment: Environment = cloud.environment().into_iter().collect();
    let provider = AwsProvider::new(section, &environment);

    let http = http::client()?;
    let id = ComposeId::parse(COMPOSE).context("the compose id")?;
    let compose = Compose::fetch(&http, &Resource::Folder(folder.to_owned()), &id, None).await?;
    let release = Release {
        name: "43".to_owned(),
        number: 43,
        stage: Stage::Nightly,
        newest_stable: true,
        end_of_life: None,
    };
    let selection = select(&config.provider.publisher(), &compose, &release, None);
    let deliverable = selection.deliverables.first().context("no image")?;
    let task = Task {
        sources: Sources::new(http, Board::log(), 4, 256 << 20, 2),
        locations: None,
        allow_older: false,
        patience: Duration::from_secs(1800),
    };
    let started = Instant::now();
    let staged = provider
        .stage(deliverable, &task)
        .await
        .map_err(|failure| anyhow!("{failure}"))?;
    let published = provider.release(deliverable, staged, &task).await;
    let published = published.map_err(|failure| anyhow!("{failure}"))?;
    ensure!(published.places.len() == count, "{:?}", published.failed);
    Ok(started.elapsed())
}
