//! What a connection is doing: being answered, taking an answer or not, sending a head, or nothing.

mod wrapped;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::http::Version;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::wrapped::Untaken;
pub(super) use self::wrapped::{Answer, Arriving, MAX_PIECE_BYTES, Watched};

/// Why the server waits for a connection, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// A head has begun, or is owed: the first one of a connection is, from its opening on.
    InHead(Instant),
    /// The last request is answered and no other has begun. On HTTP/2 this lasts until the whole head of the next one
    /// is there, for pings come between requests.
    Between(Instant),
    /// An answer is there, its request has been read, and since then nobody has taken any of it. Of several answers, the
    /// one of which that is longest ago.
    Unread(Instant),
}

/// What a connection is doing, told by its socket and its requests.
pub(super) struct Activity {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    silence: Silence,
    n_requests: usize,
    /// Answers that are there to be taken, by the numbers of their requests.
    offered: BTreeMap<u64, Offered>,
    /// Requests whose bodies are still read.
    arriving: BTreeSet<u64>,
    /// When a part of any of them was last offered, which over HTTP/2 says that it was asked for.
    moved: Instant,
    n_begun: u64,
    is_http2: bool,
}

struct Offered {
    /// When a part of it was last taken. What an HTTP/2 connection sends may be another answer, or one to a ping: there,
    /// what is asked for counts instead.
    moved: Instant,
    answer: Weak<Mutex<Option<Untaken>>>,
}

impl State {
    /// The answers that are waited for. A caller may send all of its request before it reads; how long it may pause then,
    /// whoever reads the request knows.
    fn owed(&self) -> impl Iterator<Item = &Offered> {
        self.offered.iter().filter(|(number, _)| !self.arriving.contains(number)).map(|(_, offered)| offered)
    }
}

/// A request that is being answered, until this is dropped.
pub(super) struct Begun {
    activity: Arc<Activity>,
    number: u64,
}

impl Activity {
    pub(super) fn new(now: Instant) -> Self {
        let state = State {
            silence: Silence::InHead(now),
            n_requests: 0,
            offered: BTreeMap::new(),
            arriving: BTreeSet::new(),
            moved: now,
            n_begun: 0,
            is_http2: false,
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// Why it is waited for; `None` while requests are being answered, and the answers taken, or bodies are still read:
    /// what comes then is no head.
    pub(super) fn silence(&self) -> Option<Silence> {
        let state = self.state.lock();
        match state.owed().map(|offered| offered.moved).min() {
            Some(moved) => Some(Silence::Unread(moved)),
            None if state.n_requests == 0 && state.arriving.is_empty() => Some(state.silence),
            None => None,
        }
    }

    /// Ends when a silence has begun, or a shorter one, or when the connection is to be driven once more.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A head is whole.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> Begun {
        let mut state = self.state.lock();
        state.n_requests += 1;
        state.n_begun += 1;
        state.is_http2 = version == Version::HTTP_2;
        Begun { activity: Arc::clone(self), number: state.n_begun }
    }

    /// Gives up the answers of which nobody has taken anything for so long, and with them what they hold. Answers whether
    /// there are or were others in this time: over HTTP/2 they may be somebody else's, whom a proxy lets share the
    /// connection. `None` when there is none to give up any more.
    pub(super) fn give_up_unread(&self, after: Duration) -> Option<bool> {
        let state = self.state.lock();
        let unread: Vec<_> = state.owed().filter(|offered| offered.moved.elapsed() >= after).collect();
        if unread.is_empty() {
            return None;
        }
        let are_others = state.n_requests > unread.len() || state.moved.elapsed() < after;
        let unread: Vec<_> = unread.into_iter().filter_map(|offered| offered.answer.upgrade()).collect();
        // What is dropped tells so.
        drop(state);
        for answer in unread {
            answer.lock().take();
        }
        Some(are_others)
    }

    fn bytes_went(&self) {
        let mut state = self.state.lock();
        if !state.is_http2 {
            for offered in state.offered.values_mut() {
                offered.moved = Instant::now();
            }
        }
    }

    /// Nothing more of a request's body is read.
    fn end_of_body(&self, number: u64) {
        let mut state = self.state.lock();
        state.arriving.remove(&number);
        if let Some(offered) = state.offered.get_mut(&number) {
            offered.moved = Instant::now();
        }
        if state.n_requests == 0 {
            state.silence = Silence::Between(Instant::now());
            drop(state);
            // Hyper does not see by itself that nobody wants what is left.
            self.changed.notify_one();
        }
    }

    fn bytes_came(&self) {
        let mut state = self.state.lock();
        if state.n_requests == 0 && !state.is_http2 && matches!(state.silence, Silence::Between(_)) {
            state.silence = Silence::InHead(Instant::now());
            drop(state);
            self.changed.notify_one();
        }
    }
}

impl Begun {
    /// A part of the answer is there. Over HTTP/2 somebody has asked for it then; else hyper may only have had room for it.
    fn offer(&self, answer: &Weak<Mutex<Option<Untaken>>>) {
        let mut state = self.activity.state.lock();
        if !state.is_http2 && state.offered.contains_key(&self.number) {
            return;
        }
        state.moved = Instant::now();
        let offered = Offered { moved: state.moved, answer: Weak::clone(answer) };
        state.offered.insert(self.number, offered);
    }

