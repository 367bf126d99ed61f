//! Where a server sends its readers, and where they do not go.

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader::base::http;
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::images::source::{Form, Sources};
use cloud_image_uploader_test_support::certs::Authority;
use cloud_image_uploader_test_support::http_server::HttpServer;

use crate::{Shelf, assert_same, described, image, joined, read};

const CONTENT: &[u8] = b"content";

/// By https: `/image` is the image, and everything else is wherever its query says.
async fn secure(authority: &Authority) -> HttpServer {
    let answer = |request: Request| -> Response {
        match request.uri().query() {
            Some(place) => (StatusCode::FOUND, [(LOCATION, place.to_owned())]).into_response(),
            None => CONTENT.into_response(),
        }
    };
    let router = Router::new().fallback(move |request: Request| std::future::ready(answer(request)));
    HttpServer::start_tls(router, &authority.server().unwrap())
        .await
        .unwrap()
}

/// A redirect from https to plain http loses the proof of who answers, even on the same host.
#[tokio::test]
async fn none_leads_from_https_to_http() {
    let shelf = Shelf::start().await;
    shelf.put("image", CONTENT);
    let authority = Authority::new().unwrap();
    let server = secure(&authority).await;
    let client = http::trust(http::builder(), &authority.write(shelf.folder()).unwrap()).unwrap();
    let sources = Sources::new(client.build().unwrap(), Board::log(), 1, 64 << 20, 1);
    let at = |place: &str| {
        let url = format!("{}/moved?{place}", server.url());
        image(Resource::remote(&url).unwrap(), "image", CONTENT)
    };

    let elsewhere = at(&format!("{}/image", server.url()));
    let chunks = read(&sources, &elsewhere, Form::Stored).await.unwrap();
    assert_same(&joined(&chunks), CONTENT, "by https all the way");

    for form in [Form::Stored, Form::Decompressed] {
        for place in ["image", "image?again"] {
            let error = read(&sources, &at(&shelf.files.url(&format!("/{place}"))), form)
                .await
                .unwrap_err();
            let (text, class) = described(&error);
            assert!(text.ends_with("redirect from https to http"), "{text}");
            assert_eq!(class, Class::Deliverable, "{text}");
        }
    }
    // By way of another address that is fine.
    let roundabout = at(&format!("{}/further?{}", server.url(), shelf.files.url("/image")));
    let error = read(&sources, &roundabout, Form::Stored).await.unwrap_err();
    assert!(described(&error).0.ends_with("redirect from https to http"), "{error}");
    assert_eq!(shelf.files.requests(), [], "nobody asked there");
}

#[tokio::test]
async fn a_circle_ends() {
    let shelf = Shelf::start().await;
    let authority = Authority::new().unwrap();
    let server = secure(&authority).await;
    let client = http::trust(http::builder(), &authority.write(shelf.folder()).unwrap()).unwrap();
    let sources = Sources::new(client.build().unwrap(), Board::log(), 1, 64 << 20, 1);
    // Each of them leads to the rest.
    let url = format!(
        "{}/moved?/moved?/moved?/moved?/moved?/moved?/moved?/moved",
        server.url()
    );
    let image = image(Resource::remote(&url).unwrap(), "image", CONTENT);
    let error = read(&sources, &image, Form::Stored).await.unwrap_err();
    let (text, class) = described(&error);
    assert!(text.ends_with("too many redirects"), "{text}");
    assert_eq!(class, Class::Deliverable);
}
