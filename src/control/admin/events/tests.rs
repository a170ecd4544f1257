//! Followers over real sockets, and the pieces that they are told in.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    api,
    control::{
        Happening, Kind,
        admin::{
            self,
            rates::Sampler,
            server::Limits,
            tests::{PATIENCE, Served, view},
        },
    },
    ids::{CloudName, Generation, PoolName},
};

fn verdict(n: u64) -> Happening {
    let (pool, cloud) = (PoolName::from("web"), CloudName::from("gcp"));
    Happening::new(Kind::Verdict).pool(&pool).cloud(&cloud).change("up", "down").said(format!("number {n}."))
}

/// A reader of a stream.
struct Follower {
    stream: TcpStream,
    heard: String,
}

impl Follower {
    async fn of(served: &Served, query: &str, fields: &str) -> Self {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let request = format!("GET /api/v1/events?{query} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { stream, heard: String::new() }
    }

    /// Reads until `words` have come; everything so far.
    async fn hears(&mut self, words: &str) -> &str {
        let reading = async {
            while !self.heard.contains(words) {
                let mut bytes = [0; 1024];
                let count = self.stream.read(&mut bytes).await.unwrap();
                assert!(count > 0, "the stream ended without {words:?}: {}", self.heard);
                self.heard += std::str::from_utf8(&bytes[..count]).unwrap();
            }
        };
        timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("no {words:?}"));
        &self.heard
    }

    /// Reads to the end.
    async fn ends(mut self) -> String {
        timeout(PATIENCE, self.stream.read_to_string(&mut self.heard)).await.expect("no end").unwrap();
        self.heard
    }

    fn ids(&self) -> Vec<&str> {
        let lines: Vec<_> = self.heard.lines().collect();
        let of_events = lines.windows(2).filter(|pair| pair[1].starts_with("event: "));
        of_events.filter_map(|pair| pair[0].strip_prefix("id: ")).collect()
    }
}

/// A feed without a socket.
fn feed(query: Asked) -> (Feed, Arc<crate::control::View>, CancellationToken) {
    let (view, seats, shutdown) = (view(), seats(), CancellationToken::new());
    let seat = Arc::clone(&seats).try_acquire_owned().unwrap();
    let site = Site { view: Arc::clone(&view), sampler: Arc::new(Sampler::default()), seats };
    let feed = Feed::new(site, query.understand().unwrap(), Lease::new(shutdown.clone()), seat);
    (feed, view, shutdown)
}

async fn piece(feed: Feed) -> (Feed, String) {
    let (feed, bytes) = feed.next().await.unwrap();
    (feed, String::from_utf8(bytes.to_vec()).unwrap())
}