    /// The next part is still being made.
    fn wait(&self) {
        self.activity.state.lock().offered.remove(&self.number);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut state = self.activity.state.lock();
        state.offered.remove(&self.number);
        state.n_requests -= 1;
        if state.n_requests == 0 {
            state.silence = Silence::Between(Instant::now());
            drop(state);
            self.activity.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::{Body, Bytes};
    use axum::http::{HeaderMap, HeaderValue, header};
    use futures::stream;
    use http_body::{Body as _, Frame};
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn answer_of(version: Version, body: Body) -> Answer {
        Answer::new(body, Arc::new(Activity::new(Instant::now())).begin(version))
    }

    /// So that two moments differ, however coarse the clock is.
    fn let_time_pass() {
        std::thread::sleep(Duration::from_millis(1));
    }

    async fn next_data(answer: &mut Answer) -> Bytes {
        answer.frame().await.expect("not its end").expect("no error").into_data().expect("no trailers")
    }

    #[test]
    fn a_silence_begins_when_the_last_answer_ends_and_again_with_a_head() {
        let opened = Instant::now();
        let activity = Arc::new(Activity::new(opened));
        // A head that trickles has no more time than one that does not come.
        activity.bytes_came();
        assert_eq!(activity.silence(), Some(Silence::InHead(opened)));
        let (first, second) = (activity.begin(Version::HTTP_11), activity.begin(Version::HTTP_11));
        activity.bytes_came();
        drop(first);
        assert_eq!(activity.silence(), None);
        drop(second);
        assert!(matches!(activity.silence(), Some(Silence::Between(since)) if since >= opened));
        activity.bytes_came();
        assert!(matches!(activity.silence(), Some(Silence::InHead(since)) if since >= opened));
    }

    #[test]
    fn an_answer_that_is_there_is_unread_until_its_next_part_is_asked_for_and_not_there_yet() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let (slow, other) = (activity.begin(Version::HTTP_2), activity.begin(Version::HTTP_2));
        assert_eq!(activity.silence(), None);
        slow.offer(&Weak::new());
        let Some(Silence::Unread(since)) = activity.silence() else { panic!("it is unread") };
        let_time_pass();
        // This may have been the answer to a ping, or another one.
        activity.bytes_went();
        other.offer(&Weak::new());
        assert_eq!(activity.silence(), Some(Silence::Unread(since)));
        slow.offer(&Weak::new());
        assert!(matches!(activity.silence(), Some(Silence::Unread(later)) if later > since));
        other.wait();
        slow.wait();
        assert_eq!(activity.silence(), None);
        slow.offer(&Weak::new());
        drop(other);
        assert!(matches!(activity.silence(), Some(Silence::Unread(_))));
        drop(slow);
        assert!(matches!(activity.silence(), Some(Silence::Between(_))));
    }

    #[test]
    fn over_http1_an_answer_moves_when_its_bytes_go() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let begun = activity.begin(Version::HTTP_11);
        begun.offer(&Weak::new());
        let offered = activity.silence();
        let_time_pass();
        // Hyper has room for another piece, whoever takes them.
        begun.offer(&Weak::new());
        assert_eq!(activity.silence(), offered);
        activity.bytes_went();
        assert_ne!(activity.silence(), offered);
    }

    #[tokio::test]
    async fn what_nobody_takes_is_given_up_and_the_rest_goes_on() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let [mut unread, mut taken] = [(); 2].map(|()| Answer::new("hello".into(), activity.begin(Version::HTTP_2)));
        let being_made = activity.begin(Version::HTTP_2);
        // What is done within it must not take as long, on a slow machine either.
        let patience = Duration::from_millis(500);
        std::thread::sleep(patience);
        assert_eq!(next_data(&mut taken).await, "hello");
        assert_eq!(activity.give_up_unread(patience), Some(true));
        assert!(unread.frame().await.expect("not its end").is_err());
        assert!(!unread.is_end_stream(), "it looks whole");
        assert!(taken.frame().await.is_none(), "it was cut");
        drop((taken, being_made));
        // Nothing is left of the one that was given up.
        assert!(matches!(activity.silence(), Some(Silence::Between(_))));
        let unread = || Answer::new("hello".into(), activity.begin(Version::HTTP_2));
        let first = unread();
        assert_eq!(activity.give_up_unread(patience), None, "it has waited for less");
        std::thread::sleep(patience);
        drop(unread());
        assert_eq!(activity.give_up_unread(patience), Some(true), "there was another just now");
        drop(first);
        let _last = unread();
        std::thread::sleep(patience);
        assert_eq!(activity.give_up_unread(patience), Some(false), "there are no others");
    }

