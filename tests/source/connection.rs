//! Servers and connections that misbehave, and readers that go away.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::images::source::Form;
use cloud_image_uploader_test_support::archive::{noise, xz};
use cloud_image_uploader_test_support::files::Fault;
use cloud_image_uploader_test_support::http_server::HttpServer;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::mpsc;

use crate::{LIMIT, Shelf, assert_same, described, image, joined, read, sources};

fn status(code: u16, retry_after: Option<&str>) -> Fault {
    Fault::Status {
        code,
        retry_after: retry_after.map(str::to_owned),
    }
}

/// Faults that are survived, and the ranges asked for on the way.
#[tokio::test]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let shelf = Shelf::start().await;
    let bytes = noise(3, 1_000_000);
    let cut = |after| Fault::Cut { after };
    let table = [
        ("cut once", vec![cut(400_000)], vec!["", "bytes=400000-"]),
        (
            "cut three times",
            vec![cut(100_000), cut(0), cut(300_001)],
            vec!["", "bytes=100000-", "bytes=100000-", "bytes=400001-"],
        ),
        ("cut before the first byte", vec![cut(0)], vec!["", ""]),
        (
            "no ranges",
            vec![cut(250_000), Fault::NoRange],
            vec!["", "bytes=250000-"],
        ),
        (
            "stalled",
            vec![Fault::Stall { after: 123_456 }],
            vec!["", "bytes=123456-"],
        ),
        ("busy", vec![status(503, None)], vec!["", ""]),
        // Longer than silence is borne, but never silent for so long.
        (
            "slow",
            vec![Fault::Slow {
                piece: 65_536,
                pause: Duration::from_millis(100),
            }],
            vec![""],
        ),
        (
            "stalled and, taken up again, slow",
            vec![
                Fault::Stall { after: 500_000 },
                Fault::Slow {
                    piece: 65_536,
                    pause: Duration::from_millis(100),
                },
            ],
            vec!["", "bytes=500000-"],
        ),
        (
            "cut, then busy",
            vec![cut(9), status(500, None)],
            vec!["", "bytes=9-", "bytes=9-"],
        ),
    ];
    for (number, (what, faults, ranges)) in table.into_iter().enumerate() {
        let name = format!("{number}");
        let image = shelf.put(&name, &bytes);
        for fault in faults {
            shelf.files.fault(&format!("/{name}"), fault, 1);
        }
        assert_same(&joined(&shelf.read(&image, Form::Stored).await.unwrap()), &bytes, what);
        assert_eq!(shelf.ranges(&name), ranges, "{what}");
    }
    assert!(shelf.files.faults_met());
}

/// Any combination of faults leaves the image whole, or the error gives the reason; never other bytes.
#[tokio::test(flavor = "multi_thread")]
async fn storms_are_weathered() {
    let shelf = Shelf::start().await;
    let disk = noise(20, 600_000);
    let bytes = xz(&disk);
    let other = Bytes::from(xz(&noise(21, 600_000)));
    let storms = (0..40u64).map(|number| {
        let draw = noise(number, 64);
        let at = |position: usize| u64::from(draw[position]) * bytes.len() as u64 / 256;
        let faults: Vec<Fault> = (0..usize::from(draw[0] % 5))
            .map(|position| match draw[8 + position] % 8 {
                0 | 1 => Fault::Cut {
                    after: at(16 + position),
                },
                2 => Fault::Stall {
                    after: at(16 + position),
                },
                3 => status(503, None),
                4 => status(429, Some("1")),
                5 => Fault::NoRange,
                6 => Fault::Flip {
                    offset: at(16 + position),
                },
                _ => Fault::Replaced(other.clone()),
            })
            .collect();
        (number, faults)
    });
    let weathered = storms.map(async |(number, faults)| {
        let name = format!("storm-{number}");
        let image = shelf.put(&name, &bytes);
        let harmful = |fault: &Fault| matches!(fault, Fault::Flip { .. } | Fault::Replaced(_));
        let may_fail = faults.iter().any(harmful);
        for fault in &faults {
            shelf.files.fault(&format!("/{name}"), fault.clone(), 1);
        }
        match shelf.read(&image, Form::Decompressed).await {
            Ok(chunks) => {
                assert_same(&joined(&chunks), &disk, &format!("{name}: {faults:?}"));
                true
            }
            Err(error) => {
                assert!(may_fail, "{name}: {faults:?}: {:?}", described(&error));
                false
            }
        }
    });
    let whole = futures_util::future::join_all(weathered).await;
    assert!(whole.iter().filter(|whole| **whole).count() > 10);
    assert!(whole.iter().any(|whole| !whole), "no storm was worth the name");
}