#[test]
fn an_event_is_one_frame_whatever_its_text_has() {
    let journal = Journal::default();
    journal.record(Generation(3), Happening::new(Kind::ReloadRefused).because("line 1\nline 2\r\n\n: x"));
    let frame = framed(77, &journal.last(1)[0]);
    let lines: Vec<_> = frame.split('\n').collect();
    assert_eq!((lines.len(), lines[0], lines[1]), (5, "id: 77-1", "event: reload_refused"));
    let data: api::Event = serde_json::from_str(lines[2].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((data.id, data.generation, data.evidence.as_str()), (1, 3, "line 1\nline 2\r\n\n: x"));
    assert_eq!((lines[3], lines[4]), ("", ""));
}

#[tokio::test(start_paused = true)]
async fn a_stream_begins_at_once_and_beats_while_nothing_happens() {
    let (feed, view, shutdown) = feed(Asked { last: Some("0".into()), ..Asked::default() });
    let (feed, first) = piece(feed).await;
    let run = view.journal.run();
    assert_eq!(first, format!("retry: 1000\nid: {run}-2\n\n"));
    let start = Instant::now();
    let (feed, beat) = piece(feed).await;
    assert_eq!((beat, start.elapsed()), (format!(": still here\nid: {run}-2\n\n"), HEARTBEAT));
    view.journal.record(Generation(8), verdict(1));
    let (feed, told) = piece(feed).await;
    assert!(told.contains("number 1."), "{told}");
    // The last words of a process are told before the stream ends.
    view.journal.record(Generation(8), verdict(2));
    shutdown.cancel();
    let (feed, told) = piece(feed).await;
    assert!(told.contains("number 2."), "{told}");
    assert!(feed.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_shows_little_beats_although_much_happens() {
    let (feed, view, _shutdown) =
        feed(Asked { last: Some("0".into()), kind: Some("freeze".into()), ..Asked::default() });
    let (feed, _) = piece(feed).await;
    let start = Instant::now();
    let busy = async {
        loop {
            view.journal.record(Generation(8), verdict(1));
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    };
    let beat = tokio::select! {
        beat = piece(feed) => beat.1,
        () = busy => unreachable!(),
    };
    // And says that it has looked at everything.
    let last = view.journal.last(1)[0].id;
    let wanted = format!(": still here\nid: {}-{last}\n\n", view.journal.run());
    assert_eq!((beat, start.elapsed()), (wanted, HEARTBEAT));
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_told_what_it_missed_and_holds_nothing() {
    let (feed, view, _shutdown) = feed(Asked { last: Some("0".into()), ..Asked::default() });
    let (mut feed, _) = piece(feed).await;
    let before = view.journal.last(1)[0].id;
    for n in 0..5_000 {
        view.journal.record(Generation(8), verdict(n));
    }
    let kept = view.journal.last(usize::MAX);
    let lost = kept[0].id - before - 1;
    assert_eq!(lost, 5_000 - kept.len() as u64);
    let (mut ids, mut text) = (Vec::new(), String::new());
    while ids.len() < kept.len() {
        let (next, told) = piece(feed).await;
        feed = next;
        assert!(told.len() < 16 * 1024, "{} bytes at once", told.len());
        let run = format!("id: {}-", view.journal.run());
        ids.extend(told.lines().filter_map(|line| line.strip_prefix(&run)?.parse::<u64>().ok()));
        text += &told;
    }
    assert!(text.starts_with(&format!("event: lost\ndata: {{\"lost\":{lost}}}\n\nid: ")), "{text:.100}");
    assert_eq!(text.matches("event: lost").count(), 1);
    assert_eq!(ids, kept.iter().map(|event| event.id).collect::<Vec<_>>());
}

#[test]
fn who_comes_from_another_run_of_the_process_has_seen_nothing() {
    let view = view();
    let wish = |id: String| Asked { since_id: Some(id), ..Asked::default() }.understand().unwrap();
    let ids = |id: String| {
        let (lost, events) = wish(id).events(&view.journal);
        assert_eq!(lost, 0);
        events.iter().map(|event| event.id).collect::<Vec<_>>()
    };
    let run = view.journal.run();
    assert_eq!(ids("1".into()), [2]);
    assert_eq!(ids(format!("{run}-1")), [2]);
    assert_eq!(ids(format!("{}-900", run - 1)), [1, 2]);
}

#[tokio::test]
async fn a_follower_hears_the_last_then_the_new_and_resumes_where_it_was() {
    let served = Served::admin();
    let journal = &served.view.journal;
    let mut first = Follower::of(&served, "last=1", "Accept: text/html, text/event-stream;q=0.9\r\n").await;
    first.hears("pool db: aws is back").await;
    journal.record(Generation(8), verdict(3));
    let heard = first.hears("number 3.").await.to_ascii_lowercase();
    assert!(heard.starts_with("http/1.1 200 ok\r\n") && heard.contains("content-type: text/event-stream"));
    assert!(heard.contains("cache-control: no-store"), "{heard}");
    let run = journal.run();
    assert_eq!(first.ids(), [format!("{run}-2"), format!("{run}-3")]);
    assert!(first.heard.contains("\nevent: verdict\ndata: {"), "{}", first.heard);

    drop(first);
    for n in 4..8 {
        journal.record(Generation(9), verdict(n));
    }
    let id = format!("Last-Event-ID: {run}-3\r\n");
    let mut second = Follower::of(&served, "follow=true", &id).await;
    second.hears("number 7.").await;
    assert_eq!(second.ids(), [4, 5, 6, 7].map(|n| format!("{run}-{n}")));
    let mut third = Follower::of(&served, "follow&since_id=5&kind=verdict&pool=web", "").await;
    third.hears("number 7.").await;
    assert_eq!(third.ids(), [6, 7].map(|n| format!("{run}-{n}")));
    served.stop().await;
}

#[tokio::test]
async fn a_list_is_filtered_and_a_wrong_question_is_told() {
    let served = Served::admin();
    for n in 3..6 {
        served.view.journal.record(Generation(8), verdict(n));
    }
    let ids = async |query: &str| {
        let answer = served.get(&format!("/api/v1/events?{query}")).await;
        let events: Vec<api::Event> = serde_json::from_str(&answer.body).unwrap();
        events.iter().map(|event| event.id).collect::<Vec<_>>()
    };
    assert_eq!(ids("").await, [1, 2, 3, 4, 5]);
    assert_eq!(ids("kind=verdict&last=2").await, [4, 5]);
    assert_eq!(ids("kind=failover,verdict&since_id=1").await, [2, 3, 4, 5]);
    assert_eq!(ids("cloud=gcp&since=1h").await, [3, 4, 5]);
    assert_eq!(ids("pool=web&min_level=error").await, [0_u64; 0]);
    assert_eq!(ids("since=0s").await, [0_u64; 0]);
    for (query, words) in [
        ("last=x", "`last` must be a number of events"),
        ("kind=verdikt", "`kind`: \"verdikt\" is not one of: verdict, "),
        ("min_level=loud", "`min_level`: \"loud\" is not one of: debug, "),
        ("since=yesterday", "`since` must be a time span such as 10m"),
        ("since_id=a", "`since_id` must be the number of an event"),
        ("follow=perhaps", "`follow` must be true or false"),
        ("last=1&last=2", "duplicate"),
        ("sinse=10m", "sinse"),
    ] {
        let answer = served.get(&format!("/api/v1/events?{query}")).await;
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.problem().contains(words), "{query}: {}", answer.problem());
    }
    let wrong = b"GET /api/v1/events?follow HTTP/1.1\r\nHost: a\r\nLast-Event-ID: x\r\n\r\n";
    assert_eq!(served.send(wrong).await.status, 403, "the guard holds for streams too");
    let mut wrong = Follower::of(&served, "follow", "Last-Event-ID: x\r\n").await;
    wrong.hears("`Last-Event-ID` must be one of this stream").await;
    served.stop().await;
}

#[tokio::test]
async fn the_sixty_fifth_follower_is_turned_away_and_nobody_else_is() {
    let limits = Limits { head: PATIENCE * 10, life: PATIENCE * 10, ..Limits::default() };
    let served = Served::start(admin::Kind::Admin, limits);
    let mut followers = Vec::new();
    for _ in 0..FOLLOWERS {
        let mut follower = Follower::of(&served, "follow&last=0", "").await;
        follower.hears("retry: ").await;
        followers.push(follower);
    }
    let full = served.get("/api/v1/events?follow").await;
    assert_eq!((full.status, full.problem().as_str()), (503, "64 streams of events are open already"));
    // Questions have places of their own: many of them drive no follower out.
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(served.address).await.unwrap());
    }
    assert_eq!(served.get("/livez").await.status, 200);
    served.view.journal.record(Generation(8), verdict(3));
    for follower in &mut followers {
        follower.hears("number 3.").await;
    }
    followers.pop();
    let again = async {
        loop {
            let mut follower = Follower::of(&served, "follow&last=0", "").await;
            if follower.hears("HTTP/1.1 ").await.starts_with("HTTP/1.1 200") {
                return;
            }
        }
    };
    timeout(PATIENCE, again).await.expect("a place that was left is free");
    served.stop().await;
}

#[tokio::test]
async fn a_stream_lives_while_it_moves_and_a_reader_that_stops_is_cut_off() {
    let (life, finish) = (Duration::from_millis(100), Duration::from_millis(50));
    let served =
        Served::start(admin::Kind::Admin, Limits { head: PATIENCE * 10, life, finish, ..Limits::default() });
    let journal = &served.view.journal;
    let mut reader = Follower::of(&served, "follow&last=0", "").await;
    reader.hears("retry: ").await;
    let holders = || Arc::strong_count(&served.view);
    let before = holders();
    // It takes nothing but what fits into the kernel's buffers.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stalled = socket.connect(served.address).await.unwrap();
    stalled.write_all(b"GET /api/v1/events?follow HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let (mut n, mut began) = (0, false);
    let flood = async {
        while !began || holders() > before {
            began |= holders() > before;
            n += 1;
            journal.record(Generation(8), verdict(n).because("x".repeat(4_000)));
            reader.hears(&format!("number {n}.")).await;
            reader.heard.clear();
        }
    };
    timeout(PATIENCE, flood).await.expect("the reader that stopped is still there");
    served.stop().await;
}

#[tokio::test]
async fn a_stop_ends_streams_at_once_and_not_before_their_last_words() {
    let served = Served::admin();
    let mut follower = Follower::of(&served, "follow", "").await;
    follower.hears("aws is back").await;
    served.view.journal.record(Generation(8), Happening::new(Kind::Stop));
    served.shutdown.cancel();
    let start = Instant::now();
    let heard = follower.ends().await;
    assert!(heard.contains("\nevent: stop\n") && heard.ends_with("0\r\n\r\n"), "{heard}");
    served.stop().await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
