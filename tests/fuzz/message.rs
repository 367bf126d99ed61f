use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::messaging::message::{Intent, Message, Properties, Request, RequestSource};
use cloud_image_uploader_test_support::archive::message;

use crate::{attempts, is_harmless};

fn check(request: &Request) {
    assert!(is_harmless(request.compose.as_str()), "{request:?}");
    let Resource::Http(url) = &request.location else {
        panic!("a broker named a folder: {request:?}")
    };
    assert!(url.has_host());
    assert!(is_harmless(&request.location.join("metadata/images.json").to_string()));
    match &request.origin {
        RequestSource::Message(id) => assert!(uuid::Uuid::parse_str(id).is_ok(), "{id}"),
        RequestSource::Compose(url) => assert!(is_harmless(url), "{url:?}"),
        RequestSource::File(path) => panic!("{}", path.display()),
    }
}

#[tokio::test]
async fn messages() {
    let sound = message("Fedora-43-20251024.0", Some("RC-1.6"), "http://host/compose");
    let (accepted, _) = attempts("messages", async |random| {
        let mut spoilt = sound.clone();
        if random.below(3) > 0 {
            random.spoil_value(&mut spoilt);
        }
        let mut body = spoilt["body"].to_string().into_bytes();
        let mut whole = spoilt.to_string().into_bytes();
        if random.below(3) == 0 {
            random.spoil(&mut body, 1);
            random.spoil(&mut whole, 1);
        }
        let id = spoilt["id"].as_str().unwrap_or_default();
        let properties = Properties {
            message_id: Some(id),
            ..Properties::default()
        };
        let mut published = false;
        for message in [
            Message::of_delivery("topic", &properties, &body),
            Message::of_serialized(&whole),
        ] {
            if let Ok(Intent::Publish(request)) = message.and_then(|message| message.wish(None)) {
                check(&request);
                published = true;
            }
        }
        published
    })
    .await;
    assert!(accepted > 0, "no sound message was accepted");
}
