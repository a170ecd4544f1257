//! Who reads slowly gets everything, whatever has become of the other side.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream as StdStream},
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    super::{LIMITS, blocking, bytes},
    bed,
};
use crate::telemetry::Cause;

/// Reads everything at about `rate` bytes a second; the bytes, and how it ended.
fn read_slowly(stream: &mut StdStream, rate: usize) -> (usize, io::Result<()>) {
    let mut buffer = vec![0; rate / 20];
    let mut got = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (got, Ok(())),
            Ok(read) => got += read,
            Err(error) => return (got, Err(error)),
        }
        thread::park_timeout(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_the_whole_answer_however_short_the_half_close_timeout() {
    let mut limits = LIMITS;
    limits.half_closed = Duration::from_secs(1);
    limits.user_timeout = Duration::from_secs(3);
    let mut bed = bed(limits);
    let relay = blocking(move || {
        bed.upstream.write_all(&bytes(2_500_000, 13)).unwrap();
        bed.upstream.shutdown(Shutdown::Write).unwrap();
        let (got, end) = read_slowly(&mut bed.client, 600_000);
        assert_eq!(got, 2_500_000);
        end.unwrap();
        drop((bed.client, bed.upstream));
        bed.relay
    })
    .await;
    assert!(relay.await.unwrap().0.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_the_whole_answer_of_an_endpoint_that_was_reset() {
    let mut limits = LIMITS;
    limits.user_timeout = Duration::from_secs(1);
    let mut bed = bed(limits);
    let relay = blocking(move || {
        bed.client.write_all(b"question").unwrap();
        bed.upstream.write_all(&bytes(1_500_000, 14)).unwrap();
        while crate::sys::unsent(&bed.upstream).unwrap() > 0 {
            thread::yield_now();
        }
        // With the question unread the kernel resets.
        drop(bed.upstream);
        let (got, end) = read_slowly(&mut bed.client, 400_000);
        assert_eq!(got, 1_500_000);
        assert!(end.is_err(), "an abort must not look like a clean end");
        bed.relay
    })
    .await;
    assert_eq!(relay.await.unwrap().0.cause, Cause::Reset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_more_than_the_kernel_holds_of_an_endpoint_that_was_reset() {
    let mut limits = LIMITS;
    limits.user_timeout = Duration::from_secs(1);
    let mut bed = bed(limits);
    let relay = blocking(move || {
        bed.client.write_all(b"question").unwrap();
        bed.upstream.set_nonblocking(true).unwrap();
        // As much as the session takes while nobody reads: some of it waits in front of the proxy.
        let (chunk, mut sent, mut moved_at) = (bytes(65_536, 16), 0, Instant::now());
        while moved_at.elapsed() < Duration::from_millis(300) {
            match bed.upstream.write(&chunk) {
                Ok(written) => (sent, moved_at) = (sent + written, Instant::now()),
                Err(_) => thread::park_timeout(Duration::from_millis(5)),
            }
        }
        let arrived = sent - crate::sys::unsent(&bed.upstream).unwrap();
        // With the question unread the kernel resets.
        drop(bed.upstream);
        // Slow, and never silent for as long as the user timeout.
        let (got, end) = read_slowly(&mut bed.client, arrived / 4);
        assert!(got >= arrived, "{got} of {arrived} bytes");
        assert!(end.is_err(), "an abort must not look like a clean end");
        bed.relay
    })
    .await;
    assert_eq!(relay.await.unwrap().0.cause, Cause::Reset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_a_little_all_the_time_is_not_taken_for_dead() {
    let mut limits = LIMITS;
    limits.user_timeout = Duration::from_secs(1);
    let readers = [(16_384, 10_000, 250), (16_384, 1000, 50), (4096, 1000, 250), (4096, 500, 50)];
    let mut beds = Vec::new();
    for (room, size, pause) in readers {
        let bed = bed(limits);
        socket2::SockRef::from(&bed.client).set_recv_buffer_size(room).unwrap();
        let (mut client, mut upstream) = (bed.client, bed.upstream);
        let writer = thread::spawn(move || while upstream.write_all(&[7; 65_536]).is_ok() {});
        let reader = tokio::task::spawn_blocking(move || {
            let (until, mut buffer) = (Instant::now() + Duration::from_secs(8), vec![0; size]);
            while Instant::now() < until {
                if let Err(error) = client.read(&mut buffer) {
                    return Err(format!("{room} {size} {pause}: {error}"));
                }
                thread::park_timeout(Duration::from_millis(pause));
            }
            Ok(())
        });
        beds.push((writer, reader, bed.relay));
    }
    for (writer, reader, relay) in beds {
        reader.await.unwrap().unwrap();
        assert_eq!(relay.await.unwrap().0.cause, Cause::Reset);
        writer.join().unwrap();
    }
}
