//! The operator's view of the likeliest mistakes: each report names the object, the cause, and the remedy.

use axum::Router;
use axum::http::StatusCode;
use cloud_image_uploader_test_support::advice::Advice;
use cloud_image_uploader_test_support::azure::Fault;
use cloud_image_uploader_test_support::http_server::HttpServer;
use cloud_image_uploader_test_support::program::Program;
use serde_json::json;

use crate::world::*;

/// A storage account that refuses every request.
async fn closed(code: &'static str) -> HttpServer {
    let answer = move || async move { (StatusCode::FORBIDDEN, [("x-ms-error-code", code)], "") };
    HttpServer::start(Router::new().fallback(answer)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_reported_with_their_remedy() {
    let mut advice = Advice::default();
    let world = World::new(&["eastus"]).await;
    world.compose(vec![row("x86_64", &disk("x86_64"))]);
    let folder = world.folder.path().join("compose");
    let run = async |program: Program| program.run(LIMIT).await.unwrap();
    let check = || world.program().arg("check");

    let exit = run(check().env("AZURE_SECRET", "expired")).await;
    advice.add("the client secret has expired: check", &exit);
    let exit = run(world.reconsuming(&[]).env("AZURE_SECRET", "expired")).await;
    advice.add("the client secret has expired: reconsume", &exit);
    let exit = run(check().env("AZURE_SECRET", "the-id-of-the-secret")).await;
    advice.add("the secret's id instead of its value", &exit);
    let exit = run(check().env("AZURE_TENANT", "another-tenant")).await;
    advice.add("the tenant is wrong", &exit);

    world.azure.permit(&["Microsoft.Compute/galleries/*"]);
    advice.add("the role lacks an action: check", &run(check()).await);
    world.azure.permit(&["*"]);
    world.azure.fault("PUT version", Fault::Refuse, usize::MAX);
    let exit = run(world.reconsuming(&[])).await;
    advice.add("the role lacks an action: reconsume", &exit);
    world.azure.mend();

    let gone = Fault::Status(404, "ResourceGroupNotFound");
    world.azure.fault("GET version", gone, usize::MAX);
    let exit = run(world.reconsuming(&[])).await;
    advice.add("the resource group is another one", &exit);
    world.azure.mend();

    let absent = world.config().replace(world.azurite.container(), "absent");
    let exit = run(world.program_with(&absent).arg("check")).await;
    advice.add("the storage container is absent: check", &exit);
    let exit = run(world
        .program_with(&absent)
        .args(["reconsume", "--compose"])
        .arg(&folder))
    .await;
    advice.add("the storage container is absent: reconsume", &exit);

    for (mistake, code) in [
        ("blobs may not be written", "AuthorizationPermissionMismatch"),
        ("the storage account's network rules", "AuthorizationFailure"),
    ] {
        let server = closed(code).await;
        let config = world.config().replace(world.azurite.url(), &server.url());
        let exit = run(world.program_with(&config).arg("check")).await;
        advice.add(mistake, &exit);
    }

    world.azure.add_definition(
        GALLERY,
        X64,
        json!({
            "osType": "Linux", "osState": "Generalized", "hyperVGeneration": "V1", "architecture": "x64",
            "identifier": {"publisher": "Fedora", "offer": "Cloud", "sku": X64},
        }),
    );
    advice.add("an image definition does not fit: check", &run(check()).await);
    let exit = run(world.reconsuming(&[])).await;
    advice.add("an image definition does not fit: reconsume", &exit);

    insta::with_settings!({
        snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true,
    }, {
        insta::assert_snapshot!("advice-azure", advice.document());
    });
}
