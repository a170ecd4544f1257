//! What is asked of every relay: manners, time limits, and every byte.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    super::{LIMITS, blocking, bytes, reset},
    bed,
};
use crate::{
    proxy::session::Moved,
    telemetry::{Cause, End, Side, Stage},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_after_the_clients_end_arrives_whole() {
    let mut bed = bed(LIMITS);
    let end = blocking(move || {
        bed.client.write_all(b"question").unwrap();
        bed.client.shutdown(Shutdown::Write).unwrap();
        let mut question = Vec::new();
        bed.upstream.read_to_end(&mut question).unwrap();
        assert_eq!(question, b"question");
        let answer = bytes(3_000_000, 1);
        let sent = answer.clone();
        let mut upstream = bed.upstream;
        let writer = thread::spawn(move || upstream.write_all(&sent).unwrap());
        let mut got = Vec::new();
        bed.client.read_to_end(&mut got).unwrap();
        assert!(got == answer);
        writer.join().unwrap();
        bed.relay
    })
    .await;
    let (end, moved) = end.await.unwrap();
    assert_eq!(end, End::closed(Side::Client));
    assert_eq!(moved, Moved { to_upstream: 8, to_client: 3_000_000 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_after_the_endpoints_end() {
    let mut bed = bed(LIMITS);
    let relay = blocking(move || {
        bed.upstream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(bed.client.read(&mut [0; 1]).unwrap(), 0, "the client learns of the end at once");
        let upload = bytes(1_000_000, 2);
        let sent = upload.clone();
        let writer = thread::spawn(move || {
            bed.client.write_all(&sent).unwrap();
            bed.client.shutdown(Shutdown::Write).unwrap();
            bed.client
        });
        let mut got = Vec::new();
        bed.upstream.read_to_end(&mut got).unwrap();
        assert!(got == upload);
        drop(writer.join());
        bed.relay
    })
    .await;
    assert_eq!(relay.await.unwrap().0, End::closed(Side::Upstream));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_the_endpoint_reaches_the_client_as_a_reset_after_its_bytes() {
    for length in [0, 5, 200_000] {
        let mut bed = bed(LIMITS);
        let relay = blocking(move || {
            bed.client.write_all(b"x").unwrap();
            bed.upstream.read_exact(&mut [0; 1]).unwrap();
            bed.upstream.write_all(&bytes(length, 3)).unwrap();
            let mut got = vec![0; length];
            bed.client.read_exact(&mut got).unwrap();
            reset(bed.upstream);
            let error = bed.client.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            bed.relay
        })
        .await;
        let end = relay.await.unwrap().0;
        assert_eq!(end, End { side: Side::Upstream, stage: Stage::Relay, cause: Cause::Reset });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_the_client_reaches_the_endpoint_as_a_reset() {
    let mut bed = bed(LIMITS);
    let relay = blocking(move || {
        bed.client.write_all(b"x").unwrap();
        bed.upstream.read_exact(&mut [0; 1]).unwrap();
        let begun = Instant::now();
        reset(bed.client);
        let error = bed.upstream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(begun.elapsed() < Duration::from_secs(5));
        bed.relay
    })
    .await;
    assert_eq!(relay.await.unwrap().0, End { side: Side::Client, stage: Stage::Relay, cause: Cause::Reset });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_noticed_while_the_direction_is_half_closed() {
    let mut bed = bed(LIMITS);
    let relay = blocking(move || {
        bed.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(bed.upstream.read(&mut [0; 1]).unwrap(), 0);
        reset(bed.client);
        let error = bed.upstream.read(&mut [0; 1]).map_or_else(
            |error| error.kind(),
            |_| {
                // The end was read already: the reset shows at the next write.
                bed.upstream.set_nonblocking(false).unwrap();
                loop {
                    if let Err(error) = bed.upstream.write_all(b"x") {
                        break error.kind();
                    }
                }
            },
        );
        assert!(matches!(error, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe));
        bed.relay
    })
    .await;
    let end = tokio::time::timeout(Duration::from_secs(20), relay).await.unwrap().unwrap().0;
    assert_eq!(end, End { side: Side::Client, stage: Stage::Relay, cause: Cause::Reset });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_noticed_while_the_other_side_takes_nothing() {
    let mut bed = bed(LIMITS);
    let relay = blocking(move || {
        bed.client.set_nonblocking(true).unwrap();
        let chunk = bytes(65_536, 4);
        let mut full = 0;
        // Fills every buffer up to the endpoint, which reads nothing.
        while full < 200 {
            match bed.client.write(&chunk) {
                Ok(written) => full = if written > 0 { 0 } else { full + 1 },
                Err(_) => {
                    full += 1;
                    thread::yield_now();
                    thread::park_timeout(Duration::from_millis(1));
                }
            }
        }
        reset(bed.client);
        (bed.relay, bed.upstream)
    })
    .await;
    let (relay, _upstream) = relay;
    let end = tokio::time::timeout(Duration::from_secs(20), relay).await.unwrap().unwrap().0;
    assert_eq!((end.side, end.cause), (Side::Client, Cause::Reset));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_delivered_though_the_endpoint_left_the_request_unread() {
    for round in 0..50 {
        let mut bed = bed(LIMITS);
        let relay = blocking(move || {
            let answer = bytes(300_000, round);
            bed.client.write_all(&bytes(500_000, 6)).unwrap();
            bed.upstream.read_exact(&mut [0; 10]).unwrap();
            let expected = answer.clone();
            let mut client = bed.client.try_clone().unwrap();
            let reader = thread::spawn(move || {
                let mut got = Vec::new();
                let outcome = client.read_to_end(&mut got);
                assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
                outcome.is_err()
            });
            bed.upstream.write_all(&answer).unwrap();
            // Until the proxy has taken the answer: what the endpoint's own kernel drops, nobody can deliver.
            while crate::sys::unsent(&bed.upstream).unwrap() > 0 {
                thread::yield_now();
            }
            // Closing with unread bytes makes the kernel send a reset.
            drop(bed.upstream);
            // More of the request: the proxy's writes fail.
            let write_failed = bed.client.write_all(&bytes(5_000_000, 7)).is_err();
            // The kernel tells the error once, to whoever asks first.
            assert!(reader.join().unwrap() || write_failed, "an abort must not look like a clean end");
            bed.relay
        })
        .await;
        let end = relay.await.unwrap().0;
        assert_eq!((end.side, end.cause), (Side::Upstream, Cause::Reset), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_messages_go_both_ways_without_delay() {
    let mut bed = bed(LIMITS);
    blocking(move || {
        let begun = Instant::now();
        for n in 0..2000_u32 {
            bed.client.write_all(&n.to_le_bytes()[..1]).unwrap();
            let mut byte = [0; 1];
            bed.upstream.read_exact(&mut byte).unwrap();
            bed.upstream.write_all(&byte).unwrap();
            bed.client.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], n.to_le_bytes()[0]);
        }
        // With Nagle's algorithm in the way it would take 2000 times 40 ms.
        assert!(begun.elapsed() < Duration::from_secs(20));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_around_an_urgent_one_are_kept_in_order_and_do_not_wait() {
    for (before, after) in [(6, 5), (100, 100_000), (20_000, 400_000), (100_000, 100_000)] {
        let mut bed = bed(LIMITS);
        blocking(move || {
            let begun = Instant::now();
            for round in 0..10 {
                let (from, to) = match round % 2 {
                    0 => (&mut bed.client, &mut bed.upstream),
                    _ => (&mut bed.upstream, &mut bed.client),
                };
                let reader = to.try_clone().unwrap();
                let read = thread::spawn(move || {
                    let mut got = vec![0; before + after];
                    (&reader).read_exact(&mut got).unwrap();
                    got
                });
                from.write_all(&vec![b'b'; before]).unwrap();
                socket2::SockRef::from(&*from).send_out_of_band(b"!").unwrap();
                from.write_all(&vec![b'a'; after]).unwrap();
                let got = read.join().unwrap();
                assert!(got[..before].iter().all(|byte| *byte == b'b'), "{before} and {after}");
                assert!(got[before..].iter().all(|byte| *byte == b'a'), "{before} and {after}");
            }
            // The next look at a silent session is after ten seconds.
            assert!(begun.elapsed() < Duration::from_secs(8), "{before} and {after}: {:?}", begun.elapsed());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_session_is_reset_and_a_busy_one_is_not() {
    let mut limits = LIMITS;
    limits.idle = Duration::from_millis(400);
    let mut bed = bed(limits);
    let relay = blocking(move || {
        for _ in 0..20 {
            bed.client.write_all(b"x").unwrap();
            bed.upstream.read_exact(&mut [0; 1]).unwrap();
            thread::park_timeout(Duration::from_millis(50));
        }
        let error = bed.client.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        bed.relay
    })
    .await;
    assert_eq!(relay.await.unwrap().0.cause, Cause::Idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_session_that_falls_silent_is_reaped() {
    let mut limits = LIMITS;
    limits.half_closed = Duration::from_millis(300);
    let bed = bed(limits);
    bed.client.shutdown(Shutdown::Write).unwrap();
    let end = bed.relay.await.unwrap().0;
    assert_eq!(end, End { side: Side::Upstream, stage: Stage::Relay, cause: Cause::HalfClosed });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_at_its_lifetime_however_busy() {
    let mut limits = LIMITS;
    limits.lifetime = Some(Duration::from_millis(300));
    let mut bed = bed(limits);
    let relay = blocking(move || {
        while bed.client.write_all(b"x").is_ok() && bed.upstream.read_exact(&mut [0; 1]).is_ok() {}
        bed.relay
    })
    .await;
    assert_eq!(relay.await.unwrap().0.cause, Cause::Lifetime);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_pauses_longer_than_the_user_timeout_is_not_taken_for_dead() {
    let mut limits = LIMITS;
    limits.user_timeout = Duration::from_secs(2);
    let mut bed = bed(limits);
    for stream in [&bed.client, &bed.upstream] {
        // The proxy's own sockets carry the timeout in production; here it is set by the watch.
        stream.set_nodelay(true).unwrap();
    }
    let relay = blocking(move || {
        let sent = bytes(16_000_000, 9);
        let expected = sent.clone();
        let mut client = bed.client;
        let writer = thread::spawn(move || {
            client.write_all(&sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client
        });
        // Nothing is read for three times the user timeout.
        let until = Instant::now() + Duration::from_secs(6);
        while Instant::now() < until {
            thread::park_timeout(Duration::from_millis(100));
        }
        let mut got = Vec::new();
        bed.upstream.read_to_end(&mut got).unwrap();
        assert!(got == expected);
        drop(bed.upstream);
        drop(writer.join());
        bed.relay
    })
    .await;
    assert!(relay.await.unwrap().0.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_urgent_byte_in_a_bulk_transfer_ends_nothing_and_holds_nothing_up() {
    for pause in [false, true] {
        let mut limits = LIMITS;
        limits.user_timeout = Duration::from_secs(3);
        let mut bed = bed(limits);
        let relay = blocking(move || {
            let bulk = bytes(2_000_000, 11);
            let sent = bulk.clone();
            let mut client = bed.client;
            let writer = thread::spawn(move || {
                client.write_all(&sent).unwrap();
                if pause {
                    // Longer than the watch looks: nobody else will read on.
                    let until = Instant::now() + Duration::from_millis(2500);
                    while Instant::now() < until {
                        thread::park_timeout(Duration::from_millis(100));
                    }
                }
                socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
                client.write_all(&[7; 5000]).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                client
            });
            let mut got = Vec::new();
            bed.upstream.read_to_end(&mut got).unwrap();
            assert_eq!(got.len(), 2_005_000);
            assert!(got.starts_with(&bulk) && got.ends_with(&[7; 5000]));
            drop(bed.upstream);
            drop(writer.join());
            bed.relay
        })
        .await;
        assert!(relay.await.unwrap().0.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_both_sides_are_reset_the_session_is_over_at_once() {
    let bed = bed(LIMITS);
    let relay = blocking(move || {
        let chunk = bytes(65_536, 15);
        for stream in [&bed.client, &bed.upstream] {
            stream.set_nonblocking(true).unwrap();
        }
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            let written = (&bed.upstream).write(&chunk).is_ok() | (&bed.client).write(&chunk).is_ok();
            if !written {
                thread::park_timeout(Duration::from_millis(5));
            }
        }
        reset(bed.upstream);
        reset(bed.client);
        bed.relay
    })
    .await;
    let end = tokio::time::timeout(Duration::from_secs(10), relay).await.unwrap().unwrap().0;
    assert_eq!(end.cause, Cause::Reset);
}
