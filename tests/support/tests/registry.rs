//! The registries let in who should come in, and skopeo reads back what it wrote.

use std::{fs, path::Path, time::Duration};

use anyhow::Result;
use aws_lc_rs::digest::{SHA256, digest};
use cloud_image_uploader_test_support::{
    registry::Registry,
    skopeo::{Skopeo, inspect_layout},
    token_server::Lifetime,
};
use serde_json::json;

/// The smallest OCI layout that skopeo copies: one manifest, one configuration, one layer.
fn layout(folder: &Path) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let blob = |bytes: &[u8]| -> Result<(String, usize)> {
        let hash: String = digest(&SHA256, bytes)
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        fs::write(blobs.join(&hash), bytes)?;
        Ok((format!("sha256:{hash}"), bytes.len()))
    };
    let (layer, layer_size) = blob(&[0; 1024])?;
    let (config, config_size) = blob(
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer]}})
            .to_string()
            .as_bytes(),
    )?;
    let (manifest, manifest_size) = blob(
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size}],
        })
        .to_string()
        .as_bytes(),
    )?;
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size,
        "platform": {"architecture": "amd64", "os": "linux"},
    }]});
    fs::write(folder.join("index.json"), index.to_string())?;
    Ok(())
}

/// Copies an image in and out again, and sees both in the access log.
async fn round_trip(registry: &Registry) -> Result<()> {
    let folder = registry.folder().join("image");
    layout(&folder)?;
    let skopeo = Skopeo::new(registry)?;
    assert!(registry.writes().await?.is_empty());
    skopeo
        .copy_from(&format!("oci:{}", folder.display()), "team/fedora:43")
        .await?;
    assert_eq!(skopeo.tags("team/fedora").await?, ["43"]);
    assert_eq!(skopeo.inspect("team/fedora:43").await?["schemaVersion"], 2);
    let digest = skopeo.digest("team/fedora:43").await?;
    assert!(digest.starts_with("sha256:"), "{digest}");
    assert_eq!(
        skopeo.inspect_raw(&format!("team/fedora@{digest}")).await?,
        skopeo.inspect_raw("team/fedora:43").await?
    );
    let back = registry.folder().join("back");
    skopeo.copy_to_layout("team/fedora:43", &back).await?;
    assert_eq!(inspect_layout(&back).await?["schemaVersion"], 2);

    let writes = registry.writes().await?;
    assert!(
        writes.iter().any(|request| request.method == "PUT"
            && request.path == "/v2/team/fedora/manifests/43"
            && request.status == 201),
        "{writes:?}"
    );
    // Reading added nothing.
    skopeo.inspect_raw("team/fedora:43").await?;
    assert_eq!(registry.writes().await?.len(), writes.len());
    assert!(skopeo.inspect("team/fedora:44").await.is_err());
    Ok(())
}

#[tokio::test]
async fn open_registry() -> Result<()> {
    round_trip(&Registry::open().await?).await
}

#[tokio::test]
async fn guarded_registry_wants_certificate_and_password() -> Result<()> {
    let registry = Registry::guarded().await?;
    round_trip(&registry).await?;
    let mut skopeo = Skopeo::new(&registry)?;
    let good = skopeo.access.clone();
    skopeo.access.credentials = Some(("uploader".into(), "wrong".into()));
    assert!(skopeo.inspect("team/fedora:43").await.is_err());
    skopeo.access = good;
    // The authority alone, without the client's own certificate.
    let bare = registry.folder().join("bare");
    fs::create_dir(&bare)?;
    fs::copy(registry.access.ca.as_ref().unwrap(), bare.join("ca.crt"))?;
    skopeo.access.cert_dir = Some(bare);
    let error = format!("{:#}", skopeo.inspect("team/fedora:43").await.unwrap_err());
    assert!(error.contains("certificate"), "{error}");
    Ok(())
}

#[tokio::test]
async fn token_registry() -> Result<()> {
    let registry = Registry::with_tokens(Lifetime::default()).await?;
    round_trip(&registry).await?;
    let tokens = registry.tokens.as_ref().unwrap();
    assert!(tokens.issued() > 0);
    assert_eq!(tokens.refused(), 0);
    let mut skopeo = Skopeo::new(&registry)?;
    skopeo.access.credentials = Some(("uploader".into(), "wrong".into()));
    assert!(skopeo.inspect("team/fedora:43").await.is_err());
    assert!(tokens.refused() > 0);
    Ok(())
}

/// The registry itself forgives a minute; the tokens make up for that.
#[tokio::test]
async fn tokens_end_when_they_should() -> Result<()> {
    let dead = Lifetime {
        real: Duration::ZERO,
        announced: Duration::from_secs(300),
    };
    let registry = Registry::with_tokens(dead).await?;
    let skopeo = Skopeo::new(&registry)?;
    assert!(skopeo.tags("team/fedora").await.is_err());
    assert!(registry.tokens.as_ref().unwrap().issued() > 0);
    let requests = registry.requests().await?;
    assert!(requests.iter().all(|request| request.status == 401), "{requests:?}");
    Ok(())
}