#[tokio::test]
async fn a_break_in_a_compressed_image_does_not_show() {
    let shelf = Shelf::start().await;
    let disk = noise(4, 2_000_000);
    let image = shelf.put("a.xz", &xz(&disk));
    for after in [3, 700_000] {
        shelf.files.fault("/a.xz", Fault::Cut { after }, 1);
    }
    let chunks = shelf.read(&image, Form::Decompressed).await.unwrap();
    assert_same(&joined(&chunks), &disk, "a.xz");
    assert!(shelf.files.faults_met());
}

#[tokio::test]
async fn the_servers_wish_to_be_left_alone_is_heard() {
    let shelf = Shelf::start().await;
    let image = shelf.put("a", b"content");
    for code in [429, 503] {
        shelf.files.fault("/a", status(code, Some("2")), 1);
        let started = Instant::now();
        shelf.read(&image, Form::Stored).await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(2), "{code}");
    }
    assert_eq!(shelf.files.requests_for("/a").len(), 4);
}

/// In both forms: a decoder between the server and the reader must not hide what happened.
#[tokio::test]
async fn what_a_server_refuses_reads_well() {
    let wish = Some(Duration::from_secs(3600));
    let table = [
        (404, None, Class::Deliverable),
        (410, None, Class::Deliverable),
        (401, None, Class::Deliverable),
        (403, None, Class::Deliverable),
        (503, Some("3600"), Class::Transient { after: wish }),
    ];
    let shelf = Shelf::start().await;
    for form in [Form::Stored, Form::Decompressed] {
        for (code, retry_after, class) in table {
            let name = format!("{form:?}-{code}");
            let image = shelf.put(&name, b"content");
            shelf.files.fault(&format!("/{name}"), status(code, retry_after), 1);
            let error = shelf.read(&image, form).await.unwrap_err();
            let text = format!("read {name}: the server answered {code}");
            assert_eq!(described(&error), (text, class));
            assert_eq!(shelf.ranges(&name).len(), 1, "{name} is asked for once");
        }
    }
}

#[tokio::test]
async fn a_file_that_changes_in_between_is_another_attempts_business() {
    let shelf = Shelf::start().await;
    let bytes = noise(6, 500_000);
    for (name, other) in [
        ("same-length", noise(7, 500_000)),
        ("shorter", noise(7, 1_000)),
        ("longer", noise(7, 600_000)),
    ] {
        for form in [Form::Stored, Form::Decompressed] {
            let image = shelf.put(name, &bytes);
            let path = format!("/{name}");
            shelf.files.fault(&path, Fault::Cut { after: 200_000 }, 1);
            shelf.files.fault(&path, Fault::Replaced(other.clone().into()), 1);
            let error = shelf.read(&image, form).await.unwrap_err();
            let text = format!("read {name}: the file changed while it was read");
            assert_eq!(described(&error), (text, Class::TRANSIENT), "{form:?}");
        }
    }
}

/// A server of one answer for every request.
async fn server(answer: impl Fn(Request) -> Response + Clone + Send + Sync + 'static) -> HttpServer {
    let router = Router::new().fallback(move |request: Request| std::future::ready(answer(request)));
    HttpServer::start(router).await.unwrap()
}

type Pieces = Vec<Result<Bytes, std::io::Error>>;

fn pieces(pieces: Pieces) -> Body {
    // An error that comes at once could overtake what was sent before it.
    let paced = stream::iter(pieces).then(|piece| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        piece
    });
    Body::from_stream(paced)
}

fn reset() -> std::io::Error {
    std::io::ErrorKind::ConnectionReset.into()
}

/// Without `Content-Length`, only the last, empty chunk tells the end. A reader that has all bytes does not need it.
#[tokio::test]
async fn a_connection_that_breaks_after_the_last_byte_is_complete() {
    let bytes = Bytes::from(noise(8, 10_000));
    let body = bytes.clone();
    let server = server(move |request| {
        assert!(!request.headers().contains_key("range"), "nothing is left to ask for");
        Response::new(pieces(vec![Ok(body.clone()), Err(reset())]))
    })
    .await;
    let image = image(Resource::remote(&server.url()).unwrap(), "a", &bytes);
    let chunks = read(&sources(1), &image, Form::Stored).await.unwrap();
    assert_same(&joined(&chunks), &bytes, "a");
}

