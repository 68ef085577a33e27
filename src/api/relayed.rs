//! Requests that come through a proxy: their answers begin when they have been read.
//!
//! An import is answered while it is read. nginx passes nothing of a request on any more once its answer has begun, nor do
//! Caddy before 2.7 and anything that speaks HTTP/1.0: the import would wait for the rest for ever. Whether a request came
//! that way, its headers say well enough; who makes them up waits a little longer for the beginning of an answer.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::bodies::Held;

/// What proxies add to a request.
const SIGNS: [HeaderName; 5] = [
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
];

/// Keeps the answer to a request that came through a proxy until its body has been read, or is read no further.
pub async fn answer_when_read(request: Request, next: Next) -> Response {
    if !is_relayed(&request) {
        return next.run(request).await;
    }
    let read = CancellationToken::new();
    let guard = read.clone().drop_guard();
    let response = next.run(request.map(|body| Body::new(Held::new(body, guard)))).await;
    if read.is_cancelled() { response } else { gather_until(&read, response).await }
}

fn is_relayed(request: &Request) -> bool {
    request.version() == Version::HTTP_10 || SIGNS.iter().any(|name| request.headers().contains_key(name))
}

/// Takes of an answer's body what comes until then: whoever writes it must not wait for a reader. An import says something
/// once a second, and of so many failed lines at most.
async fn gather_until(read: &CancellationToken, response: Response) -> Response {
    let (head, body) = response.into_parts();
    let mut rest = body.into_data_stream().fuse();
    let mut gathered = Vec::new();
    while let Some(Some(piece)) = read.run_until_cancelled(rest.next()).await {
        gathered.push(piece);
    }
    Response::from_parts(head, Body::from_stream(futures::stream::iter(gathered).chain(rest)))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Bytes, to_bytes};
    use axum::routing::post;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use tokio::sync::mpsc;

    use super::*;

    type Pieces = mpsc::Sender<Result<Bytes, std::io::Error>>;

    /// A request whose body is in the test's hand, and the answer that repeats it piece by piece.
    fn ask(sign: Option<HeaderName>) -> (Pieces, tokio::sync::oneshot::Receiver<Response>) {
        let repeat = post(async |body: Body| Body::from_stream(body.into_data_stream()));
        let router = Router::new().route("/", repeat).layer(axum::middleware::from_fn(answer_when_read));
        let (sender, receiver) = mpsc::channel(1);
        let pieces = futures::stream::unfold(receiver, async |mut pieces| Some((pieces.recv().await?, pieces)));
        let mut request = Request::post("/");
        if let Some(name) = sign {
            request = request.header(name, "x");
        }
        let request = request.body(Body::from_stream(pieces)).expect("a request");
        let (answered, answer) = tokio::sync::oneshot::channel();
        let router = TowerToHyperService::new(router);
        #[allow(clippy::disallowed_methods, reason = "the answer is this task's end, and the test waits for it")]
        tokio::spawn(async move {
            let Ok(response) = router.call(request).await;
            answered.send(response).expect("the test waits");
        });
        (sender, answer)
    }

    async fn send(pieces: &Pieces, text: &'static str) {
        pieces.send(Ok(Bytes::from_static(text.as_bytes()))).await.expect("it is read");
    }

    #[tokio::test]
    async fn through_a_proxy_the_answer_begins_when_all_is_read_and_else_at_once() {
        for sign in SIGNS {
            let (pieces, mut answer) = ask(Some(sign));
            for text in ["a", "b", "c"] {
                send(&pieces, text).await;
            }
            assert!(answer.try_recv().is_err(), "it began before the end");
            drop(pieces);
            let body = to_bytes(answer.await.expect("an answer").into_body(), 100).await.expect("whole");
            assert_eq!(body, "abc");
        }
        let (pieces, answer) = ask(None);
        let answer = answer.await.expect("an answer before the request has ended");
        send(&pieces, "a").await;
        drop(pieces);
        assert_eq!(to_bytes(answer.into_body(), 100).await.expect("whole"), "a");
    }
}