    #[test]
    fn on_http1_what_goes_is_the_answer() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let begun = activity.begin(Version::HTTP_11);
        begun.offer(&Weak::new());
        let Some(Silence::Unread(since)) = activity.silence() else { panic!("it is unread") };
        let_time_pass();
        activity.bytes_went();
        assert!(matches!(activity.silence(), Some(Silence::Unread(later)) if later > since));
    }

    #[tokio::test]
    async fn an_answer_is_not_unread_before_its_request_is_read() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let activity = Arc::new(Activity::new(Instant::now()));
            let begun = activity.begin(version);
            let body = Body::from_stream(stream::iter(["a", "b"].map(Ok::<_, Infallible>)));
            let mut arriving = Arriving::new(body, &begun);
            let answer = Answer::new("hello".into(), begun);
            for _ in 0..2 {
                arriving.frame().await.expect("not its end").expect("no error");
                assert_eq!(activity.silence(), None);
                assert_eq!(activity.give_up_unread(Duration::ZERO), None, "the request is still sent");
            }
            let sent = Instant::now();
            assert!(arriving.frame().await.is_none());
            assert!(matches!(activity.silence(), Some(Silence::Unread(since)) if since >= sent));
            assert_eq!(answer.size_hint().exact(), Some(5), "it was given up");
            drop(answer);
            // What is left of a request that nobody reads any further is waited for no longer.
            let begun = activity.begin(version);
            let arriving = Arriving::new(Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()), &begun);
            let _answer = Answer::new("hello".into(), begun);
            assert_eq!(activity.silence(), None);
            drop(arriving);
            assert!(matches!(activity.silence(), Some(Silence::Unread(_))));
        }
    }

    #[tokio::test]
    async fn an_answer_goes_in_pieces_and_over_http2_each_is_progress() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let mut left: Bytes = (0..=u8::MAX).cycle().take(2 * MAX_PIECE_BYTES + 1).collect();
            let activity = Arc::new(Activity::new(Instant::now()));
            let mut answer = Answer::new(left.clone().into(), activity.begin(version));
            for length in [MAX_PIECE_BYTES, MAX_PIECE_BYTES, 1] {
                assert!(!answer.is_end_stream());
                assert_eq!(answer.size_hint().exact(), Some(left.len() as u64));
                let Some(Silence::Unread(since)) = activity.silence() else { panic!("it is unread") };
                let_time_pass();
                assert_eq!(next_data(&mut answer).await, left.split_to(length));
                let has_moved = matches!(activity.silence(), Some(Silence::Unread(later)) if later > since);
                assert_eq!(has_moved, version == Version::HTTP_2);
            }
            assert!(answer.is_end_stream());
            assert_eq!(answer.size_hint().exact(), Some(0));
            assert!(answer.frame().await.is_none());
        }
    }

    #[tokio::test]
    async fn trailers_come_after_the_last_piece() {
        let trailers = HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static("x"))]);
        let large = Bytes::from(vec![0; MAX_PIECE_BYTES + 1]);
        let frames = [Frame::data(large), Frame::data(Bytes::from_static(b"x")), Frame::trailers(trailers.clone())];
        let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
        let mut answer = answer_of(Version::HTTP_2, Body::new(body));
        for length in [MAX_PIECE_BYTES, 1, 1] {
            assert_eq!(next_data(&mut answer).await.len(), length);
        }
        let last = answer.frame().await.expect("not its end").expect("no error");
        assert_eq!(last.into_trailers().expect("trailers"), trailers);
        assert!(answer.frame().await.is_none());
    }

    #[tokio::test]
    async fn what_is_left_of_a_request_that_is_answered_is_no_head() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let begun = activity.begin(Version::HTTP_11);
        let body = Body::from_stream(stream::iter(["a", "b"].map(Ok::<_, Infallible>)));
        let mut arriving = Arriving::new(body, &begun);
        drop(begun);
        for _ in 0..2 {
            activity.bytes_came();
            arriving.frame().await.expect("not its end").expect("no error");
            assert_eq!(activity.silence(), None);
        }
        // Nobody reads to its end.
        drop(arriving);
        assert!(matches!(activity.silence(), Some(Silence::Between(_))));
        activity.bytes_came();
        assert!(matches!(activity.silence(), Some(Silence::InHead(_))));
    }

    #[test]
    fn pings_of_http2_are_no_head() {
        let activity = Arc::new(Activity::new(Instant::now()));
        drop(activity.begin(Version::HTTP_2));
        activity.bytes_came();
        assert!(matches!(activity.silence(), Some(Silence::Between(_))));
    }
}