/// An answer to `If-Range` need not repeat `Last-Modified`
/// ([RFC 9110](https://www.rfc-editor.org/rfc/rfc9110#section-15.3.7)).
#[tokio::test]
async fn a_range_without_the_date_is_of_the_same_file() {
    let bytes = Bytes::from(noise(9, 10_000));
    let body = bytes.clone();
    let server = server(move |request| {
        let answer = Response::builder().header("etag", "\"one\"");
        let answer = match request.headers().get("range") {
            None => answer
                .header("last-modified", "Fri, 24 Oct 2025 00:00:00 GMT")
                .body(pieces(vec![Ok(body.slice(..4_000)), Err(reset())])),
            Some(range) => {
                assert_eq!(range, "bytes=4000-");
                assert_eq!(request.headers()["if-range"], "\"one\"");
                answer
                    .status(StatusCode::PARTIAL_CONTENT)
                    .header("content-range", "bytes 4000-9999/10000")
                    .body(Body::from(body.slice(4_000..)))
            }
        };
        answer.unwrap()
    })
    .await;
    let image = image(Resource::remote(&server.url()).unwrap(), "a", &bytes);
    let chunks = read(&sources(1), &image, Form::Stored).await.unwrap();
    assert_same(&joined(&chunks), &bytes, "a");
}

#[tokio::test]
async fn a_server_that_sends_another_range_is_not_believed() {
    let bytes = Bytes::from(noise(10, 10_000));
    let body = bytes.clone();
    let server = server(move |request| {
        if request.headers().contains_key("range") {
            let answer = Response::builder()
                .status(StatusCode::PARTIAL_CONTENT)
                .header("content-range", "bytes 0-9999/10000");
            return answer.body(Body::from(body.clone())).unwrap();
        }
        Response::new(pieces(vec![Ok(body.slice(..4_000)), Err(reset())]))
    })
    .await;
    let image = image(Resource::remote(&server.url()).unwrap(), "a", &bytes);
    let error = read(&sources(1), &image, Form::Stored).await.unwrap_err();
    let text = "read a: the file changed while it was read".to_owned();
    assert_eq!(described(&error), (text, Class::TRANSIENT));
}

/// The connection must go long before its silence would end it, whatever the reading is waiting for.
#[tokio::test]
async fn dropping_what_reads_ends_the_download() {
    let forever = || stream::repeat_with(|| Bytes::from(noise(11, 65_536))).boxed();
    let silence = || {
        let first = stream::iter([Bytes::from(xz(b"a little")).slice(..20)]);
        first.chain(stream::pending()).boxed()
    };
    for form in [Form::Stored, Form::Decompressed] {
        for (what, silent) in [("full of data", false), ("silent", true)] {
            let (connected, mut connections) = mpsc::unbounded_channel();
            let server = server(move |_| {
                let (here, gone) = tokio::sync::oneshot::channel::<Infallible>();
                connected.send(gone).unwrap();
                let body = if silent { silence() } else { forever() };
                Response::new(Body::from_stream(body.map(move |bytes| {
                    let _held = &here;
                    Ok::<_, Infallible>(bytes)
                })))
            })
            .await;
            let mut image = image(Resource::remote(&server.url()).unwrap(), "a", b"");
            image.size = 1 << 36;
            // The daemon's own client: silence is not what ends it.
            let sources = cloud_image_uploader::images::source::Sources::new(
                cloud_image_uploader::base::http::client().unwrap(),
                cloud_image_uploader::base::progress::Board::log(),
                1,
                64 << 20,
                2,
            );
            let source = sources.source(&image);
            let mut reading = Box::pin(async {
                let mut chunks = source.open(form).await.unwrap();
                assert!(chunks.next().await.unwrap().is_some());
                chunks
            });
            let mut connected = Box::pin(tokio::time::timeout(LIMIT, connections.recv()));
            let gone = if silent {
                tokio::select! {
                    _ = &mut reading => panic!("{form:?}: there is nothing to read"),
                    gone = &mut connected => gone,
                }
            } else {
                drop((&mut reading).await);
                connected.await
            };
            let gone = gone.unwrap().unwrap();
            drop(reading);
            let ended = tokio::time::timeout(Duration::from_secs(10), gone).await;
            assert!(ended.is_ok(), "{form:?} of a connection {what} goes on");
        }
    }
}

#[tokio::test]
async fn so_many_images_are_open_at_once_and_no_more() {
    let shelf = Shelf::start().await;
    let image = shelf.put("a", b"content");
    let sources = sources(2);
    let source = sources.source(&image);
    let mut first = source.open(Form::Stored).await.unwrap();
    let second = source.open(Form::Decompressed).await.unwrap();
    let mut third = std::pin::pin!(source.open(Form::Stored));
    assert!(third.as_mut().now_or_never().is_none(), "the third waits");
    while first.next().await.unwrap().is_some() {}
    assert!(third.as_mut().now_or_never().is_none(), "read to its end is still open");
    drop(second);
    let third = tokio::time::timeout(LIMIT, third).await.unwrap();
    assert!(third.is_ok());
}
