//! Copy and splice(2): which of them moves bytes, and what becomes of them where the kernel does not splice. strace counts the
//! calls, and has them fail.

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::harness::{Backend, Calls, Carrier, Pattern, Place, Proxy, connect, on_both_carriers, soon};

on_both_carriers!(
    #[tokio::test]
    bulk_is_spliced_and_small_messages_are_copied,
    where_the_kernel_does_not_splice_bytes_are_copied,
);

/// More than the relay reads at once, many times over.
const BULK: u64 = 4_000_000;

/// A pattern there and back.
async fn exchange(client: &mut TcpStream, length: u64) {
    let (mut from, mut to) = client.split();
    let there = async { Pattern(3).send(&mut to, 0, length).await.unwrap() };
    let back = async { assert_eq!(Pattern(3).receive(&mut from, 0, length).await.unwrap(), length) };
    soon(format!("{length} bytes there and back"), async { tokio::join!(there, back) }).await;
}

async fn bulk_is_spliced_and_small_messages_are_copied(carrier: Carrier) {
    const MESSAGES: u64 = 200;
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
    let mut client = connect(address).await;
    exchange(&mut client, BULK).await;
    let count = async |client: &mut TcpStream, lengths: &[u64]| {
        let calls = Calls::start("splice", proxy.pid()).await?;
        for length in lengths {
            exchange(client, *length).await;
        }
        Some(calls.finish().await.of("splice"))
    };
    let small = vec![128; usize::try_from(MESSAGES).unwrap()];
    let Some(after_bulk) = count(&mut client, &small).await else { return };
    // Four small transfers each way, of two calls and one that finds nothing.
    assert!(after_bulk <= 30, "{after_bulk} splices of {MESSAGES} small messages after bulk");
    assert_eq!(count(&mut client, &small).await, Some(0), "small messages");
    let spliced = count(&mut client, &[BULK]).await.unwrap();
    assert!(spliced >= 4, "{spliced} splices of {BULK} bytes");
    let most = 2 * 4 * BULK / (16 * 1024);
    assert!(spliced <= most, "{spliced} splices of {BULK} bytes: they are small");
}

async fn where_the_kernel_does_not_splice_bytes_are_copied(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
    // What is not known, what is forbidden, what memory does not suffice for; at once, and once it has begun.
    for failure in [
        "error=ENOSYS",
        "error=EPERM",
        "error=EACCES",
        "error=ENOMEM",
        "error=EINVAL:when=1",
        "error=EINVAL:when=2",
        "error=EINVAL:when=3",
        "error=EPERM:when=4",
        "error=EINVAL:when=4+",
    ] {
        let failing = format!("splice:{failure}");
        let Some(strace) = Calls::inject("where_the_kernel_does_not_splice", proxy.pid(), &failing).await
        else {
            return;
        };
        let mut client = connect(address).await;
        exchange(&mut client, BULK).await;
        client.shutdown().await.unwrap();
        Pattern(3).receive_all(&mut client, 0).await;
        assert!(strace.finish().await.of("splice") > 0, "{failure}");
    }
}
