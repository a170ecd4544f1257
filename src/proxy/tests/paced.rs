//! Paced sessions, which the relay between streams carries: the manners are those of plain ones.

use super::{
    entries::{entry, hear},
    *,
};
use crate::{
    state::Entry,
    telemetry::{Cause, Side},
};

/// More than any of these moves.
const RATE: u64 = 1 << 30;

async fn paced(carrier: Carrier, endpoint: SocketAddr, limits: SessionLimits) -> Plane {
    let plane = Plane::start(carrier, 1, &[]).await;
    plane.publish(&[endpoint], CONNECT, limits);
    hear(&plane.shared, &plane.cell, Entry { bandwidth: Some(RATE), ..entry() });
    plane
}

/// Reads until nothing more comes, however that ends.
async fn read_all(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> usize {
    let mut got = Vec::new();
    drop(soon(stream.read_to_end(&mut got)).await);
    got.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_arrives_though_its_endpoint_left_the_request_unread() {
    const ANSWER: usize = 60_000;
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let hasty = endpoint(|mut stream| async move {
            stream.read_u8().await.unwrap();
            stream.write_all(&[7; ANSWER]).await.unwrap();
            // With bytes unread the kernel resets.
        });
        let plane = paced(carrier, hasty.await, LIMITS).await;
        for session in 0..60 {
            let (mut from, mut to) = plane.client().await.into_split();
            let request = tokio::spawn(async move {
                drop(to.write_all(&[1; 300_000]).await);
                to
            });
            assert_eq!(read_all(&mut from).await, ANSWER, "session {session}");
            drop(soon(request).await.unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_is_gone_though_its_endpoint_takes_nothing() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let deaf = endpoint(|stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        });
        let plane = paced(carrier, deaf.await, LIMITS).await;
        let mut client = plane.client().await;
        // As much as there is room for: nothing of the client is read after that.
        while timeout(Duration::from_millis(500), client.write_all(&[1; 65_536])).await.is_ok() {}
        reset(client);
        plane.quiet().await;
        let ends = plane.ends();
        assert_eq!((ends[0].0.side, ends[0].0.cause), (Side::Client, Cause::Reset), "{ends:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_all_that_its_endpoint_sent_before_a_reset() {
    const ANSWER: usize = 1_500_000;
    let mut limits = LIMITS;
    limits.user_timeout = Duration::from_secs(1);
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let hasty = endpoint(|mut stream| async move {
            stream.peek(&mut [0]).await.unwrap();
            stream.write_all(&[7; ANSWER]).await.unwrap();
            while crate::sys::unsent(&stream).unwrap() > 0 {
                tokio::task::yield_now().await;
            }
            // The request is unread: a reset.
        });
        let plane = paced(carrier, hasty.await, limits).await;
        let mut client = plane.client().await;
        client.write_all(b"question").await.unwrap();
        let (mut buffer, mut got) = (vec![0; 20_000], 0);
        let end = loop {
            match soon(client.read(&mut buffer)).await {
                Ok(0) => break Ok(()),
                Ok(read) => got += read,
                Err(error) => break Err(error),
            }
            // 500 KB a second at most: three times as long as the user timeout.
            sleep(Duration::from_millis(40)).await;
        };
        assert_eq!(got, ANSWER);
        assert!(end.is_err(), "an abort must not look like a clean end");
        plane.quiet().await;
    }
}
