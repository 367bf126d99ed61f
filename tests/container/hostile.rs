//! Archives that are not what they should be: a clear error, and nothing tagged.

use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader_test_support::archive::{Entry as TarEntry, OciArchive, Part, Row, tar};
use cloud_image_uploader_test_support::registry::Registry;
use cloud_image_uploader_test_support::skopeo::Skopeo;

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_is_named_and_nothing_is_tagged() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let file = |name: &str| TarEntry::file(name, "x");
    let huge = format!("{{\"x\":\"{}\"}}", "y".repeat(5 << 20));
    let header_bomb = {
        let mut archive = tar(&[TarEntry::file("x".repeat(90), vec![0; 3 << 20])]);
        // The entry becomes the long name of the next.
        archive[156] = b'L';
        let sum: u32 = archive[..148]
            .iter()
            .chain(&archive[156..512])
            .map(|byte| u32::from(*byte))
            .sum::<u32>()
            + 8 * 32;
        archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive
    };
    let faults: Vec<(Vec<u8>, &str)> = vec![
        (oci("amd64", "a").corrupt(Part::Layer(0)).build(), "its digest is"),
        (oci("amd64", "a").corrupt(Part::Layer(1)).build(), "its digest is"),
        (oci("amd64", "a").corrupt(Part::Manifest).build(), "its digest is"),
        (oci("amd64", "a").missing(Part::Layer(0)).build(), "not in the archive"),
        (oci("amd64", "a").missing(Part::Config).build(), "not in the archive"),
        (oci("amd64", "a").missing(Part::Manifest).build(), "not in the archive"),
        (
            oci("amd64", "a").wrong_size(Part::Layer(0)).build(),
            "according to what names it",
        ),
        (
            oci("amd64", "a").wrong_size(Part::Config).build(),
            "according to what names it",
        ),
        (
            oci("arm64", "a").build(),
            "accept it as linux/amd64: its configuration says linux/arm64",
        ),
        (oci("amd64", "a").also(oci("arm64", "a")).build(), "there are 0"),
        (oci("amd64", "a").entry(file("../outside")).build(), "outside"),
        (oci("amd64", "a").entry(file("/etc/passwd")).build(), "outside"),
        (
            oci("amd64", "a")
                .entry(TarEntry::symlink("link", "../../etc/passwd"))
                .build(),
            "outside",
        ),
        (
            oci("amd64", "a")
                .entry(TarEntry::symlink("link", "/etc/passwd"))
                .build(),
            "outside",
        ),
        (
            oci("amd64", "a").entry(TarEntry::hardlink("link", "../x")).build(),
            "outside",
        ),
        (oci("amd64", "a").entry(file("index.json")).build(), "it is there twice"),
        (
            oci("amd64", "a").wrong_diff_ids().build(),
            "according to the configuration",
        ),
        (
            oci("amd64", "a").huge_index(5 << 20).build(),
            "longer than 4194304 bytes",
        ),
        (
            tar(&[TarEntry::file("manifest.json", huge)]),
            "longer than 4194304 bytes",
        ),
        (oci("amd64", "a").truncated(100_000).build(), "unexpected EOF"),
        (
            tar(&(0..10_001).map(|number| file(&number.to_string())).collect::<Vec<_>>()),
            "more than 10000 entries",
        ),
        (tar(&[file("hello")]), "neither an OCI nor a docker archive"),
        (b"hello".repeat(1000), "unpack it"),
        (header_bomb, "headers have more than"),
        (tar(&[TarEntry::file("index.json", "{")]), "understand index.json"),
        (
            docker("amd64", "a").wrong_diff_ids().build(),
            "according to the configuration",
        ),
        (docker("amd64", "a").link_outside().build(), "outside"),
        (docker("amd64", "a").missing_layer(0).build(), "not in the archive"),
        (docker("amd64", "a").missing_layer(1).build(), "not in the archive"),
        (docker("arm64", "a").build(), "its configuration says linux/arm64"),
        (
            [oci("amd64", "a").build(), vec![0; 2 << 20]].concat(),
            "bytes behind it",
        ),
    ];
    let sound = arm("a");
    for (number, (archive, expected)) in faults.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        // The other architecture is sound, and must not be published alone.
        let rows = vec![Row::container("Container_Base", "x86_64", archive), sound.clone()];
        let deliverable = deliverable(&section, folder.path(), FIRST, rows).await;
        let failure = publish(&provider, &deliverable, &task()).await.expect_err(expected);
        let text = failure.to_string();
        assert!(text.contains(expected), "{number}: {text:?} lacks {expected:?}");
        assert!(
            text.contains(".x86_64.oci.tar.xz"),
            "{number}: {text:?} does not name the image"
        );
        assert_eq!(failure.class(), Class::Deliverable, "{number}: {text}");
    }
    let skopeo = Skopeo::new(&registry).unwrap();
    for tag in ["43", "latest"] {
        assert!(
            skopeo.inspect_raw(&format!("{FULL}:{tag}")).await.is_err(),
            "{tag} was pushed"
        );
    }
    let manifests = registry
        .writes()
        .await
        .unwrap()
        .into_iter()
        .filter(|write| write.path.contains("/manifests/"));
    let only_arm = oci("arm64", "a").layout().digest();
    for write in manifests {
        assert!(write.path.ends_with(&only_arm), "a manifest was pushed: {write:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_checksum_is_reported_rather_than_its_consequences() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    for archive in [
        oci("amd64", "a").build(),
        oci("amd64", "a").corrupt(Part::Layer(0)).build(),
        OciArchive::new("arm64").build(),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let row = Row::container("Container_Base", "x86_64", archive).wrong_checksum();
        let deliverable = deliverable(&section, folder.path(), FIRST, vec![row]).await;
        let failure = publish(&provider, &deliverable, &task()).await.expect_err("published");
        assert!(failure.to_string().contains("its SHA-256 is"), "{failure}");
        assert_eq!(failure.class(), Class::Deliverable);
    }
    let writes = registry.writes().await.unwrap();
    assert!(
        !writes.iter().any(|write| write.path.contains("/manifests/")),
        "{writes:?}"
    );
}
